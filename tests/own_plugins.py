"""The text of a user's file with a method, a network, a selector and a reader that meet every law."""

PLUGINS = '''
import numpy as np
import torch
from torch import nn

from limbeck.core.rng import make_generator
from limbeck.data.images import RawData
from limbeck.data.readers.reader import Reader
from limbeck.methods import Method, MethodConfig, Plan
from limbeck.methods.trajectory_matching import init_synthetic_set


class Config(MethodConfig):
    iterations: int = 2
    """Outer steps."""
    lr_img: float | None = None
    """Step size of the images."""


def resolve(config, facts):
    return config.model_copy(update={"lr_img": config.lr_img or 0.1 * facts.ipc})


def plan(config, inputs):
    synthetic = init_synthetic_set("random", inputs, 0.01, learned=("images",))
    mean = inputs.task.train[0].mean(0)

    def objective(synthetic, step, seed):
        weights = torch.rand(mean.shape, generator=make_generator(seed, "weights", step))
        return (weights * (synthetic.images.mean(0) - mean)).square().sum()

    return Plan(objective, synthetic, [torch.optim.SGD([synthetic.images], config.lr_img)], config.iterations)


METHOD = Method("means", "matches the mean image", "nobody", Config, None, plan, resolve, learns=("images",))


class Net(nn.Module):
    def __init__(self, channels, size, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten())
        self.classifier = nn.Linear(4 * (size[0] - 2) * (size[1] - 2), classes)

    def forward(self, images):
        return self.classifier(self.body(images))


def select(features, count, seed):
    order = torch.randperm(len(features), generator=make_generator(seed, "own"))
    return order[:count]


def recognise(folder):
    return any(name.endswith(".raw") for name in folder.files)


def read(folder, options):
    """A file of 8 x 8 pixels an image; labels count 0, 1, 2, 0, 1, 2."""
    (file,) = folder.files.values()
    images = np.frombuffer(file.read(), np.uint8).reshape(-1, 8, 8)
    return RawData(folder.name, {"train": images}, {"train": np.arange(len(images)) % 3})


READER = Reader("a file of raw pixels", recognise, read)

NUMBER = 3
'''
