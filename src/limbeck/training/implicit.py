"""The student as a solution: the ridge regression of a linearised network, and its implicit gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.core.short_repr import short_repr
from limbeck.core.types import Batch
from limbeck.networks.flat import FlatModel
from limbeck.training.unroll import select_rows

CHUNK = 256  # images whose graph is stored; larger sets are processed in parts, and recomputed for every product
Pair = tuple[Tensor, Tensor]


@cache
def _load_forward_mode() -> None:
    """Run a first forward-mode derivative, whose imports raise a DeprecationWarning inside torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.zeros(()),))


def linearised(model: FlatModel, theta0: Tensor, v: Tensor, images: Tensor) -> Tensor:
    """J(images) v (n, classes): the network linearised in all parameters at theta0 (P,), without its own output there.

    model:  The network; J is the Jacobian of its logits in the parameters.
    v:      The direction (P,).
    images: (n, channels, height, width).

    This is RCIG's "centred" network (Loo et al. 2023). Both its features' kernel and its body's tangents are in J,
    because the derivative in the last layer's weights is the features. It is differentiable in v and in the images.

    >>> model = FlatModel(lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), (1, 2, 2))
    >>> v, images = model.init(0), torch.ones(3, 1, 2, 2)
    >>> bool(torch.allclose(linearised(model, torch.zeros(10), v, images), model(v, images)))  # it is linear already
    True
    """
    _load_forward_mode()
    tangent: Tensor = torch.func.jvp(lambda theta: model(theta, images), (theta0,), (v,))[1]
    return tangent


