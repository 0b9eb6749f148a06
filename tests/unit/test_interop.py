"""Files of MTT, DATM and MCT, made here by code of its own as their scripts lay them out, read and written again."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import limbeck
from limbeck.cli.info import describe
from limbeck.cli.main import main
from limbeck.core.errors import UserError
from limbeck.data import ImageData, fit_preprocess
from limbeck.evaluation.protocol import evaluate
from limbeck.experts import Convexified, Expert, ExpertConfig, Recorded, Store
from limbeck.experts.make import describe_experts
from limbeck.interop import export_experts, export_set, import_experts, import_set
from limbeck.interop.read import guess_network
from limbeck.networks.registry import ModelConfig, flat_model
from limbeck.synthetic.distilled import load
from limbeck.task import Task, make_task

Path_ = list[list[Tensor]]  # of one expert: checkpoints of parameter tensors
NETWORK = ModelConfig(depth=2, width=3)


# --- the authors' files, from the description of their formats


def walk(seed: int, epochs: int, network: ModelConfig = NETWORK, shape: tuple[int, int, int] = (1, 8, 8)) -> Path_:
    """A random walk where an expert would be, as a list of epochs of lists of tensors of their own."""
    generator = torch.Generator().manual_seed(seed)
    shapes = flat_model(network, shape, 10).layout.shapes
    path = [[0.1 * torch.randn(shape, generator=generator) for shape in shapes]]
    for _ in range(epochs):
        path.append(
            [
                t + 0.05 * torch.rand((), generator=generator) * torch.randn(t.shape, generator=generator)
                for t in path[-1]
            ]
        )
    return path


def arc(path: Path_) -> list[list[Tensor]]:
    """Rows of 0-d fractions, from zeros to ones."""
    tensors = range(len(path[0]))
    lengths = [[(b[i] - a[i]).norm() for i in tensors] for a, b in itertools.pairwise(path)]
    total = [sum(row[i] for row in lengths) for i in tensors]
    total = [t if float(t) else torch.tensor(1.0) for t in total]
    rows, gone = [[torch.tensor(0.0) for _ in tensors]], [torch.tensor(0.0) for _ in tensors]
    for row in lengths:
        gone = [g + step for g, step in zip(gone, row)]
        rows.append([g / t for g, t in zip(gone, total)])
    return rows


def indices(count: int, epochs: int) -> list[int]:
    """Where the authors' training script puts `count` waypoints."""
    found = [*range(0, epochs + 1, (epochs + 1) // (count - 1))]
    return found if found[-1] == epochs else [*found, epochs]


def compress(path: Path_, count: int) -> tuple[Path_, Any]:
    """Waypoints and steps of one expert: of two, rows; of more, a list of rows for every segment, and smoothed."""
    if count == 2:
        return [path[0], path[-1]], arc(path)
    at = indices(count, len(path) - 1)
    steps = [arc(path[a : b + 1]) for a, b in itertools.pairwise(at)]
    points = [path[0]]
    points += [[(a + b) / 2 for a, b in zip(path[w - 1], path[w + 1])] for w in at[1:-1]]
    points.append([(a + b) / 2 for a, b in zip(path[-2], path[-1])])
    return points, steps


def get_point(points: Path_, steps: Any, n: float) -> list[Tensor]:
    """The trajectory at real epoch n; at the very end the last waypoint, where the authors' reader has no answer."""
    segments = steps if isinstance(steps[0][0], list) else [steps]
    first = 0
    for index, rows in enumerate(segments):
        last = first + len(rows) - 1
        if first <= n < last:
            k, alpha = int(n) - first, n - int(n)
            pairs = zip(points[index], points[index + 1], rows[k], rows[k + 1])
            return [a + ((1 - alpha) * low + alpha * high) * (b - a) for a, b, low, high in pairs]
        first = last
    return points[-1]


def save(value: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


def save_mct(folder: Path, paths: list[Path_], count: int, number: int = 0) -> None:
    made = [compress(path, count) for path in paths]
    name = f"{number}" if count == 2 else f"ip{count}_{number}"
    save([points for points, _ in made], folder / f"waypoint_buffer_{name}.pt")
    save([steps for _, steps in made], folder / f"step_buffer_{name}.pt")


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@pytest.fixture
def bring(tmp_path: Path, digits: ImageData) -> Callable[..., Store]:
    def call(source: Path | list[Path], **options: Any) -> Store:
        return import_experts(source, tmp_path / "store", digits, **{"measure": 20, **options})

    return call


# --- experts: reading


def test_a_replay_buffer_becomes_recorded_experts(
    tmp_path: Path, bring: Callable[..., Store], digits: ImageData
) -> None:
    paths = [walk(seed, 4) for seed in range(3)]
    save(paths[:2], tmp_path / "buffers/replay_buffer_0.pt")
    save(paths[2:], tmp_path / "buffers/replay_buffer_1.pt")
    store = bring(tmp_path / "buffers")
    assert store.indices() == [0, 1, 2]
    assert store.config == ExpertConfig(epochs=4, keep="recorded")
    assert store.header["data"]["fingerprint"] == digits.fingerprint
    assert store.header["model"] == NETWORK.resolved((8, 8)).model_dump()
    for index, path in enumerate(paths):
        expert = store.read(index)
        assert expert.convex is None
        assert expert.recorded is not None
        assert expert.recorded.end == 4
        assert len(expert.validation) == 5
        for epoch in range(5):
            assert torch.equal(expert.recorded.at(epoch), flat(path[epoch]))


@pytest.mark.parametrize("name", ["convexified_", "convexified_v2_", "convexified_v3_"])
def test_convexified_replay_buffers_are_recorded_experts(
    tmp_path: Path, bring: Callable[..., Store], name: str
) -> None:
    save([walk(0, 3)], tmp_path / f"b/{name}replay_buffer_0.pt")
    assert bring(tmp_path / "b").read(0).recorded is not None


@pytest.mark.parametrize("count", range(2, 12))
def test_waypoint_files_answer_as_the_authors_reader(tmp_path: Path, bring: Callable[..., Store], count: int) -> None:
    path = walk(count, 50)
    save_mct(tmp_path / "b", [path], count)
    convex = bring(tmp_path / "b", epochs=50).read(0).convex
    assert isinstance(convex, Convexified)
    points, steps = compress(path, count)
    at = [0, 50] if count == 2 else indices(count, 50)
    assert list(convex.epochs) == at
    for t in [*at, 0.0, 0.25, 3, 7.5, 16.999, 24.5, 33.3, 44.9, 47.75, 49.999, 50]:
        torch.testing.assert_close(convex.at(t), flat(get_point(points, steps, t)), atol=2e-6, rtol=1e-5)
    for epoch, point in zip(at, points):
        assert torch.equal(convex.at(epoch), flat(point)), "waypoints come back bit for bit"


def test_the_ablations_of_mct_keep_their_schedules(tmp_path: Path, bring: Callable[..., Store]) -> None:
    path = walk(0, 50)
    tensors = len(path[0])
    decreasing = torch.tensor([51.0 - k for k in range(51)]).cumsum(0) / 1326
    uniform = torch.arange(51) / 50
    start, end = flat(path[0]), flat(path[-1])
    projected = torch.stack([(flat(p) - start) @ (end - start) / (end - start).square().sum() for p in path])
    for name, values in {"uni": uniform, "dec": decreasing, "proj": projected}.items():
        steps = [[value.clone() for _ in range(tensors)] for value in values]
        folder = tmp_path / name
        save([[path[0], path[-1]]], folder / f"waypoint_buffer_{name}_0.pt")
        save([steps], folder / f"step_buffer_{name}_0.pt")
        store = import_experts(folder, tmp_path / f"store-{name}", "digits", measure=20)
        convex = store.read(0).convex
        assert convex is not None
        for t in (0, 0.5, 1, 20.25, 49.5, 50):
            wanted = flat(get_point([path[0], path[-1]], steps, t))
            torch.testing.assert_close(convex.at(t), wanted, atol=2e-6, rtol=1e-5)
    assert decreasing[0] == pytest.approx(0.03846, abs=1e-5)


def test_a_tensor_that_never_moves_is_no_hindrance(tmp_path: Path, bring: Callable[..., Store]) -> None:
    path = walk(0, 4)
    for checkpoint in path:
        checkpoint[1] = path[0][1].clone()
    save_mct(tmp_path / "b", [path], 2)
    convex = bring(tmp_path / "b").read(0).convex
    assert convex is not None
    assert torch.equal(convex.at(4), flat(path[4]))
    assert torch.equal(convex.beta[-1], torch.ones(len(path[0])))


def test_one_kind_of_several_is_chosen(tmp_path: Path, bring: Callable[..., Store]) -> None:
    save([walk(0, 4)], tmp_path / "b/replay_buffer_0.pt")
    save_mct(tmp_path / "b", [walk(0, 4)], 2)
    with pytest.raises(UserError, match="replay_buffer, waypoint_buffer; say which with --kind"):
        bring(tmp_path / "b")
    assert bring(tmp_path / "b", kind="waypoint_buffer").read(0).convex is not None


def test_files_may_be_named_one_by_one_and_counted(tmp_path: Path, bring: Callable[..., Store]) -> None:
    files = [save([walk(n, 2), walk(n + 1, 2)], tmp_path / f"b/replay_buffer_{n}.pt") for n in (3, 7)]
    assert bring(files, num_experts=3).indices() == [0, 1, 2]


def test_ten_experts_are_imported_convexified_and_distilled_from(tmp_path: Path) -> None:
    save([walk(seed, 4) for seed in range(10)], tmp_path / "b/replay_buffer_0.pt")
    data = limbeck.load_data("digits")
    recorded = import_experts(tmp_path / "b", tmp_path / "recorded", data, measure=20)
    convex = recorded.convexified(tmp_path / "convex", waypoints=3, smoothing="mct", dtype="float32")
    assert convex.indices() == list(range(10))
    run = limbeck.distill(
        data,
        out=tmp_path / "run",
        experts=convex.path,
        model=NETWORK,
        iterations=3,
        syn_steps=2,
        max_start_epoch=1,
        expert_epochs=1,
        validate_networks=1,
        validate_epochs=2,
        eval={"epochs": 2, "networks": 1, "full_networks": 0},
    )
    assert json.loads((run / "results.json").read_text())["results"]


# --- experts: what is refused


def refuse(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code was run')",))


def test_code_and_other_files_are_refused(tmp_path: Path, bring: Callable[..., Store]) -> None:
    path = tmp_path / "b/replay_buffer_0.pt"
    save([Evil()], path)
    refuse("pickled code", lambda: bring(path))
    path.write_bytes(b"not torch at all")
    refuse("not a file of torch.save", lambda: bring(path))
    whole = save([walk(0, 2)], path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refuse("not a file of torch.save", lambda: bring(path))
    save({"a": torch.zeros(2)}, path)
    refuse("a dict, not a list of experts", lambda: bring(path))
    refuse("does not exist", lambda: bring(tmp_path / "nothing"))
    refuse("no file called", lambda: bring(tmp_path))
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / ".store.part").exists()


def test_gaps_and_missing_steps_are_refused(tmp_path: Path, bring: Callable[..., Store]) -> None:
    save([walk(0, 2)], tmp_path / "b/replay_buffer_0.pt")
    save([walk(0, 2)], tmp_path / "b/replay_buffer_2.pt")
    refuse(r"no replay_buffer_1\.pt", lambda: bring(tmp_path / "b"))
    save_mct(tmp_path / "w", [walk(0, 6)], 3)
    refuse("steps are found beside", lambda: bring(tmp_path / "w/step_buffer_ip3_0.pt"))
    (tmp_path / "w/step_buffer_ip3_0.pt").unlink()
    refuse(r"lacks step_buffer_ip3_0\.pt", lambda: bring(tmp_path / "w"))


def test_parameters_of_another_network_are_refused_with_the_one_that_fits(
    tmp_path: Path, bring: Callable[..., Store]
) -> None:
    folder = tmp_path / "b"
    save([walk(0, 2)], folder / "replay_buffer_0.pt")
    refuse(
        r"features\.0\.weight has shape \(3, 1, 3, 3\), .* \(5, 1, 3, 3\); what fits is .*--model.width 3",
        lambda: bring(folder, model=ModelConfig(depth=2, width=5)),
    )
    refuse("--model.depth 2 --model.width 3, for 10", lambda: bring(folder, model=ModelConfig(depth=3, width=3)))
    save([walk(0, 2, shape=(3, 16, 16))], folder / "replay_buffer_0.pt")
    refuse("images of 16 x 16 pixels with 3 channel", lambda: bring(folder))
    save([[[*checkpoint, torch.zeros(3)] for checkpoint in walk(0, 2)]], folder / "replay_buffer_0.pt")
    refuse("11 parameter tensors, and this network has 10", lambda: bring(folder, model=NETWORK))
    refuse("fits no ConvNet and no MLP", lambda: bring(folder))
    save([[[*checkpoint[:-1], 3.0] for checkpoint in walk(0, 2)]], folder / "replay_buffer_0.pt")
    refuse("item 9 is a float", lambda: bring(folder, model=NETWORK))


def test_aliased_and_diverged_experts_are_refused(tmp_path: Path, bring: Callable[..., Store]) -> None:
    path = walk(0, 3)
    save([walk(1, 3), [path[3] for _ in range(4)]], tmp_path / "b/replay_buffer_0.pt")
    refuse("expert 1: its 4 checkpoints are all alike", lambda: bring(tmp_path / "b"))
    path[2][3][0] = float("nan")
    save([path], tmp_path / "b/replay_buffer_0.pt")
    refuse(r"checkpoint 2: features\.1\.bias holds NaN", lambda: bring(tmp_path / "b"))
    save([path[:1]], tmp_path / "b/replay_buffer_0.pt")
    refuse("one checkpoint", lambda: bring(tmp_path / "b"))


def test_experts_of_other_lengths_are_refused(tmp_path: Path, bring: Callable[..., Store]) -> None:
    save([walk(0, 3), walk(1, 2)], tmp_path / "b/replay_buffer_0.pt")
    refuse("has 2 epochs and 2 waypoints, those before it 3", lambda: bring(tmp_path / "b"))
    refuse("ends at epoch 3, not 50", lambda: bring(tmp_path / "b", epochs=50))
    (tmp_path / "store").mkdir()
    (tmp_path / "store/something").write_text("kept")
    refuse("exists; name a new folder", lambda: bring(tmp_path / "b"))
    few = limbeck.load_data("digits", validation=0)
    refuse("no validation images", lambda: import_experts(tmp_path / "b", tmp_path / "other", few))


def change(rows: Any, k: int, value: float) -> None:
    rows[k][0] = torch.tensor(value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop(), "3 waypoints and path fractions for 1 segment"),
        (lambda s: s[1].pop(), "end at 0.* the rows after it are missing"),
        (lambda s: s[0][1].pop(), "row 1 has 9 path fractions for 10"),
        (lambda s: change(s[0], 1, 1.5), "belong in"),
        (lambda s: change(s[0], 2, 0.0), "decrease from row 1 to row 2"),
        (lambda s: change(s[0], 1, float("inf")), "NaN or infinity"),
        (lambda s: change(s[1], 0, 0.01), "segment 1: path fractions begin"),
        (lambda s: s.__setitem__(0, s[0][:1]), "one row"),
    ],
    ids=range(8),
)
def test_steps_that_are_no_fractions_of_a_path_are_refused(
    tmp_path: Path, bring: Callable[..., Store], spoil: Callable[[Any], Any], message: str
) -> None:
    points, steps = compress(walk(0, 6), 3)
    spoil(steps)
    save([points], tmp_path / "b/waypoint_buffer_ip3_0.pt")
    save([steps], tmp_path / "b/step_buffer_ip3_0.pt")
    refuse(message, lambda: bring(tmp_path / "b"))


def test_a_waypoint_and_a_step_file_of_other_lengths_are_refused(tmp_path: Path, bring: Callable[..., Store]) -> None:
    save_mct(tmp_path / "b", [walk(0, 6), walk(1, 6)], 3)
    save([compress(walk(0, 6), 3)[1]], tmp_path / "b/step_buffer_ip3_0.pt")
    refuse(r"holds 2 experts, step_buffer_ip3_0\.pt 1", lambda: bring(tmp_path / "b"))


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (ModelConfig(depth=3, width=128), (3, 32, 32)),
        (ModelConfig(depth=4, width=16), (3, 64, 64)),
        (ModelConfig(depth=2, width=4, norm="none"), (1, 16, 16)),
        (ModelConfig(depth=2, width=4, norm="layer"), (1, 16, 16)),
        (ModelConfig(depth=2, width=4, pooling="none"), (1, 16, 16)),
        (ModelConfig(name="mlp", width=7), (3, 8, 8)),
    ],
)
def test_a_network_is_guessed_from_its_parameters(network: ModelConfig, shape: tuple[int, int, int]) -> None:
    shapes = list(flat_model(network, shape, 5).layout.shapes)
    guess = guess_network(shapes, shape[1:])
    assert guess is not None
    assert guess.model == network
    assert (guess.classes, guess.shape) == (5, shape)


