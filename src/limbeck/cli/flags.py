"""The flags of a model of options: which there are, which of them a help shows, and which one was meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from tyro.conf import OmitArgPrefixes

from limbeck.core.errors import UserError
from limbeck.core.text import quote

METHOD_BOX = "settings"  # the field whose box bears the name of a method


class Flag(NamedTuple):
    """A flag as it is typed, and where its value goes: a field of a model, perhaps in a box."""

    name: str
    model: type[BaseModel]
    field: str
    box: str
    required: bool


def list_flags(options: BaseModel) -> Iterator[Flag]:
    """Yield the flags of these options, box by box; a required field is no flag where it is positional."""
    hints = get_type_hints(type(options), include_extras=True)
    for field, info in type(options).model_fields.items():
        value = getattr(options, field)
        if isinstance(value, BaseModel):
            prefix = "" if OmitArgPrefixes in get_args(hints[field]) else f"{field}."
            inner = get_type_hints(type(value), include_extras=True)
            for name in type(value).model_fields:
                yield Flag(prefix + _spell(name, inner[name]), type(value), name, field, False)
        else:
            yield Flag(_spell(field, hints[field]), type(options), field, "", info.is_required())


def _spell(field: str, hint: Any) -> str:
    """The name of a field's flag: its own, or the one that `tyro.conf.arg` gives it."""
    names = [name for part in get_args(hint) if isinstance(name := getattr(part, "name", None), str)]
    return names[0] if names else field.replace("_", "-")


def find_help(arguments: Sequence[str]) -> str | None:
    """The help that is asked for: "" for -h and --help, the rest of a word --help-REST, else None.

    >>> find_help(["digits", "--help"]), find_help(["--help-all"]), find_help(["digits"])
    ('', 'all', None)
    """
    words = [word for word in arguments if word in ("-h", "--help") or word.startswith("--help-")]
    return words[0].removeprefix("-h").removeprefix("--help").removeprefix("-") if words else None


def hidden_fields(options: BaseModel, part: str, everyday: Iterable[str]) -> set[tuple[type[BaseModel], str]]:
    """Fields that a help leaves out.

    part: "all" for none, the name of a box for those of other boxes, and "" for those whose flags are not everyday.
    Raises UserError for another part.
    """
    flags, everyday = [flag for flag in list_flags(options) if not flag.required], set(everyday)
    if part == "all" or not (part or everyday):
        return set()
    if part and part not in parts_of_help(options):
        raise UserError(f"there is no help of {quote(part)}; choose one of {', '.join(help_words(options))}.")
    box = METHOD_BOX if part == "method" else part
    return {(flag.model, flag.field) for flag in flags if (flag.box != box if part else flag.name not in everyday)}


def parts_of_help(options: BaseModel) -> list[str]:
    """The names of boxes; that of a method is called method."""
    boxes = list(dict.fromkeys(flag.box for flag in list_flags(options) if flag.box))
    return ["method" if box == METHOD_BOX else box for box in sorted(boxes, key=lambda box: box != METHOD_BOX)]


def help_words(options: BaseModel) -> list[str]:
    """The words that show parts of a help, and all of it."""
    return [f"--help-{part}" for part in [*parts_of_help(options), "all"]]


def check_flags(prog: str, options: BaseModel, words: Sequence[str]) -> None:
    """Raise UserError for the first word that is no flag of these options, with those that may have been meant."""
    names = [flag.name for flag in list_flags(options)]
    valid = {*names, *(f"no-{name}" for name in names), "help"}
    for word in words:
        flag = word.partition("=")[0]
        name = flag.removeprefix("--").replace("_", "-")
        if flag.startswith("--") and name and name not in valid and not name.startswith("tyro-"):
            suggestion = _suggest(name, names, prog, bool(parts_of_help(options)))
            _refuse_of_other_methods(flag, name, options)
            raise UserError(f"there is no option {flag} of {quote(prog)}; {suggestion}")


def _refuse_of_other_methods(flag: str, name: str, options: BaseModel) -> None:
    """Raise UserError for an option of other methods than the one that these options name."""
    if hasattr(options, "method"):
        from limbeck.methods import name_methods_with  # here, since they load torch

        if methods := name_methods_with(name.replace("-", "_")):
            raise UserError(f"there is no option {flag} of the method {options.method}; it is one of {methods}.")


def check_values(options: BaseModel, words: Sequence[str]) -> None:
    """Raise UserError for the first flag of these options that lacks its value, with its choices or else its help."""
    flags = {flag.name: flag for flag in list_flags(options)}
    for word, following in zip(words, [*words[1:], "--"]):
        name = word.removeprefix("--").replace("_", "-")
        if word.startswith("--") and name in flags and following.startswith("--"):
            _require_no_value(flags[name])


def _require_no_value(flag: Flag) -> None:
    """Raise UserError where this flag takes a value."""
    field = flag.model.model_fields[flag.field]
    kind: Any = field.annotation
    parts = [kind] if get_origin(kind) is Literal else list(get_args(kind) or [kind])
    if bool in parts or Ellipsis in parts:  # a switch, or as many words as one likes
        return
    choices = [str(name) for part in parts if get_origin(part) is Literal for name in get_args(part)]
    text = f"{', '.join(choices[:-1])} or {choices[-1]}" if choices else " ".join((field.description or "").split())
    raise UserError(f"--{flag.name} needs a value{': ' if text else ''}{text.rstrip('.')}.")


def _suggest(name: str, names: Sequence[str], prog: str, has_parts: bool) -> str:
    """Flags with the same last part, however they are grouped, or flags spelled nearly so."""
    last = name.rpartition(".")[2]
    same = [other for other in names if other.rpartition(".")[2] == last]
    ends = [other for other in names if len(last) > 3 and other.endswith(f"-{last}")]
    near = [*same, *ends] or get_close_matches(name, names)
    if near:
        return f"did you mean {' or '.join(f'--{other}' for other in near[:3])}?"
    return f"'{prog} --help{'-all' if has_parts else ''}' lists all."
