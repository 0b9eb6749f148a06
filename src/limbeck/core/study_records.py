"""Records of a study: one JSON with a row for every finished run; `studies` writes it, and pages are drawn from it.

Accuracies and losses are as the runs logged them, times are seconds, sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Literal, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from limbeck.core.records import Record, ResultRow

FORMAT: Literal["limbeck-study"] = "limbeck-study"

CellValues = dict[str, str]
"""The name of a value by the name of its axis; empty for a study without axes."""


def _require_equal_lengths(*lists: Sized) -> None:
    if len(set(map(len, lists))) > 1:
        raise ValueError("lists that belong together have different lengths")


class Curve(Record):
    """The outer loop of a run.

    steps, accuracy, std, seconds: The outer steps after which networks were validated, their mean accuracy and its
        sample standard deviation (None for one network), and the seconds of the outer steps so far, without those of
        the validations.
    loss_change: The mean of |log(loss of a step / loss of the step before)|; None without two finite positive losses.
    loss_steps, loss, loss_low, loss_high: The last step of each of at most 100 equal stretches of steps, and median,
        minimum and maximum of the finite losses in it; None where no loss is finite.
    """

    model_config = ConfigDict(allow_inf_nan=True)

    steps: list[int] = Field(default_factory=list)
    accuracy: list[float] = Field(default_factory=list)
    std: list[float | None] = Field(default_factory=list)
    seconds: list[float] = Field(default_factory=list)
    loss_change: float | None = None
    loss_steps: list[int] = Field(default_factory=list)
    loss: list[float | None] = Field(default_factory=list)
    loss_low: list[float | None] = Field(default_factory=list)
    loss_high: list[float | None] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        _require_equal_lengths(self.steps, self.accuracy, self.std, self.seconds)
        _require_equal_lengths(self.loss_steps, self.loss, self.loss_low, self.loss_high)
        return self


class ExpertPath(Record):
    """Validation accuracy along a path of the experts: at the epochs `t`, mean, minimum and maximum over experts."""

    t: list[float]
    mean: list[float | None]
    low: list[float | None]
    high: list[float | None]

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        _require_equal_lengths(self.t, self.mean, self.low, self.high)
        return self


class RunBytes(Record):
    """Bytes that a run needs: images and labels of its chosen set, and its experts in the form that it matches.

    stored: Bytes of the stores' files, which may hold trajectories in more than one form.
    """

    images: int | None = None
    labels: int | None = None
    experts: int | None = None
    stored: int | None = None


class StudyRow(Record):
    """A finished run of a study.

    cell, seed: Where it stands in the grid; key: the content key of its whole resolved configuration.
    results:     Its rows, as results.json holds them.
    paths:       Of its experts, by name: recorded, convexified.
    seconds:     By stage, summed over sessions.
    peak_memory: Of its process in bytes, the largest of its sessions; device_memory: on its GPU.
    searched:    The options that a search found, and `trials`, how many it had.
    computed:    The conditions under which it was computed.
    created:     When the run began.
    """

    cell: CellValues
    seed: int
    key: str
    results: list[ResultRow]
    curve: Curve = Curve()
    paths: dict[str, ExpertPath] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    bytes: RunBytes = RunBytes()
    peak_memory: int | None = None
    device_memory: int | None = None
    searched: dict[str, JsonValue] = Field(default_factory=dict)
    trials: int = 0
    computed: dict[str, JsonValue] = Field(default_factory=dict)
    threads: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    data: str = ""
    ipc: int | None = None
    created: str = ""


RANDOM_TRIALS = 10
"""Trials of a search that are drawn at random, before those that learn from earlier ones."""


class Trial(Record):
    """A trial of a search: the values that were tried, and the set by them on validation.

    key:   The content key of its run; step: the outer step that did best, which `accuracy`, `std` and `n` are of.
    accuracy: The balanced one, without a deviation, where the study chooses by that (`eval.choose_by`).
    sentence: Why it failed, where it did; it counts as the worst.
    """

    number: int
    options: dict[str, JsonValue]
    key: str
    accuracy: float | None
    std: float | None = None
    n: int | None = None
    step: int | None = None
    seconds: float | None = None
    sentence: str | None = None


class CellSearch(Record):
    """The search for options of a cell, on validation.

    seed:  Of the distillation of its trials; key: the content key of all that trials have in common.
    space: The range or the choices of every option.
    """

    cell: CellValues
    seed: int
    key: str
    space: dict[str, JsonValue]
    trials: list[Trial] = Field(default_factory=list)


class StudyFailure(Record):
    """A run that failed, and the sentence that says why; the next call of the study tries it again."""

    cell: CellValues
    seed: int
    key: str
    sentence: str


class Reach(Record):
    """When the validation accuracy first reached the target, by seed; None where it never did.

    target: The final validation accuracy of the run of the same seed that is compared with.
    """

    seed: int
    target: float
    step: int | None
    seconds: float | None
    against_step: int | None
    against_seconds: float | None


class StudyComparison(Record):
    """A cell compared with the one that differs from it in one axis alone, over the seeds that both have.

    difference: The mean of the accuracies of `cell` less those of `against`: over n pairs of runs of the same seed, or
        over n pairs of networks of the same seed where there is one run of each (`over`).
    standard_error, low, high: Its standard error, and a bootstrap interval of 95 %; None where n is 1.
    reach: Steps and seconds to the final validation accuracy of `against`; empty for sets without outer steps.
    """

    axis: str
    cell: CellValues
    against: CellValues
    which: Literal["chosen", "last"]
    measure: Literal["accuracy", "balanced_accuracy"] = "accuracy"
    accuracy: float
    against_accuracy: float
    difference: float
    standard_error: float | None
    low: float | None
    high: float | None
    n: int
    over: Literal["seeds", "networks"]
    reach: list[Reach] = Field(default_factory=list)


class StudyRecord(Record):
    """The file of a study.

    axes:    The names of the values of every axis, in the order of the study file; seeds: of distillation.
    study:   The study file, as JSON.
    rows:    The finished runs, in the order of the grid; failures: the runs that failed in the last call.
    searches: Of the cells whose options are searched for.
    earlier: Finished runs of earlier states of the study file, which tables and pages leave out.
    """

    format: Literal["limbeck-study"]
    version: int
    title: str
    text: str = ""
    axes: dict[str, list[str]]
    seeds: list[int]
    study: dict[str, JsonValue]
    planned: int
    rows: list[StudyRow] = Field(default_factory=list)
    comparisons: list[StudyComparison] = Field(default_factory=list)
    failures: list[StudyFailure] = Field(default_factory=list)
    searches: list[CellSearch] = Field(default_factory=list)
    earlier: list[StudyRow] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_cells(self) -> Self:
        cells = [row.cell for row in self.rows]
        cells += [cell for row in self.comparisons for cell in (row.cell, row.against)]
        if any(cell.keys() != self.axes.keys() for cell in cells):
            raise ValueError("a cell does not say its value of every axis")
        if any(row.axis not in self.axes for row in self.comparisons):
            raise ValueError("a comparison is along no axis of the study")
        return self


def cell_name(cell: CellValues) -> str:
    """A cell as a person reads it.

    >>> cell_name({"method": "MCT", "gradient": "exact"}), cell_name({})
    ('MCT, exact', 'the run')
    """
    return ", ".join(cell.values()) or "the run"
