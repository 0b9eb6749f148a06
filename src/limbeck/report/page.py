"""The report of a run, and the comparison of several: one self-contained HTML page from records, without torch."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from limbeck.core.disk import OF_THE_PATH, make_folder, write_errors
from limbeck.core.errors import UserError
from limbeck.core.files import write_atomically
from limbeck.core.text import shorten_path
from limbeck.report.comparison import compare_runs
from limbeck.report.gallery import cell_width
from limbeck.report.records import read_run
from limbeck.report.text import NONE, count, duration, percent, points, size
from limbeck.report.view import view_run


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of a run folder and return its path; `out` is a file or a folder, the default the run folder.

    Raises UserError for a folder that is no run and for a path that cannot be used, and WriteError where the system
    cannot write.

    >>> import json, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "run.json").write_text(json.dumps({"format": "limbeck-run", "version": 1}))
    ...     write_report(Path(folder)).name
    'report.html'
    """
    page = render_page("report.html", view=view_run(read_run(Path(run))))
    return write_page(page, Path(run) / "report.html", parents=False) if out is None else write_page(page, Path(out))


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Write one page that compares several run folders, and return its path.

    Raises UserError for no folders, for one that is no run and for a path that cannot be used, and WriteError where the
    system cannot write.
    """
    if not runs:
        raise UserError("there is nothing to compare: give at least one run folder.")
    contents = [read_run(Path(run)) for run in runs]
    names = [run.name for run in contents]
    if len(set(names)) < len(names):
        names = [f"{index}: {name}" for index, name in enumerate(names, 1)]
    return write_page(render_page("comparison.html", **compare_runs(contents, names)), Path(out))


def render_page(template: str, **values: object) -> str:
    """Render a template of report/templates with these values; all text from files is escaped."""
    return _environment().get_template(template).render(dash=NONE, **values)


@cache  # so that a template is compiled once in a process
def _environment() -> jinja2.Environment:
    pages = resources.files("limbeck.report") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: pages.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, points=points, size=size, duration=duration, count=count)
    environment.filters["tie"] = _tie
    # The SVG is our own drawing: no text from a file enters it, so it may skip the escaping.
    environment.filters["svg"] = lambda plot: Markup(plot.svg)
    # The page runs this script alone: the policy in its head has the digest.
    script = pages.joinpath("page.js").read_text(encoding="utf-8")
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals.update(cell_width=cell_width, script=Markup(script), digest=digest)
    return environment


def write_page(page: str, out: Path, parents: bool = True) -> Path:
    """Write a page, whole or not at all, and return its path; into a folder it goes as report.html.

    parents: make folders that are missing.

    Raises UserError for a path that cannot be used, and WriteError where the system cannot write.
    """
    out = out / "report.html" if out.is_dir() else out
    content = page.encode(errors="replace")  # JSON can have half a surrogate pair, and UTF-8 cannot
    try:
        if parents:
            with write_errors(out):
                make_folder(out.parent)
        write_atomically(out, lambda temporary: temporary.write_bytes(content))
    except OSError as error:
        if error.errno not in OF_THE_PATH:  # a disk that is full or read-only, which is no mistake of the user
            raise
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{shorten_path(out)} cannot be written to ({reason}); name another path.") from error
    return out


def _tie(line: str) -> str:
    """A line in which a number keeps its deviation, its unit and its n beside it.

    >>> _tie("50.0 ± 1.0 % (n = 3)").split(" ")
    ['50.0\\xa0±\\xa01.0\\xa0%', '(n\\xa0=\\xa03)']
    """
    return line.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%").replace("n = ", "n\u00a0=\u00a0")
