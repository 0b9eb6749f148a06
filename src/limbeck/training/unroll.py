"""The student: N steps of training, and how their gradient is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.core.errors import UserError
from limbeck.core.types import Batch, PureLoss
from limbeck.derivatives.autograd import Loss, NeedsGrad, WithDecay, as_loss
from limbeck.training.descent import Descent, Plain, State, Step

PLAIN = Plain()
Path = Sequence[Tensor]
"""The parameters (P,) before the first step and after every one: N + 1 vectors without a graph."""

Choice = Sequence[int] | Callable[[Path], Sequence[int]]
"""Which vectors of the path an unroll returns: their indices from 0 to N, or a function that chooses them."""


class Adjoint(Protocol):
    """How the gradient of an unroll is computed."""

    def unroll(
        self, loss: Loss, start: State, batches: list[Batch], lr: Tensor, descent: Descent, choice: Choice | None
    ) -> Tensor:
        """theta_N (P,) after one step per batch, with step sizes lr (N,), or the chosen parameters; see `unroll`."""
        ...


def select_rows(batch: Batch) -> Batch:
    """The batch as the loss sees it: only the images and labels of its `rows`."""
    if batch.rows is None:
        return batch
    return Batch(batch.images[batch.rows], batch.labels[batch.rows], batch.seed)


@dataclass(frozen=True)
class Backprop:
    """Keeps the whole graph of all steps, as MTT does (Cazenavette et al. 2022): exact; memory grows with every step.

    >>> x = torch.ones(1, 1, 1, 1, requires_grad=True)
    >>> loss = lambda theta, batch: ((theta - batch.images.mean()) ** 2).sum()
    >>> theta = unroll(loss, torch.zeros(2), [Batch(x, torch.zeros(1, 1))] * 3, lr=0.25, adjoint=Backprop())
    >>> theta.sum().backward(); x.grad.item()
    1.75
    """

    def unroll(
        self, loss: Loss, start: State, batches: list[Batch], lr: Tensor, descent: Descent, choice: Choice | None
    ) -> Tensor:
        """theta_N (P,) or the chosen parameters, whose graph holds every step; see `unroll`."""
        state = start if start.theta.requires_grad else start._replace(theta=start.theta.detach().requires_grad_())
        path = [state.theta]
        with torch.enable_grad():  # the steps need their own gradients, even where nothing asks for that of the result
            for batch, step_size in zip(batches, lr):
                value = loss(state.theta, select_rows(batch))
                (gradient,) = torch.autograd.grad(value, state.theta, create_graph=True)
                state = descent.step(state, gradient, step_size)
                path.append(state.theta)
            if choice is None:
                return state.theta
            return torch.stack([path[i] for i in _resolve_choice(choice, [theta.detach() for theta in path])])


@dataclass(frozen=True)
class Replay:
    """Keeps only the state of each step, and recomputes the steps backwards: one step's graph at a time.

    With theta_{i+1} = theta_i - lr_i g_i, the adjoint lambda starts at dL/dtheta_N and goes back by
    lambda_i = lambda_{i+1} - lr_i H_i lambda_{i+1}; every gradient of a step is -lr_i times the derivative of
    lambda . g_i, and that of lr_i is -lambda . g_i. Rules with a momentum have an adjoint of that too (`Descent.pull`),
    and need one Hessian-vector product for each step all the same. This equals full back-propagation to rounding.

    curvature:  False leaves out the Hessian (H = 0), which for `Plain` is TESLA's gradient (Cui et al. 2023): an
                approximation. For other rules, what they do to momentum and step size stays exact.
    image_gain: Factor on the image gradient; the released TESLA and MCT code computes one half of what it derives.

    Raises UserError in the backward pass where a step's gradient differs from that of the forward pass, so that the
    loss is no pure function.

    >>> x = torch.ones(1, 1, 1, 1, requires_grad=True)
    >>> loss = lambda theta, batch: ((theta - batch.images.mean()) ** 2).sum()
    >>> theta = unroll(loss, torch.zeros(2), [Batch(x, torch.zeros(1, 1))] * 3, lr=0.25, adjoint=Replay(False))
    >>> theta.sum().backward(); x.grad.item()
    3.0
    """

    curvature: bool = True
    image_gain: float = 1.0

    def unroll(
        self, loss: Loss, start: State, batches: list[Batch], lr: Tensor, descent: Descent, choice: Choice | None
    ) -> Tensor:
        """theta_N (P,) or the chosen parameters, differentiable in all inputs with a graph; see `unroll`."""
        leaves: dict[int, Tensor] = {}
        for batch in batches:
            for tensor in (batch.images, batch.labels):
                leaves.setdefault(id(tensor), tensor)
        index = {key: position for position, key in enumerate(leaves)}
        steps = [_Inputs(index[id(b.images)], index[id(b.labels)], b.seed, b.rows) for b in batches]
        run = _Run(self, loss, descent, steps, start.steps, choice, len(start.slots))
        result: Tensor = _Replayed.apply(run, lr, start.theta, *start.slots, *leaves.values())  # type: ignore[no-untyped-call]
        return result


class _Inputs(NamedTuple):
    """The inputs of a step: the indices of its image and label tensors among the leaves, its seed and its rows."""

    images: int
    labels: int
    seed: int | None
    rows: Tensor | None

    def batch(self, leaves: Sequence[Tensor]) -> Batch:
        """The batch as the loss sees it, without a graph."""
        return select_rows(Batch(leaves[self.images].detach(), leaves[self.labels].detach(), self.seed, self.rows))


class _Run(NamedTuple):
    """What a replayed unroll is, besides its tensors. first: the steps taken before; slots: how many the rule has."""

    replay: Replay
    loss: Loss
    descent: Descent
    steps: list[_Inputs]
    first: int
    choice: Choice | None
    slots: int


class _Replayed(torch.autograd.Function):
    """The autograd node of a replayed unroll: inputs lr (N,), theta, slots, and each distinct image and label once."""

    @staticmethod
    def forward(ctx: Any, run: _Run, lr: Tensor, theta: Tensor, *tensors: Tensor) -> Tensor:
        slots, leaves = tensors[: run.slots], tensors[run.slots :]
        states = [State(theta.detach().clone(), tuple(slot.detach().clone() for slot in slots), run.first)]
        gradients: list[Tensor | None] = []
        last_gradient = None
        for inputs, step_size in zip(run.steps, lr):
            last_gradient = run.loss.gradient(states[-1].theta, inputs.batch(leaves))
            states.append(run.descent.step(states[-1], last_gradient, step_size))
            gradients.append(last_gradient if run.descent.reads_gradient else None)
        indices = [len(run.steps)]
        if run.choice is not None:
            indices = _resolve_choice(run.choice, [state.theta for state in states])
        end = max(indices)  # later steps have no derivative
        ctx.run, ctx.states, ctx.gradients, ctx.indices = run, states[: end + 1], gradients[:end], indices
        ctx.last_gradient = last_gradient if end == len(run.steps) and run.loss.must_verify_repeats else None
        ctx.save_for_backward(lr, *leaves)
        if run.choice is None:
            return states[-1].theta.clone()  # what is stored must not be the result, which refers to what is stored
        return torch.stack([states[i].theta for i in indices])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, derivative: Tensor) -> tuple[Any, ...]:
        run, (lr, *leaves) = ctx.run, ctx.saved_tensors
        _, needs_lr, needs_theta, *needs = ctx.needs_input_grad
        needs_leaf = needs[run.slots :]
        totals = [torch.zeros_like(leaf) if is_needed else None for leaf, is_needed in zip(leaves, needs_leaf)]
        lr_total, sizes = torch.zeros_like(lr), lr.tolist()  # one transfer from a GPU
        parts = derivative[None] if run.choice is None else derivative
        end = max(ctx.indices)
        adjoint = run.descent.start(_sum_parts(parts, ctx.indices, end))  # nothing depends on the last slots
        for i in reversed(range(end)):
            inputs, before = run.steps[i], ctx.states[i]
            pull = run.descent.pull(Step(before, ctx.states[i + 1], sizes[i], ctx.gradients[i]), adjoint)
            needs_product = run.replay.curvature and (i > 0 or needs_theta)
            needs_grad = NeedsGrad(needs_product, needs_leaf[inputs.images], needs_leaf[inputs.labels])
            second = run.loss.hvp(before.theta, inputs.batch(leaves), pull.direction, needs_grad)
            if i == len(run.steps) - 1 and ctx.last_gradient is not None:
                _verify_repeat(second.directional, pull.direction, ctx.last_gradient)
            lr_total[i] = -second.directional if pull.lr is None else pull.lr
            _accumulate(totals[inputs.images], inputs.rows, second.images, pull.factor * run.replay.image_gain)
            _accumulate(totals[inputs.labels], inputs.rows, second.labels, pull.factor)
            theta = pull.adjoint.theta if second.theta is None else pull.adjoint.theta + pull.factor * second.theta
            if i in ctx.indices:
                theta = theta + _sum_parts(parts, ctx.indices, i)
            adjoint = pull.adjoint._replace(theta=theta)
        return (None, lr_total if needs_lr else None, adjoint.theta if needs_theta else None, *adjoint.slots, *totals)


def _sum_parts(parts: Tensor, indices: Sequence[int], index: int) -> Tensor:
    """The derivative (P,) in the parameters after step `index`, which may have been chosen several times."""
    total: Tensor = reduce(torch.add, [part for part, i in zip(parts, indices) if i == index])
    return total


def _resolve_choice(choice: Choice, path: Path) -> list[int]:
    """The indices that are chosen from this path; ValueError where there is none, or one that is not on the path."""
    indices = list(choice(path) if callable(choice) else choice)
    if not indices or not all(0 <= i < len(path) for i in indices):
        raise ValueError(f"the choice {indices} of parameters on a path; expected indices from 0 to {len(path) - 1}")
    return indices


REPEAT_TOLERANCE = 1e-3
"""Rounding gives up to 1e-8 in float32; dropout of 0.1 before the last layer 1e-3 to 5e-3."""


def _verify_repeat(directional: Tensor, direction: Tensor, gradient: Tensor) -> None:
    """Raise UserError where direction . (gradient computed again) = `directional` is not direction . gradient.

    It costs one scalar product. Weak randomness, such as dropout of 0.01, can pass; `FlatModel` refuses that exactly.
    """
    if (directional - torch.dot(direction, gradient)).abs() > REPEAT_TOLERANCE * direction.norm() * gradient.norm():
        raise UserError(
            "the loss gave another gradient when a student step was computed again, so it is no pure function of "
            "(theta, batch): take out dropout and state, and draw random numbers from batch.seed alone, or use "
            "adjoint=Backprop(), which computes nothing again."
        )


def _accumulate(total: Tensor | None, rows: Tensor | None, derivative: Tensor | None, factor: float) -> None:
    """total[rows] += factor * derivative, in place; a loss that does not depend on the leaf adds nothing."""
    if total is None or derivative is None:
        return
    if rows is None:
        total.add_(derivative, alpha=factor)
    else:
        total.index_add_(0, rows, derivative, alpha=factor)


def _step_sizes(lr: Tensor | float | Sequence[float], theta: Tensor, steps: int) -> Tensor:
    """The step sizes (N,) of `steps` steps, of one number or of one per step; ValueError for any other shape."""
    sizes = torch.as_tensor(lr, dtype=theta.dtype, device=theta.device)
    if sizes.ndim == 0 or sizes.numel() == 1:
        return sizes.reshape(1).expand(steps)
    if sizes.shape != (steps,):
        raise ValueError(f"lr has shape {tuple(sizes.shape)}; expected one number or one per step, ({steps},)")
    return sizes


def _add_decay(loss: Loss | PureLoss, descent: Descent) -> Loss:
    """The loss whose gradient the steps of a rule take: a pure one, with the rule's weight decay."""
    pure = as_loss(loss).pure
    return WithDecay(pure, descent.decay) if descent.decay else pure


