"""The command line: every command, its JSON and its exit status; and one clear sentence for each thing wrong."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import limbeck as limbeck_package
from limbeck import METHODS, ModelConfig, __version__
from limbeck.cli.catalogue import as_text, catalogue, registered
from limbeck.cli.commands import COMMANDS, find_command
from limbeck.cli.main import main
from limbeck.jobs.job import prepare

EXPERTS = ["--model.width", "4", "--num-experts", "1", "--epochs", "2"]
TINY = [
    *("--model.width", "4", "--num-experts", "1", "--expert.epochs", "2", "--iterations", "4", "--syn-steps", "2"),
    *("--max-start-epoch", "1", "--expert-epochs", "1", "--lr-img", "5", "--lr-teacher", "0.05"),
    *("--validate-every", "2", "--validate-networks", "1", "--validate-epochs", "2"),
    *("--eval.epochs", "2", "--eval.networks", "1", "--eval.full-epochs", "1", "--eval.full-networks", "1"),
]


class Result(NamedTuple):
    status: Any
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(autouse=True)
def _home(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_HOME", str(shared / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of children


@pytest.fixture
def limbeck(capsys: pytest.CaptureFixture[str]) -> Any:
    """Calls the entry point in this process."""

    def call(*words: object) -> Result:
        capsys.readouterr()
        status: Any = 0
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            status = end.code
        return Result(status, *capsys.readouterr())

    return call


@pytest.fixture
def refused(limbeck: Any) -> Any:
    """Calls it and expects one sentence and status 2."""

    def call(*words: object, status: int = 2) -> str:
        result = limbeck(*words)
        assert result.status == status, result
        assert result.out == ""
        assert result.err.startswith("limbeck: "), result.err
        assert len(result.err.splitlines()) == 1
        return str(result.err)

    return call


def quietly(*words: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 0


@pytest.fixture(scope="module")
def made(shared: Path, _one_thread: None) -> dict[str, Path]:
    """A run, and stores of both kinds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_HOME", str(shared / "home"))
        quietly("distill", "digits", *TINY, "--out", shared / "run")
        quietly("experts", "digits", *EXPERTS, "--out", shared / "convex")
        quietly("experts", "digits", *EXPERTS, "--keep", "recorded", "--out", shared / "recorded")
    return {name: shared / name for name in ("run", "convex", "recorded")}


def process(*words: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "limbeck", *map(str, words)]
    # Tests that a shell runs in the background inherit an ignored Ctrl-C, and so would this child.
    options.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


# What every command does


def test_version_and_help(limbeck: Any) -> None:
    assert limbeck("--version") == Result(0, f"limbeck {__version__}\n", "")
    usage = limbeck("--help")
    assert usage.status == 0
    assert all(name in usage.out for name in COMMANDS)
    assert limbeck().status == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_takes_the_common_options(limbeck: Any, command: str) -> None:
    told = limbeck(command, "--help")
    assert told.status == 0
    for option in ("--json", "--debug"):
        assert option in told.out
    if command not in ("methods", "presets", "cache"):  # which need nothing
        assert limbeck(command).status == 2  # no DATA, no STORE, ...


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_options_are_errors(limbeck: Any, command: str, tmp_path: Path) -> None:
    second = ["digits"] if command in ("import-experts", "import-set") else []
    result = limbeck(command, "digits", *second, "--out", tmp_path / "out", "--nonsense", "3")
    assert result.status == 2
    assert result.out == ""
    assert "nonsense" in result.err
    assert list(tmp_path.iterdir()) == []


def test_unknown_commands_and_methods(refused: Any) -> None:
    assert "'nope'" in refused("nope")
    assert "choose one of mct, mtt" in refused("distill", "digits", "--method", "nope")
    assert "did you mean mtt or mct?" in refused("distill", "digits", "--method=mtc")
    assert "did you mean mct/cifar10/ipc1" in refused("distill", "digits", "--preset", "mct/cifar10/ipc2")


