"""The student's rule: how one step of training follows from a gradient, and how its derivative goes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from limbeck.core.short_repr import short_repr
from limbeck.core.sums import reproducible_dot


class State(NamedTuple):
    """Where a student is: what the next step of its rule depends on, besides the gradient and the step size.

    theta: The parameters (P,).
    slots: What the rule remembers, each (P,): a momentum, say.
    steps: How many steps it has taken, which Adam's bias correction depends on.

    >>> Momentum().start(torch.ones(2))
    State(theta=float32[2], slots=tuple of 1, steps=0)
    """

    theta: Tensor
    slots: tuple[Tensor, ...] = ()
    steps: int = 0

    def __repr__(self) -> str:
        return short_repr(self)


class Step(NamedTuple):
    """A step that was taken: the states before and after it, its size, and the gradient (P,) where it is stored."""

    before: State
    after: State
    lr: float
    gradient: Tensor | None = None

    def __repr__(self) -> str:
        return short_repr(self)


class Pull(NamedTuple):
    """The derivative of a scalar L taken back through a step, except for the way through the gradient's own inputs.

    The gradient g depends on theta, images and labels. Its part of their derivatives is `factor` times the derivative
    of direction . g, that is a Hessian-vector product, which the caller computes and adds.

    direction: (P,); factor * direction is dL/dg.
    factor:    A number.
    adjoint:   dL/d(state before the step) at a fixed g: of theta and of each slot. Its `steps` is not used.
    lr:        dL/d(step size), a scalar; None where it is -direction . g.
    """

    direction: Tensor
    factor: float
    adjoint: State
    lr: Tensor | None

    def __repr__(self) -> str:
        return short_repr(self)


class Descent(Protocol):
    """A rule of training: `Plain`, `Momentum` or `Adam`."""

    @property
    def decay(self) -> float:
        """w of a weight decay that is part of the gradient: g = dloss/dtheta + w theta. `unroll` adds it."""
        ...

    @property
    def reads_gradient(self) -> bool:
        """Whether `pull` needs the gradient of the step, which is then stored: P numbers for each step."""
        ...

    def start(self, theta: Tensor) -> State:
        """The state before the first step from theta (P,)."""
        ...

    def step(self, state: State, gradient: Tensor, lr: Tensor) -> State:
        """The state after one step with this gradient (P,) and step size (a scalar), differentiable in all of them."""
        ...

    def pull(self, step: Step, adjoint: State) -> Pull:
        """The derivative of a scalar after the step, `adjoint`, taken back through the step, without a graph."""
        ...


@dataclass(frozen=True)
class Plain:
    """Gradient descent: theta' = theta - lr g. It remembers nothing.

    decay: w of the weight decay in g = dloss/dtheta + w theta.

    >>> Plain().step(State(torch.ones(2)), torch.ones(2), torch.tensor(0.5)).theta
    tensor([0.5000, 0.5000])
    """

    decay: float = 0.0
    reads_gradient = False

    def start(self, theta: Tensor) -> State:
        """The state before the first step from theta (P,)."""
        return State(theta)

    def step(self, state: State, gradient: Tensor, lr: Tensor) -> State:
        """The state after one step; see `Descent`."""
        return State(state.theta - lr * gradient, (), state.steps + 1)

    def pull(self, step: Step, adjoint: State) -> Pull:
        """dL/dg = -lr dL/dtheta'; see `Descent`."""
        return Pull(adjoint.theta, -step.lr, adjoint, None)


