"""Readers of what limbeck writes: sets, stores, runs, evaluations, caches, inspections and studies."""

from __future__ import annotations

import io
import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.console import Console
from torture.mutations import mutate_bytes, mutate_json
from torture.subject import NETWORK, Subject, Use, damage_one, rarely_drawn, sometimes, tiny, tiny_task
from torture.tensor_mutations import mutate_tensors

import limbeck
from limbeck import DistilledSet, EvalConfig, ExpertConfig, Store
from limbeck.cli.commands import _show
from limbeck.cli.comparison import comparison
from limbeck.cli.info import describe
from limbeck.cli.study import show_study
from limbeck.core.evaluation_records import EvaluationsRecord
from limbeck.core.record_files import read_record
from limbeck.core.records import LogLine, ResultLine, ResultsRecord, StepLine
from limbeck.core.tensors import read_tensors, write_tensors
from limbeck.evaluation.record import make_record, merge_record
from limbeck.evaluation.run import evaluate, run_on_networks
from limbeck.evaluation.sets import prepare_evaluation
from limbeck.interop import export_experts, export_set
from limbeck.interop.card import read_facts
from limbeck.jobs.inspection import inspect_store
from limbeck.jobs.presets import load_preset
from limbeck.jobs.record import RunFolder
from limbeck.progress.watch import look
from limbeck.report.inspection import write_inspection
from limbeck.report.page import write_comparison, write_report
from limbeck.report.study_page import write_study_page
from limbeck.report.table import write_table
from limbeck.studies.cells import make_cells
from limbeck.studies.config import read_study
from limbeck.studies.record import read_study_record
from limbeck.synthetic.distilled import Mosaics
from limbeck.synthetic.grids import image_grid
from limbeck.synthetic.tiles import Partition

# --- sets


def make_set(kind: str) -> None:
    """A set with hard labels, soft ones, or mosaics."""
    task = tiny_task()
    images, labels = task.train[0][:3], task.train[1][:3]
    data = {"name": "tiny", "fingerprint": task.data.fingerprint, **task.data.origin.describe()}
    recipe = {"networks": 1, "epochs": 1, "batch_size": 4, "momentum": 0.9, "weight_decay": 0.0, "augment": "flip"}
    distilled = DistilledSet(
        images,
        labels,
        0.01,
        task.preprocess,
        task.data.classes,
        {**recipe, "model": task.model_config.model_dump()},
        {"method": "mct", "config": {"seed": 0}, "data": data, "which": "last", "step": 3},
    )
    if kind == "soft":
        distilled = replace(distilled, labels=torch.full((3, 3), 1 / 3), targets=torch.eye(3))
    if kind == "mosaics":
        mosaics = Mosaics(images, labels, Partition(2, "single", (0.0,)))
        images, labels = mosaics.partition(images, labels)
        distilled = replace(distilled, images=images, labels=labels, mosaics=mosaics)
    distilled.save("set.safetensors")


def use_set(generator: Random) -> list[Use]:
    def draw() -> None:
        distilled = limbeck.load("set.safetensors")
        image_grid(distilled.pictures(), distilled.hard_labels(), distilled.classes)

    def export(to: str) -> None:
        export_set(limbeck.load("set.safetensors"), f"exported-{to}", to)

    return [
        lambda: _show(describe("set.safetensors"), False),
        lambda: json.dumps(describe("set.safetensors")),
        lambda: len(limbeck.load("set.safetensors").dataset()),
        draw,
        lambda: export(generator.choice(("mtt", "datm", "ddranking"))),
        lambda: export(generator.choice(("imagefolder", "npz", "hf"))),
        lambda: limbeck.load("set.safetensors").train(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))),
        lambda: _show(
            {"results": [row.to_json() for row in evaluate("set.safetensors", data=tiny(), num_networks=1)]}, False
        ),
        *sometimes(lambda: evaluate("set.safetensors", num_networks=1, epochs=1), generator, 0.3),
    ]


# --- stores


def make_store() -> None:
    expert = ExpertConfig(epochs=2, batch_size=64, keep="both")
    limbeck.train_experts(tiny(), out="store", num_experts=2, model=NETWORK, expert=expert)


def use_store(generator: Random) -> list[Use]:
    path = Path("store")

    def walk(lazy: bool) -> None:
        store = Store.open(path)
        store.require({"seed": 0})
        for expert in (store.read(index, lazy) for index in store.indices()):
            for trajectory in (expert.convex, expert.recorded):
                if trajectory is not None:
                    for t in (0, trajectory.end):
                        store.layout.split(trajectory.at(t))

    data = tiny() if generator.random() < 0.3 else None
    return [
        lambda: _show(describe("store"), False),
        lambda: walk(False),
        lambda: walk(True),
        lambda: export_experts(Store.open(path), "exported-mtt", "mtt"),
        lambda: export_experts(Store.open(path), "exported-mct", "mct"),
        lambda: Store.open(path).convexify(Path("convexified"), waypoints=3),
        *sometimes(lambda: inspect_store(path, "inspected", data=data), generator, 0.1),
        *sometimes(lambda: limbeck.distill(tiny(), out="run", experts="store", **RUN), generator, 0.2),
    ]


