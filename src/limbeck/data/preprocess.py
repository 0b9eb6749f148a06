"""Maps between pixels and network input space: per-channel normalisation or ZCA whitening, fitted on train."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, cast

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.linear import multiply_rows
from limbeck.core.short_repr import short_repr
from limbeck.core.text import quote
from limbeck.core.threads import number_of_threads

PreprocessKind = Literal["normalise", "zca"]
TENSORS: dict[str, tuple[str, ...]] = {"normalise": ("mean", "std"), "zca": ("mean", "whiten", "colour")}
PreprocessName = Literal["normalise", "zca", "cifar", "cifar100", "imagenet", "svhn", "mnist", "fashion"]

CONSTANTS = {
    "cifar": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion": ((0.2861,), (0.3530,)),
}
"""Mean and std of the authors' code, per channel.

cifar is CIFAR-10's, which MTT and IDC take for CIFAR-100 too; cifar100 is that of DC, DSA, DM and DataDAM. imagenet is
also Tiny-ImageNet's.
"""

CHUNK = 1 << 24  # values that are converted at once: 64 MiB of float32


@dataclass(frozen=True, eq=False)
class Preprocess:
    """A fitted, invertible map between pixels in [0, 1] and network input space.

    kind:   normalise, per channel (x - mean) / std; or zca, (x - mean) @ whiten of flat images.
    shape:  (c, h, w) of the images it was fitted on; normalise maps images of any h and w.
    eps:    added to the eigenvalues of the covariance for zca; 0 for normalise.
    mean:   (c,) for normalise, (d,) with d = c*h*w for zca.
    std:    (c,), for normalise. whiten, colour: (d, d) and its inverse, for zca. None otherwise.
    """

    __repr__ = short_repr

    kind: PreprocessKind
    shape: tuple[int, int, int]
    eps: float
    mean: Tensor
    std: Tensor | None = None
    whiten: Tensor | None = None
    colour: Tensor | None = None

    def apply(self, images: Tensor) -> Tensor:
        """Map images (n, c, h, w), uint8 or float in [0, 1], to float32 network input on their device.

        It is differentiable. Raises UserError for images of another shape than those it was fitted on.
        """
        self._check(images)
        tensors = self.state(images.device)
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        if self.kind == "normalise":
            mean, std = tensors["mean"][:, None, None], tensors["std"][:, None, None]
            return _map_chunks(images, lambda x: (x.float() / scale - mean) / std)
        mean, whiten = tensors["mean"], tensors["whiten"]
        return _map_chunks(images, lambda x: multiply_rows(x.flatten(1).float() / scale - mean, whiten).view(x.shape))

    def invert(self, images: Tensor) -> Tensor:
        """Map network input (n, c, h, w) to float32 pixels, 0 black and 1 white, not clipped: the inverse of `apply`.

        Raises UserError for images of another shape than those it was fitted on.
        """
        self._check(images)
        tensors = self.state(images.device)
        if self.kind == "normalise":
            mean, std = tensors["mean"][:, None, None], tensors["std"][:, None, None]
            return _map_chunks(images, lambda x: x.float() * std + mean)
        mean, colour = tensors["mean"], tensors["colour"]
        return _map_chunks(images, lambda x: (multiply_rows(x.flatten(1).float(), colour) + mean).view(x.shape))

    def input_value(self, pixel: float) -> Tensor | None:
        """A pixel value in [0, 1] as network input, (c,); None for whitening, which maps whole images."""
        return None if self.std is None else (pixel - self.mean) / self.std

    def to(self, device: torch.device | str) -> Preprocess:
        """The same map with its tensors on `device`; elsewhere, each call copies them to the images' device."""
        return self.from_state(self.header(), self.state(device))

    def state(self, device: torch.device | str | None = None) -> dict[str, Tensor]:
        """The float32 tensors by name, on `device` where it is not None. `from_state` needs them and `header`."""
        tensors = {"mean": self.mean, "std": self.std, "whiten": self.whiten, "colour": self.colour}
        return {name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None}

    def header(self) -> dict[str, Any]:
        """Kind, eps and shape as JSON values."""
        return {"kind": self.kind, "eps": self.eps, "shape": list(self.shape)}

    def describe(self) -> dict[str, Any]:
        """`header` and the fitted numbers as JSON values; different maps have different descriptions.

        Normalisation is described by its mean and std. Whitening is described by a digest of its mean, which is exact,
        and not of its matrices, whose rounding differs between machines; together with the fingerprint of the images
        this names them.
        """
        if self.std is not None:
            return {**self.header(), "mean": self.mean.tolist(), "std": self.std.tolist()}
        digest = hashlib.sha256(self.mean.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
        return {**self.header(), "mean": digest}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Preprocess | str:
        """The map that `describe` described, or its kind where its numbers are missing (whitening, old files)."""
        if "std" not in description:
            return str(description.get("kind"))
        try:
            tensors = {name: torch.tensor(description[name], dtype=torch.float32) for name in ("mean", "std")}
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise UserError(f"preprocessing {dict(description)} lacks a mean and std of numbers") from None
        return cls.from_state(description, tensors)

    @classmethod
    def from_state(cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Preprocess:
        """The map with this `header` and `state`. Raises UserError where they do not fit each other."""
        kind, shape = header.get("kind"), header.get("shape")
        has_shape = isinstance(shape, list | tuple) and [*map(type, shape)] == [int] * 3
        if not isinstance(kind, str) or kind not in TENSORS or shape is None or not has_shape:
            raise UserError(f"preprocessing header {dict(header)} lacks a known kind ({', '.join(TENSORS)}) or a shape")
        size = shape[0] if kind == "normalise" else prod(shape)
        for name in TENSORS[kind]:
            expected = (size,) if name in ("mean", "std") else (size, size)
            actual = tuple(tensors[name].shape) if name in tensors else "nothing"
            if actual != expected:
                raise UserError(
                    f"preprocessing {kind} needs a tensor {name} of shape {expected}, and {actual} was given"
                )
        state = {name: tensors[name].float() for name in TENSORS[kind]}
        eps = header.get("eps", 0.0)
        if not isinstance(eps, int | float):
            raise UserError(f"preprocessing {kind} needs a number eps, and {quote(eps)} was given")
        return cls(cast(PreprocessKind, kind), (shape[0], shape[1], shape[2]), float(eps), **state)

    def _check(self, images: Tensor) -> None:
        axes = 1 if self.kind == "normalise" else 3  # normalisation is the same for every pixel
        if images.ndim != 4 or tuple(images.shape[1 : 1 + axes]) != self.shape[:axes]:
            raise UserError(
                f"images of shape {tuple(images.shape)} do not fit {self.kind} preprocessing, which was fitted on "
                f"(n, c, h, w) with (c, h, w) = {self.shape}; give images of that shape or fit again"
            )


def fit_preprocess(kind: str, images: Tensor, eps: float = 0.1) -> Preprocess:
    """Fit a map between pixels and network input space on training images.

    kind:   normalise; zca; or a name of `CONSTANTS`, normalisation by the constants of the authors' code.
    images: uint8 (n, c, h, w).
    eps:    for zca, added to the eigenvalues of the covariance of pixels / 255.
    Raises UserError for an unknown kind, for images of another type or shape, for zca of one image or with an eps that
    is not above 0, and for constants of another number of channels.

    >>> images = torch.tensor([[[[0, 255]]], [[[255, 0]]]], dtype=torch.uint8)
    >>> preprocess = fit_preprocess("normalise", images)
    >>> preprocess.apply(images).flatten().tolist()
    [-1.0, 1.0, 1.0, -1.0]
    """
    if kind not in (*TENSORS, *CONSTANTS):
        raise UserError(f"no preprocessing called {quote(kind)}; choose one of: {', '.join((*TENSORS, *CONSTANTS))}")
    if images.dtype != torch.uint8 or images.ndim != 4 or not images.numel():
        raise UserError(f"preprocessing is fitted on uint8 (n, c, h, w), not on {images.dtype} {tuple(images.shape)}")
    c, h, w = images.shape[1:]
    if kind in CONSTANTS:
        mean, std = (torch.tensor(values) for values in CONSTANTS[kind])
        if c != len(mean):
            raise UserError(f"the images have {c} channel(s), and the constants {quote(kind)} are for {len(mean)}.")
        return Preprocess("normalise", (c, h, w), 0.0, mean, std)
    if kind == "normalise":
        mean, std = _channel_moments(images)
        return Preprocess("normalise", (c, h, w), 0.0, mean.float(), std.float())
    if len(images) < 2 or not eps > 0:
        raise UserError(f"zca needs at least 2 images and eps above 0, not {len(images)} images and eps {eps}")
    mean, covariance = _pixel_moments(images)
    with number_of_threads(1):  # unlike the sums above, these are not exact
        values, vectors = torch.linalg.eigh(covariance)
        root = (values.clamp(min=0) + eps).sqrt()  # rounding makes zero eigenvalues negative
        whiten, colour = (vectors / root) @ vectors.T, (vectors * root) @ vectors.T
    return Preprocess("zca", (c, h, w), float(eps), mean.float(), None, whiten.float(), colour.float())


def _channel_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """float64 mean and population std (c,) of pixels / 255, computed in whole numbers up to the last rounding."""
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.int64, device=images.device)
        for part in _row_chunks(images[:, channel], CHUNK // images[0, 0].numel()):
            counts += torch.bincount(part.flatten(), minlength=256)
        histogram = [int(count) for count in counts]
        n = sum(histogram)
        first = sum(level * count for level, count in enumerate(histogram))
        second = sum(level * level * count for level, count in enumerate(histogram))
        variance = n * second - first * first  # times n^2
        means.append(first / (255 * n))
        stds.append(variance**0.5 / (255 * n) if variance else 1.0)  # a constant channel is mapped to 0 and back
    mean, std = torch.tensor([means, stds], dtype=torch.float64, device=images.device)
    return mean, std


def _pixel_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """float64 mean (d,) and covariance (d, d), divided by n - 1, of pixels / 255."""
    n, d = len(images), images[0].numel()
    first = torch.zeros(d, dtype=torch.float64, device=images.device)
    second = torch.zeros(d, d, dtype=torch.float64, device=images.device)
    # Products of pixels less 128 are at most 2**14, so that float32 (and TF32) adds 2**10 of them without rounding.
    # This is as exact as float64 and faster: 9 s for CIFAR-10 on one core, not 15 s, with a difference of 1e-15.
    for part in _row_chunks(images, 1024):
        x = part.flatten(1).float() - 128
        first += x.sum(0)
        second += x.T @ x
    mean = first / n
    covariance = (second - n * mean[:, None] * mean) / (max(n - 1, 1) * 255.0**2)
    return (mean + 128) / 255, covariance


def _row_chunks(images: Tensor, rows: int) -> Iterator[Tensor]:
    rows = max(1, rows)
    return (images[start : start + rows] for start in range(0, len(images), rows))


def _map_chunks(images: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `convert` to chunks of rows, so that no temporary tensor is as large as the result."""
    rows = max(1, CHUNK // max(1, prod(images.shape[1:])))
    if len(images) <= rows:
        return convert(images)
    result = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    for start in range(0, len(images), rows):
        result[start : start + rows] = convert(images[start : start + rows])
    return result
