"""Search for options on validation, in every cell of a study with the same number of trials.

Trial n is a function of the seed of the sampler, n, and the trials before it, so that an interrupted search goes on as
it would have. The first `RANDOM_TRIALS` trials are drawn at random and depend on none; the others are drawn by optuna's
tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from limbeck.core.errors import UserError
from limbeck.core.files import content_key
from limbeck.core.records import StageLine, ValidationLine
from limbeck.core.rng import derive_seed
from limbeck.core.study_records import RANDOM_TRIALS, CellSearch, Trial
from limbeck.jobs.record import RunFolder
from limbeck.studies.cells import Cell, merge
from limbeck.studies.config import Range, Search
from limbeck.studies.plan import PlannedRun, plan_trial


def import_optuna() -> Any:
    """The module optuna, which logs warnings alone. Raises UserError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError(
            "a search needs optuna, which is not installed; install it with pip install 'limbeck[search]'."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@dataclass(frozen=True)
class OpenSearch:
    """The search in one cell.

    seed:   Of the distillation of its trials; trials: the finished ones, by number.
    begun:  Numbers of trials that were begun in this session.
    """

    cell: Cell
    seed: int
    search: Search
    key: str
    trials: dict[int, Trial] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, cell: Cell, search: Search, recorded: Sequence[CellSearch]) -> OpenSearch:
        """The search in a cell, with the trials of the record that are of the same search."""
        seed = cell.seeds[0] if search.on_seed is None else search.on_seed
        space = describe_space(cell.space)
        common = {"options": cell.options, "space": space, "seed": seed, "sampler": search.seed}
        key = content_key(common)
        trials = [trial for one in recorded if one.key == key for trial in one.trials]
        return cls(cell, seed, search, key, {trial.number: trial for trial in trials})

    @property
    def is_finished(self) -> bool:
        """Whether all trials are there."""
        return all(number in self.trials for number in range(self.search.trials))

    def ready(self) -> list[int]:
        """Numbers of the trials that can begin: random ones at once, others after all before them."""
        count = self.search.trials
        first = [number for number in range(min(RANDOM_TRIALS, count)) if number not in self.trials]
        numbers = first or [next((number for number in range(count) if number not in self.trials), count)]
        return [number for number in numbers if number < count and number not in self.begun]

    def suggest(self, number: int) -> dict[str, Any]:
        """The options of a trial, by name."""
        optuna = import_optuna()
        distributions = {name: _distribution(optuna, values) for name, values in self.cell.space.items()}
        seed = derive_seed(self.search.seed, "search", number) % 2**32
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for trial in (self.trials[before] for before in range(number) if number >= RANDOM_TRIALS):
            value = 0.0 if trial.accuracy is None else trial.accuracy
            frozen = optuna.trial.create_trial(params=trial.options, distributions=distributions, value=value)
            study.add_trial(frozen)
        return dict(study.ask(distributions).params)

    def plan(self, number: int, folder: Path, work: Path) -> PlannedRun:
        """Prepare the run of a trial; see `plan_trial`."""
        return plan_trial(with_options(self.cell, self.suggest(number)), self.seed, folder, work)

    def finish(self, number: int, run: PlannedRun, sentence: str | None) -> Trial:
        """Take in a trial that has ended: the validation that did best decides. sentence: why it failed."""
        folder = RunFolder(run.path)
        lines = {line.step: line for line in folder.lines(ValidationLine)} if sentence is None else {}
        is_balanced = run.call.options.get("eval", {}).get("choose_by") == "balanced"

        def value(line: ValidationLine) -> float:
            return (line.balanced_accuracy_mean or 0.0) if is_balanced else line.accuracy_mean

        best = max(lines.values(), key=lambda line: (value(line), line.step), default=None)
        trial = Trial(
            number=number,
            options=run.cell.searched,
            key=run.key,
            accuracy=None if best is None else value(best),
            std=None if best is None or is_balanced else best.accuracy_std,
            n=None if best is None else best.n,
            step=None if best is None else best.step,
            seconds=round(sum(line.seconds for line in folder.lines(StageLine)), 2),
            sentence=sentence,
        )
        self.trials[number] = trial
        return trial

    def best(self) -> Trial:
        """The trial that did best, of equals the first. Raises UserError where all failed."""
        trials = [self.trials[number] for number in range(self.search.trials)]
        finished = [trial for trial in trials if trial.accuracy is not None]
        if not finished:
            raise UserError(f"{self.cell.name}: all trials failed, the first because {trials[0].sentence}")
        return max(finished, key=lambda trial: trial.accuracy or 0.0)

    def result(self) -> Cell:
        """The cell with the options that did best."""
        return replace(with_options(self.cell, self.best().options), trials=self.search.trials)

    def record(self) -> CellSearch:
        """The search as the record holds it."""
        return CellSearch(
            cell=self.cell.values,
            seed=self.seed,
            key=self.key,
            space=describe_space(self.cell.space),
            trials=[self.trials[number] for number in sorted(self.trials)],
        )


def describe_space(space: dict[str, Range]) -> dict[str, Any]:
    """The space as JSON values."""
    return {name: values.model_dump(mode="json", exclude_unset=True) for name, values in space.items()}


def with_options(cell: Cell, searched: dict[str, Any]) -> Cell:
    """A cell with these options, by names with dots.

    >>> with_options(Cell({}, {"expert": {"epochs": 3}}, (0,)), {"expert.lr": 0.1}).options
    {'expert': {'epochs': 3, 'lr': 0.1}}
    """
    options = cell.options
    for name, value in searched.items():
        table: Any = value
        for part in reversed(name.split(".")):
            table = {part: table}
        options = merge(options, table)
    return replace(cell, options=options, searched=searched)


def _distribution(optuna: Any, values: Range) -> Any:
    if values.choices is not None:
        return optuna.distributions.CategoricalDistribution(values.choices)
    if isinstance(values.low, int) and isinstance(values.high, int):
        return optuna.distributions.IntDistribution(values.low, values.high, log=values.log)
    return optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)
