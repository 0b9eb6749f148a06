"""The sets of a run folder and their pictures: of outer steps, along the way, and of real images beside them."""

from __future__ import annotations

from torch import Tensor

from limbeck.core.events import Listener
from limbeck.evaluation.baselines import baseline_images
from limbeck.jobs.job import Job
from limbeck.synthetic.distilled import DistilledSet, make_mosaics
from limbeck.synthetic.grids import image_grid, image_strip, save_png, thumbnails
from limbeck.synthetic.set import SyntheticSet

MOST_FRAMES = 12
"""About how many pictures are saved along the distillation, besides those of its first and last step."""


def write_set(job: Job, which: str, synthetic: SyntheticSet, step: int) -> None:
    """Write the set of one outer step and its picture; of the initial set, which is real images, the picture alone."""
    task = job.task
    mosaics = make_mosaics(synthetic)
    if mosaics is None:
        images, labels = (tensor.cpu() for tensor in synthetic.training_pair())
    else:  # cut on the CPU, as `load` does: the file holds mosaics where both are equal to the last bit
        images, labels = mosaics.partition(mosaics.images, mosaics.labels)
    distilled = DistilledSet(
        images,
        labels,
        float(synthetic.lr),
        task.preprocess.to("cpu"),
        task.data.classes,
        job.recipe,
        {
            "method": job.method.name,
            "config": job.resolved,
            "data": {"name": task.data.name, "fingerprint": task.data.fingerprint, **task.data.origin.describe()},
            "which": which,
            "step": step,
        },
        None if "targets" not in synthetic.extra else synthetic.extra["targets"].cpu(),
        mosaics,
    )
    # first: where there is a set there is its picture
    _draw(job, distilled.pictures(), distilled.hard_labels(), which)
    if which != "initial":
        distilled.write(job.path / f"set-{which}.safetensors")


def write_real_images(job: Job) -> None:
    """Draw the random and k-means images of the first network of their rows, where they are not drawn yet."""
    task, config = job.task, job.config
    ipc, fill = job.budget
    for name in config.eval.baselines:
        if not (job.path / "previews" / f"{name}.png").exists():
            images, labels = baseline_images(task, name, ipc, config.seed, fill)
            _draw(job, task.preprocess.to("cpu").invert(images.cpu()), labels.cpu(), name)


def _draw(job: Job, pictures: Tensor, labels: Tensor, name: str) -> None:
    draw = image_strip if len(labels) == len(labels.unique()) else image_grid  # one image a class has no rows
    save_png(draw(pictures, labels, list(job.task.data.classes)), job.folder.make_previews() / f"{name}.png")


def write_frame(job: Job, listen: Listener, every: int, synthetic: SyntheticSet, step: int) -> None:
    """Write a small picture of the set that is validated at `step`, and tell the listener of it.

    Of the validations, `every` steps apart, every second, fourth and so on is drawn, so that there are never many; the
    files between are removed. Which remain follows from the steps alone, so that a run that is continued has the
    pictures of one that was not.
    """
    stride = 1
    while step // every // stride > MOST_FRAMES:
        stride *= 2
    folder = job.folder.make_previews()
    for path in folder.glob("step-*.png"):
        number = path.stem.removeprefix("step-")
        if number.isdecimal() and (int(number) % every or int(number) // every % stride):
            path.unlink()
    mosaics = make_mosaics(synthetic)
    if mosaics is None:
        images, labels = (tensor.cpu() for tensor in synthetic.training_pair())
    else:  # cut on the CPU, as `load` does: the file holds mosaics where both are equal to the last bit
        images, labels = mosaics.partition(mosaics.images, mosaics.labels)
    picture = thumbnails(job.task.preprocess.to("cpu").invert(images), labels)
    path = folder / f"step-{step:06}.png"
    save_png(picture, path)
    listen({"event": "preview", "step": step, "path": str(path)})
