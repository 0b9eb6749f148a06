"""The published settings: what they hold, that methods accept them, and that one runs beside its number."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from limbeck.cli.commands import COMMANDS
from limbeck.cli.comparison import comparison
from limbeck.cli.distill import Distill, choose_defaults
from limbeck.cli.main import main
from limbeck.cli.parse import parse
from limbeck.core.errors import UserError
from limbeck.core.records import ResultRow
from limbeck.evaluation.protocol import EvalConfig
from limbeck.experts import ExpertConfig
from limbeck.jobs.config import JobConfig, check_options
from limbeck.jobs.presets import Preset, all_presets, load_preset, markdown, preset_options
from limbeck.methods import METHODS
from limbeck.networks.registry import ModelConfig

NAMES = list(all_presets())
DOCS = Path(__file__).parents[2] / "docs"


def test_how_many_there_are() -> None:
    methods = [name.split("/")[0] for name in NAMES]
    assert {method: methods.count(method) for method in methods} == {
        "mtt": 15,
        "tesla": 3,
        "ftd": 9,
        "datm": 12,
        "mct": 12,
        "att": 6,
        "hop-tm": 3,
        "dream": 18,
        "tgdd": 5,
        "ncfm": 5,
        "rcig": 10,
        "rat-bptt": 5,
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_what_it_is(name: str) -> None:
    preset = load_preset(name)
    method, data, setting = name.split("/")
    assert (method, data) == (preset.method, preset.data)
    assert setting.split("-")[0] == f"ipc{preset.ipc}"
    assert ("zca" in setting.split("-")) == (preset.preprocess == "zca")
    assert preset.source
    if preset.published is not None:
        assert 0 < preset.published.mean < 100


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mct/cifar10/ipc1-zca", {"syn_steps": 50, "expert_epochs": 5, "max_start_epoch": 3, "lr_img": 1000}),
        ("mtt/cifar10/ipc10-zca", {"syn_steps": 30, "max_start_epoch": 20, "lr_img": 100, "lr_teacher": 0.001}),
        ("mtt/cifar100/ipc50-zca", {"syn_steps": 80, "batch_syn": 125, "lr_lr": 1e-5, "iterations": 5000}),
        ("datm/cifar100/ipc10-zca", {"first_max_start_epoch": 30, "max_start_epoch": 50, "expansion_steps": 2000}),
        ("ftd/cifar10/ipc1-zca", {"ema_decay": 0.9999, "lr_lr": 1e-7}),
        ("rcig/cifar10/ipc1-zca", {"iterations": 15000, "flip": True, "ridge": 5e-4, "pool_width": 128}),
        ("tgdd/cifar10/ipc50", {"lr_img": 0.5, "alpha": 0.5, "batch_syn": 200, "optimizer": "sgd", "momentum": 0.5}),
        ("ncfm/cifar10/ipc10", {"lr_img": 0.001, "frequencies": 4096, "batch_real": 1024, "factor": 2}),
        ("rat-bptt/cifar10/ipc10-zca", {"total_steps": 200, "window": 60, "lr_student": 0.001, "batch_real": 5000}),
        ("tesla/imagenet-1k/ipc1", {"teacher_labels": True, "syn_steps": 10, "expert_epochs": 3}),
    ],
)
def test_values_are_those_of_the_sources(name: str, options: dict[str, Any]) -> None:
    assert load_preset(name).options.items() >= options.items()


def test_published_numbers() -> None:
    published = load_preset("mct/cifar10/ipc1-zca").published
    assert published is not None
    assert (published.mean, published.std) == (48.48, 0.2262)
    assert str(load_preset("datm/tiny-imagenet/ipc50-zca").published) == "39.7 ± 0.3"
    table = {"cifar10/ipc10": 66.0, "cifar10/ipc50": 72.3, "cifar100/ipc1-zca": 24.5, "cifar100/ipc10-zca": 42.5}
    table |= {"cifar100/ipc50-zca": 46.8, "tiny-imagenet/ipc1-zca": 9.6, "tiny-imagenet/ipc10-zca": 22.6}
    for name, mean in {**table, "cifar10/ipc1": 48.5}.items():
        published = load_preset(f"mct/{name}").published
        assert published is not None
        assert (published.mean, published.std) == (mean, None)
        assert "CVPR 2025" in published.source
    assert load_preset("mct/cifar10/ipc50-zca-arc").published is None  # an ablation


def own_options(preset: Preset) -> dict[str, Any]:
    """The options of a preset that are its method's own."""
    return {key: value for key, value in preset.options.items() if key not in JobConfig.model_fields}


