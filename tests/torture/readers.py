"""Damaged files: every reader answers with a UserError of one sentence, or works; it neither dies nor fills memory.

    python -m torture.readers [--tries 1000] [--seed 0] [--work FOLDER] [--case READER:NUMBER] [READER ...]

A case follows from (seed, reader, number) alone. Cases run in child processes with 4 GiB of address space; a child that
dies, or stands still for 30 s, is noted and replaced. `--case` runs one case here and shows its tracebacks.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

MEMORY = 4 << 30
"""Bytes of address space of a child."""

GROWTH = 1 << 30
"""Bytes by which the memory of a case may grow."""

PATIENCE = 30.0
"""Seconds of processor time that a case may take, and a tenth of those that may pass."""

MAX_SENTENCE = 300
"""Characters."""

DRAWN = 0.2
"""Share of the cases in which plots are drawn, too: that takes two thirds of the time of most readers of a run."""

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["torture.subjects"])  # so that a child need not import torch


class Fault(NamedTuple):
    """What a case should not have done: its kind with the line of code, and the message."""

    kind: str
    message: str


class Case(NamedTuple):
    """What was damaged, what went wrong, and by how many bytes the peak of memory grew."""

    number: int
    change: str
    faults: list[Fault]
    seconds: float
    growth: int


def run_case(name: str, seed: int, number: int, template: Path, folder: Path, show: bool = False) -> Case:
    """Damage a copy of the right files, use it in all ways, and list the faults. show: print tracebacks."""
    from torture.mutations import TRACE
    from torture.subjects import SUBJECTS

    subject, generator = SUBJECTS[name], Random(f"{seed}-{name}-{number}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder, symlinks=True)
    start, before = time.perf_counter(), _memory("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    with _inside(folder), contextlib.nullcontext() if generator.random() < DRAWN else _without_drawing():
        change = subject.damage(generator)
        faults = [fault for use in subject.uses(generator) if (fault := _try(use, show)) is not None]
        if Path(TRACE).exists():
            faults.append(Fault("code was run", change))
    growth = _memory("VmHWM") - before
    if growth > GROWTH:
        faults.append(Fault("memory", f"{growth >> 20} MiB"))
    return Case(number, change[:160], faults, round(time.perf_counter() - start, 2), growth)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _without_drawing() -> contextlib.AbstractContextManager[Any]:
    """Plots are prepared from their values as ever, but the axes are left out of the page."""

    def save(figure: Any, file: io.StringIO, **options: Any) -> None:
        file.write("<svg></svg>")

    return patch("matplotlib.figure.Figure.savefig", save)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _try(use: Any, show: bool) -> Fault | None:
    from limbeck.core.errors import UserError

    try:
        with _silence():
            use()
    except UserError as error:
        text = str(error)
        if len(text) <= MAX_SENTENCE and text.isprintable():
            return None
        fault = Fault(f"no sentence at {_place(error)}", f"{len(text)} characters: {text[:150]!r}")
    except Exception as error:
        fault = Fault(f"{type(error).__name__} at {_place(error)}", str(error)[:200])
        if show:
            traceback.print_exc()
        return fault
    else:
        return None
    if show:
        print(fault)
    return fault


def _place(error: BaseException) -> str:
    """The innermost line of limbeck's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/limbeck/" in frame.filename]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno} {own[-1].name}" if own else "?"


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def make_template(name: str, work: Path) -> Path:
    """The folder of right files, which all uses accept."""
    from torture.subjects import SUBJECTS

    template, copy, trial = (work / f"{name}.{suffix}" for suffix in ("right", "copy", "trial"))
    if template.exists():
        return template
    for folder in (copy, trial):
        shutil.rmtree(folder, ignore_errors=True)
    copy.mkdir(parents=True)
    with _inside(copy), _silence():
        SUBJECTS[name].make()
    shutil.copytree(copy, trial, symlinks=True)
    with _inside(trial), _silence():
        for use in SUBJECTS[name].uses(Random(0)):
            use()
    copy.rename(template)
    return template


