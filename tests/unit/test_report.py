"""The report of a run and the comparison of runs: their text, plots and safety, and damaged or missing files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from report_runs import (
    EXPERTS,
    LOG,
    META,
    RESULTS,
    VALIDATION,
    make_complete_run,
    make_minimal_run,
    make_row,
    parse_page,
)

from limbeck.core.errors import UserError
from limbeck.core.records import StepLine
from limbeck.jobs.record import RunFolder
from limbeck.report.page import write_comparison, write_report
from limbeck.report.plots import Line, plot
from limbeck.report.records import read_run


def test_report_of_a_complete_run(tmp_path: Path) -> None:
    run = make_complete_run(tmp_path / "run")
    assert write_report(run) == run / "report.html"
    page = parse_page(run / "report.html")
    assert (
        "2 images (1 per class) of digits train a convnet to 88.9 ± 0.7 % (n = 5) on test; "
        "2 random real images 67.0 ± 2.1 %; all 1,294 training images 97.1 %." in page.words
    )
    for words in ("+21.9", "15.5 times less", "15.5 kB", "1.2 kB", "2 min 13 s", "sha256:abc", "a note", "step 20"):
        assert words in page.words
    for words in ("limbeck distill digits --ipc 1", "2.13.0", "The test images chose nothing", "convexified 91.0 %"):
        assert words in page.words
    assert "Not in this run folder" not in page.words
    assert "None" not in page.words
    assert page.tags.count("svg") == 4
    assert page.tags.count("img") == 9
    assert not list(run.glob(".*"))
    assert "73 images, to ± 5.9 points at most" in page.words


def test_report_of_a_minimal_run_lists_missing_files(tmp_path: Path) -> None:
    page = parse_page(write_report(make_minimal_run(tmp_path / "run"), tmp_path / "deep" / "page.html"))
    assert "No result yet for digits: no step is logged." in page.words
    for name in ("log.jsonl", "experts.json", "results.json", "previews", "set-last.safetensors"):
        assert f"{name}: no" in page.words
    assert not (tmp_path / "run" / "report.html").exists()
    assert "svg" not in page.tags


def test_report_of_an_almost_empty_run_json(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": "limbeck-run", "version": 1, "data": [], "config": null}')
    assert "No result yet" in parse_page(write_report(tmp_path)).words


def test_report_of_an_unfinished_run(tmp_path: Path) -> None:
    run = make_complete_run(tmp_path / "run")
    (run / "results.json").unlink()
    words = parse_page(write_report(run)).words
    assert "step 30 is the last logged; validation accuracy was 70.0 ± 1.0 % at step 20." in words


def test_a_damaged_log_line_is_skipped(tmp_path: Path) -> None:
    run = make_complete_run(tmp_path / "run")
    with (run / "log.jsonl").open("ab") as log:
        log.write(b'{"event": "step", "step": 31, "lo')
    content = read_run(run)
    assert list(content.steps) == list(range(1, 31))
    assert content.missing == []
    with (run / "log.jsonl").open("ab") as log:
        log.write(b'\n\xff\xfe broken\n{"event": "step", "step": 32, "loss": 0.5, "lr": 1}\n[1]\n7\n')
    content = read_run(run)
    assert (content.steps[32].loss, content.steps[32].lr) == (0.5, 1.0)
    assert content.missing == ["log.jsonl: lines that could not be read and were skipped: 3."]
    assert "skipped: 3" in parse_page(write_report(run)).words


def test_a_run_json_that_cannot_be_mended(tmp_path: Path) -> None:
    """A name that is half a character is no part that could be left out."""
    run = make_complete_run(tmp_path / "run")
    (run / "run.json").write_text(json.dumps({**META, "\ud800": 1}))
    with pytest.raises(UserError, match=r"run\.json is damaged: it is no record of a run; restore it"):
        write_report(run)
    counts = {**META["data"]["counts"], "test": [-(2**63), 1]}
    (run / "run.json").write_text(json.dumps({**META, "data": {**META["data"], "counts": counts}}))
    assert read_run(run).missing == ["run.json: these parts are damaged and left out: data.counts.test.0."]
    write_report(run)


def test_whole_numbers_beyond_64_bits_are_damage(tmp_path: Path) -> None:
    """Two of 10,000 damaged runs had one that was plotted, or counted: OverflowError."""
    run = make_complete_run(tmp_path / "run")
    with (run / "log.jsonl").open("a") as log:
        log.write(f'{{"event": "step", "step": {10**59}, "loss": 0.5, "lr": 1}}\n{{"event": "resume"}}\n')
    (run / "experts.json").write_text(f'{{"format": "limbeck-experts", "version": 1, "count": {10**59}}}')
    content = read_run(run)
    assert list(content.steps) == list(range(1, 31))
    assert content.missing == [
        "log.jsonl: lines that could not be read and were skipped: 1.",
        "experts.json: damaged, so the experts are not described.",
    ]
    assert [line.step for line in RunFolder(run).lines(StepLine)] == list(range(1, 31))
    assert "skipped: 1" in parse_page(write_report(run)).words


def test_the_later_of_two_log_lines_of_a_step_counts(tmp_path: Path) -> None:
    run = make_complete_run(tmp_path / "run")
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps({"event": "step", "step": 3, "loss": 9.0, "lr": 0.5}) + "\n")
        log.write(json.dumps({**VALIDATION, "accuracy_mean": 0.75}) + "\n")
    content = read_run(run)
    assert (content.steps[3].loss, content.steps[3].lr) == (9.0, 0.5)
    assert list(content.steps) == list(range(1, 31))
    assert [line.accuracy_mean for line in content.validations["distilled"]] == [0.75]


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\"' onload='x' {{ 7 * 7 }} $\\frac{1$ & ]]>\x00\ud800"
    text = hostile.replace("\x00", "")  # which run.json may not hold
    data = {**META["data"], "name": text, "classes": [text, "b"], "notes": [text], "fingerprint": text}
    run = make_complete_run(
        tmp_path / "run",
        data=data,
        command=text,
        config={text: text},
        versions={text: text},
        device=text,
    )
    rows = [make_row(hostile, hostile, 0.5, model=hostile, split=hostile)]
    (run / "results.json").write_text(json.dumps({"method": hostile, "protocol": hostile, "results": rows}))
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps({**VALIDATION, "which": hostile}) + "\n")
    for out in (
        write_report(run),
        write_comparison([run, make_complete_run(tmp_path / "<b>&$x")], tmp_path / "c.html"),
    ):
        page = parse_page(out)
        assert page.tags.count("script") == 1, "our own"
        assert "alert(1)" not in out.read_text(encoding="utf-8").partition("<script>")[2].partition("</script>")[0]
        assert "b" not in page.tags
        assert "{{ 7 * 7 }}" in page.words
        assert "default-src 'none'" in out.read_text(encoding="utf-8")


def test_pages_load_no_external_resource(tmp_path: Path) -> None:
    runs = [make_complete_run(tmp_path / "a"), make_complete_run(tmp_path / "b")]
    for out in (write_report(runs[0]), write_comparison(runs, tmp_path / "c.html")):
        page = parse_page(out)
        assert page.addresses
        assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
        assert not {"link", "iframe", "object", "base"} & set(page.tags)
        outside = re.sub(r'xmlns(:\w+)?="[^"]*"', "", out.read_text(encoding="utf-8"))
        assert "http:" not in outside
        assert "https:" not in outside
        assert not re.search(r"url\((?!#)|@import", outside)


def test_every_reference_in_the_page_has_one_target(tmp_path: Path) -> None:
    page = write_report(make_complete_run(tmp_path / "run")).read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page)) <= {(i, "") for i in ids} | {("", i) for i in ids}


def test_missing_and_nan_values(tmp_path: Path) -> None:
    run = make_complete_run(tmp_path / "run")
    nan = float("nan")
    log = [{**entry, "loss": nan if entry["step"] % 2 else 1e300, "lr": None} for entry in LOG[:10]]
    log += [
        {**LOG[11], "loss": 0.5},
        {**LOG[12], "step": "x"},
        {**VALIDATION, "accuracy_mean": nan, "accuracy_std": None},
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    rows = [
        make_row("distilled", "chosen", nan, nan),
        make_row("distilled", "last", 0.5, None),
        make_row("kmeans", None, 0.5, None, n=None),
        make_row("random", None, None),
    ]
    (run / "results.json").write_text(
        json.dumps({**RESULTS, "ipc": None, "results": rows, "seconds": {"distill": nan}})
    )
    paths = {"t": [0, 1, 2], "accuracy": [[nan, None, 0.5], [0.1]]}
    (run / "experts.json").write_text(json.dumps({**EXPERTS, "convexified_path": paths, "bytes": {"experts": 0}}))
    page = parse_page(write_report(run))
    assert "2 images (1 per class) of digits train a convnet to 50.0 % (n = 5) on test." in page.words
    assert "nan" not in page.words.lower()
    assert "None" not in page.words
    assert "The loss was not a finite number at 5 of 11 steps." in page.words
    left_out = (
        "results.json: these parts are damaged and left out: results.0.accuracy_mean, results.0.accuracy_std, results.2"
    )
    assert left_out in page.words


@pytest.mark.parametrize("content", ["[]", "{", "null", '{"results": 3, "seconds": [], "bytes": "x"}', "\x00"])
def test_damaged_optional_files(tmp_path: Path, content: str) -> None:
    run = make_complete_run(tmp_path / "run")
    for name in ("results.json", "experts.json", "log.jsonl"):
        (run / name).write_text(content)
    for path in (run / "previews").iterdir():
        path.write_text(content)
    words = parse_page(write_report(run)).words
    assert "No result yet" in words
    assert "previews: no readable picture of the chosen, initial, last set" in words


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="not a run folder"):
            write_report(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "damaged"),
        ("[]", "is not a limbeck-run"),
        ('{"format": "other", "version": 1}', "is not a limbeck-run"),
        ('{"format": "limbeck-run"}', "damaged"),
        ('{"format": "limbeck-run", "version": "1"}', "damaged"),
        ('{"format": "limbeck-run", "version": 2}', "upgrade limbeck"),
    ],
)
def test_an_invalid_run_json_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=words):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_an_unwritable_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert write_report(make_minimal_run(tmp_path / "run"), tmp_path) == tmp_path / "report.html"
    with pytest.raises(UserError, match=r"cannot be written to .*; name another path"):
        write_report(make_minimal_run(tmp_path / "run"), tmp_path / "file" / "report.html")


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = make_complete_run(tmp_path / "run")
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    other = write_comparison([run, run], tmp_path / "c.html").read_bytes()
    assert write_comparison([run, run], tmp_path / "c.html").read_bytes() == other


def test_rows_of_balanced_accuracy_and_of_several_networks(tmp_path: Path) -> None:
    run = make_complete_run(tmp_path / "run")
    rows = [*RESULTS["results"], make_row("distilled", "chosen", 0.5, model="mlp", balanced_accuracy_mean=0.456)]
    rows.append(make_row("random", None, 0.6, model="mlp"))
    (run / "results.json").write_text(json.dumps({**RESULTS, "results": rows}))
    words = parse_page(write_report(run)).words
    assert "Balanced accuracy" in words
    assert "45.6 %" in words.replace("\u00a0", " ")
    assert "−10.0" in words  # compared with random images, by the same network


def test_one_network_has_no_deviation(tmp_path: Path) -> None:
    """Older files have 0.0 instead of null."""
    run = make_complete_run(tmp_path / "run")
    rows = [{**make_row("distilled", "chosen", 0.5, std), "n": 1, "balanced_accuracy_mean": 0.4} for std in (0.0, None)]
    pages = set()
    for row in ({**rows[0], "balanced_accuracy_std": 0.0}, {**rows[1], "balanced_accuracy_std": None}):
        (run / "results.json").write_text(json.dumps({**RESULTS, "results": [row]}))
        (run / "log.jsonl").write_text(json.dumps({**VALIDATION, "n": 1, "accuracy_std": row["accuracy_std"]}))
        pages.add(write_report(run).read_text())
        write_comparison([run, run], tmp_path / "both.html")
        pages.add((tmp_path / "both.html").read_text())
        (run / "results.json").unlink()
        pages.add(write_report(run).read_text())
    assert len(pages) == 3  # both give the same pages
    for page in pages:
        words = page.replace("\u00a0", " ")
        assert "50.0 ±" not in words
        assert "± –" not in words
        assert "± 0.0" not in words


def test_the_headline_names_k_means_images_too(tmp_path: Path) -> None:
    """They may be better than the set, and than random ones."""
    run = make_complete_run(tmp_path / "run")
    rows = [*RESULTS["results"], make_row("kmeans", None, 0.95, 0.01)]
    (run / "results.json").write_text(json.dumps({**RESULTS, "results": rows}))
    words = parse_page(write_report(run)).words
    assert "2 random real images 67.0 ± 2.1 %; 2 k-means real images 95.0 ± 1.0 %; all 1,294" in words
    assert "As many k-means real images reach 95.0 ± 1.0 %; this set is worse by 6.1 points." in words


def test_comparison_of_two_runs(tmp_path: Path) -> None:
    one = make_complete_run(tmp_path / "one")
    two = make_complete_run(tmp_path / "two", config={"ipc": 1, "student": {"steps": 20, "lr": 0.02}})
    page = parse_page(write_comparison([one, two], tmp_path / "out" / "c.html"))
    assert "2 runs side by side" in page.words
    assert "student.steps" in page.words
    assert "student.lr" not in page.words
    assert page.tags.count("svg") == 3
    assert page.tags.count("img") == 16
    assert "do not share their data" not in page.words
    other = make_minimal_run(tmp_path / "deep" / "one", data={**META["data"], "fingerprint": "other"})
    words = parse_page(write_comparison([one, other], tmp_path / "c.html")).words
    assert "do not share their data" in words
    assert "2: one" in words
    with pytest.raises(UserError, match="nothing to compare"):
        write_comparison([], tmp_path / "c.html")


def test_plots_of_long_and_degenerate_curves() -> None:
    assert plot("t", [Line("a", [1, 2], [None, float("nan")])], "step", salt="s") is None
    steps = list(range(20_000))
    long = plot("t", [Line("a", steps, [1e-9 + s for s in steps])], "step", salt="s")
    assert long is not None
    assert long.log
    assert len(long.svg) < 60_000
    for values in ([0.5], [0.0, 0.0], [-1.0, None, 1.0], [1e-300, 1e29], [3.0, 3.0]):
        assert plot("t", [Line("a", range(len(values)), values)], "step", salt="s", marks=[0]) is not None
    assert plot("t", [Line("_a$", [1], [2.0], colour=7)], "step", salt="s") is not None


def test_the_report_loads_no_torch() -> None:
    code = "import sys, limbeck.report.page; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("form", "sentence"), [("convex", "Experts, convexified"), ("recorded", "Experts, every epoch")]
)
def test_the_report_names_the_form_of_stored_experts(tmp_path: Path, form: str, sentence: str) -> None:
    run = make_complete_run(tmp_path / "run")
    experts = json.loads((run / "experts.json").read_text())
    (run / "experts.json").write_text(json.dumps({**experts, "kept": form}))
    page = write_report(run).read_text()
    assert sentence in page
    assert ("not stored, for comparison" in page) == (form == "convex")
