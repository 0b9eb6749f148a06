"""The campaigns: what is done to a command, how often, and what has to be the same afterwards."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torture import replay
from torture.replay import Attempt, Undisturbed, go_on, kill_and_go_on, kill_points, run_undisturbed, sample
from torture.sandbox import EXPERTS, PLAIN, Ending, Sandbox

RANDOM = ("experts", "distill", "evaluate", "convexify", "export")


class Campaign(NamedTuple):
    """A name, and its attempts, of which each says what is wrong afterwards."""

    name: str
    attempts: list[Attempt]

    def run(self) -> tuple[int, list[str]]:
        """Number of attempts, and what was wrong in those that lost something."""
        wrongs = [wrong for attempt in self.attempts if (wrong := attempt()) is not None]
        return len(self.attempts), wrongs


def kill_everywhere(case: Undisturbed, count: int | None) -> Campaign:
    """Kill a command before every file operation, and in every write; or at `count` of these moments."""
    points = kill_points(case)
    chosen = [points[i] for i in sample(range(len(points)), count)]
    name = f"killed at a file operation: {case.name} ({len(points)})"
    return Campaign(name, [partial(kill_and_go_on, case, *point) for point in chosen])


def fail_everywhere(case: Undisturbed, error: int, count: int | None) -> Campaign:
    """Let the disk fail from one operation on."""
    numbers = sample(range(1, len(case.operations) + 1), count)
    attempts = [partial(replay.fail_and_go_on, case, number, error) for number in numbers]
    return Campaign(f"{os.strerror(error).lower()} (injected): {case.name}", attempts)


def vanish_everywhere(case: Undisturbed, count: int | None) -> Campaign:
    """Let the folder vanish before one operation."""
    numbers = sample(range(2, len(case.operations) + 1), count)
    attempts = [partial(replay.vanish_and_go_on, case, number) for number in numbers]
    return Campaign(f"folder vanishes: {case.name}", attempts)


def kill_at_random(case: Undisturbed, count: int, draws: random.Random) -> Campaign:
    """SIGKILL at random moments, with two threads."""
    words = [*case.words, "--threads", "2"]
    case.sandbox.reset()
    ending = case.sandbox.run(words)
    case = case._replace(bits=case.sandbox.bits(), seconds=ending.seconds)  # where autograd computes, threads matter

    def attempt() -> str | None:
        case.sandbox.reset()
        child = case.sandbox.start(words)
        time.sleep(draws.uniform(0, 1.2 * case.seconds))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        return go_on(case, "--threads", "2")

    return Campaign(f"SIGKILL at a random moment, 2 threads: {case.name}", [attempt] * count)


def stop_by_signals(case: Undisturbed, count: int, draws: random.Random) -> Campaign:
    """SIGINT, SIGTERM and SIGHUP at random moments, once or twice: a sentence, the right status, the same bits."""

    def attempt(number: int, twice: bool) -> str | None:
        case.sandbox.reset()
        child = case.sandbox.start(case.words)
        time.sleep(draws.uniform(0.1, 1.0) * case.seconds)
        for _ in range(1 + twice):
            os.kill(child.pid, number)
        ending = child.wait()
        if ending.status not in (0, 128 + number, -number) or "Traceback" in ending.text:
            return f"signal {number}: {ending}"
        if ending.status == 128 + number and "goes on where it stopped" not in ending.text:
            return f"signal {number} without a sentence: {ending}"
        if ending.status == 128 + number and not twice and case.sandbox.leftovers():
            return f"signal {number} left {case.sandbox.leftovers()}"
        return go_on(case)

    kinds = [(number, twice) for twice in (False, True) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    attempts = [partial(attempt, *kinds[i % len(kinds)]) for i in range(count)]
    return Campaign(f"SIGINT, SIGTERM, SIGHUP: {case.name}", attempts)


@contextmanager
def small_disk(folder: Path, size: int, inodes: int) -> Iterator[Callable[[], object]]:
    """A file system in memory of `size` KiB; gives a function that makes it large."""
    folder.mkdir(exist_ok=True)
    options = f"size={size}k,nr_inodes={inodes}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "limbeck-torture", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        raise PermissionError("this user may not mount a file system in memory")
    enlarge = ["mount", "-o", "remount,size=256m,nr_inodes=100000", str(folder)]
    try:
        yield lambda: subprocess.run(enlarge, check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_disk(case: Undisturbed, disk: Path, count: int) -> Campaign:
    """A disk that is too small, in bytes or in files, by less and less; then it is made larger."""

    def enter() -> Undisturbed:
        outputs = case.sandbox.root.parent  # what a command prints has to fit
        return case._replace(sandbox=Sandbox(disk / "sandbox", case.sandbox.materials, case.sandbox.needs, outputs))

    with small_disk(disk, 262144, 100000):  # files name their folder, so that their bits are those of this place
        there = enter()
        least = _used(disk)
        ending = there.sandbox.run(case.words)
        assert ending.status == 0, ending
        bits, most = there.sandbox.bits(), _used(disk)

    def attempt(size: int, inodes: int) -> str | None:
        with small_disk(disk, size, inodes) as enlarge:
            there = enter()._replace(bits=bits)
            ending = there.sandbox.run(case.words)
            if ending.status == 0 or not replay.is_sentence(ending):
                return f"{size} KiB, {inodes} files: {ending}"
            if there.sandbox.leftovers():
                return f"{size} KiB, {inodes} files: left over {there.sandbox.leftovers()}"
            enlarge()
            return go_on(there)

    pages = [(4 * page, 10000) for page in sample(range(max(1, least.pages), most.pages), (count + 1) // 2)]
    files = [(100000, number) for number in sample(range(least.files, most.files), count // 2)]
    return Campaign(f"full disk, no inodes: {case.name}", [partial(attempt, *size) for size in [*pages, *files]])


class Used(NamedTuple):
    """What of a file system is taken: pages of 4 KiB, and files and folders."""

    pages: int
    files: int


def _used(disk: Path) -> Used:
    status = os.statvfs(disk)
    return Used((status.f_blocks - status.f_bfree) * status.f_frsize // 4096, status.f_files - status.f_ffree)


def two_at_once(case: Undisturbed, count: int) -> Campaign:
    """Two commands begin at once: one works, and the other says who does, or they share the work."""

    def attempt() -> str | None:
        case.sandbox.reset()
        endings = run_both(case.sandbox, [case.words, case.words])
        if not any(ending.status == 0 for ending in endings):
            return f"neither did it: {endings}"
        for ending in endings:
            if ending.status not in (0, 2) or (ending.status == 2 and "/" not in ending.text + "/"):
                return f"the other: {ending}"
        return go_on(case)

    return Campaign(f"two at once: {case.name}", [attempt] * count)


def run_both(sandbox: Sandbox, commands: list[list[str]], prepare: Callable[[], object] = lambda: None) -> list[Ending]:
    """Run commands in children that begin at the same moment."""
    read, write = os.pipe()

    def wait() -> None:
        prepare()
        os.close(write)
        os.read(read, 1)  # until the parent closes its end

    children = [sandbox.start(words, wait) for words in commands]
    time.sleep(0.1)
    os.close(write)
    endings = [child.wait() for child in children]
    os.close(read)
    return endings


def two_on_one_run(root: Path, materials: Path, count: int) -> Campaign:
    """Two begin one run at once: exactly one works, the other names its process and its host, and changes nothing."""
    case = run_undisturbed("distill", root, materials)

    def attempt(tries: int = 3) -> str | None:
        case.sandbox.reset()
        endings = sorted(run_both(case.sandbox, [case.words, case.words]))
        if tries > 1 and any("nothing was done" in ending.text for ending in endings):
            return attempt(tries - 1)  # on a busy machine one came when the other had ended
        if [ending.status for ending in endings] != [0, 2] or "is at work on" not in endings[1].text:
            return f"both: {endings}"
        return go_on(case)

    return Campaign("two begin one run: one is told who works on it", [attempt] * count)


def two_on_one_store(root: Path, materials: Path, count: int) -> Campaign:
    """Two train one store at once: every expert is trained once, and both end well."""
    sandbox = Sandbox(root, materials)
    words = [*EXPERTS, "--num-experts", "6", "--out", "store"]
    trained = root.with_suffix(".trained")

    def log_training() -> None:
        from limbeck.experts import make

        train = make._train

        def logged(task: object, pair: object, config: object, index: int, *more_arguments: object) -> object:
            with trained.open("a") as file:
                file.write(f"{index}\n")
            return train(task, pair, config, index, *more_arguments)  # type: ignore[arg-type]

        make._train = logged  # type: ignore[assignment]

    def attempt() -> str | None:
        sandbox.reset()
        trained.write_text("")
        endings = run_both(sandbox, [words, words], log_training)
        indices = sorted(trained.read_text().split())
        if [ending.status for ending in endings] != [0, 0] or indices != [str(i) for i in range(6)]:
            return f"trained {indices}: {endings}"
        return None if not sandbox.leftovers() else f"left over: {sandbox.leftovers()}"

    return Campaign("two train one store: every expert once", [attempt] * count)


def two_on_one_cache(root: Path, materials: Path, count: int) -> Campaign:
    """Two read one folder of pictures at once: the pictures are decoded once, and both end well."""
    sandbox = Sandbox(root, materials, ("pictures",))
    decoded = root.with_suffix(".decoded")

    def log_decoding() -> None:
        from limbeck.data import cache

        store_entry = cache._store_entry

        def logged(*arguments: Any) -> None:
            with decoded.open("a") as file:
                file.write("once\n")
            store_entry(*arguments)

        cache._store_entry = logged

    def attempt() -> str | None:
        sandbox.reset()
        decoded.write_text("")
        words = ["info", "pictures", "--json"]
        endings = run_both(sandbox, [words, words], log_decoding)
        if [ending.status for ending in endings] != [0, 0] or decoded.read_text().split() != ["once"]:
            return f"decoded {decoded.read_text().split()}: {endings}"
        return None if not sandbox.leftovers() else f"left over: {sandbox.leftovers()}"

    return Campaign("two read one folder of pictures: decoded once", [attempt] * count)


def flip_bits(root: Path, materials: Path, count: int) -> Campaign:
    """A bit of a file flips between two commands: it is refused by a sentence that names it, and never believed."""
    sandbox = Sandbox(root, materials, ("recorded", "run"))
    reads = {
        "recorded/expert-0000.safetensors": ["convexify", "recorded", "--out", "convex", *PLAIN],
        "recorded/expert-0001.safetensors": ["export", "recorded", "--to", "mtt", "--out", "files", *PLAIN],
        "run/set-chosen.safetensors": ["export", "run", "--to", "mtt", "--out", "files", *PLAIN, "--no-measure"],
    }

    def attempt(name: str, place: float) -> str | None:
        sandbox.reset()
        path = sandbox.root / name
        content = bytearray(path.read_bytes())
        start = 8 + int.from_bytes(content[:8], "little")  # after the header: the numbers
        content[start + int(place * (len(content) - start))] ^= 1
        path.write_bytes(content)
        ending = sandbox.run(reads[name])
        return None if ending.status == 2 and path.name in ending.text else f"{name} was believed: {ending}"

    names = list(reads)
    return Campaign(
        "a bit flips in a file of numbers",
        [partial(attempt, names[i % len(names)], i / max(count, 1)) for i in range(count)],
    )


INJECTED = (errno.ENOSPC, errno.EROFS, errno.EIO)
