"""The site builds without a warning and without the network, and nothing public is missing from it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import limbeck

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
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
