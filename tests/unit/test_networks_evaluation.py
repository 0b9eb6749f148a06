"""One set on several networks: its rows, where step sizes come from, the record, and the tables that are made of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import WITH_BASELINES, read_json, result_rows

import limbeck
from limbeck import EvalConfig, ModelConfig, UserError
from limbeck.core.evaluation_records import EvaluationRow, EvaluationsRecord
from limbeck.core.record_files import read_record
from limbeck.core.rng import derive_seed
from limbeck.evaluation.record import make_record, merge_record
from limbeck.evaluation.run import run_on_networks
from limbeck.evaluation.sets import prepare_evaluation
from limbeck.evaluation.trials import best_lr
from limbeck.jobs.estimate import estimate_evaluation
from limbeck.report.heat_map import heat_map
from limbeck.report.page import write_report
from limbeck.report.table import write_table

pytestmark = pytest.mark.usefixtures("home")


def rows_on(run: Path, *networks: str, **options: Any) -> list[EvaluationRow]:
    rows = limbeck.evaluate(run, networks=networks, **options)
    return [row for row in rows if isinstance(row, EvaluationRow)]


@pytest.fixture(scope="module")
def both(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run whose last set has another step size, so that it is not the chosen one."""
    copy = tmp_path_factory.mktemp("both") / "run"
    shutil.copytree(run, copy)
    last = limbeck.load(run / "set-last.safetensors")
    replace(last, lr=last.lr / 2).save(copy / "set-last.safetensors")
    return copy


@pytest.fixture(scope="module")
def rows(both: Path, shared_home: Path) -> list[EvaluationRow]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_HOME", str(shared_home))
        return rows_on(both, "convnet", "mlp")


def test_there_are_rows_of_the_sets_and_of_real_images_for_every_network(rows: list[EvaluationRow]) -> None:
    lines = [(row.model, row.set, row.which, row.lr_from) for row in rows]
    real = [("random", None, "validation"), ("kmeans", None, "validation"), ("full", None, "protocol")]
    own = [("distilled", "last", "set"), ("distilled", "chosen", "set")]
    other = [("distilled", which, origin) for which in ("last", "chosen") for origin in ("set", "validation")]
    assert lines == [("convnet", *line) for line in own + real] + [("mlp", *line) for line in other + real]
    assert {row.n for row in rows} == {2, 1}  # one network for all images


def test_the_sets_own_network_has_the_rows_of_the_run(run: Path, rows: list[EvaluationRow]) -> None:
    """Also the real images: their rows are stored, so that nothing is trained for them."""
    assert [row.result.to_json() for row in rows[1:5]] == result_rows(run)[1:]


def test_accuracies_are_those_of_the_mean(rows: list[EvaluationRow]) -> None:
    for row in rows:
        if row.set == "distilled":
            assert row.accuracies is not None
            assert sum(row.accuracies) / row.n == pytest.approx(row.accuracy_mean)


def test_the_learned_step_size_and_the_best_on_validation_are_both_reported(
    both: Path, rows: list[EvaluationRow]
) -> None:
    distilled = limbeck.load(both / "set-last.safetensors")
    learned, chosen = rows[5:7]
    assert learned.lr == distilled.lr
    evaluation = prepare_evaluation(both, networks=["mlp"])[0]
    pair = distilled.images, distilled.labels
    assert chosen.lr == best_lr(evaluation.task, lambda _seed: pair, evaluation.config, derive_seed(0, "step size"))
    assert chosen.lr in WITH_BASELINES["eval"].baseline_lrs
    mlp = ModelConfig(name="mlp")
    assert learned.accuracy_mean == limbeck.evaluate(both / "set-last.safetensors", model=mlp)[0].accuracy_mean


