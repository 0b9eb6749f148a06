"""Records as files hold them: a run, its log, its experts and its results; `jobs` writes them and `report` reads them.

Accuracies are fractions, times are seconds, sizes are bytes. Fields that a model does not know are kept, so that a file
of a newer version survives being read and written.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from limbeck.core.short_repr import short_repr


class Record(BaseModel):
    """A JSON object with typed fields."""

    __repr__ = short_repr

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=())

    def to_json(self) -> dict[str, Any]:
        """The fields that were set, as JSON values."""
        return self.model_dump(mode="json", exclude_unset=True)


Fraction = Annotated[float, Field(ge=0, le=1)]
"""An accuracy, its standard deviation, or another part of a whole."""
Number = Annotated[int, Field(ge=0)]
"""A number of steps, images or bytes."""


class Measurement(Record):
    """Accuracies of `n` networks: mean and sample standard deviation; the latter is None where n is 1."""

    accuracy_mean: Fraction
    accuracy_std: Fraction | None = None
    n: Annotated[int, Field(ge=1)]

    @model_validator(mode="before")
    @classmethod
    def _one_network_has_no_deviation(cls, value: Any) -> Any:
        """Files of older versions say 0 where n is 1."""
        if isinstance(value, dict) and value.get("n") == 1:
            return {key: None if key.endswith("_std") else field for key, field in value.items()}
        return value


class ResultRow(Measurement):
    """A row of results.json: fresh networks `model`, trained on the images `set` and scored on `split`.

    set:      distilled, random, kmeans or full; which: of a distilled set, "last" or "chosen" (on validation).
    lr, step: step size of the networks; outer steps after which the set is as it was evaluated.
    accuracies: the accuracy of every network, in the order of their seeds, which rows of one run share.
    class_accuracy: by class, over all networks; None for a class without images.
    confusion: images by class (row) and by predicted class (column), summed over networks; of at most 100 classes.
    protocol: how the networks were trained where that is not the run's common protocol.
    positive: of data of two classes, the name of the second one. Sensitivity is the share of its images that are
        classified as it, specificity that of the other class; auc is the area under the curve of one against the
        other (ROC). None where there are more classes, and in files of earlier versions.
    """

    set: str
    which: str | None = None
    model: str
    split: str
    balanced_accuracy_mean: Fraction | None = None
    balanced_accuracy_std: Fraction | None = None
    lr: float | None = None
    step: Number | None = None
    protocol: str | None = None
    accuracies: list[Fraction] | None = None
    class_accuracy: list[Fraction | None] | None = None
    confusion: list[list[Number]] | None = None
    positive: str | None = None
    sensitivity_mean: Fraction | None = None
    sensitivity_std: Fraction | None = None
    specificity_mean: Fraction | None = None
    specificity_std: Fraction | None = None
    auc_mean: Fraction | None = None
    auc_std: Fraction | None = None


TWO_CLASS_MEASURES = ("sensitivity", "specificity", "auc")
"""Measures of rows on two classes; fields of a `ResultRow` with `_mean` and `_std` behind them."""


# --- run.json


class DataRecord(Record):
    """The data of a run; counts are images by split and class."""

    name: str = ""
    fingerprint: str = ""
    classes: list[str] = []
    shape: list[int] = []
    counts: dict[str, list[Number]] = {}
    notes: list[str] = []


class RunRecord(Record):
    """run.json: the record of a run.

    config, key: everything that determines the result, and its content key.
    source, reading: where the data lies, and how it was read: the arguments of `load_data`.
    computed, validation: the conditions under which figures are computed, and how sets are validated on the way; both
        have to agree before a run is continued.
    """

    format: Literal["limbeck-run"]
    version: int
    config: dict[str, JsonValue] = {}
    key: str = ""
    versions: dict[str, str] = {}
    command: str = ""
    data: DataRecord = DataRecord()
    source: str | None = None
    reading: dict[str, JsonValue] = {}
    device: str = ""
    threads: int | None = None
    implementation_because: str | None = None
    computed: dict[str, JsonValue] | None = None
    validation: dict[str, JsonValue] | None = None
    created: str = ""


# --- log.jsonl, one object a line


class LogLine(Record):
    """A line of the log; `event` is its kind."""

    event: str

    def to_json(self) -> dict[str, Any]:
        """The event, and the fields that were set."""
        return {"event": self.event, **super().to_json()}


class StepLine(LogLine):
    """One outer step: loss, student step size, seconds of the outer loop so far."""

    model_config = ConfigDict(allow_inf_nan=True)

    event: Literal["step"] = "step"
    step: Number
    loss: float | None
    lr: float | None
    seconds: float = 0.0


class ValidationLine(Measurement, LogLine):
    """The distilled set after `step` outer steps, on the validation images; seconds: how long that took."""

    event: Literal["validate"] = "validate"
    step: Number
    which: str = "distilled"
    seconds: float | None = None
    balanced_accuracy_mean: Fraction | None = None


class StageLine(LogLine):
    """Seconds of one stage in one session of the run."""

    event: Literal["stage"] = "stage"
    name: str
    seconds: float


class MemoryLine(LogLine):
    """Peak memory of one session of the run, in bytes: of its process, and on its GPU."""

    event: Literal["memory"] = "memory"
    process: int | None
    device: int | None = None


class WarningLine(LogLine):
    """A warning that was shown to the user."""

    event: Literal["warning"] = "warning"
    text: str


class ResultLine(ResultRow, LogLine):
    """A row of results.json, logged when it is computed; evaluation: the key of its protocol and conditions."""

    event: Literal["result"] = "result"
    evaluation: str = ""

    @property
    def row(self) -> ResultRow:
        """The row as results.json holds it."""
        return ResultRow(**self.model_dump(exclude_unset=True, exclude={"event", "evaluation"}))


class ProtocolLine(LogLine):
    """The rows of one set by a protocol of its own."""

    event: Literal["own protocol"] = "own protocol"
    set: str
    which: str | None
    rows: list[ResultRow]
    evaluation: str = ""


# --- experts.json, results.json


class ExpertBytes(Record):
    """Bytes of the stored experts, and of the same experts with every epoch stored."""

    experts: int | None = None
    recorded_would_be: int | None = None


class PathAccuracy(Record):
    """Validation accuracy of each expert at the epochs `t`."""

    model_config = ConfigDict(allow_inf_nan=True)  # salvage would remove a NaN, and shift the others

    t: list[float | None] = []
    accuracy: list[list[float | None]] = []


class PathDistance(Record):
    """Distance of each expert's parameters at the epochs `t` from its start, as a share of that of its end."""

    model_config = ConfigDict(allow_inf_nan=True)

    t: list[float | None] = []
    share: list[list[float | None]] = []


