"""Import of experts of MTT, DATM and MCT from files that code of its own lays out as their scripts do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from authors_files import (
    NETWORK,
    compress,
    flat,
    get_point,
    refuse,
    save,
    save_mct,
    walk,
    waypoint_epochs,
)
from hypothesis import example, given
from hypothesis import strategies as st

import limbeck
from limbeck.core.errors import UserError
from limbeck.data import ImageData
from limbeck.experts import Convexified, ExpertConfig, Store
from limbeck.interop import import_experts
from limbeck.interop.expert_files import guess_network
from limbeck.networks.registry import ModelConfig, flat_model


def test_a_replay_buffer_becomes_recorded_experts(
    tmp_path: Path, import_buffers: Callable[..., Store], digits: ImageData
) -> None:
    paths = [walk(seed, 4) for seed in range(3)]
    save(paths[:2], tmp_path / "buffers/replay_buffer_0.pt")
    save(paths[2:], tmp_path / "buffers/replay_buffer_1.pt")
    store = import_buffers(tmp_path / "buffers")
    assert store.indices() == [0, 1, 2]
    assert store.config == ExpertConfig(epochs=4, keep="recorded")
    assert store.header.data.fingerprint == digits.fingerprint
    assert store.header.model == NETWORK.resolved((8, 8)).model_dump()
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
    tmp_path: Path, import_buffers: Callable[..., Store], name: str
) -> None:
    save([walk(0, 3)], tmp_path / f"b/{name}replay_buffer_0.pt")
    assert import_buffers(tmp_path / "b").read(0).recorded is not None


@pytest.mark.parametrize("count", range(2, 12))
def test_waypoint_files_answer_as_the_authors_reader(
    tmp_path: Path, import_buffers: Callable[..., Store], count: int
) -> None:
    path = walk(count, 50)
    save_mct(tmp_path / "b", [path], count)
    convex = import_buffers(tmp_path / "b", epochs=50).read(0).convex
    assert isinstance(convex, Convexified)
    points, steps = compress(path, count)
    at = [0, 50] if count == 2 else waypoint_epochs(count, 50)
    assert list(convex.epochs) == at
    for t in [*at, 0.0, 0.25, 3, 7.5, 16.999, 24.5, 33.3, 44.9, 47.75, 49.999, 50]:
        torch.testing.assert_close(convex.at(t), flat(get_point(points, steps, t)), atol=2e-6, rtol=1e-5)
    for epoch, point in zip(at, points):
        assert torch.equal(convex.at(epoch), flat(point)), "waypoints come back bit for bit"


def test_the_ablations_of_mct_keep_their_schedules(tmp_path: Path, import_buffers: Callable[..., Store]) -> None:
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
            expected = flat(get_point([path[0], path[-1]], steps, t))
            torch.testing.assert_close(convex.at(t), expected, atol=2e-6, rtol=1e-5)
    assert decreasing[0] == pytest.approx(0.03846, abs=1e-5)


def test_a_tensor_that_never_moves_is_no_hindrance(tmp_path: Path, import_buffers: Callable[..., Store]) -> None:
    path = walk(0, 4)
    for checkpoint in path:
        checkpoint[1] = path[0][1].clone()
    save_mct(tmp_path / "b", [path], 2)
    convex = import_buffers(tmp_path / "b").read(0).convex
    assert convex is not None
    assert torch.equal(convex.at(4), flat(path[4]))
    assert torch.equal(convex.beta[-1], torch.ones(len(path[0])))


def test_one_kind_of_several_is_chosen(tmp_path: Path, import_buffers: Callable[..., Store]) -> None:
    save([walk(0, 4)], tmp_path / "b/replay_buffer_0.pt")
    save_mct(tmp_path / "b", [walk(0, 4)], 2)
    with pytest.raises(UserError, match="replay_buffer, waypoint_buffer; say which with --kind"):
        import_buffers(tmp_path / "b")
    assert import_buffers(tmp_path / "b", kind="waypoint_buffer").read(0).convex is not None


def test_files_may_be_named_one_by_one_and_counted(tmp_path: Path, import_buffers: Callable[..., Store]) -> None:
    files = [save([walk(n, 2), walk(n + 1, 2)], tmp_path / f"b/replay_buffer_{n}.pt") for n in (3, 7)]
    assert import_buffers(files, num_experts=3).indices() == [0, 1, 2]


def test_ten_experts_are_imported_convexified_and_distilled_from(tmp_path: Path) -> None:
    save([walk(seed, 4) for seed in range(10)], tmp_path / "b/replay_buffer_0.pt")
    data = limbeck.load_data("digits")
    recorded = import_experts(tmp_path / "b", tmp_path / "recorded", data, measure=20)
    convex = recorded.convexify(tmp_path / "convex", waypoints=3, smoothing="mct", dtype="float32")
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


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code was run')",))


def test_code_and_other_files_are_refused(tmp_path: Path, import_buffers: Callable[..., Store]) -> None:
    path = tmp_path / "b/replay_buffer_0.pt"
    save([Evil()], path)
    refuse("pickled code", lambda: import_buffers(path))
    path.write_bytes(b"not torch at all")
    refuse("not a file of torch.save", lambda: import_buffers(path))
    whole = save([walk(0, 2)], path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refuse("not a file of torch.save", lambda: import_buffers(path))
    save({"a": torch.zeros(2)}, path)
    refuse("a dict, not a list of experts", lambda: import_buffers(path))
    refuse("does not exist", lambda: import_buffers(tmp_path / "nothing"))
    refuse("no file called", lambda: import_buffers(tmp_path))
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / ".store.part").exists()


def test_gaps_and_missing_steps_are_refused(tmp_path: Path, import_buffers: Callable[..., Store]) -> None:
    save([walk(0, 2)], tmp_path / "b/replay_buffer_0.pt")
    save([walk(0, 2)], tmp_path / "b/replay_buffer_2.pt")
    refuse(r"no replay_buffer_1\.pt", lambda: import_buffers(tmp_path / "b"))
    save_mct(tmp_path / "w", [walk(0, 6)], 3)
    refuse("steps are found beside", lambda: import_buffers(tmp_path / "w/step_buffer_ip3_0.pt"))
    (tmp_path / "w/step_buffer_ip3_0.pt").unlink()
    refuse(r"lacks step_buffer_ip3_0\.pt", lambda: import_buffers(tmp_path / "w"))


def test_parameters_of_another_network_are_refused_with_the_one_that_fits(
    tmp_path: Path, import_buffers: Callable[..., Store]
) -> None:
    folder = tmp_path / "b"
    save([walk(0, 2)], folder / "replay_buffer_0.pt")
    refuse(
        r"features\.0\.weight has shape \(3, 1, 3, 3\), .* \(5, 1, 3, 3\); what fits is .*--model.width 3",
        lambda: import_buffers(folder, model=ModelConfig(depth=2, width=5)),
    )
    refuse(
        "--model.depth 2 --model.width 3, for 10", lambda: import_buffers(folder, model=ModelConfig(depth=3, width=3))
    )
    save([walk(0, 2, shape=(3, 16, 16))], folder / "replay_buffer_0.pt")
    refuse("images of 16 x 16 pixels with 3 channel", lambda: import_buffers(folder))
    save([[[*checkpoint, torch.zeros(3)] for checkpoint in walk(0, 2)]], folder / "replay_buffer_0.pt")
    refuse("11 parameter tensors, and this network has 10", lambda: import_buffers(folder, model=NETWORK))
    refuse("fits no ConvNet and no MLP", lambda: import_buffers(folder))
    save([[[*checkpoint[:-1], 3.0] for checkpoint in walk(0, 2)]], folder / "replay_buffer_0.pt")
    refuse("item 9 is a float", lambda: import_buffers(folder, model=NETWORK))


def test_aliased_and_diverged_experts_are_refused(tmp_path: Path, import_buffers: Callable[..., Store]) -> None:
    path = walk(0, 3)
    save([walk(1, 3), [path[3] for _ in range(4)]], tmp_path / "b/replay_buffer_0.pt")
    refuse("expert 1: its 4 checkpoints are all alike", lambda: import_buffers(tmp_path / "b"))
    path[2][3][0] = float("nan")
    save([path], tmp_path / "b/replay_buffer_0.pt")
    refuse(r"checkpoint 2: features\.1\.bias holds NaN", lambda: import_buffers(tmp_path / "b"))
    save([path[:1]], tmp_path / "b/replay_buffer_0.pt")
    refuse("one checkpoint", lambda: import_buffers(tmp_path / "b"))


def test_experts_of_other_lengths_are_refused(tmp_path: Path, import_buffers: Callable[..., Store]) -> None:
    save([walk(0, 3), walk(1, 2)], tmp_path / "b/replay_buffer_0.pt")
    refuse("has 2 epochs and 2 waypoints, those before it 3", lambda: import_buffers(tmp_path / "b"))
    refuse("ends at epoch 3, not 50", lambda: import_buffers(tmp_path / "b", epochs=50))
    (tmp_path / "store").mkdir()
    (tmp_path / "store/something").write_text("kept")
    refuse("exists and is not an empty folder", lambda: import_buffers(tmp_path / "b"))
    without_validation = limbeck.load_data("digits", validation=0)
    refuse("no validation images", lambda: import_experts(tmp_path / "b", tmp_path / "other", without_validation))


def change(rows: Any, k: int, value: float) -> None:
    rows[k][0] = torch.tensor(value)


@pytest.mark.parametrize(
    ("damage", "message"),
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
    tmp_path: Path, import_buffers: Callable[..., Store], damage: Callable[[Any], Any], message: str
) -> None:
    points, steps = compress(walk(0, 6), 3)
    damage(steps)
    save([points], tmp_path / "b/waypoint_buffer_ip3_0.pt")
    save([steps], tmp_path / "b/step_buffer_ip3_0.pt")
    refuse(message, lambda: import_buffers(tmp_path / "b"))


def test_a_waypoint_and_a_step_file_of_other_lengths_are_refused(
    tmp_path: Path, import_buffers: Callable[..., Store]
) -> None:
    save_mct(tmp_path / "b", [walk(0, 6), walk(1, 6)], 3)
    save([compress(walk(0, 6), 3)[1]], tmp_path / "b/step_buffer_ip3_0.pt")
    refuse(r"holds 2 experts, step_buffer_ip3_0\.pt 1", lambda: import_buffers(tmp_path / "b"))


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


@pytest.mark.parametrize("place", [0, 1, -2, -1])
def test_no_network_has_an_empty_tensor(place: int) -> None:
    """Its width of 0 once ended in an error of pydantic."""
    shapes = list(flat_model(NETWORK, (1, 8, 8), 10).layout.shapes)
    shapes[place] = (0, *shapes[place][1:])
    assert guess_network(shapes) is None
    assert guess_network([(0,)] * len(shapes)) is None
    assert guess_network([(0, 64), (0,), (10, 0), (10,)]) is None


@given(place=st.integers(0, 9), shape=st.lists(st.integers(0, 70_000), max_size=5), length=st.integers(0, 10))
@example(place=0, shape=[], length=10)
@example(place=0, shape=[65537], length=10)
def test_any_shapes_are_of_a_network_or_of_none(place: int, shape: list[int], length: int) -> None:
    """A scalar as the first tensor once was an IndexError, a width that is too large an error of pydantic."""
    shapes = list(flat_model(NETWORK, (1, 8, 8), 10).layout.shapes)
    shapes[place] = tuple(shape)
    guess = guess_network(shapes[:length])
    if guess is not None:
        assert list(flat_model(guess.model, guess.shape, guess.classes).layout.shapes) == shapes[:length]
