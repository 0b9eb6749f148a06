"""Opening of .pt files: what is read without running any of it, and what is refused before it takes memory."""

from __future__ import annotations

import pickle
import resource
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from authors_files import refuse, save
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.core.errors import UserError
from limbeck.interop.pt_files import open_pt


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("number", [np.float64(0.28), np.float32(0.5), np.int64(-3), np.int32(7), np.float64("nan")])
def test_numbers_of_numpy_are_read_without_numpy(tmp_path: Path, number: Any, legacy: bool) -> None:
    path = tmp_path / "x.pt"
    torch.save({"accs": [number, 0.5], "t": torch.ones(2)}, path, _use_new_zipfile_serialization=not legacy)
    content = open_pt(path)
    assert type(content["accs"][0]) is float
    np.testing.assert_equal(content["accs"], [float(number), 0.5])
    assert torch.equal(content["t"], torch.ones(2))
    assert not any("numpy" in str(entry) for entry in torch.serialization.get_safe_globals())  # only while reading


def test_files_of_numpy_1_are_read(tmp_path: Path) -> None:
    path = save([np.float64(0.75)], tmp_path / "new.pt")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "old.pt", "w") as copy:
        for name in archive.namelist():
            content = archive.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            copy.writestr(name, content)
    assert open_pt(tmp_path / "old.pt") == [0.75]


class Harm:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("pwned-by-a-file"),)


@pytest.mark.parametrize(
    "value",
    [
        Harm(),
        np.zeros(3),
        np.str_("text"),
        np.complex128(1j),
        np.datetime64("2020-01-01"),
        np.void(b"abc"),
        [np.array([Harm()], object)],
    ],
    ids=["code", "array", "string", "complex", "date", "bytes", "objects"],
)
def test_objects_are_refused(tmp_path: Path, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save({"data": [value]}, tmp_path / "x.pt")
    refuse("it is refused", lambda: open_pt(path))
    assert not Path("pwned-by-a-file").exists()


def test_a_scalar_of_objects_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy's own scalar(dtype("O"), x) would return any object x."""
    monkeypatch.chdir(tmp_path)
    harmful = b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n(U\x01OtRU\x04abcd\x86R."
    (tmp_path / "x.pt").write_bytes(harmful)
    refuse("refused|cut short", lambda: open_pt(tmp_path / "x.pt"))


ODD_TENSORS = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8),
    "complex": lambda: torch.zeros(2, dtype=torch.complex64),
    "meta": lambda: torch.zeros(2, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ODD_TENSORS)
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path: Path, name: str) -> None:
    path = save({"data": [[ODD_TENSORS[name](), torch.zeros(2)]]}, tmp_path / "x.pt")
    refuse("sparse, quantised, complex", lambda: open_pt(path))


def test_a_tensor_that_claims_more_than_its_file_is_refused(tmp_path: Path) -> None:
    path = save([torch.zeros(1).expand(10**9, 3)], tmp_path / "x.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuse("tensor of shape .1000000000, 3., which needs more", lambda: open_pt(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_an_archive_that_unpacks_to_more_is_refused(tmp_path: Path) -> None:
    path = save(torch.zeros(1_000_000), tmp_path / "x.pt")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as copy:
        for name in archive.namelist():
            copy.writestr(name, archive.read(name))
    refuse("claims to contain 4", lambda: open_pt(tmp_path / "y.pt"))


def test_containers_that_hold_themselves_end(tmp_path: Path) -> None:
    values: list[Any] = [torch.zeros(1)]
    for _ in range(40):
        values = [values, values]  # 2^40 paths to one tensor
    assert isinstance(open_pt(save(values, tmp_path / "x.pt")), list)


@pytest.fixture(scope="module")
def sound_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pair = [torch.zeros(3, 1, 4, 4), torch.arange(3)]
    return save({"data": [pair, pair], "accs": [np.float64(0.5)]}, tmp_path_factory.mktemp("pt") / "x.pt")


@settings(deadline=None, max_examples=300)
@given(place=st.floats(0, 1), value=st.binary(min_size=0, max_size=5), width=st.integers(0, 5))
def test_a_changed_pickle_is_read_or_refused_in_a_sentence(
    sound_file: Path, place: float, value: bytes, width: int
) -> None:
    changed = sound_file.with_name("changed.pt")
    with zipfile.ZipFile(sound_file) as archive, zipfile.ZipFile(changed, "w") as copy:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("data.pkl"):
                start = int(place * len(content))
                content = content[:start] + value + content[start + width :]
            copy.writestr(name, content)
    sentence = ""
    try:
        open_pt(changed)
    except UserError as error:
        sentence = str(error)
    assert "\n" not in sentence
    assert len(sentence) <= 300 + len(str(changed))


@pytest.mark.parametrize(
    "content",
    [b"", b"abc", b"PK\x03\x04", b"\x80\x02]q\x00.", b"\x80\x02J\x00", b"\x80\x02h\x07.", pickle.dumps([1.0])],
)
def test_other_files_are_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    refuse("torch.save", lambda: open_pt(tmp_path / "x.pt"))
    refuse("does not exist", lambda: open_pt(tmp_path / "missing.pt"))
