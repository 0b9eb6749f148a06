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

from limbeck.errors import UserError
from limbeck.files import content_key, read_json, read_tensors, write_json, write_tensors
from limbeck.synthetic import SyntheticSet

try:
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None  # type: ignore[assignment]

FORMAT = "limbeck-run"
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
        """Make the folder, or take up the run in it; UserError when it holds something else or another run.

        config: everything that determines the result; facts: what else belongs in the record (command, data, device).
        """
        run = cls(path)
        if (path / "run.json").exists():
            held = read_json(path / "run.json", FORMAT)["config"]
            if held != json.loads(json.dumps(config)):
                wanted = json.loads(json.dumps(config))
                name = next(key for key in {**held, **wanted} if held.get(key) != wanted.get(key))
                raise UserError(
                    f"{path} holds a run with another {name}; name a new folder with --out, or repeat its command."
                )
            return run
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} exists and is not a run of limbeck; name a new folder with --out.")
        head = {"format": FORMAT, "version": 1, "config": config, "key": content_key(config), "versions": versions()}
        write_json(path / "run.json", {**head, **facts, "created": datetime.now(UTC).isoformat(timespec="seconds")})
        return run

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes off this run: two that write the same files leave the run of neither.

        The lock ends with its process, however that ends. Raises UserError where another process holds it.
        """
        with (self.path / "run.json").open("r+b") as file:
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