# --- experts: writing


def make_store(path: Path, task: Task, experts: list[Expert], config: ExpertConfig) -> Store:
    store = Store.create(path, describe_experts(task, config, seed=0))
    for index, expert in enumerate(experts):
        store.write(index, expert)
    return store


@pytest.fixture
def small(digits: ImageData) -> Task:
    return make_task(digits, NETWORK)


def records(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for each in value for t in records(each)]


def test_recorded_experts_go_out_and_come_back(tmp_path: Path, small: Task, bring: Callable[..., Store]) -> None:
    paths = [torch.stack([flat(p) for p in walk(seed, 2)]) for seed in range(12)]
    experts = [Expert(None, Recorded(points), (0.1, 0.2, 0.3), 0.5) for points in paths]
    store = make_store(tmp_path / "ours", small, experts, ExpertConfig(epochs=2, keep="recorded"))
    files = export_experts(store, tmp_path / "out")
    assert [file.name for file in files] == ["replay_buffer_0.pt", "replay_buffer_1.pt"]
    held = torch.load(files[0], weights_only=True)
    assert [len(held), len(held[0]), len(held[0][0])] == [10, 3, 10]
    for tensor in records(held):
        assert tensor.untyped_storage().nbytes() == 4 * tensor.numel()
    back = bring(tmp_path / "out")
    assert back.header["key"] != store.header["key"]
    for index, points in enumerate(paths):
        recorded = back.read(index).recorded
        assert recorded is not None
        assert torch.equal(recorded.tensor(), points)
    refuse("no convexified trajectory", lambda: export_experts(store, tmp_path / "x", "mct"))
    refuse("style", lambda: export_experts(store, tmp_path / "x", "pickle"))


