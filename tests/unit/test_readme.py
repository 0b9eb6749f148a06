"""What the README says is so: its links lead somewhere, and its packages and arrows are those of the source."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_the_files_it_points_to_are_there(text: str) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"`((?:docs|tests|src|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / target).exists() or "NAME" in target, target  # of what is to be written


def test_its_packages_and_arrows_are_those_of_the_source() -> None:
    """The table in README against ARROWS of tests/laws/test_arrows.py, which holds the source to it."""
    tree = ast.parse((ROOT / "tests" / "laws" / "test_arrows.py").read_text(encoding="utf-8"))
    (value,) = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ARROWS"
    )
    arrows = {name: set(imports.split()) for name, imports in ast.literal_eval(value).items() if name != "__main__"}
    shown: dict[str, set[str]] = {}
    for name, imports in re.findall(r"^\| `(\w+)` \| .* \| ([\w, ]*?) ?\|$", README, re.MULTILINE):
        if imports.startswith("anything above but "):
            excluded = set(re.findall(r"\w+", imports.removeprefix("anything above but "))) - {"and"}
            shown[name] = set(shown) - excluded - {"core"}
        else:
            shown[name] = {word for word in imports.split(", ") if word}
    assert shown == arrows


def test_its_claims_of_speed_and_memory_are_those_measured() -> None:
    """By AVX-512 and AVX2; memory at ten images per class."""
    assert "a third to a seventh of the time" in README
    times, memories = [], []
    for path in sorted((ROOT / "benchmarks" / "results").glob("*/step.json")):
        for name, case in json.loads(path.read_text(encoding="utf-8"))["cases"].items():
            if not name.endswith("-autograd"):
                times.append(case["main"]["times_faster"]["ours float32"]["of_medians"])
                if "ipc10" in name:
                    memory = case["memory"]
                    memories.append(memory["ours float32"]["peak_mb"] / memory["released"]["peak_mb"])
    assert (round(min(times)), round(max(times))) == (3, 7)
    assert f"{100 * min(memories):.0f} to {100 * max(memories):.0f} % of the memory" in README
