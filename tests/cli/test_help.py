"""The help of every command: its boxes in their order, placeholders that mean something, examples that parse."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

import pytest
from pydantic import BaseModel

from limbeck.cli.commands import COMMANDS, find_command
from limbeck.cli.main import main
from limbeck.cli.parse import make_default, parse
from limbeck.methods import METHODS

NO_PLACEHOLDER = r"\bSTR\b|\bINT\b|\{None\}|default: None|default: \)"
RUN = ["positional arguments", "options", "mct options", "model options", "expert options", "eval options"]
BOXES = {
    "distill": RUN,
    "estimate": RUN,
    "doctor": RUN,
    "experts": ["positional arguments", "options", "expert options", "model options"],
    **{
        name: ["positional arguments", "options", "model options"]
        for name in ("compare", "import-experts", "import-set")
    },
    "evaluate": ["positional arguments", "options", "eval options", "robustness options", "model options"],
    **{name: ["options"] for name in ("methods", "presets", "cache")},
}
FIRST = {"distill": ["--method", "--preset", "--ipc", "--out"], "estimate": ["--method", "--preset", "--ipc", "--out"]}
FIRST |= {
    "experts": ["--out", "--num-experts"],
    "evaluate": ["--data", "--networks"],
    "convexify": ["--out", "--waypoints"],
}


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def boxes(text: str) -> list[str]:
    """Titles of the boxes, which have no frames where standard output is no terminal of UTF-8."""
    return re.findall(r"^ (\S.*\S) +\n -+ *$", text, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_boxes_and_first_options_of_a_command(capsys: pytest.CaptureFixture[str], name: str) -> None:
    text = help_of(capsys, name)
    assert boxes(text) == BOXES.get(name, ["positional arguments", "options"])
    options = re.findall(r"^  (?:-h, )?(--[a-z.-]+)", text, re.MULTILINE)
    first = FIRST.get(name, [])
    assert options[1 : len(first) + 1] == first
    ends = options[: options.index("--debug") + 1]
    assert ends[-3:] == ["--json", "--quiet", "--debug"], "options of every command come after those of this one"
    assert ">>>" not in text, "an example of a class is not a help text: it belongs to a method"


@pytest.mark.parametrize("name", COMMANDS)
def test_no_help_shows_an_example_in_python(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Docstrings of options are the heads of their boxes; their doctests are for readers of the code."""
    assert ">>>" not in help_of(capsys, name)


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_options_are_in_a_box_of_its_name(capsys: pytest.CaptureFixture[str], method: str) -> None:
    text = help_of(capsys, "distill", "--method", method)
    assert boxes(text)[2] == f"{method} options" or not METHODS[method].config.model_fields
    assert not re.search(NO_PLACEHOLDER, text)


@pytest.mark.parametrize("name", COMMANDS)
def test_placeholders_say_what_is_meant(capsys: pytest.CaptureFixture[str], name: str) -> None:
    text = help_of(capsys, name)
    assert not re.search(NO_PLACEHOLDER, text)
    assert "(default: False)" not in text.partition("mct options")[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_ends_with_examples_that_parse(capsys: pytest.CaptureFixture[str], name: str) -> None:
    text = help_of(capsys, name)
    examples = find_command(name).examples
    assert examples
    assert text.splitlines()[-len(examples) - 1 :] == [
        "examples:" if len(examples) > 1 else "example:",
        *(f"  {example}" for example in examples),
    ]
    for example in examples:
        program, command, *words = shlex.split(example)
        assert (program, command) == ("limbeck", name)
        read(name, words)


def read(name: str, words: Sequence[str]) -> object:
    command = find_command(name)
    prog = f"limbeck {name}"
    default = command.choose_defaults(prog, words) if command.choose_defaults else make_default(command.options)
    return parse(prog, default, words)


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model of options, and those of its boxes."""
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from models(field.annotation)


@pytest.mark.parametrize("name", [*COMMANDS, *METHODS])
def test_every_option_has_a_help_that_is_a_sentence(name: str) -> None:
    options = METHODS[name].config if name in METHODS else find_command(name).options
    for model in models(options):
        for option, field in model.model_fields.items():
            text = field.description or ""
            box = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            assert box or (text.endswith(".") and not text.startswith("of ")), (option, text)


def test_the_completion_of_a_shell_knows_the_methods_options(capsys: pytest.CaptureFixture[str]) -> None:
    """The options that choose the others are parsed first, and completion was theirs alone."""
    with pytest.raises(SystemExit):
        main(["distill", "--tyro-print-completion", "bash"])
    assert "--iterations" in capsys.readouterr().out
