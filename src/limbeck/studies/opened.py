"""An open study: its file and its record read, and every run planned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.files import require_writable
from limbeck.core.folders import home_folder
from limbeck.core.record_files import read_record
from limbeck.core.study_records import FORMAT, CellSearch, StudyFailure, StudyRecord, StudyRow
from limbeck.studies.cells import Cell, make_cells
from limbeck.studies.compare import compare_cells
from limbeck.studies.config import Study, read_study
from limbeck.studies.plan import PlannedRun, plan_runs
from limbeck.studies.record import read_row, read_study_record
from limbeck.studies.search import OpenSearch


@dataclass(frozen=True)
class OpenStudy:
    """A study whose runs are planned.

    path:   The study file; its record lies beside it, with the ending .json, and its page, with .html.
    work:   The folder of the run folders.
    cells:  All cells; those whose search is finished have the options that it found.
    plan:   The runs of cells without a search, or with a finished one, in the order in which they are computed.
    rows:   The finished ones, by key; earlier: rows that the study file asks for no more.
    searches: The searches of the cells that have one; probes: the first trial of each unfinished one.
    earlier_searches: Those that the study file asks for no more.
    """

    path: Path
    work: Path
    study: Study
    content: dict[str, Any]
    cells: list[Cell]
    plan: list[PlannedRun]
    rows: dict[str, StudyRow]
    earlier: list[StudyRow]
    searches: list[OpenSearch]
    probes: list[PlannedRun]
    earlier_searches: list[CellSearch]

    @property
    def record_path(self) -> Path:
        """The file of the record."""
        return self.path.with_suffix(".json")

    @property
    def left(self) -> list[PlannedRun]:
        """The runs that have no row yet."""
        return [run for run in self.plan if run.key not in self.rows]

    def record(self, failures: Sequence[StudyFailure] = ()) -> StudyRecord:
        """The record as it is now; rows stand in the order of the grid."""
        order = [run for cell in self.cells for run in self.plan if run.cell is cell]
        rows = [self.rows[run.key] for run in order if run.key in self.rows]
        return StudyRecord(
            format=FORMAT,
            version=1,
            title=self.study.title,
            text=self.study.text,
            axes={axis: list(values) for axis, values in self.study.axes.items()},
            seeds=list(dict.fromkeys(seed for cell in self.cells for seed in cell.seeds)),
            study=self.content,
            planned=sum(len(cell.seeds) for cell in self.cells),
            rows=rows,
            comparisons=compare_cells(rows, self.study.compare),
            failures=list(failures),
            searches=[*(search.record() for search in self.searches), *self.earlier_searches],
            earlier=self.earlier,
        )

    def collect(self) -> None:
        """Read the rows of all finished runs from their folders here, again where this machine wrote the row."""
        for run in self.plan:
            if run.is_finished:
                row, recorded = read_row(run), self.rows.get(run.key)
                if recorded is None or recorded.created == row.created:
                    self.rows[run.key] = row

    def add(self, run: PlannedRun) -> StudyRow:
        """Read the row of a finished run from its folder."""
        self.rows[run.key] = read_row(run)
        return self.rows[run.key]


def plan_study(
    path: str | Path,
    *,
    work: str | Path | None = None,
    threads: int = 1,
    merge: Sequence[str | Path] = (),
    listen: Listener = lambda event: None,
) -> OpenStudy:
    """Read a study file and its record, and plan every run; the arguments are those of `run_study`.

    Raises UserError for a study file or options that do not work. Nothing is written.
    """
    with use_threads(threads):
        others = [read_record(Path(other), StudyRecord, FORMAT) for other in merge]
        return _plan(Path(path), home_folder() / "studies" if work is None else Path(work), others, listen)


def _plan(path: Path, work: Path, others: Sequence[StudyRecord], listen: Listener) -> OpenStudy:
    if path.suffix in (".json", ".html"):
        raise UserError(f"{path}: a study file ends in .toml; its record and page would overwrite this one.")
    study, content = read_study(path)
    record = read_study_record(path.with_suffix(".json"))
    require_writable(path.with_suffix(".json"), "copy the study file to a folder that can be written to")
    work, folder = work.absolute(), path.parent
    records = [*others, *([] if record is None else [record])]  # the study's own rows win
    recorded_searches = [search for one in records for search in one.searches]
    cells, searches = _search_cells(study, make_cells(study), recorded_searches)
    unfinished = [search for search in searches if not search.is_finished]
    waiting = [search.cell for search in unfinished]
    plan = plan_runs([cell for cell in cells if cell not in waiting], folder, work, listen)
    recorded = {row.key: row for one in records for row in (*one.earlier, *one.rows)}
    by_key = {run.key: run for run in plan}
    rows = {
        key: row.model_copy(update={"cell": by_key[key].cell.values}) for key, row in recorded.items() if key in by_key
    }
    keys = {search.key for search in searches}
    return OpenStudy(
        path=path,
        work=work,
        study=study,
        content=content,
        cells=cells,
        plan=plan,
        rows=rows,
        earlier=[row for key, row in recorded.items() if key not in by_key],
        searches=searches,
        probes=[search.plan(0, folder, work) for search in unfinished],
        earlier_searches=[search for search in recorded_searches if search.key not in keys],
    )


def _search_cells(
    study: Study, cells: list[Cell], recorded: Sequence[CellSearch]
) -> tuple[list[Cell], list[OpenSearch]]:
    """The cells, with what finished searches found, and all searches."""
    if study.search is None:
        return cells, []
    searches = {cell.name: OpenSearch.of(cell, study.search, recorded) for cell in cells if cell.space}
    finished = {name: search.result() for name, search in searches.items() if search.is_finished}
    return [finished.get(cell.name, cell) for cell in cells], list(searches.values())


@contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """Jobs are prepared as the child processes prepare them: with as many threads, on which bits may depend."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_plan(opened: OpenStudy) -> str:
    """The plan in a sentence: runs, cells, seeds, what is done, and the experts to train."""
    cells, done = len(opened.cells), len(opened.rows)
    runs = sum(len(cell.seeds) for cell in opened.cells)
    stores = {run.store.path for run in opened.left if run.store is not None and run.store.missing}
    parts = [f"{runs} run{'s' * (runs != 1)} of {cells} cell{'s' * (cells != 1)}", f"{done} done"]
    if stores:
        parts.append(f"experts of {len(stores)} store{'s' * (len(stores) != 1)} to train")
    trials = sum(search.search.trials - len(search.trials) for search in opened.searches if not search.is_finished)
    if trials:
        parts.append(f"{trials} trial{'s' * (trials != 1)} of a search to do first")
    if opened.earlier:
        count = len(opened.earlier)
        parts.append(f"{count} row{'s' * (count != 1)} of earlier states of the study file stay in its record, apart")
    return f"{opened.study.title}: {'; '.join(parts)}"
