"""Measurements: times of alternating sides, peak memory in a fresh process, the machine and its rate.

Run as a script by `measure_in_child`, it measures one side and prints one line of JSON.
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
from limbeck.core.allocator import keep_freed_memory
from limbeck.core.files import write_json
from limbeck.derivatives.kernels.library import load

Side = Callable[[], object]
Json = dict[str, Any]
RESULTS = Path(__file__).with_name("results")
ROOT = Path(__file__).parents[1]
CHILD_LIMIT_S = 600
SIGNIFICANT_DIGITS = 4  # of the results


class Clock:
    """A time limit in seconds, which starts at once."""

    def __init__(self, limit: float):
        self.end = time.perf_counter() + limit

    @property
    def left(self) -> float:
        """Seconds until the limit, negative after it."""
        return self.end - time.perf_counter()


def seconds_of(side: Side) -> float:
    """Seconds of one call."""
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
    """Time `repeats` rounds of one call of every side, in alternating order, and compare the sides with `base`.

    warm: calls for the warm-up, by default the sides themselves. base: by default the first side. No round but the
    first starts if the longest round so far would exceed `budget_s`. Returns the number of rounds n, medians of
    seconds, ratios of `times_faster`, and all seconds.
    """
    start = time.perf_counter()
    names = list(sides)
    base = names[0] if base is None else base
    for name in names:
        (sides if warm is None else warm)[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    longest = 0.0
    for repeat in range(repeats):
        if repeat and time.perf_counter() - start + longest > budget_s:
            break
        round_start = time.perf_counter()
        for name in names if repeat % 2 == 0 else reversed(names):
            seconds[name].append(seconds_of(sides[name]))
        longest = max(longest, time.perf_counter() - round_start)
    return {
        "n": len(seconds[base]),
        "base": base,
        "median_seconds": {name: median(times) for name, times in seconds.items()},
        "times_faster": times_faster(seconds, base),
        "seconds": seconds,
    }


def times_faster(seconds: Mapping[str, list[float]], base: str) -> Json:
    """Seconds of `base` over those of every side: ratio of the medians; minimum, median, maximum over the rounds."""
    ratios = {}
    for name, times in seconds.items():
        by_round = [first / second for first, second in zip(seconds[base], times)]
        spread = {"min": min(by_round), "median": median(by_round), "max": max(by_round)}
        ratios[name] = {"of_medians": median(seconds[base]) / median(times), **spread}
    return ratios


# --- the allocator

ALLOCATOR = (
    "limbeck's command line asks glibc to keep freed memory, for the whole process; sides that stand for other code, "
    "and ours without kernels, run with glibc's own setting (the most it adapts to: mmap from 32 MB, trim from 64 MB), "
    "unless the name says 'tuned allocator'."
)
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # malloc.h
ADAPTED_THRESHOLDS = (32 << 20, 64 << 20)
TUNED_THRESHOLDS = (1 << 30, (1 << 31) - 1)  # as limbeck.core.allocator sets them


def has_kernels() -> bool:
    """Whether limbeck's compiled kernels can be used."""
    return load() is not None


@contextmanager
def default_allocator() -> Iterator[None]:
    """Use glibc's own allocator settings inside the context, and limbeck's settings again after it.

    The thresholds are the highest that glibc adapts to by itself, which a process with large tensors reaches. Free
    memory is returned to the system first; otherwise the side would reuse it and never map memory again.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):  # not glibc
        yield
        return

    def set_thresholds(mmap_bytes: int, trim_bytes: int) -> None:
        mallopt(MMAP_THRESHOLD, mmap_bytes)
        mallopt(TRIM_THRESHOLD, trim_bytes)

    set_thresholds(*ADAPTED_THRESHOLDS)
    trim(0)
    try:
        yield
    finally:
        set_thresholds(*TUNED_THRESHOLDS)


def with_default_allocator(side: Side) -> Side:
    """The same side, called with glibc's own allocator settings."""

    def call() -> object:
        with default_allocator():
            return side()

    return call


# --- memory, in a process of its own


def _memory_status(key: str) -> float | None:
    """A size in MiB from /proc/self/status, or None if there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":")), None)


def _reset_peak_mb() -> None:
    """Reset the peak of resident memory to its present value (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_mb() -> float:
    """Peak resident memory in MiB: VmHWM on Linux, since ru_maxrss also counts the parent's memory."""
    peak = _memory_status("VmHWM")
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit if peak is None else peak


def measure_in_child(module: str, function: str, arguments: Json, kernels: bool = True) -> Json:
    """Measure one side in a fresh process: its seconds, and its peak memory above that before its start, in MiB.

    module.function(**arguments) returns (warm, run). `warm` is called before `run` and counts for the peak, but not
    for the seconds. kernels: False disables limbeck's compiled kernels.
    """
    call = json.dumps({"module": module, "function": function, "arguments": arguments})
    threads = torch.get_num_threads()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if not kernels:
        environment["LIMBECK_KERNELS"] = "0"
    command = [sys.executable, "-m", "benchmarks.measure", call]
    try:
        process = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=CHILD_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"it took longer than {CHILD_LIMIT_S} s"}
    if process.returncode:
        return {"failed": (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]}
    measurement: Json = json.loads(process.stdout.strip().splitlines()[-1])
    return measurement


