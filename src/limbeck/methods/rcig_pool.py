"""RCIG's pool: networks that age on the synthetic set, one of them a step, and are made anew when they are old."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from limbeck.core.rng import make_generator
from limbeck.networks.flat import FlatModel, lecun_normal
from limbeck.synthetic.set import SyntheticSet


@dataclass
class Member:
    """A network of the pool: parameters (P,), what Adam remembers of them, its steps, and how often it was made."""

    theta: Tensor
    mean: Tensor
    square: Tensor
    age: int = 0
    life: int = 0


@dataclass
class Pool:
    """`at(step)` is the start of the student of an outer step; as a hook, it trains that network on the set.

    count:  networks. Which one is drawn, and for how many of 1 ... `steps` Adam steps (step size `lr`) it then learns
            the set's labels as targets, by mean squared error on the whole network, comes from (seed, step) alone.
    reset:  a network that has learned for so many steps or more is made anew.
    flip:   it learns mirror images too.
    batch:  images per step of that (None: all), drawn at random.
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
    members: list[Member] = field(init=False)

    def __post_init__(self) -> None:
        self.members = [self._new(index, 0) for index in range(self.count)]

    def _new(self, index: int, life: int) -> Member:
        theta = lecun_normal(self.model.layout, make_generator(self.seed, "pool", "network", index, life)).to(
            self.device
        )
        return Member(theta, torch.zeros_like(theta), torch.zeros_like(theta), 0, life)

    def index(self, step: int) -> int:
        """The network of an outer step, uniformly."""
        return int(torch.randint(self.count, (), generator=make_generator(self.seed, "pool", "draw", step)))

    def at(self, step: int) -> Tensor:
        """Its parameters (P,) before that step."""
        return self.members[self.index(step)].theta

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        index = self.index(step - 1)  # a hook hears how many steps are done
        generator = make_generator(self.seed, "pool", "train", step)
        count = int(torch.randint(1, self.steps + 1, (), generator=generator))
        images, labels = (tensor.detach() for tensor in synthetic.decoded_pair())
        if self.flip:
            images, labels = torch.cat([images, images.flip(3)]), torch.cat([labels, labels])
        self._train(self.members[index], images, labels, count, generator)
        if self.members[index].age >= self.reset:
            self.members[index] = self._new(index, self.members[index].life + 1)

    def _train(self, member: Member, images: Tensor, labels: Tensor, count: int, generator: torch.Generator) -> None:
        theta = member.theta.clone().requires_grad_()
        optimiser = torch.optim.Adam([theta], self.lr)
        memory = {"step": torch.tensor(float(member.age)), "exp_avg": member.mean, "exp_avg_sq": member.square}
        optimiser.state[theta] = memory
        for _ in range(count):
            x, y = images, labels
            if self.batch is not None and self.batch < len(images):
                rows = torch.randperm(len(images), generator=generator)[: self.batch].to(images.device)
                x, y = images[rows], labels[rows]
            value = (self.model(theta, x) - y).square().mean()
            (theta.grad,) = torch.autograd.grad(value, theta)
            optimiser.step()
        member.theta, member.age = theta.detach(), member.age + count

    def state(self) -> dict[str, Tensor]:
        """All networks, what Adam remembers of them, and how old they are."""
        ages = [[member.age, member.life] for member in self.members]
        held: dict[str, Tensor] = {"ages": torch.tensor(ages)}
        for name in ("theta", "mean", "square"):
            held[name] = torch.stack([getattr(member, name) for member in self.members])
        return held

    def restore(self, state: dict[str, Tensor], step: int) -> None:
        """Take them up again."""
        parts = (state[name].to(self.device) for name in ("theta", "mean", "square"))
        self.members = [
            Member(theta.clone(), mean.clone(), square.clone(), int(age), int(life))
            for theta, mean, square, (age, life) in zip(*parts, state["ages"].tolist())
        ]
