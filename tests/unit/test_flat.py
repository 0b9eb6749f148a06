"""Networks as pure functions: what is random or keeps state is refused, and attention can be differentiated twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck
from limbeck import EvalConfig, ExpertConfig, ImageData, ModelConfig
from limbeck.core.errors import UserError
from limbeck.core.rng import make_generator
from limbeck.core.types import Batch
from limbeck.networks.flat import FlatModel
from limbeck.networks.registry import MLP, MODELS, flat_model
from limbeck.task import make_task
from limbeck.training import Backprop, CrossEntropy, Replay, linearised, unroll

pytestmark = pytest.mark.usefixtures("untouched_generators")


def batch(count: int = 2) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=make_generator(0, "images"))


class Called(nn.Module):
    """A layer without parameters, from a function of its images and itself."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]):
        super().__init__()
        self.function, self.calls, self.generator = function, 0, torch.Generator()
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("var", torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.function(self, images)


class Attention(nn.Module):
    """Attention among the rows of an image."""

    def __init__(self, dropout: float):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        rows = images[:, 0]
        return self.attention(rows, rows, rows, need_weights=False)[0]


REFUSED = {
    "BatchNorm2d": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(1, track_running_stats=True),
    "Dropout": lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.1)),
    "Dropout2d": lambda: nn.Dropout2d(0.1),
    "AlphaDropout": lambda: nn.AlphaDropout(0.1),
    "MultiheadAttention": lambda: Attention(0.3),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impure_modules_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=name):
        FlatModel(REFUSED[name])


IMPURE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "functional dropout": lambda layer, x: F.dropout(x, 0.3),
    "dropout that drops nothing this time": lambda layer, x: F.dropout(x, 1e-9),
    "attention's dropout": lambda layer, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.3),
    "noise of its own generator": lambda layer, x: x + torch.rand((), generator=layer.generator),
    "a random leak": lambda layer, x: F.rrelu(x, training=True),
    "a count": lambda layer, x: x * layer.calls,
    "running statistics": lambda layer, x: F.batch_norm(x, layer.mean, layer.var, training=True),
}


@pytest.mark.parametrize("name", IMPURE)
def test_whatever_is_random_or_keeps_state_is_refused(name: str) -> None:
    """By calling it: when it is built if the shape is known, else before the first result, and every time."""

    def build() -> nn.Module:
        return nn.Sequential(Called(IMPURE[name]), nn.Flatten(), nn.Linear(64, 3))

    with pytest.raises(UserError, match=r"buffer|random or keeps state"):
        FlatModel(build, (1, 8, 8))
    model = FlatModel(build)
    for _ in range(2):
        with pytest.raises(UserError, match=r"buffer|random or keeps state"):
            model(model.init(0), batch())


def test_a_registered_network_is_refused_by_its_task(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(channels: int, size: tuple[int, int], classes: int) -> nn.Module:
        return nn.Sequential(Called(IMPURE["functional dropout"]), nn.Flatten(), nn.Linear(64, classes))

    monkeypatch.setitem(MODELS, "noisy", build)
    with pytest.raises(UserError, match="Sequential is random"):
        make_task(digits, ModelConfig(name="noisy"))


PURE: dict[str, Callable[[], nn.Module]] = {
    "layers": lambda: nn.Sequential(nn.Dropout(0.0), nn.BatchNorm2d(1, track_running_stats=False)),
    "NaN": lambda: Called(lambda layer, x: x.log()),
    "attention in evaluation": lambda: Attention(0.3).eval(),
    "noise of a fixed seed": lambda: Called(lambda layer, x: x + torch.rand(8, generator=torch.manual_seed(3))),
}


@pytest.mark.parametrize("build", PURE.values(), ids=PURE)
def test_layers_that_do_no_harm_are_taken(build: Callable[[], nn.Module]) -> None:
    FlatModel(build, (1, 8, 8))


def small() -> nn.Module:
    return MLP(1, (8, 8), 3, width=16)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, at its first jvp
def test_the_first_call_may_be_inside_a_transform() -> None:
    images = batch()
    for call in (
        lambda model, theta: torch.func.jvp(lambda t: model(t, images), (theta,), (theta,))[1],
        lambda model, theta: torch.func.vmap(lambda t: model(t, images))(theta[None])[0],
        lambda model, theta: torch.func.jacrev(lambda t: model(t, images))(theta),
    ):
        first, later = FlatModel(small), FlatModel(small, (1, 8, 8))
        theta = first.init(0)
        assert torch.equal(call(first, theta), call(later, theta))


def test_a_module_or_a_misfit_is_refused_in_words() -> None:
    with pytest.raises(UserError, match=r"not the Flatten itself.*FlatModel\(lambda: Network"):
        FlatModel(nn.Flatten())  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"Linear cannot be called on images of shape \(3,\)"):
        FlatModel(lambda: nn.Linear(2, 2), (3,))
    with pytest.raises(UserError, match="returns tuple, expected logits"):
        FlatModel(lambda: Called(lambda layer, x: (x, x)), (1, 8, 8))  # type: ignore[arg-type, return-value]
    with pytest.raises(UserError, match="track_running_stats=False"):
        FlatModel(lambda: nn.BatchNorm2d(1))


# --- attention


def patches(images: Tensor) -> Tensor:
    """(n, 1, h, w) -> (n, tokens, 16)."""
    return F.unfold(images, 4, stride=4).transpose(1, 2)


