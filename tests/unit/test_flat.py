"""Networks as pure functions: dropout is off, other randomness is refused, attention has second derivatives."""

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
from limbeck.core.rng import fork_rng, make_generator
from limbeck.core.types import Batch
from limbeck.networks.flat import MATH_ATTENTION, FlatModel
from limbeck.networks.registry import MLP, MODELS, flat_model
from limbeck.task import make_task
from limbeck.training import Backprop, CrossEntropy, Replay, linearised, unroll

pytestmark = pytest.mark.usefixtures("untouched_generators")


def make_images(count: int = 2) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=make_generator(0, "images"))


class FunctionLayer(nn.Module):
    """A layer without parameters: a function of the layer and its images."""

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


RANDOM_LAYERS = {
    "1 (Dropout, 0.1)": lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 3)),
    "0 (Dropout2d, 0.2)": lambda: nn.Sequential(nn.Dropout2d(0.2), nn.Conv2d(1, 2, 3)),
    "1 (AlphaDropout, 0.1)": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.AlphaDropout(0.1)),
    "attention (MultiheadAttention, 0.3)": lambda: Attention(0.3),
}


@pytest.mark.parametrize("name", RANDOM_LAYERS)
def test_dropout_of_layers_is_off_and_named(name: str) -> None:
    """The result is that of the same module in evaluation mode, which torch defines as being without dropout."""
    model, images = FlatModel(RANDOM_LAYERS[name], (1, 8, 8)), make_images()
    assert model.dropout == [name]
    theta = model.init(0)
    with fork_rng(0, "shell"):
        expected = RANDOM_LAYERS[name]().eval()
    torch.nn.utils.vector_to_parameters(theta, expected.parameters())
    torch.testing.assert_close(model(theta, images), expected(images))
    assert torch.equal(model(theta, images), model(theta, images))


def test_dropout_is_noted_once_for_every_network(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(channels: int, size: tuple[int, int], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(channels * size[0] * size[1], classes))

    monkeypatch.setitem(MODELS, "drops", build)
    for network in ("convnet,drops", "drops"):
        events: list[dict[str, Any]] = []
        limbeck.evaluate(run, networks=network, num_networks=1, epochs=1, listen=events.append)
        notes = [event["text"] for event in events if event["event"] == "note" and "dropout" in event["text"]]
        assert notes == ["dropout of drops is off, in 1 (Dropout, 0.5); see 'Which network'"]


IMPURE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "functional dropout": lambda layer, x: F.dropout(x, 0.3),
    "dropout with a tiny probability": lambda layer, x: F.dropout(x, 1e-9),
    "attention's dropout": lambda layer, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.3),
    "noise of a generator of the layer": lambda layer, x: x + torch.rand((), generator=layer.generator),
    "random slope": lambda layer, x: F.rrelu(x, training=True),
    "a counter": lambda layer, x: x * layer.calls,
}


@pytest.mark.parametrize("name", IMPURE)
def test_random_or_stateful_functions_are_refused(name: str) -> None:
    """FlatModel calls the network to find out: at once if the shape is known, otherwise at every call."""

    def build() -> nn.Module:
        return nn.Sequential(FunctionLayer(IMPURE[name]), nn.Flatten(), nn.Linear(64, 3))

    with pytest.raises(UserError, match="random or keeps state"):
        FlatModel(build, (1, 8, 8))
    model = FlatModel(build)
    for _ in range(2):
        with pytest.raises(UserError, match="random or keeps state"):
            model(model.init(0), make_images())


def test_make_task_refuses_a_random_network(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(channels: int, size: tuple[int, int], classes: int) -> nn.Module:
        return nn.Sequential(FunctionLayer(IMPURE["functional dropout"]), nn.Flatten(), nn.Linear(64, classes))

    monkeypatch.setitem(MODELS, "noisy", build)
    with pytest.raises(UserError, match="Sequential is random"):
        make_task(digits, ModelConfig(name="noisy"))


def replace_buffer(layer: nn.Module, images: Tensor) -> Tensor:
    layer.mean = 0.5 * layer.mean + images.mean()
    return images - images.mean()


PURE: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm2d(1),
    "instance norm with running statistics": lambda: nn.InstanceNorm2d(1, track_running_stats=True),
    "statistics in buffers": lambda: FunctionLayer(
        lambda layer, x: F.batch_norm(x, layer.mean, layer.var, training=True)  # type: ignore[arg-type]
    ),
    "a buffer that is replaced": lambda: FunctionLayer(replace_buffer),
    "spectral norm": lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(64, 3))),
    "layers": lambda: nn.Sequential(nn.Dropout(0.0), nn.BatchNorm2d(1, track_running_stats=False)),
    "NaN": lambda: FunctionLayer(lambda layer, x: x.log()),
    "attention in evaluation": lambda: Attention(0.3).eval(),
    "noise with a fixed seed": lambda: FunctionLayer(
        lambda layer, x: x + torch.rand(8, generator=torch.manual_seed(3))
    ),
}


@pytest.mark.parametrize("build", PURE.values(), ids=PURE)
def test_pure_layers_are_accepted(build: Callable[[], nn.Module]) -> None:
    """Layers that keep state in buffers are pure, because each call starts from copies of the initial buffers."""
    model = FlatModel(build, (1, 8, 8))
    initial = {name: buffer.clone() for name, buffer in model.module.named_buffers()}
    theta = torch.cat([parameter.flatten() for parameter in model.module.parameters()] or [torch.empty(0)])
    with torch.random.fork_rng():
        first, second = model(theta, make_images()), model(theta, make_images())
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    assert all(torch.equal(buffer, initial[name]) for name, buffer in model.module.named_buffers())


