"""The training of experts as works of an engine, one expert each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.files import content_key
from limbeck.core.unfinished import ERRORS
from limbeck.data import load_data
from limbeck.engines import Engine, Work, scatter
from limbeck.experts.bucket import place_of
from limbeck.experts.handle import Experts
from limbeck.experts.share import ExpertPlace, are_claimed
from limbeck.experts.store import Store
from limbeck.jobs.job import prepare_experts


def scatter_experts(
    engine: Engine,
    experts: Experts,
    reading: Mapping[str, Any],
    options: Mapping[str, Any],
    threads: int | None = None,
    listen: Listener = lambda event: None,
) -> None:
    """Train the missing experts on an engine, whose machines see the store at the same path.

    reading, options: the arguments of `load_data` and `prepare_experts` that made `experts`, as JSON values.
    threads:          of each expert; by default one, and where bits depend on it those of this process.
    Raises UserError or WorkError where experts failed, with the first sentence.
    """
    if experts.task.ranks.size > 1:
        raise UserError("torchrun and --engine share the work in two different ways; use one of them.")
    missing, config = experts.missing(), experts.config
    if not missing:
        return
    store = experts.store
    place = place_of(store)
    store.require_conditions(experts.task.conditions())
    needed = torch.get_num_threads() if "threads" in experts.task.conditions() else 1
    order = {
        "reading": dict(reading),
        "options": {**options, "out": str(store.path.absolute())},
        "is_on_disk": isinstance(place, Store),
    }
    works = [
        Work(
            key=content_key({"store": store.header.key, "path": str(store.path), "index": index}),
            name=f"expert {index + 1}",
            function=f"{__name__}:train",
            order={**order, "index": index},
            threads=threads or needed,
            errors=store.path / ERRORS / f"{index:04d}.txt",
            gpus=0 if experts.task.device.type == "cpu" else 1,
            units=config.epochs,
            is_done=partial(_is_done, place, index),
            is_claimed=partial(are_claimed, store, [index]),
        )
        for index in missing
    ]
    for _ in scatter(engine, works, {"name": "experts", "unit": "epoch"}, listen):
        pass  # an expert is in its store


def train(order: Mapping[str, Any], listen: Listener) -> None:
    """In the process of a work: train its expert."""
    store = Path(order["options"]["out"])
    if order["is_on_disk"] and not (store / "store.json").exists():
        raise UserError(
            f"{store} is not the store of the command, which has made one there; mount the folder that the machines "
            "have in common, or name one with --out."
        )
    keywords: dict[str, Any] = order["reading"]
    reading: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in keywords.items()
    }
    experts = prepare_experts(load_data(**reading), **order["options"])
    experts.train(listen, [order["index"]])


def _is_done(place: ExpertPlace, index: int) -> bool:
    return not place.missing([index])