LIGHT = """
import json, sys
from limbeck.cli.main import main
loaded = {}
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as end:
        status = end.code
    else:
        status = 0
    loaded[" ".join(words)] = [status, sorted({name.split(".")[0] for name in sys.modules} & set(sys.argv[2:]))]
print(json.dumps(loaded))
"""


def loaded_by(commands: list[list[str]], *packages: str) -> dict[str, Any]:
    """Status of each command, and which of the packages it had loaded at its end, all in one process."""
    words = [sys.executable, "-c", LIGHT, json.dumps(commands), *packages]
    real = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    told: dict[str, Any] = json.loads(real.stdout.splitlines()[-1])
    return told


HEAVY = ("torch", "sklearn", "scipy", "matplotlib", "pandas", "pyarrow", "PIL")


def test_what_needs_no_network_loads_no_torch(made: dict[str, Path], tmp_path: Path) -> None:
    run, table = str(made["run"]), str(tmp_path / "table.md")
    good = [["--version"], ["--help"], ["methods"], ["methods", "--json"], ["presets"], ["presets", "--markdown"]]
    good += [["cache"], ["table", run, "--out", table], ["report", "--help"], ["presets", "--help"]]
    bad = [[], ["nope"], ["--nope"], ["methods", "--nope"], ["presets", "--method", "nope"], ["table", "nope"]]
    bad += [["report"], ["report", "nope"], ["info", "--nope"], ["cache", "--clear", "nope"], ["reproduce", "x"]]
    told = loaded_by([*good, *bad], *HEAVY)
    assert told == {" ".join(words): [0 if words in good else 2, []] for words in [*good, *bad]}


def test_parsing_loads_no_package_of_a_later_stage() -> None:
    commands = [["report", "--help"], ["distill", "--help"], ["distill", "digits", "--nope"], ["inspect", "--help"]]
    commands += [[name, "--help"] for name in COMMANDS]
    told = loaded_by(commands, "sklearn", "scipy", "matplotlib", "pyarrow")
    assert {words: loaded for words, (_, loaded) in told.items() if loaded} == {}


def test_a_report_loads_no_torch(made: dict[str, Path], tmp_path: Path) -> None:
    told = loaded_by([["report", str(made["run"]), "--out", str(tmp_path / "a.html")]], "torch", "sklearn")
    assert list(told.values()) == [[0, []]]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_the_commands_say(name: str) -> None:
    command = find_command(name)
    assert command.options.__doc__ == COMMANDS[name].summary
    module = sys.modules[f"limbeck.cli.{COMMANDS[name].module}"]
    assert set(module.COMMANDS) == {other for other in COMMANDS if COMMANDS[other].module == COMMANDS[name].module}


def test_the_catalogue_is_the_registry() -> None:
    kept = (Path(limbeck_package.__file__).parent / "cli" / "catalogue.json").read_text(encoding="utf-8")
    assert kept == as_text(registered()), "write it anew: python -m limbeck.cli.catalogue"
    assert catalogue() == registered()


def test_a_method_of_the_users_own_is_listed(limbeck: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "mine", replace(METHODS["mct"], name="mine"))
    assert limbeck("methods", "--json").json["methods"][-1]["name"] == "mine"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["methods", "--json"]])
