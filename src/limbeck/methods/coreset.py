"""Coresets: real images to keep as they are, or to start any other method from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.experts.store import Kind
from limbeck.methods.plan import Method, MethodConfig, MethodInputs, Plan
from limbeck.networks.losses import CrossEntropy
from limbeck.select import herding, kcentre, kmeans, random, topk
from limbeck.select.coresets import Selector, select_correct, select_per_class
from limbeck.select.scores import early_checkpoints, el2n, extract_features, forgetting, grand
from limbeck.synthetic.set import SyntheticSet
from limbeck.training.plain import predict

View = Callable[[MethodInputs], Tensor]
"""What a selector looks at, (training images, ...)."""


def pixels(inputs: MethodInputs) -> Tensor:
    """The images in network input space."""
    return inputs.task.train[0]


def expert_features(inputs: MethodInputs) -> Tensor:
    """Features of the first expert at its end; of an untrained network where the method has no experts."""
    task = inputs.task
    paths = inputs.trajectories
    theta = paths[0].at(paths[0].end) if paths else task.model.init(inputs.seed, "features")
    return extract_features(task.model, theta.to(task.device), task.train[0])


def _early(inputs: MethodInputs) -> list[Tensor]:
    return [theta.to(inputs.task.device) for theta in early_checkpoints(inputs.trajectories)]


def forgetting_scores(inputs: MethodInputs) -> Tensor:
    """Forgetting events along all experts."""
    return forgetting(inputs.task.model, inputs.trajectories, *inputs.task.train)[:, None]


def el2n_scores(inputs: MethodInputs) -> Tensor:
    """EL2N of all experts, early."""
    return el2n(inputs.task.model, _early(inputs), *inputs.task.train)[:, None]


def grand_scores(inputs: MethodInputs) -> Tensor:
    """GraNd of all experts, early."""
    return grand(CrossEntropy(inputs.task.model), _early(inputs), *inputs.task.train)[:, None]


def by(select: Selector, view: View, inputs: MethodInputs, ipc: int) -> Tensor:
    """`ipc` rows of every class, by what the view shows."""
    task = inputs.task
    return select_per_class(select, view(inputs), task.train[1], task.data.num_classes, ipc, inputs.seed)


def correct(inputs: MethodInputs, ipc: int) -> Tensor:
    """Random rows among those that an expert classifies correctly at its end."""
    task = inputs.task
    ends = [path.at(path.end).to(task.device) for path in inputs.trajectories]
    experts = [partial(predict, task.model, theta) for theta in ends]
    return select_correct(*task.train, task.data.num_classes, ipc, experts, inputs.seed)


class Coreset(NamedTuple):
    """A way to choose real images: (inputs, images per class) -> rows, class-sorted; what it asks of experts."""

    rows: Callable[[MethodInputs, int], Tensor]
    experts: Kind | None
    summary: str
    source: str


CORESETS: dict[str, Coreset] = {
    "random": Coreset(partial(by, random, pixels), None, "random real images", "every paper's baseline"),
    "kmeans": Coreset(
        partial(by, kmeans, pixels), None, "the real image nearest to each k-means centre of pixels", "Lloyd 1982"
    ),
    "kmeans-features": Coreset(
        partial(by, kmeans, expert_features),
        "any",
        "the real image nearest to each k-means centre of an expert's features",
        "Lloyd 1982; as DREAM's start (Liu et al., ICCV 2023), by a trained network",
    ),
    "herding": Coreset(
        partial(by, herding, expert_features),
        "any",
        "real images whose mean feature follows the class's",
        "Welling 2009; Rebuffi et al., iCaRL, CVPR 2017, algorithm 4",
    ),
    "kcentre": Coreset(
        partial(by, kcentre, expert_features),
        "any",
        "real images far from each other in an expert's features",
        "Sener and Savarese, ICLR 2018, algorithm 1",
    ),
    "forgetting": Coreset(
        partial(by, topk, forgetting_scores),
        "any",
        "real images that experts forget most often",
        "Toneva et al., ICLR 2019",
    ),
    "el2n": Coreset(
        partial(by, topk, el2n_scores),
        "any",
        "real images with the largest error early in training",
        "Paul et al., Deep Learning on a Data Diet, NeurIPS 2021, definition 2.2",
    ),
    "grand": Coreset(
        partial(by, topk, grand_scores),
        "any",
        "real images with the largest gradient early in training",
        "Paul et al., Deep Learning on a Data Diet, NeurIPS 2021, definition 2.1",
    ),
    "correct": Coreset(correct, "any", "random real images that experts classify correctly", "as DATM starts"),
}


Init = Literal["random", "kmeans", "kmeans-features", "herding", "kcentre", "forgetting", "el2n", "grand", "correct"]
"""Names of CORESETS, for options."""


def choose_real(name: str, inputs: MethodInputs, ipc: int) -> Tensor:
    """Rows of `ipc` real images of every class, by the coreset of this name.

    Raises UserError for an unknown name, and for scores by experts where there are none.
    """
    if name not in CORESETS:
        raise UserError(f"there is no way to choose real images called '{name}'; use one of {', '.join(CORESETS)}.")
    if not inputs.trajectories and name in ("forgetting", "el2n", "grand", "correct"):
        raise UserError(f"'{name}' judges images by trained experts; name a store of them with --experts.")
    return CORESETS[name].rows(inputs, ipc).to(inputs.task.device)


class CoresetConfig(MethodConfig):
    """Options of a coreset."""

    lr_net: float = Field(default=0.01, gt=0)
    """step size of the networks that judge it before one is chosen on validation (--eval.baseline-lrs)"""


def plan(name: str, config: CoresetConfig, inputs: MethodInputs) -> Plan:
    """Real images, and no outer steps."""
    images, labels = inputs.task.train
    rows = choose_real(name, inputs, inputs.ipc)
    synthetic = SyntheticSet.from_images(images[rows], labels[rows], config.lr_net, learned=())
    return Plan(nothing, synthetic, [], iterations=0)


def nothing(synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
    """The objective of what is not optimised: 0."""
    return torch.zeros(())


def method(name: str, coreset: Coreset) -> Method:
    """The coreset of this name as a method of no steps."""
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


CORESET_METHODS = [method(name, coreset) for name, coreset in CORESETS.items()]