@dataclass(frozen=True, eq=False)
class System:
    """The symmetric positive definite system J J^T + ridge I.

    J (n classes, P) is the Jacobian of the logits of images (n, ...) in the parameters theta0 (P,). In terms of kernels
    it is K_body + K_features (x) I + ridge I.
    """

    __repr__ = short_repr

    model: FlatModel
    theta0: Tensor
    images: Tensor
    ridge: float
    chunk: int = CHUNK

    def _graph(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """theta, logits, a cotangent, and J^T cotangent: linear in the cotangent, so that its own VJP is J."""
        with torch.enable_grad():
            theta = self.theta0.detach().requires_grad_()
            logits = self.model(theta, images)
            cotangent = torch.zeros_like(logits, requires_grad=True)
            (vjp,) = torch.autograd.grad(logits, theta, cotangent, create_graph=True)
        return theta, logits, cotangent, vjp

    @cached_property
    def _stored_graph(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self._graph(self.images)

    def jvp(self, v: Tensor) -> Tensor:
        """J v: (P,) -> (n, classes)."""
        if len(self.images) > self.chunk:
            with torch.no_grad():
                return torch.cat([linearised(self.model, self.theta0, v, x) for x in self.images.split(self.chunk)])
        _, _, cotangent, vjp = self._stored_graph
        return torch.autograd.grad(vjp, cotangent, v, retain_graph=True)[0]

    def vjp(self, a: Tensor) -> Tensor:
        """J^T a: (n, classes) -> (P,)."""
        if len(self.images) <= self.chunk:
            theta, logits, _, _ = self._stored_graph
            return torch.autograd.grad(logits, theta, a, retain_graph=True)[0]
        total = torch.zeros_like(self.theta0)
        for images, part in zip(self.images.split(self.chunk), a.split(self.chunk)):
            theta = self.theta0.detach().requires_grad_()
            with torch.enable_grad():
                total += torch.autograd.grad(self.model(theta, images), theta, part)[0]
        return total

    def __call__(self, a: Tensor) -> Tensor:
        """(J J^T + ridge I) a, (n, classes)."""
        return self.jvp(self.vjp(a)) + self.ridge * a

    @cached_property
    def factor(self) -> Tensor:
        """The Cholesky factor (n classes, n classes) of the system in float64.

        J J^T is computed in the network's own precision, and in float64 only where rounding made it indefinite: at 10
        images of digits the image gradient was within 1e-5 of float64's. The factor is NaN where J is not finite.
        """
        jacobians = torch.func.vmap(
            torch.func.jacrev(lambda theta, image: self.model(theta, image[None])[0]), (None, 0), chunk_size=32
        )(self.theta0.detach(), self.images)
        jacobian = jacobians.flatten(0, 1)
        for rows in (jacobian, jacobian.double()):
            gram = (rows @ rows.T).double()
            gram.diagonal().add_(self.ridge)
            factor: Tensor
            factor, failed = torch.linalg.cholesky_ex(gram)
            if not failed:
                return factor
        return torch.full_like(gram, torch.nan)  # the loss is then NaN, which the outer loop reports


class Solver(Protocol):
    """How the ridge regression and its adjoint are solved, for the `System` A = J J^T + ridge I."""

    def forward(self, system: System, targets: Tensor) -> Pair:
        """Targets Y (n, classes) -> (v, alpha), which solve A alpha = Y and v = J^T alpha."""
        ...

    def adjoint(self, system: System, gradient: Tensor) -> Pair:
        """dL/dv = g (P,) -> (p, q), which solve A q = J g and p = g - J^T q.

        Then dL/dY = q, and dL/dimages is the derivative in the images of <alpha, J p> - <q, J v> at fixed v, alpha, p
        and q.
        """
        ...


def conjugate_gradient(matvec: Callable[[Tensor], Tensor], rhs: Tensor, tolerance: float, steps: int) -> Tensor:
    """Solve matvec(x) = rhs for a symmetric positive definite `matvec`, from x = 0 (Hestenes & Stiefel 1952).

    It ends when |rhs - matvec(x)| <= tolerance |rhs|, or after `steps` products.

    >>> conjugate_gradient(lambda x: torch.tensor([2.0, 4.0]) * x, torch.tensor([2.0, 2.0]), 1e-6, 2)
    tensor([1.0000, 0.5000])
    """
    x, residual = torch.zeros_like(rhs), rhs.clone()
    direction, square = residual, residual.square().sum()
    limit = tolerance**2 * square
    for _ in range(steps):
        if square <= limit:
            break
        product = matvec(direction)
        length = square / (direction * product).sum()
        x, residual = x + length * direction, residual - length * product
        previous, square = square, residual.square().sum()
        direction = residual + square / previous * direction
    return x


class _DualSolver:
    """Solves for alpha and q, and follows with v and p: a subclass solves A x = rhs for (n, classes)."""

    def _solve(self, system: System, rhs: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, system: System, targets: Tensor) -> Pair:
        """(v, alpha); see `Solver`."""
        alpha = self._solve(system, targets)
        return system.vjp(alpha), alpha

    def adjoint(self, system: System, gradient: Tensor) -> Pair:
        """(p, q); see `Solver`."""
        q = self._solve(system, system.jvp(gradient))
        return gradient - system.vjp(q), q


@dataclass(frozen=True)
class ConjugateGradient(_DualSolver):
    """Solves the dual by conjugate gradient, which needs the memory of one graph.

    tolerance: Of the residual, relative to the right-hand side.
    steps:     At most this many products.
    """

    tolerance: float = 1e-3
    steps: int = 30

    def _solve(self, system: System, rhs: Tensor) -> Tensor:
        return conjugate_gradient(system, rhs, self.tolerance, self.steps)


@dataclass(frozen=True)
class Cholesky(_DualSolver):
    """Solves the dual exactly by a factor that both solves share, which needs n classes (P + n classes) numbers."""

    def _solve(self, system: System, rhs: Tensor) -> Tensor:
        column = rhs.reshape(-1, 1).double()
        return torch.cholesky_solve(column, system.factor).to(rhs).view_as(rhs)


HEAD = "classifier.weight"


@dataclass(frozen=True)
class PrimalAdam:
    """The released code's solver: a few Adam steps on delta, then on v of H v = g; the head is exact at every delta.

    It leaves out that code's defects (the head's tangent stays zero, and the last layer's kernel is not in the system),
    its tuning of both step sizes and its norm clipping. The result is an approximation, for comparison with that code.
    It needs a network whose last layer is called `classifier`.

    lr:         Step size of delta.
    lr_adjoint: Step size of v. It is relative to n classes, because the inner loss is a sum here: on ten digits 0.1 was
                best of 0.1, 1 and 10.
    steps:      Adam steps of each.
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

    def _adam(self, start: Tensor, gradient: Callable[[Tensor], Tensor], lr: float) -> Tensor:
        x = start.clone()
        optimiser = torch.optim.Adam([x], lr)
        for _ in range(self.steps):
            x.grad = gradient(x)
            optimiser.step()
        return x

    def _ridge(self, system: System) -> Callable[[Tensor], Tensor]:
        """The function that applies (K + ridge I)^-1 to (n, classes), for the features' kernel K (n, n)."""
        with torch.no_grad():
            features = system.model.features(system.theta0, system.images)
        kernel = (features @ features.T).double()
        kernel.diagonal().add_(system.ridge)
        factor = torch.linalg.cholesky(kernel)
        return lambda rhs: torch.cholesky_solve(rhs.double(), factor).to(rhs)

    def forward(self, system: System, targets: Tensor) -> Pair:
        """(v, alpha); see `Solver`."""
        inverse = self._ridge(system)

        def alpha(delta: Tensor) -> Tensor:
            return inverse(targets - system.jvp(delta))

        def gradient(delta: Tensor) -> Tensor:
            return delta - self._body(system, system.vjp(alpha(delta)))

        delta = self._adam(torch.zeros_like(system.theta0), gradient, self.lr)
        dual = alpha(delta)
        return delta + self._head(system, system.vjp(dual)), dual

    def adjoint(self, system: System, gradient: Tensor) -> Pair:
        """(p, q); see `Solver`."""
        inverse = self._ridge(system)
        head = system.jvp(self._head(system, gradient))
        total = self._body(system, gradient - system.vjp(inverse(head)))

        def residual(u: Tensor) -> Tensor:
            return system.ridge * (u + self._body(system, system.vjp(inverse(system.jvp(u))))) - total

        u = self._adam(torch.zeros_like(system.theta0), residual, self.lr_adjoint)
        q = inverse(system.ridge * system.jvp(u) + head)
        return system.ridge * u + self._head(system, gradient - system.vjp(q)), q


@dataclass(frozen=True)
class Implicit:
    """Computes the gradient of a solution by one more solve of the same system (the implicit function theorem).

    solver: Of the regression and of its adjoint: `ConjugateGradient`, `Cholesky` or `PrimalAdam`. See `solve` for an
            example.

    >>> Implicit(Cholesky()).solver
    Cholesky()
    """

    solver: Solver = ConjugateGradient()

    def solve(self, system: System, targets: Tensor, grad_rows: Tensor | None = None) -> Tensor:
        """v (P,), differentiable in system.images and targets; see `solve`."""
        v: Tensor = _Solution.apply(self.solver, system, grad_rows, system.images, targets)  # type: ignore[no-untyped-call]
        return v


class _Solution(torch.autograd.Function):
    """The autograd node of a solution; its inputs are images and targets."""

    @staticmethod
    def forward(
        ctx: Any, solver: Solver, system: System, grad_rows: Tensor | None, images: Tensor, targets: Tensor
    ) -> Tensor:
        system = System(system.model, system.theta0.detach(), images.detach(), system.ridge, system.chunk)
        v, alpha = solver.forward(system, targets.detach())
        ctx.solver, ctx.system, ctx.grad_rows, ctx.solution = solver, system, grad_rows, (v, alpha)
        return v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        system, (v, alpha) = ctx.system, ctx.solution
        p, q = ctx.solver.adjoint(system, gradient)
        images = _image_gradient(system, ctx.grad_rows, (alpha, p), (q, v)) if ctx.needs_input_grad[3] else None
        return None, None, None, images, q if ctx.needs_input_grad[4] else None


def _image_gradient(system: System, grad_rows: Tensor | None, plus: Pair, minus: Pair) -> Tensor:
    """d/dimages of <alpha, J p> - <q, J v>: a sum over images, so that a random part of it, scaled up, is unbiased."""
    count = len(system.images)
    rows = torch.arange(count, device=system.images.device) if grad_rows is None else grad_rows
    total = torch.zeros_like(system.images)
    for part in rows.split(system.chunk):
        images = system.images[part].requires_grad_()
        with torch.enable_grad():
            theta = system.theta0.detach().requires_grad_()
            logits = system.model(theta, images)
            value = torch.zeros_like(logits[0, 0])
            for sign, (a, direction) in ((1, plus), (-1, minus)):
                (vjp,) = torch.autograd.grad(logits, theta, a[part], create_graph=True)
                value = value + sign * torch.dot(vjp, direction)
        total[part] = torch.autograd.grad(value, images)[0] * (count / len(rows))
    return total


def solve(
    model: FlatModel,
    theta0: Tensor,
    batch: Batch,
    ridge: float,
    adjoint: Implicit | None = None,
    grad_rows: Tensor | None = None,
) -> Tensor:
    """The v (P,) that minimises 1/2 |Y - J(S) v|^2 + ridge/2 |v|^2 for a linearised network; see `linearised`.

    This is RCIG's whole inner problem (Loo et al. 2023). RCIG solves the last layer for every delta (the body's part of
    v): that eliminates one block of variables, and changes neither the minimum nor its derivative.

    model, theta0: The network, and the parameters (P,) at which it is linearised.
    batch:         Images S (n, ...) and float targets Y (n, classes), not probabilities. Its `rows` are selected, its
                   seed is not used. v is differentiable in images and targets, and not in theta0.
    ridge:         Above 0.
    adjoint:       The solver of v and of its gradient; `Implicit()` by default.
    grad_rows:     Rows whose image gradient is computed, scaled up by n / len(grad_rows), so that it is unbiased over
                   random rows; other rows get zero. Targets get their whole gradient in any case.
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
    images, targets, _, _ = select_rows(batch)
    if not targets.dtype.is_floating_point or targets.ndim != 2 or len(targets) != len(images):
        raise ValueError(f"targets are floats (n, classes) of n images, not {targets.dtype} {tuple(targets.shape)}")
    if not ridge > 0:
        raise ValueError(f"ridge has to be above 0, not {ridge}")
    system = System(model, theta0, images, ridge)
    return (adjoint or Implicit()).solve(system, targets, grad_rows)