@pytest.mark.parametrize("count", [2, 4])
def test_convexified_experts_go_out_and_come_back(
    tmp_path: Path, small: Task, bring: Callable[..., Store], count: int
) -> None:
    save_mct(tmp_path / "theirs", [walk(0, 9)], count)
    first = bring(tmp_path / "theirs")
    files = export_experts(first, tmp_path / "again", "mct")
    for file in files:
        old, new = records(torch.load(tmp_path / "theirs" / file.name)), records(torch.load(file))
        assert len(old) == len(new)
        for a, b in zip(old, new):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
            assert b.untyped_storage().nbytes() == 4 * b.numel()
    second = import_experts(tmp_path / "again", tmp_path / "second", small.data, measure=20)
    a, b = first.read(0).convex, second.read(0).convex
    assert a is not None
    assert b is not None
    assert a.epochs == b.epochs
    assert torch.equal(a.waypoints, b.waypoints)
    assert torch.equal(a.beta, b.beta)
    refuse("no recorded trajectory", lambda: export_experts(first, tmp_path / "x", "mtt"))


# --- sets


def save_set(folder: Path, labels: Tensor, name: str = "best", prefix: str = "", lr: float | None = None) -> Tensor:
    images = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    save(images, folder / f"{prefix}images_{name}.pt")
    save(labels, folder / f"{prefix}labels_{name}.pt")
    if lr is not None:
        save(torch.tensor(lr), folder / f"{prefix}lr_{name}.pt")
    return images


