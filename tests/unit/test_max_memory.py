"""--max-memory: the micro-batch that fits, with the gradient of one batch; what cannot fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import TINY

from limbeck import Convexified, ExpertConfig, UserError, load, prepare, run
from limbeck.core.rng import make_generator
from limbeck.core.types import Batch
from limbeck.data import ImageData
from limbeck.data.augment import DSA
from limbeck.derivatives.autograd import Loss
from limbeck.derivatives.micro_batches import MicroBatches
from limbeck.jobs.job import Job
from limbeck.jobs.memory import Fit, parse_bytes, step_memory
from limbeck.networks.flat import FlatModel
from limbeck.networks.losses import CrossEntropy
from limbeck.networks.registry import ConvNet, ModelConfig
from limbeck.objectives import displacement
from limbeck.training import unroll

pytestmark = pytest.mark.usefixtures("home")


def prepare_job(digits: ImageData, folder: Path, **options: Any) -> Job:
    """A job whose experts are recorded, and so stay in their files."""
    model = ModelConfig(width=4, **options.pop("model", {}))
    return prepare(digits, method="mtt", ipc=3, out=folder / "run", model=model, num_experts=1, iterations=2, **options)


def need(digits: ImageData, folder: Path, part: int, **options: Any) -> int:
    """The bytes with so many images at a time."""
    job = prepare_job(digits, folder, **options)
    return step_memory(job.task, job.options, job.experts, 3).bytes(Fit(part, 0))


def test_the_run_is_that_of_the_micro_batch_that_fits(digits: ImageData, tmp_path: Path) -> None:
    for part in (1, 7, 29):
        for limit in (need(digits, tmp_path, part), need(digits, tmp_path, part + 1) - 1):
            chosen = prepare_job(digits, tmp_path, max_memory=str(limit))
            assert chosen.options.micro_batch == part
            assert chosen.resolved == prepare_job(digits, tmp_path, micro_batch=part).resolved
    whole = prepare_job(digits, tmp_path, max_memory="1TB")
    assert whole.options.micro_batch is None
    assert whole.resolved == prepare_job(digits, tmp_path).resolved, "and known by the same key"


def test_the_gradient_with_the_part_that_was_chosen_is_that_of_one_batch(digits: ImageData, tmp_path: Path) -> None:
    size = prepare_job(digits, tmp_path, max_memory=str(need(digits, tmp_path, 7))).options.micro_batch
    model = FlatModel(lambda: ConvNet(1, (8, 8), 10, depth=2, width=4).double())
    function, generator = CrossEntropy(model, DSA("color_crop_cutout_scale_rotate")), make_generator(0, "parts")
    images = torch.randn(30, 1, 8, 8, generator=generator, dtype=torch.double).requires_grad_()
    start, lr = model.init(0).double(), torch.tensor(0.1, dtype=torch.double)
    batches = [Batch(images, torch.arange(30) % 10, seed) for seed in (1, 2)]
    gradients = []
    for loss in (Loss(function), MicroBatches(function, Loss(CrossEntropy(model)), size)):
        distance = displacement(unroll(loss, start, batches, lr), start, torch.zeros_like(start))
        gradients.append(torch.autograd.grad(distance, images)[0])
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 1e-12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_memory": "1MB"}, "--max-memory 1MB is not enough: with one image of a student step at a time it is"),
        ({"max_memory": "8 apples"}, "a number with a unit, as 8GB"),
        ({"max_memory": "0GB"}, "a number with a unit, as 8GB"),
        ({"max_memory": "8GB", "micro_batch": 2}, "leave out --micro-batch"),
        ({"max_memory": "8GB", "gradient": "backprop"}, "keeps the graph of all steps"),
    ],
)
def test_what_cannot_fit_is_refused(options: dict[str, Any], words: str, digits: ImageData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        prepare_job(digits, tmp_path, **options)


def test_batch_norm_is_refused_where_it_would_be_computed_in_parts(digits: ImageData, tmp_path: Path) -> None:
    batch_norm = {"model": {"norm": "batch"}}
    limit = need(digits, tmp_path, 7, **batch_norm)
    with pytest.raises(UserError, match=r"enough for 7 of the 30 images .* but the batch norm of convnet looks at all"):
        prepare_job(digits, tmp_path, max_memory=str(limit), **batch_norm)
    assert prepare_job(digits, tmp_path, max_memory="8GB", **batch_norm).options.micro_batch is None


def test_experts_that_do_not_fit_are_read_from_their_files_with_the_same_bits(
    digits: ImageData, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "ipc": 1,
        "model": ModelConfig(width=16),
        "num_experts": 3,
        "iterations": 2,
        "syn_steps": 2,
    }
    options |= {"expert": ExpertConfig(epochs=2), "validate_networks": 1, "validate_epochs": 1}
    jobs = [prepare(digits, out=tmp_path / "whole", **options)]
    memory = step_memory(jobs[0].task, jobs[0].options, jobs[0].experts, 1)
    assert memory.experts == 3
    limit = memory.bytes(Fit(memory.batch, 2))
    jobs.append(prepare(digits, out=tmp_path / "parts", max_memory=str(limit), **options))
    sets = [load(run(job, evaluate=False)).images for job in jobs]
    experts = jobs[1].experts
    assert experts is not None
    in_memory = [
        isinstance(path.waypoints, torch.Tensor) for path in experts.trajectories() if isinstance(path, Convexified)
    ]
    assert in_memory == [True, False, False], "half of what is left is theirs"
    assert jobs[1].options.micro_batch is None
    assert torch.equal(sets[0], sets[1])


def test_units() -> None:
    values = [parse_bytes(text) for text in ("8GB", "8g", "8 GiB", "1.5MB", "12")]
    assert values == [8 * 10**9, 8 * 10**9, 8 * 2**30, 1_500_000, 12]


def test_the_command_says_what_it_chose(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from limbeck.cli.main import main

    with pytest.raises(SystemExit) as end:
        main(["distill", "digits", *TINY, "--max-memory", "4GB", "--no-estimate", "--out", str(tmp_path / "run")])
    assert not end.value.code
    choice = "--max-memory 4GB: 10 of 10 images of a student step at a time (--micro-batch), 1 of 1 experts in memory"
    assert choice in capsys.readouterr().err