def unroll(
    loss: Loss | PureLoss,
    start: Tensor | State,
    batches: Sequence[Batch],
    lr: Tensor | float | Sequence[float],
    adjoint: Adjoint | None = None,
    descent: Descent = PLAIN,
    choice: Choice | None = None,
) -> Tensor:
    """Train from `start`, one step per batch, and return the parameters theta_N (P,).

    loss:    Any pure function (theta (P,), batch) -> scalar, such as `limbeck.CrossEntropy`, whose derivatives are then
             computed by autograd; or a `Loss`, which computes them itself. Running statistics are not updated.
    start:   Parameters (P,), or a `State`, which goes on where a training stopped (`advance`). The result is
             differentiable in the parameters and in the rule's slots.
    batches: N batches. The result is differentiable in their images and (floating-point) labels.
    lr:      The step size, one number or one per step (N,). The result is differentiable in it.
    adjoint: How that gradient is computed: `Replay()` (exact, the default), `Backprop()`, `Replay(curvature=False)`.
    descent: The rule of a step: `Plain()`, `Momentum()` or `Adam()`, which may have a weight decay.
    choice:  Indices of steps from 0 (the start) to N, or a function from the path, which is a list of N + 1 parameters
             without a graph, to such indices. The result is then the parameters there, (k, P) in this order, and steps
             after the last index are not differentiated. None: theta_N.
    Raises ValueError where `lr` has neither one element nor one per step, and for a choice that is not on the path.

    >>> quadratic = lambda theta, batch: ((theta - batch.images.mean()) ** 2).sum()
    >>> x = torch.ones(1, 1, 1, 1, requires_grad=True)
    >>> theta = unroll(quadratic, torch.zeros(2), [Batch(x, torch.zeros(1, 1))] * 3, lr=0.25)
    >>> theta.sum().backward(); theta.tolist(), x.grad.item()
    ([0.875, 0.875], 1.75)
    >>> unroll(quadratic, torch.zeros(1), [Batch(x, torch.zeros(1, 1))] * 3, lr=0.25, choice=[1, 3]).tolist()
    [[0.5], [0.875]]
    """
    steps, state = list(batches), start if isinstance(start, State) else descent.start(start)
    sizes = _step_sizes(lr, state.theta, len(steps))
    return (adjoint or Replay()).unroll(_add_decay(loss, descent), state, steps, sizes, descent, choice)


