"""Records of evaluations on several networks: `evaluation` writes them and `report` reads them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from limbeck.core.records import DataName, Record, ResultRow

LrOrigin = Literal["set", "validation", "protocol"]
"""Where a step size comes from: the set, the choice on validation for this network, or the protocol."""


class EvaluationRow(ResultRow):
    """Fresh networks `model`, trained on the images `set` and scored on test.

    lr_from:    Where the step size comes from.
    accuracies: The accuracy of every network, in the order of their seeds; rows of one evaluation share the seeds.
    image_bytes, label_bytes: Of the set: its images, and its labels as networks are trained on them, with the
        parameters of teachers where these give the labels.
    """

    lr_from: LrOrigin | None = None
    accuracies: list[float] | None = None
    image_bytes: int | None = None
    label_bytes: int | None = None

    @property
    def result(self) -> ResultRow:
        """The row as results.json holds it."""
        return ResultRow(**{name: value for name, value in self.to_json().items() if name in ResultRow.model_fields})


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


class EvaluationsRecord(Record):
    """evaluations.json: the evaluations of a run's sets on several networks, the newest last."""

    format: str = "limbeck-evaluations"
    version: int = 1
    evaluations: list[EvaluationRecord] = Field(default_factory=list)
