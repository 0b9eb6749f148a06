"""A run that is called again: left alone, continued, evaluated anew, or refused."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from refusals import assert_refused
from small_runs import (
    EVAL,
    MINIMAL,
    Interrupted,
    LimitedWrites,
    distill_minimal,
    interrupt_in,
    logged_steps,
    read_json,
    result_rows,
    set_bytes,
)

import limbeck
from limbeck import ModelConfig, UserError
from limbeck.core.aliases import old_config
from limbeck.core.files import content_key
from limbeck.core.records import ValidationLine
from limbeck.jobs.job import prepare
from limbeck.jobs.record import RunFolder

FOR_EXPERTS = ("num_experts", "syn_steps", "max_start_epoch", "expert_epochs")
MATCHING: dict[str, Any] = {name: value for name, value in MINIMAL.items() if name not in FOR_EXPERTS}


pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


# --- options that were renamed


def test_a_run_with_old_option_names_is_found_and_continued(run: Path, tmp_path: Path) -> None:
    """The previous release wrote `draws` and `count` into run.json and into the key of results.json."""
    names = ("run.json", "results.json")
    head, results = (read_json(run / name) for name in names)
    config = old_config(head["config"])
    assert {"draws", "count"} <= set(config)
    for name, value in zip(names, ({**head, "config": config}, results)):
        (run / name).write_text(json.dumps({**value, "key": content_key(config)}))
    before = set_bytes(run)
    distill_minimal(run)
    assert set_bytes(run) == before
    assert read_json(run / "run.json")["config"] == head["config"]
    distill_minimal(run, iterations=8)
    assert set_bytes(run) == set_bytes(distill_minimal(tmp_path / "whole", iterations=8))


def test_old_option_names_warn_and_take_effect(run: Path) -> None:
    with pytest.warns(DeprecationWarning, match="draws is now called grad_accum") as caught:
        limbeck.distill("digits", out=run, **MINIMAL, draws=1)
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="draws"), pytest.raises(UserError, match="grad_accum 1, not 2"):
        distill_minimal(run, draws=2)
    with pytest.raises(UserError, match="there is no option draws; "):
        distill_minimal(run, draws=1, grad_accum=1)
    others = {name: value for name, value in MINIMAL.items() if name != "num_experts"}
    with pytest.warns(DeprecationWarning, match="count is now"), pytest.raises(UserError, match="num_experts 2, not 3"):
        limbeck.distill("digits", out=run, **others, count=3)


def test_a_refusal_names_the_option_that_was_given_not_one_that_follows_from_it(tmp_path: Path) -> None:
    options = {name: value for name, value in MINIMAL.items() if name not in ("max_start_epoch", "expert_epochs")}
    path = limbeck.distill("digits", out=tmp_path / "run", **options)
    options["expert"] = MINIMAL["expert"].model_copy(update={"lr": 0.02})
    resolved = prepare("digits", out=tmp_path / "other", **options).resolved
    assert resolved["expert_epochs"] != read_json(path / "run.json")["config"]["expert_epochs"]
    with pytest.raises(UserError, match=r"with expert lr 0\.05, not lr 0\.02;"):
        limbeck.distill("digits", out=path, **options)


def test_a_refusal_says_which_side_has_an_option(run: Path) -> None:
    """Options that came later are left out of a record at their defaults: the sentence was "factor 2, not None"."""
    assert_refused(lambda: prepare("digits", out=run, **MINIMAL, factor=2), "holds a run without factor 2; repeat")
    head = read_json(run / "run.json")
    head["config"]["factor"] = 2
    (run / "run.json").write_text(json.dumps(head))
    sentence = "holds a run with factor 2, and this command leaves it at its default; repeat"
    assert_refused(lambda: prepare("digits", out=run, **MINIMAL), sentence)


def test_a_run_on_other_images_is_refused_without_fingerprints(run: Path) -> None:
    data = limbeck.load_data("digits", resize=12)
    sentence = "run holds a run on other images or splits, of digits; repeat its command, or name a new folder"
    assert_refused(lambda: prepare(data, out=run, **MINIMAL), sentence)


# --- more iterations


def test_a_continued_run_has_the_bits_of_an_uninterrupted_one(run: Path, tmp_path: Path) -> None:
    distill_minimal(run, iterations=8)
    whole = distill_minimal(tmp_path / "whole", iterations=8)
    assert set_bytes(run) == set_bytes(whole)
    assert result_rows(run) == result_rows(whole)
    assert logged_steps(run) == list(range(1, 9))  # each of them once
    assert read_json(run / "run.json")["config"] == read_json(whole / "run.json")["config"]
    assert (run / "report.html").read_text().count("8") >= 1
    with pytest.raises(UserError, match="iterations 8, not 4"):
        distill_minimal(run)


def test_an_interrupted_continuation_is_continued(run: Path, tmp_path: Path) -> None:
    with suppress(Interrupted):
        distill_minimal(run, iterations=8, listen=interrupt_in("distill", 3))
    assert not RunFolder(run).is_finished(read_json(run / "run.json")["config"])
    distill_minimal(run, iterations=8)
    assert set_bytes(run) == set_bytes(distill_minimal(tmp_path / "whole", iterations=8))


@pytest.mark.parametrize("method", ["ptm", "dc"])
def test_methods_with_state_are_continued(method: str, tmp_path: Path) -> None:
    """Hooks, optimisers and averages are continued too; options that depend on the number of steps are set."""
    options = {**MINIMAL, "overlap_until": 3, "stage_steps": 2} if method == "ptm" else MATCHING
    for iterations in (4, 6):
        path = limbeck.distill("digits", method=method, out=tmp_path / "run", **{**options, "iterations": iterations})
    whole = limbeck.distill("digits", method=method, out=tmp_path / "whole", **{**options, "iterations": 6})
    assert set_bytes(path) == set_bytes(whole)
    assert result_rows(path) == result_rows(whole)


def test_a_continued_run_keeps_its_validation_interval(tmp_path: Path) -> None:
    path = distill_minimal(tmp_path / "run", iterations=4, validate_every=None)
    assert read_json(path / "run.json")["config"]["validate_every"] == 1
    distill_minimal(path, iterations=20, validate_every=None)  # the default would be 2
    assert [line.step for line in RunFolder(path).lines(ValidationLine)] == list(range(21))


def test_a_run_whose_schedule_depends_on_the_iterations_is_not_continued(tmp_path: Path) -> None:
    options = {**MINIMAL, "iterations": 10, "max_start_epoch": 2, "expert_epochs": 1}
    path = limbeck.distill("digits", method="datm", out=tmp_path / "run", **options)
    with pytest.raises(UserError, match=r"expansion_steps 2, not 4.*only with its other options"):
        limbeck.distill("digits", method="datm", out=path, **{**options, "iterations": 20})
    limbeck.distill("digits", method="datm", out=path, **{**options, "iterations": 12, "expansion_steps": 2})
    assert logged_steps(path) == list(range(1, 13))


# --- another evaluation


def test_another_evaluation_does_not_distil_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = EVAL.model_copy(update={"networks": 2, "epochs": 4})
    fresh = distill_minimal(tmp_path / "fresh", eval=other)
    monkeypatch.setattr("limbeck.jobs.stages.run_outer_loop", None)
    monkeypatch.setattr("limbeck.experts.handle.make_experts", None)
    before = (run / "report.html").read_text()
    distill_minimal(run, eval=other)
    assert set_bytes(run) == set_bytes(fresh)
    assert result_rows(run) == result_rows(fresh)
    assert read_json(run / "results.json")["bytes"] == read_json(fresh / "results.json")["bytes"]
    assert read_json(run / "run.json")["config"]["eval"] == other.model_dump(mode="json")
    assert (run / "report.html").read_text() != before
    assert [row.to_json() for row in limbeck.evaluate(run)] == result_rows(run)[:2]
    monkeypatch.setattr("limbeck.jobs.results.evaluate_distilled", None)
    distill_minimal(run)  # the first evaluation again, from the log
    assert read_json(run / "results.json")["results"][0]["n"] == 1


def test_baselines_are_left_out_and_added_without_another_evaluation(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limbeck.jobs.results.evaluate_distilled", None)
    kinds = {}
    for baselines in ((), ("random",), ("random", "kmeans")):
        distill_minimal(run, eval=EVAL.model_copy(update={"baselines": baselines}))
        kinds[baselines] = [row["set"] for row in result_rows(run)]
        assert (run / "report.html").exists()
    assert kinds == {names: ["distilled", "distilled", *names] for names in kinds}


def test_an_interrupted_evaluation_does_not_replace_the_results(run: Path, finished: Path) -> None:
    other = EVAL.model_copy(update={"networks": 3})
    with suppress(Interrupted):
        distill_minimal(run, eval=other, listen=interrupt_in("evaluate", 1))
    assert result_rows(run) == result_rows(finished)
    assert read_json(run / "run.json")["config"]["eval"] == EVAL.model_dump(mode="json")
    assert {row["n"] for row in result_rows(distill_minimal(run, eval=other))} == {3}


def test_a_run_whose_store_is_deleted_keeps_its_sizes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes of experts come from the run's own record, and no empty store is created in place of theirs."""
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    before = read_json(run / "results.json")["bytes"]
    assert before["experts"]
    distill_minimal(run, eval=EVAL.model_copy(update={"epochs": 4}))
    assert read_json(run / "results.json")["bytes"]["experts"] == before["experts"]
    assert not list((tmp_path / "home").glob("experts/*"))


