"""What is evaluated: distilled sets, their files or those of a run, with the data and the networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ValidationError

from limbeck.core.errors import UserError
from limbeck.core.short_repr import short_repr
from limbeck.core.text import printable, quote, shorten
from limbeck.core.user_imports import require_own_code
from limbeck.data import READING, DataSource, ImageData, load_data
from limbeck.data.readers.table_files import list_names
from limbeck.evaluation.protocol import EvalConfig
from limbeck.evaluation.robustness import RobustnessConfig
from limbeck.networks.registry import ModelConfig, parse_network
from limbeck.synthetic.distilled import DistilledSet, load
from limbeck.task import Precision, Task, make_task, restore_switches

FOR_BASELINES = ("baseline_lrs", "full_epochs", "full_batch_size", "full_networks")
"""Fields of `EvalConfig` that a set's recipe does not have: those of its run are taken."""


class Evaluation(NamedTuple):
    """A distilled set that is to be evaluated on the network of `task` by the protocol `config`.

    which:  Of its run, last or chosen.
    is_own: Whether the set was distilled with this network. Without `networks`, the one network of an evaluation
        counts as its own.
    label:  What rows call the network, where it is one of several; see `ModelConfig.label`.
    robustness: Perturbations of test images under which the networks are tested too.
    """

    task: Task
    distilled: DistilledSet
    which: str | None
    config: EvalConfig
    is_own: bool = True
    label: str | None = None
    robustness: RobustnessConfig | None = None

    def __repr__(self) -> str:
        return short_repr(self)

    @property
    def network(self) -> str:
        """What rows call the network."""
        return self.task.model_config.name if self.label is None else self.label


@restore_switches()
def prepare_evaluation(
    distilled: DistilledSet | str | Path,
    *,
    which: Literal["both", "last", "chosen"] = "both",
    data: DataSource | None = None,
    networks: str | Sequence[str] = (),
    protocol: str | EvalConfig | None = None,
    changes: Mapping[str, Any] | None = None,
    model: ModelConfig | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
    robustness: RobustnessConfig | None = None,
    **reading: Any,
) -> list[Evaluation]:
    """Read and check what `evaluate` takes: one evaluation for each network and set; nothing is trained.

    which:    The sets of a run folder.
    networks: As `split_networks` takes them.
    changes: Options of the protocol that are not None take the place of its own.
    reading: How `load_data` reads; what is not said is as the set's data was read.
    Raises UserError when there is no set, when the data is not what the set was made from, and for networks that do not
    fit the images.
    """
    networks = split_networks(networks)
    if networks and model not in (None, OWN_NETWORK):
        raise UserError("--networks names networks, and --model one network; give one of the two.")
    if networks and protocol == "regression":
        raise UserError("the protocol 'regression' has a network of its own; leave out --networks.")
    if robustness is not None and protocol == "regression":
        raise UserError("networks of the protocol 'regression' are not tested on perturbed images; name another one.")
    changes = {name: value for name, value in (changes or {}).items() if value is not None}
    evaluations: list[Evaluation] = []
    for part, one in load_sets(distilled, which):
        origin = one.provenance.get("data", {})
        source = data if data is not None else origin.get("source")
        if source is None:
            raise UserError("the set does not say where its data lies; name it with --data.")
        if evaluations:
            images: ImageData = evaluations[0].task.data  # both sets of a run are of one data set
        else:
            seed = one.provenance.get("config", {}).get("seed", 0)
            explicit = {name: value for name, value in reading.items() if value not in (None, False)}
            if not isinstance(source, ImageData):
                recorded = {name: origin[name] for name in (*READING, "seed") if name in origin}
                explicit = {"seed": seed, **recorded, **explicit}
            if data is None:
                require_own_code(str(source).partition("=")[0], "reader of the set's data", "--data")
            images = load_data(source, **explicit)
        require_same_data(images, one)
        network, augment, config = _read_recipe(one, model, protocol, changes)
        task = make_task(images, network, one.preprocess, augment, device, precision)
        if evaluations and _is_same_task(task, evaluations[0].task):
            task = evaluations[0].task  # whose tensors are computed once
        evaluations.append(Evaluation(task, one, part, config, robustness=robustness))
        if protocol == "regression" and one.targets is None:
            raise UserError("the protocol 'regression' is for sets with real-valued targets (rcig); name another.")
    if not networks:
        return evaluations
    by_label: dict[str | None, list[Evaluation]] = {}
    for name in networks:
        on_network = list(_on_network(name, evaluations))
        by_label.setdefault(on_network[0].label, on_network)  # one network may be named in two ways
    return [evaluation for on_network in by_label.values() for evaluation in on_network]


def split_networks(networks: str | Sequence[str]) -> list[str]:
    """Names of networks without repeats, from names or from one string of them with commas.

    Raises UserError for a number, which --networks took before there were names.

    >>> split_networks("convnet,resnet18:width=16")
    ['convnet', 'resnet18:width=16']
    """
    names = networks.split(",") if isinstance(networks, str) else networks
    if isinstance(names, int) or any(name.strip().isdecimal() for name in names):
        raise UserError(
            f"--networks names networks, and {networks} is a number; how many fresh networks are trained is "
            "--num-networks (in Python num_networks)."
        )
    return list(dict.fromkeys(name.strip() for name in names))


