"""The student that is solved for, not trained: a linearised network's ridge regression, and its implicit gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.core.types import Batch
from limbeck.networks.flat import FlatModel
from limbeck.training.unroll import select_rows

CHUNK = 256  # images whose graph is kept at once; more of them are taken in parts, and computed again at every product
Pair = tuple[Tensor, Tensor]


@cache
def _forward_mode() -> None:
    """Let torch load what its first forward-mode derivative loads: that uses a part of torch that it has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.zeros(()),))


def linearised(model: FlatModel, theta0: Tensor, v: Tensor, images: Tensor) -> Tensor:
    """J(images) v, (n, classes): the network linearised in all parameters at theta0 (P,), without its own output there.

    RCIG's "centred" network (Loo et al. 2023): its features' kernel and its body's tangents are both in J, since the
    derivative in the last layer's weights is the features. Differentiable in v (P,) and in the images.
    """
    _forward_mode()
    tangent: Tensor = torch.func.jvp(lambda theta: model(theta, images), (theta0,), (v,))[1]
    return tangent


@dataclass(frozen=True, eq=False)
class System:
    """(J J^T + ridge I) for the Jacobian J, (n classes, P), of the logits of images (n, ...) in the parameters theta0.

    Over the images alone this is K_body + K_features (x) I + ridge I: symmetric, and positive definite.
    """

    model: FlatModel
    theta0: Tensor
    images: Tensor
    ridge: float
    chunk: int = CHUNK

    def _graph(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """theta, logits, their cotangent, and J^T of it: linear in the cotangent, so that one more pass back is J."""
        with torch.enable_grad():
            theta = self.theta0.detach().requires_grad_()
            logits = self.model(theta, images)
            cotangent = torch.zeros_like(logits, requires_grad=True)
            (pulled,) = torch.autograd.grad(logits, theta, cotangent, create_graph=True)
        return theta, logits, cotangent, pulled

    @cached_property
    def _whole(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self._graph(self.images)

    def push(self, v: Tensor) -> Tensor:
        """J v: (P,) -> (n, classes)."""
        if len(self.images) > self.chunk:
            with torch.no_grad():
                return torch.cat([linearised(self.model, self.theta0, v, x) for x in self.images.split(self.chunk)])
        _, _, cotangent, pulled = self._whole
        return torch.autograd.grad(pulled, cotangent, v, retain_graph=True)[0]

    def pull(self, a: Tensor) -> Tensor:
        """J^T a: (n, classes) -> (P,)."""
        if len(self.images) <= self.chunk:
            theta, logits, _, _ = self._whole
            return torch.autograd.grad(logits, theta, a, retain_graph=True)[0]
        total = torch.zeros_like(self.theta0)
        for images, part in zip(self.images.split(self.chunk), a.split(self.chunk)):
            theta = self.theta0.detach().requires_grad_()
            with torch.enable_grad():
                total += torch.autograd.grad(self.model(theta, images), theta, part)[0]
        return total

    def __call__(self, a: Tensor) -> Tensor:
        """(J J^T + ridge I) a, (n, classes)."""
        return self.push(self.pull(a)) + self.ridge * a

    @cached_property
    def factor(self) -> Tensor:
        """Cholesky factor of the system, (n classes, n classes) in float64, from the Jacobian row by row.

        J J^T is summed in the network's own precision, and in float64 only where rounding made that indefinite: at 10
        images of digits the image gradient was within 1e-5 of float64's. Filled with NaN where J is not finite.
        """
        rows = torch.func.vmap(
            torch.func.jacrev(lambda theta, image: self.model(theta, image[None])[0]), (None, 0), chunk_size=32
        )(self.theta0.detach(), self.images)
        jacobian = rows.flatten(0, 1)
        for precise in (jacobian, jacobian.double()):
            gram = (precise @ precise.T).double()
            gram.diagonal().add_(self.ridge)
            factor: Tensor
            factor, failed = torch.linalg.cholesky_ex(gram)
            if not failed:
                return factor
        return torch.full_like(gram, torch.nan)  # the loss is NaN, which the outer loop reports


class Solver(Protocol):
    """How the ridge regression and its adjoint are solved, for `System` A = J J^T + ridge I.

    forward: targets Y (n, classes) -> (v, alpha), exactly v = J^T alpha and A alpha = Y.
    adjoint: dL/dv = g (P,) -> (p, q), exactly A q = J g and p = g - J^T q. Then dL/dY = q, and dL/dimages is the
             derivative in the images of <alpha, J p> - <q, J v>, all four held fixed.
    """

    def forward(self, system: System, targets: Tensor) -> Pair: ...

    def adjoint(self, system: System, gradient: Tensor) -> Pair: ...


def conjugate_gradient(apply: Callable[[Tensor], Tensor], right: Tensor, tolerance: float, steps: int) -> Tensor:
    """x with apply(x) = right, for a symmetric positive definite `apply`, from x = 0 (Hestenes & Stiefel 1952).

    Ends when |right - apply(x)| <= tolerance |right|, or after `steps` products.

    >>> conjugate_gradient(lambda x: torch.tensor([2.0, 4.0]) * x, torch.tensor([2.0, 2.0]), 1e-6, 2)
    tensor([1.0000, 0.5000])
    """
    x, residual = torch.zeros_like(right), right.clone()
    direction, square = residual, residual.square().sum()
    limit = tolerance**2 * square
    for _ in range(steps):
        if square <= limit:
            break
        image = apply(direction)
        length = square / (direction * image).sum()
        x, residual = x + length * direction, residual - length * image
        before, square = square, residual.square().sum()
        direction = residual + square / before * direction
    return x


@dataclass(frozen=True)
class ConjugateGradient:
    """The dual by conjugate gradient: memory of one graph; with a tolerance, after `steps` products at the latest."""

    tolerance: float = 1e-3
    steps: int = 30

    def _solve(self, system: System, right: Tensor) -> Tensor:
        return conjugate_gradient(system, right, self.tolerance, self.steps)

    def forward(self, system: System, targets: Tensor) -> Pair:
        """(v, alpha)."""
        alpha = self._solve(system, targets)
        return system.pull(alpha), alpha

    def adjoint(self, system: System, gradient: Tensor) -> Pair:
        """(p, q)."""
        q = self._solve(system, system.push(gradient))
        return gradient - system.pull(q), q


@dataclass(frozen=True)
class Cholesky:
    """The dual exactly, by a factor that both solves share: memory n classes (P + n classes) numbers."""

    def _solve(self, system: System, right: Tensor) -> Tensor:
        column = right.reshape(-1, 1).double()
        return torch.cholesky_solve(column, system.factor).to(right).view_as(right)

    def forward(self, system: System, targets: Tensor) -> Pair:
        """(v, alpha)."""
        alpha = self._solve(system, targets)
        return system.pull(alpha), alpha

    def adjoint(self, system: System, gradient: Tensor) -> Pair:
        """(p, q)."""
        q = self._solve(system, system.push(gradient))
        return gradient - system.pull(q), q


HEAD = "classifier.weight"


@dataclass(frozen=True)
class PrimalAdam:
    """As the released code: a few Adam steps on delta, then on v of H v = g; the head exact at every delta.

    Without its defects (the head's tangent stays zero, and the last layer's kernel is not in the system), its tuning
    of both step sizes and its norm clipping: what is left is an approximation, kept for parity.
    lr_adjoint is of v over n classes, since the inner loss here is a sum: on ten digits 0.1 was best of 0.1, 1 and 10.
    Only for networks whose last layer is called `classifier`.
    """

    lr: float = 1e-3
    lr_adjoint: float = 0.1
    steps: int = 20

    def _body(self, system: System, v: Tensor) -> Tensor:
        """v without its part in the head's weights."""
        layout = system.model.layout
        parts = [torch.zeros_like(t) if n == HEAD else t for n, t in zip(layout.names, layout.split(v))]
        return layout.join(parts)

    def _head(self, system: System, v: Tensor) -> Tensor:
        return v - self._body(system, v)

    def _descend(self, start: Tensor, gradient: Callable[[Tensor], Tensor], lr: float) -> Tensor:
        x = start.clone()
        optimiser = torch.optim.Adam([x], lr)
        for _ in range(self.steps):
            x.grad = gradient(x)
            optimiser.step()
        return x

    def _ridge(self, system: System) -> Callable[[Tensor], Tensor]:
        """(K + ridge I)^-1 of features' kernel K (n, n), applied to (n, classes)."""
        with torch.no_grad():
            features = system.model.features(system.theta0, system.images)
        kernel = (features @ features.T).double()
        kernel.diagonal().add_(system.ridge)
        factor = torch.linalg.cholesky(kernel)
        return lambda right: torch.cholesky_solve(right.double(), factor).to(right)

    def forward(self, system: System, targets: Tensor) -> Pair:
        """(v, alpha)."""
        inverse = self._ridge(system)

        def alpha(delta: Tensor) -> Tensor:
            return inverse(targets - system.push(delta))

        def gradient(delta: Tensor) -> Tensor:
            return delta - self._body(system, system.pull(alpha(delta)))

        delta = self._descend(torch.zeros_like(system.theta0), gradient, self.lr)
        dual = alpha(delta)
        return delta + self._head(system, system.pull(dual)), dual

    def adjoint(self, system: System, gradient: Tensor) -> Pair:
        """(p, q)."""
        inverse = self._ridge(system)
        head = system.push(self._head(system, gradient))
        total = self._body(system, gradient - system.pull(inverse(head)))

        def residual(u: Tensor) -> Tensor:
            return system.ridge * (u + self._body(system, system.pull(inverse(system.push(u))))) - total

        u = self._descend(torch.zeros_like(system.theta0), residual, self.lr_adjoint)
        q = inverse(system.ridge * system.push(u) + head)
        return system.ridge * u + self._head(system, gradient - system.pull(q)), q


@dataclass(frozen=True)
class Implicit:
    """Differentiate the solution, not the way to it: one more solve of the same system (implicit function theorem)."""

    solver: Solver = ConjugateGradient()

    def solve(self, system: System, targets: Tensor, through: Tensor | None = None) -> Tensor:
        """v (P,), differentiable in system.images and targets; see `solve`."""
        v: Tensor = _Solved.apply(self.solver, system, through, system.images, targets)  # type: ignore[no-untyped-call]
        return v


class _Solved(torch.autograd.Function):
    """The autograd node of a solved student: inputs images and targets."""

    @staticmethod
    def forward(
        ctx: Any, solver: Solver, system: System, through: Tensor | None, images: Tensor, targets: Tensor
    ) -> Tensor:
        held = System(system.model, system.theta0.detach(), images.detach(), system.ridge, system.chunk)
        v, alpha = solver.forward(held, targets.detach())
        ctx.solver, ctx.system, ctx.through, ctx.solution = solver, held, through, (v, alpha)
        return v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        system, (v, alpha) = ctx.system, ctx.solution
        p, q = ctx.solver.adjoint(system, gradient)
        images = _image_gradient(system, ctx.through, (alpha, p), (q, v)) if ctx.needs_input_grad[3] else None
        return None, None, None, images, q if ctx.needs_input_grad[4] else None


def _image_gradient(system: System, through: Tensor | None, plus: Pair, minus: Pair) -> Tensor:
    """d/dimages of <alpha, J p> - <q, J v>: a sum over images, so a random part of it, scaled up, is unbiased."""
    count = len(system.images)
    rows = torch.arange(count, device=system.images.device) if through is None else through
    total = torch.zeros_like(system.images)
    for part in rows.split(system.chunk):
        images = system.images[part].requires_grad_()
        with torch.enable_grad():
            theta = system.theta0.detach().requires_grad_()
            logits = system.model(theta, images)
            value = torch.zeros_like(logits[0, 0])
            for sign, (a, direction) in ((1, plus), (-1, minus)):
                (pulled,) = torch.autograd.grad(logits, theta, a[part], create_graph=True)
                value = value + sign * torch.dot(pulled, direction)
        total[part] = torch.autograd.grad(value, images)[0] * (count / len(rows))
    return total


def solve(
    model: FlatModel,
    theta0: Tensor,
    batch: Batch,
    ridge: float,
    adjoint: Implicit | None = None,
    through: Tensor | None = None,
) -> Tensor:
    """v (P,) that minimises 1/2 |Y - J(S) v|^2 + ridge/2 |v|^2, for the network linearised at theta0; see `linearised`.

    This is RCIG's inner problem whole: it solves the last layer for every delta (the body's part of v), which is
    elimination of one block of variables, and changes neither the minimum nor its derivative.

    batch:   images S (n, ...) and float targets Y (n, classes), not probabilities; `rows` are selected, a seed is not
             used. v is differentiable in both, and not in theta0.
    adjoint: which solver is used for v and for its gradient.
    through: rows whose image gradient is computed, scaled up by n / len(rows): over random rows the estimate is
             unbiased. The rest get zero. Targets get their whole gradient in any case.
    Raises ValueError for targets that are not (n, classes) floats and for a ridge that is not above 0.

    >>> from limbeck.networks.registry import ModelConfig, flat_model
    >>> from limbeck.training import cross_entropy
    >>> model = flat_model(ModelConfig(name="widening", width=2), (1, 8, 8), 3)
    >>> theta0, x, y = model.init(0), torch.ones(2, 1, 8, 8, requires_grad=True), torch.eye(3)[:2] - 1 / 3
    >>> real = torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    >>> v = solve(model, theta0, Batch(x, y), ridge=0.1, adjoint=Implicit(Cholesky()))
    >>> cross_entropy(linearised(model, theta0, v, real[0]), real[1]).backward()
    >>> x.grad.shape
    torch.Size([2, 1, 8, 8])
    """
    chosen = select_rows(batch)
    targets = chosen.labels
    if not targets.dtype.is_floating_point or targets.ndim != 2 or len(targets) != len(chosen.images):
        raise ValueError(f"targets are floats (n, classes) of n images, not {targets.dtype} {tuple(targets.shape)}")
    if not ridge > 0:
        raise ValueError(f"ridge has to be above 0, not {ridge}")
    system = System(model, theta0, chosen.images, ridge)
    return (adjoint or Implicit()).solve(system, targets, through)
