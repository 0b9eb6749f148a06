"""Coresets: real images as the result, or as the initial images of any other method."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.ranges import StepSize
from limbeck.core.text import counted, quote
from limbeck.core.user_imports import entry_points
from limbeck.experts.store import Kind
from limbeck.methods.plan import Method, MethodConfig, MethodInputs, Plan
from limbeck.networks.losses import CrossEntropy
from limbeck.networks.statistics import for_inference
from limbeck.select import find_selector, herding, kcentre, kmeans, random, topk
from limbeck.select.coresets import Selector, rows_by_class, select_correct, select_per_class
from limbeck.select.fill import take_images
from limbeck.select.scores import early_checkpoints, el2n, extract_features, forgetting, grand
from limbeck.synthetic.set import SyntheticSet
from limbeck.training.plain import predict

FeatureFn = Callable[[MethodInputs], Tensor]
"""inputs -> what a selector compares, one row (d,) or more dimensions per training image."""


def pixels(inputs: MethodInputs) -> Tensor:
    """Return the training images (n, c, h, w) in network input space."""
    return inputs.task.train[0]


def expert_features(inputs: MethodInputs) -> Tensor:
    """Return features (n, d) by the first expert at its end; by an untrained network where there are no experts."""
    task = inputs.task
    paths = inputs.trajectories
    theta = paths[0].at(paths[0].end) if paths else task.model.init(inputs.seed, "features")
    return extract_features(task.model, theta.to(task.device), task.train[0])


def _early_thetas(inputs: MethodInputs) -> list[Tensor]:
    return [theta.to(inputs.task.device) for theta in early_checkpoints(inputs.trajectories)]


def forgetting_scores(inputs: MethodInputs) -> Tensor:
    """Return the number of forgetting events (n, 1) along all experts."""
    return forgetting(inputs.task.model, inputs.trajectories, *inputs.task.train)[:, None]


def el2n_scores(inputs: MethodInputs) -> Tensor:
    """Return the EL2N scores (n, 1) by all experts early in training."""
    return el2n(inputs.task.model, _early_thetas(inputs), *inputs.task.train)[:, None]


def grand_scores(inputs: MethodInputs) -> Tensor:
    """Return the GraNd scores (n, 1) by all experts early in training."""
    if inputs.task.model.has_statistics:
        raise UserError("grand takes the gradient of one image at a time, and batch norm needs several; take el2n.")
    return grand(CrossEntropy(inputs.task.model), _early_thetas(inputs), *inputs.task.train)[:, None]


def select_by(selector: Selector, feature_fn: FeatureFn, inputs: MethodInputs, ipc: int) -> Tensor:
    """Return `ipc` rows of every class by a selector of these features."""
    task, repeat = inputs.task, inputs.fill != "none"
    features = feature_fn(inputs)
    return select_per_class(selector, features, task.train[1], task.data.num_classes, ipc, inputs.seed, repeat=repeat)


def select_random_correct(inputs: MethodInputs, ipc: int) -> Tensor:
    """Return `ipc` random rows of every class among those that an expert classifies correctly at its end."""
    task = inputs.task
    thetas = [path.at(path.end).to(task.device) for path in inputs.trajectories]
    network = for_inference(task.model, task.train[0])
    experts = [partial(predict, network, theta) for theta in thetas]
    return select_correct(*task.train, task.data.num_classes, ipc, experts, inputs.seed, repeat=inputs.fill != "none")


class Coreset(NamedTuple):
    """A way to select real images.

    select: (inputs, images per class) -> rows of the training images, class-sorted.
    experts: which trajectories it needs, as in `Method`.
    """

    select: Callable[[MethodInputs, int], Tensor]
    experts: Kind | None
    summary: str
    source: str


CORESETS: dict[str, Coreset] = {
    "random": Coreset(partial(select_by, random, pixels), None, "random real images", "every paper's baseline"),
    "kmeans": Coreset(
        partial(select_by, kmeans, pixels),
        None,
        "the real image nearest to each k-means centre of pixels",
        "Lloyd 1982",
    ),
    "kmeans-features": Coreset(
        partial(select_by, kmeans, expert_features),
        "any",
        "the real image nearest to each k-means centre of an expert's features",
        "Lloyd 1982; as DREAM's start (Liu et al., ICCV 2023), by a trained network",
    ),
    "herding": Coreset(
        partial(select_by, herding, expert_features),
        "any",
        "real images whose mean feature follows the class's",
        "Welling 2009; Rebuffi et al., iCaRL, CVPR 2017, algorithm 4",
    ),
    "kcentre": Coreset(
        partial(select_by, kcentre, expert_features),
        "any",
        "real images far from each other in an expert's features",
        "Sener and Savarese, ICLR 2018, algorithm 1",
    ),
    "forgetting": Coreset(
        partial(select_by, topk, forgetting_scores),
        "any",
        "real images that experts forget most often",
        "Toneva et al., ICLR 2019",
    ),
    "el2n": Coreset(
        partial(select_by, topk, el2n_scores),
        "any",
        "real images with the largest error early in training",
        "Paul et al., Deep Learning on a Data Diet, NeurIPS 2021, definition 2.2",
    ),
    "grand": Coreset(
        partial(select_by, topk, grand_scores),
        "any",
        "real images with the largest gradient early in training",
        "Paul et al., Deep Learning on a Data Diet, NeurIPS 2021, definition 2.1",
    ),
    "correct": Coreset(
        select_random_correct, "any", "random real images that experts classify correctly", "as DATM starts"
    ),
}


CoresetName = Literal[
    "random", "kmeans", "kmeans-features", "herding", "kcentre", "forgetting", "el2n", "grand", "correct"
]
"""The names in `CORESETS`, as the type of an option."""


def is_own_selector(name: str) -> bool:
    """Return whether a name has the form of a user's selector: MODULE:NAME, or an entry point of a package."""
    return ":" in name or name in entry_points("selector")


