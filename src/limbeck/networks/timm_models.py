"""Networks of timm by `timm:NAME`, without trained weights; timm is imported when one is built."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from limbeck.core.errors import UserError
from limbeck.core.text import quote, shorten


class TimmNetwork(nn.Module):
    """A network of timm, whose last linear layer is `classifier` here."""

    def __init__(self, name: str, channels: int, size: tuple[int, int], classes: int):
        super().__init__()
        self.body = create_model(name, channels, size, classes)

    @property
    def classifier(self) -> nn.Module:
        """The last layer."""
        layer: nn.Module = self.body.get_classifier()  # type: ignore[operator]
        return layer

    def forward(self, images: Tensor) -> Tensor:
        """The logits (n, classes) of images (n, channels, height, width)."""
        logits: Tensor = self.body(images)
        return logits


def import_timm() -> Any:
    """The package timm. Raises UserError where it is missing or cannot be imported."""
    try:
        import timm
    except Exception as error:  # a torchvision built for another torch raises RuntimeError
        raise UserError(
            f"timm cannot be imported ({type(error).__name__}: {shorten(error)}); install it with "
            "'pip install limbeck[timm]', beside a torchvision built for this torch."
        ) from None
    return timm


def create_model(name: str, channels: int, size: tuple[int, int], classes: int) -> nn.Module:
    """A network of timm with random weights for images of this size, with a drop rate of 0.

    Raises UserError for an unknown name, and where timm cannot build it for such images.
    """
    timm = import_timm()
    if not timm.is_model(name):
        near = timm.list_models(f"*{name[:6]}*")[:3]
        hint = f"; it has {', '.join(near)}" if near else ""
        raise UserError(f"timm has no network called {quote(name)}{hint}. timm.list_models() lists all.")
    options = {"pretrained": False, "in_chans": channels, "num_classes": classes, "drop_rate": 0.0}
    try:
        try:
            model: nn.Module = timm.create_model(name, img_size=size, **options)
        except TypeError:  # networks that take images of every size have no such option
            model = timm.create_model(name, **options)
    except Exception as error:
        reason = shorten(error, 160)
        raise UserError(
            f"timm cannot build {name} for images of {size[0]} x {size[1]} pixels: {reason[:150]}"
        ) from None
    return model