def _work(name: str, seed: int, first: int, last: int, work: Path) -> None:
    """The child: cases first ... last - 1, one line of JSON each on its log."""
    import torch

    import limbeck.core.disk

    limbeck.core.disk.sync = lambda handle: None  # what is read does not depend on it, and a case has some 20
    os.environ["LIMBECK_HOME"] = str(work / "home")
    (work / f"{name}.now").unlink(missing_ok=True)
    torch.set_num_threads(1)
    template = make_template(name, work)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with (work / f"{name}.log").open("a") as log:
        for number in range(first, last):
            (work / f"{name}.now").write_text(str(number))
            case = run_case(name, seed, number, template, work / f"{name}.case")
            log.write(json.dumps(case._asdict()) + "\n")
            log.flush()


class Outcome(NamedTuple):
    """The cases of one reader: how many there were, how many were clean, deaths, faults by kind with an example."""

    reader: str
    tries: int
    clean: int
    deaths: list[str]
    kinds: dict[str, str]
    seconds: float


def attack(name: str, tries: int, work: Path, seed: int = 0) -> Outcome:
    """Run the cases of one reader in children, and sum them up."""
    for file in (work / f"{name}.log", work / f"{name}.now"):
        file.unlink(missing_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    start, first, deaths = time.perf_counter(), 0, []
    while first < tries:
        with patch.dict(os.environ, {"LIMBECK_KERNELS": "0"}):  # a child compiles nothing
            reason = _run_child(name, seed, first, tries, work)
        if reason is None:
            break
        now = work / f"{name}.now"
        if not now.exists():
            raise RuntimeError(f"{name} did not begin: {reason}; see above")
        deaths.append(f"{now.read_text()}: {reason}")
        first = int(now.read_text()) + 1
    cases = [json.loads(line) for line in (work / f"{name}.log").read_text().splitlines()]
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for case in cases:
        for kind, message in case["faults"]:
            counts[kind] += 1
            examples.setdefault(kind, f"case {case['number']}, {case['change']}: {message}")
    kinds = {f"{count} x {kind}": examples[kind] for kind, count in counts.most_common()}
    clean = sum(not case["faults"] for case in cases)
    return Outcome(name, tries, clean, deaths, kinds, round(time.perf_counter() - start, 1))


def _run_child(name: str, seed: int, first: int, last: int, work: Path) -> str | None:
    """Run cases in a child until all are done (None) or it died (why)."""
    child = CHILDREN.Process(target=_work, args=(name, seed, first, last, work))
    child.start()
    last_seen, since, used = "", time.monotonic(), 0.0
    while child.exitcode is None:
        child.join(0.1)
        now = (work / f"{name}.now").read_text() if (work / f"{name}.now").exists() else ""
        if now != last_seen:
            last_seen, since, used = now, time.monotonic(), _processor_time(child.pid)
        elif now and (time.monotonic() - since > 10 * PATIENCE or _processor_time(child.pid) - used > PATIENCE):
            child.kill()
            child.join()
            return f"took over {PATIENCE:g} s"
    if child.exitcode == 0:
        return None
    return f"killed by {signal.Signals(-child.exitcode).name}" if child.exitcode < 0 else f"status {child.exitcode}"


def _processor_time(process: int | None) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(words: Sequence[str] | None = None) -> int:
    """Attack the readers that are named, or all, and print the faults as JSON; status 1 where there are any."""
    parser = argparse.ArgumentParser(prog="torture.readers")
    parser.add_argument("readers", nargs="*")
    parser.add_argument("--tries", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/readers"))
    parser.add_argument("--case")
    options = parser.parse_args(words)
    work = options.work.absolute()
    os.environ["LIMBECK_HOME"] = str(work / "home")
    if options.case:
        name, number = options.case.rsplit(":", 1)
        print(run_case(name, options.seed, int(number), make_template(name, work), work / "case", show=True))
        return 0
    from torture.subjects import SUBJECTS

    faulty = 0
    for name in options.readers or SUBJECTS:
        outcome = attack(name, options.tries, work, options.seed)
        faulty += outcome.clean < outcome.tries
        print(json.dumps(outcome._asdict(), indent=1), flush=True)
    return int(faulty > 0)


if __name__ == "__main__":
    sys.exit(main())
