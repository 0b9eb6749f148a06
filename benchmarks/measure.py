"""How benchmarks measure: sides in turn, in one process; peak memory in fresh ones; the machine and its rate.

Run as a script (by `in_child`) it measures one side and prints one line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

import limbeck
from limbeck.cli.allocator import keep_freed_memory
from limbeck.core.files import write_json
from limbeck.derivatives.kernels.library import load

Side = Callable[[], object]
Json = dict[str, Any]
RESULTS = Path(__file__).with_name("results")
ROOT = Path(__file__).parents[1]
CHILD_LIMIT_S = 600
FINE = 4  # significant digits of what is written


class Clock:
    """A script's time limit in seconds: it starts now."""

    def __init__(self, limit: float):
        self.end = time.perf_counter() + limit

    @property
    def left(self) -> float:
        """Seconds left, less than 0 when it is over."""
        return self.end - time.perf_counter()


def timed(side: Side) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def alternate(
    sides: Mapping[str, Side],
    repeats: int,
    warm: Mapping[str, Side] | None = None,
    base: str | None = None,
    budget_s: float = float("inf"),
) -> Json:
    """Call every side in turn, `repeats` times, the order reversed from round to round, and compare their times.

    warm: what to call before, once each (by default the sides themselves). base: the side that the others are compared
    with, by default the first. A round that would go past `budget_s` is not begun, but for the first.
    """
    begun = time.perf_counter()
    names = list(sides)
    base = names[0] if base is None else base
    for name in names:
        (sides if warm is None else warm)[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    longest = 0.0
    for repeat in range(repeats):
        if repeat and time.perf_counter() - begun + longest > budget_s:
            break
        spent = time.perf_counter()
        for name in names if repeat % 2 == 0 else reversed(names):
            seconds[name].append(timed(sides[name]))
        longest = max(longest, time.perf_counter() - spent)
    return {
        "n": len(seconds[base]),
        "base": base,
        "median_seconds": {name: median(each) for name, each in seconds.items()},
        "times_faster": times_faster(seconds, base),
        "seconds": seconds,
    }


def times_faster(seconds: Mapping[str, list[float]], base: str) -> Json:
    """Seconds of `base` over those of every side: of the medians, and least, median and most of the pairs."""
    found = {}
    for name, each in seconds.items():
        pairs = [first / second for first, second in zip(seconds[base], each)]
        spread = {"min": min(pairs), "median": median(pairs), "max": max(pairs)}
        found[name] = {"of_medians": median(seconds[base]) / median(each), **spread}
    return found


# --- the allocator

ALLOCATOR = (
    "limbeck's command line asks glibc to keep freed memory, for the whole process; sides that stand for other code, "
    "and ours without kernels, run with glibc's own setting (the most it adapts to: mmap from 32 MB, trim from 64 MB), "
    "unless the name says 'tuned allocator'."
)
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # malloc.h
ADAPTED = (32 << 20, 64 << 20)
KEEPING = (1 << 30, (1 << 31) - 1)  # as limbeck.cli.allocator sets them


def kernels_loaded() -> bool:
    """Whether limbeck's compiled parts can be used."""
    return load() is not None


@contextmanager
def default_allocator() -> Iterator[None]:
    """glibc's allocator as it is without limbeck's command line, whose setting is put back afterwards.

    The thresholds are the highest that glibc adapts to by itself, which is where a process with large tensors ends.
    Memory that was kept is handed back first: otherwise the side would still draw on it, and never map anew.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):  # not glibc
        yield
        return

    def use(mmap: int, keep: int) -> None:
        mallopt(MMAP_THRESHOLD, mmap)
        mallopt(TRIM_THRESHOLD, keep)

    use(*ADAPTED)
    trim(0)
    try:
        yield
    finally:
        use(*KEEPING)


def with_default_allocator(side: Side) -> Side:
    """The side, called with glibc's own setting."""

    def call() -> object:
        with default_allocator():
            return side()

    return call


# --- memory, in a process of its own


def _status(key: str) -> float | None:
    """A size in MiB from /proc/self/status; None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":")), None)


def _forget_peak() -> None:
    """Let the kernel count the peak anew from here (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> float:
    """Peak resident memory in MiB.

    VmHWM rather than ru_maxrss where there is one: the latter also counts what the parent held when it started us.
    """
    held = _status("VmHWM")
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit if held is None else held


def in_child(module: str, function: str, arguments: Json, kernels: bool = True) -> Json:
    """Measure one side in a fresh process: its seconds, and its peak memory above what it held before, in MiB.

    module.function(**arguments) -> (warm, run): `run` is measured, after `warm`; what `warm` needs counts as well.
    kernels: False switches limbeck's compiled parts off.
    """
    call = json.dumps({"module": module, "function": function, "arguments": arguments})
    threads = torch.get_num_threads()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if not kernels:
        environment["LIMBECK_KERNELS"] = "0"
    command = [sys.executable, "-m", "benchmarks.measure", call]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=CHILD_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"it took longer than {CHILD_LIMIT_S} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    found: Json = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _measure_one(call: Json) -> Json:
    warm, run = getattr(import_module(call["module"]), call["function"])(**call["arguments"])
    _forget_peak()
    before = _status("VmRSS") or _peak()
    warm()
    seconds = timed(run)
    return {"seconds": seconds, "peak_mb": _peak() - before, "baseline_mb": before}


def fill(megabytes: int) -> tuple[Side, Side]:
    """A side for the test of the memory measurement: what it holds in the end, after more in the beginning."""
    bytearray(2 * megabytes << 20)
    return (lambda: None), (lambda: bytearray(megabytes << 20))


# --- the machine


def machine() -> Json:
    """What the figures depend on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "limbeck": limbeck.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "kernels": kernels_loaded(),
        "allocator": ALLOCATOR,
    }


BUILD = """
import time
from limbeck.derivatives.kernels import library as kernels
start = time.perf_counter()
built = kernels.load() is not None
print(time.perf_counter() - start if built else "")
"""


def build_seconds() -> float | None:
    """What it takes to compile the kernels where they never were; None where they cannot be."""
    with tempfile.TemporaryDirectory() as home:
        where = {**os.environ, "XDG_CACHE_HOME": home}
        done = subprocess.run([sys.executable, "-c", BUILD], env=where, capture_output=True, text=True, check=True)
    return round(float(done.stdout), 2) if done.stdout.strip() else None


def _processor() -> str:
    """The model name; some virtual machines give a short one, so family and model stand beside it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    held: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        held.setdefault(key.strip(), value.strip())
    if "model name" not in held:
        return platform.machine()
    return f"{held['model name']} (family {held.get('cpu family', '?')}, model {held.get('model', '?')})"


def matmul_rate(dtype: torch.dtype = torch.float32, tries: int = 5, device: str = "cpu") -> Json:
    """The best GFLOP/s measured: of a square product of 2048, and of torch's convolution of the kind that costs most.

    convolution: 3 x 3, 128 to 128 channels, 100 images of 16 x 16, channels last. rate: the better of the two.
    """
    drawn = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2048, 2048, generator=drawn).to(device, dtype) for _ in range(2))
    x, weight = (
        torch.randn(shape, generator=drawn).to(device, dtype, memory_format=torch.channels_last)
        for shape in ((100, 128, 16, 16), (128, 128, 3, 3))
    )

    def waiting(work: Side) -> Side:
        def call() -> None:
            work()
            if device == "cuda":
                torch.cuda.synchronize()

        return call

    sides: dict[str, tuple[Side, float]] = {
        "product": (waiting(lambda: a @ b), 2.0 * 2048**3),
        "convolution": (waiting(lambda: F.conv2d(x, weight, padding=1)), 2.0 * 100 * 256 * weight.numel()),
    }
    found = {}
    with torch.no_grad():
        for name, (side, flops) in sides.items():
            side()
            found[name] = flops / min(timed(side) for _ in range(tries)) / 1e9
    return {**found, "rate": max(found.values())}


# --- results


def rounded(value: Any) -> Any:
    """The same JSON value with floats of a few significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{FINE}g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def write(path: Path, result: Json) -> None:
    """Pretty JSON under a temporary name, then renamed."""
    write_json(path, rounded(result))


def arguments(description: str | None, cases: Mapping[str, object] | None = None) -> argparse.Namespace:
    """The command line that the scripts share; memory is kept as limbeck's own keeps it."""
    keep_freed_memory()
    return parser(description, cases).parse_args()


def parser(description: str | None, cases: Mapping[str, object] | None = None) -> argparse.ArgumentParser:
    """Its parser, for a script that asks for more."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--quick", action="store_true", help="a small version, to see that it works")
    made.add_argument("--budget", type=float, default=None, help="seconds after which nothing new is begun")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    if cases is not None:
        made.add_argument("--case", choices=list(cases), action="append", help="only this one; may be repeated")
    return made


if __name__ == "__main__":
    print(json.dumps(_measure_one(json.loads(sys.argv[1]))))
