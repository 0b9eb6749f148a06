"""The commands that read and write files of other code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional

from limbeck.cli.common import (
    DATA,
    PATH,
    SWITCH,
    Command,
    Device,
    Options,
    Reading,
    Threads,
    WithEstimate,
    announce,
    load_keywords,
)
from limbeck.cli.info import describe
from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.files import require_new_folder
from limbeck.core.ranges import Count, CountOrZero, Seed, Size, StepSize, Tiles
from limbeck.data import fit_preprocess, load_data
from limbeck.data.preprocess import CONSTANTS, PreprocessName
from limbeck.evaluation.sets import prepare_evaluation
from limbeck.experts.config import ExpertConfig
from limbeck.experts.store import Store
from limbeck.interop import SET_STYLES, export_experts, export_set, import_experts, import_set
from limbeck.interop.card import CARD, ROUNDED, UNKNOWN, describe_export, read_facts
from limbeck.interop.rounding import RoundingLoss, measure_rounding, pair_evaluations
from limbeck.jobs.estimate import estimate_evaluation
from limbeck.networks.registry import ModelConfig
from limbeck.synthetic.distilled import DistilledSet, load

NO_NETWORK = ModelConfig()  # no option given: find out what fits


class ImportOptions(Reading):
    """Options of commands that read files of other code."""

    source: Annotated[Positional[str], PATH]
    """The file to read, or its folder."""
    data: Annotated[Positional[str], DATA]
    """The data they were trained on: a name or a path, as for 'limbeck distill'."""
    out: Annotated[str, PATH]
    """Where to write what was read."""
    augment: str | None = None
    """DSA families joined by '_', or none; the default is all."""
    seed: Seed = 0
    """The seed by which the data are split."""
    model: ModelConfig = NO_NETWORK


class ImportExperts(ImportOptions, Device, Options):
    """Import experts of MTT, TESLA, FTD, DATM or MCT (.pt files) into a store."""

    preprocess: PreprocessName = "normalise"
    """The space of the images: fitted on our train, or the constants of the authors' code (cifar and so on)."""
    kind: str | None = None
    """Which files to read where a folder holds several kinds, waypoint_buffer_ip4 for example."""
    num_experts: Size | None = None
    """How many experts to read at most."""
    epochs: Count | None = None
    """How long they were trained; experts of another length are refused."""
    lr: StepSize = 0.01
    """The step size they were trained with."""
    batch_size: Count = 256
    """The batch size they were trained with."""
    validation_images: Count = 1000
    """How many validation images to measure the accuracy after every epoch on."""


class ImportSet(ImportOptions, Threads, Options):
    """Import a distilled set of MTT and its kin, DC, DSA, DM, DataDAM, IDC or DREAM (.pt files) into one file."""

    lr: StepSize | None = None
    """The step size, where no lr_*.pt has it; 0.01 for sets that have none of their own (DC, DSA, DM, DataDAM, IDC)."""
    preprocess: PreprocessName | None = None
    """The space of the images: fitted on our train, or constants of the authors' code; the default is by file name."""
    experiment: CountOrZero | None = None
    """Which set of a file of several, from 0; the default is the first, and the last of the snapshots of one run."""
    factor: Tiles | None = None
    """Tiles along each side of IDC's images; the default is as the folder's name says."""


class Export(Device, Options, WithEstimate):
    """Export a run or a set as files that need no limbeck, or as those of other code, as stores of experts too."""

    source: Annotated[Positional[str], PATH]
    """A run folder, the file of a set, or a store of experts."""
    out: Annotated[str, PATH]
    """The folder to write to, new or empty."""
    to: Literal["imagefolder", "npz", "hf", "mtt", "mct", "datm", "ddranking"] = "mtt"
    """For a set: imagefolder (a folder of PNG pictures for every class), npz (numpy's arrays), hf (a data set of the
    Hugging Face Hub), or as MTT, DATM or DD-Ranking read it. For a store of experts: mtt or mct."""
    license: str = UNKNOWN
    """The licence of the original data, for the card, by the Hub's names: mit or cc-by-4.0, for example."""
    measure: Annotated[FlagCreatePairsOff[bool], SWITCH] = True
    """Do not measure what the 8 bits of pictures cost in test accuracy (imagefolder and hf)."""
    data: Annotated[str | None, DATA] = None
    """The data to measure it on; the default is where the set came from."""
    num_networks: Size | None = None
    """How many fresh networks to measure it by; the default is as many as when the set was made."""
    seed: Seed = 0
    """The seed of these networks."""


