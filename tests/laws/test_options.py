"""No command has an option that it does not read."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from limbeck.cli.commands import COMMANDS, find_command
from limbeck.cli.common import Options, Reading, Threads, WithEstimate
from limbeck.cli.distill import MethodChoice
from limbeck.jobs.config import JobConfig

# --threads of a study are those of its child processes
READ_BY_ALL = {*Options.model_fields, *Threads.model_fields}
"""Options that `limbeck.cli.commands` itself reads."""
FIELDS = {f"{options.__name__}.model_fields": tuple(options.model_fields) for options in (JobConfig, Reading)}
"""What a loop over the fields of a class of options reads."""
COMPUTES = {"distill", "estimate", "experts", "convexify", "evaluate", "compare", "inspect", "demo", "doctor"} | {
    "import-experts",
    "import-set",
    "export",
}
MAY_TAKE_LONG = {"distill", "experts", "evaluate", "compare", "export", "study"}


def names_read(function: Callable[..., Any]) -> set[str]:
    """Attributes that a function reads of its first argument, itself or by handing it on in its module."""
    pending, visited, names = [function], set(), set[str]()
    while pending:
        current = pending.pop()
        if current in visited:
            continue
        visited.add(current)
        module = sys.modules[current.__module__]
        tree = ast.parse(inspect.getsource(current))
        (definition,) = tree.body
        assert isinstance(definition, ast.FunctionDef)
        argument = definition.args.args[0].arg
        names |= set(_attributes(tree, argument))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            handed_on = any(isinstance(word, ast.Name) and word.id == argument for word in call.args[:1])
            if (
                handed_on
                and isinstance(call.func, ast.Name)
                and inspect.isfunction(getattr(module, call.func.id, None))
            ):
                pending.append(getattr(module, call.func.id))
    return names


def _attributes(tree: ast.AST, argument: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == argument:
            yield node.attr
        if isinstance(node, ast.comprehension):  # getattr(args, name) for name in (...)
            yield from (word.value for word in ast.walk(node.iter) if isinstance(word, ast.Constant))
            yield from FIELDS.get(ast.unparse(node.iter), ())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_read(name: str) -> None:
    command = find_command(name)
    names = READ_BY_ALL | names_read(command.run)
    if command.choose_defaults is not None:  # what decides which options there are
        names |= set(MethodChoice.model_fields)
    unread = set(command.options.model_fields) - names
    assert unread == set(), "take the option away, or read it"


@pytest.mark.parametrize("name", COMMANDS)
def test_threads_and_estimates_are_for_commands_that_compute(name: str) -> None:
    options = find_command(name).options
    assert issubclass(options, Threads) == (name in COMPUTES)
    assert issubclass(options, WithEstimate) == (name in MAY_TAKE_LONG)