def test_hard_labels_need_a_step_size_by_hand(tmp_path: Path, digits: ImageData) -> None:
    images = save_set(tmp_path, torch.arange(10))
    save_set(tmp_path, torch.arange(10), "5000")
    refuse(r"no lr_best\.pt .*--lr", lambda: import_set(tmp_path, digits))
    made = import_set(tmp_path, digits, lr=0.02)
    assert torch.equal(made.images, images)
    assert torch.equal(made.labels, torch.arange(10))
    assert made.lr == 0.02
    assert made.provenance["which"] == "best"
    assert any("constants were not in the files" in note for note in made.provenance["imported"]["notes"])
    made.save(tmp_path / "set.safetensors")
    rows = evaluate(tmp_path / "set.safetensors", data=digits, networks=1, epochs=2)
    assert rows[0].lr == 0.02


def test_datm_labels_are_logits_with_a_step_size(tmp_path: Path, digits: ImageData) -> None:
    logits = torch.randn(10, 10, generator=torch.Generator().manual_seed(2)).requires_grad_()
    save_set(tmp_path, logits, "1000", lr=0.03)
    made = import_set(tmp_path / "images_1000.pt", digits, model=ModelConfig(width=4))
    torch.testing.assert_close(made.labels, logits.softmax(1))
    assert not made.labels.requires_grad
    assert made.lr == pytest.approx(0.03)
    assert made.provenance["step"] == 1000
    assert made.recipe["model"]["width"] == 4
    assert any("logits" in note for note in made.provenance["imported"]["notes"])


