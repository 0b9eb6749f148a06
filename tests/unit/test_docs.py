"""The site builds without a warning and without the network, and nothing public is missing from it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

import limbeck
from limbeck.cli.commands import COMMANDS, find_command
from limbeck.cli.main import main
from limbeck.derivatives.kernels import library
from limbeck.jobs.config import JobConfig
from limbeck.methods import METHODS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py")))


def load_script(path: str) -> ModuleType:
    """A script of the repository, as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = load_script("docs/tables.py")
DOCUMENTED = re.compile(r"^\.\. (?:auto\w+|py:data):: limbeck\.(\w+)$", re.MULTILINE)
"""A directive of an API page that describes a public name."""


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", tmp_path / "trees", DOCS, tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"(?:src|href)=\"(https?://[^\"]+)\.(?:js|css|woff2?)\"", page) == [], "read without the network"


def test_every_public_name_is_in_the_api_once() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "api").glob("*.md")))
    assert sorted(DOCUMENTED.findall(text)) == sorted(set(limbeck.__all__) - {"__version__"})


def test_every_method_has_a_page_that_says_where_it_is_from() -> None:
    pages = tables.find_method_pages()
    assert set(pages) == set(METHODS)
    for name, method in METHODS.items():
        text = " ".join(pages[name].read_text(encoding="utf-8").split())
        author = re.findall(r"[A-Z]\w+", method.source)
        assert not method.learns or author[0] in text, f"{name}: {method.source}"
        for heading in ("## Idea", "## Formula", "## Options") if method.learns else ("## Idea", "## Options"):
            assert heading in text or name == "ptm", (name, heading)  # an abstract has no formula
        assert "(experimental)" in text or not method.experimental, name


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.stem)
def test_tables_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == tables.fill_tables(text), "python docs/tables.py"


def test_the_pages_of_measurements_are_up_to_date() -> None:
    sys.path.insert(0, str(ROOT))  # the folder `benchmarks` is not installed
    measurements = importlib.import_module("benchmarks.page")
    for page in measurements.PAGES:
        text = (DOCS / page).read_text(encoding="utf-8")
        assert text.count("<!-- end of ") in (3, 4)
        assert text == measurements.fill_tables(text), "python -m benchmarks.page"


def test_every_table_of_results_and_every_record_is_shown() -> None:
    shown = {
        name for page in tables.PAGES for name in re.findall(r"<!-- end of ([\w -]+) -->", page.read_text("utf-8"))
    }
    assert set(tables.SECTIONS) <= shown <= {*tables.SECTIONS, *tables.STUDY_SECTIONS}
    for name in tables.STUDIES:
        assert {f"study {name}", f"study {name} chosen"} & shown, "a study without a table"
    keys = {(row["data"], row["ipc"], row["measure"]) for row in tables.ROWS}
    others = 17 + len(tables.EXAMPLES)  # sections that are no group of rows
    assert len(keys) == len(tables.SECTIONS) - others, "a group of rows without a table"


def find_literals(text: str) -> set[str]:
    """The `literals` of a page, without its code blocks."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)))


FOREIGN = {"DataLoader", "Dataset", "DatasetDict", "ImageFolder", "IndexError", "AdaBelief", "SGD", "DATM_tesla.py"}
FOREIGN |= {"Momentum_y", "Iteration", "RendezvousConnectionError"}
"""Names on pages that are not limbeck's."""


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_names_and_files_on_a_page_are_there(page: Path) -> None:
    """Classes and files that a page names exist, so that a renamed one is not forgotten. The log tells of its day."""
    if page.name in ("LOG.md", "changelog.md"):
        pytest.skip("history")
    for word in find_literals(page.read_text(encoding="utf-8")) - FOREIGN:
        if re.fullmatch(r"[\w./-]+\.(py|hpp|cpp)", word):
            places = (ROOT, ROOT / "src" / "limbeck", ROOT / "src" / "limbeck" / "derivatives" / "kernels")
            assert any((place / word).exists() for place in places), word
        if match := re.match(r"(?:limbeck\.)?([A-Z][a-z]\w*[A-Z]?\w*)\b(?![ -])", word):
            assert match[1] in FOREIGN or re.search(rf"\b{match[1]}\b", SOURCE), word


NO_FIELD = {"help", "help-all", "help-method", "help-model", "help-expert", "help-eval"}
NO_FIELD |= {"version", "json", "eval", "constraint", "local-addr", "rdzv-conf"}
"""Options that are no field of that name, a group of options, one of pip's, and those of torchrun."""


def test_options_on_pages_exist() -> None:
    """Every `--option` in prose and tables; those in blocks are run by test_shown.py."""
    options = set(list_flags(JobConfig)) | {flag for method in METHODS.values() for flag in list_flags(method.config)}
    options |= {flag for name in COMMANDS for flag in list_flags(find_command(name).options)}
    for page in (ROOT / "README.md", *DOCS.rglob("*.md")):
        if page.name in ("LOG.md", "changelog.md"):
            continue
        for word in find_literals(page.read_text(encoding="utf-8")):
            for flag in re.findall(r"(?:^| )--([a-z][\w.-]*)", word):
                assert flag.removeprefix("no-") in options | NO_FIELD, (page.name, flag)


def list_flags(config: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The flags of a configuration, those of its parts with a dot."""
    for name, field in config.model_fields.items():
        flag = prefix + name.replace("_", "-")
        yield flag
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from list_flags(field.annotation, f"{flag}.")


@pytest.mark.skipif(library.load() is None, reason=f"no kernels: {library.unavailable_reason()}")
def test_the_calls_on_a_page_are_the_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command to the objective, and on to the kernels forwards and backwards, as how-it-composes.md lists."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMBECK_KERNELS", "1")
    text = (DOCS / "how-it-composes.md").read_text(encoding="utf-8")
    to_objective, forwards, backwards = (
        tuple(block.splitlines()) for block in re.findall(r"<!-- calls -->\n```text\n(.*?)\n```", text, re.DOTALL)
    )
    stacks: set[tuple[str, ...]] = set()

    compute = library.Library.compute

    def record(*args: Any, **options: Any) -> Any:
        stacks.add((*list_calls(sys._getframe(1)), "derivatives/kernels/library.py: Library.compute"))
        return compute(*args, **options)

    monkeypatch.setattr(library.Library, "compute", record)
    try:
        arguments = "digits --ipc 1 --iterations 1 --syn-steps 2 --model.width 4 --expert.epochs 2 --num-experts 1"
        arguments += " --eval.networks 1 --eval.epochs 1 --eval.full-networks 0 --eval.baseline-lrs 0.01"
        main(["distill", *arguments.split(), "--validate-epochs", "1", "--validate-networks", "1", "--no-estimate"])
    except SystemExit as end:
        status = end.code
    assert status == 0, capsys.readouterr().err
    assert to_objective + forwards in stacks
    assert to_objective[:-1] + backwards in stacks


def list_calls(frame: FrameType) -> tuple[str, ...]:
    """The functions of limbeck that led to a frame, as `file: name`, the first first."""
    source, calls = Path(limbeck.__file__).parent, []
    caller: FrameType | None = frame
    while caller is not None:
        path = Path(caller.f_code.co_filename)
        if path.is_relative_to(source):
            calls.append(f"{path.relative_to(source).as_posix()}: {caller.f_code.co_qualname}")
        caller = caller.f_back
    return tuple(reversed(calls))
