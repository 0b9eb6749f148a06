"""Sentences of errors quote in few characters: a file may hold a text of any length, and so may a library's error."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "limbeck"
MODULES = sorted(SOURCE.rglob("*.py"))
SHORT = {"quote", "shorten", "printable", "shorten_path", "len"}
"""Functions whose result has few characters."""
OWN = {"UserError", "Locked"}
"""Exceptions that are sentences already."""


def call_name(node: ast.expr | None) -> str:
    name = node.func if isinstance(node, ast.Call) else node
    return name.id if isinstance(name, ast.Name) else name.attr if isinstance(name, ast.Attribute) else ""


def is_short(value: ast.expr) -> bool:
    is_slice = isinstance(value, ast.Subscript) and isinstance(value.slice, ast.Slice)
    return is_slice or (isinstance(value, ast.Call) and call_name(value) in SHORT)


def sentences(tree: ast.AST) -> Iterator[ast.JoinedStr]:
    """The f-strings of every UserError."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and call_name(call) == "UserError":
            yield from (part for part in ast.walk(call) if isinstance(part, ast.JoinedStr))


def quotes(tree: ast.AST) -> Iterator[str]:
    """The values that stand in quotation marks and may be long."""
    for sentence in sentences(tree):
        words = [part.value if isinstance(part, ast.Constant) else "" for part in sentence.values]
        for i, part in enumerate(sentence.values):
            if isinstance(part, ast.FormattedValue) and not is_short(part.value):
                before, after = "".join(words[:i])[-1:], "".join(words[i + 1 :])[:1]
                if part.conversion == ord("r") or (before == after and before in ("'", '"')):
                    yield f"line {part.lineno}: {ast.unparse(part.value)}; see core.text.quote"


def library_errors(tree: ast.AST) -> Iterator[str]:
    """The exceptions of others whose whole text stands in a sentence."""
    for handler in ast.walk(tree):
        if isinstance(handler, ast.ExceptHandler) and handler.name and call_name(handler.type) not in OWN:
            for part in (part for sentence in sentences(handler) for part in sentence.values):
                if isinstance(part, ast.FormattedValue) and ast.unparse(part.value) in (
                    handler.name,
                    f"str({handler.name})",
                ):
                    yield f"line {part.lineno}: {handler.name}; see core.text.shorten"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_sentence_quotes_in_few_characters(module: Path) -> None:
    tree = ast.parse(module.read_text())
    assert [*quotes(tree), *library_errors(tree)] == []
