"""Parts of the pages: verdicts, classes and their confusion, pictures beside ours, frames, cost, settings."""

from __future__ import annotations

import json
import re
import shutil
from base64 import b64decode
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from report_runs import EXPERTS, META, RESULTS, make_complete_run, make_row, parse_page
from small_runs import distill_minimal, read_json

import limbeck
from limbeck.report.gallery import MOST_BYTES, read_picture
from limbeck.report.page import write_comparison, write_report
from limbeck.report.records import read_run
from limbeck.report.verdict import verdicts

CLASSES = {"class_accuracy": [0.75, 0.5], "confusion": [[27, 9], [10, 10]]}


def write_results(run: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    (run / "results.json").write_text(json.dumps({**RESULTS, "results": rows, **changes}))
    return run


def verdicts_of(tmp_path: Path, *rows: dict[str, Any]) -> list[str]:
    return verdicts(read_run(write_results(make_complete_run(tmp_path / "run"), list(rows))))


def test_a_set_that_is_better_than_random_gets_no_warning(tmp_path: Path) -> None:
    rows = [make_row("distilled", "chosen", 0.889, step=20), make_row("random", None, 0.67)]
    assert verdicts_of(tmp_path, *rows, make_row("kmeans", None, 0.8)) == []
    assert verdicts_of(tmp_path, rows[0]) == []


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        (0.60, 0.05, "the difference of −7.0 points is within two standard errors (8.9 points)"),
        (0.70, 0.05, "the difference of +3.0 points is within two standard errors (8.9 points)"),
        (0.40, 0.05, "this set is worse by 27.0 points"),
        (0.60, None, "one network of each differs by −7.0 points"),
    ],
)
def test_a_set_that_is_not_better_than_random_says_so(tmp_path: Path, mean: float, std: Any, words: str) -> None:
    """The standard error of the difference is sqrt(0.05^2 / 5 + 0.086^2 / 5)."""
    rows = [make_row("distilled", "chosen", mean, std, step=20), make_row("random", None, 0.67, std and 0.086)]
    (sentence,) = verdicts_of(tmp_path, *rows)
    assert sentence.startswith("Not better than random: as many random real images reach 67.0 ")
    assert words in sentence
    assert words in parse_page(write_report(tmp_path / "run")).words
    other = make_complete_run(tmp_path / "other")
    assert words in parse_page(write_comparison([tmp_path / "run", other], tmp_path / "c.html")).words


def test_better_kmeans_images_and_a_choice_of_step_0_are_said(tmp_path: Path) -> None:
    rows = [make_row("distilled", "chosen", 0.8, step=0), make_row("random", None, 0.5), make_row("kmeans", None, 0.9)]
    first, second = verdicts_of(tmp_path, *rows)
    assert first.startswith("Validation chose step 0")
    assert second == "As many k-means real images reach 90.0 ± 1.0 %; this set is worse by 10.0 points."


def test_numbers_of_images_and_what_they_mean_stand_by_the_result(tmp_path: Path) -> None:
    words = parse_page(write_report(make_complete_run(tmp_path / "run"))).words
    assert "Validation images 15" in words
    assert "Tested on 73 images, to ± 5.9 points at most" in words
    assert "All figures are on the 73 test images" in words
    assert "uncertain by 3.7 points" in words  # sqrt(0.889 * 0.111 / 73)


def test_accuracy_and_confusion_by_class(tmp_path: Path) -> None:
    rows = [make_row("distilled", "chosen", 0.64, step=20, **CLASSES), make_row("random", None, 0.5, **CLASSES)]
    page = write_report(write_results(make_complete_run(tmp_path / "run"), [*rows, make_row("full", None, 0.9)]))
    words = parse_page(page).words
    assert "Class Test images distilled random real images zero 36 75.0 75.0 one 37 50.0 50.0" in words
    assert "Class zero one zero 75.0 25.0 one 50.0 50.0" in words
    copy = Path(shutil.copytree(tmp_path / "run", tmp_path / "copy"))
    words = parse_page(write_comparison([tmp_path / "run", copy], tmp_path / "c.html")).words
    assert "Class Test images run copy zero 36 75.0 75.0 one 37 50.0 50.0" in words


def test_without_a_record_of_classes_there_is_no_section_of_them(tmp_path: Path) -> None:
    words = parse_page(write_report(make_complete_run(tmp_path / "run"))).words
    assert "By class" not in words
    assert "Confusion" not in words


def test_of_many_classes_the_worst_confusions_are_listed(tmp_path: Path) -> None:
    names = [f"c{number:02}" for number in range(30)]
    confusion = [[100 if i == j else 0 for j in range(30)] for i in range(30)]
    confusion[7][9], confusion[2][3] = 300, 25
    data = {**META["data"], "classes": names, "counts": {"test": [100] * 30}}
    run = make_complete_run(tmp_path / "run", data=data)
    row = make_row("distilled", "chosen", 0.6, step=20, confusion=confusion, class_accuracy=[0.5, None] * 15)
    page = write_report(write_results(run, [row]))
    words = parse_page(page).words
    assert "c07 c09 75.0 c02 c03 20.0" in words
    assert "All 30 classes" in words
    assert "c01 100 –" in words


def test_pictures_of_real_images_and_frames_are_there_with_texts(tmp_path: Path) -> None:
    run = make_complete_run(tmp_path / "run")
    page = write_report(run).read_text(encoding="utf-8")
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == 9
    assert all(re.search(r'alt="[^"]{20,}"', image) for image in images)
    words = parse_page(run / "report.html").words
    assert "Chosen Initial Last step Random real images k-means real images" in words
    assert "Step 0 Step 10 Step 20: validation 70.0 ± 1.0 % Step 30" in words
    assert 'data-label="Step of the distillation"' in page
    for path in (run / "previews").glob("step-*"):
        path.unlink()
    assert "Along the distillation" not in parse_page(write_report(run)).words