# --- runs

RUN: dict[str, Any] = {
    **{"ipc": 1, "num_experts": 1, "iterations": 2, "validate_every": 1, "validate_networks": 1, "validate_epochs": 1},
    "model": NETWORK,
    "expert": ExpertConfig(epochs=2, batch_size=64),
    "eval": EvalConfig(networks=1, epochs=1, full_epochs=1, full_networks=1, baseline_lrs=(0.01,)),
    **{"syn_steps": 1, "max_start_epoch": 1, "expert_epochs": 1},
}


def make_run() -> None:
    limbeck.distill(tiny(), out="run", **RUN)


def again() -> None:
    """The command of the run again, which shows its results."""
    make_run()
    show_results()


def show_results() -> None:
    """Show the results of the run, as `limbeck distill` does."""
    results = read_record(Path("run/results.json"), ResultsRecord, "limbeck-results")
    _show(results.to_json(), False)
    comparison(load_preset("mtt/cifar10/ipc1-mct"), results.results, results.data.name, {})


def make_evaluated_run() -> None:
    make_run()
    evaluations = prepare_evaluation("run", data=tiny(), networks=["mlp"], changes={"networks": 2, "epochs": 1})
    rows = [row for rows in run_on_networks(evaluations, 0, lambda event: None) for row in rows]
    merge_record(Path("run"), make_record(evaluations, rows, 0))


def use_run(generator: Random) -> list[Use]:
    path = Path("run")
    return [
        lambda: _show(describe("run"), False),
        lambda: write_table([path, path], Path("table.md")),
        lambda: read_facts(path),
        lambda: [RunFolder(path).lines(kind) for kind in (StepLine, ResultLine, LogLine)],
        rarely_drawn(again, generator),
        *sometimes(lambda: write_report(path), generator, 0.15),
        *sometimes(lambda: write_comparison([path, path], Path("comparison.html")), generator, 0.05),
    ]


def use_evaluations(generator: Random) -> list[Use]:
    def merge() -> None:
        record = read_record(Path("run/evaluations.json"), EvaluationsRecord, "limbeck-evaluations")
        for evaluation in record.evaluations:
            merge_record(Path("run"), evaluation)

    return [
        merge,
        lambda: write_table([Path("run")], Path("table.md")),
        *sometimes(lambda: write_report(Path("run")), generator, 0.3),
    ]


def without(*names: str) -> None:
    """Remove these files of the run, as one that was stopped lacks them."""
    for name in names:
        (Path("run") / name).unlink()


def make_unfinished() -> None:
    make_run()
    without("results.json", "report.html")


def make_state() -> None:
    """The state after one of two outer steps."""
    make_run()
    without("results.json", "report.html", "set-last.safetensors")
    tensors, header = read_tensors(Path("run/state.safetensors"), "limbeck-state")
    header.pop("sha256")
    write_tensors(Path("run/state.safetensors"), tensors, {**header, "step": 1})


@contextmanager
def own_home() -> Any:
    """LIMBECK_HOME in the current folder, so that what it stores can be damaged."""
    before = os.environ["LIMBECK_HOME"]
    os.environ["LIMBECK_HOME"] = str(Path("home").absolute())
    try:
        yield
    finally:
        os.environ["LIMBECK_HOME"] = before


def make_baseline() -> None:
    data = tiny()
    with own_home():
        limbeck.distill(data, out="run", **RUN)
    (row,) = Path("home/baselines").glob("*-random-*")
    row.rename("home/baselines/row.json")
    Path("name").write_text(row.name)
    without("results.json", "report.html")


def use_baseline(generator: Random) -> list[Use]:
    shutil.copy("home/baselines/row.json", Path("home/baselines") / Path("name").read_text())
    data = tiny()

    def go_on() -> None:
        with own_home():
            limbeck.distill(data, out="run", **RUN)
            show_results()

    return [rarely_drawn(go_on, generator)]


def make_inspection() -> None:
    make_store()
    inspect_store("store", ".", data=tiny())
    shutil.rmtree("store")


STUDY = """
title = "Two budgets"
seeds = [0, 1]
[options]
data = "digits"
method = "random"
[axes.size.one]
ipc = 1
[axes.size.two]
ipc = 2
[compare]
axis = "size"
against = "one"
"""


