"""Records of evaluations on several networks: `evaluation` writes them and `report` reads them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from limbeck.core.records import BaselineRecord, DataName, Measurement, Record, ResultRow

LrOrigin = Literal["set", "validation", "protocol"]
"""Where a step size comes from: the set, the choice on validation for this network, or the protocol."""

CLEAN = "clean"
"""The perturbation of images that are as they were."""


class RobustnessRow(Measurement):
    """Accuracies of networks on perturbed test images.

    perturbation: clean, or the name of an attack or of a corruption.
    severity:     Of a corruption, 1 to 5. epsilon: of an attack, in 255ths; steps: gradients of the attack.
    images:       How many test images were perturbed.
    accuracies:   The accuracy of every network, in the order of their seeds.
    """

    perturbation: str
    severity: int | None = None
    epsilon: float | None = None
    steps: int | None = None
    images: int
    accuracies: list[float]


class EvaluationRow(ResultRow):
    """Fresh networks `model`, trained on the images `set` and scored on test.

    lr_from:    Where the step size comes from.
    image_bytes, label_bytes: Of the set: its images, and its labels as networks are trained on them, with the
        parameters of teachers where these give the labels.
    calibration_error: The expected calibration error of the networks, with 15 bins.
    robustness: The same networks on perturbed test images, where that was asked for.
    """

    lr_from: LrOrigin | None = None
    image_bytes: int | None = None
    label_bytes: int | None = None
    calibration_error_mean: float | None = None
    calibration_error_std: float | None = None
    robustness: list[RobustnessRow] | None = None

    @property
    def result(self) -> ResultRow:
        """The row as results.json holds it."""
        return ResultRow(**{name: value for name, value in self.to_json().items() if name in ResultRow.model_fields})


class TestedBaselineRecord(BaselineRecord):
    """The row of real images with `robustness`, stored for reuse."""

    row: EvaluationRow


class ScoreRow(Record):
    """DD-Ranking's scores of a set on one network, see `limbeck.evaluation.scores`; all numbers are fractions.

    accuracies, random: Of the set and of random images at its budget, by variant of the protocol: own, hard (labels),
        augmented, plain (not augmented).
    full: The accuracy of all training images.
    """

    set: str
    which: str | None
    model: str
    protocol: str | None
    hlr: float
    ior: float
    lrs: float
    ars: float
    accuracies: dict[str, float]
    random: dict[str, float]
    full: float
    n: int


class ComparisonRow(Record):
    """A set compared with another by networks of the same seeds: accuracies on test, and their paired differences.

    difference: Mean of the accuracies of `run` less those of `against`, over n pairs of networks.
    standard_error, low, high: Its standard error, and a bootstrap interval of 95 %; None where n is 1.
    """

    run: str
    against: str
    which: str | None
    model: str
    protocol: str | None
    accuracy: float
    against_accuracy: float
    difference: float
    standard_error: float | None
    low: float | None
    high: float | None
    n: int


class EvaluationRecord(Record):
    """Rows that are comparable: all of one protocol, one seed and one data set.

    key:      The content key of the sets, the protocol, the seed and the data.
    protocol: How the networks were trained, in words.
    computed: By network, the conditions under which its rows were computed.
    """

    key: str
    data: DataName
    classes: list[str]
    ipc: int
    seed: int
    protocol: str
    computed: dict[str, dict[str, JsonValue]]
    rows: list[EvaluationRow]
    scores: list[ScoreRow] | None = None


class EvaluationsRecord(Record):
    """evaluations.json: the evaluations of a run's sets on several networks, the newest last."""

    format: str = "limbeck-evaluations"
    version: int = 1
    evaluations: list[EvaluationRecord] = Field(default_factory=list)