def test_a_set_without_a_learned_step_size_has_one_row(tmp_path: Path) -> None:
    quick = {"eval": EvalConfig(networks=1, epochs=3, full_networks=0), "validate_epochs": 2}
    path = limbeck.distill("digits", method="random", out=tmp_path / "run", model=ModelConfig(width=4), **quick)
    sets = [row for row in rows_on(path, "convnet", "mlp") if row.set == "distilled"]
    lines = [(row.model, row.which, row.lr_from) for row in sets]
    assert lines == [(model, which, "validation") for model in ("convnet", "mlp") for which in ("last", "chosen")]
    assert sets[2].result == sets[3].result.model_copy(update={"which": "last"})
    drawn = heat_map(sets)
    assert drawn is not None
    assert [name for name, _ in drawn.lines] == ["distilled, chosen"]  # the last one is the same


def test_the_data_is_preprocessed_once_for_all_networks(run: Path) -> None:
    evaluations = prepare_evaluation(run, networks=["convnet", "mlp", "widening"])
    assert len({id(evaluation.task) for evaluation in evaluations}) == 3
    assert len({evaluation.task.train[0].data_ptr() for evaluation in evaluations}) == 1
    assert [evaluation.is_own for evaluation in evaluations] == [True, True, False, False, False, False]


def test_the_sets_own_network_keeps_its_options(run: Path) -> None:
    evaluations = prepare_evaluation(run, networks=["convnet", "same", "mlp"])[::2]
    own, mlp = (evaluation.task.model_config for evaluation in evaluations)  # "same" is the first one again
    assert own == ModelConfig(**limbeck.load(run).recipe["model"])
    assert prepare_evaluation(run, networks=["same"])[0].task.model_config == own
    assert mlp == ModelConfig(name="mlp").resolved((8, 8))
    assert mlp.width == 128


def test_options_after_a_name_are_those_of_the_network(run: Path) -> None:
    """Of the set's own network they change the options that it was distilled with (here the width 4)."""
    names = "convnet:width=4,convnet:norm=batch,same:width=8,mlp:width=128,mlp:width=6,mlp"
    evaluations = prepare_evaluation(run, networks=names)[::2]
    labels = ["convnet", "convnet:norm=batch", "convnet:width=8", "mlp", "mlp:width=6"]
    assert [evaluation.network for evaluation in evaluations] == labels
    assert [evaluation.is_own for evaluation in evaluations] == [True, False, False, False, False]
    models = [evaluation.task.model_config for evaluation in evaluations]
    assert [(model.width, model.norm) for model in models[:3]] == [(4, "instance"), (4, "batch"), (8, "instance")]
    assert [model.width for model in models[3:]] == [128, 6]


