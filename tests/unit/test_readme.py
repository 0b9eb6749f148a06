"""What the README says is so: its Python runs, and its tree lists every file with the file's own first line."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tree() -> str:
    """Every Python file of the package with the first line of its docstring, folder by folder."""
    source = ROOT / "src" / "limbeck"
    files = sorted(source.rglob("*.py"), key=lambda f: (str(f.parent.relative_to(source)), f.name))
    width = max(len(str(file.relative_to(source))) for file in files)
    lines = []
    for file in files:
        said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        lines.append(f"{file.relative_to(source)!s:<{width}}  {said.splitlines()[0]}")
    return "\n".join(lines)


def test_the_tree_lists_every_file() -> None:
    """To mend: put what this prints between the fences."""
    (held,) = re.findall(r"src/limbeck/\n```text\n(.*?)\n```", README, re.DOTALL)
    assert held == tree()


def test_the_ten_lines_of_python_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert "torch.Size([10, 1, 8, 8])" in capsys.readouterr().out
    assert (tmp_path / "runs" / "mine" / "report.html").exists()


def test_the_files_it_points_to_are_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