def test_probabilities_stay_and_zca_is_fitted_anew(tmp_path: Path, digits: ImageData) -> None:
    labels = torch.eye(10) * 0.91 + 0.009
    save_set(tmp_path, labels)
    made = import_set(tmp_path, digits, preprocess="zca", lr=0.01)
    torch.testing.assert_close(made.labels, labels)
    assert made.preprocess.kind == "zca"
    assert made.preprocess.eps == pytest.approx(0.1)
    assert any("ZCA matrix was not in the files" in note for note in made.provenance["imported"]["notes"])


@pytest.mark.parametrize(("name", "prefix"), [("best", "ema_"), ("4000", "ema_")])
def test_averaged_images_of_ftd(tmp_path: Path, digits: ImageData, name: str, prefix: str) -> None:
    save_set(tmp_path, torch.arange(10), name, prefix)
    assert import_set(tmp_path, digits, lr=0.01).provenance["which"] == name


def test_images_of_mct_carry_their_ipc(tmp_path: Path, digits: ImageData) -> None:
    for ipc in (1, 10):
        save_set(tmp_path, torch.arange(10), f"ipc-{ipc}_best")
    refuse("images_ipc-1_.*images_ipc-10_", lambda: import_set(tmp_path, digits, lr=0.01))
    assert len(import_set(tmp_path / "images_ipc-1_best.pt", digits, lr=0.01).images) == 10