def make_study() -> None:
    """A record as `limbeck study` writes it, with two rows and a comparison."""
    Path("study.toml").write_text(STUDY)
    row = {"set": "distilled", "which": "chosen", "model": "convnet", "split": "test", "accuracy_mean": 0.5, "n": 2}
    row |= {"accuracy_std": 0.1, "accuracies": [0.4, 0.6], "lr": 0.01, "step": 2}
    curve = {"steps": [0, 2], "accuracy": [0.4, 0.5], "std": [0.1, 0.1], "seconds": [0.0, 1.0], "loss_change": 0.1}
    curve |= {"loss_steps": [1, 2], "loss": [1.0, 0.9], "loss_low": [1.0, 0.9], "loss_high": [1.0, 0.9]}
    path = {"t": [0.0, 1.0], "mean": [0.1, 0.5], "low": [0.1, 0.4], "high": [0.1, 0.6]}
    rows = [
        {
            **{"cell": {"size": size}, "seed": seed, "key": f"{size}{seed}", "results": [row], "curve": curve},
            **{"paths": {"recorded": path}, "seconds": {"distill": 1.0}, "bytes": {"images": 100, "labels": 10}},
            **{"peak_memory": 10**9, "data": "digits", "ipc": 1, "created": "2026-01-01"},
        }
        for size in ("one", "two")
        for seed in (0, 1)
    ]
    difference = {"axis": "size", "cell": {"size": "two"}, "against": {"size": "one"}, "which": "chosen"}
    difference |= {"accuracy": 0.5, "against_accuracy": 0.5, "difference": 0.0, "standard_error": 0.1, "low": -0.1}
    difference |= {"high": 0.1, "n": 2, "over": "seeds", "reach": []}
    record = {
        **{"format": "limbeck-study", "version": 1, "title": "Two budgets", "axes": {"size": ["one", "two"]}},
        **{"seeds": [0, 1], "study": {}, "planned": 4, "rows": rows, "comparisons": [difference]},
    }
    Path("study.json").write_text(json.dumps(record))


def use_study(generator: Random) -> list[Use]:

    def show() -> None:
        record = read_study_record(Path("study.json"))
        assert record is not None
        show_study(record, Console(file=io.StringIO()))

    def draw() -> None:
        record = read_study_record(Path("study.json"))
        assert record is not None
        write_study_page(record, Path("study.html"))

    return [show, *sometimes(draw, generator, 0.2)]


def mutate_text(content: bytes, generator: Random) -> tuple[bytes, str]:
    """A text file: a word of it is another, or its bytes are damaged."""
    if generator.random() < 0.3:
        return mutate_bytes(content, generator)
    lines = content.decode().splitlines()
    number = generator.randrange(len(lines))
    words = ('""', "-1", "[]", "{}", "nan", "[[", "1e400", "0", "x = 1", "[axes.a.b]", "'../x'", '"' + 1000 * "x" + '"')
    word = generator.choice(words)
    lines[number] = lines[number].split("=")[0] + f"= {word}" if "=" in lines[number] else word
    return "\n".join(lines).encode(), f"line {number}: {lines[number][:40]}"


def use_study_file(generator: Random) -> list[Use]:

    return [lambda: make_cells(read_study(Path("study.toml"))[0])]


RUNS: dict[str, Subject] = {
    **{
        name: Subject(lambda kind=kind: make_set(kind), damage_one({"set.safetensors": mutate_tensors}), use_set)
        for name, kind in (("set", "hard"), ("set-soft", "soft"), ("set-mosaics", "mosaics"))
    },
    "store": Subject(
        make_store,
        damage_one({"store/store.json": mutate_json, "store/expert-0000.safetensors": mutate_tensors}),
        use_store,
    ),
    "run.json": Subject(make_run, damage_one({"run/run.json": mutate_json}), use_run),
    "results.json": Subject(make_run, damage_one({"run/results.json": mutate_json}), use_run),
    "log": Subject(make_run, damage_one({"run/log.jsonl": mutate_json, "run/experts.json": mutate_json}), use_run),
    "evaluations.json": Subject(make_evaluated_run, damage_one({"run/evaluations.json": mutate_json}), use_evaluations),
    "unfinished": Subject(
        make_unfinished,
        damage_one({f"run/{name}": mutate_json for name in ("log.jsonl", "experts.json", "run.json")}),
        lambda generator: [lambda: describe("run"), rarely_drawn(again, generator)],
    ),
    "state": Subject(
        make_state,
        damage_one({"run/state.safetensors": mutate_tensors}),
        lambda generator: [lambda: describe("run/state.safetensors"), rarely_drawn(make_run, generator)],
    ),
    "run-sets": Subject(
        make_unfinished,
        damage_one({f"run/set-{which}.safetensors": mutate_tensors for which in ("last", "chosen")}),
        lambda generator: [
            lambda: describe("run"),
            rarely_drawn(again, generator),
            rarely_drawn(lambda: write_report(Path("run")), generator),
        ],
    ),
    "progress.json": Subject(
        make_run,
        damage_one({"run/progress.json": mutate_json}),
        lambda generator: [lambda: look(Path("run")).text()],
    ),
    "baseline": Subject(make_baseline, damage_one({"home/baselines/row.json": mutate_json}), use_baseline),
    "inspect.json": Subject(
        make_inspection,
        damage_one({"inspect.json": mutate_json}),
        lambda generator: [lambda: write_inspection(Path("."))],
    ),
    "study": Subject(make_study, damage_one({"study.json": mutate_json}), use_study),
    "study.toml": Subject(make_study, damage_one({"study.toml": mutate_text}), use_study_file),
}
"""By name."""
