"""Time outer steps over the processes of torchrun, and what they exchange.

    torchrun --nproc-per-node 2 -m benchmarks.ranks --draws 2

Run it with --draws 2 in one process and in two, alternately. It prints one line of JSON: medians of seconds a step, of
processor seconds a step of rank 0, of seconds in collective calls, and bytes that rank 0 sends for gradients in a step.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from benchmarks.cases import first_images, make_convnet_task, random_data
from limbeck.core.distributed import Ranks, join_ranks
from limbeck.experts.recorded import Recorded
from limbeck.experts.segments import WholeEpochs
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


def main() -> None:
    """Time the steps, and print the medians."""
    parser = argparse.ArgumentParser()
    for name, default in (("draws", 2), ("steps", 10), ("syn-steps", 10), ("ipc", 10), ("width", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
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
        if ranks.is_first:
            medians = {name: median(column) for name, column in zip(names, zip(*rows[1:]))}
            print(json.dumps({"ranks": ranks.size, **vars(args), **medians}))


if __name__ == "__main__":
    main()