def test_the_latest_is_taken_where_there_is_no_best(tmp_path: Path, digits: ImageData) -> None:
    for name in ("900", "1000"):
        save_set(tmp_path, torch.arange(10), name)
    assert import_set(tmp_path, digits, lr=0.01).provenance["step"] == 1000


def test_sets_that_do_not_fit_are_refused(tmp_path: Path, digits: ImageData) -> None:
    def bring_set(**options: Any) -> Any:
        return import_set(tmp_path, digits, **{"lr": 0.01, **options})

    refuse("holds no images_best", bring_set)
    images = save_set(tmp_path, torch.arange(10) + 1)
    refuse("classes 1 to 10", bring_set)
    save_set(tmp_path, torch.arange(9))
    refuse("for 10 images", bring_set)
    save_set(tmp_path, torch.zeros(10, 7))
    refuse("has 10 classes", bring_set)
    save(images[:, :, :4], tmp_path / "images_best.pt")
    refuse("of shape", bring_set)
    save(images * float("nan"), tmp_path / "images_best.pt")
    refuse("NaN", bring_set)
    save_set(tmp_path, torch.arange(10), lr=-1.0)
    refuse("not one step size above 0", lambda: bring_set(lr=None))
    refuse("above 0", lambda: bring_set(lr=0.0))
    refuse("no preprocessing called", lambda: bring_set(preprocess="other"))
    refuse("are for three", lambda: bring_set(preprocess="cifar"))
    (tmp_path / "labels_best.pt").unlink()
    refuse("without labels", bring_set)


