"""Files of tensors: verified when they are opened, and refused in one sentence where they are damaged or not ours."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from refusals import assert_refused
from safetensors.torch import save_file
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.files import content_key
from limbeck.core.tensors import digest, read_header, read_tensors, write_tensors

HEADER = {"format": "limbeck-test", "version": 1, "note": "ä"}


def tensors() -> dict[str, Tensor]:
    return {
        "half": torch.arange(6).reshape(2, 3).half() / 7,
        "scalar": torch.tensor(0.1, dtype=torch.double),
        "whole": torch.tensor([-(2**40), 3]),
        "empty": torch.zeros(0, 4),
    }


def test_tensors_come_back_with_their_header(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, tensors(), HEADER)
    loaded, header = read_tensors(path, "limbeck-test")
    assert loaded.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert {key: header[key] for key in HEADER} == HEADER
    assert header == read_header(path)
    before = path.read_bytes()
    write_tensors(path, loaded, HEADER)
    assert path.read_bytes() == before


def test_the_same_contents_are_the_same_bytes(tmp_path: Path) -> None:
    """Every time: safetensors keeps metadata in an order that changes from call to call."""
    loaded = set()
    for _ in range(20):
        write_tensors(tmp_path / "a", tensors(), HEADER)
        loaded.add((tmp_path / "a").read_bytes())
    assert len(loaded) == 1


def test_what_is_not_contiguous_or_asks_for_gradients_is_written(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T.requires_grad_()
    write_tensors(tmp_path / "a", {"a": tensor, "same": tensor}, HEADER)
    loaded, _ = read_tensors(tmp_path / "a", "limbeck-test")
    assert torch.equal(loaded["a"], tensor)
    assert torch.equal(loaded["same"], tensor)


def test_the_digest_sees_header_names_types_shapes_and_bytes() -> None:
    original = {"a": torch.zeros(4), "b": torch.ones(2, 2)}
    variants = [
        {"a": torch.zeros(4), "c": torch.ones(2, 2)},
        {"a": torch.zeros(4), "b": torch.ones(4)},
        {"a": torch.zeros(4, dtype=torch.int32), "b": torch.ones(2, 2)},
        {"a": -torch.zeros(4), "b": torch.ones(2, 2)},
        {"a": torch.zeros(4)},
    ]
    assert digest("{}", original) == digest("{}", {"b": original["b"], "a": original["a"]})
    assert len({digest("{}", content) for content in [original, *variants]} | {digest("[]", original)}) == 7
    assert content_key({"a": 1}) != content_key({"a": 2})


@pytest.fixture
def good(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "good.safetensors", tensors(), HEADER)
    return tmp_path / "good.safetensors"


def test_another_version_and_another_format_are_refused(good: Path) -> None:
    assert_refused(lambda: read_tensors(good, "limbeck-test", version=0), "version 1", "version 0")
    assert_refused(lambda: read_tensors(good, "limbeck-set"), "limbeck-set", "limbeck-test")
    write_tensors(good, tensors(), {**HEADER, "version": 2})
    assert_refused(lambda: read_tensors(good, "limbeck-test"), "version 2", "version 1")


def test_every_truncation_is_refused(good: Path) -> None:
    whole = good.read_bytes()
    for length in range(0, len(whole), 3):
        good.write_bytes(whole[:length])
        assert_refused(lambda: read_tensors(good, "limbeck-test"), "good.safetensors", "damaged")


def test_every_flipped_bit_of_the_tensors_is_refused(good: Path) -> None:
    whole = good.read_bytes()
    for place in range(8 + int.from_bytes(whole[:8], "little"), len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        good.write_bytes(damaged)
        assert_refused(lambda: read_tensors(good, "limbeck-test"), "checksum")


def test_every_flipped_bit_of_the_header_is_refused(good: Path) -> None:
    whole = good.read_bytes()
    for place in range(8 + int.from_bytes(whole[:8], "little")):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 7)
        good.write_bytes(damaged)
        with pytest.raises(UserError):
            read_tensors(good, "limbeck-test")


def foreign(path: Path) -> None:
    save_file({"a": torch.zeros(2)}, str(path))


def header_of_another_program(path: Path) -> None:
    save_file({"a": torch.zeros(2)}, str(path), metadata={"limbeck": "no json"})


def header_that_is_a_list(path: Path) -> None:
    save_file({"a": torch.zeros(2)}, str(path), metadata={"limbeck": "[]"})


STRANGERS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("these are not the tensors you are looking for\n" * 9),
    "pickle": lambda path: torch.save({"a": torch.zeros(2)}, path),
    "huge header": lambda path: path.write_bytes(struct.pack("<Q", 2**62) + b"{}"),
    "folder": lambda path: path.mkdir(),
    "foreign": foreign,
    "not json": header_of_another_program,
    "not an object": header_that_is_a_list,
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_file_that_is_not_ours_is_refused(tmp_path: Path, kind: str) -> None:
    STRANGERS[kind](tmp_path / "stranger")
    assert_refused(lambda: read_tensors(tmp_path / "stranger", "limbeck-set"), "stranger")
