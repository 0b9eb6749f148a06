"""The command that tests a distilled set."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, create_model
from pydantic.fields import FieldInfo
from tyro.conf import FlagCreatePairsOff, Positional, arg

from limbeck.cli.common import (
    DATA,
    SWITCH,
    Command,
    Device,
    OptionGroup,
    Options,
    Reading,
    WithEngine,
    WithEstimate,
    announce,
    load_keywords,
)
from limbeck.core.errors import UserError
from limbeck.core.evaluation_records import EvaluationRow, ScoreRow
from limbeck.core.events import Listener
from limbeck.core.ranges import Count, Seed, Size
from limbeck.engines import ENGINES, Engine
from limbeck.evaluation.protocol import EvalConfig
from limbeck.evaluation.record import make_record, merge_record
from limbeck.evaluation.regression import WORDS
from limbeck.evaluation.robustness import RobustnessOptions, make_robustness
from limbeck.evaluation.run import run_evaluations, run_on_networks, run_regressions
from limbeck.evaluation.scores import run_scores
from limbeck.evaluation.sets import OWN_NETWORK, Evaluation, prepare_evaluation
from limbeck.jobs.estimate import estimate_evaluation, estimate_scores
from limbeck.jobs.evaluation_works import scatter_networks
from limbeck.networks.registry import ModelConfig
from limbeck.report.page import write_report
from limbeck.task import Precision


def _make_optional(names: Iterable[str]) -> dict[str, Any]:
    """Fields of `EvalConfig` that may be None, which stands for the protocol's own value."""
    fields = EvalConfig.model_fields
    return {
        name: (_with_range(fields[name]) | None, Field(None, description=fields[name].description)) for name in names
    }


def _with_range(field: FieldInfo) -> Any:
    """The type of a field with the range that pydantic keeps beside it."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


ALONE = ("networks", "epochs", "protocol")  # which are options of the command itself
ProtocolChanges: Any = create_model(
    "ProtocolChanges",
    __base__=OptionGroup,
    __doc__="Options that differ from the protocol's.",
    **_make_optional(name for name in EvalConfig.model_fields if name not in ALONE),
)


class Evaluate(Reading, Device, Options, WithEstimate, WithEngine):
    """Train fresh networks on a distilled set and measure their test accuracy."""

    what: Annotated[Positional[str], arg(metavar="SET")]
    """A run folder or the file of a distilled set."""
    data: Annotated[str | None, DATA] = None
    """The data to test on; the default is where the set came from."""
    networks: Annotated[str | None, arg(metavar="NAME,NAME")] = None
    """Networks to train on the set, on random and k-means images, and on all images, with a step size of their own.
    Each has its own defaults, or options after its name (resnet18:width=16:norm=batch), and the name of the set's own
    network stands for the one that the set was distilled with."""
    num_networks: Size | None = None
    """How many fresh networks to train; the default is as many as when the set was made."""
    which: Literal["both", "last", "chosen"] = "both"
    """Which sets of a run folder; one takes half of the time."""
    protocol: Literal["field", "field-max", "ddranking", "regression", "quick"] | None = None
    """How networks are trained and scored; the default is as when the set was made."""
    scores: Annotated[FlagCreatePairsOff[bool], SWITCH] = False
    """Also compute DD-Ranking's scores: HLR, IOR, LRS and ARS, of the set and of k-means images."""
    attack: Annotated[str | None, arg(metavar="NAME,NAME")] = None
    """Also test the networks, and those of random and k-means images, under these attacks: fgsm, pgd."""
    corruptions: Annotated[FlagCreatePairsOff[bool], SWITCH] = False
    """Also test them under common corruptions: noise, blur, brightness, contrast, pixelation and JPEG."""
    epochs: Count | None = None
    """Passes over the set; the default is as many as the protocol says."""
    seed: Seed = 0
    """The seed of the networks."""
    precision: Precision = "float32"
    """Number format of activations in training; tf32 and bfloat16 save time on GPUs, and only there."""
    eval: ProtocolChanges = ProtocolChanges()
    robustness: RobustnessOptions = RobustnessOptions()
    model: ModelConfig = OWN_NETWORK
    """The network to train; 'same' is the one that the set was distilled with, changed by the options given."""


