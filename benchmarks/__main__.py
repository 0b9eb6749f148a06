"""Run the benchmarks one after the other: python -m benchmarks [--quick] [--only step]; results in benchmarks/results.

Each script runs in a process of its own, so that none inherits memory from another. All scripts run once for every
instruction set of the processor, AVX-512 and AVX2, to which torch, its libraries and limbeck's kernels are limited.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.measure import RESULTS, ROOT

SCRIPTS = ("step", "experts", "evaluate", "growth")
INSTRUCTIONS = {
    "avx512": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}


def instruction_sets() -> list[str]:
    """The instruction sets to measure, which name the folders of results: the processor's, the newest first."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return list(INSTRUCTIONS)[list(INSTRUCTIONS).index(capability) :] if capability in INSTRUCTIONS else [capability]


def main() -> int:
    """Run the scripts and return how many of them failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="run small versions, to see that the scripts work")
    parser.add_argument("--only", choices=SCRIPTS, action="append", help="run only this script; may be repeated")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args()
    failed = 0
    for index, instructions in enumerate(instruction_sets()):
        for name in options.only or SCRIPTS:
            if index and name == "growth":  # growth does not depend on the instruction set
                continue
            print(f"\n== {name}, {instructions}", flush=True)
            start = time.perf_counter()
            out = (options.out / instructions).resolve()
            command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(out), *["--quick"] * options.quick]
            environment = {**os.environ, **INSTRUCTIONS.get(instructions, {})}
            process = subprocess.run(command, cwd=ROOT, env=environment, check=False)
            failed += process.returncode != 0
            state = "failed" if process.returncode else "done"
            print(f"== {name}, {instructions}: {state} in {time.perf_counter() - start:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
