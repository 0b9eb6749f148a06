"""The folders for reuse: what the environment says, and the system's own place for each user's cache."""

from __future__ import annotations

import sys
from pathlib import Path

import platformdirs
import pytest
from platformdirs.macos import MacOS

from limbeck.core.errors import UserError
from limbeck.core.folders import home_folder, kernels_folder, size_of, user_cache_folder


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and nothing about caches in the environment."""
    for name in ("LIMBECK_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's own place")
def test_linux_keeps_them_where_they_always_were(user: Path) -> None:
    assert home_folder() == user_cache_folder() == user / ".cache" / "limbeck"
    assert kernels_folder() == user / ".cache" / "limbeck" / "kernels"


def test_macos_has_its_own_place(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "PlatformDirs", MacOS)
    assert user_cache_folder() == user / "Library" / "Caches" / "limbeck"


def test_the_environment_comes_first(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(user / "cache"))
    assert home_folder() == user / "cache" / "limbeck"
    monkeypatch.setenv("LIMBECK_HOME", str(user / "group"))
    assert home_folder() == user / "group"
    assert kernels_folder() == user / "cache" / "limbeck" / "kernels"
    for name in ("LIMBECK_HOME", "XDG_CACHE_HOME"):  # an empty one is none
        monkeypatch.setenv(name, "")
    assert home_folder() == user_cache_folder()
    assert user_cache_folder().is_absolute()


@pytest.mark.parametrize("error", [RuntimeError, None])
def test_a_user_without_a_home_folder(error: type[Exception] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer versions of platformdirs raise there, and older ones return ~ as it is."""

    def homeless(name: str, appauthor: bool) -> Path:
        if error is not None:
            raise error
        return Path("~/.cache") / name

    monkeypatch.setattr(platformdirs, "user_cache_path", homeless)
    with pytest.raises(UserError, match=r"no home folder; set HOME, or XDG_CACHE_HOME"):
        home_folder()


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "new" / "deep").mkdir(parents=True)
    (tmp_path / "new" / "a.txt").write_text("all of it")
    (tmp_path / "new" / "deep" / "b.txt").write_text("more")
    assert size_of(tmp_path / "new" / "a.txt") == 9
    assert size_of(tmp_path / "new") == 13
    with pytest.raises(FileNotFoundError):
        size_of(tmp_path / "none")
