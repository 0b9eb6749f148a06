"""Learn the classes of Fashion-MNIST two at a time, with a small memory of those before: python examples/continual.py.

Three memories: none, random real images, and as many distilled ones.
"""

import sys
from statistics import fmean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck

SMALL = "--small" in sys.argv  # as the tests run it
DATA = "digits" if SMALL else "fashion-mnist"
PER_CLASS, IPC = (20, 1) if SMALL else (500, 5)
SEEDS = range(1 if SMALL else 5)
data = limbeck.load_data(DATA)
SIDE = data.size[0]


def take(labels: Tensor, wanted: tuple[int, ...], count: int, seed: int = 0) -> Tensor:
    """Rows of `count` images of each wanted class."""
    generator = torch.Generator().manual_seed(seed)
    rows = [(labels == label).nonzero()[:, 0] for label in wanted]
    return torch.cat([row[torch.randperm(len(row), generator=generator)[:count]] for row in rows])


def distil_task(task: tuple[int, ...]) -> Tensor:
    """Distil the images of one task alone, as they come: pixels in 0 ... 1 of IPC images of each of its classes."""
    rows = take(data.train.labels, task, PER_CLASS)
    images = limbeck.load_data((data.train.images[rows], data.train.labels[rows] - task[0]), name=f"task{task[0]}")
    options = {"num_experts": 2, "iterations": 60, "syn_steps": 10, "model": limbeck.ModelConfig(width=8)}
    options["expert"] = limbeck.ExpertConfig(epochs=10, batch_size=32, lr=0.02)
    options |= {"validate_epochs": 100, "validate_networks": 1, "validate_every": 50}
    options["eval"] = limbeck.EvalConfig(networks=1, epochs=1, full_networks=0, baseline_lrs=(0.01,))
    if SMALL:
        options |= {"num_experts": 1, "iterations": 2, "syn_steps": 2, "validate_epochs": 1}
        options |= {"model": limbeck.ModelConfig(width=4), "expert": limbeck.ExpertConfig(epochs=2)}
    run = limbeck.distill(images, ipc=IPC, out=f"runs/continual/{DATA}-{task[0]}", **options)
    return limbeck.load(run / "set-last.safetensors").pictures()


def make_network() -> nn.Module:
    """Two convolutions with group norm, and one head for all classes."""
    block = [nn.Conv2d(data.shape[0], 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.AvgPool2d(2)]
    block += [nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*block, nn.Flatten(), nn.Linear(16 * (SIDE // 4) ** 2, data.num_classes))


def learn(network: nn.Module, images: Tensor, labels: Tensor, memory: tuple[Tensor, Tensor], seed: int) -> None:
    """One task: every batch of new images comes with the whole memory."""
    optimiser = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(1 if SMALL else 5):
        for rows in torch.randperm(len(images), generator=generator).split(32):
            loss = F.cross_entropy(network(images[rows]), labels[rows])
            if len(memory[1]):
                loss = loss + F.cross_entropy(network(memory[0]), memory[1])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)  # without it, one network of three stopped learning
            optimiser.step()


def scale(pixels: Tensor) -> Tensor:
    """Pixels in 0 ... 1 to network input."""
    return (pixels - 0.3) / 0.35


tasks = [(first, first + 1) for first in range(0, data.num_classes, 2)]
distilled = {task: distil_task(task) for task in tasks}
for kind in ("no memory", "random real", "distilled"):
    accuracies = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        network, images, labels = make_network(), torch.empty(0, *data.shape), torch.empty(0, dtype=torch.int64)
        for task in tasks:
            rows = take(data.train.labels, task, PER_CLASS)
            learn(network, scale(data.train.images[rows] / 255), data.train.labels[rows], (scale(images), labels), seed)
            if kind != "no memory":
                random = data.train.images[take(data.train.labels, task, IPC, seed)] / 255
                images = torch.cat([images, distilled[task] if kind == "distilled" else random])
                labels = torch.cat([labels, torch.tensor(task).repeat_interleave(IPC)])
        with torch.no_grad():
            right = network(scale(data.test.images / 255)).argmax(1) == data.test.labels
        accuracies.append(100 * right.double().mean().item())
    spread = f" ± {stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
    print(f"{kind}: {fmean(accuracies):.1f}{spread} % of all {data.num_classes} classes (n = {len(accuracies)})")