def _detached_state(start: Tensor | State, descent: Descent) -> State:
    state = start if isinstance(start, State) else descent.start(start)
    return State(state.theta.detach(), tuple(slot.detach() for slot in state.slots), state.steps)


def walk(
    loss: Loss | PureLoss,
    start: Tensor | State,
    batches: Iterable[Batch],
    lr: Tensor | float | Sequence[float],
    descent: Descent = PLAIN,
) -> Iterator[tuple[State, Tensor]]:
    """Yield the state after every step of a training without a graph, and the step's gradient (P,); see `unroll`."""
    steps, state = list(batches), _detached_state(start, descent)
    loss = _add_decay(loss, descent)
    for batch, step_size in zip(steps, _step_sizes(lr, state.theta, len(steps)).detach()):
        batch = select_rows(batch._replace(images=batch.images.detach(), labels=batch.labels.detach()))
        with torch.no_grad():
            gradient = loss.gradient(state.theta, batch)
            state = descent.step(state, gradient, step_size)
        yield state, gradient


def advance(
    loss: Loss | PureLoss,
    start: Tensor | State,
    batches: Iterable[Batch],
    lr: Tensor | float | Sequence[float],
    descent: Descent = PLAIN,
) -> State:
    """The state after one step per batch, without a graph; see `unroll`, which can go on from it: a window.

    >>> quadratic = lambda theta, batch: (theta**2).sum() / 2
    >>> advance(quadratic, torch.ones(1), [Batch(torch.zeros(1, 1, 1, 1), torch.zeros(1))] * 3, lr=0.5).theta
    tensor([0.1250])
    """
    last = deque(walk(loss, start, batches, lr, descent), maxlen=1)
    return last[0][0] if last else _detached_state(start, descent)