def _on_network(text: str, evaluations: Sequence[Evaluation]) -> Iterator[Evaluation]:
    """The evaluations of sets on one network, as `parse_network` reads it.

    The set's own name stands for the network that it was distilled with, changed by the options; another name for that
    network by its own defaults.
    """
    network = parse_network(text)
    tasks: dict[Task, Task] = {}
    for evaluation in evaluations:
        task, size = evaluation.task, evaluation.task.data.size
        own = task.model_config
        has_own_name = network.name in (own.name, OWN_NETWORK.name)
        usual = own if has_own_name else ModelConfig(name=network.name).resolved(size)
        model = evaluated_network(own.model_dump(), network.model_copy(update={"name": OWN_NETWORK.name}))
        model = model.resolved(size) if has_own_name else network.resolved(size)
        if task not in tasks:
            tasks[task] = task if model == own else task.with_model(model)
        yield evaluation._replace(task=tasks[task], is_own=model == own, label=model.label(usual))


def _is_same_task(task: Task, other: Task) -> bool:
    """Whether two tasks of the same images differ in nothing."""
    state, other_state = task.preprocess.state(), other.preprocess.state()
    return (
        task.describe() == other.describe()
        and state.keys() == other_state.keys()
        and all(torch.equal(tensor, other_state[name]) for name, tensor in state.items())
    )


def _read_recipe(
    distilled: DistilledSet, model: ModelConfig | None, protocol: str | EvalConfig | None, changes: Mapping[str, Any]
) -> tuple[ModelConfig, str, EvalConfig]:
    """Network, augmentation and protocol of a set's recipe with changes; UserError where it lacks one of them."""
    recipe = dict(distilled.recipe)
    run = distilled.provenance.get("config", {}).get("eval", {})
    try:
        own = recipe.pop("model")
        if model is None or model.name == OWN_NETWORK.name:
            require_own_code(str(own.get("name")), "network of the set", "--model.name")
        network, augment = evaluated_network(own, model), recipe.pop("augment")
        if not isinstance(augment, str):
            raise UserError(f"the set's recipe names no augmentation but {quote(augment)}; make the set again.")
        options = {name: run[name] for name in FOR_BASELINES if name in run} | recipe
        if isinstance(protocol, EvalConfig):
            options = protocol.model_dump()
        elif protocol not in (None, "regression"):
            options = {"protocol": protocol}
        elif changes.get("optimiser", recipe.get("optimiser", "sgd")) != recipe.get("optimiser", "sgd"):
            options.pop("baseline_lrs", None)  # the run's are for its own optimiser
        return network, augment, EvalConfig(**{**options, **changes})
    except KeyError as error:
        raise UserError(f"the set's recipe says nothing of {shorten(error)}; make the set again.") from None
    except (TypeError, ValidationError) as error:
        faults = error.errors()[0]["loc"] if isinstance(error, ValidationError) else []
        place = printable(".".join(map(str, faults)) or str(error), 80)
        raise UserError(
            f"the recipe of the set and the options do not fit ({place}); give a whole protocol with --protocol, or "
            "make the set again."
        ) from None


OWN_NETWORK = ModelConfig(name="same")


def evaluated_network(own: dict[str, Any], model: ModelConfig | None) -> ModelConfig:
    """The network that a set is evaluated on: `model`, or by default the set's own, as its recipe describes it.

    A `model` of the name "same" is the set's own network, changed by those options that `model` sets.

    >>> evaluated_network({"name": "convnet", "depth": 3, "width": 128}, ModelConfig(name="same", width=64))
    ModelConfig(name='convnet', depth=3, width=64, norm=None, activation=None, pooling=None)
    """
    if model is None or model.name == OWN_NETWORK.name:
        options = {} if model is None else model.model_dump(exclude={"name"}, exclude_none=True)
        return ModelConfig(**{**own, **options})
    return model


def load_sets(
    source: DistilledSet | str | Path, which: Literal["both", "last", "chosen"] = "both"
) -> list[tuple[str | None, DistilledSet]]:
    """A set, that of a file, or those of a run folder, each with which of the run it is."""
    if isinstance(source, DistilledSet):
        sets = [source]
    else:
        names = ("last", "chosen") if which == "both" else (which,)
        files = [Path(source) / f"set-{name}.safetensors" for name in names]
        sets = [load(file) for file in files if file.exists()] or [load(source)]
    return [(distilled.provenance.get("which"), distilled) for distilled in sets]


def require_same_data(images: ImageData, distilled: DistilledSet) -> None:
    """Raise UserError unless a set was made from these images: on others its accuracy means nothing."""
    if tuple(images.classes) != distilled.classes:
        raise UserError(
            f"{images.name} has the classes {list_names(images.classes, 3)}, and the set was made for "
            f"{list_names(distilled.classes, 3)}; give the data it was distilled from with --data."
        )
    canvas = distilled.provenance.get("config", {}).get("canvas") or 1
    if tuple(distilled.images.shape[1:]) != (images.channels, *(canvas * side for side in images.size)):
        raise UserError(
            f"{images.name} has images of shape {images.shape}, the set {tuple(distilled.images.shape[1:])}; "
            "use --resize."
        )
    fingerprint = distilled.provenance.get("data", {}).get("fingerprint")
    if fingerprint is not None and fingerprint != images.fingerprint:
        raise UserError(
            f"{images.name} has fingerprint {images.fingerprint}, the set was distilled from {quote(fingerprint)}: "
            "other images or another split, so its test images may have been trained on; give "
            "the data it was distilled from with --data."
        )
