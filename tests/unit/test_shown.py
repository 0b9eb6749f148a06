"""Every command and snippet that README, CONTRIBUTING and the pages show is run, in the order in which they stand.

How a page is run:

- In a temporary folder that holds the small data sets of `make_folder` and the run of first-run.md, `runs/digits`.
- ```console: lines after `$ ` are commands. `limbeck` is called in this process with its words as shown, and behind
  them the options of `SMALL`: the last one wins, so that the job shrinks and every word shown is still parsed.
  `make TARGET` is run as `make -n TARGET`, `python examples/NAME.py` in this process with `--small` behind it, and
  `torchrun ... -m limbeck` and `limbeck ... --engine ray` as one process. Names in `STAND_IN` are replaced. Nothing
  else may be shown.
- ```python: run as it is, with `SMALL` forced on the functions of `FORCED`; >>> lines are compared with the output
  below them. A block whose first line is `# NAME.py` or `# NAME.toml` is written to that file.
- What cannot be run has a comment `<!-- not run: WHY -->` above it, and is counted in `NOT_RUN`.
- Any other block is text: no language, or one of `PLAIN`. The examples of commands.md are those of the commands' help,
  which tests/cli/test_help.py parses.
"""

from __future__ import annotations

import doctest
import functools
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

import limbeck
from limbeck.cli.main import main
from limbeck.evaluation import regression
from limbeck.evaluation.regression import RegressionConfig, fit_targets
from limbeck.methods import find_method

ROOT = Path(__file__).parents[2]
HISTORY = {"LOG.md", "changelog.md"}  # commands as they were
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name not in HISTORY),
]
PLAIN = {"", "text", "toml", "{eval-rst}", "{toctree}", "{include}", "{literalinclude}", "{options}", "{commands}"}
BLOCK = re.compile(r"^(?:<!-- not run: (?P<why>.*?) -->\n)?```(?P<language>\S*).*?\n(?P<code>.*?)^```$", re.M | re.S)
OWN_FILE = re.compile(r"# (\w+\.(?:py|toml))\n")

NOT_RUN = {
    ("docs/install.md", "it installs"): 1,
    ("docs/gpu.md", "it needs a GPU"): 1,
    ("docs/results.md", "it needs a GPU"): 1,
    ("docs/results.md", "it takes long"): 2,
    ("docs/shelf.md", "it takes long"): 6,
    ("docs/networks.md", "it needs timm"): 1,
    ("docs/use-elsewhere.md", "it needs ddranking"): 1,
    ("docs/several-gpus.md", "it needs two machines"): 1,
    ("docs/several-gpus.md", "it starts a cluster"): 2,
}
"""(page, reason) -> blocks."""

STAND_IN = {"fashion-mnist": "fashion.npz", "pneumoniamnist.npz": "chest.npz", "cifar10": "colour.npz"}
"""Data that a machine need not have -> what is taken instead."""

EXPERT = {"epochs": 2, "batch_size": 512, "waypoints": 2, "waypoint_at": (), "smoothing": "none"}
EVAL = {"networks": 1, "epochs": 2, "full_epochs": 1, "full_networks": 0, "baseline_lrs": (0.01,)}
JOB = {
    "model": {"width": 4, "depth": 2},
    "expert": EXPERT,
    "eval": EVAL,
    "validate_networks": 1,
    "validate_epochs": 1,
    "num_experts": 1,
}
METHOD = {"iterations": 2, "syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 1, "inner": 1, "net_epochs": 1}
METHOD |= {"net_steps": 1, "pool": 2, "pool_width": 2, "batch_real": 8, "warm_up": 0, "overlap_every": 1}
METHOD |= {"first_max_start_epoch": 1, "expansion_steps": 1, "overlap_until": 1}
SMALL: dict[str, dict[str, Any]] = {
    "distill": JOB,
    "estimate": JOB,
    "doctor": JOB,
    "experts": {"model": JOB["model"], "num_experts": 1, **EXPERT},
    "evaluate": {"num_networks": 1, "epochs": 2},
    "compare": {"num_networks": 1, "epochs": 2},
    "export": {"num_networks": 1},
}
"""Options behind those shown, by command; `METHOD` is added where the command has a method with such options."""
FORCED = {"distill": JOB, "prepare": JOB, "train_experts": JOB, "evaluate": SMALL["evaluate"]}
"""The same for functions of limbeck."""


class Block(NamedTuple):
    """A fenced block of a page: the reason why it is not run (or None), its language, its text."""

    why: str | None
    language: str
    code: str


def read_blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page in their order."""
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield Block(match["why"], match["language"], match["code"])


def split_commands(code: str) -> Iterator[list[str]]:
    """The words of each command after `$ `, lines that end in a backslash joined; comments are left out."""
    for line in code.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            yield shlex.split(line[2:], comments=True)


def make_flags(options: dict[str, Any], prefix: str = "--") -> Iterator[str]:
    """Options as words of the command line, nested ones with a dot."""
    for name, value in options.items():
        if isinstance(value, dict):
            yield from make_flags(value, f"{prefix}{name}.")
        elif value != ():
            values = value if isinstance(value, tuple) else (value,)
            yield from (f"{prefix}{name}".replace("_", "-"), *map(str, values))


def shrink_options(options: dict[str, Any], method: str) -> dict[str, Any]:
    """`options`, and those of `METHOD` that this method has."""
    fields = find_method(method).config.model_fields
    return {**options, **{name: value for name, value in METHOD.items() if name in fields}}


def make_small_words(command: str, words: list[str]) -> list[str]:
    """The options to append to a command's words."""
    if command not in SMALL:
        return []
    options = SMALL[command]
    if command in ("distill", "estimate", "doctor"):
        method = words[words.index("--method") + 1] if "--method" in words else "mct"
        options = shrink_options(options, method)
    return list(make_flags(options))


def run_limbeck(words: list[str]) -> None:
    """Run one command; an exit status other than 0 fails."""
    if "--engine" in words:  # on this machine: tests/cli/test_cluster.py has several
        place = words.index("--engine")
        words = [*words[:place], *words[place + 4 :]]
    command, *arguments = [STAND_IN.get(word, word) for word in words]
    status: Any = 0
    try:
        main([command, *arguments, *make_small_words(command, arguments)])
    except SystemExit as end:
        status = end.code
    assert status in ((0, 1) if command == "doctor" else (0,)), shlex.join(words)  # 1: it found something


def run_command(words: list[str]) -> None:
    """Run a command of a page by the rule of this file."""
    if words[:3] == ["python", "-m", "limbeck"]:
        words = words[2:]
    if words[0] == "torchrun":  # in one process: tests/laws/test_ranks.py has several
        words = words[words.index("limbeck") :]
    if words[0] == "limbeck":
        run_limbeck(words[1:])
    elif words[0] == "python" and words[1].startswith("examples/"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*words[1:], "--small"])
            runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    elif words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    else:
        pytest.fail(f"a page may show limbeck, make and examples alone, not: {shlex.join(words)}")


