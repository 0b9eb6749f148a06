"""The networks of an evaluation as works of an engine, one network each."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from limbeck.core.conditions import first_difference
from limbeck.core.disk import make_folder
from limbeck.core.errors import UserError
from limbeck.core.evaluation_records import EvaluationRow, EvaluationsRecord
from limbeck.core.events import Listener
from limbeck.core.files import content_key, write_json
from limbeck.core.folders import home_folder
from limbeck.core.record_files import read_record
from limbeck.core.unfinished import reserve
from limbeck.engines import Engine, Work, scatter
from limbeck.evaluation.counts import by_task, count_on_network
from limbeck.evaluation.record import FORMAT, make_record
from limbeck.evaluation.robustness import RobustnessConfig
from limbeck.evaluation.run import run_on_network
from limbeck.evaluation.sets import Evaluation, prepare_evaluation
from limbeck.task import announce_task


def scatter_networks(
    engine: Engine,
    evaluations: Sequence[Evaluation],
    options: Mapping[str, Any],
    seed: int = 0,
    threads: int | None = None,
    listen: Listener = lambda event: None,
) -> Iterator[list[EvaluationRow]]:
    """Yield what `run_on_networks` yields, in its order; the networks are trained on an engine.

    Its machines see LIMBECK_HOME at the same path, where the rows of a network wait until those before it are there.
    options: the arguments of `prepare_evaluation` that made `evaluations`, as JSON values.
    threads: of each network; by default those of this process, since bits may depend on them, and one on a GPU.
    Raises UserError or WorkError where networks failed, with the first sentence, after the rows of the others.
    """
    is_on_cpu = evaluations[0].task.device.type == "cpu"
    announce_task(evaluations[0].task, listen)
    home = home_folder().absolute()
    make_folder(home)
    with reserve(home / "evaluation") as folder:
        works: deque[Work] = deque()
        for network, sets in _by_network(evaluations).items():
            order: dict[str, Any] = {
                "options": dict(options),
                "network": network,
                "seed": seed,
                "conditions": sets[0].task.evaluation_conditions(),
                "file": str(folder / f"{len(works)}.json"),
            }
            key = content_key({**order, "file": ""})
            works.append(
                Work(
                    key=key,
                    name=network,
                    function=f"{__name__}:evaluate",
                    order=order,
                    threads=threads or (torch.get_num_threads() if is_on_cpu else 1),
                    errors=home / ".errors" / f"evaluation-{key}.txt",
                    gpus=0 if is_on_cpu else 1,
                    units=sum(map(count_on_network, by_task(sets))),
                    is_done=Path(order["file"]).exists,
                )
            )
        try:
            for work in scatter(engine, tuple(works), {"name": "evaluate", "unit": "network"}, listen):
                work.errors.unlink(missing_ok=True)
                while works and _file(works[0]).exists():
                    yield _read_rows(works.popleft())
        except (UserError, OSError, KeyboardInterrupt):
            yield from (_read_rows(work) for work in works if _file(work).exists())
            raise


def evaluate(order: Mapping[str, Any], listen: Listener) -> None:
    """In the process of a work: train and test its network on all sets, and write the rows into its file."""
    keywords: dict[str, Any] = order["options"]
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in keywords.items()
    }
    if options.get("robustness") is not None:
        options["robustness"] = RobustnessConfig(**options["robustness"])
    sets = _by_network(prepare_evaluation(**options))[order["network"]]
    before, now = first_difference(order["conditions"], sets[0].task.evaluation_conditions())
    if before != now:
        raise UserError(
            f"the machine that evaluates it has {now}, and the one of the command {before}: the two round differently; "
            "install the same versions on all machines, and take machines with the same processor features."
        )
    rows = [row for part in by_task(sets) for row in run_on_network(part, order["seed"], listen)]
    record = EvaluationsRecord(format=FORMAT, version=1, evaluations=[make_record(sets, rows, order["seed"])])
    write_json(Path(order["file"]), record.to_json())


def _by_network(evaluations: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """The evaluations by what rows call their network."""
    networks = dict.fromkeys(evaluation.network for evaluation in evaluations)
    return {name: [one for one in evaluations if one.network == name] for name in networks}


def _file(work: Work) -> Path:
    return Path(work.order["file"])


def _read_rows(work: Work) -> list[EvaluationRow]:
    (record,) = read_record(_file(work), EvaluationsRecord, FORMAT).evaluations
    return record.rows
