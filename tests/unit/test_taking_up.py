"""A run that is asked for again: left alone, continued, evaluated anew, or refused; and what of it depends on where."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import limbeck
from limbeck import EvalConfig, ExpertConfig, ModelConfig, UserError
from limbeck.core import files
from limbeck.core.aliases import old_config
from limbeck.core.files import content_key
from limbeck.core.records import StepLine, ValidationLine
from limbeck.core.user_code import source_key
from limbeck.jobs.inspection import inspect_store
from limbeck.jobs.job import prepare
from limbeck.jobs.record import RunFolder
from limbeck.task import Task, make_task

EVAL = EvalConfig(networks=1, epochs=3, baseline_lrs=(0.01,), full_networks=0)
TINY: dict[str, Any] = {
    "num_experts": 2,
    "model": ModelConfig(width=4),
    "expert": ExpertConfig(epochs=2, lr=0.05, batch_size=64),
    "eval": EVAL,
    "iterations": 4,
    "syn_steps": 2,
    "max_start_epoch": 1,
    "expert_epochs": 1,
    "validate_every": 2,
    "validate_networks": 1,
    "validate_epochs": 2,
}
FOR_EXPERTS = ("num_experts", "syn_steps", "max_start_epoch", "expert_epochs")
MATCHING: dict[str, Any] = {name: value for name, value in TINY.items() if name not in FOR_EXPERTS}
SETS = ("set-last.safetensors", "set-chosen.safetensors")
Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _home(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_HOME", str(shared))


def job(out: Path, **options: Any) -> Path:
    return limbeck.distill("digits", out=out, **{**TINY, **options})


@pytest.fixture(scope="module")
def finished(shared: Path, _one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that is copied, never changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_HOME", str(shared))
        return job(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def rows(path: Path) -> Any:
    return read(path / "results.json")["results"]


def bits(path: Path) -> list[bytes]:
    return [(path / name).read_bytes() for name in SETS]


def steps(path: Path) -> list[int]:
    return [line.step for line in RunFolder(path).lines(StepLine)]


class Stop(Exception):
    """Ends a job from within, as an interruption does."""


def stop_in(stage: str, at: int) -> Any:
    """A listener that ends the job at the `at`-th unit of a stage."""
    stages: list[str] = [""]

    def listen(event: dict[str, Any]) -> None:
        stages.append(event["name"] if event["event"] == "stage" else stages[-1])
        units = [name for name in stages if name == stage]
        if event["event"] == "advance" and len(units) > at:
            raise Stop

    return listen


# --- options that were renamed


def test_a_run_recorded_under_old_names_is_left_alone_and_continued(run: Path, tmp_path: Path) -> None:
    """The last release wrote `draws` into run.json and into the key of results.json."""
    names = ("run.json", "results.json")
    head, results = (read(run / name) for name in names)
    config = old_config(head["config"])
    assert "draws" in config
    for name, value in zip(names, ({**head, "config": config}, results)):
        (run / name).write_text(json.dumps({**value, "key": content_key(config)}))
    before = bits(run)
    job(run)
    assert bits(run) == before
    assert read(run / "run.json")["config"] == head["config"]
    job(run, iterations=8)
    assert bits(run) == bits(job(tmp_path / "whole", iterations=8))


def test_old_names_of_options_warn_and_count(run: Path) -> None:
    with pytest.warns(DeprecationWarning, match="draws is now called grad_accum") as caught:
        job(run, draws=1)
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="draws"), pytest.raises(UserError, match="grad_accum 1, not 2"):
        job(run, draws=2)
    with pytest.raises(UserError, match="option draws: Extra inputs"):
        job(run, draws=1, grad_accum=1)


# --- more iterations


def test_more_iterations_continue_a_finished_run_to_the_bits_of_one_at_once(run: Path, tmp_path: Path) -> None:
    job(run, iterations=8)
    whole = job(tmp_path / "whole", iterations=8)
    assert bits(run) == bits(whole)
    assert rows(run) == rows(whole)
    assert steps(run) == list(range(1, 9))  # none of them twice
    assert read(run / "run.json")["config"] == read(whole / "run.json")["config"]
    assert (run / "report.html").read_text().count("8") >= 1
    with pytest.raises(UserError, match="iterations 8, not 4"):
        job(run)


def test_more_iterations_that_were_interrupted_go_on(run: Path, tmp_path: Path) -> None:
    with suppress(Stop):
        job(run, iterations=8, listen=stop_in("distill", 3))
    assert not RunFolder(run).is_finished(read(run / "run.json")["config"])
    job(run, iterations=8)
    assert bits(run) == bits(job(tmp_path / "whole", iterations=8))


@pytest.mark.parametrize("method", ["ptm", "dc"])
def test_methods_that_remember_are_continued(method: str, tmp_path: Path) -> None:
    """Hooks, optimisers and averages go on too; what would follow from the number of steps is given."""
    options = {**TINY, "overlap_until": 3} if method == "ptm" else MATCHING
    for iterations in (4, 6):
        path = limbeck.distill("digits", method=method, out=tmp_path / "run", **{**options, "iterations": iterations})
    whole = limbeck.distill("digits", method=method, out=tmp_path / "whole", **{**options, "iterations": 6})
    assert bits(path) == bits(whole)
    assert rows(path) == rows(whole)


def test_steps_between_validations_stay_those_of_the_run(tmp_path: Path) -> None:
    path = job(tmp_path / "run", iterations=4, validate_every=None)
    assert read(path / "run.json")["config"]["validate_every"] == 1
    job(path, iterations=20, validate_every=None)  # by itself that would be every 2
    assert [line.step for line in RunFolder(path).lines(ValidationLine)] == list(range(21))


def test_a_schedule_that_follows_from_the_iterations_is_not_continued(tmp_path: Path) -> None:
    options = {**TINY, "iterations": 10, "max_start_epoch": 2, "expert_epochs": 1}
    path = limbeck.distill("digits", method="datm", out=tmp_path / "run", **options)
    with pytest.raises(UserError, match=r"expansion_steps 2, not 4.*expansion_steps was 2"):
        limbeck.distill("digits", method="datm", out=path, **{**options, "iterations": 20})
    limbeck.distill("digits", method="datm", out=path, **{**options, "iterations": 12, "expansion_steps": 2})
    assert steps(path) == list(range(1, 13))


# --- another evaluation


def test_another_evaluation_does_not_distil_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = EVAL.model_copy(update={"networks": 2, "epochs": 4})
    fresh = job(tmp_path / "fresh", eval=other)
    monkeypatch.setattr("limbeck.jobs.stages.run_outer_loop", None)
    monkeypatch.setattr("limbeck.experts.handle.make_experts", None)
    before = (run / "report.html").read_text()
    job(run, eval=other)
    assert bits(run) == bits(fresh)
    assert rows(run) == rows(fresh)
    assert read(run / "results.json")["bytes"] == read(fresh / "results.json")["bytes"]
    assert read(run / "run.json")["config"]["eval"] == other.model_dump(mode="json")
    assert (run / "report.html").read_text() != before
    assert [row.to_json() for row in limbeck.evaluate(run)] == rows(run)[:2]
    monkeypatch.setattr("limbeck.jobs.results.evaluate_distilled", None)
    job(run)  # the first evaluation again, from the log
    assert read(run / "results.json")["results"][0]["n"] == 1


def test_an_evaluation_that_was_interrupted_is_not_taken_for_the_one_before(run: Path, finished: Path) -> None:
    other = EVAL.model_copy(update={"networks": 3})
    with suppress(Stop):
        job(run, eval=other, listen=stop_in("evaluate", 1))
    assert rows(run) == rows(finished)
    assert read(run / "run.json")["config"]["eval"] == EVAL.model_dump(mode="json")
    assert {row["n"] for row in rows(job(run, eval=other))} == {3}


def test_a_step_size_that_is_not_learned_is_chosen_for_every_evaluation(tmp_path: Path) -> None:
    few = {"ipc": 1, "model": ModelConfig(width=4)}
    path = limbeck.distill("digits", method="random", out=tmp_path / "run", eval=EVAL, **few)
    other = EVAL.model_copy(update={"baseline_lrs": (0.05,)})
    limbeck.distill("digits", method="random", out=path, eval=other, **few)
    assert [row["lr"] for row in rows(path)] == [0.05] * 4
    assert limbeck.load(path).lr == 0.05


def test_validation_of_an_unfinished_distillation_stays_what_it_was(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with suppress(Stop):
        job(out, listen=stop_in("distill", 3))
    with pytest.raises(UserError, match=r"validated with momentum 0\.9, not momentum 0.5"):
        job(out, eval=EVAL.model_copy(update={"momentum": 0.5}))
    job(out, eval=EVAL.model_copy(update={"networks": 2}))  # of which validation knows nothing
    assert rows(out)[0]["n"] == 2


def test_a_run_stopped_at_any_write_while_it_is_changed_ends_the_same(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"iterations": 6, "eval": EVAL.model_copy(update={"epochs": 4})}
    whole = job(tmp_path / "whole", **changed)
    write, written, stop = files.write_atomically, 0, 0

    def count(*args: Any) -> None:
        nonlocal written
        written += 1
        if written == stop:
            raise Stop
        write(*args)

    for module in ("limbeck.core.files", "limbeck.core.tensors", "limbeck.synthetic.grids"):
        monkeypatch.setattr(f"{module}.write_atomically", count)
    monkeypatch.setattr("limbeck.jobs.stages.write_report", lambda path: None)
    while written >= stop:
        written, stop, out = 0, stop + 1, Path(shutil.copytree(finished, tmp_path / f"{stop + 1}"))
        with suppress(Stop):
            job(out, **changed)
        reached, limit = written, stop
        stop = 0
        job(out, **changed)
        written, stop = reached, limit
        assert bits(out) == bits(whole)
        assert rows(out) == rows(whole)
        assert read(out / "run.json")["config"] == read(whole / "run.json")["config"]
    assert stop > 6


# --- nothing to do


def test_a_finished_run_says_so_in_one_line(run: Path) -> None:
    heard: Events = []
    job(run, listen=heard.append)
    assert heard == [{"event": "note", "text": f"{run} is finished; nothing was done."}]


def test_a_run_is_estimated_as_what_is_left_of_it(finished: Path) -> None:
    assert prepare("digits", out=finished, **TINY).is_finished
    for changed in ({"iterations": 8}, {"eval": EVAL.model_copy(update={"networks": 2})}):
        assert not prepare("digits", out=finished, **{**TINY, **changed}).is_finished


def test_a_recorded_command_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/limbeck", "distill", "my data", "--out", "a;b"])
    command = read(job(tmp_path / "run", iterations=1) / "run.json")["command"]
    assert shlex.split(command) == ["limbeck", *sys.argv[1:]]


# --- the conditions


CONDITIONS = {
    "numerics": 0,
    "device": "other",
    "implementation": "other",
    "precision": "other",
    "torch": "0",
    "threads": 7,
}


@pytest.fixture(params=CONDITIONS)
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(name, value) of one condition; once called, every task is under it."""
    name, value, conditions = request.param, CONDITIONS[request.param], Task.conditions

    def move() -> None:
        monkeypatch.setattr(Task, "conditions", lambda task: {**conditions(task), name: value})

    return name, value, move


