"""Dropout of a network, which is switched off: a step must give the same result when it is computed again."""

from __future__ import annotations

from torch import nn

PROBABILITIES = ("dropout", "drop_prob")
"""Attributes of layers that are probabilities: of torch's attention and recurrent layers, and of timm's DropPath."""


def switch_off_dropout(module: nn.Module) -> list[str]:
    """Set every probability of dropout in a module to 0, and return a word on each layer that had one.

    Dropout that a module applies by a function with a probability of its own is not found.

    >>> switch_off_dropout(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    ['1 (Dropout, 0.5)']
    """
    layers = []
    for name, part in module.named_modules():
        attributes = ("p",) if isinstance(part, nn.modules.dropout._DropoutNd) else PROBABILITIES
        for attribute in attributes:
            value = getattr(part, attribute, None)
            if isinstance(value, float) and value > 0:
                setattr(part, attribute, 0.0)
                layers.append(f"{name or 'the network'} ({type(part).__name__}, {value:g})")
    return layers