def select_real(name: str, inputs: MethodInputs, ipc: int) -> Tensor:
    """Return rows (classes * ipc,) of real images, `ipc` of every class, by the coreset of this name.

    name: one of `CORESETS`, or a user's selector (MODULE:NAME, or an entry point), which compares pixels.
    With `inputs.fill`, a class with fewer images gives all of them, again and again. Otherwise this raises UserError
    for such a class. Raises UserError for an unknown name, and for scores by experts where there are none.
    """
    if name not in CORESETS:
        if not is_own_selector(name):
            raise UserError(
                f"there is no way to choose real images called {quote(name)}; use one of {', '.join(CORESETS)}."
            )
        return select_by(find_selector(name), pixels, inputs, ipc).to(inputs.task.device)
    require_images(inputs, ipc)
    if not inputs.trajectories and name in ("forgetting", "el2n", "grand", "correct"):
        raise UserError(f"{quote(name)} judges images by trained experts; name a store of them with --experts.")
    return CORESETS[name].select(inputs, ipc).to(inputs.task.device)


def require_images(inputs: MethodInputs, count: int) -> None:
    """Raise UserError where a class has fewer than `count` training images, which `inputs.fill` does not fill up."""
    data, start = inputs.task.data, count // inputs.ipc
    fewer = "ask for fewer images per class"
    if start > 1:
        fewer = f"an image of the set starts from {start}: use a lower --factor or --canvas"
    for name, rows in zip(data.classes, rows_by_class(inputs.task.train[1], data.num_classes)):
        if len(rows) < count and inputs.fill == "none":
            raise UserError(
                f"class {quote(name)} of {data.name} has {counted(len(rows), 'training image')}, fewer than {count}; "
                f"{fewer}, or fill it up with --fill repeat, augment or noise."
            )


def take_real(rows: Tensor, inputs: MethodInputs) -> Tensor:
    """Return the training images of rows (n,); where an image comes again, it is varied as `inputs.fill` says."""
    task = inputs.task
    return take_images(task.train[0], rows, inputs.fill, task.augment, inputs.seed)


class CoresetConfig(MethodConfig):
    """Options of a coreset."""

    lr_net: StepSize = 0.01
    """Step size of the networks that evaluate it until one is chosen on validation (--eval.baseline-lrs)."""


def plan(name: str, config: CoresetConfig, inputs: MethodInputs) -> Plan:
    """Return real images and no outer steps."""
    rows = select_real(name, inputs, inputs.ipc)
    images, labels = take_real(rows, inputs), inputs.task.train[1][rows]
    synthetic = SyntheticSet.from_images(images, labels, config.lr_net, learned=())
    return Plan(zero_objective, synthetic, [], iterations=0)


def zero_objective(synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
    """Return 0: the objective of a plan without outer steps."""
    return torch.zeros(())


def make_method(name: str, coreset: Coreset) -> Method:
    """Return the coreset of this name as a method without outer steps."""
    return Method(
        name=name,
        summary=coreset.summary,
        source=coreset.source,
        config=CoresetConfig,
        experts=coreset.experts,
        plan=partial(plan, name),
        expert_defaults={"keep": "both"} if coreset.experts else {},
        learns=(),
    )


CORESET_METHODS = [make_method(name, coreset) for name, coreset in CORESETS.items()]