@pytest.mark.parametrize("name", NAMES)
def test_the_configurations_accept_them(name: str) -> None:
    preset, options = load_preset(name), preset_options(name)
    ExpertConfig(**preset.expert).waypoint_epochs()
    ModelConfig(**preset.model).options()
    EvalConfig(**preset.eval)
    check_options(JobConfig, {key: value for key, value in options.items() if key in JobConfig.model_fields})
    if preset.method not in METHODS:
        pytest.skip(f"{preset.method} is not there yet")
    assert check_options(METHODS[preset.method].config, own_options(preset))
    if METHODS[preset.method].experts is None:
        assert (preset.num_experts, preset.expert) == (None, {})
    else:
        assert preset.expert["keep"] in (METHODS[preset.method].experts, "both")


def read(*words: str) -> Any:
    """What `limbeck distill` reads from these words."""
    return parse("limbeck distill", choose_defaults(Distill, "limbeck distill", words), words)


@pytest.mark.parametrize("name", NAMES)
def test_on_the_command_line_they_are_defaults(name: str) -> None:
    preset = load_preset(name)
    if preset.method not in METHODS:
        pytest.skip(f"{preset.method} is not there yet")
    args = read("digits", "--preset", name)
    assert args.settings == METHODS[preset.method].config(**own_options(preset))
    assert args.ema_decay == preset.options.get("ema_decay", METHODS[preset.method].ema_decay)
    assert (args.method, args.ipc, args.preprocess, args.num_experts) == (
        *(preset.method, preset.ipc, preset.preprocess),
        preset.num_experts,
    )
    for part, config in (("model", ModelConfig), ("expert", ExpertConfig), ("eval", EvalConfig)):
        expected = config(**getattr(preset, part))
        for key in getattr(preset, part):
            assert getattr(getattr(args, part), key) == getattr(expected, key), key
    changed = read("digits", "--ipc", "7", "--expert.epochs", "3", "--preset", name)
    assert (changed.ipc, changed.expert.epochs, changed.num_experts) == (7, 3, preset.num_experts)
    assert changed.settings == args.settings


def test_options_beside_a_preset_win_and_may_undo_it() -> None:
    name = "mtt/cifar100/ipc50-zca"
    assert read("digits", "--preset", name).settings.batch_syn == 125
    assert read("digits", "--preset", name, "--batch-syn", "None", "--lr-lr=0").settings.batch_syn is None
    labels = read("digits", "--preset", "tesla/imagenet-1k/ipc1", "--no-teacher-labels")
    assert labels.settings.teacher_labels is False
    assert read("digits", "--preset", name, "--experts", "store").num_experts is None  # the store says how many


def test_a_preset_is_of_one_method() -> None:
    with pytest.raises(UserError, match="a setting of mct, not of mtt"):
        read("digits", "--preset", "mct/cifar10/ipc1", "--method", "mtt")
    assert read("digits", "--preset", "mct/cifar10/ipc1", "--method", "mct").settings.gradient == "tesla"


def test_an_unknown_name_lists_those_of_its_method() -> None:
    with pytest.raises(UserError, match=r"no preset called 'mct/cifar10/ipc2'.*mct/cifar10/ipc1"):
        load_preset("mct/cifar10/ipc2")
    with pytest.raises(UserError, match=r"mtt/\.\.\., tesla/"):
        load_preset("nothing")


def test_the_page_is_up_to_date() -> None:
    assert (DOCS / "presets.md").read_text(encoding="utf-8") == markdown(), (
        "limbeck presets --markdown > docs/presets.md"
    )


