"""The units of a study: runs, trials, and the training of experts that several runs need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from limbeck.core.files import content_key
from limbeck.engines import Pool, Work
from limbeck.experts.share import are_claimed
from limbeck.experts.store import Store
from limbeck.studies.plan import PlannedRun

Shares = Callable[[Sequence[int]], list[tuple[int, ...]]]
"""How an engine divides the missing experts of a store among units."""


@dataclass(frozen=True)
class Unit:
    """What one process does: a run, or the training of the experts `indices` of `store`.

    kind:   run, trial (a run without evaluation), or experts.
    run:    The run; for experts, one of those that need them.
    needs:  The units of experts that have to be trained before.
    number: Of a trial.
    """

    kind: str
    run: PlannedRun
    needs: tuple[Unit, ...] = ()
    store: Path | None = None
    indices: tuple[int, ...] = ()
    number: int | None = None

    @property
    def name(self) -> str:
        """The unit as a message names it."""
        names = {"experts": f"experts of {self.run.name}", "trial": f"{self.run.cell.name}, trial {self.number}"}
        return names.get(self.kind, self.run.name)

    @property
    def key(self) -> str:
        """A store and its experts, or a run folder, which is named by its content."""
        place = self.run.path if self.store is None else self.store
        return content_key({"kind": self.kind, "place": str(place), "indices": list(self.indices)})

    def work(self, threads: int, errors: Path) -> Work:
        """The unit for an engine. errors: the folder for what its process writes to standard error."""
        run, part = self.run, "".join(f"-{index}" for index in self.indices[:1])
        order = {"kind": self.kind, "call": run.call.to_json(), "path": str(run.path), "key": run.key}
        return Work(
            key=self.key,
            name=self.name,
            function="limbeck.studies.child:carry_out",
            order=order | {"indices": list(self.indices)},
            threads=threads,
            errors=errors / f"{run.path.name}-{self.kind}{part}.txt",
            needs=frozenset(unit.key for unit in self.needs),
            gpus=0 if run.device.startswith("cpu") else 1,
            is_wide=len(self.indices) > 1 and not run.depends_on_threads,
            is_done=self._is_done if self.kind != "trial" else None,
            is_claimed=self._is_claimed,
        )

    def _is_done(self) -> bool:
        """Whether the experts are in their store, or the run has its results."""
        if self.store is None:
            return (self.run.path / "results.json").exists()
        return not self._missing()

    def _is_claimed(self) -> bool:
        """Whether other processes train all of the experts that are missing."""
        missing = self._missing() if self.store is not None and (self.store / "store.json").exists() else []
        return bool(missing) and self.store is not None and are_claimed(Store.open(self.store), missing)

    def _missing(self) -> list[int]:
        if self.store is None or not (self.store / "store.json").exists():
            return list(self.indices)
        return sorted(set(self.indices) - set(Store.open(self.store).indices()))


def make_units(runs: Sequence[PlannedRun], shares: Shares) -> list[Unit]:
    """The units of these runs in their order, and before the first run that needs a store the training of its experts.

    The experts of a store are trained for the run that needs most of them.
    """
    largest: dict[Path, PlannedRun] = {}
    for run in runs:
        if run.store is not None and run.store.missing:
            other = largest.setdefault(run.store.path, run)
            if other.store is not None and run.store.count > other.store.count:
                largest[run.store.path] = run
    units: list[Unit] = []
    training: dict[Path, tuple[Unit, ...]] = {}
    for run in runs:
        path = run.store.path if run.store is not None else None
        if path is not None and path in largest and path not in training:
            need = largest[path]
            parts = shares(need.store.missing if need.store is not None else ())
            training[path] = tuple(Unit("experts", need, store=path, indices=part) for part in parts)
            units.extend(training[path])
        units.append(Unit("run", run, needs=() if path is None else training.get(path, ())))
    return units


class UnitPool:
    """Carries out units on the engine of a pool, with so many threads; see `Pool.run`."""

    def __init__(self, pool: Pool, threads: int, errors: Path):
        self.pool, self.threads, self.errors = pool, threads, errors
        self.units: dict[str, Unit] = {}

    def add(self, units: Sequence[Unit]) -> None:
        """Let these units wait for their turn; a unit is done once."""
        for unit in units:
            self.units.setdefault(unit.key, unit)
        self.pool.add([unit.work(self.threads, self.errors) for unit in units])

    def run(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, str | None] | None]:
        """Yield (unit, why it failed) as units end, and None about every second in between."""
        self.add(units)
        for ended in self.pool.run([]):
            yield None if ended is None else (self.units[ended.work.key], ended.sentence)

    @property
    def progress(self) -> str:
        """Where the units at work are, in words."""
        return "; ".join(child.progress for child in self.pool.children.values())
