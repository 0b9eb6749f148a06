"""The store of experts: a folder with `store.json` and one safetensors file per expert."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from torch import Tensor

from limbeck.core.conditions import first_difference, require_same_conditions
from limbeck.core.disk import make_folder, write_errors
from limbeck.core.errors import UserError
from limbeck.core.files import content_key, has_record, require_writable, write_json
from limbeck.core.folders import size_of
from limbeck.core.locks import Locked, locked, try_lock
from limbeck.core.parallel import CheckCancelled
from limbeck.core.record_files import parse_record, read_record
from limbeck.core.records import ExpertFacts, ExpertHeader, StoreHeader
from limbeck.core.short_repr import short_repr
from limbeck.core.tensors import LazyRows, is_finite, open_tensors, write_tensors
from limbeck.core.text import printable, quote
from limbeck.core.unfinished import LOCK, remove_unfinished
from limbeck.experts.config import DTYPES, ExpertConfig
from limbeck.experts.convexified import SMOOTHING, Convexified, convexify, start_at_zero
from limbeck.experts.recorded import Recorded
from limbeck.experts.share import compute_missing
from limbeck.networks.flat import Layout

Kind = Literal["convex", "recorded", "any"]
"""Kind of trajectory; "any" is whichever a store has."""


def make_path(points: Tensor, layout: Layout, config: ExpertConfig) -> Convexified:
    """Convexify recorded points (K + 1, P) as `config` says."""
    smoothing, dtype = SMOOTHING[config.smoothing], DTYPES[config.dtype]
    return convexify(points, layout, config.waypoint_epochs(), smoothing, dtype, config.schedule)


@dataclass(frozen=True, eq=False)
class Expert:
    """One trained expert: its trajectories and its accuracies, as fractions.

    convex, recorded: its trajectories; None for one that is not stored.
    validation:       accuracy on the validation part after epochs 0 ... K.
    test:             accuracy on the test part after the last epoch, for reports only.
    """

    __repr__ = short_repr

    convex: Convexified | None
    recorded: Recorded | None
    validation: tuple[float, ...]
    test: float

    def trajectory(self, kind: Kind) -> Convexified | Recorded | None:
        """Return the trajectory of this kind, or None; of any kind, the recorded one if there is one."""
        if kind == "any":
            return self.convex if self.recorded is None else self.recorded
        return self.convex if kind == "convex" else self.recorded


@dataclass(frozen=True, eq=False)
class Store:
    """A folder of experts that share data, network, preprocessing and hyper-parameters.

    header: the content of store.json, which describes what the experts share.

    >>> from tempfile import TemporaryDirectory
    >>> from limbeck import ExpertConfig, ModelConfig, train_experts
    >>> small = {"model": ModelConfig(width=4), "expert": ExpertConfig(epochs=2)}
    >>> with TemporaryDirectory() as folder:
    ...     store = Store.open(train_experts("digits", out=f"{folder}/store", num_experts=1, **small).path)
    ...     store.indices(), store.config.epochs, store.read(0).convex.end
    ([0], 2, 2)
    """

    __repr__ = short_repr

    path: Path
    header: StoreHeader

    FORMAT = "limbeck-store"

    @classmethod
    def create(cls, path: Path, description: dict[str, Any]) -> Store:
        """Open the store at `path`, or create one.

        description: what the experts depend on, JSON-able; two descriptions that differ never share a store. The
            conditions under `computed` may differ: call `require_conditions` before adding experts.
        Raises UserError if the folder holds a store of another description, or anything else.
        """
        description = json.loads(json.dumps(description))  # as it will be read: lists, not tuples
        cls.check(path, description)
        if (path / "store.json").exists():
            return cls.open(path)
        header = StoreHeader(format=cls.FORMAT, version=1, key=content_key(description), **description)
        with write_errors(path):
            make_folder(path)
        with locked(path / LOCK, lambda other: None):
            cls.check(path, description)  # another process may have made a store there meanwhile
            if (path / "store.json").exists():
                return cls.open(path)
            store = cls(path, header)
            store._require_convex()
            write_json(path / "store.json", header.to_json())
        return store

    @classmethod
    def check(cls, path: Path, description: dict[str, Any]) -> None:
        """Raise UserError unless `path` is a store of this description, or can become one; this writes nothing."""
        require_writable(path)
        if has_record(path, "store.json", "a store of experts"):
            cls.open(path).require({name: value for name, value in description.items() if name != "computed"})

    @classmethod
    def open(cls, path: Path) -> Store:
        """Return the store in the folder `path`; UserError if there is none."""
        if not (path / "store.json").exists():
            raise UserError(f"{path} is not a store of experts: it has no store.json; make one with 'limbeck experts'.")
        header = read_record(path / "store.json", StoreHeader, cls.FORMAT)
        store = cls(path, header)
        store._require_convex()
        return store

    def _require_convex(self) -> None:
        form = self.header.expert.get("form", "convex")
        if form != "convex":
            raise UserError(
                f"{self.path} holds {quote(form)} paths, which limbeck does not support any more; train new experts."
            )

    def require(self, description: dict[str, Any]) -> None:
        """Raise UserError unless the header agrees with `description`; it names the first difference.

        Headers of an earlier version contain only the kind of preprocessing, not its numbers; then the kind counts.
        """
        own = self.header.to_json()
        for name, expected in json.loads(json.dumps(description)).items():
            recorded = own.get(name)
            if name == "preprocess" and "mean" not in self.header.preprocess:
                expected = {key: expected[key] for key in ("kind", "eps", "shape")}
            if recorded != expected:
                before, now = first_difference(recorded, expected)
                raise UserError(
                    f"the store {self.path} was made with {name} {before}, "
                    f"this run needs {now}; use another store or change the option."
                )

    def require_conditions(self, computed: dict[str, Any] | None) -> None:
        """Raise UserError unless this store's experts were computed under these conditions (`Task.conditions`)."""
        require_same_conditions(f"the store {self.path}", self.header.computed, computed)

    @property
    def layout(self) -> Layout:
        """Where the parameter tensors lie in the flat parameters (P,)."""
        layout = self.header.layout
        return Layout(tuple(layout.names), tuple(tuple(shape) for shape in layout.shapes))

    @property
    def config(self) -> ExpertConfig:
        """How the experts were trained; UserError where store.json does not say so."""
        return parse_record(self.path / "store.json", ExpertConfig, self.header.expert)

    def file(self, index: int) -> Path:
        """Return the path of an expert's file."""
        return self.path / f"expert-{index:04d}.safetensors"

    def indices(self) -> list[int]:
        """Return the indices of the experts that the store has, in order."""
        names = (re.fullmatch(r"expert-(\d+)\.safetensors", file.name) for file in self.path.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def missing(self, indices: Collection[int]) -> list[int]:
        """Return those of these experts that the store does not have, in order."""
        return sorted(set(indices) - set(self.indices()))

    def require_experts(self) -> list[int]:
        """Return the indices of the experts that the store has; UserError where it has none."""
        indices = self.indices()
        if not indices:
            raise UserError(f"the store {self.path} holds no finished experts; run 'limbeck experts' first.")
        return indices

    def try_claim(self, index: int) -> FileLock | None:
        """Claim an expert for this process, so that of several on one store only one computes it.

        Returns the lock, to be released once the expert is written; None where another process has claimed it. The
        claim ends with its process.
        """
        folder = self.path / ".locks"
        with write_errors(folder):
            folder.mkdir(exist_ok=True)
        with suppress(Locked):
            lock = try_lock(folder / f"{index:04d}")
            self._require_folder(lock)
            return lock
        return None

    def _require_folder(self, lock: FileLock) -> None:
        """Raise WriteError where the store is gone, and take back the folder that filelock has made in its place."""
        with write_errors(self.path):
            try:
                (self.path / "store.json").stat()
            except FileNotFoundError:
                lock.release()
                shutil.rmtree(self.path / ".locks", ignore_errors=True)
                with suppress(OSError):
                    self.path.rmdir()
                raise

    def write(self, index: int, expert: Expert) -> None:
        """Write one expert to its file; WriteError where the store is gone."""
        with write_errors(self.file(index)):
            self.path.joinpath("store.json").stat()  # else the folder would be made again, without the store
        tensors: dict[str, Tensor] = {}
        if expert.convex is not None:
            tensors |= {"waypoints": expert.convex.tensor(), "beta": expert.convex.beta}
        if expert.recorded is not None:
            tensors["points"] = expert.recorded.tensor()
        facts = {name: getattr(self.header, name) for name in ExpertFacts.model_fields}
        header = ExpertHeader(
            format="limbeck-expert",
            version=1,
            index=index,
            store=self.header.key,
            waypoint_epochs=None if expert.convex is None else list(expert.convex.epochs),
            validation=list(expert.validation),
            test=expert.test,
            **facts,
        )
        write_tensors(self.file(index), tensors, header.to_json())

    def read(self, index: int, lazy: bool = False) -> Expert:
        """Return one expert after verifying its file; UserError if that is damaged or belongs to another store.

        lazy: recorded points stay in the file and are read one at a time; only the verification reads all of them.
        """
        path = self.file(index)
        tensors, rows, content = open_tensors(path, "limbeck-expert", ("points",) if lazy else ())
        header = parse_record(path, ExpertHeader, content)
        if header.store != self.header.key:
            raise UserError(f"{path} belongs to another store; take it out of {self.path}.")
        self._check(path, header, {**tensors, **rows})
        convex: Convexified | None = None
        recorded = None
        if "waypoints" in tensors:
            waypoints, beta = tensors["waypoints"], tensors["beta"]
            if header.beta0:  # the schedule 'decreasing-authors', which is no longer offered
                waypoints, beta = start_at_zero(waypoints, beta, header.beta0)
            convex = Convexified(self.layout, tuple(header.waypoint_epochs or ()), waypoints, beta)
        points = rows.get("points") if lazy else tensors.get("points")
        if points is not None:
            recorded = Recorded(points)
        return Expert(convex, recorded, tuple(header.validation), header.test)

    def _check(self, path: Path, header: ExpertHeader, tensors: Mapping[str, Tensor | LazyRows]) -> None:
        """Raise UserError unless the tensors of an expert fit each other, its header, the layout and the store.

        They hold finite numbers in a type in which parameters are stored. Lazy ones are read once more, row by row.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        layout, epochs = self.layout, header.waypoint_epochs or []
        if len(header.validation) != self.config.epochs + 1 or any(a >= b for a, b in pairwise([-1, *epochs])):
            raise UserError(f"{path} is damaged: its epochs are not those of the store; delete it and make it again.")
        for name, tensor in tensors.items():
            is_stored = tensor.dtype in ([torch.float32] if name == "beta" else DTYPES.values())
            if not is_stored or not all(map(is_finite, [tensor] if isinstance(tensor, Tensor) else tensor)):
                raise UserError(f"{path} is damaged: its {printable(name, 40)} are no finite numbers; make it again.")
        if header.beta0 and len(epochs) != 2:  # as the paths had that were written with it
            raise UserError(f"{path} is damaged: a path of {len(epochs)} waypoints starts at 0; make it again.")
        expected: dict[str, tuple[int, ...]] = {}
        if "points" in shapes:
            expected["points"] = (len(header.validation), layout.count)
        if "points" not in shapes or "waypoints" in shapes:
            expected["waypoints"] = (len(epochs), layout.count)
            expected["beta"] = (epochs[-1] if epochs else 0, len(layout.names))
        for name, shape in expected.items():
            if shapes.get(name) != shape:
                raise UserError(f"{path} is damaged: its {name} are {shapes.get(name, 'missing')}, not {shape}.")

    def bytes_of(self, indices: Sequence[int]) -> int:
        """Return the size of these experts' files on disk, in bytes."""
        return sum(size_of(self.file(index)) for index in indices)

    def convexify(self, path: Path, **options: Any) -> Store:
        """Convexify the recorded experts of this store into a new one at `path`, and return that.

        options: fields of `ExpertConfig`: waypoints, waypoint_at, smoothing, schedule, dtype; else as the store says.
        Raises UserError if an expert is not recorded, and for options that do not fit.
        """
        indices = self.require_experts()
        # Where waypoints are asked for, the rest of what is stored of a path is as it is for experts to be trained.
        asks = {"waypoints", "waypoint_at"} & options.keys()
        own = self.config.model_dump(exclude={"waypoints", "waypoint_at", "smoothing"} if asks else set())
        config = ExpertConfig(**{**own, "keep": "convex", **options})
        config.waypoint_epochs()
        for index in indices:  # before the new store is created; one at a time, for memory
            self._read_recorded(index)
        target = Store.create(path, {**self.header.description(), "expert": config.model_dump(mode="json")})
        target.require_conditions(self.header.computed)

        def compute(index: int, check: CheckCancelled) -> Expert:
            return self.read_as(index, config)

        remove_unfinished(path)
        compute_missing(target, indices, compute)
        return target

    def read_as(self, index: int, config: ExpertConfig) -> Expert:
        """Return a recorded expert in the form in which `config` stores it: the bits that its training would give.

        Raises UserError where the expert is not recorded.
        """
        expert, path = self._read_recorded(index)
        points = torch.stack([path.at(epoch) for epoch in range(path.end + 1)])
        convex = None if config.keep == "recorded" else make_path(points, self.layout, config)
        recorded = None if config.keep == "convex" else Recorded(points.to(DTYPES[config.dtype]))
        return replace(expert, convex=convex, recorded=recorded)

    def _read_recorded(self, index: int) -> tuple[Expert, Recorded]:
        expert = self.read(index, lazy=True)
        if expert.recorded is None:
            remedy = "run 'limbeck experts --keep recorded'"
            raise UserError(f"{self.file(index)} holds no recorded trajectory; {remedy}.")
        return expert, expert.recorded
