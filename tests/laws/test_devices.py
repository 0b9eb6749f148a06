"""Laws of computing on another device than the processor, with a device that stands for a GPU (tests/elsewhere.py).

No operation mixes devices. Nothing is transferred while a CUDA graph is captured. An outer step waits for the device
only where it is listed here. No sum depends on the order in which a GPU adds. The results are those of the processor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from elsewhere import DEVICE, Elsewhere
from torch import Tensor

from limbeck import METHODS
from limbeck.core.rng import make_generator
from limbeck.core.types import Batch
from limbeck.data import ImageData, Split, fit_preprocess
from limbeck.data.augment import DSA, FAMILIES, ComposedDSA, toroidal_crop
from limbeck.data.cutmix import cutmix
from limbeck.derivatives.autograd import NeedsGrad
from limbeck.derivatives.choice import Choice
from limbeck.derivatives.convnet import torch_derivatives
from limbeck.derivatives.cuda_graph import CapturedDerivatives
from limbeck.derivatives.explicit import FusedCrossEntropy
from limbeck.evaluation.outcome import Outcome
from limbeck.evaluation.protocol import EvalConfig
from limbeck.evaluation.robustness import RobustnessConfig, RobustnessTest
from limbeck.evaluation.training import TrainedNetwork
from limbeck.evaluation.trials import best_lr
from limbeck.experts import Expert, ExpertConfig, Store
from limbeck.experts.make import describe_experts, make_experts, measure_paths
from limbeck.experts.train import train_expert
from limbeck.methods import DataFacts, Method, MethodInputs, Plan
from limbeck.methods.ptm_overlap import OverlapRepair
from limbeck.methods.ptm_progress import ProgressiveWindow
from limbeck.networks.losses import CrossEntropy
from limbeck.networks.registry import ModelConfig
from limbeck.select.scores import extract_features
from limbeck.synthetic.hooks import Ema, StepDecay, make_clamp_hooks
from limbeck.synthetic.loop import StatefulHook, outer_loop
from limbeck.synthetic.set import SyntheticSet
from limbeck.synthetic.tiles import Mode, Partition, make_partition
from limbeck.task import Task, make_task
from limbeck.training.plain import Schedule, final_parameters, train

pytestmark = pytest.mark.usefixtures("untouched_generators")


CLASSES = 3  # of ten: a step of matching by classes is that much shorter


@pytest.fixture(scope="module")
def task(digits: ImageData) -> Task:
    def first_images(split: Split) -> Split:
        rows = (split.labels < CLASSES).nonzero().squeeze(1)[:90]
        return Split(split.images[rows], split.labels[rows])

    parts = first_images(digits.train), first_images(digits.validation), first_images(digits.test)
    data = ImageData("digits", *parts, digits.classes[:CLASSES], (), digits.fingerprint)
    return make_task(data, ModelConfig(width=4))


@pytest.fixture(scope="module")
def expert(task: Task, expert_config: ExpertConfig) -> Expert:
    theta0 = task.model.init(7)
    watch, test = (lambda epoch, theta: epoch / 10), (lambda theta: 0.5)
    return train_expert(task.loss, theta0, *task.train, expert_config, task.model.layout, 7, watch, test)


@pytest.fixture
def elsewhere() -> Elsewhere:
    return Elsewhere()


def captured(elsewhere: Elsewhere, task: Task) -> CapturedDerivatives:
    """The task's derivatives as a GPU has them, with a recorder that lets nothing cross."""

    def record(work: Callable[[], object]) -> Callable[[], object]:
        def replay() -> object:
            with elsewhere.nothing_crosses("while a CUDA graph is captured"):
                return work()

        replay()
        return replay

    derivatives = torch_derivatives(task.model, torch.float32)
    assert derivatives is not None
    return CapturedDerivatives(derivatives, record)  # type: ignore[arg-type]