def test_the_conditions_are_those_of_the_task() -> None:
    data = limbeck.load_data("digits")
    mlp = make_task(data, ModelConfig(name="mlp", width=4))
    assert set(mlp.conditions()) == set(CONDITIONS)
    assert (mlp.conditions()["implementation"], mlp.conditions()["threads"]) == ("autograd", torch.get_num_threads())
    wide = make_task(data, ModelConfig(width=32))
    if wide.implementation == "compiled":
        assert "threads" not in wide.conditions()
    assert json.loads(json.dumps(wide.conditions())) == wide.conditions()
    lower = make_task(data, ModelConfig(width=32), precision="bfloat16")
    assert lower.conditions()["precision"] == "bfloat16"


def test_an_unfinished_run_is_not_continued_under_other_conditions(elsewhere: Any, tmp_path: Path) -> None:
    name, value, move = elsewhere
    out = tmp_path / "run"
    for stage, at in (("distill", 2), ("evaluate", 1)):
        with suppress(Stop):
            job(out, listen=stop_in(stage, at))
        recorded = read(out / "run.json")["computed"].get(name)
        with pytest.MonkeyPatch.context() as patch:
            conditions = Task.conditions
            patch.setattr(Task, "conditions", lambda task: {**conditions(task), name: value})  # noqa: B023
            with pytest.raises(
                UserError, match=f"{name} {re.escape(str(recorded))}, and would go on with {name} {value}.*--out"
            ):
                job(out)
    job(out)
    move()
    before = (out / "results.json").read_bytes()
    job(out)  # finished: nothing is computed
    assert (out / "results.json").read_bytes() == before
    assert limbeck.evaluate(out, networks=1)[0].n == 1
    with pytest.raises(UserError, match=f"{name} {re.escape(str(recorded))}, and would go on"):
        job(out, iterations=8)
    job(out, eval=EVAL.model_copy(update={"networks": 2}))  # by another implementation, all of it
    assert read(out / "results.json")["computed"][name] == value
    assert read(out / "run.json")["computed"].get(name) == recorded


