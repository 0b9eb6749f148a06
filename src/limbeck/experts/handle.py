"""The experts of a job as a handle: where they are stored, how many, and how those that are missing are trained."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.files import require_writable
from limbeck.core.short_repr import short_repr
from limbeck.core.types import Trajectory
from limbeck.experts.bucket import Bucket, store_name
from limbeck.experts.config import ExpertConfig
from limbeck.experts.make import default_store, describe_experts, find_recorded, make_experts
from limbeck.experts.store import Expert, Kind, Store
from limbeck.task import Task


@dataclass(frozen=True, eq=False)
class Experts:
    """The first `count` experts of the store at `path`, each with a trajectory of `kind`.

    config: how they are trained, or were.
    is_user_store: whether the user named the store; nothing is trained into such a store.
    in_memory: how many convexified experts are kept in memory; the waypoints of the others are read from their files
        when a segment needs them. None: all are kept.
    """

    __repr__ = short_repr

    task: Task
    config: ExpertConfig
    count: int
    seed: int
    kind: Kind
    path: Path
    is_user_store: bool = False
    in_memory: int | None = None

    @classmethod
    def to_train(
        cls, task: Task, config: ExpertConfig, count: int, seed: int, kind: Kind = "any", path: Path | None = None
    ) -> Experts:
        """Experts that are trained where the store lacks them; by default in a store that is named by its content.

        Raises UserError for waypoints that do not fit the epochs, where trajectories of `kind` would not be stored, and
        where there is something else at `path`.
        """
        config.waypoint_epochs()
        config = config.with_waypoints(-(-len(task.data.train) // config.batch_size))
        if kind != "any" and config.keep not in (kind, "both"):
            raise UserError(
                f"the method needs {kind} trajectories; train its experts with '--expert.keep {kind}' or both."
            )
        description = describe_experts(task, config, seed)
        if path is not None:
            Store.check(path, description)
        elif not (path := default_store(description)).exists():
            require_writable(path, "set LIMBECK_HOME to another folder")
        return cls(task, config, count, seed, kind, path)

    @classmethod
    def of_store(cls, task: Task, path: Path, count: int | None, seed: int, kind: Kind) -> Experts:
        """Return the first `count` experts of a store that the user named, or all of them.

        Raises UserError where the store is another task's, holds too few experts, or none with trajectories of `kind`.
        """
        store = Store.open(path)
        store.require(task.describe())
        available = len(store.require_experts())
        if count is not None and available < count:
            raise UserError(f"the store {path} holds {available} experts, fewer than --num-experts {count}.")
        handle = cls(task, store.config, count or available, seed, kind, path, is_user_store=True)
        _ = handle.loaded
        return handle

    @property
    def store(self) -> Store:
        """The store as it is now; created where it does not exist, but UserError where the user named it."""
        if self.is_user_store:
            return Store.open(self.path)
        return Store.create(self.path, describe_experts(self.task, self.config, self.seed))

    @property
    def indices(self) -> list[int]:
        """The indices of these experts in the store."""
        return list(self.store.indices()[: self.count])

    def missing(self) -> list[int]:
        """Return the indices of the experts that have to be trained; this writes nothing."""
        if self.is_user_store:
            return []
        finished = Store.open(self.path).indices() if (self.path / "store.json").exists() else []
        missing = set(range(self.count)) - set(finished)
        if missing:
            description = describe_experts(self.task, self.config, self.seed)
            bucket = Bucket.find(store_name(description))
            missing -= set(find_recorded(description)) | (bucket.indices() if bucket is not None else set())
        return sorted(missing)

    def train(self, listen: Listener, indices: Collection[int] | None = None) -> Store:
        """Train those that are missing, of `indices` alone where these are given, and return the store."""
        store = self.task.ranks.in_turn(lambda: self.store)
        if not self.is_user_store:
            make_experts(self.task, self.config, self.count, self.seed, store, listen, indices)
        return store

    @cached_property
    def loaded(self) -> list[Expert]:
        """The experts, read from their files and verified once; recorded parameters stay in the files."""
        store = self.store
        experts = []
        for place, index in enumerate(self.indices):
            expert = store.read(index, lazy=True)
            if expert.convex is not None and self.in_memory is not None and place >= self.in_memory:
                expert = replace(expert, convex=expert.convex.with_waypoints_in(store.file(index)))
            experts.append(expert)
        if any(expert.trajectory(self.kind) is None for expert in experts):
            remedy = "'limbeck convexify' it" if self.kind == "convex" else "run 'limbeck experts --keep recorded'"
            raise UserError(f"the store {self.path} holds no {self.kind} trajectories; {remedy}.")
        return experts

    def trajectories(self) -> list[Trajectory]:
        """One trajectory of `kind` an expert."""
        return [path for expert in self.loaded if (path := expert.trajectory(self.kind)) is not None]
