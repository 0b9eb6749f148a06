"""Readers of files of other code, which torch.save wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import authors_files
from torture.run_subjects import make_set, make_store
from torture.subject import NETWORK, Subject, Use, damage_one, sometimes, tiny
from torture.tensor_mutations import mutate_pickle

import limbeck
from limbeck import Store
from limbeck.cli.commands import _show
from limbeck.cli.info import describe
from limbeck.evaluation.run import evaluate
from limbeck.interop import export_experts, export_set, import_experts, import_set


def make_pt_experts(style: str) -> None:
    make_store()
    export_experts(Store.open(Path("store")), "pt", style)
    shutil.rmtree("store")


def use_pt_experts(generator: Random) -> list[Use]:
    files = sorted(Path("pt").glob("*.pt"))
    return [
        *(lambda file=file: _show(describe(str(file)), False) for file in files),
        lambda: import_experts("pt", "imported", tiny()),
        *sometimes(lambda: import_experts("pt", "imported-too", tiny(), model=NETWORK), generator, 0.3),
    ]


def make_pt_set() -> None:
    make_set("hard")
    export_set(limbeck.load("set.safetensors"), "pt", "datm")
    Path("set.safetensors").unlink()


def make_pt_results(kind: str) -> None:
    Path("pt").mkdir()
    shape = (1, 8, 8)
    if kind == "idc":
        images, labels = authors_files.synthetic_pair(3, 1, shape, classes=3)
        authors_files.save([images.sigmoid(), labels], Path("pt/data_best.pt"))
    else:
        authors_files.save_results(Path("pt/res_DC_MNIST_ConvNet_1ipc.pt"), 2, shape=shape, classes=3)


def use_pt_set(generator: Random) -> list[Use]:
    def import_and_train(**options: Any) -> None:
        import_set("pt", tiny(), **options).save("imported.safetensors")
        evaluate("imported.safetensors", data=tiny(), num_networks=1, epochs=1)

    files = sorted(Path("pt").glob("*.pt"))
    options = {"factor": 1} if files[0].name == "data_best.pt" else {}
    return [
        *(lambda file=file: json.dumps(describe(str(file))) for file in files),
        *(lambda file=file: _show(describe(str(file)), False) for file in files),
        lambda: import_and_train(**options),
    ]


PT: dict[str, Subject] = {
    **{
        f"pt-{style}": Subject(
            lambda style=style: make_pt_experts(style),
            damage_one({f"pt/{name}.pt": mutate_pickle for name in names}),
            use_pt_experts,
        )
        for style, names in (("mtt", ["replay_buffer_0"]), ("mct", ["waypoint_buffer_0", "step_buffer_0"]))
    },
    "pt-set": Subject(
        make_pt_set,
        damage_one({f"pt/{name}_best.pt": mutate_pickle for name in ("images", "labels", "lr")}),
        use_pt_set,
    ),
    "pt-results": Subject(
        lambda: make_pt_results("dc"), damage_one({"pt/res_DC_MNIST_ConvNet_1ipc.pt": mutate_pickle}), use_pt_set
    ),
    "pt-idc": Subject(lambda: make_pt_results("idc"), damage_one({"pt/data_best.pt": mutate_pickle}), use_pt_set),
}
"""By name."""
