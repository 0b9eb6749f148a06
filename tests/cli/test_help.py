"""The help of every command: its boxes in their order, placeholders that mean something, examples that parse."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from pydantic import BaseModel

from limbeck.cli.commands import COMMANDS, find_command, find_defaults
from limbeck.cli.flags import list_flags
from limbeck.cli.main import main
from limbeck.cli.parse import METAVARS_BY_NAME, parse
from limbeck.core.errors import UserError
from limbeck.jobs.job import prepare
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
    **{name: ["options"] for name in ("demo", "methods", "presets", "sets", "cache")},
}
FIRST = {"distill": ["--method", "--preset", "--ipc", "--out"], "estimate": ["--within", "--method", "--preset"]}
FIRST |= {
    "experts": ["--out", "--num-experts"],
    "evaluate": ["--data", "--networks"],
    "convexify": ["--out", "--waypoints"],
}


def help_of(capsys: pytest.CaptureFixture[str], *words: str, ending: str = "") -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*words, f"--help{ending}"])
    assert end.value.code == 0
    return capsys.readouterr().out


def full_help_of(capsys: pytest.CaptureFixture[str], name: str, *words: str) -> str:
    return help_of(capsys, name, *words, ending="-all")


def boxes(text: str) -> list[str]:
    """Titles of the boxes, which have no frames where standard output is no terminal of UTF-8."""
    return re.findall(r"^ (\S.*\S) +\n -+ *$", text, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_boxes_and_first_options_of_a_command(capsys: pytest.CaptureFixture[str], name: str) -> None:
    text = full_help_of(capsys, name)
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
    assert ">>>" not in full_help_of(capsys, name)


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_options_are_in_a_box_of_its_name(capsys: pytest.CaptureFixture[str], method: str) -> None:
    text = full_help_of(capsys, "distill", "--method", method)
    assert boxes(text)[2] == f"{method} options" or not METHODS[method].config.model_fields
    assert not re.search(NO_PLACEHOLDER, text)


@pytest.mark.parametrize("name", COMMANDS)
def test_placeholders_say_what_is_meant(capsys: pytest.CaptureFixture[str], name: str) -> None:
    text = full_help_of(capsys, name)
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


def default_of(name: str, words: Sequence[str] = ()) -> BaseModel:
    options: BaseModel = find_defaults(name, find_command(name), list(words))
    return options


def read(name: str, words: Sequence[str]) -> object:
    return parse(f"limbeck {name}", default_of(name, words), words)


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


NAMES_ARE_SAID = r"'limbeck \w+' lists|[\w-]+,? (?:or|and) [\w-]+|, or as in|for example"
"""A list of names, the command that lists them, or an example."""


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_that_takes_a_name_says_what_names_there_are(name: str) -> None:
    for flag in list_flags(default_of(name)):
        field, hint = flag.model.model_fields[flag.field], get_type_hints(flag.model, include_extras=True)[flag.field]
        takes_name = field.annotation in (str, str | None) and "metavar='" not in repr(hint)
        if takes_name and flag.field not in METAVARS_BY_NAME:
            assert re.search(NAMES_ARE_SAID, " ".join((field.description or "").split())), flag


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--fill"], "--fill needs a value: none, repeat, augment or noise."),
        (["--method", "--ipc", "1"], "--method needs a value"),
        (["--eval.protocol"], "--eval.protocol needs a value: field, field-max, ddranking or quick."),
        (["--resize", "--quiet"], "--resize needs a value: Resize images to N pixels a side, or height x width."),
    ],
)
def test_an_option_without_its_value_says_which_values_there_are(refused: Any, words: list[str], sentence: str) -> None:
    assert refused("distill", "digits", *words).startswith(f"limbeck: {sentence}")


def test_switches_and_lists_of_words_need_no_value() -> None:
    options = read("distill", ["digits", "--balanced", "--eval.baselines", "--no-balanced", "--expert.waypoint-at"])
    assert (options.eval.baselines, options.expert.waypoint_at) == ((), ())  # type: ignore[attr-defined]


SCREEN = 50  # lines, of which distill's help takes 40
LONG = [name for name in COMMANDS if find_command(name).everyday]


@pytest.mark.parametrize("name", LONG)
def test_a_help_with_many_options_shows_the_everyday_ones(capsys: pytest.CaptureFixture[str], name: str) -> None:
    everyday = find_command(name).everyday
    text = help_of(capsys, name)
    assert len(text.splitlines()) <= (40 if name == "distill" else SCREEN)
    shown = re.findall(r"^  (?:-h, )?--([a-z][a-z.-]*)", text, re.MULTILINE)
    assert sorted(shown) == sorted(["help", *everyday])
    assert "--help-all" in text
    assert set(everyday) < {flag.name for flag in list_flags(default_of(name))}


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in LONG])
def test_a_help_with_few_options_shows_all(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert help_of(capsys, name) == full_help_of(capsys, name)


def test_a_part_of_a_help_shows_one_box(capsys: pytest.CaptureFixture[str]) -> None:
    for part, title in (("method", "mtt options"), ("eval", "eval options"), ("model", "model options")):
        text = help_of(capsys, "distill", "--method", "mtt", ending=f"-{part}")
        assert boxes(text) == ["positional arguments", "options", title]
    with pytest.raises(SystemExit) as end:
        main(["distill", "--help-nope"])
    assert end.value.code == 2
    assert "--help-method, --help-model, --help-expert, --help-eval, --help-all" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (["experts", "digits", "--expert.epochs", "3"], "did you mean --epochs?"),
        (["distill", "digits", "--width=8"], "did you mean --model.width?"),
        (["distill", "digits", "--networks", "3"], "did you mean --eval.networks or "),
        (["distill", "digits", "--iteratons", "3"], "did you mean --iterations?"),
        (["distill", "digits", "--nope"], "'limbeck distill --help-all' lists all."),
        (["report", "runs/digits", "--nope"], "'limbeck report --help' lists all."),
    ],
)
def test_an_unknown_option_names_what_may_be_meant(refused: Any, words: list[str], suggestion: str) -> None:
    flag = words[2].partition("=")[0]
    assert refused(*words).startswith(f"limbeck: there is no option {flag} of 'limbeck {words[0]}'; {suggestion}")


@pytest.mark.parametrize("command", ["distill", "estimate"])
def test_an_option_of_other_methods_names_them(refused: Any, command: str) -> None:
    """The sentence was that --help-all lists all options, and there it is, of another method."""
    sentence = "there is no option {} of the method tesla; it is one of mct, mtt, "
    words = (command, "digits", "--method", "tesla")
    assert refused(*words, "--factor", "2").startswith("limbeck: " + sentence.format("--factor"))
    assert refused(*words, "--batch_real=2").startswith("limbeck: there is no option --batch_real of the method tesla;")
    with pytest.raises(UserError, match=sentence.format("factor")):
        prepare("digits", method="tesla", factor=2)


def test_options_are_known_in_every_spelling() -> None:
    """With underscores, with =, and switched off."""
    options = read("distill", ["digits", "--num_experts=3", "--no-balanced", "--json"])
    assert (options.num_experts, options.balanced, options.as_json) == (3, False, True)  # type: ignore[attr-defined]


def test_switches_may_stand_before_the_command(limbeck: Any) -> None:
    assert limbeck("--json", "methods").json == limbeck("methods", "--json").json
    assert limbeck("help", "cache").out == limbeck("cache", "--help").out


def test_the_completion_of_a_shell(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Asked of bash itself: the options of commands, those of the default method too, and their values."""
    with pytest.raises(SystemExit):
        main(["completion", "bash"])
    (tmp_path / "limbeck.bash").write_text(capsys.readouterr().out)
    expected = {
        "limbeck eval": "evaluate",
        "limbeck distill --iter": "--iterations",
        "limbeck evaluate --which l": "last",
    }
    script = f"source {tmp_path / 'limbeck.bash'}; complete -p limbeck\n" + "\n".join(
        f"COMP_WORDS=({line}); COMP_CWORD={line.count(' ')}; COMP_LINE='{line}'; COMP_POINT={len(line)}\n"
        "_tyro_limbeck limbeck; echo ${COMPREPLY[*]}"
        for line in expected
    )
    real = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert real.stdout.splitlines() == ["complete -o default -F _tyro_limbeck limbeck", *expected.values()]