def test_equal_pictures_of_real_images_are_shown_once(tmp_path: Path) -> None:
    runs = [make_complete_run(tmp_path / name) for name in "abc"]
    Image.new("RGBA", (30, 20), (1, 2, 3, 255)).save(runs[2] / "previews" / "random.png")
    write_comparison(runs, tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert re.findall(r"<figcaption>(Random|k-means) real images", page) == ["Random", "Random", "k-means"]


def test_a_large_picture_is_compressed(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture is not None
    assert (picture.width, picture.height) == (400, 300)
    form, _, data = picture.data.partition(";base64,")
    if features.check("webp"):
        assert form == "data:image/webp"
        assert len(b64decode(data)) < (tmp_path / "a.png").stat().st_size / 2
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[: MOST_BYTES + 9])
    cut = read_picture(tmp_path / "b.png")
    assert cut is not None
    assert cut.data.startswith("data:image/png;"), "as it is: it cannot be decoded"


def test_distances_of_the_experts_and_the_cost(tmp_path: Path) -> None:
    run = make_complete_run(tmp_path / "run")
    distance = {"t": [0, 1.5, 3], "share": [[0, 0.7, 1], [0, 0.8, 1]]}
    (run / "experts.json").write_text(json.dumps({**EXPERTS, "convexified_distance": distance}))
    write_results(run, RESULTS["results"], memory={"process": 1_234_000_000, "device": 5_600_000_000})
    page = parse_page(write_report(run))
    assert "Distance from the start" in page.words
    assert page.tags.count("svg") == 5
    assert "Peak memory: 1.2 GB, 5.6 GB on the GPU." in page.words
    words = parse_page(write_comparison([run, run], tmp_path / "c.html")).words
    assert "Time: experts Time: distill Time in all Peak memory" in words


def test_distances_at_an_epoch_that_is_missing_are_not_drawn(tmp_path: Path) -> None:
    run = make_complete_run(tmp_path / "run")
    distance = {"t": [0, None, 3], "share": [[0, 0.7, 1]]}
    (run / "experts.json").write_text(json.dumps({**EXPERTS, "convexified_distance": distance}))
    assert "Distance from the start" not in parse_page(write_report(run)).words


def test_settings_of_some_runs_stand_apart_from_those_that_differ(tmp_path: Path) -> None:
    configs: list[dict[str, Any]] = [
        {"ipc": 1, "seed": 0, "model": {"width": 8}, "lr_img": 5.0, "waypoint_at": []},
        {"ipc": 2, "seed": 0, "model": {"width": 8}, "batch_real": 64, "waypoint_at": [0, 3]},
    ]
    runs = [make_complete_run(tmp_path / str(number), config=config) for number, config in enumerate(configs)]
    page = write_comparison(runs, tmp_path / "c.html")
    words = parse_page(page).words
    differ, _, apart = words.partition("settings that only some of the runs have")
    assert "Setting 0 1 ipc 1 2 waypoint_at none 0, 3 2" in differ
    assert "Setting 0 1 lr_img 5.0 – batch_real – 64" in apart
    assert "seed" not in apart.partition("Curves")[0]
    assert "limbeck distill digits --ipc 1" in words, "the command of each"


def test_the_code_that_repeats_a_run_from_python_makes_the_same_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = distill_minimal(tmp_path / "run", lr_img=3.0)
    assert repeat(run, monkeypatch).record().key == read_json(run / "run.json")["key"]


def write_folders(path: Path, count: int) -> Path:
    pixels = np.random.default_rng(count).integers(0, 200, (2, count, 20, 16), dtype=np.uint8)
    for label, images in enumerate(pixels):
        (path / str(label)).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image).save(path / str(label) / f"{i}.png")
    return path


@pytest.mark.parametrize("seed", [0, 4])  # of the split, where the images were loaded before
@pytest.mark.parametrize("has_test", [False, True])
def test_the_code_that_repeats_a_run_reads_the_data_as_the_run_did(
    seed: int, has_test: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data: Any = str(write_folders(tmp_path / "simple", 30))
    reading: dict[str, Any] = {
        "resize": (12, 10),
        "resize_mode": "crop",
        "validation": 0.3,
        "pixel_range": (0, 200),
        "follow_links": True,
    }
    if has_test:
        reading["test"] = str(write_folders(tmp_path / "other", 10))
    if seed:
        data, reading = limbeck.load_data(data, seed=seed, **reading), {}
    evaluation = limbeck.EvalConfig(networks=1, epochs=1, full_networks=0, baselines=())
    options = {"model": limbeck.ModelConfig(width=4), "eval": evaluation}
    run = limbeck.distill(data, method="random", out=tmp_path / "run", **options, **reading)
    job = repeat(run, monkeypatch)
    assert job.task.data.fingerprint == read_json(run / "run.json")["data"]["fingerprint"]
    assert job.record().key == read_json(run / "run.json")["key"]


def repeat(run: Path, monkeypatch: pytest.MonkeyPatch) -> limbeck.Job:
    """The job that the code in the report of a run prepares."""
    code = re.findall(r'<pre class="wrap">(.*?)</pre>', (run / "report.html").read_text(encoding="utf-8"), re.DOTALL)[0]
    monkeypatch.chdir(run)
    monkeypatch.setattr(limbeck, "distill", limbeck.prepare)
    namespace: dict[str, Any] = {}
    *lines, last = unescape(code).splitlines()
    exec("\n".join([*lines, f"job = {last}"]), namespace)
    job: limbeck.Job = namespace["job"]
    return job