class Transformer(nn.Module):
    """One block of attention over patches of 4 x 4, in four ways that torch has; `by hand` is products and softmax."""

    def __init__(self, kind: str, classes: int = 3):
        super().__init__()
        self.kind, self.embed, self.classifier = kind, nn.Linear(16, 8), nn.Linear(8, classes)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.block.self_attn = self.attention

    def attend(self, tokens: Tensor) -> Tensor:
        layer = self.attention
        if self.kind == "layer":
            return layer(tokens, tokens, tokens, need_weights=False)[0]  # type: ignore[no-any-return]
        projected = F.linear(tokens, layer.in_proj_weight, layer.in_proj_bias)
        q, k, v = projected.unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        if self.kind == "function":
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(2, 3) / 2).softmax(3) @ v
        return layer.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(patches(images))
        mixed = self.block(tokens) if self.kind == "block" else tokens + self.attend(tokens)
        return self.classifier(mixed.mean(1))  # type: ignore[no-any-return]


def gradients(model: FlatModel, adjoint: Any) -> list[Tensor]:
    """Of the end of a student of five steps, in images, step size and start."""
    images = batch(4).double().requires_grad_()
    theta0 = model.init(0).requires_grad_()
    lr = torch.tensor(0.3, dtype=torch.double, requires_grad=True)
    end = unroll(CrossEntropy(model), theta0, [Batch(images, torch.arange(4) % 3)] * 5, lr, adjoint)
    return list(torch.autograd.grad((end - 1).square().sum(), [images, lr, theta0]))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", ["layer", "function", "block"])
def test_a_student_with_attention_has_exact_gradients(kind: str, training: bool) -> None:
    model = FlatModel(lambda: Transformer(kind).double().train(training))
    replayed, backprop = gradients(model, Replay()), gradients(model, Backprop())
    reference = gradients(FlatModel(lambda: Transformer("by hand").double()), Backprop())
    for actual, exact, by_hand in zip(replayed, backprop, reference):
        torch.testing.assert_close(actual, exact, rtol=1e-10, atol=1e-12)
        if kind != "block":
            torch.testing.assert_close(actual, by_hand, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", ["layer", "function", "block"])
def test_attention_has_a_derivative_forwards(kind: str, training: bool) -> None:
    """Without a graph too, where torch would take its fused path."""
    model = FlatModel(lambda: Transformer(kind).double().train(training))
    theta, images, h = model.init(0), batch(4).double(), 1e-5
    v = torch.randn(theta.shape, generator=make_generator(0, "v"), dtype=torch.double)
    with torch.no_grad():
        slope = (model(theta + h * v, images) - model(theta - h * v, images)) / (2 * h)
        torch.testing.assert_close(linearised(model, theta, v, images), slope, rtol=1e-6, atol=1e-8)


def test_the_settings_of_attention_are_as_they_were() -> None:
    def settings() -> tuple[bool, ...]:
        fused = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
        return *fused, torch.backends.cuda.math_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()

    torch.backends.mha.set_fastpath_enabled(True)  # torch's default, whatever ran before
    initial = settings()
    model = FlatModel(lambda: Transformer("layer"))
    model(model.init(0), batch())
    with pytest.raises(RuntimeError):
        model(model.init(0), torch.zeros(1, 2, 3, 3))
    assert settings() == initial


def test_a_transformer_is_distilled(digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts, student and evaluation by a registered network whose attention is torch's own layer."""

    def build(channels: int, size: tuple[int, int], classes: int) -> nn.Module:
        return Transformer("block", classes)

    monkeypatch.setitem(MODELS, "transformer", build)
    run = limbeck.distill(
        digits,
        out=tmp_path / "run",
        model=ModelConfig(name="transformer"),
        num_experts=1,
        expert=ExpertConfig(epochs=2),
        eval=EvalConfig(networks=1, epochs=2, baseline_lrs=(0.01,), full_networks=0),
        iterations=2,
        syn_steps=3,
        validate_networks=1,
        validate_epochs=2,
    )
    assert (run / "results.json").exists()


def test_group_norm_refuses_a_width_that_it_cannot_divide() -> None:
    """`--model.norm group --model.width 33` ended in torch's own error, with a traceback."""
    with pytest.raises(UserError, match="width of 33"):
        flat_model(ModelConfig(width=33, norm="group"), (1, 8, 8), 3)


UNFIT: dict[str, tuple[Callable[..., Any], str]] = {
    "too few logits": (
        lambda c, size, classes: nn.Sequential(nn.Flatten(), nn.Linear(64, 5)),
        r"logits of shape \(2, 10\)",
    ),
    "one result": (
        lambda c, size, classes: nn.Sequential(nn.Flatten(0), nn.Linear(128, classes)),
        r"shape \(10,\) for 2 images",
    ),
    "double precision": (lambda c, size, classes: MLP(c, size, classes).double(), "build it in torch.float32"),
    "no parameters": (lambda c, size, classes: nn.Flatten(), "no parameters to train"),
    "lazy": (
        lambda c, size, classes: nn.Sequential(nn.Flatten(), nn.LazyLinear(classes)),
        "'1.weight'.*give the layer",
    ),
    "no module": (lambda c, size, classes: 3, "returns int"),
}


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    name: str, digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They ended in torch's own errors, some of them after the run was begun."""
    build, sentence = UNFIT[name]
    monkeypatch.setitem(MODELS, "unfit", build)
    with pytest.raises(UserError, match=sentence):
        limbeck.distill(digits, model=ModelConfig(name="unfit"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