def on_device(elsewhere: Elsewhere, task: Task) -> Task:
    """The same task on the other device."""
    moved = replace(task, device=DEVICE, preprocess=task.preprocess.to(DEVICE))
    moved.__dict__["choice"] = Choice(captured(elsewhere, task), "")
    assert isinstance(moved.loss, FusedCrossEntropy)
    return moved


def waits(elsewhere: Elsewhere) -> list[str]:
    """Where the processor waited, but for the check of what is captured, which is once for each shape."""
    return [place for place in elsewhere.reads if place != "derivatives.cuda_graph.agree"]


# --- operations whose result depends on the order in which a GPU adds, by torch's page on deterministic algorithms

ORDER_MATTERS = {
    "aten::scatter_add",
    "aten::scatter_add_",
    "aten::grid_sampler_2d_backward",
    "aten::upsample_bilinear2d_backward",
    "aten::_adaptive_avg_pool2d_backward",
    "aten::adaptive_max_pool2d_backward",
    "aten::max_pool2d_with_indices_backward",
    "aten::reflection_pad2d_backward",
    "aten::replication_pad2d_backward",
    "aten::cumsum",
    "aten::histc",
    "aten::put_",
    "aten::index_copy",
    "aten::index_copy_",
    "aten::embedding_dense_backward",
}


def in_order(elsewhere: Elsewhere) -> None:
    """Whatever ran has one result."""
    assert {name: place for name, place in elsewhere.operations.items() if name in ORDER_MATTERS} == {}


# --- methods

SMALL = {
    **dict.fromkeys(("syn_steps", "total_steps"), 3),
    **dict.fromkeys(("net_epochs", "net_steps", "window"), 2),
    "batch_syn": 5,
    "batch_net": 32,
    "warm_up": 1,
    "pool_batch": 7,
    "batch_real": 16,
}
EVERY_STEP = {"synthetic.loop.outer_loop": 1}  # the loss; and whether the gradient of each part is finite
REPLAY = {
    "training.unroll._Replayed.backward": 1,  # the step sizes
    "objectives.trajectory.MatchTrajectory.__call__": 1,  # whether the student went far past its target
}
BY_CLASS = {"objectives.classes.sum_over_groups": 1}  # the labels
BY_CLASS_TWICE = {"objectives.classes.sum_over_groups": 2}
READS = {
    **dict.fromkeys(("mct", "mtt", "tesla", "ftd", "datm", "hop-tm"), REPLAY),
    "att": REPLAY | {"objectives.path.Nearest.__call__": 1},  # the distances of all steps
    "ptm": REPLAY | {"objectives.combine.FiniteOr.__call__": 1},  # whether the loss may be used
    **dict.fromkeys(("dc", "dsa", "dm", "idc", "dream", "dream-plus"), BY_CLASS),
    **dict.fromkeys(("tgdd", "ncfm"), BY_CLASS_TWICE),  # for the features, and for the cross-entropy
    "rat-bptt": {"training.unroll._Replayed.backward": 1},  # the step sizes
    "rcig": {"training.implicit.System.factor": 1},  # whether float32 was enough
}
"""Where an outer step waits for the device, and how often: beside these nothing does."""


def plan(method: Method, task: Task, expert: Expert, **options: object) -> Plan:
    facts = DataFacts(len(task.data.train), 2, ExpertConfig(epochs=len(expert.validation) - 1))
    config = method.resolve_options(method.config(**options), facts)
    config = config.model_copy(update={name: n for name, n in SMALL.items() if name in method.config.model_fields})
    trajectory = None if method.experts is None else expert.trajectory(method.experts)
    return method.plan(config, MethodInputs(task, [] if trajectory is None else [trajectory], 2, 0))


