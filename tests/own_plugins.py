"""The text of a user's file with a method, a network and a selector that meet every law."""

PLUGINS = '''
import torch
from torch import nn

from limbeck.core.rng import make_generator
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


NUMBER = 3
'''
