"""Unfinished files and locks: whose they are, and what becomes of them when their process is dead."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors import SafetensorError

from limbeck.cli.main import main
from limbeck.core.disk import write_errors
from limbeck.core.errors import UserError, WriteError
from limbeck.core.files import require_new_folder, write_atomically
from limbeck.core.interrupts import Interrupted, Interrupts, finish_step
from limbeck.core.locks import Locked, locked, try_lock
from limbeck.core.unfinished import remove_unfinished, reserve

HOLD = """
import sys
from pathlib import Path
from limbeck.core.locks import try_lock
from limbeck.core.unfinished import reserve
lock = try_lock(Path(sys.argv[1]) / ".lock")
with reserve(Path(sys.argv[1]) / "file") as folder:
    print(folder.name, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that has the lock of a folder, and an unfinished file in it."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().endswith(".part\n")
    return process


def test_what_a_living_process_writes_stays_and_what_a_dead_one_wrote_goes(
    other: subprocess.Popen[str], tmp_path: Path
) -> None:
    with other:
        remove_unfinished(tmp_path)
        assert len(list(tmp_path.glob(".file.*.part"))) == 1
        with pytest.raises(Locked, match=rf"process {other.pid} on "):
            try_lock(tmp_path / ".lock")
        inode = (tmp_path / ".lock").stat().st_ino
        other.kill()
        other.wait()
    require_new_folder(tmp_path, "a run")  # nothing but what the dead process left
    with locked(tmp_path / ".lock"):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    write_atomically(tmp_path / "file", lambda path: path.write_text("whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "file"]
    assert (tmp_path / ".lock").stat().st_ino == inode


def test_the_name_of_a_process_on_another_host_locks_nothing(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 17 on elsewhere\n")
    with locked(tmp_path / ".lock"), pytest.raises(Locked, match=f"process {os.getpid()} on "):
        try_lock(tmp_path / ".lock")


def test_waiting_for_a_lock(tmp_path: Path) -> None:
    names, is_locked = list[str](), threading.Event()

    def hold() -> None:
        with locked(tmp_path / ".lock"):
            is_locked.set()
            time.sleep(0.2)

    thread = threading.Thread(target=hold)
    thread.start()
    is_locked.wait()
    with locked(tmp_path / ".lock", names.append):
        assert names == [f"process {os.getpid()} on {os.uname().nodename}"]
    thread.join()


def test_the_permissions_of_all_threads_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the umask sets it for a moment, in which another thread makes files that anybody can write to."""
    monkeypatch.setattr(os, "umask", None)
    write_atomically(tmp_path / "file", lambda path: path.touch(mode=0o600))
    (tmp_path / "plain").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EROFS, "x"), errno.EROFS),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed"), errno.EIO),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 662"), errno.EIO),
        (RuntimeError("basic_ios::clear: iostream error"), errno.EIO),
    ],
)
def test_what_the_system_says_becomes_a_sentence(error: Exception, number: int) -> None:
    with pytest.raises(WriteError) as caught, write_errors(Path("run/state")):
        raise error
    assert caught.value.errno == number
    assert str(caught.value).startswith(f"run/state cannot be written ({os.strerror(number).lower()}); ")
    assert "Errno" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_not_taken_for_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    """A sentence on a damaged .pt file quotes torch's error, whose words are those of one that writes."""
    with pytest.raises(UserError), write_errors(tmp_path / "imported"):
        raise UserError("x.pt is no file of torch.save ([enforce fail at inline_container.cc:268] . file not found).")


def test_what_is_not_about_the_disk_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^shapes$"), write_errors(tmp_path / "state"):
        raise RuntimeError("shapes")


def take_steps(number: int, times: int, steps: list[int]) -> None:
    """Steps of a loop, in the first of which a signal arrives so many times."""
    with finish_step() as pending:
        for step in range(3):
            for _ in range(times if step == 0 else 0):
                os.kill(os.getpid(), number)
            steps.append(step)
            pending.pass_on()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("times", "error", "finished"), [(1, Interrupted, [0]), (2, SystemExit, [])])
def test_a_step_is_finished_before_a_signal_is_passed_on_and_a_second_one_stops_at_once(
    number: int, times: int, error: type[BaseException], finished: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    before, steps = signal.signal(number, Interrupts()), list[int]()
    try:
        with pytest.raises(error) as caught:
            take_steps(number, times, steps)
        assert getattr(caught.value, "status", caught.value.args[0]) == 128 + number
        assert steps == finished
    finally:
        signal.signal(number, before)


def test_an_interruption_that_a_library_made_an_error_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """matplotlib's compiled code did, with 2 of 300 signals in an evaluation with a report: a traceback."""

    def convert(*arguments: object) -> None:
        raise TypeError("affine_transform(): incompatible function arguments")

    def draw(*arguments: object) -> None:
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        convert()

    monkeypatch.setattr("limbeck.report.table.write_table", draw)
    before = signal.signal(signal.SIGTERM, Interrupts())
    try:
        with pytest.raises(SystemExit) as end:
            main(["table", "run", "--out", "table.md"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert end.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err.endswith("limbeck: interrupted; the same command goes on where it stopped.\n")
    monkeypatch.setattr("limbeck.report.table.write_table", convert)
    with pytest.raises(TypeError):
        main(["table", "run", "--out", "table.md"])


DESTRUCTOR = """
import os, signal, time
from limbeck.core.interrupts import Interrupted, Interrupts

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.001)

class Faulty:
    def __del__(self):
        raise ValueError("of its own")

Interrupts().install()
del (faulty := [Faulty()])[0]
try:
    del (dying := [Dying()])[0]
    time.sleep(60)
except Interrupted as error:
    print("interrupted", error.status)
"""


def test_a_signal_that_meets_a_destructor_comes_again() -> None:
    """Python passes over what a destructor raises: 3 of 585 evaluations that were to stop went on to their ends."""
    done = subprocess.run([sys.executable, "-c", DESTRUCTOR], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout == f"interrupted {128 + signal.SIGTERM}\n"
    assert "of its own" in done.stderr
    assert "Interrupted" not in done.stderr


def test_signals_that_are_ignored_stay_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        Interrupts().install()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_folder_can_be_reserved_again_and_again(tmp_path: Path) -> None:
    with reserve(tmp_path / "a") as first, reserve(tmp_path / "a") as second:
        assert first != second
        assert first.is_dir()
    assert list(tmp_path.iterdir()) == []
