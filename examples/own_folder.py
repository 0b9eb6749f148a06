"""Distil a folder of pictures, and train a network of your own on the result: python examples/own_folder.py PHOTOS."""

import sys
from statistics import fmean, stdev

import torch
from torch import nn

import limbeck

FOLDER = sys.argv[1]
SMALL = "--small" in sys.argv  # as the tests run it
SEEDS = range(1 if SMALL else 3)


def make_network(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Three convolutions with batch norm: limbeck's experts have another network."""
    layers: list[nn.Module] = []
    for inputs in (shape[0], 32, 32):
        layers += [nn.Conv2d(inputs, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 32, classes))


data = limbeck.load_data(FOLDER)
common = {"ipc": 1, "model": limbeck.ModelConfig(width=16), "validate_networks": 2}
common["eval"] = limbeck.EvalConfig(networks=3, epochs=500, baseline_lrs=(0.01, 0.03), full_networks=1)
experts = {"num_experts": 3, "iterations": 150}
if SMALL:
    common |= {"validate_epochs": 1, "validate_networks": 1, "model": limbeck.ModelConfig(width=4)}
    common["eval"] = limbeck.EvalConfig(networks=1, epochs=1, full_networks=0)
    experts |= {"num_experts": 1, "expert": limbeck.ExpertConfig(epochs=2), "iterations": 2, "syn_steps": 2}
runs = {
    "distilled": limbeck.distill(data, out="runs/own-folder", **common, **experts),
    "random real": limbeck.distill(data, method="random", out="runs/own-folder-random", **common),
}
for name, run in runs.items():
    images, accuracies = limbeck.load(run), []
    for seed in SEEDS:
        torch.manual_seed(seed)
        network = make_network(data.shape, data.num_classes)
        images.train(network, seed=seed, lr=0.01, epochs=2 if SMALL else 300)
        accuracies.append(100 * images.accuracy(network, data.test.images, data.test.labels))
    spread = f" ± {stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
    print(f"{name}: {fmean(accuracies):.1f}{spread} % of {len(data.test)} test images (n = {len(accuracies)})")
