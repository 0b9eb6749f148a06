"""What does a distilled set give away? python examples/leakage.py RUN

For every image of the set: the nearest training image. A copy is much nearer to one training image than to any other,
even under the noise that distillation adds. Beside it the same for real images of the test part, which no training saw.
"""

import sys

import torch
from PIL import Image, ImageDraw
from torch import Tensor

import limbeck

RUN = sys.argv[1]
distilled = limbeck.load(RUN)
origin = distilled.provenance["data"]
data = limbeck.load_data(origin["source"], resize=origin.get("resize"), seed=distilled.provenance["config"]["seed"])
train = data.train.images.flatten(1) / 255


def find_nearest(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest training images of pixels (n, c, h, w) in 0 ... 1.

    Returns the root mean square differences (n,), their ratios to those to the second nearest, and the rows.
    """
    difference, row = torch.cdist(pixels.flatten(1), train).topk(2, largest=False)
    return difference[:, 0] / train.shape[1] ** 0.5, difference[:, 0] / difference[:, 1], row[:, 0]


pictures = distilled.pictures().clamp(0, 1)
rows = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))[: max(100, len(pictures))]
groups = {"distilled": pictures, "held-out real": data.test.images[rows] / 255}
groups["training images"] = data.train.images[torch.arange(0, len(train), max(1, len(train) // 100))] / 255
limit = find_nearest(groups["held-out real"])[1].quantile(0.05)
for name, pixels in groups.items():
    difference, ratio, _ = find_nearest(pixels)
    print(
        f"{name} (n = {len(pixels)}): nearest training image at {difference.median():.3f} (median), "
        f"{ratio.median():.2f} of the way to the second nearest; "
        f"{(ratio < limit).double().mean():.0%} stick out more than all but 5 % of held-out real images"
    )


def draw(picture: Tensor, zoom: int = 3) -> Image.Image:
    """One image, (c, h, w) in 0 ... 1."""
    array = (255 * picture).round().byte().permute(1, 2, 0).squeeze(-1).numpy()
    return Image.fromarray(array).resize((zoom * array.shape[1], zoom * array.shape[0]), Image.Resampling.NEAREST)


shown = {name: groups[name][:: max(1, len(groups[name]) // 8)][:8] for name in ("distilled", "held-out real")}
height, width = (3 * side + 6 for side in data.size)
sheet = Image.new("RGB", (130 + 8 * width, 4 * height), "white")
for place, (name, pixels) in enumerate(shown.items()):
    nearest = train[find_nearest(pixels)[2]].view(-1, *data.shape)
    for line, (label, images) in enumerate(((name, pixels), ("nearest in train", nearest))):
        top = (2 * place + line) * height
        ImageDraw.Draw(sheet).text((4, top + height // 2 - 8), label, "black")
        for column, picture in enumerate(images):
            sheet.paste(draw(picture).convert("RGB"), (130 + column * width, top))
sheet.save("leakage.png")
print("leakage.png")