def _measure_call(call: Json) -> Json:
    warm, run = getattr(import_module(call["module"]), call["function"])(**call["arguments"])
    _reset_peak_mb()
    before = _memory_status("VmRSS") or _peak_mb()
    warm()
    seconds = seconds_of(run)
    return {"seconds": seconds, "peak_mb": _peak_mb() - before, "baseline_mb": before}


def allocate(megabytes: int) -> tuple[Side, Side]:
    """A side that allocates memory, for the test of the memory measurement; twice as much is freed before it."""
    bytearray(2 * megabytes << 20)
    return (lambda: None), (lambda: bytearray(megabytes << 20))


# --- the machine


def describe_machine() -> Json:
    """Hardware, threads and versions on which the results depend."""
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
        "kernels": has_kernels(),
        "allocator": ALLOCATOR,
    }


BUILD = """
import time
from limbeck.derivatives.kernels import library as kernels
start = time.perf_counter()
loaded = kernels.load() is not None
print(time.perf_counter() - start if loaded else "")
"""


def build_seconds() -> float | None:
    """Seconds to compile the kernels with an empty cache, or None if they cannot be compiled."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "XDG_CACHE_HOME": home}
        process = subprocess.run(
            [sys.executable, "-c", BUILD], env=environment, capture_output=True, text=True, check=True
        )
    return round(float(process.stdout), 2) if process.stdout.strip() else None


def _processor() -> str:
    """The processor's model name, with family and model numbers, since the name is short in some virtual machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    if "model name" not in fields:
        return platform.machine()
    return f"{fields['model name']} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"


def matmul_rate(dtype: torch.dtype = torch.float32, repeats: int = 5, device: str = "cpu") -> Json:
    """Best GFLOP/s of a matrix product and of torch's convolution, out of `repeats` calls each.

    product: 2048 x 2048 matrices. convolution: 3 x 3, 128 to 128 channels, 100 images of 16 x 16, channels last, the
    costliest kind in the benchmarks. rate: the larger of the two.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2048, 2048, generator=generator).to(device, dtype) for _ in range(2))
    x, weight = (
        torch.randn(shape, generator=generator).to(device, dtype, memory_format=torch.channels_last)
        for shape in ((100, 128, 16, 16), (128, 128, 3, 3))
    )

    def synchronized(side: Side) -> Side:
        def call() -> None:
            side()
            if device == "cuda":
                torch.cuda.synchronize()

        return call

    sides: dict[str, tuple[Side, float]] = {
        "product": (synchronized(lambda: a @ b), 2.0 * 2048**3),
        "convolution": (synchronized(lambda: F.conv2d(x, weight, padding=1)), 2.0 * 100 * 256 * weight.numel()),
    }
    rates = {}
    with torch.no_grad():
        for name, (side, flops) in sides.items():
            side()
            rates[name] = flops / min(seconds_of(side) for _ in range(repeats)) / 1e9
    return {**rates, "rate": max(rates.values())}


# --- results


def round_floats(value: Any) -> Any:
    """The same JSON value with its floats rounded to SIGNIFICANT_DIGITS."""
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, dict):
        return {key: round_floats(item) for key, item in value.items()}
    return [round_floats(item) for item in value] if isinstance(value, list | tuple) else value


def write(path: Path, result: Json) -> None:
    """Write the result as JSON, under a temporary name that is then replaced."""
    write_json(path, round_floats(result))


def parse_arguments(description: str | None, cases: Mapping[str, object] | None = None) -> argparse.Namespace:
    """Parse the options that the scripts share, and tune the allocator as limbeck's command line does."""
    keep_freed_memory()
    return make_parser(description, cases).parse_args()


def make_parser(description: str | None, cases: Mapping[str, object] | None = None) -> argparse.ArgumentParser:
    """A parser of the options that the scripts share."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="run a small version, to see that it works")
    parser.add_argument("--budget", type=float, default=None, help="seconds after which nothing new starts")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    if cases is not None:
        parser.add_argument("--case", choices=list(cases), action="append", help="run only this case; may be repeated")
    return parser


if __name__ == "__main__":
    print(json.dumps(_measure_call(json.loads(sys.argv[1]))))
