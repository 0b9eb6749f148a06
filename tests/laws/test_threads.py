"""The same command gives the same bits by one thread or several, with one expert or many, interrupted or not.

On the default path: the width where the compiled network is used, more parameters than torch sums by one thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import limbeck
from limbeck import METHODS
from limbeck.core.parallel import parallel_map
from limbeck.core.sums import reproducible_dot, reproducible_sum
from limbeck.data import ImageData, fit_preprocess
from limbeck.experts import ExpertConfig, Recorded
from limbeck.experts.store import make_path
from limbeck.experts.train import train_expert
from limbeck.methods import DataFacts, MethodInputs
from limbeck.networks.registry import MODELS, ModelConfig, parse_network
from limbeck.task import Task, make_task
from limbeck.training.plain import Schedule, final_parameters, predict_logits, train

WIDE = ModelConfig(width=64, depth=2)  # 40,000 parameters
SMALL: dict[str, Any] = {
    "ipc": 2,
    "iterations": 5,
    "syn_steps": 3,
    "validate_every": 2,
    "validate_networks": 2,
    "validate_epochs": 3,
    "model": ModelConfig(width=32),
    "expert": limbeck.ExpertConfig(epochs=2, batch_size=64),
    "eval": limbeck.EvalConfig(networks=3, epochs=5, full_epochs=1, full_networks=1, baseline_lrs=(0.01,)),
}


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int, stop_at: int | None = None, **options: Any
) -> Path:
    """A whole run in a home of its own; stop_at: interrupted when so many units of work are done, and run again."""
    torch.set_num_threads(threads)
    monkeypatch.setenv("LIMBECK_HOME", str(folder / "home"))
    advances = 0

    def listen(event: dict[str, Any]) -> None:
        nonlocal advances
        advances += event["event"] == "advance"
        if advances == stop_at:
            raise KeyboardInterrupt

    arguments = {**SMALL, **options, "out": folder / "run"}
    if stop_at is not None:
        with pytest.raises(KeyboardInterrupt):
            limbeck.distill("digits", listen=listen, **arguments)
    return limbeck.distill("digits", **arguments)


def tensors(path: Path) -> dict[str, Tensor]:
    """Everything that was computed: experts and sets."""
    files = [*sorted((path.parent / "home").rglob("expert-*.safetensors")), *sorted(path.glob("set-*.safetensors"))]
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def accuracies(path: Path) -> list[Any]:
    rows = json.loads((path / "results.json").read_text())["results"]
    return [(row["set"], row["which"], row["accuracy_mean"], row["lr"]) for row in rows]


def test_one_result_by_any_number_of_threads_interrupted_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads, interrupted among the experts and in distillation: once the share of threads changed the bits."""
    whole = run(tmp_path / "one", monkeypatch, 1, num_experts=3)
    expected, scores = tensors(whole), accuracies(whole)
    assert sum("expert" in name for name in expected) >= 6
    for name, threads, stop_at in (("two", 2, None), ("experts", 2, 3), ("steps", 2, 9), ("back", 3, 14)):
        other = run(tmp_path / name, monkeypatch, threads, stop_at, num_experts=3)
        results = tensors(other)
        assert results.keys() == expected.keys()
        assert [key for key in expected if not results[key].equal(expected[key])] == [], name
        assert accuracies(other) == scores, name
    fewer = tensors(run(tmp_path / "fewer", monkeypatch, 2, num_experts=1))
    same = [key for key in fewer if key.startswith("expert-0000")]
    assert same
    assert all(fewer[key].equal(expected[key]) for key in same)


@pytest.fixture(scope="module")
def wide(digits: ImageData) -> Task:
    return make_task(digits, WIDE)


GRADIENTS = [
    (name, {"gradient": value})
    for name, method in METHODS.items()
    if "gradient" in method.config.model_fields
    for value in get_args(method.config.model_fields["gradient"].annotation)
]
CASES: list[tuple[str, dict[str, str]]] = [*((name, {}) for name in METHODS), *GRADIENTS]
SAME_BITS = [case for case in CASES if not METHODS[case[0]].depends_on_threads(METHODS[case[0]].config(**case[1]))]


def test_methods_say_where_the_number_of_threads_matters() -> None:
    """The full graph is autograd's, also of a network whose other gradients are compiled: a run mixed its threads."""
    for name, options in CASES:
        autograd = name in ("datm", "dm", "rcig", "ncfm", "tgdd") or options.get("gradient") == "backprop"
        assert ((name, options) not in SAME_BITS) == autograd


