"""Parse a command line into a model of options, by tyro, with rules for pydantic models, numbers, names and None."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from pydantic import BaseModel, ValidationError
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from limbeck.cli.flags import check_flags, check_values, find_help, help_words, hidden_fields, list_flags
from limbeck.core.aliases import rename_flags
from limbeck.core.errors import UserError

Options = TypeVar("Options", bound=BaseModel)
REGISTRY = ConstructorRegistry()
METAVARS: dict[Any, str] = {int: "N", float: "FLOAT", str: "NAME"}
METAVARS_BY_NAME = {"augment": "FAMILIES"}
KINDS: dict[Any, str] = {int: "a whole number", float: "a number"}
HIDDEN: ContextVar[set[tuple[type[BaseModel], str]]] = ContextVar("HIDDEN", default=set())  # noqa: B039
"""Fields that the help which is being printed leaves out."""


def parse(
    prog: str, default: Options, arguments: Sequence[str], examples: Sequence[str] = (), everyday: Sequence[str] = ()
) -> Options:
    """Parse `arguments` into options; those that they do not name are as in `default`.

    For --help it prints the help, with the examples at its end, and exits with status 0. Where the arguments do not
    parse, it prints what is wrong and exits with status 2, or raises UserError.

    everyday: the flags that --help shows; the default is all. --help-all shows all of them, --help-BOX those of a box.
    """
    part = find_help(arguments)
    if part is not None:
        _print_help(prog, default, part, examples, everyday)
    words, notices = rename_flags(arguments, {flag.field for flag in list_flags(default)})
    for notice in notices:
        print(f"limbeck: {notice}", file=sys.stderr)
    check_flags(prog, default, words)
    check_values(default, words)
    try:
        return tyro.cli(type(default), prog=prog, args=words, default=default, registry=REGISTRY)
    except _InvalidValue as error:
        raise UserError(error.sentence(default)) from None


def _print_help(prog: str, default: BaseModel, part: str, examples: Sequence[str], everyday: Sequence[str]) -> NoReturn:
    token = HIDDEN.set(hidden_fields(default, part, everyday))
    try:
        tyro.cli(type(default), prog=prog, args=["--help"], default=default, registry=REGISTRY)
    finally:
        HIDDEN.reset(token)
        if everyday and not part:
            print(f"more options: {', '.join(help_words(default))}\n")
        if examples:
            print("\n".join([f"example{'s' * (len(examples) > 1)}:", *(f"  {example}" for example in examples)]))
    raise AssertionError("a help ends the process")


def parse_known(prog: str, options: type[Options], arguments: Sequence[str]) -> Options:
    """Parse the options of this model alone, and leave out all other words."""
    check_values(make_default(options), arguments)
    values, _ = tyro.cli(
        options, prog=prog, args=list(arguments), return_unknown_args=True, add_help=False, registry=REGISTRY
    )
    return values


def make_default(options: type[Options], **values: Any) -> Options:
    """An instance of `options` with these values, in which fields without a default are marked as missing."""
    missing = {name: tyro.MISSING for name, field in options.model_fields.items() if field.is_required()}
    return options.model_construct(**{**missing, **values})


@REGISTRY.struct_rule
def describe_model(info: StructTypeInfo) -> StructConstructorSpec | None:
    """The fields of a pydantic model: required ones first, then those of the most derived class."""
    model = info.type
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return None
    hints = get_type_hints(model, include_extras=True)
    fields = []
    for name in _names_in_order(model):
        field = model.model_fields[name]
        default = tyro.MISSING if field.is_required() else field.get_default(call_default_factory=True)
        default = getattr(info.default, name, default)
        annotation: Any = hints[name]
        text = None if field.description is None else " ".join(field.description.split())  # lines break where they end
        if default is None or default is False or default in ((), ""):  # the help says what happens without the option
            annotation = Annotated[annotation, tyro.conf.arg(help_behavior_hint="")]
        if name in METAVARS_BY_NAME:
            annotation = Annotated[annotation, tyro.conf.arg(metavar=METAVARS_BY_NAME[name])]
        if (model, name) in HIDDEN.get():
            annotation = Annotated[annotation, tyro.conf.Suppress]
        fields.append(StructFieldSpec(name=name, type=annotation, default=default, helptext=text))
    return StructConstructorSpec(instantiate=_constructor(model), fields=tuple(fields))


def _names_in_order(model: type[BaseModel]) -> list[str]:
    annotated = [name for base in model.__mro__ for name in inspect.get_annotations(base)]
    names = [name for name in dict.fromkeys(annotated) if name in model.model_fields]
    return sorted(names, key=lambda name: not model.model_fields[name].is_required())


def _constructor(model: type[BaseModel]) -> Callable[..., BaseModel]:
    def construct(**values: Any) -> BaseModel:
        try:
            return model(**values)
        except ValidationError as error:
            raise _InvalidValue(model, error) from None

    construct.__doc__ = (model.__doc__ or "").split(">>>")[0].rstrip()  # an example in Python is no help here
    return construct


class _InvalidValue(Exception):
    """A value that a model refuses. It is no ValueError, around which tyro would draw a box."""

    def __init__(self, model: type[BaseModel], error: ValidationError):
        self.model, self.details = model, error.errors()[0]

    def sentence(self, options: BaseModel) -> str:
        """What is wrong, by the name of its flag in `options`."""
        field = str(self.details["loc"][0])
        name = next(flag.name for flag in list_flags(options) if (flag.model, flag.field) == (self.model, field))
        message = self.details["msg"]
        return f"--{name}: {message[0].lower()}{message[1:]}, not {self.details['input']!r}."


@REGISTRY.primitive_rule
def describe_word(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A number or a name: one word."""
    kind = info.type
    if kind not in METAVARS:
        return None

    def parse_word(words: list[str]) -> Any:
        try:
            return kind(words[0])
        except ValueError:
            raise ValueError(f"'{words[0]}' is not {KINDS[kind]}.") from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=METAVARS[kind],
        instance_from_str=parse_word,
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda value: [f"{value:g}" if kind is float else str(value)],
    )


@REGISTRY.primitive_rule
def describe_optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A value or None. The help shows the value alone; the word None undoes what a preset says."""
    kinds = get_args(info.type)
    if get_origin(info.type) not in (Union, types.UnionType) or len(kinds) != 2 or type(None) not in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, set(info.markers)))
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None
    return PrimitiveConstructorSpec(
        nargs=spec.nargs,
        metavar=spec.metavar,
        instance_from_str=lambda words: None if words == ["None"] else spec.instance_from_str(words),
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["None"] if value is None else spec.str_from_instance(value),
        choices=None if spec.choices is None else (*spec.choices, "None"),
    )


@REGISTRY.primitive_rule
def describe_open_choice(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """One of several names, or one of the user's own: the help shows the names, and the model checks the word."""
    kinds = get_args(info.type)
    if get_origin(info.type) not in (Union, types.UnionType) or len(kinds) != 2 or kinds[1] is not str:
        return None
    if get_origin(kinds[0]) is not Literal:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(get_args(kinds[0]))},MODULE:NAME}}",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    )