def steps(recipe: Plan, first: int, count: int) -> list[float]:
    losses: list[float] = []
    hooks = [*recipe.hooks, lambda synthetic, step, loss: losses.append(loss)]
    outer_steps = range(first, first + min(count, recipe.iterations))
    outer_loop(recipe.objective, recipe.synthetic, recipe.optimisers, outer_steps, 0, recipe.accept, hooks)
    return losses


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_an_outer_step_waits_where_it_is_listed(
    elsewhere: Elsewhere, method: Method, task: Task, expert: Expert
) -> None:
    reference = plan(method, task, expert)
    with elsewhere:
        recipe = plan(method, on_device(elsewhere, task), expert)
        assert all(tensor.device == DEVICE for tensor in recipe.synthetic.state().values())
        elsewhere.reads.clear()
        losses = steps(recipe, 0, 1)
        counts = Counter(waits(elsewhere))
        for hook in recipe.hooks:  # what a run writes down lies on the processor, and so does what it takes up
            if isinstance(hook, StatefulHook):
                hook.restore({name: tensor.cpu() for name, tensor in hook.state().items()}, 1)
        losses += steps(recipe, 1, 1)
        evaluated = [tensor.cpu() for tensor in recipe.evaluated_set().state().values()]
    if method.learns:
        expected = EVERY_STEP | {"synthetic.loop.find_fault": len(method.learns)} | READS[method.name]
        assert counts == expected
    in_order(elsewhere)
    assert losses == pytest.approx(steps(reference, 0, 2), rel=2e-3)
    for actual, expected in zip(evaluated, reference.evaluated_set().state().values(), strict=True):
        assert actual.shape == expected.shape
        assert actual.isfinite().all()


