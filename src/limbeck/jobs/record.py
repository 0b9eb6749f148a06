"""The run folder: what made a run, one JSON line per measurement, and enough to take it up again bit for bit."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.core.aliases import old_config, rename_options
from limbeck.core.conditions import first_difference, require_same_conditions
from limbeck.core.errors import UserError
from limbeck.core.files import content_key, read_header, read_json, read_tensors, write_json, write_tensors
from limbeck.synthetic.set import SyntheticSet

try:
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None  # type: ignore[assignment]

FORMAT = "limbeck-run"
RESULTS = "limbeck-results"
STATE = "limbeck-state"


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    packages = ("limbeck", "torch", "numpy", "scikit-learn", "safetensors", "pydantic")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


@dataclass(frozen=True)
class Run:
    """A run folder that is open for writing."""

    path: Path

    @classmethod
    def begin(cls, path: Path, config: dict[str, Any], facts: dict[str, Any]) -> Run:
        """Make the folder, or open the run in it, for `take_up`; UserError when it holds something else.

        config: everything that determines the result; facts: what else belongs in the record, among it what `take_up`
        compares before further steps: `computed`, the conditions, and `validation`, how sets are validated.
        """
        run = cls(path)
        if run.has_begun():
            return run
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} exists and is not a run of limbeck; name a new folder with --out.")
        head = {"format": FORMAT, "version": 1, "config": config, "key": content_key(config), "versions": versions()}
        write_json(path / "run.json", {**head, **facts, "created": datetime.now(UTC).isoformat(timespec="seconds")})
        return run

    def has_begun(self) -> bool:
        """Whether the folder holds a run, finished or not."""
        return (self.path / "run.json").exists()

    def config(self) -> dict[str, Any]:
        """The recorded configuration; empty before the run has begun."""
        if not self.has_begun():
            return {}
        config: dict[str, Any] = read_json(self.path / "run.json", FORMAT)["config"]
        if config.get("validate_every", 0) is None and "iterations" in config:  # recorded before the default was
            config["validate_every"] = max(1, config["iterations"] // 10)
        return config

    def steps_left(self, config: dict[str, Any]) -> bool:
        """Whether the distillation that `config` asks for has not ended yet."""
        path = self.path / "set-last.safetensors"
        if not path.exists():
            return True
        steps: int = read_header(path)["provenance"]["step"]
        iterations: int = config.get("iterations", 0)
        return steps < iterations

    def is_finished(self, config: dict[str, Any]) -> bool:
        """Whether there are results of exactly this configuration."""
        if not (self.path / "results.json").exists():
            return False
        key = read_json(self.path / "results.json", RESULTS).get("key", content_key(self.config()))
        return key in (content_key(config), content_key(old_config(config)))

    def take_up(self, config: dict[str, Any], facts: dict[str, Any]) -> None:
        """Let the run go on as `config` asks: to its end, to more iterations than it had, or to another evaluation.

        Raises UserError where anything else differs, and where steps are left and the conditions or the validations are
        not those of the earlier steps. More iterations are recorded at once.
        """
        head, wanted = read_json(self.path / "run.json", FORMAT), json.loads(json.dumps(config))
        recorded = rename_options(self.config(), wanted)
        self._require_same(recorded, wanted)
        if self.steps_left(wanted):
            before, now = head.get("validation"), facts.get("validation")
            if before is not None and before != now:
                left, right = first_difference(before, now)
                raise UserError(
                    f"{self.path} was validated with {left}, not {right}, and its distillation has not ended: repeat "
                    "its command, or name a new folder with --out."
                )
        if self.steps_left(wanted) or not (self.path / "results.json").exists():
            require_same_conditions(str(self.path), head.get("computed"), facts.get("computed"))
        if wanted.get("iterations") != recorded.get("iterations"):
            self.record({**recorded, "iterations": wanted["iterations"]})

    def _require_same(self, recorded: dict[str, Any], wanted: dict[str, Any]) -> None:
        fewer = wanted.get("iterations", 0) < recorded.get("iterations", 0)
        for name in {**recorded, **wanted}:
            if recorded.get(name) == wanted.get(name) or name == "eval" or (name == "iterations" and not fewer):
                continue
            before, now = first_difference(recorded.get(name), wanted.get(name))
            hint = ""
            if name != "iterations" and wanted.get("iterations") != recorded.get("iterations"):
                hint = f" A run can go on to more iterations only with its other options; {name} was {before}."
            raise UserError(
                f"{self.path} holds a run with {name} {before}, not {now}; repeat its command, or name a new folder "
                f"with --out.{hint}"
            )

    def record(self, config: dict[str, Any]) -> None:
        """Change the configuration in run.json, where it is another."""
        head = read_json(self.path / "run.json", FORMAT)
        if head["config"] != json.loads(json.dumps(config)):
            write_json(self.path / "run.json", {**head, "config": config, "key": content_key(config)})

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes off this run: two that write the same files leave the run of neither.

        The lock ends with its process, however that ends. It is on log.jsonl, the one file that is never replaced.
        Raises UserError where another process holds it.
        """
        with (self.path / "log.jsonl").open("ab") as file:
            if fcntl is not None:  # on Windows there is none, and no such protection
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UserError(
                        f"another process is at work on {self.path}; wait for it, or name a new folder with --out."
                    ) from None
            yield

    def line(self, event: str, **fields: Any) -> None:
        """Append one measurement, on a line of its own even where a crash cut off the last one."""
        with (self.path / "log.jsonl").open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
            whole = file.read(1) in (b"", b"\n")
            file.write((("" if whole else "\n") + json.dumps({"event": event, **fields}) + "\n").encode())

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The measurements of one kind so far; a line that a crash cut off is passed over."""
        found = []
        if (self.path / "log.jsonl").exists():
            for text in (self.path / "log.jsonl").read_text(encoding="utf-8").splitlines():
                try:
                    value = json.loads(text)
                except json.JSONDecodeError:
                    continue
                if value.get("event") == event:
                    found.append(value)
        return found

    def save_state(
        self,
        synthetic: SyntheticSet,
        optimisers: Sequence[torch.optim.Optimizer],
        step: int,
        more: dict[str, Any],
        extra: Mapping[str, Tensor],
    ) -> None:
        """Where the outer loop is: raw parameters, optimisers, `more`, `extra` tensors; replaces the state before."""
        tensors = {f"set.{name}": tensor for name, tensor in synthetic.state().items()}
        tensors |= {f"extra.{name}": tensor for name, tensor in extra.items()}
        scalars: dict[str, Any] = {}
        for i, optimiser in enumerate(optimisers):
            for j, slots in optimiser.state_dict()["state"].items():
                for name, value in slots.items():
                    if isinstance(value, Tensor):
                        tensors[f"optimiser.{i}.{j}.{name}"] = value
                    elif value is not None:
                        scalars[f"{i}.{j}.{name}"] = value
        header = {"format": STATE, "version": 1, "step": step, "scalars": scalars, "more": more}
        write_tensors(self.path / "state.safetensors", tensors, header)

    def load_state(
        self, synthetic: SyntheticSet, optimisers: Sequence[torch.optim.Optimizer]
    ) -> tuple[int, dict[str, Any], dict[str, Tensor]]:
        """Restore the last saved state in place; returns steps done, `more` and `extra`, 0 and empty without one."""
        if not (self.path / "state.safetensors").exists():
            return 0, {}, {}
        tensors, header = read_tensors(self.path / "state.safetensors", STATE)
        synthetic.load({name.removeprefix("set."): t for name, t in tensors.items() if name.startswith("set.")})
        for i, optimiser in enumerate(optimisers):
            slots: dict[int, dict[str, Any]] = {}
            for key, value in [*tensors.items(), *((f"optimiser.{k}", v) for k, v in header["scalars"].items())]:
                if key.startswith(f"optimiser.{i}."):
                    _, _, j, name = key.split(".", 3)
                    slots.setdefault(int(j), {})[name] = value
            optimiser.load_state_dict({**optimiser.state_dict(), "state": slots})
        extra = {name.removeprefix("extra."): t for name, t in tensors.items() if name.startswith("extra.")}
        return int(header["step"]), dict(header["more"]), extra
