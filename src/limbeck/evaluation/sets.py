"""The evaluation of distilled sets, their files, and the sets of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.records import ResultRow
from limbeck.core.rng import derive_seed
from limbeck.data import ImageData, load_data
from limbeck.data.pixels import PixelRange
from limbeck.evaluation.protocol import EvalConfig
from limbeck.evaluation.trials import evaluate_set, result_row
from limbeck.networks.registry import ModelConfig
from limbeck.synthetic.distilled import DistilledSet, load
from limbeck.task import Precision, Task, announce_task, make_task, restore_switches, set_switches


def evaluate_distilled(
    task: Task, distilled: DistilledSet, config: EvalConfig, seed: int, which: str | None, listen: Listener
) -> ResultRow:
    """The row of a distilled set: fresh networks trained with the step size that was learned with it, on test."""
    pair = distilled.images.to(task.device), distilled.labels.to(task.device)
    summary = evaluate_set(
        task,
        lambda _seed: pair,
        config.schedule(distilled.lr),
        config.networks,
        task.test,
        derive_seed(seed, "evaluate"),
        lambda: listen({"event": "advance", "text": f"distilled, {which}"}),
    )
    return result_row("distilled", task, summary, which=which, lr=distilled.lr, step=distilled.provenance.get("step"))


class Evaluation(NamedTuple):
    """A distilled set that is to be evaluated on `task` by the protocol `config`; which: of its run, last or chosen."""

    task: Task
    distilled: DistilledSet
    which: str | None
    config: EvalConfig


@restore_switches()
def prepare_evaluation(
    distilled: DistilledSet | str | Path,
    *,
    data: str | Path | ImageData | None = None,
    networks: int | None = None,
    epochs: int | None = None,
    model: ModelConfig | None = None,
    device: str = "cpu",
    resize: int | None = None,
    pixel_range: PixelRange | None = None,
    follow_links: bool = False,
    precision: Precision = "float32",
) -> list[Evaluation]:
    """Read and check what `evaluate` takes, one evaluation for each set; nothing is trained.

    Raises UserError when there is no set, or when the data is not what the set was made from.
    """
    changes = {"networks": networks, "epochs": epochs}
    reading = {"resize": resize, "pixel_range": pixel_range, "follow_links": follow_links}
    evaluations: list[Evaluation] = []
    for which, one in load_sets(distilled):
        origin = one.provenance.get("data", {})
        source = data if data is not None else origin.get("source")
        if source is None:
            raise UserError("the set does not say where its data lies; name it with --data.")
        if evaluations:
            images: ImageData = evaluations[0].task.data  # both sets of a run are of one data set
        else:
            seed = one.provenance.get("config", {}).get("seed", 0)
            explicit: dict[str, Any] = {name: value for name, value in reading.items() if value}
            if not isinstance(source, ImageData):
                recorded = {name: origin[name] for name in (*reading, "validation", "seed") if name in origin}
                explicit = {"seed": seed, **recorded, **explicit}
            images = load_data(source, **explicit)
        require_same_data(images, one)
        network, augment, config = _read_recipe(one, model, changes)
        task = make_task(images, network, one.preprocess, augment, device, precision)
        if evaluations and _is_same_task(task, evaluations[0].task):
            task = evaluations[0].task  # whose tensors are computed once
        evaluations.append(Evaluation(task, one, which, config))
    return evaluations


def _is_same_task(task: Task, other: Task) -> bool:
    """Whether two tasks of the same images differ in nothing."""
    state, other_state = task.preprocess.state(), other.preprocess.state()
    return (
        task.describe() == other.describe()
        and state.keys() == other_state.keys()
        and all(torch.equal(tensor, other_state[name]) for name, tensor in state.items())
    )


def _train_alike(evaluation: Evaluation, other: Evaluation) -> bool:
    """Whether two evaluations train the same networks on the same tensors."""
    one, two = evaluation.distilled, other.distilled
    return (
        (evaluation.task is other.task and evaluation.config == other.config and one.lr == two.lr)
        and torch.equal(one.images, two.images)
        and torch.equal(one.labels, two.labels)
    )


def _read_recipe(
    distilled: DistilledSet, model: ModelConfig | None, changes: Mapping[str, int | None]
) -> tuple[ModelConfig, str, EvalConfig]:
    """Network, augmentation and protocol of a set's recipe with these changes; UserError where it lacks one."""
    recipe = dict(distilled.recipe)
    try:
        network, augment = evaluated_network(recipe.pop("model"), model), recipe.pop("augment")
        if not isinstance(augment, str):
            raise UserError(f"the set's recipe names no augmentation but {augment!r}; make the set again.")
        return network, augment, EvalConfig(**recipe | {name: n for name, n in changes.items() if n is not None})
    except KeyError as error:
        raise UserError(f"the set's recipe says nothing of {error}; make the set again.") from None
    except (TypeError, ValidationError):
        raise UserError(f"the recipe of the set and the options do not fit: {recipe}, {dict(changes)}.") from None


