"""Commands take the name of a set that comes with limbeck."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.core.shelf import read_shelf

NAMES = sorted(read_shelf())


@pytest.mark.skipif(not NAMES, reason="the shelf is empty")
def test_commands_take_the_name_of_a_set(limbeck: Any, tmp_path: Path) -> None:
    listing = limbeck("sets", "--json")
    assert sorted(json.loads(listing.out)["sets"]) == NAMES
    assert NAMES[0] in limbeck("sets").out
    facts = json.loads(limbeck("info", NAMES[0], "--json").out)
    assert facts["kind"] == "distilled set"
    for name in NAMES:
        facts = json.loads(limbeck("info", name, "--json").out)
        assert ("cut from" in facts) == (read_shelf()[name].tiles > 1)
    exported = limbeck("export", NAMES[0], "--to", "npz", "--out", tmp_path / "arrays", "--quiet")
    assert exported.status == 0, exported.err
    assert any((tmp_path / "arrays").iterdir())
