"""The table of many runs."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from limbeck.core.errors import UserError
from limbeck.core.records import ResultRow
from limbeck.report.page import write_comparison, write_report
from limbeck.report.table import pool_runs, write_table


def make_row(mean: float, std: float | None, n: int) -> ResultRow:
    return ResultRow(set="random", model="convnet", split="test", accuracy_mean=mean, accuracy_std=std, n=n)


def make_run(
    path: Path, method: str, mean: float, seed: int = 0, record: dict[str, Any] | None = None, **config: Any
) -> Path:
    path.mkdir(parents=True)
    rows = [
        {
            "set": name,
            "which": which,
            "model": "convnet",
            "split": "test",
            "accuracy_mean": m,
            "accuracy_std": 0.02,
            "n": 5,
        }
        for name, which, m in (("distilled", "chosen", mean), ("distilled", "last", mean - 0.1), ("random", None, 0.4))
    ]
    head = {"format": "limbeck-run", "version": 1}
    results = {
        "format": "limbeck-results",
        "version": 1,
        "method": method,
        "data": {"name": "digits", "fingerprint": "f"},
        "ipc": 1,
        "results": rows,
    }
    (path / "results.json").write_text(json.dumps(results))
    (path / "run.json").write_text(
        json.dumps({**head, **(record or {}), "config": {"seed": seed, "data": "f", **config}})
    )
    return path


def test_images_of_tiles_say_so(tmp_path: Path) -> None:
    """Random images are as many as are stored, and networks are trained on more: 4 of every image."""
    runs = [make_run(tmp_path / "mct", "mct", 0.7, factor=2), make_run(tmp_path / "mtt", "mtt", 0.6, factor=1)]
    text = write_table(runs, tmp_path / "results.md").read_text()
    assert "| digits | 1 of 2 x 2 tiles | mct |" in text
    assert "| digits | 1 | mtt |" in text
    page = write_comparison(runs, tmp_path / "comparison.html").read_text()
    assert "1 of 2 x 2 tiles" in page
    assert write_report(runs[0]).read_text().count("1 of 2 x 2 tiles") == 1


def test_a_name_is_one_cell_whatever_it_holds(tmp_path: Path) -> None:
    """One of 10,000 damaged results had half a character in a name: UnicodeEncodeError."""
    run = make_run(tmp_path / "run", "mct", 0.7)
    results = json.loads((run / "results.json").read_text())
    results["data"]["name"] = "cats | \ud800\n| dogs"
    (run / "results.json").write_text(json.dumps(results))
    text = write_table([run], tmp_path / "results.md").read_text()
    assert "\n| cats \\| \\ud800\\n\\| dogs | 1 | mct |" in text


def test_the_table_has_a_line_per_setting_with_the_number_of_seeds(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"mct{seed}", "mct", 0.7 + seed / 10, seed) for seed in range(2)]
    runs += [make_run(tmp_path / "mtt", "mtt", 0.6), make_run(tmp_path / "mtt-long", "mtt", 0.65, iterations=9)]
    text = write_table(runs, tmp_path / "out" / "results.md", "A note.").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| digits")]
    assert len(lines) == 3
    std = 100 * (0.02**2 + stdev([0.7, 0.8]) ** 2 - 0.02**2 / 5) ** 0.5
    assert f"| mct |  | 2 | 75.0 ± {std:.1f} (n = 5) | 65.0 ±" in lines[0]
    assert (
        "| mtt |  | 1 | 60.0 ± 2.0 (n = 5) | 50.0 ± 2.0 (n = 5) | 40.0 ± 2.0 (n = 5) | – | – |" in lines[1] + lines[2]
    )
    assert "| iterations = 9 | 1 | 65.0" in lines[1] + lines[2]
    assert "A note." in text
    assert not list(tmp_path.rglob("*.part"))


def test_runs_on_other_images_are_no_seeds_of_one_another(tmp_path: Path) -> None:
    """Other sizes, other numbers of images, other pixels by the same seed, and another store of experts."""
    small, large = (
        {"shape": [1, 8, 8], "counts": {"train": [5, 5]}},
        {"shape": [1, 16, 16], "counts": {"train": [5, 5]}},
    )
    runs = [
        make_run(tmp_path / "a", "mct", 0.5, record={"data": small}),
        make_run(tmp_path / "b", "mct", 0.6, seed=1, data="g", record={"data": small}),
        make_run(tmp_path / "c", "mct", 0.7, record={"data": large}),
        make_run(tmp_path / "d", "mct", 0.8, record={"data": {**small, "counts": {"train": [5, 4]}}}),
        make_run(tmp_path / "e", "dm", 0.6),
        make_run(tmp_path / "f", "dm", 0.8, data="g"),
        make_run(tmp_path / "g", "mtt", 0.6, experts="one"),
        make_run(tmp_path / "h", "mtt", 0.8, experts="two"),
    ]
    lines = [text for text in write_table(runs, tmp_path / "out.md").read_text().splitlines() if "| digits" in text]
    cells = [[cell.strip() for cell in line.split("|")[3:7]] for line in lines]
    assert sorted((method, how, seeds, chosen[:4]) for method, how, seeds, chosen in cells) == [
        ("dm", "data = f", "1", "60.0"),
        ("dm", "data = g", "1", "80.0"),
        ("mct", "image = 1x16x16, training images = 10", "1", "70.0"),
        ("mct", "image = 1x8x8, training images = 10", "2", "55.0"),
        ("mct", "image = 1x8x8, training images = 9", "1", "80.0"),
        ("mtt", "experts = one", "1", "60.0"),
        ("mtt", "experts = two", "1", "80.0"),
    ]


def test_runs_with_old_option_names_share_the_line_of_new_runs(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "before", "mct", 0.7, draws=2, count=5)]
    runs += [make_run(tmp_path / "since", "mct", 0.8, seed=1, grad_accum=2, num_experts=5)]
    (line,) = [text for text in write_table(runs, tmp_path / "out.md").read_text().splitlines() if "| digits" in text]
    assert "| mct |  | 2 |" in line
    page = write_comparison(runs, tmp_path / "out.html").read_text()
    assert "seed" in page
    settings = re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL)  # without the calls that repeat the runs
    assert not any(name in settings for name in ("draws", "grad_accum", "num_experts"))


def test_pooled_mean_and_deviation_of_many_networks() -> None:
    """Against the accuracies of all networks, of three seeds with 400 networks each."""
    seeds = [[0.1 * s + 0.01 * (i % 2) for i in range(400)] for s in range(3)]
    cell = pool_runs([make_row(fmean(seed), stdev(seed), 400) for seed in seeds])
    means = [fmean(accuracies) for accuracies in seeds]
    assert cell.mean == pytest.approx(fmean([value for accuracies in seeds for value in accuracies]))
    assert cell.std**2 == pytest.approx(0.005**2 + stdev(means) ** 2, rel=1e-2)


@pytest.mark.parametrize(("between", "networks"), [(0.03, 2), (0.03, 5), (0.01, 1), (0.0, 4)])
def test_pooled_variance_is_unbiased(between: float, networks: int) -> None:
    """Averaged over 3000 experiments with a deviation of 0.02 within a seed and of `between` between seeds."""
    generator, variances = random.Random(0), []
    for _ in range(3000):
        seeds = [generator.gauss(0.5, between) for _ in range(10)]
        accuracies = [[generator.gauss(mean, 0.02) for _ in range(networks)] for mean in seeds]
        rows = [make_row(fmean(values), stdev(values) if networks > 1 else None, networks) for values in accuracies]
        std = pool_runs(rows).std
        assert std is not None
        variances.append(std**2)
    low = 0.02**2 + between**2
    # If seeds do not differ, clipping the variance between them at 0 makes it slightly too large on average.
    assert low * 0.98 < fmean(variances) < low * (1.02 if between else 1.05)


def test_the_scatter_of_means_is_not_counted_twice() -> None:
    """Four networks with a deviation of 0.0224, and two means whose distance follows from it."""
    means = [0.5 - 0.0224 / 8**0.5, 0.5 + 0.0224 / 8**0.5]
    cell = pool_runs([make_row(mean, 0.0224, 4) for mean in means])
    assert cell.std == pytest.approx(0.0224)
    equal_means = pool_runs([make_row(0.5, 0.0224, 4)] * 2)
    assert equal_means.std == pytest.approx(0.0224)  # the variance between seeds is clipped at 0


def test_one_network_has_no_deviation(tmp_path: Path) -> None:
    """For one seed it is unknown (null, or 0.0 in older files); for several seeds it is that between them."""
    for std in (None, 0.0):
        assert str(pool_runs([make_row(0.5, std, 1)])) == "50.0 (n = 1)"
        assert pool_runs([make_row(0.5, std, 1), make_row(0.6, std, 1)]).std == pytest.approx(stdev([0.5, 0.6]))


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    unfinished = make_run(tmp_path / "run", "mct", 0.7)
    (unfinished / "results.json").unlink()
    for folder in (unfinished, tmp_path / "nothing"):
        with pytest.raises(UserError, match=r"not a finished run .*[^.]\); run"):
            write_table([folder], tmp_path / "results.md")
    with pytest.raises(UserError, match="needs runs"):
        write_table([], tmp_path / "results.md")
    assert not (tmp_path / "results.md").exists()


def test_a_line_of_balanced_accuracy_where_it_differs(tmp_path: Path) -> None:
    """Both lines would be equal for balanced classes."""
    runs = [make_run(tmp_path / name, "mct", 0.7, name=name) for name in ("even", "uneven")]
    for path, off in zip(runs, (0.001, -0.1)):
        results = json.loads((path / "results.json").read_text())
        results["data"]["name"] = path.name
        for row in results["results"]:
            row |= {"balanced_accuracy_mean": row["accuracy_mean"] + off, "balanced_accuracy_std": 0.03}
        (path / "results.json").write_text(json.dumps(results))
    lines = [line for line in write_table(runs, tmp_path / "t.md").read_text().splitlines() if "even" in line]
    assert [line.split(" | ")[0] for line in lines] == ["| even", "| uneven", "| uneven (balanced accuracy)"]
    assert "| 60.0 ± 3.0 (n = 5) | 50.0 ± 3.0 (n = 5) |" in lines[2]
