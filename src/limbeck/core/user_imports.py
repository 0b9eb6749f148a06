"""Objects of the user's own modules by name, as in `my_file:make`, and of installed packages by entry point."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from limbeck.core.errors import UserError, suggest_names
from limbeck.core.text import printable, quote, shorten


def entry_points(kind: str) -> dict[str, str]:
    """MODULE:NAME of the objects that installed packages offer in the group `limbeck.KINDs`, by entry point.

    A package offers a method by `[project.entry-points."limbeck.methods"]` in its pyproject.toml.

    >>> entry_points("no such kind")
    {}
    """
    from importlib.metadata import entry_points as read_entry_points  # 20 ms, which a built-in name does not pay for

    return {entry.name: entry.value.partition("[")[0].strip() for entry in read_entry_points(group=f"limbeck.{kind}s")}


def find_object(name: str, kind: str, registry: Mapping[str, Any]) -> Any:
    """The object of this name: of `registry`, of an installed package (its entry point), or a user's (MODULE:NAME).

    A name of the registry is never that of a package. kind: what the object is for, as in `entry_points`.
    Raises UserError for a name that is none of these, and for what cannot be imported.

    >>> find_object("two", "number", {"two": 2}), find_object("math:pi", "number", {}) > 3
    (2, True)
    """
    if name in registry:
        return registry[name]
    if ":" in name:
        return import_object(name, kind)
    packages = entry_points(kind)
    if name not in packages:
        raise UserError(f"there is no {kind} called {quote(name)}; {suggest_names(name, [*registry, *packages])}")
    return import_object(packages[name], kind)


def import_object(name: str, kind: str) -> Any:
    """The object `NAME` of the module `MODULE`, for a name of the form MODULE:NAME.

    The module is one that Python can import, or a file of the current folder: `my_file:make` is `make` of `my_file.py`,
    and `package.module:make` one of a package. It is imported once in a process.
    kind: what the object is for, a word of the errors. Raises UserError for a name that cannot be imported.

    >>> import_object("math:floor", "network")(2.5)
    2
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UserError(
            f"the {kind} {quote(name)} is not of the form MODULE:NAME; write my_file:make for make of my_file.py."
        )
    if module_name.endswith(".py") or "/" in module_name or "\\" in module_name:
        raise UserError(
            f"the {kind} {quote(name)} names a file; write its module, as in {Path(module_name).stem}:{attribute}, and "
            "run limbeck in its folder."
        )
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UserError(
                f"the {kind} {quote(name)} is of a module {quote(error.name)}, which is neither in this folder nor "
                "installed."
            ) from None
        raise UserError(
            f"the {kind} {quote(name)} cannot be imported: its module needs {quote(error.name)}."
        ) from error
    except (Exception, SystemExit) as error:
        reason = shorten(error, 120)
        raise UserError(
            f"the {kind} {quote(name)} cannot be imported: {type(error).__name__} in its module: {reason}"
        ) from error
    finally:
        sys.path.remove(folder)
    value: Any = module
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            public = [key for key in vars(value) if not key.startswith("_")] if hasattr(value, "__dict__") else []
            hint = f"; {suggest_names(part, public)}"[:120] if public else "."
            raise UserError(f"the {kind} {quote(name)}: {module_name} has no {quote(part)}{hint}") from None
    return value


def require_own_code(name: str, meaning: str, option: str) -> None:
    """Check that a name MODULE:NAME that stands in a file may be imported; another name has no code of its own.

    Whoever wrote the file chose the name. The user's own modules may be named: those of the current folder and of
    Python's path. Python's standard library and installed packages may not, where a function does what it likes.
    meaning: what the name stands for. option: by which the user says it instead.
    Raises UserError for a name that may not be imported.

    >>> require_own_code("convnet", "network of the set", "--model.name")
    >>> require_own_code("os:system", "network of the set", "--model.name")
    Traceback (most recent call last):
    limbeck.core.errors.UserError: the network of the set is 'os:system', which is no code of yours; ...
    """
    module, colon, _ = name.partition(":")
    package = module.partition(".")[0]
    if not colon or module == "timm":
        return
    if package in sys.modules and package not in sys.stdlib_module_names:
        file = getattr(sys.modules[package], "__file__", None)
    else:
        beside = [Path.cwd() / f"{package}.py", Path.cwd() / package / "__init__.py"]
        spec = None if package in sys.stdlib_module_names or not package.isidentifier() else find_spec(package)
        file = next((str(path) for path in beside if path.exists()), None if spec is None else spec.origin)
    if package in sys.stdlib_module_names or (file is not None and is_installed(Path(file), package)):
        raise UserError(
            f"the {meaning} is '{printable(name, 60)}', which is no code of yours; where you trust it, say so "
            f"with {option}."
        )


def is_installed(file: Path, module: str) -> bool:
    """Whether a module's file lies in site-packages, or in another folder that has an installer's metadata.

    `pip install --target` makes such folders, and so do several cloud services.
    """
    if {"site-packages", "dist-packages"} & set(file.parts):
        return True
    depth = module.count(".") + (file.stem == "__init__")
    return depth < len(file.parents) and any(file.parents[depth].glob("*.dist-info"))