def force_options(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """`function` with `options` over those it is called with."""

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        small = shrink_options(options, keywords.get("method", "mct")) if "validate_networks" in options else options
        parts = {"model": limbeck.ModelConfig, "expert": limbeck.ExpertConfig, "eval": limbeck.EvalConfig}
        changed = {name: parts[name](**value) if name in parts else value for name, value in small.items()}
        return function(*args, **{**keywords, **changed})

    return call


def fit_in_two_steps(*args: Any, **keywords: Any) -> Any:
    """RCIG's own protocol has no option for its number of steps."""
    short = [arg.model_copy(update={"steps": 2}) if isinstance(arg, RegressionConfig) else arg for arg in args]
    return fit_targets(*short, **keywords)


def make_folder(folder: Path) -> None:
    """Tiny data sets: class folders of pictures, and an .npz for each other source."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            place = folder / "photos" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 128, (20, 24, 3)) + 127 * label
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    for name, classes, shape in (("chest", 2, (16, 16)), ("fashion", 10, (12, 12)), ("colour", 10, (8, 8, 3))):
        arrays: dict[str, Any] = {}
        for split, count in (("train", 200), ("val", 20), ("test", 20)):
            arrays[f"{split}_images"] = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
            arrays[f"{split}_labels"] = (np.arange(count) % classes)[:, None]
        np.savez(folder / f"{name}.npz", **arrays)
    shutil.copy(ROOT / "examples" / "my_trajectory.py", folder)  # whose page runs it in its own folder


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that every page's is a copy of."""
    folder = tmp_path_factory.mktemp("desk")
    make_folder(folder)
    first = next(block for block in read_blocks(ROOT / "docs" / "first-run.md") if block.language == "console")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in split_commands(first.code):
            run_command(words)
    return folder


@pytest.fixture(autouse=True)
def _registries() -> Iterator[None]:
    """Methods and networks that a page adds are gone after it."""
    registries: list[dict[str, Any]] = [limbeck.METHODS, limbeck.MODELS]
    before = [dict(registry) for registry in registries]
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


def read_run_blocks(page: Path) -> list[Block]:
    """Blocks that are run, or written to a file."""
    return [
        block
        for block in read_blocks(page)
        if block.why is None and (block.language in ("console", "python") or OWN_FILE.match(block.code))
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if read_run_blocks(page)], ids=lambda page: page.stem)
def test_what_a_page_shows_runs(
    page: Path,
    desk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(desk, tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")
    monkeypatch.syspath_prepend(str(tmp_path / "desk"))
    for name, options in FORCED.items():
        monkeypatch.setattr(limbeck, name, force_options(getattr(limbeck, name), options))
    monkeypatch.setattr(regression, "fit_targets", fit_in_two_steps)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in read_run_blocks(page):
        if block.language == "console":
            for words in split_commands(block.code):
                run_command(words)
        elif file := OWN_FILE.match(block.code):
            code = re.sub(r"^seeds = .*", "seeds = [0]", block.code, flags=re.M)  # of a study
            Path(file[1]).write_text(code, encoding="utf-8")
            monkeypatch.delitem(sys.modules, file[1].removesuffix(".py"), raising=False)
        elif ">>>" in block.code:
            test = doctest.DocTestParser().get_doctest(block.code, namespace, page.name, None, 0)
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
            assert runner.run(test, clear_globs=False).failed == 0
            namespace |= test.globs
        else:
            exec(compile(block.code, page.name, "exec", dont_inherit=True), namespace)
    assert "is now called" not in capsys.readouterr().err, "an old name of an option"


def test_what_is_not_run_is_marked_and_counted() -> None:
    marked = Counter(
        (str(page.relative_to(ROOT)), block.why) for page in PAGES for block in read_blocks(page) if block.why
    )
    assert dict(marked) == NOT_RUN


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_block_is_a_command_python_or_plain_text(page: Path) -> None:
    assert {block.language for block in read_blocks(page)} <= PLAIN | {"console", "python"}
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(list(read_blocks(page)))