class ExpertsRecord(Record):
    """experts.json: the experts of a run, and their accuracies along their trajectories."""

    model_config = ConfigDict(allow_inf_nan=True)

    format: str = "limbeck-experts"
    version: int = 1
    store: str = ""
    computed: dict[str, JsonValue] | None = None
    count: int | None = None
    epochs: int | None = None
    waypoints: int | None = None
    kept: str = ""
    parameters: int | None = None
    test_accuracy: list[float] = []
    bytes: ExpertBytes = ExpertBytes()
    validation_per_epoch: list[list[float | None]] = []
    recorded_path: PathAccuracy | None = None
    convexified_path: PathAccuracy | None = None
    recorded_distance: PathDistance | None = None
    convexified_distance: PathDistance | None = None


class DataName(Record):
    """A data set by name and fingerprint."""

    name: str = ""
    fingerprint: str = ""


class ResultBytes(Record):
    """Bytes of the stored experts and of the distilled set's file."""

    experts: int | None = None
    set: int | None = None


class PeakMemory(Record):
    """The most bytes of memory that a process of the run had, and its device; None where the system does not say."""

    process: int | None = None
    device: int | None = None


class ResultsRecord(Record):
    """results.json: accuracies of networks trained on the sets of a run, and on the baselines."""

    format: str = "limbeck-results"
    version: int = 1
    key: str | None = None
    computed: dict[str, JsonValue] | None = None
    method: str = ""
    data: DataName = DataName()
    ipc: int | None = None
    protocol: str = ""
    results: list[ResultRow] = []
    seconds: dict[str, float] = {}
    bytes: ResultBytes = ResultBytes()
    memory: PeakMemory = PeakMemory()


class BaselineRecord(Record):
    """The row of real images, stored for every run that it is comparable with; description: all that it depends on."""

    format: str = "limbeck-baseline"
    version: int = 1
    description: dict[str, JsonValue]
    row: ResultRow


# --- store.json, and the headers of the safetensors files


Size = Annotated[int, Field(ge=1, le=2**31)]


class StoreData(Record):
    """The data that experts were trained on; shape: channels, height, width."""

    name: str
    fingerprint: str
    classes: list[str]
    shape: Annotated[list[Size], Field(min_length=3, max_length=3)]


class LayoutRecord(Record):
    """Names and shapes of a network's parameters, in the order in which they lie in theta."""

    names: list[str]
    shapes: list[Annotated[list[Size], Field(max_length=8)]]


class ExpertFacts(Record):
    """The facts that a store shares with its experts: data, network, hyper-parameters, seed and layout."""

    data: StoreData
    model: dict[str, JsonValue]
    expert: dict[str, JsonValue]
    seed: int
    layout: LayoutRecord


class StoreHeader(ExpertFacts):
    """store.json: all that the experts depend on; key: its content key.

    computed: the conditions of their training, None where they are unknown.
    """

    format: str = "limbeck-store"
    version: int = 1
    key: str
    preprocess: dict[str, JsonValue]
    augment: str
    computed: dict[str, JsonValue] | None = None

    def description(self) -> dict[str, Any]:
        """The description of which `key` is the content key."""
        return {name: value for name, value in self.to_json().items() if name not in ("format", "version", "key")}


class ExpertHeader(ExpertFacts):
    """Header of an expert's file; store: the key of its store, waypoint_epochs: None without waypoints.

    validation: accuracy after every epoch; test: after the last, for reports only.
    beta0: beta at epoch 0 of the schedule 'decreasing-authors', which earlier versions had.
    """

    format: str = "limbeck-expert"
    version: int = 1
    index: int
    store: str
    waypoint_epochs: Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(min_length=2)] | None
    validation: Annotated[list[float], Field(min_length=1)]
    test: float
    beta0: Annotated[float, Field(ge=0, lt=1)] | None = None


# --- state.safetensors


class LoopProgress(Record):
    """Progress of the outer loop: the best validation accuracy, its step, and the seconds so far."""

    best: float
    best_step: int
    seconds: float


class StateHeader(Record):
    """Header of state.safetensors: outer steps done, and those values of the optimisers that are no tensors."""

    format: str = "limbeck-state"
    version: int = 1
    step: Number
    scalars: dict[str, JsonValue] = {}
    more: LoopProgress
