"""Parts of the recipes that match real and synthetic images class by class: options, initial images, real images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.ranges import Count, Decay, Size
from limbeck.core.rng import derive_seed
from limbeck.data import Preprocess
from limbeck.experts.recorded import Recorded
from limbeck.methods.coreset import require_images, select_real
from limbeck.methods.initial import DreamInitName, draw_noise, make_real_mosaics
from limbeck.methods.plan import MethodConfig, MethodInputs
from limbeck.objectives.along_experts import AlongExperts, Anywhere
from limbeck.objectives.classes import NetworkSource, RowSampler
from limbeck.objectives.online_network import OnlineNetwork
from limbeck.objectives.query import Query, RandomRows
from limbeck.select.coresets import Selector, rows_by_class
from limbeck.select.fill import repeat_rows
from limbeck.select.policy import POLICIES, Dream
from limbeck.select.scores import extract_features
from limbeck.synthetic.loop import Hook
from limbeck.synthetic.set import Decode, SyntheticSet
from limbeck.synthetic.tiles import Mode, Partition, make_partition

LR_NET = 0.01  # the papers' step size of networks, and the initial step size of a set of these methods


class ClassMatchingConfig(MethodConfig):
    """Options of every method that matches real and synthetic images class by class."""

    iterations: Count = 300
    """Number of outer steps; each is one step of the papers' inner loop, for all classes together."""
    batch_real: Count = 64
    """Real images per class and outer step."""
    momentum: Decay = 0.5
    """Momentum of SGD on the images."""
    init: DreamInitName = "random"
    """A coreset, real images by clusters of an untrained network's features (dream), or noise."""
    policy: Literal["random", "dream", "centre", "boundary"] = "random"
    """Real images: random, by clusters of features (dream), or by distance to the class mean (centre, boundary)."""
    interval: Count = 10
    """Outer steps between two choices of a policy that uses features; it also chooses anew for every new network."""
    pool: Count = 1000
    """Random real images of a class that a policy chooses from, drawn anew for every choice."""
    per_cluster: Size = 1
    """s, images per cluster that the dream policy takes (DREAM+); there are batch-real / s clusters."""

    def real_images_per_step(self) -> int:
        """Return the batch of real images of a class."""
        return self.batch_real


class OnlineNetworkConfig(ClassMatchingConfig):
    """Options of the methods that have networks of their own."""

    added = ("network",)
    network: Literal["own", "experts"] = "own"
    """Networks of the method's own, or at every step another point on the path of an expert of --experts (experts)."""


class MatchingNetwork(NamedTuple):
    """The network under which images are compared, the outer steps for which it lives, and the hooks that renew it."""

    parameters: NetworkSource
    every: int
    hooks: list[Hook]


def choose_network(
    options: OnlineNetworkConfig, inputs: MethodInputs, make_own: Callable[[], OnlineNetwork]
) -> MatchingNetwork:
    """Return the method's own network, or points on the paths of experts; UserError where there are no experts."""
    if options.network == "own":
        own = make_own()
        return MatchingNetwork(own.parameters, own.every, [own])
    if not inputs.trajectories:
        raise UserError("--network experts takes networks from a store of experts; name one with --experts FOLDER.")
    place = Anywhere(whole=any(isinstance(path, Recorded) for path in inputs.trajectories))
    return MatchingNetwork(AlongExperts(inputs.trajectories, place, inputs.task.device), 1, [])


def find_class_rows(inputs: MethodInputs) -> tuple[Tensor, ...]:
    """Return the rows of the training images of every class."""
    return rows_by_class(inputs.task.train[1], inputs.task.data.num_classes)


def make_feature_fn(inputs: MethodInputs, network: NetworkSource) -> Callable[[Tensor, int], Tensor]:
    """Return (images (m, c, h, w), outer step) -> their features (m, d) under the network of that step."""
    return lambda images, step: extract_features(inputs.task.model, network(step, inputs.seed), images)


def make_row_sampler(
    options: ClassMatchingConfig, inputs: MethodInputs, network: MatchingNetwork
) -> tuple[RowSampler, list[Hook]]:
    """Return what samples the real images, and the hooks that update the network and the sampler, in this order."""
    if options.policy == "random":  # it needs no features and has no state
        return RandomRows(find_class_rows(inputs), options.batch_real), network.hooks
    policies: dict[str, Selector] = {**POLICIES, "dream": Dream(options.per_cluster)}
    query = Query(
        images=inputs.task.train[0],
        class_rows=find_class_rows(inputs),
        policy=policies[options.policy],
        count=options.batch_real,
        features=make_feature_fn(inputs, network.parameters),
        seed=inputs.seed,
        every=network.every,
        interval=options.interval,
        pool=options.pool,
    )
    return query.sample, [*network.hooks, query]


def init_synthetic_set(
    options: ClassMatchingConfig, inputs: MethodInputs, network: NetworkSource, decode: Decode | None = None
) -> SyntheticSet:
    """Return `ipc` images per class to learn; with tiles, every tile is a downsampled real image.

    Raises UserError for a class with too few images.
    """
    if options.init == "noise":
        return SyntheticSet.from_images(*draw_noise(inputs), LR_NET, ("images",), decode=decode)
    tiles = decode if isinstance(decode, Partition) else Partition(1)
    count = inputs.ipc * tiles.factor**2
    if options.init == "dream":
        seed, features = derive_seed(inputs.seed, "start"), make_feature_fn(inputs, network)
        class_rows = find_class_rows(inputs)
        query = Query(inputs.task.train[0], class_rows, Dream(), count, features, seed, pool=options.pool)
        require_images(inputs, count)
        rows = torch.cat([repeat_rows(rows, count) for rows in query.rows])
    else:
        rows = select_real(options.init, inputs, count)
    images = make_real_mosaics(rows, inputs, tiles)
    labels = inputs.task.train[1][rows[:: tiles.factor**2]]
    return SyntheticSet.from_images(images, labels, LR_NET, ("images",), decode=decode)


def make_tiles(factor: int, how: Mode, inputs: MethodInputs) -> Partition | None:
    """Return what cuts every image into factor x factor tiles; None for a factor of 1."""
    return make_partition(inputs.task.preprocess, factor, how) if factor > 1 else None


def mean_pixel_variance(preprocess: Preprocess) -> float:
    """Return the mean squared change of a pixel per squared change of 1 in network input space.

    With x = std * z + mean, a step of lr along the gradient in x and one of lr / std^2 along the gradient in z give the
    same pixels. One number serves all channels: the mean of their std^2 (exact where they agree; CIFAR-10's are within
    8 %), or the mean squared gain of ZCA's inverse.
    """
    tensors = preprocess.state()
    if preprocess.kind == "normalise":
        return float(tensors["std"].double().square().mean())
    return float(tensors["colour"].double().square().sum(1).mean())


def make_image_optimiser(synthetic: SyntheticSet, lr: float, momentum: float) -> torch.optim.Optimizer:
    """Return SGD on the images, with a step size in network input space."""
    return torch.optim.SGD([synthetic.images], lr, momentum=momentum)
