"""`make torture`: runs all campaigns, and prints what survived and what was lost; status 1 where anything was lost.

At the end three faults are put in on purpose, and the campaign that should find each of them is run again.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from torture import campaigns as c
from torture import faults
from torture.campaigns import Campaign
from torture.long_runs import memory_over_steps
from torture.readers import attack
from torture.replay import run_undisturbed
from torture.sandbox import CASES, make_materials
from torture.subjects import SUBJECTS


class Planned(NamedTuple):
    """A campaign that is built in the folder it is given, inside a fault or not."""

    build: Callable[[Path], Campaign | Readers]
    fault: str | None = None


class Readers(NamedTuple):
    """A campaign of damaged files for one reader."""

    subject: str
    tries: int
    work: Path

    @property
    def name(self) -> str:
        """What is done."""
        return f"damaged files: {self.subject}"

    def run(self) -> tuple[int, list[str]]:
        """Number of attempts, and what was wrong in those that were not refused in one sentence."""
        os.environ["LIMBECK_HOME"] = str(self.work / "home")
        outcome = attack(self.subject, self.tries, self.work, 0)
        examples = [f"died in case {death}" for death in outcome.deaths]
        examples += [f"{kind}: {example}" for kind, example in outcome.kinds.items()]
        return outcome.tries, (examples + ["again"] * outcome.tries)[: outcome.tries - outcome.clean]


class Row(NamedTuple):
    """A line of the table, and what was wrong."""

    campaign: str
    attempts: int
    wrongs: list[str]
    seconds: float


FAULTS = {
    "the rename is skipped": faults.skip_rename,
    "a checksum is ignored": faults.ignore_checksum,
    "a lock is dropped": faults.drop_locks,
}


def plan(materials: Path, share: float) -> list[Planned]:
    """All campaigns; share: of the attempts of the whole."""

    def case(name: str, campaign: Callable[..., Campaign], *arguments: object) -> Planned:
        return Planned(lambda root: campaign(run_undisturbed(name, root, materials), *arguments))

    def number(whole: int) -> int:
        return max(2, round(share * whole))

    everywhere = None if share >= 1 else number(150)
    names = list(CASES)
    plans = [case(name, c.kill_everywhere, everywhere) for name in names]
    plans += [case(name, c.kill_at_random, number(30), random.Random(name)) for name in c.RANDOM]
    plans += [
        case(name, c.stop_by_signals, number(24), random.Random(name)) for name in ("distill", "experts", "evaluate")
    ]
    plans += [case(name, c.fail_everywhere, error, number(20)) for name in names for error in c.INJECTED]
    plans += [case(name, c.vanish_everywhere, number(20)) for name in ("distill", "experts", "convexify")]
    if os.getuid() == 0:
        plans += [
            Planned(
                lambda root, name=name: c.fill_disk(
                    run_undisturbed(name, root, materials), root.with_suffix(".disk"), number(20)
                )
            )  # type: ignore[misc]
            for name in ("distill", "experts", "convexify", "export", "import-experts")
        ]
    plans += [
        Planned(partial(campaign, materials=materials, count=number(20)))
        for campaign in (c.two_on_one_run, c.two_on_one_store, c.two_on_one_cache, c.flip_bits)
    ]
    plans += [Planned(partial(memory_over_steps, materials=materials, steps=max(200, number(2000))))]
    plans += [
        case(name, c.two_at_once, number(20))
        for name in ("convexify", "evaluate", "export", "import-experts", "report")
    ]
    plans += [Planned(partial(Readers, subject, number(300))) for subject in SUBJECTS]
    plans += [
        Planned(plans[names.index("experts")].build, "the rename is skipped"),
        Planned(partial(c.flip_bits, materials=materials, count=4), "a checksum is ignored"),
        Planned(partial(c.two_on_one_run, materials=materials, count=2), "a lock is dropped"),
        Planned(partial(c.two_on_one_store, materials=materials, count=2), "a lock is dropped"),
    ]
    return plans


PLANS: list[Planned] = []
"""Filled before the workers are forked, since functions do not travel between processes."""


def run_one(index: int, root: Path) -> Row:
    """Build and run a campaign in a folder of its own."""
    start, planned = time.perf_counter(), PLANS[index]
    torch.set_num_threads(1)
    campaign = planned.build(root / f"campaign-{index}")
    if planned.fault is None:
        attempts, wrongs = campaign.run()
        return Row(campaign.name, attempts, wrongs, time.perf_counter() - start)
    with FAULTS[planned.fault]():
        attempts, wrongs = campaign.run()
    complaint = [] if wrongs else [f"{planned.fault}, and nothing was noticed"]
    name = f"fault put in, {planned.fault}: noticed in {len(wrongs)} of {attempts} ({campaign.name})"
    return Row(name, 1, complaint, time.perf_counter() - start)


def main() -> int:
    """Run all campaigns, two at a time, and print the table."""
    parser = argparse.ArgumentParser(prog="make torture", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the attempts, for a quicker look")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    root, start = Path(tempfile.mkdtemp(prefix="torture-")), time.perf_counter()
    materials = make_materials(root / "materials")
    PLANS[:] = plan(materials, options.share)
    rows: dict[int, Row] = {}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("fork")) as pool:
        futures = {pool.submit(run_one, index, root): index for index in range(len(PLANS))}
        for future in as_completed(futures):
            row = rows[futures[future]] = future.result()
            print(
                f"{time.perf_counter() - start:6.0f} s  {row.campaign}: {row.attempts}, lost {len(row.wrongs)}",
                file=sys.stderr,
            )
            for wrong in row.wrongs[:3]:
                print(f"          {wrong[:600]}", file=sys.stderr)
    shutil.rmtree(root, ignore_errors=True)
    print_table([rows[index] for index in sorted(rows)], time.perf_counter() - start)
    return int(any(row.wrongs for row in rows.values()))


def print_table(rows: list[Row], seconds: float) -> None:
    """Print the table in Markdown."""
    print("| campaign | attempts | survived | lost |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row.campaign} | {row.attempts} | {row.attempts - len(row.wrongs)} | {len(row.wrongs)} |")
    attempts, lost = sum(row.attempts for row in rows), sum(len(row.wrongs) for row in rows)
    print(f"| together, in {seconds / 60:.0f} minutes | {attempts} | {attempts - lost} | {lost} |")


if __name__ == "__main__":
    sys.exit(main())
