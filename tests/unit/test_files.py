"""Files as contracts: whole or absent, verified on open, refused in one sentence when wrong."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.files import content_key, read_json, write_atomically, write_json
from limbeck.core.tensors import digest, read_header, read_tensors, write_tensors
from limbeck.experts import Expert, ExpertConfig, Recorded, Store, convexify
from limbeck.networks.flat import Layout

GOLDEN = Path(__file__).parents[1] / "golden"
HEADER = {"format": "limbeck-test", "version": 1, "note": "ä"}


def tensors() -> dict[str, Tensor]:
    return {
        "half": torch.arange(6).reshape(2, 3).half() / 7,
        "scalar": torch.tensor(0.1, dtype=torch.double),
        "whole": torch.tensor([-(2**40), 3]),
        "empty": torch.zeros(0, 4),
    }


def refused(read: Callable[[], object], *parts: str) -> None:
    """It is a UserError of one sentence, which holds all of `parts`."""
    with pytest.raises(UserError) as caught:
        read()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    for part in parts:
        assert part in sentence, sentence


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_nothing_and_harms_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def write(path: Path) -> None:
        path.write_text("half a fi")
        raise error

    for before in (None, "as it was"):
        if before is not None:
            (tmp_path / "a.txt").write_text(before)
        with pytest.raises(error):
            write_atomically(tmp_path / "a.txt", write)
        assert [file.read_text() for file in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_file_appears_whole_and_can_be_read_by_others(tmp_path: Path) -> None:
    existed: list[bool] = []

    def write(path: Path) -> None:
        path.write_text("all of it")
        existed.append((tmp_path / "new" / "a.txt").exists())

    write_atomically(tmp_path / "new" / "a.txt", write)
    assert existed == [False]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.txt"]
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "new" / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


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
    refused(lambda: read_tensors(good, "limbeck-test", version=0), "version 1", "version 0")
    refused(lambda: read_tensors(good, "limbeck-set"), "limbeck-set", "limbeck-test")
    write_tensors(good, tensors(), {**HEADER, "version": 2})
    refused(lambda: read_tensors(good, "limbeck-test"), "version 2", "version 1")


def test_every_truncation_is_refused(good: Path) -> None:
    whole = good.read_bytes()
    for length in range(0, len(whole), 3):
        good.write_bytes(whole[:length])
        refused(lambda: read_tensors(good, "limbeck-test"), "good.safetensors", "damaged")


def test_every_flipped_bit_of_the_tensors_is_refused(good: Path) -> None:
    whole = good.read_bytes()
    for place in range(8 + int.from_bytes(whole[:8], "little"), len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        good.write_bytes(damaged)
        refused(lambda: read_tensors(good, "limbeck-test"), "checksum")


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
    refused(lambda: read_tensors(tmp_path / "stranger", "limbeck-set"), "stranger")


# --- JSON


def test_json_comes_back(tmp_path: Path) -> None:
    value = {**HEADER, "numbers": [0.1, 1e-300, 3], "none": None}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json", "limbeck-test") == value


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_json_has_no_word_for_is_not_written(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": number})
    with pytest.raises(ValueError, match="JSON"):
        write_tensors(tmp_path / "a.safetensors", tensors(), {**HEADER, "a": number})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", [None, b"", b"{", b"[1]", b"\xff\xfe", b'{"format": "other"}', b'{"format": "limbeck-test"}']
)
def test_json_that_is_not_ours_is_refused(tmp_path: Path, text: bytes | None) -> None:
    if text is not None:
        (tmp_path / "a.json").write_bytes(text)
    refused(lambda: read_json(tmp_path / "a.json", "limbeck-test"), "a.json")


# --- golden bytes: files of version 1 stay readable


def points() -> Tensor:
    """(4, 6) recorded parameters, exact in float32."""
    return torch.arange(24.0).reshape(4, 6) ** 2 / 8


def make_golden_store(path: Path) -> None:
    """tests/golden/store was made by this."""
    config = ExpertConfig(epochs=3, waypoints=3, keep="both")
    layout = Layout(("weight", "bias"), ((2, 2), (2,)))
    description = {
        "data": {"name": "golden", "fingerprint": "00ff", "classes": ["a", "b"], "shape": [1, 2, 2]},
        "model": {"name": "mlp"},
        "preprocess": {"kind": "normalise", "eps": 0.0, "shape": [1, 2, 2]},
        "augment": "none",
        "expert": config.model_dump(),
        "seed": 0,
        "layout": {"names": ["weight", "bias"], "shapes": [[2, 2], [2]]},
    }
    convex = convexify(points(), layout, config.waypoint_epochs())
    Store.create(path, description).write(0, Expert(convex, Recorded(points()), (0.25, 0.5, 0.75, 0.875), 0.8125))


def test_the_golden_store_still_opens() -> None:
    store = Store.open(GOLDEN / "store")
    expert = store.read(0)
    assert store.layout.names == ("weight", "bias")
    assert store.layout.shapes == ((2, 2), (2,))
    assert (expert.validation, expert.test) == ((0.25, 0.5, 0.75, 0.875), 0.8125)
    assert expert.convex is not None
    assert expert.recorded is not None
    assert torch.equal(expert.recorded.points, points())
    assert expert.convex.epochs == (0, 2, 3)
    assert torch.equal(expert.convex.waypoints, points()[[0, 2, 3]])
    assert torch.equal(expert.convex.at(2), points()[2])
    assert expert.convex.beta[[1, 2]].eq(1).all()
    assert float(expert.convex.beta[0, 1]) == pytest.approx(0.35749, abs=1e-5)  # |(84, 96)| of that and |(156, 168)|
    assert store.config.epochs == 3


def test_the_golden_store_takes_new_experts(tmp_path: Path) -> None:
    """Written again by the program of today, the expert has the same contents."""
    shutil.copytree(GOLDEN / "store", tmp_path / "store")
    store = Store.open(tmp_path / "store")
    store.write(1, store.read(0))
    old, new = (read_tensors(store.file(index), "limbeck-expert") for index in (0, 1))
    assert digest({}, old[0]) == digest({}, new[0])
    assert {**old[1], "index": 1, "sha256": new[1]["sha256"]} == new[1]
    assert json.loads((tmp_path / "store" / "store.json").read_text())["key"] == new[1]["store"]
