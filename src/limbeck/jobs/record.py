"""The run folder: the record of a run, a log of one JSON line a measurement, and the state to resume it bit for bit."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import JsonValue
from torch import Tensor

from limbeck.core.aliases import old_config, rename_options
from limbeck.core.conditions import first_difference, require_same_conditions
from limbeck.core.disk import make_folder, write_errors
from limbeck.core.errors import UserError
from limbeck.core.files import content_key, has_record, require_new_folder, write_json
from limbeck.core.json_text import parse_json
from limbeck.core.locks import Locked, locked
from limbeck.core.record_files import parse_record, read_record
from limbeck.core.records import LogLine, LoopProgress, ResultsRecord, RunRecord, StateHeader
from limbeck.core.set_records import SetHeader
from limbeck.core.tensors import is_finite, read_header, read_tensors, write_tensors
from limbeck.core.text import printable
from limbeck.core.unfinished import LOCK, remove_unfinished
from limbeck.jobs.config import JobConfig
from limbeck.synthetic.set import SyntheticSet

FORMAT = "limbeck-run"
RESULTS = "limbeck-results"
STATE = "limbeck-state"


L = TypeVar("L", bound=LogLine)


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    packages = ("limbeck", "torch", "numpy", "scikit-learn", "safetensors", "pydantic")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


@dataclass(frozen=True)
class RunFolder:
    """A run folder, to read and to write."""

    path: Path

    @classmethod
    def begin(cls, path: Path, record: RunRecord) -> RunFolder:
        """Make the folder and write run.json, or open the run in it; UserError where it holds something else.

        Call this while the folder is locked: of two processes that begin a run at once, one would replace the other's.
        """
        run = cls(path)
        if run.has_begun():
            return run
        require_new_folder(path, "a run of limbeck")
        make_folder(path)
        write_json(path / "run.json", record.to_json())
        return run

    def read(self) -> RunRecord:
        """The record in run.json; UserError where it is damaged, or of another version."""
        return read_record(self.path / "run.json", RunRecord, FORMAT)

    def has_begun(self) -> bool:
        """Whether the folder holds a run, finished or not."""
        return (self.path / "run.json").exists()

    def config(self) -> dict[str, Any]:
        """The recorded configuration; empty before the run has begun."""
        if not self.has_begun():
            return {}
        config: dict[str, Any] = dict(self.read().config)
        for name in ("iterations", "validate_every"):
            if not isinstance(config.get(name, 0), int | None):
                raise UserError(f"{self.path / 'run.json'} is damaged: {name} is no whole number; restore it.")
        if config.get("validate_every", 0) is None and "iterations" in config:  # recorded before the default was
            config["validate_every"] = max(1, config["iterations"] // 10)
        return config

    def has_steps_left(self, config: dict[str, Any]) -> bool:
        """Whether the distillation that `config` asks for has not ended yet."""
        path = self.path / "set-last.safetensors"
        if not path.exists():
            return True
        steps = parse_record(path, SetHeader, read_header(path)).provenance.step
        iterations: int = config.get("iterations", 0)
        return (steps or 0) < iterations

    def is_finished(self, config: dict[str, Any]) -> bool:
        """Whether there are results of exactly this configuration."""
        if not (self.path / "results.json").exists():
            return False
        key = read_record(self.path / "results.json", ResultsRecord, RESULTS).key or content_key(self.config())
        return key in (content_key(config), content_key(old_config(config)))

    def check(self, record: RunRecord) -> None:
        """Check that the folder is free, or that its run can go on as `record` says; nothing is written.

        A run goes on to its end, to more iterations than it had, or to another evaluation. Raises UserError where
        anything else differs, and where steps are left and the conditions or the validations are not those of the
        earlier steps.
        """
        if not self.has_begun():
            require_new_folder(self.path, "a run of limbeck")
            return
        earlier, config = self.read(), dict(record.config)
        recorded = rename_options(self.config(), config)
        self._require_same(recorded, config)
        if self.has_steps_left(config) and earlier.validation is not None and earlier.validation != record.validation:
            before, now = first_difference(earlier.validation, record.validation)
            raise UserError(
                f"{self.path} was validated with {before}, not {now}, and its distillation has not ended: repeat "
                "its command, or name a new folder with --out."
            )
        before, now = (_measure(one.validation) for one in (earlier, record))
        if config.get("iterations") and earlier.validation is not None and before != now:
            raise UserError(
                f"the step of {self.path} was chosen by {before}, not by {now}, and its distillation has ended: repeat "
                "its command, or name a new folder with --out."
            )
        if self.has_steps_left(config) or not (self.path / "results.json").exists():
            require_same_conditions(str(self.path), earlier.computed, record.computed)

    def resume(self, record: RunRecord) -> None:
        """Check that the run can go on as `record` says, and record its iterations; UserError as `check` raises it."""
        self.check(record)
        config = dict(record.config)
        recorded = rename_options(self.config(), config)
        if config.get("iterations") != recorded.get("iterations"):
            self.record({**recorded, "iterations": config["iterations"]})

    def _require_same(self, recorded: dict[str, Any], config: dict[str, Any]) -> None:
        fewer = config.get("iterations", 0) < recorded.get("iterations", 0)
        # the options that a user gives first: what is derived from them differs with them, as the split with the seed
        names = dict.fromkeys(("seed", "data", "method", *JobConfig.model_fields, *recorded, *config))
        for name in names:
            if recorded.get(name) == config.get(name) or name == "eval" or (name == "iterations" and not fewer):
                continue
            if name == "data":  # these are fingerprints, which say nothing to a person
                raise UserError(
                    f"{self.path} holds a run on other images or splits, of {printable(self.read().data.name, 60)}; "
                    "repeat its command, or name a new folder with --out."
                )
            before, now = first_difference(recorded.get(name), config.get(name))
            option = "a method whose source code has the hash" if name == "code" else printable(name, 30)
            hint = ""
            if name != "iterations" and config.get("iterations") != recorded.get("iterations"):
                hint = " A run can go on to more iterations only with its other options."
            difference = f"with {option} {before}, not {now}"
            if name not in config:  # an option that has its default is left out, if runs were recorded before it came
                difference = f"with {option} {before}, and this command leaves it at its default"
            elif name not in recorded:
                difference = f"without {option} {now}"
            raise UserError(
                f"{self.path} holds a run {difference}; repeat its command, or name a new folder with --out.{hint}"
            )

    def record(self, config: dict[str, Any]) -> None:
        """Change the configuration in run.json, where it is another."""
        earlier = self.read()
        if earlier.config != config:
            changed = earlier.model_copy(update={"config": config, "key": content_key(config)})
            write_json(self.path / "run.json", changed.to_json())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run against other processes, inside a `with` block: two that write the same files would damage it.

        The folder is made where it is missing, and what dead processes left unfinished in it is removed. The lock ends
        with its process, however that ends. Raises UserError where another process holds it, and names that one, and
        where the folder holds something else.
        """
        if not has_record(self.path, "run.json", "a run of limbeck"):
            make_folder(self.path)
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path / LOCK))
            except Locked as other:
                raise UserError(
                    f"{other} is at work on {self.path}; wait for it, or name a new folder with --out."
                ) from None
            for folder in (self.path, self.path / "previews"):
                remove_unfinished(folder)
            yield

    def make_previews(self) -> Path:
        """Make the folder of pictures where it is missing, and return it; WriteError where the run folder is gone."""
        path = self.path / "previews"
        with write_errors(path):
            path.mkdir(exist_ok=True)
        return path

    def line(self, line: LogLine) -> None:
        """Append one measurement, on a line of its own even where a crash cut off the last one."""
        path = self.path / "log.jsonl"
        with write_errors(path), path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
            whole = file.read(1) in (b"", b"\n")
            file.write((("" if whole else "\n") + json.dumps(line.to_json()) + "\n").encode())

    def lines(self, kind: type[L]) -> list[L]:
        """The measurements of one kind so far; a line that a crash cut off, or that is damaged, is skipped."""
        path, lines = self.path / "log.jsonl", []
        for text in path.read_bytes().splitlines() if path.exists() else ():
            with suppress(ValueError):
                lines.append(kind.model_validate(parse_json(text, finite=False)))
        return lines

    def save_state(
        self,
        synthetic: SyntheticSet,
        optimisers: Sequence[torch.optim.Optimizer],
        step: int,
        progress: LoopProgress,
        hooks: Mapping[str, Tensor],
    ) -> None:
        """Write the state of the outer loop: raw parameters, optimisers, tensors of hooks. It replaces the last one."""
        tensors = {f"set.{name}": tensor for name, tensor in synthetic.state().items()}
        tensors |= {f"extra.{name}": tensor for name, tensor in hooks.items()}
        scalars: dict[str, JsonValue] = {}
        for i, optimiser in enumerate(optimisers):
            for j, slots in optimiser.state_dict()["state"].items():
                for name, value in slots.items():
                    if isinstance(value, Tensor):
                        tensors[f"optimiser.{i}.{j}.{name}"] = value
                    elif value is not None:
                        scalars[f"{i}.{j}.{name}"] = value
        header = StateHeader(format=STATE, version=1, step=step, scalars=scalars, more=progress)
        write_tensors(self.path / "state.safetensors", tensors, header.to_json())

    def load_state(
        self, synthetic: SyntheticSet, optimisers: Sequence[torch.optim.Optimizer]
    ) -> tuple[StateHeader | None, dict[str, Tensor]]:
        """Restore the last saved state in place; returns its header, None without one, and the tensors of hooks."""
        if not (self.path / "state.safetensors").exists():
            return None, {}
        tensors, content = read_tensors(self.path / "state.safetensors", STATE)
        header = parse_record(self.path / "state.safetensors", StateHeader, content)
        for name, tensor in synthetic.state().items():
            stored = tensors.get(f"set.{name}")
            if stored is None or (stored.shape, stored.dtype) != (tensor.shape, tensor.dtype):
                raise UserError(f"{self.path / 'state.safetensors'} is damaged: it lacks the set's {name}; delete it.")
        labels, classes = tensors["set.labels"], synthetic.labels
        if not labels.is_floating_point() and (labels.min() < classes.min() or labels.max() > classes.max()):
            raise UserError(f"{self.path / 'state.safetensors'} is damaged: its labels are no classes; delete it.")
        synthetic.load({name.removeprefix("set."): t for name, t in tensors.items() if name.startswith("set.")})
        for i, optimiser in enumerate(optimisers):
            slots: dict[int, dict[str, Any]] = {}
            for key, value in [*tensors.items(), *((f"optimiser.{k}", v) for k, v in header.scalars.items())]:
                if key.startswith(f"optimiser.{i}."):
                    _, _, j, name = key.split(".", 3)
                    slots.setdefault(int(j), {})[name] = value
            self._check_slots(optimiser, slots)
            optimiser.load_state_dict({**optimiser.state_dict(), "state": slots})
        return header, {name.removeprefix("extra."): t for name, t in tensors.items() if name.startswith("extra.")}

    def _check_slots(self, optimiser: torch.optim.Optimizer, slots: Mapping[int, Mapping[str, Any]]) -> None:
        """Raise UserError unless each parameter's slots are numbers, or tensors of its shape, and finite."""
        parameters = dict(enumerate(p for group in optimiser.param_groups for p in group["params"]))
        for place, values in slots.items():
            shape = None if place not in parameters else parameters[place].shape
            for name, value in values.items():
                is_tensor = isinstance(value, Tensor) and value.shape in (shape, ()) and value.is_floating_point()
                is_number = isinstance(value, int | float)
                if shape is None or not (is_number or (is_tensor and is_finite(value))):
                    path = self.path / "state.safetensors"
                    raise UserError(
                        f"{path} is damaged: {printable(name, 40)} of an optimiser does not fit; delete it."
                    )


def _measure(validation: dict[str, JsonValue] | None) -> str:
    """What the step of a run is chosen by, in words."""
    return "balanced accuracy" if (validation or {}).get("choose_by") == "balanced" else "plain accuracy"
