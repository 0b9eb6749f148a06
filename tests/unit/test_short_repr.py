"""Public values are short at a prompt: one line, no content of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import limbeck
from limbeck import METHODS, Batch, Convexified, DistilledSet, EvalConfig, JobConfig, ModelConfig
from limbeck.core.evaluation_records import ResultRow
from limbeck.core.short_repr import short_repr
from limbeck.data import load_data
from limbeck.evaluation.protocol import EvalConfig as Protocol
from limbeck.methods.plan import MethodConfig

LONGEST, LONGEST_JOB = 300, 400  # options of a job are shown in full, where they are not at their defaults


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """An instance of every public class, and those that functions return."""
    folder = tmp_path_factory.mktemp(
        "a folder with a very long name, of which a prompt shall not show everything at all"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_HOME", str(folder / "home"))
        model, expert = ModelConfig(width=4), limbeck.ExpertConfig(epochs=2, keep="both")
        quick = {
            "eval": EvalConfig(networks=1, epochs=1, full_networks=0, baselines=()),
            "validate_epochs": 1,
            "validate_networks": 1,
        }
        job = limbeck.prepare(
            "digits", method="mtt", iterations=1, syn_steps=1, model=model, expert=expert, num_experts=1,
            expert_epochs=1, max_start_epoch=1, out=folder / "run", **quick,  # type: ignore[arg-type]
        )  # fmt: skip
        run = limbeck.run(job)
        store = job.experts.store  # type: ignore[union-attr]
        stored = store.read(0)
        plan = job.plan([stored.recorded])  # type: ignore[list-item]
        distilled = limbeck.load(run)
        solved = limbeck.Solved(job.task.model, job.task.model.init, ridge=0.1, adjoint=limbeck.Implicit())
        theta = job.task.model.init(0)
        state = limbeck.State(theta, (theta,), 1)
        return [
            *(job, run, store, stored, stored.recorded, stored.convex, plan, plan.objective, plan.synthetic, distilled),
            *(job.task, job.task.data, job.task.data.train, job.task.preprocess, job.task.model, job.task.loss, state),
            *(job.experts, job.method, job.options, job.config, job.record(), EvalConfig(), JobConfig(), expert),
            *(solved, limbeck.Fit(solved, job.task.train, 8), Batch(*distilled.dataset().tensors)),
            *limbeck.evaluate(run, num_networks=1, epochs=1),
        ]


def test_the_values_at_hand_are_of_the_public_classes(values: list[Any]) -> None:
    """Those that hold much; rules and samplers hold a few numbers."""
    kinds = {type(value) for value in values}
    assert {DistilledSet, limbeck.ImageData, limbeck.Job, limbeck.Store, limbeck.State, Batch, Convexified} <= kinds
    assert {limbeck.Recorded, limbeck.SyntheticSet, limbeck.FlatModel, limbeck.MatchTrajectory, limbeck.Fit} <= kinds
    assert {JobConfig, ResultRow} <= kinds


def test_every_public_value_is_short_and_shows_no_tensor(values: list[Any]) -> None:
    for value in (*values, *METHODS.values(), *(method.config() for method in METHODS.values())):
        text = repr(value)
        assert len(text) < (LONGEST_JOB if isinstance(value, JobConfig) else LONGEST), (type(value), text)
        assert "tensor(" not in text, text
        assert " object at 0x" not in text, text
        assert "\n" not in text, text


def test_a_loaded_set_says_what_it_is() -> None:
    text = repr(load_data("digits"))
    assert text.startswith("ImageData(name='digits', train=Split(images=uint8[1295, 1, 8, 8], labels=int64[1295])")


@dataclass
class Own:
    inner: Any
    path: Path = Path("x")
    __repr__ = short_repr


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(2, dtype=torch.bfloat16), "bfloat16[2]"),
        ({"a": torch.zeros(9)}, "dict of 1"),
        ([1, 2], "[1, 2]"),
        (list(range(100)), "list of 100"),
        ("x" * 99, repr("x" * 57 + "...")),
        (Own(Own(torch.zeros(3))), "Own(inner=Own(inner=float32[3], path='x'), path='x')"),
        (Tensor, "<class 'torch.Tensor'>"),
        (object(), "object"),
    ],
)
def test_what_becomes_of_a_field(value: Any, text: str) -> None:
    assert repr(Own(value)) == f"Own(inner={text}, path='x')"


def test_configurations_show_what_is_not_at_its_default() -> None:
    """Nothing else is left out, since the source of a user's code is known by such texts."""
    assert repr(JobConfig(ipc=3, eval=Protocol(epochs=7))) == "JobConfig(ipc=3, eval=EvalConfig(epochs=7))"
    for config in (EvalConfig, limbeck.ExpertConfig, *(method.config for method in METHODS.values())):
        assert issubclass(config, MethodConfig) or config in (EvalConfig, limbeck.ExpertConfig)
        assert repr(config()) == f"{config.__name__}()"