def test_stores_and_baselines_are_found_under_their_conditions_only(
    elsewhere: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, value, move = elsewhere
    home = tmp_path / "home"
    monkeypatch.setenv("LIMBECK_HOME", str(home))
    job(tmp_path / "here")
    move()
    there = job(tmp_path / "there")
    stores = [files.read_json(path / "store.json", "limbeck-store") for path in (home / "experts").iterdir()]
    assert len(stores) == len({store["key"] for store in stores}) == 2
    assert sorted(store["computed"].get(name) == value for store in stores) == [False, True]
    assert len(list((home / "baselines").iterdir())) == 4
    assert read(there / "experts.json")["computed"][name] == value


def test_a_store_is_read_but_not_extended_under_other_conditions(elsewhere: Any, tmp_path: Path) -> None:
    name, value, move = elsewhere
    few = {key: TINY[key] for key in ("model", "expert")}
    store = limbeck.train_experts("digits", out=tmp_path / "store", num_experts=2, **few)
    recorded = store.header.computed.get(name)
    move()
    assert limbeck.train_experts("digits", out=store.path, num_experts=2, **few).indices() == [0, 1]
    path = job(tmp_path / "run", experts=store.path)
    assert read(path / "experts.json")["computed"] == store.header.computed
    assert read(path / "run.json")["computed"][name] == value
    with pytest.raises(UserError, match=f"{name} {re.escape(str(recorded))}, and would go on with {name} {value}"):
        limbeck.train_experts("digits", out=store.path, num_experts=3, **few)
    assert store.indices() == [0, 1]


def test_files_without_conditions_are_read_and_not_continued(run: Path, tmp_path: Path) -> None:
    head = read(run / "run.json")
    del head["computed"], head["validation"]
    (run / "run.json").write_text(json.dumps(head))
    job(run)
    assert limbeck.evaluate(run, networks=1)
    job(run, eval=EVAL.model_copy(update={"networks": 2}))
    with pytest.raises(UserError, match="does not say under which conditions"):
        job(run, iterations=8)
    golden = Path(__file__).parents[1] / "golden" / "store"
    store = limbeck.Store.open(golden)
    assert store.read(0).test == 0.8125
    with pytest.raises(UserError, match="does not say under which conditions"):
        store.require_conditions({"numerics": 1})
    inspect_store(golden, tmp_path / "inspection")
    assert store.convexify(tmp_path / "convex", waypoints=2).indices() == [0]


# --- names of data


def test_a_run_in_a_folder_of_its_datas_name_is_evaluated_on_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = limbeck.distill("digits", out="digits", **TINY)
    assert limbeck.load(path).provenance["data"]["source"] == read(path / "run.json")["source"] == "digits"
    assert [row.to_json() for row in limbeck.evaluate("digits")] == rows(path)[:2]
    assert limbeck.load_data("digits").name == "digits"
    with pytest.raises(UserError, match="a run of limbeck and no images"):
        limbeck.load_data("./digits")
    limbeck.train_experts("digits", out="store", num_experts=1, **{key: TINY[key] for key in ("model", "expert")})
    with pytest.raises(UserError, match="a store of experts and no images"):
        limbeck.load_data("store")


# --- the user's own code


METHOD = '''
from limbeck import METHODS
from limbeck.methods import Method, MethodConfig, Plan
from limbeck.methods.trajectory_matching import init_synthetic_set
import torch
from torch import nn

class Config(MethodConfig):
    iterations: int = 2
    """outer steps"""

FACTOR = 1.0

def loss(synthetic, step, seed):  # how far it is from grey
    return FACTOR * synthetic.images.square().mean() + 0 * synthetic.log_lr

def plan(config, inputs):
    synthetic = init_synthetic_set("random", inputs, 0.01)
    steps = [torch.optim.SGD([synthetic.images], 0.1), torch.optim.SGD([synthetic.log_lr], 0.1)]
    return Plan(loss, synthetic, steps, config.iterations)

MINE = Method("mine", "ours", "nobody", Config, None, plan)

class Net(nn.Module):
    def __init__(self, channels, size, classes):
        super().__init__()
        self.body = nn.Flatten()
        self.classifier = nn.Linear(channels * size[0] * size[1], classes)

    def forward(self, x):
        return self.classifier(self.body(x).relu())
'''


@pytest.fixture
def write_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Text of a user's module -> the module, registered as method and network `mine`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text: str) -> ModuleType:
        (tmp_path / "users_method.py").write_text(text)
        sys.modules.pop("users_method", None)
        importlib.invalidate_caches()
        module = importlib.import_module("users_method")
        monkeypatch.setitem(limbeck.METHODS, "mine", module.MINE)
        monkeypatch.setitem(limbeck.MODELS, "mine", module.Net)
        return module

    return write


CHANGES = [("FACTOR = 1.0", "FACTOR = 1e9"), (".square()", ".abs()"), ("0.1)]", "0.2)]")]


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_changed_code_of_a_users_method_is_another_run(
    write_method: Any, tmp_path: Path, before: str, after: str
) -> None:
    few = {"model": ModelConfig(width=4), "eval": EVAL, "validate_networks": 1, "validate_epochs": 2}

    def again() -> Path:
        return limbeck.distill("digits", method="mine", out=tmp_path / "run", **few)

    write_method(METHOD)
    stamp = (again() / "results.json").stat().st_mtime_ns
    write_method(METHOD.replace("# how far it is from grey", "# the mean square").replace("\n\n", "\n\n\n"))
    assert (again() / "results.json").stat().st_mtime_ns == stamp  # a comment is no change
    assert before in METHOD
    write_method(METHOD.replace(before, after))
    with pytest.raises(UserError, match=r"a run with code \w{12}, not \w{12}"):
        again()


def test_changed_code_of_a_users_network_makes_other_experts(write_method: Any, tmp_path: Path) -> None:
    def store(out: Path | None = None) -> limbeck.Store:
        return limbeck.train_experts(
            "digits", out=out, num_experts=1, model=ModelConfig(name="mine"), expert=TINY["expert"]
        )

    write_method(METHOD)
    first, named = store(), store(tmp_path / "store")
    assert store().path == first.path
    write_method(METHOD.replace("relu", "tanh"))
    assert store().path != first.path
    with pytest.raises(UserError, match="made with code"):
        store(named.path)


def test_nothing_of_limbeck_is_the_users_code(finished: Path) -> None:
    assert "code" not in read(finished / "run.json")["config"]
    for method in limbeck.METHODS.values():
        assert source_key(method.plan, method.resolve, method.config) == ""


class Scaled:
    """A user's builder of networks, with an option."""

    def __init__(self, width: int):
        self.width = width
        self.itself = self

    def build(self) -> int:
        return self.width


def test_an_attribute_of_the_users_instance_is_part_of_the_key() -> None:
    """A finished run answered for Network(width=64) where it was of Network(width=4)."""
    assert source_key(Scaled(4)) == source_key(Scaled(4)) != source_key(Scaled(64))
    assert source_key(Scaled(4).build) != source_key(Scaled(64).build)


KEY_OF_A_SET = """
KINDS = {"a", "b", "c", "d"}
from limbeck.core.aliases import old_config
from limbeck.core.files import content_key
from limbeck.core.user_code import source_key
print(source_key(lambda name: name in {"a", "b", "c", "d"} or name in KINDS))
"""


def test_the_order_of_a_set_is_not_part_of_the_key() -> None:
    """It differs from process to process, so that an interrupted run was refused as another one."""
    keys = set()
    for seed in "12":
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        words = [sys.executable, "-c", KEY_OF_A_SET]
        keys.add(subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(keys) == 1
    assert keys != {"\n"}