def test_two_widths_of_one_network_are_told_apart(run: Path, tmp_path: Path) -> None:
    """In rows, in the record, in the heat map; and each is trained as `--model.width` would train it."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    evaluations = prepare_evaluation(run, networks=["mlp:width=6", "mlp:width=7"], changes={"epochs": 3})
    for part in run_on_networks(evaluations):
        merge_record(copy, make_record(evaluations, part, 0))
    (record,) = read_record(copy / "evaluations.json", EvaluationsRecord, "limbeck-evaluations").evaluations
    assert (
        list(record.computed) == ["mlp:width=6", "mlp:width=7"] == list(dict.fromkeys(row.model for row in record.rows))
    )
    for width in (6, 7):
        (alone, *_) = limbeck.evaluate(run, model=ModelConfig(name="mlp", width=width), epochs=3)
        (row, *_) = [row for row in record.rows if (row.model, row.lr_from) == (f"mlp:width={width}", "set")]
        assert row.accuracy_mean == alone.accuracy_mean
        assert record.computed[row.model]["model"] == ModelConfig(name="mlp", width=width).resolved((8, 8)).model_dump()
    drawn = heat_map(record.rows)
    assert drawn is not None
    assert drawn.networks == ["mlp:width=6", "mlp:width=7"]
    assert "<th>mlp:width=7</th>" in write_report(copy).read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"networks": "convnet,convnot"}, "no network called 'convnot'"),
        ({"networks": "mlp", "model": ModelConfig(name="mlp")}, "one of the two"),
        ({"networks": ["lenet"]}, "too small for LeNet"),
        ({"networks": 1}, "how many fresh networks are trained is --num-networks"),
        ({"networks": "3"}, "how many fresh networks are trained is --num-networks"),
        ({"networks": "mlp:depth=2"}, "the network 'mlp' has no option 'depth'; it has width"),
        ({"networks": "mlp:widht=2"}, "'mlp:widht=2': networks have no option 'widht'; did you mean width?"),
        ({"networks": "mlp:width=wide"}, "'mlp:width=wide': width='wide': .* valid integer"),
        ({"networks": "mlp:width=0"}, "'mlp:width=0': width='0': .* greater than or equal to 1"),
        ({"networks": "mlp:width=2:width=3"}, "'mlp:width=2:width=3' has the option 'width' twice"),
        ({"networks": "mlp:width="}, "'mlp:width=' has no value for the option 'width'"),
        ({"networks": "mlp:width=2:timm"}, "not of the form NAME:option=value"),
        ({"networks": "convnet:norm=bach"}, "unknown norm 'bach' for a ConvNet"),
        ({"networks": "timm:resnet10t:width=2"}, "the network 'timm:resnet10t' has no option 'width'; it has none"),
        ({"model": ModelConfig(name="mlp:width=2")}, "elsewhere a network and its options are given one by one"),
    ],
)
def test_networks_that_cannot_be_are_refused_before_any_training(run: Path, options: Any, words: str) -> None:
    events: list[dict[str, Any]] = []
    with pytest.raises(UserError, match=words):
        limbeck.evaluate(run, listen=events.append, **options)
    assert events == []


def test_an_estimate_counts_all_networks(both: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two of a set with its own step size; two sets of two on another network, for three step sizes."""
    counts: list[int] = []
    monkeypatch.setattr(
        "limbeck.jobs.estimate._networks_seconds", lambda *args, **_: float(counts.append(args[3]) or args[3])
    )
    estimate_evaluation(prepare_evaluation(both))
    assert counts == [2, 2]
    counts.clear()
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path))  # no stored rows of real images
    estimated = estimate_evaluation(prepare_evaluation(both, networks=["convnet", "mlp:width=6"]), seed=0)
    assert list(estimated.seconds) == ["convnet", "mlp:width=6", "all images"]
    assert estimated.seconds["all images"] == 2
    assert "mlp:width=6 " in estimated.text
    assert counts == [2, 2, 8, 8, 6, 1, 6, 1]  # networks on random and on k-means images take as long
    events: list[dict[str, Any]] = []
    limbeck.evaluate(both, networks=["convnet", "mlp"], num_networks=2, epochs=1, listen=events.append)
    totals = [event["total"] for event in events if event["event"] == "stage"]
    assert totals == [2 + 2 + 6 + 6 + 1, 8 + 8 + 6 + 6 + 1]
    assert sum(event["event"] == "advance" for event in events) == sum(totals)


# --- the record


@pytest.fixture
def recorded(both: Path, tmp_path: Path) -> Path:
    """A copy of the run, evaluated on two networks."""
    copy = tmp_path / "copy"
    shutil.copytree(both, copy)
    evaluations = prepare_evaluation(both, networks=["convnet", "mlp"])
    for rows in run_on_networks(evaluations):
        merge_record(copy, make_record(evaluations, rows, 0))
    return copy


def test_rows_of_one_evaluation_are_recorded_together(recorded: Path, rows: list[EvaluationRow]) -> None:
    record = read_record(recorded / "evaluations.json", EvaluationsRecord, "limbeck-evaluations")
    (evaluation,) = record.evaluations
    assert evaluation.rows == rows
    assert (evaluation.ipc, evaluation.seed, evaluation.data.name) == (1, 0, "digits")
    assert evaluation.protocol == read_json(recorded / "results.json")["protocol"]
    assert {name: facts["model"]["name"] for name, facts in evaluation.computed.items()} == {
        "convnet": "convnet",
        "mlp": "mlp",
    }


