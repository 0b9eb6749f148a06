"""Run the benchmarks one after the other: python -m benchmarks [--quick] [--only step]; results in benchmarks/results.

Each script is a process of its own, so that none inherits what another left in memory. All are run for every
instruction set that the processor has, AVX-512 and AVX2: torch, its libraries and our kernels are held to it alike.
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


def available() -> list[str]:
    """Folders of results: one for each instruction set of this processor, or one that bears its name."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return list(INSTRUCTIONS)[list(INSTRUCTIONS).index(capability) :] if capability in INSTRUCTIONS else [capability]


def main() -> int:
    """The number of scripts that failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small versions, to see that they work")
    parser.add_argument("--only", choices=SCRIPTS, action="append", help="only this script; may be repeated")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    asked = parser.parse_args()
    failed = 0
    for place, instructions in enumerate(available()):
        for name in asked.only or SCRIPTS:
            if place and name == "growth":  # it grows in the same way
                continue
            print(f"\n== {name}, {instructions}", flush=True)
            start = time.perf_counter()
            out = (asked.out / instructions).resolve()
            command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(out), *["--quick"] * asked.quick]
            environment = {**os.environ, **INSTRUCTIONS.get(instructions, {})}
            process = subprocess.run(command, cwd=ROOT, env=environment, check=False)
            failed += process.returncode != 0
            state = "failed" if process.returncode else "done"
            print(f"== {name}, {instructions}: {state} in {time.perf_counter() - start:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
