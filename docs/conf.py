"""How the pages become a site: sphinx, furo, Markdown by MyST, the API from docstrings, formulas as MathML.

Nothing is downloaded, neither while the site is built nor while it is read.
"""

from __future__ import annotations

import re
from importlib import import_module
from textwrap import indent
from typing import Any, get_args

from docutils.nodes import Node, SkipNode
from latex2mathml.converter import convert
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from sphinx.util.docutils import SphinxDirective
from sphinx.util.logging import getLogger

import limbeck
from limbeck.cli.commands import COMMANDS, find_command

# before autodoc, which changes the annotations of the classes that it shows: pydantic could not derive from them then
for command in COMMANDS:
    find_command(command)

logger = getLogger(__name__)
project = "limbeck"
copyright = "the limbeck authors"
version = release = limbeck.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
smartquotes = False  # it would turn --flags into dashes
html_math_renderer = "mathml"

html_theme = "furo"
html_title = "limbeck"
html_static_path = ["_static"]
html_css_files = ["limbeck.css"]
html_copy_source = False
html_show_sphinx = False

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_default_options = {
    "members": True,
    "exclude-members": "model_config, model_post_init",
}
python_maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = "hide"

ITEM = re.compile(r"(?P<names>[A-Za-z_]\w*(?:, [A-Za-z_]\w*)*): +(?P<text>.*)")
"""A line of a docstring that describes arguments or fields by name."""


def escape(text: str) -> str:
    """Prose in reStructuredText: `code` as literals, and no other character means anything."""
    parts = re.split(r"`([^`]+)`", text)
    prose = [re.sub(r"([*_|\\])", r"\\\1", part) for part in parts[::2]]
    code = [f"``{part}``" for part in parts[1::2]]
    return "".join(part for pair in zip(prose, [*code, ""], strict=True) for part in pair)


def to_rst(lines: list[str]) -> list[str]:
    """Lines of a docstring in the style of the house -> reStructuredText.

    Examples stay as they are. `names: text` becomes an entry of a definition list, with the lines that continue it:
    those that are indented, and those after a line that does not end a sentence.
    """
    out: list[str] = []
    in_item = False
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        text = line.strip()
        if (
            not text
            or text.startswith((">>>", "..."))
            or (out and out[-1].startswith((">>>", "...")))
        ):
            out.append(line)
            in_item = in_item and bool(text)
            continue
        match = ITEM.fullmatch(text) if out and not line[0].isspace() else None
        if match:
            names = ", ".join(f"``{name}``" for name in match["names"].split(", "))
            out += ["", names, f"    {escape(match['text'])}"]
            in_item = True
        elif in_item and (line[0].isspace() or not out[-1].rstrip().endswith(".")):
            out.append(f"    {escape(text)}")
        else:
            out += ["", escape(text)] if in_item else [escape(text)]
            in_item = False
        if following.startswith(">>>"):
            out.append("")
    return out


def is_config(value: Any) -> bool:
    """Whether a value is a class of configurations."""
    return isinstance(value, type) and issubclass(value, BaseModel)


class Commands(SphinxDirective):
    """```{commands}: the commands of `limbeck`, each with its examples."""

    def run(self) -> list[Node]:
        """Parse a section of Markdown per command."""
        parts = []
        for name, entry in COMMANDS.items():
            examples = "\n".join(
                f"$ {example}" for example in find_command(name).examples
            )
            parts.append(
                f"**{name}**\n: {entry.summary}\n\n  ```console\n"
                + indent(examples, "  ")
                + "\n  ```"
            )
        return self.parse_text_to_nodes("\n\n".join(parts))


def default_of(name: str) -> str | None:
    """The default of a configuration's field `limbeck.Class.field`, or None where it is none or says nothing."""
    owner, _, field = name.removeprefix("limbeck.").rpartition(".")
    config = getattr(limbeck, owner, None) if "." not in owner else None
    if not is_config(config) or field not in config.model_fields:
        return None
    default = config.model_fields[field].default
    return None if default in (None, PydanticUndefined) else repr(default)


def process_docstring(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Replace the lines of a docstring by reStructuredText; a configuration's field ends with its default."""
    lines[:] = to_rst(lines)
    if (default := default_of(name)) is not None:
        lines += ["", f"Default: ``{default}``"]


def process_signature(
    app: Any, what: str, name: str, obj: Any, *_: Any
) -> tuple[str, None] | None:
    """Leave out the signature of a configuration: its fields stand below it, each with its default and its text."""
    return ("", None) if is_config(obj) else None


class Options(SphinxDirective):
    """```{options} limbeck.methods.mct.MCTConfig: the flags of a configuration, a row each."""

    required_arguments = 1

    def run(self) -> list[Node]:
        """Parse a Markdown table of the fields."""
        module, _, name = self.arguments[0].rpartition(".")
        config = getattr(import_module(module), name)
        rows = ["| option | default | what |", "|---|---|---|"]
        for name, field in config.model_fields.items():
            choices = [
                str(choice)
                for choice in get_args(field.annotation)
                if isinstance(choice, str)
            ]
            default = (
                "" if field.default in (None, PydanticUndefined) else f"`{field.default}`"
            )
            text = str(field.description)
            if not all(choice in text for choice in choices):
                text += f" ({', '.join(choices)})"
            rows.append(
                f"| `--{name.replace('_', '-')}` | {default} | {text.replace('|', chr(92) + '|')} |"
            )
        return self.parse_text_to_nodes("\n".join(rows))


def to_mathml(node: Any, display: str) -> str:
    """A formula as MathML, which browsers show without a script; warns of a command that is not known."""
    mathml: str = convert(node.astext(), display=display)
    if unknown := re.search(r">(\\\w+)", mathml):
        logger.warning("unknown command %s in a formula", unknown[1], location=node)
    return mathml


def visit_inline_math(self: Any, node: Any) -> None:
    """A formula in a sentence."""
    self.body.append(to_mathml(node, "inline"))
    raise SkipNode


def visit_block_math(self: Any, node: Any) -> None:
    """A formula of its own."""
    self.body.append(f'<div class="math">{to_mathml(node, "block")}</div>')
    raise SkipNode


def setup(app: Any) -> None:
    """Called by sphinx."""
    app.add_directive("options", Options)
    app.add_directive("commands", Commands)
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("autodoc-process-signature", process_signature)
    app.add_html_math_renderer(
        "mathml", (visit_inline_math, None), (visit_block_math, None)
    )