def test_another_evaluation_is_recorded_beside_it_and_the_same_one_in_its_place(recorded: Path) -> None:
    def evaluate_again(seed: int, epochs: int | None) -> list[tuple[int, int]]:
        evaluations = prepare_evaluation(recorded, networks=["mlp"], changes={"epochs": epochs})
        for part in run_on_networks(evaluations, seed):
            merge_record(recorded, make_record(evaluations, part, seed))
        record = read_record(recorded / "evaluations.json", EvaluationsRecord, "limbeck-evaluations")
        return [(evaluation.seed, len(evaluation.rows)) for evaluation in record.evaluations]

    assert evaluate_again(0, None) == [(0, 12)]
    assert evaluate_again(1, 1) == [(0, 12), (1, 7)]
    assert evaluate_again(0, 1) == [(0, 12), (1, 7), (0, 7)]


# --- heat map and table


def test_the_heat_map_has_a_line_a_set_and_a_column_a_network(rows: list[EvaluationRow]) -> None:
    drawn = heat_map(rows)
    assert drawn is not None
    assert drawn.networks == ["convnet", "mlp"]
    assert [name for name, _ in drawn.lines] == [
        "distilled, last, its own step size",
        "distilled, last, step size chosen on validation",
        "distilled, chosen, its own step size",
        "distilled, chosen, step size chosen on validation",
        "random real images",
        "k-means real images",
        "all training images",
    ]
    assert [[cell is None for cell in cells] for _, cells in drawn.lines[:2]] == [[False, False], [True, False]]
    cells = [cell for _, line in drawn.lines for cell in line if cell is not None]
    means = torch.tensor([cell.row.accuracy_mean for cell in cells])
    expected = ((means - means.min()) / (means.max() - means.min()) * 100).round()
    assert [cell.heat for cell in cells] == pytest.approx(expected.tolist(), abs=1)


def test_one_set_on_one_network_is_no_heat_map(rows: list[EvaluationRow]) -> None:
    assert heat_map([]) is None
    assert heat_map(rows[:2]) is None
    assert heat_map(rows[:3]) is not None


def test_the_report_shows_the_heat_map(recorded: Path, run: Path, rows: list[EvaluationRow]) -> None:
    page = write_report(recorded).read_text().partition("<h2>Other networks</h2>")[2].partition("<h2>")[0]
    assert page.count('<td style="--heat: ') == len(rows)
    row = next(row for row in rows if row.model == "mlp" and row.lr_from == "validation")
    assert f"{100 * row.accuracy_mean:.1f} ± " in page
    assert f"n = {row.n}, lr {row.lr:.2g}" in page
    assert "Other networks" not in write_report(run, recorded / "before.html").read_text()


def test_a_damaged_record_is_named_in_the_report(recorded: Path) -> None:
    (recorded / "evaluations.json").write_text("{}[")
    assert "evaluations.json: damaged, so other networks are not shown." in write_report(recorded).read_text()
    with pytest.raises(UserError, match=r"evaluations\.json cannot be read as JSON"):
        write_table([recorded], recorded / "table.md")


def test_the_table_has_a_line_for_every_network(recorded: Path, rows: list[EvaluationRow], tmp_path: Path) -> None:
    lines = write_table([recorded], tmp_path / "table.md").read_text().splitlines()
    (head,) = [line for line in lines if "| network |" in line]
    (mlp,) = [line for line in lines if "| mlp |" in line]
    cells = dict(zip(head.split("|"), mlp.split("|"), strict=True))
    by_origin = {row.lr_from: row for row in rows if (row.model, row.which) == ("mlp", "chosen")}
    for column, origin in ((" chosen, its own step size ", "set"), (" chosen, step size by validation ", "validation")):
        assert cells[column].startswith(f" {100 * by_origin[origin].accuracy_mean:.1f} ± ")
    (convnet,) = [line for line in lines if "| convnet |" in line]
    assert dict(zip(head.split("|"), convnet.split("|"), strict=True))[" chosen, step size by validation "] == " – "
