"""What `limbeck doctor` finds: every finding is provoked once, and what is sound has none."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import MINIMAL, read_json

import limbeck
from limbeck import ExpertConfig, ModelConfig, Recorded, Store, train_experts
from limbeck.cli.main import main
from limbeck.data import ImageData
from limbeck.jobs import doctor
from limbeck.jobs.doctor import (
    examine_data,
    examine_job,
    examine_run,
    examine_store,
    find_long_segments,
    find_small_tiles,
)
from limbeck.jobs.estimate import Estimate

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def good(shared_home: Path, _one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two experts that learn digits and stop learning, with every epoch recorded."""
    expert = ExpertConfig(epochs=10, lr=0.1, batch_size=16, keep="recorded")
    folder = tmp_path_factory.mktemp("doctor") / "store"
    return train_experts("digits", out=folder, num_experts=2, model=ModelConfig(width=8), expert=expert)


@pytest.fixture
def copy(good: Store, tmp_path: Path) -> Store:
    shutil.copytree(good.path, tmp_path / "store")
    return Store.open(tmp_path / "store")


def test_sound_experts_have_no_findings(good: Store) -> None:
    assert examine_store(good) == []


def test_experts_that_did_not_learn(copy: Store) -> None:
    """One whose accuracy still rises is none of them."""
    first, second = copy.read(0), copy.read(1)
    copy.write(0, replace(first, validation=(0.1,) * 11))
    copy.write(1, replace(second, validation=tuple(index / 20 for index in range(11))))
    (weak,) = examine_store(copy)
    assert weak.text == "1 of 2 experts (0) did not learn: at most 10.0 % on validation with 10 classes"
    assert "--lr" in weak.remedy


def test_equal_snapshots_equal_experts_and_numbers_that_are_none(copy: Store) -> None:
    first = copy.read(0)
    assert first.recorded is not None
    points = first.recorded.tensor().clone()
    points[5] = points[4]
    copy.write(0, replace(first, recorded=Recorded(points)))
    copy.write(1, replace(first, recorded=Recorded(points)))
    still, same = examine_store(copy)
    assert still.text.startswith("2 of 2 experts (0, 1) have snapshots that equal the one before")
    assert same.text == "2 of 2 experts (0, 1) have the same parameters, so that they count as one"
    points[10] = torch.nan
    copy.write(1, replace(first, recorded=Recorded(points)))
    texts = [finding.text for finding in examine_store(copy)]
    assert any("expert-0001.safetensors is damaged: its points are no finite numbers" in text for text in texts)


def test_a_damaged_expert_and_an_empty_store_are_findings(copy: Store) -> None:
    content = bytearray(copy.file(1).read_bytes())
    content[-5] ^= 1
    copy.file(1).write_bytes(content)
    (finding,) = examine_store(copy)
    assert "damaged" in finding.text
    for index in copy.indices():
        copy.file(index).unlink()
    (finding,) = examine_store(copy)
    assert "no finished experts" in finding.text


def test_a_clean_data_set_and_one_with_copies_and_small_classes(digits: ImageData) -> None:
    assert examine_data(digits) == []
    rows = torch.cat([torch.arange(3), torch.arange(len(digits.train))[digits.train.labels != 7]])
    train = replace(digits.train, images=digits.train.images[rows], labels=digits.train.labels[rows])
    test = replace(digits.test, images=digits.train.images[:50], labels=digits.train.labels[:50])
    lines = [finding.line for finding in examine_data(replace(digits, train=train, test=test))]
    assert any("of test are also in train" in line and "take them out of train" in line for line in lines)
    assert any("a copy of another one in the same split: 3 in train; keep each once" in line for line in lines)
    assert any("1 of 10 classes have fewer than 10 training images (7)" in line for line in lines)
    assert any("50 test images" in line and "give the data more test images" in line for line in lines)


@pytest.mark.parametrize(("factor", "size", "is_small"), [(2, 15, False), (2, 14, True), (3, 28, False), (1, 4, False)])
def test_tiles_of_a_few_pixels(factor: int, size: int, is_small: bool) -> None:
    assert bool(find_small_tiles({"factor": factor}, (size, 32))) == is_small
    assert not find_small_tiles({}, (4, 4))


@pytest.mark.parametrize(
    ("span", "start", "part"),
    [(2, 8, None), (2, 9, None), (2, 12, "past the experts' 10"), (11, 1, "longer than the experts, which have 10")],
)
def test_segments_that_do_not_fit_the_experts(span: int, start: int, part: str | None) -> None:
    findings = find_long_segments({"expert_epochs": span, "max_start_epoch": start}, 10)
    assert [part in finding.text for finding in findings] == ([] if part is None else [True])


def test_a_job_with_long_segments_and_too_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**MINIMAL, "out": tmp_path / "run"}
    assert examine_job(limbeck.prepare("digits", **options), Estimate({})) == []
    job = limbeck.prepare("digits", **{**options, "max_start_epoch": 5})
    (long,) = examine_job(job, Estimate({}))
    assert long.text.startswith("segments of 1 epochs (M) from start epochs below 5 (U) go past")
    monkeypatch.setattr(doctor, "machine_memory", lambda: 1000)
    _, disk, memory = examine_job(job, Estimate({}, store_bytes=10**18))
    assert "LIMBECK_HOME" in disk.remedy
    assert "331.5 kB of 1.0 kB of memory" in memory.text


def test_a_run_says_what_it_warned_of_and_what_came_of_it(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run"
    results = read_json(path / "results.json")
    for row in results["results"]:
        row |= {"accuracy_mean": 0.5, "n": 5} if row["set"] == "kmeans" else {"accuracy_mean": 0.4, "n": 2}
    (path / "results.json").write_text(json.dumps(results))
    with (path / "log.jsonl").open("a") as log:
        log.write('{"event": "warning", "text": "a warning"}\n{"event": "step", "step": 99, "loss": null, "lr": 0.1}\n')
    texts = [finding.text for finding in examine_run(path)]
    assert "a warning" in texts
    assert "the loss is no number in 1 of 7 outer steps" in texts
    assert any(text.startswith("accuracies are of 2 networks") for text in texts)
    assert any("distillation gained nothing" in text for text in texts)
    (path / "results.json").unlink()
    shutil.rmtree(Path(read_json(path / "experts.json")["store"]), ignore_errors=False)
    findings = examine_run(path)
    assert any("the run is not finished" in finding.text for finding in findings)
    assert any("are gone" in finding.text for finding in findings)


def call(*words: str) -> Any:
    with pytest.raises(SystemExit) as end:
        main(["doctor", *words])
    return end.value.code


def test_the_exit_status_says_whether_something_was_found(
    good: Store, copy: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(str(good.path)) == 0
    assert "findings: 0" in capsys.readouterr().out
    copy.file(0).write_bytes(b"no tensors")
    assert call(str(copy.path)) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("- ")
    assert "findings: 1" in out
    assert call(str(copy.path), "--json") == 1
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 1
    assert call(str(tmp_path / "nowhere")) == 2
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    assert call(str(tmp_path / "photos")) == 1, "what is there and cannot be read is a finding"


def test_advice_names_the_command_with_its_path(copy: Store) -> None:
    copy.file(0).write_bytes(copy.file(0).read_bytes()[:-9])
    (finding, *_) = examine_store(copy)
    assert finding.remedy == f"delete the file, and limbeck experts digits --out {copy.path} trains it again"
