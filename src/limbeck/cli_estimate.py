"""The command that says how long a job will take, and the first line of the commands that take long."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console

from limbeck.cli_common import Command, Listener, Run
from limbeck.config import JobConfig
from limbeck.data import ImageData, load_data
from limbeck.estimate import estimate, estimate_evaluation
from limbeck.evaluation import EvalConfig, require_same_data, sets_of
from limbeck.job import is_finished, prepare, run_folder
from limbeck.methods import find_method
from limbeck.models import ModelConfig
from limbeck.stopwatch import Estimate
from limbeck.task import make_task

IMPORTS = time.process_time()  # of the process so far: nearly all of what it takes to start


class Before(Run):
    """Say how long 'limbeck distill' would take, and how much memory and disk, from a few timed steps."""


def run_estimate(args: Any, listen: Listener) -> Any:
    """Call `limbeck.estimate`; the result is its numbers with --json, else a sentence is printed."""
    begun = time.perf_counter()
    own = set(find_method(args.method).config.model_fields)
    options = {name: getattr(args, name) for name in own | set(JobConfig.model_fields)}
    common = {"method": args.method, "experts": args.experts, "device": args.device, "resize": args.resize}
    work = prepare(args.data, **common, **options)
    start = {"start": IMPORTS + time.perf_counter() - begun}
    path = run_folder(work, args.out)
    if is_finished(work, path):
        found = Estimate(start, None, None, 0)
    else:
        found = estimate(work, path)
        found = Estimate({**start, **found.seconds}, found.memory, found.device, found.disk)
    if args.as_json:
        return found.to_json()
    Console(highlight=False).print(found.text, soft_wrap=True)
    return {}


class Foretell:
    """A listener that says how long the work will take when it begins, to the listener that it is made of.

    An estimate that fails is left out: it must not stop the work.
    """

    def __init__(self, listen: Listener):
        self.listen = listen

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "begin":
            self.tell(lambda: estimate(event["work"], event["path"]))
        else:
            self.listen(event)

    def tell(self, make: Any) -> None:
        """Hand the estimate on as an event."""
        try:
            found = make()
        except Exception:  # whatever it is, the work itself will say so if it matters
            return
        if found.total:
            self.listen({"event": "estimate", "text": found.text, **found.to_json()})


def foretell_evaluation(args: Any, model: ModelConfig | None, listen: Listener) -> ImageData | str | None:
    """Tell how long 'limbeck evaluate' will take; the data, which need not be loaded again once it was."""
    given: str | None = args.data
    if not isinstance(listen, Foretell):
        return given
    loaded: list[ImageData] = []

    def make() -> Estimate:
        sets = [made for _, made in sets_of(args.what)]
        recipe, held = dict(sets[0].recipe), sets[0].provenance.get("data", {})
        seed = sets[0].provenance.get("config", {}).get("seed", 0)
        source = held["source"] if given is None else given
        loaded.append(load_data(source, seed=seed, resize=args.resize or held.get("resize")))
        for made in sets:
            require_same_data(loaded[0], made)
        network, augment = ModelConfig(**recipe.pop("model")), recipe.pop("augment")
        task = make_task(loaded[0], model or network, sets[0].preprocess, augment, args.device, args.precision)
        changed = {name: getattr(args, name) for name in ("networks", "epochs") if getattr(args, name) is not None}
        return estimate_evaluation(task, sets, EvalConfig(**{**recipe, **changed}))

    listen.tell(make)
    return loaded[0] if loaded else given


COMMANDS = {"estimate": Command(Before, run_estimate)}
