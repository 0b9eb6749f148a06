"""Every option of every config has a range: a senseless value is refused in a sentence, before work, or makes sense."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from math import inf, nan
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
from annotated_types import Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import limbeck
from limbeck import METHODS, EvalConfig, ExpertConfig, ImageData, ModelConfig, UserError
from limbeck.cli.commands import COMMANDS, find_command
from limbeck.data import Split
from limbeck.jobs.config import JobConfig
from limbeck.studies.cells import make_cells
from limbeck.studies.config import read_study
from limbeck.studies.search import OpenSearch

VALUES: tuple[Any, ...] = (-1, 0, 1e30, nan, inf, -inf, "", None, True, 10**30, (), [])
PARTS: dict[str, type[BaseModel]] = {"model": ModelConfig, "expert": ExpertConfig, "eval": EvalConfig}
SMALL: dict[str, Any] = {
    "ipc": 1,
    "model": {"width": 4},
    "eval": {"networks": 1, "epochs": 1, "baseline_lrs": (0.01,), "full_epochs": 1, "full_networks": 1},
    "validate_networks": 1,
    "validate_epochs": 1,
}
EXPERTS: dict[str, Any] = {"num_experts": 1, "expert": {"epochs": 3, "batch_size": 32}}
QUICK: dict[str, Any] = {"iterations": 2, "syn_steps": 2, "batch_real": 4, "pool": 4, "pool_width": 2, "pool_steps": 1}
QUICK |= {"total_steps": 2, "window": 1, "inner": 1, "net_steps": 1, "net_epochs": 1}


class Option(NamedTuple):
    """An option of a method or of a part of a job."""

    method: str
    part: str
    name: str
    info: FieldInfo

    @property
    def label(self) -> str:
        return ".".join([self.method, *filter(None, [self.part]), self.name])

    def job(self, value: Any) -> dict[str, Any]:
        """Keywords of a small job in which the option has this value."""
        method = METHODS[self.method]
        own = {name: number for name, number in QUICK.items() if name in method.config.model_fields}
        options = {"method": self.method, **SMALL, **own, **(EXPERTS if method.experts else {})}
        if not self.part:
            return {**options, self.name: value}
        return {**options, self.part: {**options.get(self.part, {}), self.name: value}}

    def limits(self) -> list[float]:
        """The largest value of the option, where its type says one, or the number below which it is."""
        kinds = (self.info, *(FieldInfo.from_annotation(kind) for kind in get_args(self.info.annotation)))
        parts = [part for kind in kinds for part in kind.metadata]
        bounds = [part.le if isinstance(part, Le) else part.lt for part in parts if isinstance(part, Le | Lt)]
        return [min(bounds)] if bounds else []  # type: ignore[type-var, list-item]


def list_options() -> Iterator[Option]:
    """All options: those of a job by the first method, those of a method where its config or a base defines them."""
    yield from (Option("mct", "", name, info) for name, info in JobConfig.model_fields.items() if name not in PARTS)
    for part, config in PARTS.items():
        yield from (Option("mct", part, name, info) for name, info in config.model_fields.items())
    defined: set[tuple[type, str]] = set()
    for method in METHODS.values():
        for name, info in method.config.model_fields.items():
            owner = next(base for base in method.config.__mro__ if name in inspect.get_annotations(base))
            if (owner, name) not in defined:
                defined.add((owner, name))
                yield Option(method.name, "", name, info)


OPTIONS = [*list_options()]


@pytest.fixture(scope="module")
def few() -> ImageData:
    """A hundred digits a split."""
    data = limbeck.load_data("digits")
    parts = [Split(part.images[:100], part.labels[:100]) for part in (data.train, data.validation, data.test)]
    return ImageData("digits", *parts, data.classes, data.notes, data.fingerprint)


def call_once(call: Any, device: Any) -> float:
    call()
    return 1e-3


@pytest.mark.parametrize("option", OPTIONS, ids=[option.label for option in OPTIONS])
def test_a_senseless_value_is_refused_or_makes_sense(
    option: Option, few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An accepted value is planned and estimated; the largest one is planned, which takes little time and memory."""
    monkeypatch.setattr("limbeck.jobs.estimate._seconds", call_once)
    limits = option.limits()
    for value in (*VALUES, *limits):
        start = time.process_time()
        try:
            job = limbeck.prepare(few, out=tmp_path / "run", **option.job(value))
            if value not in limits and repr(value) != repr(option.info.default):
                assert limbeck.estimate(job).total > 0
        except UserError as error:
            sentence = str(error).replace("-", "_")
            assert len(sentence) < 400
            assert value in limits or option.name in sentence or "no network called" in sentence, (value, sentence)
        assert time.process_time() - start < 5, value
    assert not (tmp_path / "run").exists()


