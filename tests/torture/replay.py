"""Campaigns that disturb a command at its n-th file operation, and then call it again."""

from __future__ import annotations

import errno
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from torture.operations import count_operations, fail_at, kill_at, tear_at, vanish_at
from torture.sandbox import CASES, Ending, Sandbox

from limbeck.core.unfinished import is_unused


class Undisturbed(NamedTuple):
    """A case, its sandbox, and what the command does and leaves where nothing happens to it."""

    name: str
    sandbox: Sandbox
    operations: list[str]
    bits: dict[str, str]
    seconds: float

    @property
    def words(self) -> list[str]:
        """The command."""
        return CASES[self.name].words

    @property
    def out(self) -> Path:
        """What it writes."""
        return self.sandbox.root / CASES[self.name].out


def run_undisturbed(name: str, root: Path, materials: Path) -> Undisturbed:
    """Run a command once, and note its operations and its bits."""
    sandbox = Sandbox(root, materials, CASES[name].needs)
    report = root.with_suffix(".operations")
    ending = sandbox.run(CASES[name].words, count_operations(root, report))
    assert ending.status == 0, ending
    assert sandbox.leftovers() == []
    return Undisturbed(name, sandbox, report.read_text().splitlines(), sandbox.bits(), ending.seconds)


def go_on(case: Undisturbed, *more_words: str) -> str | None:
    """Call the command again; what is wrong with what it does or leaves, or None.

    A command that writes a new folder, and had finished it when it was killed, rightly refuses to write it again.
    """
    is_there = case.sandbox.bits() == case.bits
    ending = case.sandbox.run([*case.words, *more_words])
    if ending.status != 0 and not (is_there and ending.status == 2 and "exists" in ending.text):
        return f"the same command ended with {ending.status}: {ending.text.strip()[-300:]}"
    bits = case.sandbox.bits()
    if bits != case.bits:
        return f"other bits: {sorted(name for name in {*bits, *case.bits} if bits.get(name) != case.bits.get(name))}"
    leftovers = case.sandbox.leftovers()
    return f"left over: {leftovers}" if leftovers else None


def kill_points(case: Undisturbed) -> list[tuple[int, bool]]:
    """All (number of the operation, whether to stop in the write after it)."""
    opens = [number for number, name in enumerate(case.operations, 1) if name.startswith("open ") or ".part" in name]
    return sorted([*((number, False) for number in range(1, len(case.operations) + 1)), *((n, True) for n in opens)])


def kill_and_go_on(case: Undisturbed, number: int, is_torn: bool) -> str | None:
    """Kill the command at an operation, and call it again; what is wrong, or None."""
    case.sandbox.reset()
    kill = tear_at if is_torn else kill_at
    ending = case.sandbox.run(case.words, kill(case.sandbox.root, number))
    if ending.status not in (-signal.SIGKILL, -signal.SIGXFSZ) and not (is_torn and number == len(case.operations)):
        return f"was not killed: {ending}"
    return go_on(case)


def is_sentence(ending: Ending) -> bool:
    """Whether a command that failed said so in one sentence about a path."""
    return (
        ending.status in (1, 2)
        and "Traceback" not in ending.text
        and "[Errno" not in ending.text
        and all(
            line.startswith("limbeck: ") and ("/" in line or "is gone" in line or " cannot be written (" in line)
            for line in ending.text.strip().splitlines()[-1:]
        )
    )


def fail_and_go_on(case: Undisturbed, number: int, error: int) -> str | None:
    """Let the disk fail from an operation on, and call the command again; what is wrong, or None."""
    case.sandbox.reset()
    ending = case.sandbox.run(case.words, fail_at(case.sandbox.root, number, error))
    if ending.status != 0 and not is_sentence(ending):
        return f"no sentence: {ending.status} {ending.text[-500:]}"
    if error == errno.ENOSPC and case.sandbox.leftovers():
        return f"left over on a full disk: {case.sandbox.leftovers()}"
    return go_on(case)


def vanish_and_go_on(case: Undisturbed, number: int) -> str | None:
    """Let the folder that is written vanish, bring it back, and call the command again; what is wrong, or None.

    A folder in which there was nothing yet may be made once more, and then gets all of its content.
    """
    case.sandbox.reset()
    gone = case.out.with_name("gone")
    ending = case.sandbox.run(case.words, vanish_at(case.sandbox.root, number, case.out))
    if gone.exists():
        if ending.status == 0 and is_unused(gone):
            shutil.rmtree(gone)
            return go_on(case)
        if ending.status == 0 or not is_sentence(ending):
            return f"no sentence: {ending.status} {ending.text[-500:]}"
        if case.out.exists():
            return f"the folder was made again: {sorted(path.name for path in case.out.iterdir())}"
        gone.rename(case.out)
    return go_on(case)


def sample(values: Sequence[int], count: int | None) -> list[int]:
    """`count` of the values, from the first to the last at equal distances; all without a count."""
    if count is None or count >= len(values):
        return list(values)
    return [values[round(i * (len(values) - 1) / max(1, count - 1))] for i in range(count)]


Attempt = Callable[[], str | None]
"""One attempt: what is wrong afterwards, or None."""
