"""Runs that were recorded before options were added are recognised: their keys do not change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import limbeck
from limbeck import METHODS, ModelConfig
from limbeck.core.files import content_key

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "run_keys.json").read_text())
"""Keys of runs of digits at 2 images per class and width 8, all else at its default, as of commit d5c217f.

That of ptm is of 2026-11-28, since when its start windows widen while the loss still falls.
"""


@pytest.mark.parametrize("name", GOLDEN)
def test_a_run_at_its_defaults_has_the_key_that_it_had(name: str, tmp_path: Path) -> None:
    job = limbeck.prepare("digits", method=name, ipc=2, model=ModelConfig(width=8), out=tmp_path / "run")
    assert content_key(job.resolved) == GOLDEN[name]


def test_options_that_were_added_later_exist() -> None:
    """A name with a slip would leave out nothing."""
    for method in METHODS.values():
        for base in method.config.__mro__:
            assert set(vars(base).get("added", ())) <= set(getattr(base, "model_fields", ()))