def test_a_store_deleted_after_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is named by its content is made again; one that the user named is missed."""
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    job = prepare("digits", out=tmp_path / "run", **MINIMAL)
    before = set_bytes(limbeck.run(job))
    assert job.experts is not None
    shutil.move(job.experts.path, tmp_path / "store")
    shutil.rmtree(tmp_path / "run")
    assert set_bytes(limbeck.run(job)) == before
    with_store = prepare(
        "digits", out=tmp_path / "other", experts=tmp_path / "store", **{**MINIMAL, "num_experts": None}
    )
    shutil.rmtree(tmp_path / "store")
    assert_refused(lambda: limbeck.run(with_store), "is not a store of experts")


def test_a_fixed_step_size_is_chosen_anew_for_every_evaluation(tmp_path: Path) -> None:
    few = {"ipc": 1, "model": ModelConfig(width=4)}
    path = limbeck.distill("digits", method="random", out=tmp_path / "run", eval=EVAL, **few)
    other = EVAL.model_copy(update={"baseline_lrs": (0.05,)})
    limbeck.distill("digits", method="random", out=path, eval=other, **few)
    assert [row["lr"] for row in result_rows(path)] == [0.05] * 4
    assert limbeck.load(path).lr == 0.05


def test_an_unfinished_run_keeps_its_validation_protocol(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with suppress(Interrupted):
        distill_minimal(out, listen=interrupt_in("distill", 3))
    with pytest.raises(UserError, match=r"validated with momentum 0\.9, not momentum 0.5"):
        distill_minimal(out, eval=EVAL.model_copy(update={"momentum": 0.5}))
    distill_minimal(out, eval=EVAL.model_copy(update={"networks": 2}))  # which validation does not read
    assert result_rows(out)[0]["n"] == 2


def test_a_continuation_interrupted_at_any_write_gives_the_same_bits(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"iterations": 6, "eval": EVAL.model_copy(update={"epochs": 4})}
    whole = distill_minimal(tmp_path / "whole", **options)
    monkeypatch.setattr("limbeck.jobs.stages.write_report", lambda path: None)
    writes, is_interrupted, limit = LimitedWrites(monkeypatch, Interrupted), True, 0
    while is_interrupted:
        limit += 1
        out = Path(shutil.copytree(finished, tmp_path / str(limit)))
        with suppress(Interrupted), writes.limit(limit):
            distill_minimal(out, **options)
        is_interrupted = writes.count >= limit
        distill_minimal(out, **options)
        assert set_bytes(out) == set_bytes(whole)
        assert result_rows(out) == result_rows(whole)
        assert read_json(out / "run.json")["config"] == read_json(whole / "run.json")["config"]
    assert limit > 6


# --- nothing to do


def test_a_finished_run_emits_one_note(run: Path) -> None:
    events: list[dict[str, Any]] = []
    distill_minimal(run, listen=events.append)
    assert events == [{"event": "note", "text": f"{run} is finished; nothing was done."}]


def test_prepare_says_whether_a_run_is_finished(finished: Path) -> None:
    assert prepare("digits", out=finished, **MINIMAL).is_finished
    for changed in ({"iterations": 8}, {"eval": EVAL.model_copy(update={"networks": 2})}):
        assert not prepare("digits", out=finished, **{**MINIMAL, **changed}).is_finished


def test_the_recorded_command_is_quoted_for_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/limbeck", "distill", "my data", "--out", "a;b"])
    command = read_json(distill_minimal(tmp_path / "run", iterations=1) / "run.json")["command"]
    assert shlex.split(command) == ["limbeck", *sys.argv[1:]]


# --- names of data


def test_a_data_name_is_not_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = limbeck.distill("digits", out="digits", **MINIMAL)
    assert limbeck.load(path).provenance["data"]["source"] == read_json(path / "run.json")["source"] == "digits"
    assert [row.to_json() for row in limbeck.evaluate("digits")] == result_rows(path)[:2]
    assert limbeck.load_data("digits").name == "digits"
    with pytest.raises(UserError, match="a run of limbeck and no images"):
        limbeck.load_data("./digits")
    limbeck.train_experts("digits", out="store", num_experts=1, **{key: MINIMAL[key] for key in ("model", "expert")})
    with pytest.raises(UserError, match="a store of experts and no images"):
        limbeck.load_data("store")
