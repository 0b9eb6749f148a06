"""Time outer steps and experts over the processes of torchrun, and what they exchange.

    torchrun --nproc-per-node 2 -m benchmarks.ranks --draws 4
    python -m benchmarks.ranks --record docs/records/scaling.json

The first prints one line of JSON: medians of seconds a step, of processor seconds a step of rank 0, of seconds in
collective calls, bytes that rank 0 sends for gradients in a step, and the seconds of four experts. The second runs it
in 1, 2 and 4 processes, alternately, and writes the lines of all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.cases import first_images, make_convnet_task, random_data
from limbeck.core.distributed import Ranks, join_ranks
from limbeck.experts.recorded import Recorded
from limbeck.experts.segments import WholeEpochs
from limbeck.jobs.job import prepare_experts
from limbeck.objectives.combine import Average, value_and_grad
from limbeck.objectives.trajectory import MatchTrajectory
from limbeck.synthetic.set import SyntheticSet


@dataclass(frozen=True)
class TimedRanks(Ranks):
    """Ranks that note how long collective calls take, and how many bytes of gradients this one sends."""

    seconds: list[float] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """As in `Ranks`."""
        start = time.perf_counter()
        tensors = super().gather(tensor)
        self.seconds.append(time.perf_counter() - start)
        self.sent.append((self.size - 1) * tensor.numel() * tensor.element_size())
        return tensors

    def exchange(self, tensor: Tensor) -> list[Tensor]:
        """As in `Ranks`."""
        start = time.perf_counter()
        parts = super().exchange(tensor)
        self.seconds.append(time.perf_counter() - start)
        self.sent.append((self.size - 1) * parts[0].numel() * parts[0].element_size() * (self.size > 1))
        return parts


PROCESSES = (1, 2, 4)
EXPERTS = 4


def time_experts(ranks: Ranks, width: int, epochs: int) -> float:
    """Seconds until `EXPERTS` experts on digits are trained and stored, by all ranks together."""
    with tempfile.TemporaryDirectory() as own:
        folder = ranks.decide(lambda: own)  # that of rank 0
        options = {"num_experts": EXPERTS, "model": {"width": width}, "expert": {"epochs": epochs}}
        experts = prepare_experts("digits", out=f"{folder}/store", ranks=ranks, **options)
        ranks.barrier()
        start = time.perf_counter()
        experts.train(lambda event: None)
        ranks.barrier()
        seconds = time.perf_counter() - start
        ranks.barrier()  # the folder is still read until here
    return seconds


def record(path: Path, rounds: int, words: list[str]) -> None:
    """Run this script in 1, 2 and 4 processes, one after the other, `rounds` times, and write their lines."""
    lines = []
    for _ in range(rounds):
        for size in PROCESSES:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            out = subprocess.run(
                [*command, "-m", "benchmarks.ranks", *words],
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            lines.append(json.loads(next(line for line in out.splitlines() if line.startswith("{"))))
            print(lines[-1], flush=True)
    text = ",\n".join(f"  {json.dumps(line)}" for line in lines)
    path.write_text(f"[\n{text}\n]\n", encoding="utf-8")


def main() -> None:
    """Time the steps and the experts, and print the medians."""
    parser = argparse.ArgumentParser()
    defaults = {"draws": 4, "steps": 10, "syn-steps": 10, "ipc": 10, "width": 32, "epochs": 200}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--record", type=Path, help="the file for the lines of 1, 2 and 4 processes")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.record is not None:
        record(args.record, args.rounds, [f"--{name}={getattr(args, name.replace('-', '_'))}" for name in defaults])
        return
    torch.set_num_threads(1)
    with join_ranks() as ranks:
        task = ranks.in_turn(lambda: make_convnet_task(random_data(3, 32, 10 * args.ipc, 10), args.width))
        expert = Recorded(torch.stack([task.model.init(seed) for seed in range(3)]))
        images, labels = first_images(task, args.ipc)
        synthetic = SyntheticSet.from_images(images, labels, lr=0.01)
        timed = TimedRanks(ranks.rank, ranks.size, ranks.local)
        match = MatchTrajectory([expert], WholeEpochs(1, 2), task.loss, args.syn_steps)
        objective = Average(match, args.draws, timed)
        rows = []
        for step in range(args.steps + 1):
            timed.seconds.clear()
            timed.sent.clear()
            ranks.barrier()
            start, processor = time.perf_counter(), time.process_time()
            value_and_grad(objective, synthetic, step, seed=0)
            seconds, processor = time.perf_counter() - start, time.process_time() - processor
            rows.append((seconds, processor, sum(timed.seconds), sum(timed.sent)))
        names = ("seconds", "processor_seconds", "collective_seconds", "bytes_sent")
        expert_seconds = time_experts(ranks, args.width, args.epochs)
        if ranks.is_first:
            options = {name: value for name, value in vars(args).items() if name not in ("record", "rounds")}
            medians = {name: median(column) for name, column in zip(names, zip(*rows[1:]))}
            print(json.dumps({"ranks": ranks.size, **options, **medians, "expert_seconds": expert_seconds}))


if __name__ == "__main__":
    main()
