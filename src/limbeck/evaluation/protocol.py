"""Evaluation: fresh networks trained on a small set, n seeds, mean, standard deviation and n together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.parallel import CheckCancelled, parallel_map
from limbeck.core.records import ResultRow
from limbeck.core.rng import derive_seed
from limbeck.data import ImageData, load_data
from limbeck.data.pixels import PixelRange
from limbeck.networks.registry import ModelConfig
from limbeck.synthetic.distilled import DistilledSet, load
from limbeck.task import Precision, Task, announce_task, make_task, restore_switches, set_switches
from limbeck.training.plain import Schedule, Score, final_parameters, score, train


class EvalConfig(BaseModel):
    """The field's protocol: SGD on the set from a random start, with the set's own step size."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    networks: int = Field(default=5, ge=1)
    """Number of fresh networks, each with its own seed."""
    epochs: int = Field(default=1000, ge=1)
    """Passes over the set; the step size drops to a tenth after half of them."""
    batch_size: int = Field(default=256, ge=1)
    """Images per step."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """Weight decay of SGD."""
    baseline_lrs: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(0.003, 0.01, 0.03), min_length=1)
    """Step sizes to choose from on validation, for sets without a step size of their own, such as real images."""
    full_epochs: int = Field(default=30, ge=1)
    """Passes over the whole training part, for the full-data accuracy."""
    full_batch_size: int = Field(default=64, ge=1)
    """Images per step, for the full-data accuracy."""
    full_networks: int = Field(default=3, ge=0)
    """Number of networks for the full-data accuracy; 0 leaves it out."""

    def schedule(self, lr: float, epochs: int | None = None) -> Schedule:
        """The schedule with the step size `lr`; epochs: the default is the protocol's.

        >>> EvalConfig(networks=10).schedule(lr=0.01).epochs
        1000
        """
        epochs = self.epochs if epochs is None else epochs
        return Schedule(epochs, lr, self.batch_size, self.momentum, self.weight_decay, epochs // 2 + 1)

    def full_schedule(self, lr: float) -> Schedule:
        """The schedule of training on the whole training part, with the step size `lr`."""
        return self.model_copy(update={"batch_size": self.full_batch_size}).schedule(lr, self.full_epochs)


class Summary(NamedTuple):
    """Accuracies of n networks, plain and balanced over classes; std is of the sample, and None where n is 1."""

    accuracy_mean: float
    accuracy_std: float | None
    balanced_accuracy_mean: float
    balanced_accuracy_std: float | None
    n: int

    @classmethod
    def of(cls, scores: Iterable[Score]) -> Summary:
        """Summarise one score per network."""
        plain, balanced = zip(*scores)
        spread = [stdev(values) if len(values) > 1 else None for values in (plain, balanced)]
        return cls(fmean(plain), spread[0], fmean(balanced), spread[1], len(plain))


SetForSeed = Callable[[int], tuple[Tensor, Tensor]]
"""seed -> (images, labels) to train one network on."""


class Trial(NamedTuple):
    """One fresh network to train on `images` and `labels`, from `seed`."""

    images: Tensor
    labels: Tensor
    schedule: Schedule
    seed: int


def make_trials(draw_set: SetForSeed, schedule: Schedule, networks: int, seed: int) -> list[Trial]:
    """One trial a network, each on the set of its own seed."""
    children = [derive_seed(seed, "network", network) for network in range(networks)]
    return [Trial(*draw_set(child), schedule, child) for child in children]


def run_trials(
    task: Task, trials: Sequence[Trial], split: tuple[Tensor, Tensor], advance: Callable[[], None] = lambda: None
) -> list[Score]:
    """Train the network of every trial and score it once on `split`, un-augmented; several at the same time.

    advance: called after every network.
    """
    starts = [task.model.init(trial.seed).to(task.device) for trial in trials]
    functions = [partial(_run_trial, task, trial, start, split) for trial, start in zip(trials, starts)]
    scores: dict[int, Score] = {}
    for place, trial_score in parallel_map(functions, task.max_workers):
        scores[place] = trial_score
        advance()
    return [scores[place] for place in range(len(trials))]


def _run_trial(task: Task, trial: Trial, start: Tensor, split: tuple[Tensor, Tensor], check: CheckCancelled) -> Score:
    loss, network = task.loss_and_network()
    path = train(loss, start, trial.images, trial.labels, trial.schedule, trial.seed, check=check)
    return score(network, final_parameters(path), *split)


def evaluate_set(
    task: Task,
    draw_set: SetForSeed,
    schedule: Schedule,
    networks: int,
    split: tuple[Tensor, Tensor],
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Summary:
    """Train `networks` fresh networks, each on `draw_set(its seed)`, and score them once on `split`, un-augmented.

    advance: called after every network.
    """
    return Summary.of(run_trials(task, make_trials(draw_set, schedule, networks, seed), split, advance))


def best_lr(
    task: Task,
    draw_set: SetForSeed,
    config: EvalConfig,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> float:
    """The step size of `config.baseline_lrs` whose networks do best on validation: for sets that bring none."""
    first_trials = make_trials(draw_set, config.schedule(config.baseline_lrs[0]), config.networks, seed)
    trials = [trial._replace(schedule=config.schedule(lr)) for lr in config.baseline_lrs for trial in first_trials]
    scores = run_trials(task, trials, task.validation, advance)
    means = [Summary.of(scores[i : i + config.networks]).accuracy_mean for i in range(0, len(scores), config.networks)]
    return config.baseline_lrs[max(range(len(means)), key=means.__getitem__)]


def result_row(
    name: str, task: Task, summary: Summary, *, which: str | None = None, lr: float | None, step: int | None = None
) -> ResultRow:
    """The row of results.json for the set `name`, whose networks were scored on the task's test part."""
    model = task.model_config.name
    scores = summary._asdict()
    if step is None and name != "distilled":
        return ResultRow(set=name, which=which, model=model, split="test", **scores, lr=lr)
    return ResultRow(set=name, which=which, model=model, split="test", **scores, lr=lr, step=step)


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
        evaluations.append(Evaluation(task, one, which, config))
    return evaluations


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


@restore_switches()
def run_evaluations(
    evaluations: Sequence[Evaluation], seed: int = 0, listen: Listener = lambda event: None
) -> list[ResultRow]:
    """The rows of prepared evaluations: fresh networks trained on each set, and tested."""
    rows = []
    if evaluations:  # all of one data set and one network
        announce_task(evaluations[0].task, listen)
    for task, distilled, which, config in evaluations:
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
