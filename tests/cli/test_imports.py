"""What a command imports: those that need no network answer without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from limbeck.cli.commands import COMMANDS

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
    loaded: dict[str, Any] = json.loads(real.stdout.splitlines()[-1])
    return loaded


HEAVY = ("torch", "sklearn", "scipy", "matplotlib", "pandas", "pyarrow", "PIL")


def test_what_needs_no_network_loads_no_torch(artifacts: dict[str, Path], tmp_path: Path) -> None:
    run, table = str(artifacts["run"]), str(tmp_path / "table.md")
    good = [["--version"], ["--help"], ["methods"], ["methods", "--json"], ["presets"], ["presets", "--markdown"]]
    good += [["cache"], ["table", run, "--out", table], ["report", "--help"], ["presets", "--help"]]
    bad = [[], ["nope"], ["--nope"], ["methods", "--nope"], ["presets", "--method", "nope"], ["table", "nope"]]
    bad += [["report"], ["report", "nope"], ["info", "--nope"], ["cache", "--clear", "nope"], ["reproduce", "x"]]
    loaded = loaded_by([*good, *bad], *HEAVY)
    assert loaded == {" ".join(words): [0 if words in good else 2, []] for words in [*good, *bad]}


def test_parsing_loads_no_package_of_a_later_stage() -> None:
    commands = [["report", "--help"], ["distill", "--help"], ["distill", "digits", "--nope"], ["inspect", "--help"]]
    commands += [[name, "--help"] for name in COMMANDS]
    loaded = loaded_by(commands, "sklearn", "scipy", "matplotlib", "pyarrow")
    assert {words: packages for words, (_, packages) in loaded.items() if packages} == {}


def test_a_report_loads_no_torch(artifacts: dict[str, Path], tmp_path: Path) -> None:
    loaded = loaded_by([["report", str(artifacts["run"]), "--out", str(tmp_path / "a.html")]], "torch", "sklearn")
    assert list(loaded.values()) == [[0, []]]


def test_threads_do_not_spin_for_each_other() -> None:
    """Set before torch is loaded; a value of the user's own stays."""
    check = "import sys, os, limbeck; assert 'torch' not in sys.modules"
    code = f"{check}\nimport limbeck.cli.main\nprint(os.environ['GOMP_SPINCOUNT'])"
    clean = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    for env, value in ((clean, "1000"), ({**clean, "GOMP_SPINCOUNT": "7"}, "7")):
        process = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60
        )
        assert process.stdout.strip() == value