def make_mlp() -> nn.Module:
    return MLP(1, (8, 8), 3, width=16)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, at its first jvp
def test_the_first_call_may_be_inside_a_transform() -> None:
    images = make_images()
    for call in (
        lambda model, theta: torch.func.jvp(lambda t: model(t, images), (theta,), (theta,))[1],
        lambda model, theta: torch.func.vmap(lambda t: model(t, images))(theta[None])[0],
        lambda model, theta: torch.func.jacrev(lambda t: model(t, images))(theta),
    ):
        unchecked, checked = FlatModel(make_mlp), FlatModel(make_mlp, (1, 8, 8))
        theta = unchecked.init(0)
        assert torch.equal(call(unchecked, theta), call(checked, theta))


def test_invalid_modules_are_refused_with_a_reason() -> None:
    with pytest.raises(UserError, match=r"not the Flatten itself.*FlatModel\(lambda: Network"):
        FlatModel(nn.Flatten())  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"Linear cannot be called on images of shape \(3,\)"):
        FlatModel(lambda: nn.Linear(2, 2), (3,))
    with pytest.raises(UserError, match="returns tuple, expected logits"):
        FlatModel(lambda: FunctionLayer(lambda layer, x: (x, x)), (1, 8, 8))  # type: ignore[arg-type, return-value]


# --- attention


def extract_patches(images: Tensor) -> Tensor:
    """(n, 1, h, w) -> (n, tokens, 16)."""
    return F.unfold(images, 4, stride=4).transpose(1, 2)


class Transformer(nn.Module):
    """A block of attention over patches of 4 x 4, in three ways of torch, or `by hand` by products and softmax."""

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
        tokens = self.embed(extract_patches(images))
        mixed = self.block(tokens) if self.kind == "block" else tokens + self.attend(tokens)
        return self.classifier(mixed.mean(1))  # type: ignore[no-any-return]


def student_gradients(model: FlatModel, adjoint: Any) -> list[Tensor]:
    """Gradients of the final parameters of a student of five steps in images, step size and initial parameters."""
    images = make_images(4).double().requires_grad_()
    theta0 = model.init(0).requires_grad_()
    lr = torch.tensor(0.3, dtype=torch.double, requires_grad=True)
    end = unroll(CrossEntropy(model), theta0, [Batch(images, torch.arange(4) % 3)] * 5, lr, adjoint)
    return list(torch.autograd.grad((end - 1).square().sum(), [images, lr, theta0]))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", ["layer", "function", "block"])
def test_gradients_through_a_student_with_attention_are_exact(kind: str, training: bool) -> None:
    model = FlatModel(lambda: Transformer(kind).double().train(training))
    replayed, backprop = student_gradients(model, Replay()), student_gradients(model, Backprop())
    reference = student_gradients(FlatModel(lambda: Transformer("by hand").double()), Backprop())
    for actual, exact, by_hand in zip(replayed, backprop, reference):
        torch.testing.assert_close(actual, exact, rtol=1e-10, atol=1e-12)
        if kind != "block":
            torch.testing.assert_close(actual, by_hand, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", ["layer", "function", "block"])
def test_forward_derivative_of_attention(kind: str, training: bool) -> None:
    """Without a graph as well, where torch would use its fused implementation."""
    model = FlatModel(lambda: Transformer(kind).double().train(training))
    theta, images, step = model.init(0), make_images(4).double(), 1e-5
    direction = torch.randn(theta.shape, generator=make_generator(0, "v"), dtype=torch.double)
    with torch.no_grad():
        slope = (model(theta + step * direction, images) - model(theta - step * direction, images)) / (2 * step)
        torch.testing.assert_close(linearised(model, theta, direction, images), slope, rtol=1e-6, atol=1e-8)


def test_attention_settings_are_restored() -> None:
    def settings() -> tuple[bool, ...]:
        fused = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
        return *fused, torch.backends.cuda.math_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()

    torch.backends.mha.set_fastpath_enabled(True)  # torch's default, since other tests may change it
    initial = settings()
    model = FlatModel(lambda: Transformer("layer"))
    model(model.init(0), make_images())
    with pytest.raises(RuntimeError):
        model(model.init(0), torch.zeros(1, 2, 3, 3))
    assert settings() == initial


def test_a_transformer_is_distilled(digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts, student and evaluation use a registered network with torch's layer of attention."""

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
    """`--model.norm group --model.width 33` once ended in an error of torch with a traceback."""
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
def test_networks_that_cannot_be_trained_are_refused_before_anything_is_written(
    name: str, digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They once ended in errors of torch, some after the start of the run."""
    build, sentence = UNFIT[name]
    monkeypatch.setitem(MODELS, "unfit", build)
    with pytest.raises(UserError, match=sentence):
        limbeck.distill(digits, model=ModelConfig(name="unfit"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_last_thread_to_leave_restores_torchs_attention() -> None:
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    with MATH_ATTENTION:
        with MATH_ATTENTION:
            pass
        assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()) == (False, False)
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()) == before
