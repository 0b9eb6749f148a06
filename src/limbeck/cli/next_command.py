"""The one command to type next: what a command that printed its result ends with."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.cli.common import Reading

Next = Callable[[Any, Mapping[str, Any], Sequence[str]], str | None]
"""(options, result, words of the command line) -> the words after `limbeck`; None where nothing suggests itself."""


def _reading(args: Any) -> str:
    """The options by which the same images are read again."""
    words = []
    for name, field in [(name, type(args).model_fields.get(name)) for name in (*Reading.model_fields, "seed")]:
        value = None if field is None else getattr(args, name)
        if field is not None and value != field.default:
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            words += [
                f"--{name.replace('_', '-')}",
                *(f"{part:g}" if isinstance(part, float) else str(part) for part in values),
            ]
    return "".join(f" {shlex.quote(word)}" for word in words)


OF_DESCRIPTION = ("--picture", "--near-duplicates", "--within")
"""Options with a value that info, doctor and estimate have, and distill has not."""


def _distill_alike(words: Sequence[str], iterations: int | None = None) -> str:
    """The words of a command that describes a data set or a job, as those of the one that distils it.

    iterations: Takes the place of the number of outer steps in the words.
    """
    left_out = OF_DESCRIPTION if iterations is None else (*OF_DESCRIPTION, "--iterations")
    own, skips = [], False
    for word in words:
        if not skips and word.partition("=")[0] not in (*left_out, "--debug"):
            own.append(word)
        skips = word in left_out
    return f"distill {shlex.join(own)}" + ("" if iterations is None else f" --iterations {iterations}")


def _beside(path: str, addition: str) -> str:
    return shlex.quote(f"{Path(path).with_suffix('')}-{addition}")


def _after_export(args: Any, result: Mapping[str, Any], words: Sequence[str]) -> str | None:
    """Describe the tensors; a portable export needs no limbeck any more, and its card says how to go on."""
    tensors = [name for name in result["names"] if name.startswith(("images", "replay_", "waypoint_"))]
    return f"info {shlex.quote(str(Path(args.out) / tensors[0]))}" if tensors else None


def _after_evaluate(args: Any, result: Mapping[str, Any], words: Sequence[str]) -> str:
    what = shlex.quote(args.what)
    if "recorded" in result and "report" not in result:
        return f"report {what}"
    return f"export {what} --to npz --out {_beside(args.what, 'npz')}"


def _after_info(args: Any, result: Mapping[str, Any], words: Sequence[str]) -> str | None:
    place = result.get("run") or result.get("store") or args.source  # of which `args.source` may be a part
    source = shlex.quote(place)
    imports = {f"limbeck {name}": name for name in ("import-set", "import-experts")}
    if result.get("next") in imports:
        suffix = "set.safetensors" if result["next"].endswith("set") else "store"
        return f"{imports[result['next']]} {source} DATA --out {_beside(args.source, suffix)}"
    if result["kind"] == "run" and not result["finished"]:
        return str(result["command"]).removeprefix("limbeck ") or None
    by_kind = {
        "data set": _distill_alike(words),
        "store of experts": f"inspect {source} --out {_beside(place, 'inspection')}",
        "distilled set": f"evaluate {source}",
        "run": f"report {source}",
    }
    return by_kind.get(result["kind"])


def _with_experts(args: Any, store: str) -> str:
    return f"distill {shlex.quote(args.data)}{_reading(args)} --experts {shlex.quote(store)}"


def _after_distill(args: Any, result: Mapping[str, Any], words: Sequence[str]) -> str:
    return f"export {shlex.quote(result['run'])} --to npz --out {_beside(result['run'], 'npz')}"


NEXT: dict[str, Next] = {
    "demo": _after_distill,
    "distill": _after_distill,
    "estimate": lambda args, result, words: _distill_alike(words, result.get("iterations")),
    "doctor": lambda args, result, words: _distill_alike(words) if "estimate" in result else None,
    "experts": lambda args, result, _: _with_experts(args, result["store"]),
    "convexify": lambda args, result, _: (
        f"inspect {shlex.quote(result['store'])} --out {_beside(result['store'], 'inspection')}"
    ),
    "evaluate": _after_evaluate,
    "info": _after_info,
    "import-experts": lambda args, result, _: _with_experts(args, result["store"]),
    "import-set": lambda args, result, _: f"evaluate {shlex.quote(result['set'])}",
    "export": _after_export,
}
ENDS = (
    *("methods", "compare", "inspect", "report", "table", "cache", "check", "presets", "sets", "study", "completion"),
    "watch",
)
"""Commands that end something, or list what there is."""


def next_command(name: str, args: Any, result: Mapping[str, Any], words: Sequence[str]) -> str | None:
    """The command to type after the command `name`, or None.

    >>> from types import SimpleNamespace
    >>> next_command("distill", SimpleNamespace(), {"run": "runs/my digits"}, [])
    "limbeck export 'runs/my digits' --to npz --out 'runs/my digits-npz'"
    """
    text = NEXT[name](args, result, words) if name in NEXT else None
    return None if text is None else f"limbeck {text}"