@pytest.mark.parametrize(("name", "choice"), SAME_BITS)
def test_the_gradient_of_every_method_by_any_number_of_threads(name: str, choice: dict[str, str], wide: Task) -> None:
    method, generator = METHODS[name], torch.Generator().manual_seed(0)
    count = wide.model.layout.count
    assert count > 32768
    points = [wide.model.init(0)]
    for _ in range(6):
        points.append(points[-1] + 0.02 * torch.randn(count, generator=generator))
    config, recorded = ExpertConfig(epochs=6), Recorded(torch.stack(points))
    path = make_path(torch.stack(points), wide.model.layout, config) if method.experts == "convex" else recorded
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        options = method.resolve_options(method.config(**choice), DataFacts(len(wide.data.train), 1, config))
        plan = method.plan(options, MethodInputs(wide, [path] if method.experts else [], 1, 0))
        values = [plan.synthetic.images.detach().clone()]
        if plan.iterations:
            loss = plan.objective(plan.synthetic, 0, 0)
            loss.backward()
            gradients = [parameter.grad for parameter in plan.synthetic.parameters().values()]
            values += [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]
        results.append(values)
    assert all(a.equal(b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


PATHS = ({}, {"smoothing": "mct"}, {"schedule": "uniform"})


def test_an_expert_and_its_paths_by_any_number_of_threads(wide: Task) -> None:
    """One of the network's tensors has more numbers than torch sums by one thread. FTD trains by GSAM."""
    layout = wide.model.layout
    assert max(layout.sizes) > 32768
    images, labels = (tensor[:96] for tensor in wide.train)
    config = ExpertConfig(epochs=4, batch_size=32, keep="recorded", sam_rho=0.1, sam_adaptive=True)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        theta0, measures = wide.model.init(0), (lambda epoch, theta: 0.5, lambda theta: 0.5)
        expert = train_expert(wide.loss, theta0, images, labels, config, layout, 0, *measures)
        assert expert.recorded is not None
        points = expert.recorded.points
        paths = [make_path(points, layout, ExpertConfig(epochs=4, waypoints=3, **options)) for options in PATHS]
        results.append([points, *(tensor for path in paths for tensor in (path.waypoints, path.beta))])
    assert all(a.equal(b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


def test_sums_and_whitening_by_any_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(320_001, generator=generator)
    images = torch.randint(256, (200, 3, 16, 16), generator=generator, dtype=torch.uint8)
    few = torch.rand(10, 3, 16, 16, generator=generator).requires_grad_()
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        whitening = fit_preprocess("zca", images)
        whitened = whitening.apply(few)
        (gradient,) = torch.autograd.grad(whitened.square().sum(), few)
        assert torch.get_num_threads() == threads
        results.append(
            [
                whitened.detach(),
                gradient,
                whitening.invert(few.detach()),
                reproducible_sum(x),
                reproducible_dot(x, x),
                x.norm(),
                *(t for t in vars(whitening).values() if isinstance(t, Tensor)),
            ]
        )
    assert all(a.equal(b) for result in results[1:] for a, b in zip(result, results[0], strict=True))
    assert float(reproducible_sum(x.double())) == pytest.approx(float(x.double().sum()), abs=1e-9)


EVALUATED = ("convnet:norm=batch", "mlp:width=8", "vit:width=6:depth=1", "resnet18:width=1:norm=batch", "drops")


class Drops(nn.Module):
    """A user's network with dropout, which is off."""

    def __init__(self, channels: int, size: tuple[int, int], classes: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
        self.classifier = nn.Linear(4 * (size[0] - 2) * (size[1] - 2), classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.body(images))
        return logits


@pytest.mark.parametrize("network", EVALUATED)
def test_networks_side_by_side_have_the_bits_of_one_alone(
    network: str, wide: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also under autograd, where each has a module of its own and one thread; running statistics are not shared."""
    monkeypatch.setitem(MODELS, "drops", Drops)
    task = wide.with_model(parse_network(network))
    rows = torch.arange(8)
    pair = task.train[0][rows], task.train[1][rows]

    def logits(threads: int, seeds: Sequence[int]) -> list[Tensor]:
        torch.set_num_threads(threads)
        assert task.workers.at_once == threads
        functions = [partial(train_once, task, task.model.init(seed), pair, seed) for seed in seeds]
        results = dict(parallel_map(functions, *task.workers))
        return [results[place] for place in range(len(seeds))]

    together = logits(3, range(5))
    for seed, expected in enumerate(together):
        assert torch.equal(logits(1, [seed])[0], expected)
    assert task.evaluation_conditions().get("threads", 1) == 1


def train_once(task: Task, start: Tensor, pair: tuple[Tensor, Tensor], seed: int, _check: object) -> Tensor:
    """Parameters and logits of one network after a few epochs."""
    loss, network = task.loss_and_network()
    theta = final_parameters(train(loss, start, *pair, Schedule(6, 0.05, 4), seed))
    return torch.cat([theta, predict_logits(network, theta, task.test[0][:20]).flatten()])


def test_a_network_that_hides_its_layers_is_trained_alone(wide: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of it would call the layers of the original, whose parameters another thread exchanges."""

    class Hidden(Drops):
        def __init__(self, channels: int, size: tuple[int, int], classes: int):
            super().__init__(channels, size, classes)
            body = self.body
            self.call = lambda images: body(images)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.classifier(self.call(images))
            return logits

    monkeypatch.setitem(MODELS, "hidden", Hidden)
    task = wide.with_model(ModelConfig(name="hidden"))
    assert not task.model.serves_threads
    assert task.workers == (1, None)