def without_repeats(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations without the second one of a run whose last set is the chosen one too."""
    return [one for place, one in enumerate(evaluations) if not (place and _train_alike(one, evaluations[0]))]


@restore_switches()
def run_evaluations(
    evaluations: Sequence[Evaluation], seed: int = 0, listen: Listener = lambda event: None
) -> list[ResultRow]:
    """The rows of prepared evaluations: fresh networks trained on each set, and tested.

    Where the last set of a run is the chosen one too, networks are trained once, and both rows are theirs.
    """
    rows: list[ResultRow] = []
    if evaluations:  # all of one data set and one network
        announce_task(evaluations[0].task, listen)
    for place, evaluation in enumerate(evaluations):
        task, distilled, which, config = evaluation
        if place and _train_alike(evaluation, evaluations[0]):
            rows.append(rows[0].model_copy(update={"which": which, "step": distilled.provenance.get("step")}))
            continue
        set_switches(task.device, task.precision)
        listen({"event": "stage", "name": "evaluate", "total": config.networks, "unit": "network"})
        rows.append(evaluate_distilled(task, distilled, config, seed, which, listen))
    return rows


def evaluate(
    distilled: DistilledSet | str | Path,
    *,
    seed: int = 0,
    listen: Listener = lambda event: None,
    data: str | Path | ImageData | None = None,
    networks: int | None = None,
    epochs: int | None = None,
    model: ModelConfig | None = None,
    device: str = "cpu",
    resize: int | None = None,
    pixel_range: PixelRange | None = None,
    follow_links: bool = False,
    precision: Precision = "float32",
) -> list[ResultRow]:
    """Rows for a distilled set, its file, or both sets of a run folder, on the test part of its data.

    seed:   of the networks.
    data:   where the images are; by default where the set says it came from.
    model:  another network than the one it was distilled with, see `evaluated_network`.
    networks, epochs: by default the set's own.
    resize, pixel_range, follow_links: as in `load_data`; by default as the set's data was read.
    Raises UserError when there is no set, or when the data is not what the set was made from.

    >>> from tempfile import TemporaryDirectory
    >>> from limbeck import distill
    >>> quick = {"eval": EvalConfig(networks=2, epochs=5, full_networks=0), "validate_epochs": 5}
    >>> with TemporaryDirectory() as folder:
    ...     path = distill("digits", method="random", ipc=1, out=f"{folder}/run", **quick)
    ...     rows = evaluate(path, networks=3)
    >>> [(row.set, row.which, row.n) for row in rows]
    [('distilled', 'last', 3), ('distilled', 'chosen', 3)]
    """
    evaluations = prepare_evaluation(
        distilled,
        data=data,
        networks=networks,
        epochs=epochs,
        model=model,
        device=device,
        resize=resize,
        pixel_range=pixel_range,
        follow_links=follow_links,
        precision=precision,
    )
    return run_evaluations(evaluations, seed, listen)


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


def load_sets(source: DistilledSet | str | Path) -> list[tuple[str | None, DistilledSet]]:
    """A set, that of a file, or both of a run folder, each with which of the run it is."""
    if isinstance(source, DistilledSet):
        sets = [source]
    else:
        files = [Path(source) / f"set-{which}.safetensors" for which in ("last", "chosen")]
        sets = [load(file) for file in files if file.exists()] or [load(source)]
    return [(distilled.provenance.get("which"), distilled) for distilled in sets]


def require_same_data(images: ImageData, distilled: DistilledSet) -> None:
    """Raise UserError unless a set was made from these images: on others its accuracy means nothing."""
    if tuple(images.classes) != distilled.classes:
        raise UserError(
            f"{images.name} has the classes {', '.join(images.classes[:5])} ..., the set was made for "
            f"{', '.join(distilled.classes[:5])} ...; give the data it was distilled from with --data."
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
            f"{images.name} has fingerprint {images.fingerprint}, the set was distilled from {fingerprint}: "
            "other images or another split, so its test images may have been trained on; give "
            "the data it was distilled from with --data."
        )
