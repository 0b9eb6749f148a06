"""RCIG's pool: networks that learn the synthetic set, one of them per outer step, and start again when they are old."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from limbeck.core.rng import make_generator
from limbeck.data.augment import append_mirror_images
from limbeck.networks.flat import FlatModel, lecun_normal
from limbeck.synthetic.loop import StatefulHook
from limbeck.synthetic.set import SyntheticSet


@dataclass
class PoolNetwork:
    """A network of the pool.

    theta:      parameters (P,); exp_avg, exp_avg_sq: Adam's state (P,) of them.
    num_steps:  steps of Adam since its initialisation.
    generation: how often it was initialised before.
    """

    theta: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    num_steps: int = 0
    generation: int = 0


@dataclass
class Pool(StatefulHook):
    """The networks of RCIG: `at(step)` is the one that outer step `step` linearises; as a hook, the pool trains it.

    After the step the network learns the set's labels as targets, by mean squared error in all parameters, for 1 to
    `steps` steps of Adam. Which network, and how many steps, follows from (seed, step) alone.

    count:  number of networks.
    lr:     step size of Adam.
    reset:  a network with so many steps or more is initialised anew.
    flip:   the networks learn mirror images too.
    batch:  synthetic images per step of Adam, drawn at random; None: all.
    """

    model: FlatModel
    count: int
    seed: int
    lr: float = 5e-5
    steps: int = 15
    reset: int = 100
    flip: bool = False
    batch: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    networks: list[PoolNetwork] = field(init=False)

    def __post_init__(self) -> None:
        self.networks = [self._init_network(index, 0) for index in range(self.count)]

    def _init_network(self, index: int, generation: int) -> PoolNetwork:
        generator = make_generator(self.seed, "pool", "network", index, generation)
        theta = lecun_normal(self.model.layout, generator).to(self.device)
        return PoolNetwork(theta, torch.zeros_like(theta), torch.zeros_like(theta), 0, generation)

    def index(self, step: int) -> int:
        """Return which network an outer step linearises, uniformly drawn."""
        return int(torch.randint(self.count, (), generator=make_generator(self.seed, "pool", "draw", step)))

    def at(self, step: int) -> Tensor:
        """Return the parameters (P,) of that network before the step."""
        return self.networks[self.index(step)].theta

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        index = self.index(step - 1)  # a hook is given the number of steps done
        generator = make_generator(self.seed, "pool", "train", step)
        steps = int(torch.randint(1, self.steps + 1, (), generator=generator))
        images, labels = (tensor.detach() for tensor in synthetic.decoded_pair())
        if self.flip:
            images, labels = append_mirror_images(images, labels)
        self._train(self.networks[index], images, labels, steps, generator)
        if self.networks[index].num_steps >= self.reset:
            self.networks[index] = self._init_network(index, self.networks[index].generation + 1)

    def _train(
        self, network: PoolNetwork, images: Tensor, labels: Tensor, steps: int, generator: torch.Generator
    ) -> None:
        theta = network.theta.clone().requires_grad_()
        optimiser = torch.optim.Adam([theta], self.lr)
        optimiser.state[theta] = {
            "step": torch.tensor(float(network.num_steps)),
            "exp_avg": network.exp_avg,
            "exp_avg_sq": network.exp_avg_sq,
        }
        for _ in range(steps):
            x, y = images, labels
            if self.batch is not None and self.batch < len(images):
                rows = torch.randperm(len(images), generator=generator)[: self.batch].to(images.device)
                x, y = images[rows], labels[rows]
            loss = (self.model(theta, x) - y).square().mean()
            (theta.grad,) = torch.autograd.grad(loss, theta)
            optimiser.step()
        network.theta, network.num_steps = theta.detach(), network.num_steps + steps

    def state(self) -> dict[str, Tensor]:
        """Return all networks with Adam's state, their numbers of steps and their generations."""
        return {
            "ages": torch.tensor([[network.num_steps, network.generation] for network in self.networks]),
            "theta": torch.stack([network.theta for network in self.networks]),
            "mean": torch.stack([network.exp_avg for network in self.networks]),
            "square": torch.stack([network.exp_avg_sq for network in self.networks]),
        }

    def restore(self, state: dict[str, Tensor], step: int) -> None:
        """Continue from a saved state."""
        tensors = (state[name].to(self.device) for name in ("theta", "mean", "square"))
        self.networks = [
            PoolNetwork(theta.clone(), exp_avg.clone(), exp_avg_sq.clone(), int(num_steps), int(generation))
            for theta, exp_avg, exp_avg_sq, (num_steps, generation) in zip(*tensors, state["ages"].tolist())
        ]