def test_symbols_are_options_that_exist() -> None:
    text = (DOCS / "symbols.md").read_text(encoding="utf-8")
    fields = {name for method in METHODS.values() for name in method.config.model_fields} | set(JobConfig.model_fields)
    fields |= {f"expert.{name}" for name in ExpertConfig.model_fields} | {
        f"eval.{name}" for name in EvalConfig.model_fields
    }
    later = set() if {"datm", "ftd", "tesla"} <= set(METHODS) else set(MORE)
    for flag in re.findall(r"`--([a-z.-]+)", text):
        assert flag.replace("-", "_") in fields | later, flag


MORE = [
    *("min_start_epoch", "first_max_start_epoch", "expansion_steps", "threshold", "lr_y", "momentum_y"),
    *("teacher_labels", "ema_decay"),
]


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Any, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(list(words))
    return end.value.code, *capsys.readouterr()


TINY = [
    *("--iterations", "3", "--syn-steps", "2", "--max-start-epoch", "1", "--expert-epochs", "1", "--lr-img", "5"),
    *("--num-experts", "1", "--expert.epochs", "2", "--expert.waypoints", "2", "--expert.waypoint-at"),
    *("--expert.smoothing", "none", "--model.width", "4", "--model.depth", "2"),
    *("--eval.epochs", "2", "--eval.networks", "2", "--eval.full-networks", "0"),
    *("--validate-networks", "1", "--validate-epochs", "2", "--json"),
]


def test_a_preset_runs_beside_its_number(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("distill", "digits", "--preset", "mct/cifar10/ipc1-zca", *TINY, "--out", str(tmp_path / "run"))
    status, out, err = call(capsys, *words)
    assert status == 0, err
    result = json.loads(out)
    assert result["published"]["mean"] == 48.48
    assert "n = 2 networks" in result["comparison"]
    assert "published 48.48 ± 0.23 %" in result["comparison"]
    assert "on digits, and the setting is for cifar10; changed: " in result["comparison"]
    assert "lr-img 5.0" in result["comparison"]
    assert (result["changed"]["iterations"], result["changed"]["expert.waypoint-at"]) == (3, [])
    assert result["changed"]["num-experts"] == 1
    assert not set(result["changed"]) & {"seed", "gradient", "preprocess", "ipc"}
    config = json.loads((tmp_path / "run/run.json").read_text())["config"]
    assert config["gradient"] == "tesla"
    assert config["preprocess"] == "zca"
    _, out, _ = call(capsys, *words[:-3], *words[-2:])
    assert "comparison: ours" in out
    assert "changed: {" not in out


def test_what_is_compared_is_the_last_set() -> None:
    row = ResultRow(
        set="distilled", which="last", model="convnet", split="test", accuracy_mean=0.4, accuracy_std=0.01, n=5
    )
    rows = [row.model_copy(update={"which": "chosen", "accuracy_mean": 0.9}), row]
    sentence = comparison(load_preset("mtt/cifar10/ipc1-mct"), rows, "cifar10", {})
    assert sentence == "ours 40.00 ± 1.00 % (last set, test, n = 5 networks, 1 distillation seed); nothing published"


def test_the_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "presets" in COMMANDS
    status, out, _ = call(capsys, "presets", "--method", "mct")
    assert status == 0
    assert len(out.splitlines()) == 12
    assert "48.48" in out
    _, out, _ = call(capsys, "presets", "--json")
    assert len(json.loads(out)["presets"]) == len(NAMES)
    _, out, _ = call(capsys, "presets", "--markdown")
    assert out == markdown()
    assert call(capsys, "presets", "--method", "none")[0] == 2


def test_the_old_command_says_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "reproduce", "mct/cifar10/ipc1", "digits", "--change", "iterations=10")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "limbeck distill DATA --preset NAME" in err


def test_no_default_of_ours_slips_into_a_published_setting() -> None:
    """What limbeck does otherwise by default (optimiser, average, step sizes) every preset of MCT says itself."""
    ours = (
        "iterations",
        "syn_steps",
        "gradient",
        "optimizer",
        "lr_img",
        "momentum",
        "lr_teacher",
        "lr_lr",
        "ema_decay",
    )
    for name in all_presets():
        options = preset_options(name)
        if options["method"] == "mct":
            assert [option for option in ours if option not in options] == [], name
            assert (options["optimizer"], options["ema_decay"]) == ("sgd", 0)
