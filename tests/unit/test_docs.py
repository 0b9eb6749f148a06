"""The site builds without a warning and without the network, and nothing public is missing from it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import limbeck
from limbeck.methods import METHODS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def script(path: str) -> ModuleType:
    """A script of the repository, as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = script("docs/tables.py")
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
    pages = tables.pages_of_methods()
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
    assert text == tables.filled(text), "python docs/tables.py"


def test_the_page_on_performance_is_up_to_date() -> None:
    sys.path.insert(0, str(ROOT))  # the folder `benchmarks` is not installed
    performance = importlib.import_module("benchmarks.page")
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    assert text == performance.filled(text), "python -m benchmarks.page"


def test_every_table_of_results_and_every_record_is_shown() -> None:
    shown = {name for page in tables.PAGES for name in re.findall(r"<!-- end of ([\w ]+) -->", page.read_text("utf-8"))}
    assert shown == set(tables.SECTIONS)
    keys = {(row["data"], row["ipc"], row["measure"]) for row in tables.ROWS}
    assert len(keys) == len(tables.SECTIONS) - 4, "a group of rows without a table"
