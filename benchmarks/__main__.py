"""Run the benchmarks one after the other: python -m benchmarks [--quick] [--only step]; results in benchmarks/results.

Each script is a process of its own, so that none inherits what another left in memory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import RESULTS, ROOT

SCRIPTS = ("step", "experts", "evaluate", "growth")


def main() -> int:
    """The number of scripts that failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small versions, to see that they work")
    parser.add_argument("--only", choices=SCRIPTS, action="append", help="only this script; may be repeated")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    asked = parser.parse_args()
    failed = 0
    for name in asked.only or SCRIPTS:
        print(f"\n== {name}", flush=True)
        begun = time.perf_counter()
        command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(asked.out.resolve())]
        done = subprocess.run(command + ["--quick"] * asked.quick, cwd=ROOT, check=False)
        failed += done.returncode != 0
        print(
            f"== {name}: {'failed' if done.returncode else 'done'} in {time.perf_counter() - begun:.0f} s", flush=True
        )
    return failed


if __name__ == "__main__":
    sys.exit(main())
