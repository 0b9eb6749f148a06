"""Keys of the user's own functions and classes, computed from their source code."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from limbeck.core.files import content_key
from limbeck.core.user_imports import is_installed

CONSTANTS = (bool, int, float, complex, str, bytes, type(None))


def source_key(*roots: object | None) -> str:
    """12 hex digits over the source of all functions and classes of the user that `roots` are or use; "" without any.

    Code of limbeck, of the standard library and of installed packages does not count, except for the packages of the
    roots themselves. The key changes with the code, with a constant that it uses and with an attribute of an instance,
    and not with comments or layout. A root that is None is skipped.

    >>> source_key(len, Path, None)
    ''
    """
    walk = _Walk({_module_of(root).split(".")[0] for root in roots if root is not None})
    for number, root in enumerate(roots):
        if root is not None:
            walk.visit(root, f"root {number}")
    return content_key(walk.texts) if walk.texts else ""


def _module_of(value: Any) -> str:
    return str(getattr(value.func if isinstance(value, partial) else value, "__module__", ""))


class _Walk:
    """Visits values and everything that their code uses, and collects the user's source in `texts`, by name.

    packages: names of the packages of the roots, which count as the user's even where they are installed.
    """

    def __init__(self, packages: set[str]):
        self.packages = packages
        self.texts: dict[str, str] = {}
        self.visited: dict[int, object] = {}  # containers and instances, which may contain themselves

    def visit(self, value: Any, name: str) -> None:
        """Add a value and everything it uses. name: the place of the value, for values without a name of their own."""
        if isinstance(value, partial):
            self.visit(value.func, name)
            if self.is_users(_module_of(value)):
                self.visit([*value.args, *value.keywords.values()], f"arguments of {name}")
        elif isinstance(value, CONSTANTS):
            self.texts[name] = repr(value)
        elif isinstance(value, set | frozenset):
            self.texts[name] = _constant(value)
        elif isinstance(value, list | tuple | dict):
            self.visit_items(value, value if isinstance(value, dict) else dict(enumerate(value)), name)
        elif isinstance(value, FunctionType | type):
            self.visit_code(value)
        elif isinstance(value, staticmethod | classmethod | MethodType):
            self.visit(value.__func__, name)
            if isinstance(value, MethodType):
                self.visit(value.__self__, f"self of {name}")
        elif isinstance(value, property):
            self.visit(value.fget, name)
        elif not isinstance(value, ModuleType):
            self.visit_code(type(value))
            if self.is_users(type(value).__module__):  # what it was built with: width=64, for example
                self.visit_items(value, getattr(value, "__dict__", {}), name)

    def visit_items(self, owner: object, items: dict[Any, Any], name: str) -> None:
        """Visit the values of a container, or the attributes of an instance, unless `owner` was visited before."""
        if id(owner) not in self.visited:
            self.visited[id(owner)] = owner
            for key, item in items.items():
                self.visit(item, f"{name}[{key}]")

    def visit_code(self, value: FunctionType | type) -> None:
        """Visit a function and everything it uses, or a class with its bases and members."""
        name = f"{value.__module__}.{value.__qualname__}"
        if name in self.texts or not self.is_users(value.__module__):
            return
        self.texts[name] = _source(value)
        if isinstance(value, type):
            references = [*((base.__qualname__, base) for base in value.__bases__), *vars(value).items()]
        else:
            references = [*self.references(value), ("wrapped", getattr(value, "__wrapped__", None))]
        for key, reference in references:
            is_in_source = isinstance(value, type) and isinstance(reference, (*CONSTANTS, dict, tuple))
            if not is_in_source:
                self.visit(reference, f"{key} of {name}")

    def is_users(self, module: str | None) -> bool:
        """Whether the code of a module counts as the user's. Objects made by C code may have None for a module."""
        if module is None:
            return False
        package = module.split(".")[0]
        if package == "limbeck" or package in sys.stdlib_module_names:
            return False
        if package == "__main__" or package in self.packages:
            return True
        file = getattr(sys.modules.get(module), "__file__", None)
        return file is not None and not is_installed(Path(file), module)

    def references(self, function: FunctionType) -> Iterator[tuple[str, Any]]:
        """The globals, attributes of the user's modules, variables of enclosing functions and defaults that it uses."""
        names = sorted(set(_names(function.__code__)))
        for name in names:
            value = function.__globals__.get(name)
            yield name, value
            if isinstance(value, ModuleType) and self.is_users(value.__name__):
                yield from ((f"{name}.{part}", getattr(value, part)) for part in names if hasattr(value, part))
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
            if cell != type(cell)():  # a variable that has a value
                yield name, cell.cell_contents
        yield "defaults", [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _source(value: FunctionType | type) -> str:
    """The code as text without comments, or its compiled form for a lambda and where there is no source file."""
    try:
        if value.__name__ != "<lambda>":
            return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(value))))
    except (OSError, TypeError, SyntaxError):
        pass
    return _compiled(value.__code__) if isinstance(value, FunctionType) else value.__qualname__


def _compiled(code: CodeType) -> str:
    constants = [_compiled(part) if isinstance(part, CodeType) else _constant(part) for part in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _constant(value: object) -> str:
    """A constant as text. The elements of a set are sorted, since their order differs from process to process."""
    return f"{{{sorted(map(repr, value))}}}" if isinstance(value, set | frozenset) else repr(value)
