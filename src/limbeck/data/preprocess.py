"""Pixels to network input space and back: per-channel normalising or ZCA whitening, fitted on train."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, cast

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.threads import one_thread

Kind = Literal["normalise", "zca"]
TENSORS: dict[str, tuple[str, ...]] = {"normalise": ("mean", "std"), "zca": ("mean", "whiten", "colour")}
# The constants of the authors' code: CIFAR-10's for both CIFARs, and ImageNet's for it and Tiny-ImageNet.
CONSTANTS = {
    "cifar": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
Name = Literal["normalise", "zca", "cifar", "imagenet"]
CHUNK = 1 << 24  # values converted at once: 64 MiB of float32


@dataclass(frozen=True, eq=False)
class Preprocess:
    """A fitted, invertible map between pixels in [0, 1] and network input space.

    shape: (c, h, w) of the images it was fitted on; normalise takes any h and w.
    eps:   what was added to the eigenvalues (zca); 0 for normalise.
    normalise holds mean (c,) and std (c,); zca holds mean (d,), whiten (d, d) and its inverse colour (d, d), d = c*h*w.
    """

    kind: Kind
    shape: tuple[int, int, int]
    eps: float
    mean: Tensor
    std: Tensor | None = None
    whiten: Tensor | None = None
    colour: Tensor | None = None

    def apply(self, images: Tensor) -> Tensor:
        """uint8 or float in [0, 1], (n, c, h, w) -> float32 network input, on the images' device; differentiable.

        Raises UserError if the images' shape is not the one this was fitted on.
        """
        self._check(images)
        tensors = {name: held.to(images.device) for name, held in self.state().items()}
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        if self.kind == "normalise":
            mean, std = tensors["mean"][:, None, None], tensors["std"][:, None, None]
            return _chunked(images, lambda x: (x.float() / scale - mean) / std)
        mean, whiten = tensors["mean"], tensors["whiten"]
        return _chunked(images, lambda x: ((x.flatten(1).float() / scale - mean) @ whiten).reshape(x.shape))

    def invert(self, images: Tensor) -> Tensor:
        """Network input (n, c, h, w) -> float32 pixels where 0 is black and 1 is white, not clipped; undoes `apply`.

        Raises UserError if the images' shape is not the one this was fitted on.
        """
        self._check(images)
        tensors = {name: held.to(images.device) for name, held in self.state().items()}
        if self.kind == "normalise":
            mean, std = tensors["mean"][:, None, None], tensors["std"][:, None, None]
            return _chunked(images, lambda x: x.float() * std + mean)
        mean, colour = tensors["mean"], tensors["colour"]
        return _chunked(images, lambda x: (x.flatten(1).float() @ colour + mean).reshape(x.shape))

    def input_value(self, pixel: float) -> Tensor | None:
        """A pixel value in [0, 1] as network input, (c,); None for whitening, which maps whole images."""
        return None if self.std is None else (pixel - self.mean) / self.std

    def to(self, device: torch.device | str) -> Preprocess:
        """The same map with its tensors on `device`; otherwise each call copies them to the images' device."""
        return self.from_state(self.header(), {name: held.to(device) for name, held in self.state().items()})

    def state(self) -> dict[str, Tensor]:
        """The tensors by name, float32; with `header` all that `from_state` needs."""
        held = {"mean": self.mean, "std": self.std, "whiten": self.whiten, "colour": self.colour}
        return {name: tensor for name, tensor in held.items() if tensor is not None}

    def header(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON values."""
        return {"kind": self.kind, "eps": self.eps, "shape": list(self.shape)}

    def describe(self) -> dict[str, Any]:
        """`header` and the numbers that were fitted, as JSON values: maps that differ are described differently.

        Normalising is described by its mean and std. Whitening is by a digest of its mean, which is exact, since its
        matrices carry the rounding of the machine that made them; with the images' fingerprint it names them.
        """
        if self.std is not None:
            return {**self.header(), "mean": self.mean.tolist(), "std": self.std.tolist()}
        digest = hashlib.sha256(self.mean.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
        return {**self.header(), "mean": digest}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Preprocess | str:
        """What `describe` described; the name to fit it by where the numbers are not in it (whitening, old files)."""
        if "std" not in description:
            return str(description["kind"])
        return cls.from_state(description, {name: torch.tensor(description[name]) for name in ("mean", "std")})

    @classmethod
    def from_state(cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Preprocess:
        """What `header` and `state` described; UserError if they do not fit together."""
        kind, shape = header.get("kind"), header.get("shape")
        if kind not in TENSORS or not isinstance(shape, list | tuple) or [*map(type, shape)] != [int] * 3:
            raise UserError(f"preprocessing header {dict(header)} lacks a known kind ({', '.join(TENSORS)}) or a shape")
        size = shape[0] if kind == "normalise" else prod(shape)
        for name in TENSORS[kind]:
            expected = (size,) if name in ("mean", "std") else (size, size)
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            if found != expected:
                raise UserError(
                    f"preprocessing {kind} needs a tensor {name} of shape {expected}, and {found} was given"
                )
        held = {name: tensors[name].float() for name in TENSORS[kind]}
        return cls(cast(Kind, kind), (shape[0], shape[1], shape[2]), float(header.get("eps", 0.0)), **held)

    def _check(self, images: Tensor) -> None:
        known = 1 if self.kind == "normalise" else 3  # normalise is the same for every pixel
        if images.ndim != 4 or tuple(images.shape[1 : 1 + known]) != self.shape[:known]:
            raise UserError(
                f"images of shape {tuple(images.shape)} do not fit {self.kind} preprocessing, which was fitted on "
                f"(n, c, h, w) with (c, h, w) = {self.shape}; give images of that shape or fit again"
            )


def fit_preprocess(kind: str, images: Tensor, eps: float = 0.1) -> Preprocess:
    """Fit on training images uint8 (n, c, h, w); `eps` is added to the eigenvalues of zca's covariance of pixels / 255.

    kind: normalise or zca, or cifar or imagenet: normalising by the constants of the authors' code.
    UserError for an unknown kind, images of another type or shape, zca of one image or with eps <= 0, and constants
    for images that are not in colour.
    """
    if kind not in (*TENSORS, *CONSTANTS):
        raise UserError(f"no preprocessing called {kind!r}; choose one of: {', '.join((*TENSORS, *CONSTANTS))}")
    if images.dtype != torch.uint8 or images.ndim != 4 or not images.numel():
        raise UserError(f"preprocessing is fitted on uint8 (n, c, h, w), not on {images.dtype} {tuple(images.shape)}")
    c, h, w = images.shape[1:]
    if kind in CONSTANTS:
        if c != 3:
            raise UserError(f"the images have {c} channel(s), and the constants '{kind}' are for three.")
        mean, std = (torch.tensor(values) for values in CONSTANTS[kind])
        return Preprocess("normalise", (c, h, w), 0.0, mean, std)
    if kind == "normalise":
        mean, std = _channel_moments(images)
        return Preprocess("normalise", (c, h, w), 0.0, mean.float(), std.float())
    if len(images) < 2 or not eps > 0:
        raise UserError(f"zca needs at least 2 images and eps above 0, not {len(images)} images and eps {eps}")
    mean, covariance = _pixel_moments(images)
    with one_thread():  # the sums above are exact; these are not
        values, vectors = torch.linalg.eigh(covariance)
        root = (values.clamp(min=0) + eps).sqrt()  # rounding makes the zero eigenvalues of constant pixels negative
        whiten, colour = (vectors / root) @ vectors.T, (vectors * root) @ vectors.T
    return Preprocess("zca", (c, h, w), float(eps), mean.float(), None, whiten.float(), colour.float())


def _channel_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """float64 mean and population std (c,) of pixels / 255, exact to the last rounding: whole numbers until the end."""
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.int64, device=images.device)
        for part in _parts(images[:, channel], CHUNK // images[0, 0].numel()):
            counts += torch.bincount(part.flatten(), minlength=256)
        histogram = [int(count) for count in counts]
        n = sum(histogram)
        first = sum(level * count for level, count in enumerate(histogram))
        second = sum(level * level * count for level, count in enumerate(histogram))
        spread = n * second - first * first
        means.append(first / (255 * n))
        stds.append(spread**0.5 / (255 * n) if spread else 1.0)  # a constant channel becomes 0 and comes back as it was
    mean, std = torch.tensor([means, stds], dtype=torch.float64, device=images.device)
    return mean, std


def _pixel_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """float64 mean (d,) and covariance (d, d), divided by n - 1, of pixels / 255."""
    n, d = len(images), images[0].numel()
    first = torch.zeros(d, dtype=torch.float64, device=images.device)
    second = torch.zeros(d, d, dtype=torch.float64, device=images.device)
    # Pixels less 128 multiply to at most 2**14, so float32 (and TF32) sums 2**10 products without rounding: as exact as
    # float64, and faster (CIFAR-10, one core: 9 s, not 15 s; the two differ by 1e-15).
    for part in _parts(images, 1024):
        x = part.flatten(1).float() - 128
        first += x.sum(0)
        second += x.T @ x
    mean = first / n
    covariance = (second - n * mean[:, None] * mean) / (max(n - 1, 1) * 255.0**2)
    return (mean + 128) / 255, covariance


def _parts(images: Tensor, rows: int) -> Iterator[Tensor]:
    rows = max(1, rows)
    return (images[start : start + rows] for start in range(0, len(images), rows))


def _chunked(images: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
    """`convert` over rows, a chunk at a time, so that no temporary is as large as the whole."""
    rows = max(1, CHUNK // max(1, prod(images.shape[1:])))
    if len(images) <= rows:
        return convert(images)
    out = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    for start in range(0, len(images), rows):
        out[start : start + rows] = convert(images[start : start + rows])
    return out