def test_every_number_has_a_largest_value() -> None:
    """Otherwise 1e30 steps are planned. Those of commands alone are such as --threads."""
    commands = [
        Option(command, "", name, info)
        for command in COMMANDS
        for name, info in find_command(command).options.model_fields.items()
        if name != "pixel_range"  # the two values of black and white, which reading compares
    ]
    open_ended = [
        option.label
        for option in (*OPTIONS, *commands)
        if {int, float} & {option.info.annotation, *get_args(option.info.annotation)} and not option.limits()
    ]
    assert open_ended == []


STUDY = {
    "title": '"Two methods"',
    "text": '""',
    "seeds": "[0]",
    "options": '{ data = "digits" }',
    "axes": '{ method = { MTT = { method = "mtt" }, MCT = { method = "mct" } } }',
    "overrides": '[{ where = { method = "MTT" }, options = { ipc = 1 } }]',
    "skip": "[]",
    "compare": '{ axis = "method", against = "MTT" }',
    "search": "{ trials = 2, options = { lr_img = { low = 0.1, high = 1.0 } } }",
}
PLACES = [(name, "{}") for name in STUDY] + [
    ("seeds", "[{}]"),
    ("axes", '{{ method = {{ MTT = {{ method = "mtt", seeds = {} }} }} }}'),
    ("axes", '{{ method = {{ MTT = {{ method = "mtt", seeds = [{}] }} }} }}'),
    ("axes", '{{ method = {{ MTT = {{ method = "mtt", search = {} }} }} }}'),
    ("axes", "{{ method = {{ MTT = {} }} }}"),
    ("overrides", "[{{ where = {}, options = {{ ipc = 1 }} }}]"),
    ("overrides", '[{{ where = {{ method = "MTT" }}, options = {} }}]'),
    ("skip", "[{}]"),
    ("compare", '{{ axis = {}, against = "MTT" }}'),
    ("compare", '{{ axis = "method", against = {} }}'),
    *(("search", f"{{{{ trials = 1, {name} = {{}} }}}}") for name in ("seed", "on_seed", "options")),
    ("search", "{{ trials = {} }}"),
    *(
        ("search", f"{{{{ trials = 1, options = {{{{ lr_img = {{{{ {low} }}}} }}}} }}}}")
        for low in ("low = {}, high = 1.0", "low = 0.1, high = {}", "low = 1, high = {}", "low = {}, high = 2")
    ),
    ("search", "{{ trials = 1, options = {{ lr_img = {{ low = 0.1, high = 1.0, log = {} }} }} }}"),
    ("search", "{{ trials = 1, options = {{ lr_img = {{ choices = {} }} }} }}"),
    ("search", "{{ trials = 1, options = {{ lr_img = {{ choices = [{}, 1] }} }} }}"),
]
TOML = ("-1", "0", "1e30", "nan", "inf", "-inf", '""', "true", str(10**30), "[]", "{}")


@pytest.mark.parametrize(("name", "form"), PLACES)
def test_a_study_file_with_a_senseless_value_is_refused_or_has_cells(name: str, form: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    sentences: list[str] = []
    for value in TOML:
        fields = {**STUDY, name: form.format(value)}
        if "seeds =" in form or "search =" in form or form.endswith("MTT = {} }} }}"):
            fields |= {"overrides": "[]", "compare": "[]"}
        path = tmp_path / "study.toml"
        path.write_text("\n".join(f"{field} = {text}" for field, text in fields.items()), encoding="utf-8")
        try:
            study, _ = read_study(path)
            cells = make_cells(study)
        except UserError as error:
            sentences.append(str(error))
            continue
        assert cells
        if study.search is not None:
            options = OpenSearch.of(cells[0], study.search, []).suggest(0)
            assert all(not isinstance(number, float) or abs(number) <= 1e9 for number in options.values()), value
    assert all(len(sentence) < 400 and "\n" not in sentence for sentence in sentences)
    assert sentences, "every place refuses something"