def test_a_reader_that_goes_away_is_no_error(words: list[str]) -> None:
    """`limbeck --help | head -1` printed a traceback."""
    read, write = os.pipe()
    os.close(read)
    real = subprocess.run([sys.executable, "-m", "limbeck", *words], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (real.returncode, real.stderr) == (0, "")


def test_the_package_is_a_command() -> None:
    real = subprocess.run([sys.executable, "-m", "limbeck", "--version"], capture_output=True, text=True, check=True)
    assert real.stdout == f"limbeck {__version__}\n"


@pytest.mark.parametrize("name", ["/somewhere/bin/limbeck", "limbeck"])
def test_a_recorded_command_can_be_typed_again(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    words = ["distill", "my pictures", "--out", "it's $HERE", "--augment", ""]
    monkeypatch.setattr(sys, "argv", [name, *words])
    command = prepare("digits", model=ModelConfig(width=4)).facts()["command"]
    assert shlex.split(command) == ["limbeck", *words]


# Each command


def test_distill_prints_one_json_document(limbeck: Any, made: dict[str, Path], tmp_path: Path) -> None:
    common = ["--json", "--threads", "1", "--device", "cpu", "--seed", "0"]
    result = limbeck("distill", "digits", *TINY, *common, "--method=mct", "--out", tmp_path / "run")
    assert result.status == 0
    assert result.json["run"] == str(tmp_path / "run")
    assert [row["set"] for row in result.json["results"]] == ["distilled", "distilled", "random", "kmeans", "full"]
    assert "distill" in result.err
    assert "± – % (n = 1)" in result.err
    assert result.json["results"] == json.loads((made["run"] / "results.json").read_text())["results"]


def test_distill_prints_a_table(limbeck: Any, made: dict[str, Path]) -> None:
    result = limbeck("distill", "digits", *TINY, "--out", made["run"])
    assert result.status == 0
    assert "distilled (chosen)" in result.out
    assert str(made["run"]) in result.out
    rows = json.loads((made["run"] / "results.json").read_text())["results"]
    assert {(row["n"], row["accuracy_std"], row["balanced_accuracy_std"]) for row in rows} == {(1, None, None)}
    assert "computed" not in result.out  # that is for programs
    assert "± – %" in result.out  # one network has no deviation
    assert "± 0.0" not in result.out


def test_distill_names_its_run(limbeck: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert limbeck("distill", "digits", *TINY, "--json").json["run"] == "runs/digits-mct-ipc1-seed0"
    assert (tmp_path / "runs" / "digits-mct-ipc1-seed0" / "results.json").exists()


def test_distill_with_a_store(limbeck: Any, made: dict[str, Path], tmp_path: Path) -> None:
    result = limbeck("distill", "digits", *TINY, "--experts", made["convex"], "--out", tmp_path / "run", "--json")
    assert result.json["bytes"]["experts"] == next(made["convex"].glob("expert-*")).stat().st_size


def test_experts_without_out_are_found_again(limbeck: Any) -> None:
    first = limbeck("experts", "digits", *EXPERTS, "--json")
    again = limbeck("experts", "digits", *EXPERTS, "--json")
    assert first.json == again.json
    assert again.json["experts"] == 1
    assert "epoch" not in again.err  # nothing to train
    more = limbeck("experts", "digits", *EXPERTS, "--num-experts", "2", "--json")
    assert (more.json["experts"], more.json["store"]) == (2, first.json["store"])


def test_convexify(limbeck: Any, made: dict[str, Path], tmp_path: Path) -> None:
    result = limbeck("convexify", made["recorded"], "--out", tmp_path / "store", "--waypoints", "3", "--json")
    assert result.json["expert"]["waypoints"] == 3
    options = ["--experts", tmp_path / "store", "--out", tmp_path / "run"]
    assert limbeck("distill", "digits", *TINY, *options).status == 0


def test_convexified_afterwards_equals_convexified_while_training(
    limbeck: Any, made: dict[str, Path], tmp_path: Path
) -> None:
    limbeck("convexify", made["recorded"], "--out", tmp_path / "store")
    one, other = (next(store.glob("expert-*")).read_bytes() for store in (tmp_path / "store", made["convex"]))
    assert one == other


def test_evaluate(limbeck: Any, made: dict[str, Path]) -> None:
    held = json.loads((made["run"] / "results.json").read_text())["results"][:2]
    assert limbeck("evaluate", made["run"], "--networks", "1", "--json").json["results"] == held
    one = limbeck("evaluate", made["run"] / "set-last.safetensors", "--networks", "2", "--epochs", "1", "--json")
    assert [(row["which"], row["n"]) for row in one.json["results"]] == [("last", 2)]
    assert "distilled (last)" in limbeck("evaluate", made["run"], "--epochs", "1", "--data", "digits").out


def test_report_of_one_run_and_of_several(limbeck: Any, made: dict[str, Path], tmp_path: Path) -> None:
    one = limbeck("report", made["run"], "--out", tmp_path / "one.html", "--json")
    assert one.json == {"report": str(tmp_path / "one.html")}
    shutil.copytree(made["run"], tmp_path / "other")
    limbeck("report", made["run"], tmp_path / "other", "--out", tmp_path / "both.html")
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("one.html", "both.html"))


def test_info_tells_what_each_thing_is(limbeck: Any, made: dict[str, Path]) -> None:
    run = made["run"]
    kinds = {
        "digits": "data set",
        made["convex"]: "store of experts",
        run: "run",
        run / "set-chosen.safetensors": "distilled set",
        next(made["convex"].glob("expert-*")): "expert",
        run / "state.safetensors": "state",
    }
    for what, kind in kinds.items():
        assert limbeck("info", what, "--json").json["kind"] == kind
        text = limbeck("info", what)
        assert (text.status, f"kind: {kind}" in text.out) == (0, True)


def test_info_of_a_run_that_has_not_ended(limbeck: Any, made: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(made["run"], tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    assert limbeck("info", tmp_path / "run", "--json").json["finished"] is False


# Bad input: status 2, one sentence, and nothing left behind


@pytest.fixture
def distill(refused: Any, tmp_path: Path) -> Any:
    """A distillation that is refused and leaves no run."""

    def call(data: object, *words: object) -> str:
        out = tmp_path / "runs" / "never"
        sentence: str = refused("distill", data, *TINY, "--out", out, *words)
        assert not out.parent.exists()
        return sentence

    return call


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ipc", "0"], "at least 1"),
        (["--ipc", "-2"], "at least 1"),
        (["--ipc", "129"], "class '0' of digits has 128 training images"),
        (["--augment", "nope"], "color, crop"),
        (["--expert.smoothing", "nope"], "none, mct"),
        (["--expert.waypoints", "4"], "2 to 3 waypoints"),
        (["--expert.keep", "recorded"], "convex"),
        (["--model.depth", "9"], "depth 3 or less"),
        (["--model.norm", "nope"], "instance"),
        (["--resize", "1"], "too small"),
        (["--device", "nope"], "'nope'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "".join(value),
)
def test_bad_options_of_distill(distill: Any, words: list[str], told: str) -> None:
    assert told in distill("digits", *words)


# to be mended in the options of the method, of the experts and of the network
@pytest.mark.parametrize(
    "words",
    [
        ["--init", "nope"],
        ["--model.name", "nope"],
        ["--max-start-epoch", "inf"],
        ["--lr-img", "inf"],
        ["--expert.lr", "inf"],
    ],
    ids="".join,
)
def test_bad_options_found_too_late(limbeck: Any, tmp_path: Path, words: list[str]) -> None:
    result = limbeck("distill", "digits", *TINY, "--out", tmp_path / "run", *words)
    assert result.status == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--max-start-epoch", "-1"],
        ["--max-start-epoch", "nan"],
        ["--expert-epochs", "0"],
        ["--expert.waypoints", "1"],
        ["--expert.epochs", "0"],
        ["--num-experts", "0"],
        ["--iterations", "0"],
        ["--lr-img", "-1"],
        ["--eval.weight-decay", "inf"],
        ["--eval.networks", "0"],
        ["--eval.baseline-lrs"],
        ["--eval.baseline-lrs", "0"],
        ["--gradient", "nope"],
        ["--preprocess", "nope"],
        ["--threads", "0"],
        ["--resize", "0"],
        ["--ipc", "one"],
    ],
    ids="".join,
)
def test_values_out_of_range_are_told_by_the_parser(limbeck: Any, tmp_path: Path, words: list[str]) -> None:
    result = limbeck("distill", "digits", *TINY, "--out", tmp_path / "run", *words)
    assert result.status == 2
    assert result.out == ""
    assert words[0].split(".")[-1].strip("-").replace("-", "_") in result.err.replace("-", "_")
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--draws", "2"], ["--draws=2"]], ids=" ".join)
def test_the_old_name_of_an_option_works_and_says_its_new_name(limbeck: Any, tmp_path: Path, words: list[str]) -> None:
    result = limbeck("distill", "digits", *TINY, *words, "--out", tmp_path / "run", "--json")
    assert result.status == 0
    assert "limbeck: --draws is now called --grad-accum" in result.err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["grad_accum"] == 2


def test_segments_past_the_experts_end_are_drawn_in(limbeck: Any, tmp_path: Path) -> None:
    words = ["--max-start-epoch", "1000", "--expert-epochs", "1000"]
    assert limbeck("distill", "digits", *TINY, *words, "--out", tmp_path / "run").status == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_such_device(distill: Any, refused: Any, made: dict[str, Path], tmp_path: Path) -> None:
    assert "'cuda'" in distill("digits", "--device", "cuda")
    refused("experts", "digits", *EXPERTS, "--device", "cuda", "--out", tmp_path / "store")
    refused("evaluate", made["run"], "--device", "cuda")
    assert list(tmp_path.iterdir()) == []


def picture(path: Path, width: int = 8, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, width), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of ten images of 8 x 8 pixels."""
    for seed in range(20):
        picture(tmp_path / "pictures" / ("cat", "dog")[seed % 2] / f"{seed:02}.png", seed=seed)
    return tmp_path / "pictures"


def test_no_such_path(distill: Any, refused: Any) -> None:
    assert "no/such/place" in distill("no/such/place")
    refused("info", "no/such/place")
    refused("evaluate", "no/such/place")
    refused("report", "no/such/place")
    refused("convexify", "no/such/place", "--out", "nor/here")
    assert not Path("nor").exists()


def test_too_few_images_of_a_class(distill: Any, folder: Path) -> None:
    for file in sorted((folder / "dog").iterdir())[4:]:
        file.unlink()
    assert "'dog'" in distill(folder, "--ipc", "4")


def test_an_image_that_does_not_open(distill: Any, folder: Path) -> None:
    (folder / "dog" / "broken.png").write_bytes(b"no picture")
    assert "broken.png" in distill(folder)


def test_images_of_different_sizes(distill: Any, limbeck: Any, folder: Path, tmp_path: Path) -> None:
    picture(folder / "dog" / "wide.png", width=9)
    told = distill(folder)
    assert "wide.png" in told
    assert "00.png" in told
    assert "--resize" in told
    done = limbeck("distill", folder, *TINY, "--resize", "10", "--out", tmp_path / "run", "--json")
    assert done.json["results"][0]["n"] == 1
    again = limbeck("evaluate", tmp_path / "run", "--resize", "10", "--networks", "1", "--json")
    assert again.json["results"] == done.json["results"][:2]
    assert limbeck("info", folder, "--resize", "10", "--json").json["shape"] == [1, 10, 10]


def test_images_of_different_sizes_in_inspect(limbeck: Any, refused: Any, folder: Path, tmp_path: Path) -> None:
    """The store knows which size they had; another one is refused."""
    picture(folder / "dog" / "wide.png", width=9)
    store = tmp_path / "store"
    assert limbeck("experts", folder, *EXPERTS, "--resize", "10", "--out", store).status == 0
    pages = []
    for words in ((), ("--resize", "10")):
        assert limbeck("inspect", store, "--data", folder, "--out", tmp_path / "out", *words).status == 0
        pages.append((tmp_path / "out" / "inspect.json").read_text())
    assert pages[0] == pages[1]
    assert json.loads(pages[0])["accuracy"]["curves"]
    told = refused("inspect", store, "--data", folder, "--out", tmp_path / "other", "--resize", "12")
    assert "fingerprint" in told


def test_an_npz_without_labels(distill: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", x_train=np.zeros((9, 8, 8), np.uint8))
    assert "y_train" in distill(tmp_path / "bare.npz")


def test_a_store_made_from_something_else(distill: Any, made: dict[str, Path], folder: Path) -> None:
    store = ["--experts", made["convex"]]
    assert "cat" in distill(folder, *store)
    assert "fingerprint" in distill("digits", *store, "--seed", "1")  # another split
    assert "width 4" in distill("digits", *store, "--model.width", "8")
    assert "augment" in distill("digits", *store, "--augment", "crop")
    assert "preprocess" in distill("digits", *store, "--preprocess", "zca")


@pytest.fixture
def spoiled(made: dict[str, Path], tmp_path: Path) -> Any:
    """Copies of the convex store in which the expert's file is treated by a function."""

    def copy(spoil: Any) -> Path:
        shutil.copytree(made["convex"], tmp_path / "spoiled")
        spoil(next((tmp_path / "spoiled").glob("expert-*")))
        return tmp_path / "spoiled"

    return copy


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (Path.unlink, "holds no finished experts"),
        (flip_a_bit, "is damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "expert-0000.safetensors"),
        (lambda file: file.write_bytes(b""), "expert-0000.safetensors"),
    ],
    ids=["empty", "flipped", "cut", "nothing"],
)
def test_a_store_that_is_empty_or_damaged(distill: Any, spoiled: Any, spoil: Any, told: str) -> None:
    assert told in distill("digits", "--experts", spoiled(spoil))


def test_a_store_of_the_other_kind(distill: Any, made: dict[str, Path]) -> None:
    assert "convexify" in distill("digits", "--experts", made["recorded"])


def test_no_store_at_all(distill: Any, made: dict[str, Path], tmp_path: Path) -> None:
    assert "store.json" in distill("digits", "--experts", made["run"])
    (tmp_path / "store.json").write_text("{")
    assert "store.json" in distill("digits", "--experts", tmp_path)


@pytest.mark.parametrize("name", ["expert-0001-copy.safetensors", "expert-0old.safetensors"])
def test_a_store_with_a_file_of_another_name(spoiled: Any, limbeck: Any, name: str) -> None:
    store = spoiled(lambda file: shutil.copy(file, file.with_name(name)))
    assert limbeck("info", store, "--json").json["experts"] == 1


def test_experts_are_refused_before_the_store_is_made(refused: Any, tmp_path: Path) -> None:
    out = tmp_path / "store"
    for words in (["--waypoints", "4"], ["--smoothing", "nope"], ["--augment", "nope"], ["--model.depth", "9"]):
        refused("experts", "digits", *EXPERTS, *words, "--out", out)
    assert not out.exists()


def test_experts_of_another_kind_do_not_join_a_store(refused: Any, made: dict[str, Path]) -> None:
    before = sorted(made["convex"].iterdir())
    told = refused("experts", "digits", *EXPERTS, "--lr", "0.5", "--num-experts", "3", "--out", made["convex"])
    assert "lr 0.01" in told
    assert sorted(made["convex"].iterdir()) == before


def test_convexify_is_refused_before_the_store_is_made(refused: Any, made: dict[str, Path], tmp_path: Path) -> None:
    for words in (["--waypoints", "4"], ["--smoothing", "nope"]):
        refused("convexify", made["recorded"], "--out", tmp_path / "store", *words)
    refused("convexify", made["run"], "--out", tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("spoil", [lambda file: None, Path.unlink, flip_a_bit], ids=["convex", "empty", "flipped"])
def test_convexify_of_what_was_not_recorded(refused: Any, spoiled: Any, spoil: Any, tmp_path: Path) -> None:
    refused("convexify", spoiled(spoil), "--out", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_an_output_folder_that_holds_something_else(refused: Any, made: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    for out in (tmp_path, tmp_path / "notes"):
        assert "not a run" in refused("distill", "digits", *TINY, "--out", out)
        assert "not a store" in refused("experts", "digits", *EXPERTS, "--out", out)
        assert "not a store" in refused("convexify", made["recorded"], "--out", out)
    assert "not a run" in refused("distill", "digits", *TINY, "--out", made["convex"])
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
    assert (tmp_path / "notes").read_text() == "mine"


def test_an_output_folder_with_another_run(refused: Any, made: dict[str, Path]) -> None:
    before = {path: path.stat().st_mtime_ns for path in made["run"].iterdir()}
    said = refused("distill", "digits", *TINY, "--lr-img", "6", "--out", made["run"])
    assert "lr_img 5.0, not 6.0" in said
    assert "ipc 1, not 2" in refused("distill", "digits", *TINY, "--ipc", "2", "--out", made["run"])
    assert {path: path.stat().st_mtime_ns for path in made["run"].iterdir()} == before


def test_a_place_below_a_file_is_refused(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused("distill", "digits", *TINY, "--out", tmp_path / "file" / "run", status=2)


def test_evaluate_on_another_network(limbeck: Any, refused: Any, made: dict[str, Path]) -> None:
    words = ("evaluate", made["run"], "--networks", "1", "--epochs", "2", "--json")
    assert {row["model"] for row in limbeck(*words, "--model.name", "mlp").json["results"]} == {"mlp"}
    assert {row["model"] for row in limbeck(*words).json["results"]} == {"convnet"}


def test_evaluate_on_the_sets_own_network_with_other_options(limbeck: Any, refused: Any, made: dict[str, Path]) -> None:
    """Also with the estimate, which makes the network a first time."""
    words = ("evaluate", made["run"], "--networks", "2", "--epochs", "2", "--json")
    own, wide, named = (
        limbeck(*words, *more).json["results"]
        for more in ((), ("--model.width", "3"), ("--model.name", "convnet", "--model.width", "3"))
    )
    assert {row["model"] for row in (*own, *wide)} == {"convnet"}
    assert wide == named  # depth and all else are the defaults for these images in both
    assert wide != own
    assert "'convnet' has no option" not in refused(*words, "--model.norm", "nope")


def test_evaluate_refuses_what_it_cannot_judge(refused: Any, made: dict[str, Path], folder: Path) -> None:
    run = made["run"]
    assert "limbeck-set" in refused("evaluate", run / "state.safetensors")
    assert "no distilled set" in refused("evaluate", made["convex"])
    assert "classes" in refused("evaluate", run, "--data", folder)
    assert "shape" in refused("evaluate", run, "--resize", "16")
    assert "no/such" in refused("evaluate", run, "--data", "no/such")


def test_report_and_info_refuse_what_they_do_not_know(refused: Any, made: dict[str, Path], tmp_path: Path) -> None:
    refused("report", made["convex"])
    refused("report", made["run"], tmp_path, "--out", tmp_path / "both.html")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "odd.txt").write_text("?")
    refused("info", tmp_path / "odd.txt")
    (tmp_path / "odd.safetensors").write_bytes(b"?")
    refused("info", tmp_path / "odd.safetensors")


# What the machine does to a command


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_place_that_cannot_be_written(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr(Path, "replace", fail)
    told = refused("distill", "digits", *TINY, "--out", tmp_path / "run", status=1)
    assert os.strerror(number) in told
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


LIMITED = """
import resource, sys
from limbeck.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))  # what a full disk is like, for real
main(sys.argv[1:])
"""


def test_a_disk_that_fills_up_while_an_expert_is_written(tmp_path: Path) -> None:
    words = ["experts", "digits", *EXPERTS, "--out", str(tmp_path / "store")]
    done = subprocess.run([sys.executable, "-c", LIMITED, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("limbeck: ")
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["store.json"]


INTERRUPTED = """
import os, signal, sys
from importlib.abc import MetaPathFinder
from limbeck.cli.main import main

class Interrupt(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    "module",
    ["limbeck.cli.commands", "json", "limbeck.core.errors", "tyro", "limbeck.cli.common", "torch", "limbeck.jobs.job"],
)
def test_ctrl_c_while_it_starts(module: str) -> None:
    """Forty lines of torch's traceback otherwise."""
    words = [sys.executable, "-c", INTERRUPTED, module, "distill", "digits"]
    real = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (real.returncode, real.stdout) == (130, "")
    assert real.stderr == "limbeck: interrupted; the same command goes on where it stopped.\n"


def test_ctrl_c_finds_no_import_outside_main() -> None:
    """In the first 60 ms it found `importlib.metadata` and `safetensors`, and printed a traceback."""
    code = "import limbeck.cli.main; print(*sorted(set(sys.modules) - before))"
    code = f"import os, sys; before = set(sys.modules); {code}"
    bare = [sys.executable, "-S", "-c", code]  # without site, which imports os, and sometimes more
    source = {**os.environ, "PYTHONPATH": str(Path(limbeck_package.__file__).parents[1])}
    real = subprocess.run(bare, capture_output=True, text=True, timeout=60, check=True, env=source)
    assert real.stdout.split() == ["__future__", "limbeck", "limbeck.cli", "limbeck.cli.main"]


def test_a_mistyped_command_names_the_nearest(refused: Any) -> None:
    assert "did you mean distill?" in refused("distil")


def test_debug_shows_the_traceback() -> None:
    with process("distill", "nothing", "--debug") as plain:
        _, told = plain.communicate(timeout=60)
    assert "Traceback" in told
    assert "UserError" in told
    assert plain.returncode == 2


def test_a_real_process_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    with process("distill", "digits", "--ipc", "0", "--out", "run", cwd=tmp_path) as real:
        out, told = real.communicate(timeout=60)
    assert (real.returncode, out, told) == (2, "", "limbeck: images per class must be at least 1, not 0.\n")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_and_the_same_command_again(limbeck: Any, made: dict[str, Path], tmp_path: Path) -> None:
    words = ["distill", "digits", *TINY, "--iterations", "300", "--validate-every", "150", "--threads", "1"]
    whole = limbeck(*words, "--out", tmp_path / "whole")
    run = tmp_path / "run"
    log = run / "log.jsonl"
    with process(*words, "--out", run) as real:
        while real.poll() is None and (not log.exists() or log.read_text().count('"step"') < 20):
            time.sleep(0.01)
        real.send_signal(signal.SIGINT)
        _, told = real.communicate(timeout=60)
    assert real.returncode == 130, told
    assert told.splitlines()[-1] == "limbeck: interrupted; the same command goes on where it stopped."
    assert "Traceback" not in told
    again = limbeck(*words, "--out", run, "--json")
    assert again.status == whole.status == 0
    assert again.json["results"] == json.loads((tmp_path / "whole" / "results.json").read_text())["results"]


def test_threads_do_not_spin_for_each_other() -> None:
    """Set before torch is loaded; a value of the user's own stays."""
    check = "import sys, os, limbeck; assert 'torch' not in sys.modules"
    code = f"{check}\nimport limbeck.cli.main\nprint(os.environ['GOMP_SPINCOUNT'])"
    clean = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    for env, wanted in ((clean, "1000"), ({**clean, "GOMP_SPINCOUNT": "7"}, "7")):
        told = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60
        )
        assert told.stdout.strip() == wanted


def test_the_command_lists_every_method_with_what_it_learns(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["methods"])
    shown = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["methods", "--json"])
    told = json.loads(capsys.readouterr().out)["methods"]
    assert [each["name"] for each in told] == list(METHODS)
    for each in told:
        method = METHODS[each["name"]]
        assert each["learns"] == list(method.learns)
        assert f"{method.name} " in shown
        assert method.summary in shown
        assert method.source in shown
    assert "learns nothing; experts of any kind" in shown
    assert "learns images, step size; convexified experts" in shown
