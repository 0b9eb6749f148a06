"""A Ray cluster of two machines, which are processes here: the bits of one machine, and what is lost is done again."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_studies import STUDY, read_record, start_here, write_file

from limbeck import UserError
from limbeck.engines import ENGINES, Local
from limbeck.experts.store import Store
from limbeck.studies.run import run_study

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: pip install '.[ray]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
WORDS = ["experts", "digits", "--model.width", "4", "--epochs", "20", "--lr", "0.05", "--threads", "1"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one processor, the second of which can be removed. Paths of its sockets have to be short."""
    short = "/tmp" if Path("/tmp").is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir=short, ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_worker_niceness", "0")  # else tests that run beside these leave them nothing
        machines = cluster_utils.Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        try:
            machines.second = machines.add_node(**NODE)
            yield machines
        finally:
            machines.shutdown()


def contents(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(store.glob("expert-*.safetensors"))}


def holder(store: Path, index: int) -> int:
    """The process that has claimed an expert, for which this waits."""
    lock, end = store / ".locks" / f"{index:04d}", time.perf_counter() + 100
    while time.perf_counter() < end:
        words = lock.read_text().split() if lock.exists() else []
        if len(words) > 1 and int(words[1]) != os.getpid():  # which looks whether another one has it
            return int(words[1])
        time.sleep(0.02)
    raise TimeoutError(f"nobody trains expert {index}")


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def in_the_background(call: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def test_a_study_has_the_record_of_one_machine(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        path = write_file(tmp_path / name, STUDY)
        monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / name / "home"))
        if name == "here":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Local, "start", start_here([]))
                run_study(path, work=path.parent / "work", tell_cost=False)
        else:
            with ENGINES["ray"](cluster.address, None) as engine:
                assert engine.capacity(threads=1, gpus=0) == 2
                with pytest.raises(UserError, match="no machine of the cluster has 2 processors"):
                    engine.capacity(threads=2, gpus=0)
                run_study(path, work=path.parent / "work", tell_cost=False, engine=engine)
        records.append(read_record(path))
    here, there = ([without_times(row) for row in record.rows] for record in records)
    assert len(here) == 2
    assert here == there
    assert records[1].failures == []


def without_times(row: Any) -> dict[str, Any]:
    fields: dict[str, Any] = row.to_json()
    fields["curve"] = {name: value for name, value in fields["curve"].items() if name != "seconds"}
    return {name: value for name, value in fields.items() if name not in ("seconds", "created", "peak_memory")}


def test_an_expert_whose_worker_is_killed_is_trained_again_and_one_of_another_job_is_left_to_it(
    cluster: Any, limbeck: Any, tmp_path: Path
) -> None:
    assert limbeck(*WORDS, "--num-experts", "3", "--out", tmp_path / "here").status == 0
    expected = contents(tmp_path / "here")
    store = tmp_path / "there"
    shutil.copytree(tmp_path / "here", store, ignore=shutil.ignore_patterns("expert-*", ".errors"))
    claim = Store.open(store).try_claim(2)
    assert claim is not None

    def kill_then_finish() -> None:
        os.kill(parent_of(holder(store, 0)), signal.SIGKILL)  # the worker of Ray; its child ends with it
        end = time.perf_counter() + 60
        while len(contents(store)) < 2 and time.perf_counter() < end:
            time.sleep(0.1)
        shutil.copy(tmp_path / "here" / "expert-0002.safetensors", store / "expert-0002.safetensors")
        claim.release()

    (store / ".locks" / "0000").unlink(missing_ok=True)
    other = in_the_background(kill_then_finish)
    result = limbeck(*WORDS, "--num-experts", "3", "--out", store, "--engine", "ray", "--address", cluster.address)
    other.join()
    assert result.status == 0, result.err
    assert "expert 1: " in result.err
    assert "it is done again" in result.err
    assert contents(store) == expected
    assert sorted(file.name for file in (store / ".errors").iterdir()) == ["0000.txt", "0001.txt"]


def test_a_network_whose_worker_is_killed_is_evaluated_again(
    cluster: Any, limbeck: Any, artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In folders with a space, with rows of real images that are not stored yet."""
    words = ["--networks", "convnet,mlp", "--epochs", "40", "--num-networks", "2", "--threads", "1"]
    results = []
    for name in ("here", "over there"):
        run = Path(shutil.copytree(artifacts["run"], tmp_path / name / "a run"))
        monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / name / "home"))
        if name == "here":
            assert limbeck("evaluate", run, *words).status == 0
        else:
            other = in_the_background(lambda: kill_an_evaluation(tmp_path / "over there" / "home" / "locks"))
            result = limbeck("evaluate", run, *words, "--engine", "ray", "--address", cluster.address)
            other.join()
            assert result.status == 0, result.err
            assert "it is done again" in result.err
        results.append((run / "evaluations.json").read_bytes())
    assert results[0] == results[1]


def kill_an_evaluation(locks: Path) -> None:
    """Kill the worker of Ray whose child trains networks on real images."""
    end = time.perf_counter() + 100
    while time.perf_counter() < end:
        for lock in locks.glob("digits-*"):
            words = lock.read_text().split()
            if len(words) > 1:
                return os.kill(parent_of(int(words[1])), signal.SIGKILL)
        time.sleep(0.02)
    raise TimeoutError("nobody trains networks on real images")


def test_the_experts_of_a_lost_machine_are_trained_by_the_others(cluster: Any, limbeck: Any, tmp_path: Path) -> None:
    words = [*WORDS, "--num-experts", "2"]
    assert limbeck(*words, "--out", tmp_path / "here").status == 0
    store = tmp_path / "there"

    def lose() -> None:
        holder(store, 0), holder(store, 1)
        cluster.remove_node(cluster.second, allow_graceful=False)

    other = in_the_background(lose)
    result = limbeck(*words, "--out", store, "--engine", "ray", "--address", cluster.address)
    other.join()
    assert result.status == 0, result.err
    assert "it is done again" in result.err
    assert contents(store) == contents(tmp_path / "here")


def test_an_address_where_nobody_answers_is_refused(limbeck: Any) -> None:
    result = limbeck(*WORDS, "--engine", "ray", "--address", "127.0.0.1:1")
    assert result.status == 2
    assert "no Ray cluster answers at 127.0.0.1:1" in result.err