@dataclass(frozen=True)
class Momentum:
    """torch.optim.SGD with momentum: m' = rho m + g; theta' = theta - lr m', or theta - lr (g + rho m') (Nesterov).

    With an adjoint (lambda, mu) of (theta', m'), mu becomes mu - lr lambda, which is dL/dg, and goes on as rho mu. For
    Nesterov it becomes mu - lr rho lambda, and dL/dg is that less lr lambda.

    rho:      Between 0 and 1. At 0 every bit is that of `Plain`.
    nesterov: Whether the step looks ahead (Sutskever et al. 2013, in torch's form).
    decay:    w of the weight decay in g = dloss/dtheta + w theta.

    >>> momentum = Momentum(0.5)
    >>> once = momentum.step(momentum.start(torch.zeros(1)), torch.ones(1), torch.tensor(1.0))
    >>> momentum.step(once, torch.ones(1), torch.tensor(1.0)).theta  # 1, then 1.5
    tensor([-2.5000])
    """

    rho: float = 0.9
    nesterov: bool = False
    decay: float = 0.0
    reads_gradient = False

    def start(self, theta: Tensor) -> State:
        """The state before the first step from theta (P,), with a momentum of 0."""
        return State(theta, (torch.zeros_like(theta),))

    def step(self, state: State, gradient: Tensor, lr: Tensor) -> State:
        """The state after one step; see `Descent`."""
        momentum = self.rho * state.slots[0] + gradient
        change = gradient + self.rho * momentum if self.nesterov else momentum
        return State(state.theta - lr * change, (momentum,), state.steps + 1)

    def pull(self, step: Step, adjoint: State) -> Pull:
        """The adjoint of the formulas above; see `Descent`."""
        if not self.rho:
            return Pull(adjoint.theta, -step.lr, State(adjoint.theta, (torch.zeros_like(adjoint.theta),)), None)
        lambda_, (mu,) = adjoint.theta, adjoint.slots
        (before,), (change,) = step.before.slots, step.after.slots
        if self.nesterov:
            mu = mu - step.lr * self.rho * lambda_
            direction = mu - step.lr * lambda_
            change = change + self.rho * (change - before)  # g + rho m', since g = m' - rho m
        else:
            direction = mu = mu - step.lr * lambda_
        return Pull(direction, 1.0, State(lambda_, (self.rho * mu,)), -reproducible_dot(lambda_, change))


@dataclass(frozen=True)
class Adam:
    """torch.optim.Adam (Kingma & Ba 2015), and AdamW (Loshchilov & Hutter 2019) with a decoupled decay.

    m' = b1 m + (1 - b1) g; v' = b2 v + (1 - b2) g^2; theta' = (1 - lr omega) theta - lr / c1 m' / (s + eps) with
    s = sqrt(v' / c2), c1 = 1 - b1^t, c2 = 1 - b2^t and t steps, this one counted. Where v' = 0 the derivative of s is
    taken to be 0.

    b1, b2, eps: As in torch.
    decay:       w of the weight decay in g = dloss/dtheta + w theta, as in torch.optim.Adam.
    decoupled:   omega, the weight decay of torch.optim.AdamW.

    >>> adam = Adam()
    >>> adam.step(adam.start(torch.zeros(2)), torch.tensor([3.0, -0.1]), torch.tensor(0.5)).theta
    tensor([-0.5000,  0.5000])
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    decay: float = 0.0
    decoupled: float = 0.0
    reads_gradient = True

    def start(self, theta: Tensor) -> State:
        """The state before the first step from theta (P,), with moments of 0."""
        return State(theta, (torch.zeros_like(theta), torch.zeros_like(theta)))

    def step(self, state: State, gradient: Tensor, lr: Tensor) -> State:
        """The state after one step; see `Descent`."""
        first = self.b1 * state.slots[0] + (1 - self.b1) * gradient
        second = self.b2 * state.slots[1] + (1 - self.b2) * gradient.square()
        c1, c2 = self._corrections(state.steps + 1)
        theta = (1 - lr * self.decoupled) * state.theta if self.decoupled else state.theta
        theta = theta - lr / c1 * first / (_root(second / c2) + self.eps)
        return State(theta, (first, second), state.steps + 1)

    def pull(self, step: Step, adjoint: State) -> Pull:
        """The adjoint of the formulas above, elementwise; see `Descent`."""
        assert step.gradient is not None
        lambda_, (mu, nu), (first, second) = adjoint.theta, adjoint.slots, step.after.slots
        c1, c2 = self._corrections(step.after.steps)
        size, s = step.lr / c1, (second / c2).sqrt()
        weight = lambda_ / (s + self.eps)
        ratio = torch.where(s > 0, first / s, 0)  # before the small denominators, which would overflow in float32
        lr = -reproducible_dot(weight, first) / c1
        mu = mu - size * weight
        nu = nu + size / (2 * c2) * ratio * weight / (s + self.eps)
        direction = (1 - self.b1) * mu + 2 * (1 - self.b2) * nu * step.gradient
        if self.decoupled:
            lr = lr - self.decoupled * reproducible_dot(lambda_, step.before.theta)
            lambda_ = (1 - step.lr * self.decoupled) * lambda_
        return Pull(direction, 1.0, State(lambda_, (self.b1 * mu, self.b2 * nu)), lr)

    def _corrections(self, steps: int) -> tuple[float, float]:
        """c1 and c2 of the step with this number, counted from 1."""
        return 1 - self.b1**steps, 1 - self.b2**steps


def _root(x: Tensor) -> Tensor:
    """The square root of x >= 0, whose derivative autograd takes to be 0 at 0."""
    is_positive = x > 0
    return torch.where(is_positive, torch.where(is_positive, x, 1).sqrt(), 0)