OPTIONS: list[tuple[str, dict[str, object]]] = [
    ("mct", {"canvas": 2, "noise_start": 0.1, "grad_accum": 2, "lr_img_every": 1}),
    (
        "mct",
        {"teacher_labels": True, "gradient": "backprop", "init": "kcentre", "optimizer": "sgd", "sampling": "whole"},
    ),
    ("mtt", {"canvas": 2, "optimizer": "adam", "init": "forgetting"}),
    ("datm", {"gradient": "tesla-corrected", "threshold": 1e-6}),
    ("ptm", {"overlap": -0.9, "overlap_every": 1, "retrain": 1, "patience": 5, "divergence": 0.9}),
    ("dc", {"policy": "dream", "init": "dream"}),
    ("dm", {"policy": "boundary", "init": "noise"}),
    ("idc", {"how": "bound", "factor": 3, "policy": "centre", "batch_syn": 3, "cutmix": 1.0}),
    ("rcig", {"flip": True, "grad_images": 3, "solver": "cg", "pool_reset": 1}),
    ("rcig", {"solver": "adam", "pool_activation": "relu", "margin": False}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=lambda value: value if isinstance(value, str) else "")
def test_options_stay_there(
    elsewhere: Elsewhere, name: str, options: dict[str, object], task: Task, expert: Expert
) -> None:
    method = METHODS[name]
    reference = plan(method, task, expert, **options)
    with elsewhere:
        moved = plan(method, on_device(elsewhere, task), expert, **options)
        losses = steps(moved, 0, 2)
        evaluated = moved.evaluated_set()
        assert all(tensor.device == DEVICE for tensor in evaluated.state().values())
    in_order(elsewhere)
    assert losses == pytest.approx(steps(reference, 0, 2), rel=2e-3)


# --- networks


def test_training_never_waits(elsewhere: Elsewhere, task: Task) -> None:
    """Ten steps, each with an augmentation: batches and draws are sent over, nothing comes back."""
    start, schedule = task.model.init(1), Schedule(1, 0.05, 32, 0.9, 5e-4)
    with elsewhere:
        moved = on_device(elsewhere, task)
        pair, theta = moved.train, start.to(DEVICE)
        elsewhere.reads.clear()
        end = final_parameters(train(moved.loss, theta, *pair, schedule, 3))
        assert waits(elsewhere) == []
        actual = end.cpu()
    in_order(elsewhere)
    expected = final_parameters(train(task.loss, start, *task.train, schedule, 3))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def test_experts_are_trained_scored_and_written(
    elsewhere: Elsewhere, task: Task, expert_config: ExpertConfig, tmp_path: Path
) -> None:
    for config in (expert_config.model_copy(update={"sam_rho": 0.01, "epochs": 2}), expert_config):
        with elsewhere:
            moved = on_device(elsewhere, task)
            store = Store.create(tmp_path / f"store-{config.epochs}", describe_experts(moved, config, seed=7))
            make_experts(moved, config, 1, 7, store)
            curves = measure_paths(moved, [store.read(0)], 3)
        assert len(curves["convexified_path"]["accuracy"][0]) == 3
    in_order(elsewhere)
    assert store.read(0).validation[-1] > store.read(0).validation[0]


def test_networks_are_evaluated(elsewhere: Elsewhere, task: Task) -> None:
    """With the accuracies there are here; the processor waits three times a network: finite, logits, classes."""
    config = EvalConfig(networks=2, epochs=3, batch_size=8, baseline_lrs=(0.01, 0.05))
    pair = task.train[0][:20], task.train[1][:20]
    with elsewhere:
        moved = on_device(elsewhere, task)
        sent = pair[0].to(DEVICE), pair[1].to(DEVICE)
        assert moved.validation[0].device == DEVICE
        elsewhere.reads.clear()
        lr = best_lr(moved, lambda _seed: sent, config, 5)
    assert Counter(waits(elsewhere)) == {"evaluation.outcome.measure": 3 * len(config.baseline_lrs) * config.networks}
    assert lr == best_lr(task, lambda _seed: pair, config, 5)
    in_order(elsewhere)


def test_networks_are_attacked(elsewhere: Elsewhere, task: Task) -> None:
    theta, config = task.model.init(1), RobustnessConfig(attacks=("pgd",), corruptions=("contrast",), images=20)
    outcome = Outcome(0, 0, theta, 0)
    expected = RobustnessTest(task, config, 0).run([TrainedNetwork(task.logits, theta, outcome)])
    with elsewhere:
        moved, sent = on_device(elsewhere, task), theta.to(DEVICE)
        rows = RobustnessTest(moved, config, 0).run([TrainedNetwork(moved.logits, sent, outcome)])
    assert rows == expected


# --- augmentation, tiles, CutMix: differentiable, the same as here, nothing waits


def images_of(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def cut(x: Tensor, mode: Mode) -> Tensor:
    return Partition(3, mode, (0.5,), max_per_class=9)(x, (torch.arange(6) // 2).to(x.device))[0]


def cut_whitened(x: Tensor) -> Tensor:
    pixels = torch.randint(256, (50, *x.shape[1:]), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return make_partition(fit_preprocess("zca", pixels).to(x.device), 3)(x, torch.arange(6).to(x.device))[0]


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    **{family: partial(DSA(family), seed=3) for family in FAMILIES},
    "layered": lambda x: ComposedDSA(DSA())(x, 4),
    "alike": lambda x: DSA("rotate", siamese=True)(x, 4),
    "toroidal crop": lambda x: toroidal_crop(x, (9, 7), make_generator(1, "crop")),
    "cutmix": lambda x: cutmix(x, torch.eye(6).to(x.device), torch.Generator().manual_seed(2))[0],
    **{f"tiles, {mode}": partial(cut, mode=mode) for mode in ("single", "multi", "bound")},
    "tiles, whitened": cut_whitened,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("shape", [(6, 3, 12, 12), (6, 1, 14, 11)], ids=str)
def test_images_are_changed_as_here(elsewhere: Elsewhere, change: str, shape: tuple[int, ...]) -> None:
    x = images_of(shape).requires_grad_()
    y = CHANGES[change](x)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad(y, x, weight)
    with elsewhere:
        moved, sent = x.detach().to(DEVICE).requires_grad_(), weight.to(DEVICE)
        changed = CHANGES[change](moved)
        (gradient,) = torch.autograd.grad(changed, moved, sent)
        waited = list(elsewhere.reads)
        assert torch.equal(changed.cpu(), y)
        torch.testing.assert_close(gradient.cpu(), expected, rtol=1e-5, atol=1e-5)
    assert waited == (["synthetic.tiles.bound_factors"] if change == "tiles, bound" else [])
    in_order(elsewhere)


# --- what is captured


@pytest.mark.parametrize("needs", [NeedsGrad(True, True, True), NeedsGrad(False, True, False)])
def test_nothing_crosses_in_what_is_captured(elsewhere: Elsewhere, task: Task, needs: NeedsGrad) -> None:
    """Several parts to a batch, hard and soft labels; and it is what autograd says."""
    theta, (images, labels) = task.model.init(0), (part[:20] for part in task.train)
    direction = torch.randn(len(theta), generator=torch.Generator().manual_seed(0))
    derivatives = replace(captured(elsewhere, task).derivatives, max_bytes=1)  # type: ignore[type-var]
    for target in (labels, torch.eye(CLASSES)[labels]):
        with elsewhere:
            point = [tensor.to(DEVICE) for tensor in (theta, images, target, direction)]
            with elsewhere.nothing_crosses("in what is captured"):
                gradient = derivatives.gradient(*point[:3])
                logits = derivatives.logits(*point[:2])
                derivatives.hvp(*point, needs)
            gradient_here, logits_here = gradient.cpu(), logits.cpu()
        torch.testing.assert_close(logits_here, task.model(theta, images), rtol=1e-4, atol=1e-4)
        leaf = theta.clone().requires_grad_()
        value = CrossEntropy(task.model)(leaf, Batch(images, target))
        torch.testing.assert_close(gradient_here, torch.autograd.grad(value, leaf)[0], rtol=1e-3, atol=1e-5)


# --- hooks


def hooks_of(task: Task, synthetic: SyntheticSet) -> Iterator[object]:
    optimiser = torch.optim.Adam([synthetic.images], 0.1)
    look = partial(extract_features, task.model, task.model.init(0).to(task.device))
    yield Ema(synthetic, 0.5)
    yield Ema(synthetic, 0.5, unbiased=True)
    yield StepDecay(optimiser, 1, 0.5)
    yield from make_clamp_hooks(task.preprocess)
    yield ProgressiveWindow(synthetic, [optimiser], (1, 2), 1, 1, 0.5, 9)
    yield OverlapRepair(synthetic, optimiser, look, task.train, -0.9, every=1, retrain=1, until=9)


def test_hooks_stay_there(elsewhere: Elsewhere, task: Task) -> None:
    with elsewhere:
        moved = on_device(elsewhere, task)
        images, labels = moved.train
        rows = torch.cat([(task.train[1] == label).nonzero().squeeze(1)[:3] for label in range(CLASSES)]).to(DEVICE)
        synthetic = SyntheticSet.from_images(images[rows], labels[rows], 0.01)
        for hook in hooks_of(moved, synthetic):
            for step in (1, 2, 3):
                hook(synthetic, step, 1.0)  # type: ignore[operator]
            if isinstance(hook, ProgressiveWindow):
                assert hook.accept(0.1)
                assert not hook.accept(1.0)
            if isinstance(hook, StatefulHook):
                devices = {name: tensor.device for name, tensor in hook.state().items()}
                hook.restore({name: tensor.cpu() for name, tensor in hook.state().items()}, 3)
                assert {name: tensor.device for name, tensor in hook.state().items()} == devices
                hook(synthetic, 4, 1.0)  # type: ignore[operator]
            if isinstance(hook, OverlapRepair):
                assert hook.num_replaced
        assert synthetic.images.device == DEVICE
        assert synthetic.images.cpu().isfinite().all()
    in_order(elsewhere)
