"""Laws of the registry of networks: parameters, shapes, flat vectors, derivatives, seeds, and forward passes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.errors import UserError
from limbeck.core.rng import make_generator
from limbeck.laws import NETWORK_LAWS, NetworkTrial, check_laws
from limbeck.networks.layers import ACTIVATIONS, NORMS, POOLINGS
from limbeck.networks.registry import MODELS, ModelConfig, find_network, flat_model

COUNTS = {  # with 10 classes at 1 x 28 and 3 x 32 pixels, as counted from the code of DC and MTT
    "mlp": (118_282, 411_146),
    "lenet": (61_706, 62_006),
    "alexnet": (1_865_802, 1_872_202),
    "vgg11": (9_229_962, 9_231_114),
    "resnet18": (11_172_810, 11_173_962),
    "resnet18ap": (11_213_770, 11_250_762),
    "convnet": (317_706, 320_010),
    "vit": (2_684_554, 2_693_578),  # ours: patches of 4 x 4
}
COUNTS_AT_64 = {"mlp": 1_615_304, "lenet": 78_156, "alexnet": 2_456_072, "vgg11": 9_328_584, "resnet18": 11_271_432}
"""With 200 classes, as DD-Ranking has them."""
NARROW = {"convnet": 4, "widening": 4, "mlp": 4, "alexnet": 8, "vgg11": 4, "resnet18": 4, "resnet18ap": 4, "vit": 8}
TINY = {"convnet": 8, "widening": 8, "mlp": 8, "lenet": 16, "alexnet": 16, "vgg11": 28, "resnet18": 9, "vit": 8}
TINY |= {"resnet18ap": 16}
"""The smallest side of images that is tested."""


def tiny(name: str, **options: Any) -> ModelConfig:
    return ModelConfig(name=name, width=NARROW.get(name), **options)


def count_parameters(config: ModelConfig, shape: tuple[int, int, int], classes: int) -> int:
    """Without memory for them."""
    with torch.device("meta"):
        module = find_network(config.name)(shape[0], shape[1:], classes, **config.options())
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", COUNTS)
def test_networks_have_the_parameters_of_the_fields_code(name: str) -> None:
    config = ModelConfig(name=name)
    assert count_parameters(config, (1, 28, 28), 10) == COUNTS[name][0]
    assert count_parameters(config, (3, 32, 32), 10) == COUNTS[name][1]


def test_the_page_on_networks_has_these_counts() -> None:
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \| ([\d,]+) \|$", page, re.MULTILINE)
    assert [name for name, *_ in rows] == list(MODELS)
    for name, *counts in rows:
        shapes = (1, 28, 28), (3, 32, 32)
        assert counts == [f"{count_parameters(ModelConfig(name=name), shape, 10):,}" for shape in shapes], name


@pytest.mark.parametrize("name", COUNTS_AT_64)
def test_networks_have_the_parameters_of_dd_ranking_at_64_pixels(name: str) -> None:
    assert count_parameters(ModelConfig(name=name), (3, 64, 64), 200) == COUNTS_AT_64[name]


def test_a_convnet_of_three_blocks_has_the_parameters_of_the_fields_code_at_64_pixels() -> None:
    assert count_parameters(ModelConfig(depth=3), (3, 64, 64), 10) == 381_450


@pytest.mark.parametrize("name", sorted({*COUNTS} - {"mlp", "convnet", "vit"}))
def test_the_first_stride_leaves_the_rest_as_it_is_at_32_pixels(name: str) -> None:
    counts = {count_parameters(ModelConfig(name=name), (3, side, side), 10) for side in (32, 64, 128)}
    assert counts == {COUNTS[name][1]}


def test_batch_norm_has_the_parameters_of_instance_norm() -> None:
    for name in ("vgg11", "resnet18", "resnet18ap"):
        assert count_parameters(ModelConfig(name=name, norm="batch"), (3, 32, 32), 10) == COUNTS[name][1]
    extra = count_parameters(ModelConfig(name="alexnet", norm="batch"), (3, 32, 32), 10) - COUNTS["alexnet"][1]
    assert extra == 2 * (128 + 192 + 256 + 192 + 192)


def test_parameters_have_the_names_of_the_fields_code() -> None:
    def names(name: str) -> list[str]:
        return list(flat_model(tiny(name), (3, 32, 32), 10).layout.names)

    weights = [f"features.{index}.weight" for index in (0, 3, 6, 8, 10)]
    assert [name for name in names("alexnet") if name.startswith("features") and "weight" in name] == weights
    assert names("lenet")[::2] == [
        "features.0.weight",
        "features.3.weight",
        "fc_1.weight",
        "fc_2.weight",
        "classifier.weight",
    ]
    assert names("vgg11")[:8:2] == ["features.0.weight", "features.1.weight", "features.4.weight", "features.5.weight"]
    assert names("resnet18")[:3] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert {"layer2.0.shortcut.0.weight", "layer2.0.shortcut.1.weight", "layer1.1.conv2.weight"} <= {*names("resnet18")}
    assert {"layer2.0.shortcut.0.weight", "layer2.0.shortcut.2.weight", "layer4.1.bn2.bias"} <= {*names("resnet18ap")}
    for name in MODELS:
        assert names(name)[-2:] == ["classifier.weight", "classifier.bias"]


def test_every_network_of_the_registry_is_tested() -> None:
    assert {*TINY} == {*MODELS}
    assert {*COUNTS} == {*MODELS} - {"widening"}


def draw(*shape: int, purpose: str = "images") -> Tensor:
    return torch.randn(*shape, generator=make_generator(0, purpose))


@pytest.mark.parametrize("side", [28, 32, 48, 64, 96, 128])
@pytest.mark.parametrize("name", MODELS)
def test_shapes_flat_vector_seed_and_forward_at_every_size(name: str, side: int) -> None:
    """Forward is that of the plain module with the same parameters, bit for bit; features feed the last layer."""
    for channels in (1, 3):
        model = flat_model(tiny(name), (channels, side, side), 5)
        theta, images = model.init(3), draw(2, channels, side, side)
        assert torch.equal(model.layout.join(model.layout.split(theta)), theta)
        assert torch.equal(theta, model.init(3))
        assert not torch.equal(theta, model.init(4))
        module = model.build()
        with torch.no_grad():
            for parameter, value in zip(module.parameters(), model.layout.split(theta)):
                parameter.copy_(value)
            logits = model(theta, images)
            assert logits.shape == (2, 5)
            torch.testing.assert_close(module(images), logits, rtol=1e-6, atol=1e-6)
            assert not torch.allclose(logits[0], logits[1], rtol=1e-4, atol=1e-6), "the images make no difference"
            features = model.features(theta, images)
            torch.testing.assert_close(module.classifier(features), logits, rtol=1e-5, atol=1e-6)


def variants() -> list[ModelConfig]:
    """Every network of the registry, and every value of each of its options."""
    configs = [tiny(name) for name in MODELS]
    configs += [tiny(name, norm=norm) for name in ("convnet", "widening") for norm in NORMS]
    configs += [tiny("convnet", activation=activation) for activation in ACTIVATIONS]
    configs += [tiny("convnet", pooling=pooling, depth=depth) for pooling in POOLINGS for depth in (1, 2, 3)]
    names = ("alexnet", "vgg11", "resnet18", "resnet18ap")
    configs += [tiny(name, norm=norm) for name in names for norm in ("batch", "group", "none")]
    return [*configs, tiny("vit", depth=1)]


def describe(config: ModelConfig) -> str:
    return "-".join(str(value) for value in config.model_dump(exclude={"width"}).values() if value is not None)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("config", variants(), ids=describe)
def test_they_meet_the_laws_of_limbeck_check(config: ModelConfig) -> None:
    """Among them gradient and Hessian-vector product in float64, against autograd of a plain module."""
    side = max(TINY[config.name], 16 if config.depth == 3 else 8)
    outcomes = list(check_laws(NETWORK_LAWS, NetworkTrial(config, (1, side, side), 3)))
    assert [outcome.text for outcome in outcomes if outcome.status != "passed"] == []
    assert len(outcomes) == len(NETWORK_LAWS)


# --- the forward pass, written down again


def instance_norm(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean, var = maps.mean((2, 3), keepdim=True), maps.var((2, 3), unbiased=False, keepdim=True)
    return (maps - mean) / (var + 1e-5).sqrt() * weight[:, None, None] + bias[:, None, None]


def lenet(p: list[Tensor], x: Tensor) -> Tensor:
    x = F.max_pool2d(F.conv2d(x, p[0], p[1], padding=2).relu(), 2)
    x = F.max_pool2d(F.conv2d(x, p[2], p[3]).relu(), 2).flatten(1)
    return ((x @ p[4].T + p[5]).relu() @ p[6].T + p[7]).relu() @ p[8].T + p[9]


def alexnet(p: list[Tensor], x: Tensor) -> Tensor:
    for layer, padding in enumerate((4, 2, 1, 1, 1)):
        x = F.conv2d(x, p[2 * layer], p[2 * layer + 1], padding=padding).relu()
        x = F.max_pool2d(x, 2) if layer in (0, 1, 4) else x
    return x.flatten(1) @ p[10].T + p[11]


def vgg11(p: list[Tensor], x: Tensor) -> Tensor:
    for layer in range(8):
        weight, bias, scale, shift = p[4 * layer : 4 * layer + 4]
        x = instance_norm(F.conv2d(x, weight, bias, padding=1 if layer else 3), scale, shift).relu()
        x = F.max_pool2d(x, 2) if layer in (0, 1, 3, 5, 7) else x
    return x.flatten(1) @ p[32].T + p[33]


def resnet18(p: list[Tensor], x: Tensor, pooled: bool = False) -> Tensor:
    tensors = iter(p)

    def convolve(maps: Tensor, stride: int, padding: int = 1, pool: int = 1) -> Tensor:
        maps = F.conv2d(maps, next(tensors), stride=1 if pooled else stride, padding=padding)
        return instance_norm(F.avg_pool2d(maps, pool), next(tensors), next(tensors))

    x = convolve(x, 1).relu()
    for block in range(8):
        stride = 2 if block in (2, 4, 6) else 1
        hidden = convolve(x, stride).relu()
        hidden = convolve(F.avg_pool2d(hidden, 2) if pooled and stride == 2 else hidden, 1)
        x = (hidden + (convolve(x, stride, 0, 2 if pooled else 1) if stride == 2 else x)).relu()
    if not pooled:
        x = F.avg_pool2d(x, x.shape[-1])
    return x.flatten(1) @ next(tensors).T + next(tensors)


def vit(p: list[Tensor], x: Tensor) -> Tensor:
    token, positions, embed, offset, *blocks = p
    x = F.conv2d(x, embed, offset, stride=4).flatten(2).transpose(1, 2)
    x = torch.cat([token.expand(len(x), -1, -1), x], 1) + positions
    for block in range(6):
        w, b, out, out_b, w1, b1, w2, b2, s1, t1, s2, t2 = blocks[12 * block : 12 * block + 12]
        q, k, v = (F.layer_norm(x, x.shape[2:], s1, t1) @ w.T + b).chunk(3, 2)
        x = x + (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(2) @ v @ out.T + out_b
        x = x + F.gelu(F.layer_norm(x, x.shape[2:], s2, t2) @ w1.T + b1) @ w2.T + b2
    scale, shift, weight, bias = blocks[72:]
    return F.layer_norm(x, x.shape[2:], scale, shift)[:, 0] @ weight.T + bias


FORWARD: dict[str, Callable[[list[Tensor], Tensor], Tensor]] = {
    "lenet": lenet,
    "alexnet": alexnet,
    "vgg11": vgg11,
    "resnet18": resnet18,
    "resnet18ap": lambda p, x: resnet18(p, x, pooled=True),
    "vit": vit,
}


@pytest.mark.parametrize("name", FORWARD)
def test_the_forward_pass_is_the_one_that_is_described(name: str) -> None:
    model = flat_model(tiny(name), (1, 28, 28), 4)
    theta, images = model.init(1).double(), draw(3, 1, 28, 28).double()
    theta = theta + 0.1 * draw(len(theta), purpose="offset")  # scales and shifts are 1 and 0 at first
    expected = FORWARD[name](model.layout.split(theta), images)
    torch.testing.assert_close(model(theta, images), expected, rtol=1e-9, atol=1e-9)


# --- what does not fit

UNFIT = {
    "lenet": ({}, (1, 8, 8), "8 x 8 pixels are too small for LeNet; resize them"),
    "alexnet": ({}, (1, 7, 7), "7 x 7 pixels are too small for AlexNet"),
    "vgg11": ({}, (3, 24, 24), "24 x 24 pixels are too small for VGG-11"),
    "resnet18": ({}, (1, 8, 8), "too small for instance norm: its last maps have one pixel each"),
    "resnet18ap": ({"norm": "batch"}, (1, 7, 7), "7 x 7 pixels are too small for ResNet-18"),
    "vit": ({}, (3, 30, 30), "patches of 4 x 4 pixels, which do not fit 30 x 30"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_images_that_do_not_fit_are_refused_in_a_sentence(name: str) -> None:
    options, shape, sentence = UNFIT[name]
    with pytest.raises(UserError, match=sentence) as refusal:
        flat_model(ModelConfig(name=name, **options), shape, 3)
    assert len(str(refusal.value)) <= 300


def test_options_that_do_not_fit_are_refused_in_a_sentence() -> None:
    for config, sentence in (
        (ModelConfig(name="vgg11", norm="layer"), "unknown norm 'layer' for a VGG-11; choose one of instance, batch"),
        (ModelConfig(name="resnet18", depth=3), "'resnet18' has no option 'depth'; it has width, norm"),
        (ModelConfig(name="lenet", width=3), "'lenet' has no option 'width'; it has none"),
        (ModelConfig(name="vit", width=129), "vit has 2 heads at a width of 129, which they do not divide; take 128"),
        (ModelConfig(name="resnet18", norm="group", width=6), "a width of 6 cannot be divided"),
        (ModelConfig(name="resnet"), "no network called 'resnet'; did you mean resnet18"),
    ):
        with pytest.raises(UserError, match=sentence):
            flat_model(config, (3, 32, 32), 3)


def test_the_default_depth_is_that_of_the_network() -> None:
    assert ModelConfig(name="vit").resolved((64, 64)).depth == 6
    assert ModelConfig().resolved((64, 64)).depth == 4
    assert ModelConfig(name="resnet18").resolved((64, 64)).width == 64


def test_a_small_network_has_batch_norm_on_the_smallest_images() -> None:
    """Batch norm needs no pixels beside each other, but more than one value."""
    model = flat_model(ModelConfig(name="resnet18", width=4, norm="batch"), (1, 8, 8), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model(model.init(0), draw(2, 1, 8, 8)).shape == (2, 3)
    with pytest.raises(UserError, match="one value per channel"):
        model(model.init(0), draw(1, 1, 8, 8))


def test_networks_of_the_registry_are_torch_modules() -> None:
    for name, factory in MODELS.items():
        assert isinstance(factory(1, (32, 32), 3), nn.Module), name
