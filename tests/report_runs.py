"""Run folders as the report reads them, written by hand, and a parser of pages."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image

META: dict[str, Any] = {
    "format": "limbeck-run",
    "version": 1,
    "command": "limbeck distill digits --ipc 1",
    "config": {"ipc": 1, "student": {"steps": 10, "lr": 0.02}},
    "data": {
        "name": "digits",
        "fingerprint": "sha256:abc",
        "classes": ["zero", "one"],
        "shape": [1, 8, 8],
        "counts": {"train": [700, 594], "validation": [7, 8], "test": [36, 37]},
        "notes": ["a note"],
    },
    "versions": {"limbeck": "0.1.0", "torch": "2.13.0"},
    "device": "cpu",
    "threads": 2,
    "created": "2026-05-04T10:20:30Z",
}
EXPERTS: dict[str, Any] = {
    "count": 2,
    "epochs": 3,
    "waypoints": 2,
    "bytes": {"experts": 1000, "recorded_would_be": 15500, "parameters": 400},
    "validation_per_epoch": [[0.1, 0.5, 0.8, 0.9], [0.1, 0.6, 0.8, 0.94]],
    "recorded_path": None,
    "convexified_path": {"t": [0, 1.5, 3], "accuracy": [[0.1, 0.6, 0.9], [0.1, 0.5, 0.92]]},
}


def make_row(
    name: str, which: str | None, mean: float | None, std: float | None = 0.01, **fields: Any
) -> dict[str, Any]:
    row = {"set": name, "which": which, "model": "convnet", "split": "test", "n": 5}
    return {**row, "accuracy_mean": mean, "accuracy_std": std, **fields}


RESULTS: dict[str, Any] = {
    "method": "mct",
    "ipc": 1,
    "results": [
        make_row("distilled", "last", 0.884, 0.009),
        make_row("distilled", "chosen", 0.889, 0.0068, step=20),
        make_row("random", None, 0.67, 0.021),
        make_row("full", None, 0.971, None),
    ],
    "seconds": {"experts": 41.2, "distill": 133.0},
    "bytes": {"experts": 1000, "set": 555},
}
LOG = [{"event": "step", "step": s, "loss": 1 / s, "lr": 0.01 * s, "seconds": s} for s in range(1, 31)]
VALIDATION = {"event": "validate", "step": 20, "which": "distilled", "accuracy_mean": 0.7, "accuracy_std": 0.01, "n": 2}


def make_minimal_run(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({**META, **changes}))
    return folder


def make_complete_run(folder: Path, **changes: Any) -> Path:
    make_minimal_run(folder, **changes)
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in [*LOG, VALIDATION]))
    (folder / "experts.json").write_text(json.dumps(EXPERTS))
    (folder / "results.json").write_text(json.dumps(RESULTS))
    (folder / "previews").mkdir(exist_ok=True)
    for name in ("initial", "chosen", "last"):
        Image.new("RGBA", (30, 20), (200, 10, 10, 255)).save(folder / "previews" / f"{name}.png")
    for name in ("random", "kmeans"):
        Image.new("RGBA", (30, 20), (10, 10, ord(name[0]), 255)).save(folder / "previews" / f"{name}.png")
    for step in (0, 10, 20, 30):
        Image.new("RGBA", (9, 4), (step, 10, 10, 255)).save(folder / "previews" / f"step-{step:06}.png")
    for name in ("set-last", "set-chosen"):
        (folder / f"{name}.safetensors").write_bytes(b"x" * 1234)
    return folder


class ParsedPage(HTMLParser):
    """Tags, addresses and text of a page, without styles and SVG; fails if a tag is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(page)
        self.words = " ".join(self.words.replace("\u00a0", " ").split())
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data", "action")]
        if tag in ("td", "th", "dt", "dd"):
            self.words += " "
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "svg", "script"} & set(self.open):
            self.words += data


def parse_page(path: Path) -> ParsedPage:
    return ParsedPage(path.read_text(encoding="utf-8"))