def test_constants_of_the_authors_code(digits: ImageData) -> None:
    split = replace(digits.train, images=digits.train.images.expand(-1, 3, -1, -1))
    colour = replace(digits, train=split)
    fitted = fit_preprocess("cifar", colour.train.images)
    torch.testing.assert_close(fitted.mean, torch.tensor([0.4914, 0.4822, 0.4465]))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("style", ["mtt", "datm"])
def test_sets_go_out_and_come_back(tmp_path: Path, digits: ImageData, soft: bool, style: str) -> None:
    save_set(tmp_path / "a", (torch.eye(10) * 0.91 + 0.009) if soft else torch.arange(10))
    made = import_set(tmp_path / "a", digits, lr=0.02)
    files = export_set(made, tmp_path / "b", style)
    assert [file.name for file in files] == ["images_best.pt", "labels_best.pt", "lr_best.pt"]
    if style == "datm":
        labels = torch.load(files[1])
        assert labels.shape == (10, 10)
        assert torch.isfinite(labels).all()
    again = import_set(tmp_path / "b", digits)
    assert torch.equal(again.images, made.images)
    assert again.lr == pytest.approx(0.02)
    if soft:
        torch.testing.assert_close(again.labels, made.labels)
    else:
        assert torch.equal(again.hard_labels(), made.labels)


def test_the_folder_for_dd_ranking(tmp_path: Path, digits: ImageData) -> None:
    save_set(tmp_path / "a", torch.arange(10).flip(0))
    made = import_set(tmp_path / "a", digits, lr=0.02)
    export_set(made, tmp_path / "b", "ddranking")
    assert torch.equal(torch.load(tmp_path / "b/labels.pt"), torch.arange(10))
    assert torch.equal(torch.load(tmp_path / "b/images.pt"), made.images.flip(0))
    assert float(torch.load(tmp_path / "b/lr.pt")) == pytest.approx(0.02)
    assert len(list((tmp_path / "b/images").rglob("00000.png"))) == 10
    lines = (tmp_path / "b/ddranking.yaml").read_text().splitlines()[1:]  # YAML whose values are JSON
    facts = {name: json.loads(value) for name, value in (line.split(": ", 1) for line in lines)}
    assert facts["ipc"] == 1
    assert facts["im_size"] == [8, 8]
    refuse("style", lambda: export_set(made, tmp_path / "c", "other"))


# --- the command line


def command(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*map(str, words), "--json"])
    captured = capsys.readouterr()
    assert end.value.code == 0, captured.err
    return json.loads(captured.out)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save([walk(0, 3)], tmp_path / "b/replay_buffer_0.pt")
    about = describe(str(tmp_path / "b/replay_buffer_0.pt"))
    assert about["checkpoints"] == 4
    assert about["classes"] == 10
    store = command(
        capsys, "import-experts", tmp_path / "b", "digits", "--out", tmp_path / "store", "--measure", 20, "--lr", 0.02
    )
    assert store["experts"] == 1
    assert store["expert"]["lr"] == 0.02
    assert "too high" in store["notes"][0]
    out = command(capsys, "export", tmp_path / "store", "--out", tmp_path / "again")
    assert out["names"] == ["replay_buffer_0.pt"]
    save_set(tmp_path / "s", torch.arange(10))
    file = tmp_path / "set.safetensors"
    made = command(capsys, "import-set", tmp_path / "s", "digits", "--out", file, "--lr", 0.02)
    assert made["step_size"] == 0.02
    assert load(file).lr == 0.02
    out = command(capsys, "export", file, "--out", tmp_path / "t", "--style", "datm")
    assert out["files"] == 3
    assert describe(str(tmp_path / "t/images_best.pt"))["shape"] == [10, 1, 8, 8]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import-set", "{0}", "digits", "--out", "{0}/x.pt", "--lr", "0.1"], "ends in .safetensors"),
        (["export", "{0}/nothing", "--out", "{0}/x"], "does not exist"),
        (["import-experts", "{0}", "digits", "--out", "{0}/x"], "no file called"),
    ],
)
def test_mistakes_at_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main([word.format(tmp_path) for word in words])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