def run_evaluate(args: Evaluate, listen: Listener) -> Any:
    """Prepare the evaluation, say how long it will take, run it, and record it in the run folder; returns its rows."""
    if args.engine != "local" and not args.networks:
        raise UserError(
            f"--engine {args.engine} shares the networks of --networks, each a process; name several (--networks "
            "same,mlp), or leave out --engine."
        )
    with ENGINES[args.engine](args.address, None) as engine:
        return _evaluate(args, engine, listen)


def _evaluate(args: Evaluate, engine: Engine, listen: Listener) -> dict[str, Any]:
    robustness = make_robustness(args.attack, args.corruptions, args.robustness)
    options: dict[str, Any] = {
        **{name: getattr(args, name) for name in ("which", "data", "protocol", "device", "precision")},
        "networks": args.networks or (),
        "changes": {**dict(args.eval), "networks": args.num_networks, "epochs": args.epochs},
        **load_keywords(args),
    }
    evaluations = prepare_evaluation(args.what, model=args.model, robustness=robustness, **options)
    is_tested = robustness is not None
    if args.scores and (args.networks or is_tested or args.protocol == "regression"):
        raise UserError(
            "--scores are of one network, a protocol with labels and test images as they are; leave out --networks, "
            "--attack, --corruptions and regression."
        )
    if args.estimate and not engine.is_remote and args.protocol != "regression":  # whose steps are not timed
        estimate = estimate_scores if args.scores else estimate_evaluation
        announce(lambda: estimate(evaluations, args.seed if args.networks or args.scores else None), listen)
    if args.protocol == "regression":
        rows = run_regressions(evaluations, args.seed, listen)
        return {"results": [row.result.to_json() for row in rows], **_record(args, evaluations, rows, listen)}
    if not args.networks:
        rows = run_evaluations(evaluations, args.seed, listen)
        scores = run_scores(evaluations, args.seed, listen) if args.scores else None
        recorded = _record(args, evaluations, rows, listen, scores)
        parts: dict[str, Any] = {} if scores is None else {"scores": [score.to_json() for score in scores]}
        if (scores is not None or is_tested) and recorded:
            recorded |= {"report": str(write_report(Path(args.what)))}
        results = [(row if is_tested else row.result).to_json() for row in rows]
        return {"results": results, **parts, **recorded}
    rows, paths = [], {}
    on_networks = run_on_networks(evaluations, args.seed, listen)
    if engine.is_remote:
        options["distilled"] = str(Path(args.what).absolute()) if Path(args.what).exists() else args.what
        options["robustness"] = None if robustness is None else robustness.describe()
        on_networks = scatter_networks(engine, evaluations, options, args.seed, args.threads, listen)
    for part in on_networks:  # a network takes long, so that none is lost
        rows += part
        paths = _record(args, evaluations, part, listen)
    if paths:
        paths |= {"report": str(write_report(Path(args.what)))}
    return {"results": [row.to_json() for row in rows], **paths}


def _record(
    args: Evaluate,
    evaluations: Sequence[Evaluation],
    rows: Sequence[EvaluationRow],
    listen: Listener,
    scores: Sequence[ScoreRow] | None = None,
) -> dict[str, str]:
    """Record rows in the run folder, and return the path; do nothing for a set outside of one."""
    folder = Path(args.what)
    if not (folder / "run.json").exists():
        return {}
    protocol = WORDS if args.protocol == "regression" else None
    try:
        return {"recorded": str(merge_record(folder, make_record(evaluations, rows, args.seed, protocol, scores)))}
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):  # a finished run may lie where nobody writes
            raise
        listen({"event": "warning", "text": f"the rows cannot be recorded in {folder}: {error.strerror or error}"})
        return {}


COMMANDS = {
    "evaluate": Command(
        Evaluate,
        run_evaluate,
        (
            "limbeck evaluate runs/digits --num-networks 10",
            "limbeck evaluate runs/digits --networks convnet,mlp:width=32",
            "limbeck evaluate runs/digits --attack pgd --corruptions",
        ),
        everyday=(
            *("data", "networks", "num-networks", "which", "protocol", "scores", "attack", "corruptions", "epochs"),
            *("seed", "device", "threads", "quiet"),
        ),
    )
}