def run_import_experts(args: ImportExperts, listen: Listener) -> Any:
    """Call `limbeck.interop.import_experts`; the result describes the store."""
    images = load_data(args.data, seed=args.seed, listen=listen, **load_keywords(args))
    store = import_experts(
        args.source,
        args.out,
        images,
        model=None if args.model == NO_NETWORK else args.model,
        preprocess=fit_preprocess(args.preprocess, images.train.images),
        augment=args.augment,
        kind=args.kind,
        num_experts=args.num_experts,
        epochs=args.epochs,
        training=ExpertConfig(lr=args.lr, batch_size=args.batch_size),
        measure=args.validation_images,
        seed=args.seed,
        device=args.device,
        listen=listen,
    )
    notes = ["these experts were trained on all of train, so their validation accuracy is too high"]
    if args.preprocess == "zca":
        notes.append("the files hold no ZCA matrix; it was fitted on our train part with eps 0.1")
    if args.preprocess in CONSTANTS:
        notes.append(
            "accuracies are by the authors' constants; 'limbeck distill' normalises by those of our train part"
        )
    return {**describe(str(store.path)), "store": str(store.path), "notes": notes}


def run_import_set(args: ImportSet, listen: Listener) -> Any:
    """Call `limbeck.interop.import_set` and write the file; the result describes it."""
    out = Path(args.out)
    if out.suffix != ".safetensors":
        raise UserError(f"--out is the file to write and ends in .safetensors, unlike {out}.")
    distilled = import_set(
        args.source,
        load_data(args.data, seed=args.seed, listen=listen, **load_keywords(args)),
        preprocess=args.preprocess,
        lr=args.lr,
        model=None if args.model == NO_NETWORK else args.model,
        augment=args.augment,
        experiment=args.experiment,
        factor=args.factor,
        seed=args.seed,
    )
    distilled.save(out)
    return {**describe(str(out)), "set": str(out), "notes": distilled.provenance["imported"]["notes"]}


def run_export(args: Export, listen: Listener) -> Any:
    """Call `export_experts` or `export_set`; the result lists the files, and says what 8 bits cost."""
    path, notes = Path(args.source), list[str]()
    require_new_folder(Path(args.out), "an empty folder")
    parts: dict[str, Any] = {}
    if (path / "store.json").exists():
        files = export_experts(Store.open(path), args.out, args.to)
    else:
        if args.to not in SET_STYLES:
            raise UserError(f"'--to {args.to}' is for stores of experts; {path} is none.")
        distilled = load(path)
        notes += describe_export(distilled, args.to)
        loss = _measure(args, distilled, notes, listen) if args.to in ROUNDED and args.measure else None
        facts = read_facts(path)._replace(loss=loss, license=args.license)
        files = export_set(distilled, args.out, args.to, facts)
        if loss is not None:
            parts = {"eight_bits": loss.to_json()} if args.as_json else {}
            notes.append(f"accuracy on the test part: {loss.text}")
    names = sorted({file.name for file in files})[:12]
    card = {"card": str(files[-1])} if files[-1].name == CARD else {}
    return {"to": args.to, "folder": args.out, "files": len(files), "names": names, **parts, "notes": notes, **card}


def _measure(args: Export, distilled: DistilledSet, notes: list[str], listen: Listener) -> RoundingLoss | None:
    """What 8 bits cost, with an estimate first; None, and a note, where the data is not found or no longer the same."""
    try:
        changes = {"networks": args.num_networks}
        (evaluation,) = prepare_evaluation(distilled, data=args.data, changes=changes, device=args.device)
    except UserError as error:
        notes.append(f"what 8 bits cost was not measured: {error}")
        return None
    pair = pair_evaluations(evaluation)
    if args.estimate:
        announce(lambda: estimate_evaluation(pair), listen)
    return measure_rounding(pair, args.seed, listen)


COMMANDS = {
    "import-experts": Command(
        ImportExperts,
        run_import_experts,
        ("limbeck import-experts buffers/CIFAR10/ConvNet path/to/cifar10 --out experts/cifar10",),
    ),
    "import-set": Command(
        ImportSet,
        run_import_set,
        ("limbeck import-set logged_files/CIFAR10/run path/to/cifar10 --out cifar10.safetensors",),
    ),
    "export": Command(
        Export,
        run_export,
        (
            "limbeck export runs/digits --to imagefolder --out pictures",
            "limbeck export runs/digits --to datm --out exported",
        ),
    ),
}
