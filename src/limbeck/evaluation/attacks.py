"""Attacks in the L-infinity ball: every pixel is changed by at most epsilon, so that a network errs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.training.plain import Network

Gradient = Callable[[Tensor], Tensor]
"""pixels (n, c, h, w) in [0, 1] -> a tensor of that shape with the signs of the gradient of the loss of each image."""


def fgsm(gradient: Gradient, pixels: Tensor, epsilon: float, steps: int, generator: torch.Generator) -> Tensor:
    """The fast gradient sign method: one step of epsilon along the sign (Goodfellow et al. 2015, section 4).

    steps and generator are not used.
    """
    return _project(pixels + epsilon * gradient(pixels).sign(), pixels, epsilon)


def pgd(gradient: Gradient, pixels: Tensor, epsilon: float, steps: int, generator: torch.Generator) -> Tensor:
    """Projected gradient descent from a random point of the ball (Madry et al. 2018, section 2.1).

    A step is 2.5 epsilon / steps, so that any point of the ball can be reached: 2/255 where epsilon is 8/255 and there
    are 10 steps.
    """
    noise = torch.rand(pixels.shape, generator=generator).to(pixels) * 2 - 1
    perturbed = _project(pixels + epsilon * noise, pixels, epsilon)
    for _ in range(steps):
        perturbed = _project(perturbed + 2.5 * epsilon / steps * gradient(perturbed).sign(), pixels, epsilon)
    return perturbed


def _project(perturbed: Tensor, pixels: Tensor, epsilon: float) -> Tensor:
    """The nearest images in the ball around `pixels` and in [0, 1]."""
    return perturbed.clamp(pixels - epsilon, pixels + epsilon).clamp(0, 1)


class Attack(NamedTuple):
    """An attack: its function, and whether that takes several steps."""

    perturb: Callable[[Gradient, Tensor, float, int, torch.Generator], Tensor]
    is_iterative: bool = True


ATTACKS: dict[str, Attack] = {"fgsm": Attack(fgsm, is_iterative=False), "pgd": Attack(pgd)}


def margin_gradient(network: Network, theta: Tensor, labels: Tensor, to_input: Callable[[Tensor], Tensor]) -> Gradient:
    """The `Gradient` of a network at theta (P,) on images with these labels (n,).

    With m = logsumexp of the other logits less the label's, the cross-entropy is log(1 + exp(m)), so that its gradient
    is that of m times a positive number. Here it is that of m: a sure network has a cross-entropy whose gradient rounds
    to 0, and would seem robust (Carlini and Wagner 2017, section VI).

    network:  Differentiable in the images; that of an image must not depend on the other ones.
    to_input: From pixels to network input, differentiable.
    """

    def gradient(pixels: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = pixels.detach().requires_grad_()
            logits = network(theta, to_input(leaf)).float()
            own = labels[:, None]
            margins = logits.scatter(1, own, -torch.inf).logsumexp(1) - logits.gather(1, own)[:, 0]
            (result,) = torch.autograd.grad(margins.sum(), leaf)
        return result.nan_to_num(0.0)

    return gradient
