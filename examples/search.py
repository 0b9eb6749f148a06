"""Rank 20 networks by training them on a few images, and compare with all images: python examples/search.py.

Prints the rank correlation (Spearman) between accuracies after training on the set and after training on all images.
"""

import sys

from scipy.stats import spearmanr

import limbeck

SMALL = "--small" in sys.argv  # as the tests run it
WIDTHS, DEPTHS = ((2, 4), (1, 2)) if SMALL else ((2, 4, 6, 8, 12, 16), (1, 2, 3))
NETWORKS = [f"convnet:width={width}:depth={depth}" for width in WIDTHS for depth in DEPTHS]
NETWORKS += ["mlp:width=32", "convnet:width=16:depth=1:pooling=max"]
IPC = 1 if SMALL else 5

data = limbeck.load_data("digits")
protocol = limbeck.EvalConfig(networks=2, epochs=200, baseline_lrs=(0.01,), full_epochs=10, full_networks=2)
options = {"num_experts": 3, "iterations": 150, "model": limbeck.ModelConfig(width=16)}
options |= {"validate_networks": 2, "validate_epochs": 100}
if SMALL:
    protocol = limbeck.EvalConfig(networks=1, epochs=2, baseline_lrs=(0.01,), full_epochs=1, full_networks=1)
    options |= {"num_experts": 1, "iterations": 2, "syn_steps": 2, "model": limbeck.ModelConfig(width=4)}
    options |= {"expert": limbeck.ExpertConfig(epochs=2), "validate_networks": 1, "validate_epochs": 1}
run = limbeck.distill(data, ipc=IPC, out="runs/search", eval=protocol, **options)
table = limbeck.evaluate(run, data=data, networks=NETWORKS, which="chosen", protocol=protocol)
accuracies: dict[str, dict[str, float]] = {}
for row in table:
    accuracies.setdefault(row.set, {})[row.model] = row.accuracy_mean  # of a set's two rows the one by validation
full = accuracies.pop("full")
for name, values in accuracies.items():
    correlation, p = spearmanr([values[network] for network in full], [*full.values()])
    best = max(values, key=values.__getitem__)
    print(f"{name}: Spearman {correlation:.2f} (p = {p:.1g}, {len(full)} networks); its best reaches {full[best]:.1%}")
print(f"all images: from {min(full.values()):.1%} to {max(full.values()):.1%}")
