"""The commands that read and write files of other code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from tyro.conf import Positional

from limbeck.cli.common import DATA, PATH, Command, Device, Options, Reading, Threads, load_keywords
from limbeck.cli.info import describe
from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.data import fit_preprocess, load_data
from limbeck.data.preprocess import CONSTANTS, PreprocessName
from limbeck.experts.store import ExpertConfig, Store
from limbeck.interop import EXPERT_STYLES, export_experts, export_set, import_experts, import_set
from limbeck.networks.registry import ModelConfig
from limbeck.synthetic.distilled import load

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
    seed: int = 0
    """The seed by which the data are split."""
    model: ModelConfig = NO_NETWORK


class ImportExperts(ImportOptions, Device, Options):
    """Import experts of MTT, TESLA, FTD, DATM or MCT (.pt files) into a store."""

    preprocess: PreprocessName = "normalise"
    """The space of the images: fitted on our train, or the constants of the authors' code (cifar and so on)."""
    kind: str | None = None
    """Which files to read where a folder holds several kinds, waypoint_buffer_ip4 for example."""
    num_experts: int | None = Field(default=None, ge=1)
    """How many experts to read at most."""
    epochs: int | None = Field(default=None, ge=1)
    """How long they were trained; experts of another length are refused."""
    lr: float = Field(default=0.01, gt=0)
    """The step size they were trained with."""
    batch_size: int = Field(default=256, ge=1)
    """The batch size they were trained with."""
    validation_images: int = Field(default=1000, ge=1)
    """How many validation images to measure the accuracy after every epoch on."""


class ImportSet(ImportOptions, Threads, Options):
    """Import a distilled set of MTT and its kin, DC, DSA, DM, DataDAM, IDC or DREAM (.pt files) into one file."""

    lr: float | None = Field(default=None, gt=0)
    """The step size, where no lr_*.pt has it; 0.01 for sets that have none of their own (DC, DSA, DM, DataDAM, IDC)."""
    preprocess: PreprocessName | None = None
    """The space of the images: fitted on our train, or constants of the authors' code; the default is by file name."""
    experiment: int | None = Field(default=None, ge=0)
    """Which set of a file of several, from 0; the default is the first, and the last of the snapshots of one run."""
    factor: int | None = Field(default=None, ge=1)
    """Tiles along each side of IDC's images; the default is as the folder's name says."""


class Export(Options):
    """Export a store of experts, a distilled set or a run as .pt files of other code."""

    source: Annotated[Positional[str], PATH]
    """A store, the file of a set, or a run folder."""
    out: Annotated[str, PATH]
    """The folder to write to."""
    style: Literal["mtt", "mct", "datm", "ddranking"] = "mtt"
    """Whose files to write: mtt or mct for experts; mtt, datm or ddranking for a set."""


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
    """Call `export_experts` or `export_set`; the result lists the files."""
    path = Path(args.source)
    if (path / "store.json").exists():
        files = export_experts(Store.open(path), args.out, args.style)
    else:
        if args.style in EXPERT_STYLES and args.style != "mtt":
            raise UserError(f"the style {args.style} is for stores of experts; {path} is none.")
        files = export_set(load(path), args.out, args.style)
    return {"style": args.style, "folder": args.out, "files": len(files), "names": sorted({f.name for f in files})[:12]}


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
    "export": Command(Export, run_export, ("limbeck export runs/digits --style datm --out exported",)),
}
