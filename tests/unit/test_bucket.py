"""Experts on an object store: two disks have the same bits, an expert is trained once, and faults are named."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from limbeck.core.errors import UserError, WriteError
from limbeck.core.events import Event
from limbeck.core.parallel import CheckCancelled
from limbeck.data import ImageData
from limbeck.experts import Expert, ExpertConfig, Store, bucket
from limbeck.experts.bucket import Bucket, Lease, place_of, remote_errors, store_name
from limbeck.experts.handle import Experts
from limbeck.experts.make import describe_experts
from limbeck.experts.share import compute_missing
from limbeck.task import Task

CONFIG = ExpertConfig(epochs=1)


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder on an object store in memory."""
    monkeypatch.setenv("LIMBECK_EXPERTS", "memory://lab/experts/")
    yield "memory://lab/experts"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def twin(store: Store, tmp_path: Path) -> Store:
    """A store of the same experts on another disk, still empty."""
    return Store.create(tmp_path / "twin", store.header.description())


def folder_of(store: Store) -> Bucket:
    folder = Bucket.find(store_name(store.header.description()))
    assert folder is not None
    return folder


def refuse(index: int, check: CheckCancelled) -> Expert:
    raise AssertionError(f"expert {index} is trained, which the other machine has")


def test_without_the_variable_there_is_the_store_alone(store: Store) -> None:
    assert place_of(store) is store


def test_what_one_machine_has_trained_another_one_copies(url: str, store: Store, twin: Store) -> None:
    assert place_of(store).missing([0, 1]) == [1]  # which uploads the other one
    place = place_of(twin)
    compute_missing(place, [0], refuse)
    assert twin.file(0).read_bytes() == store.file(0).read_bytes()
    assert folder_of(store).url == f"{url}/{store_name(store.header.description())}"


def test_what_is_trained_is_uploaded_and_claimed_meanwhile(url: str, store: Store, twin: Store) -> None:
    other = place_of(twin)

    def compute(index: int, check: CheckCancelled) -> Expert:
        assert other.try_claim(index) is None
        return store.read(0)

    compute_missing(place_of(store), [1], compute)
    compute_missing(other, [1], refuse)
    assert twin.file(1).read_bytes() == store.file(1).read_bytes()
    claim = other.try_claim(1)
    assert claim is not None, "the claim was released"


def test_machines_without_a_folder_in_common_train_the_same_experts(
    url: str, digits: ImageData, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = []
    for name in ("one", "two"):
        monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / name))
        experts = Experts.to_train(task, CONFIG, 2, seed=5)
        assert experts.missing() == ([0, 1] if name == "one" else [])
        events = list[Event]()
        stores.append(experts.train(events.append))
        is_training = any(event["event"] == "stage" for event in events)
        assert is_training is (name == "one"), "the second machine trains nothing"
    assert stores[0].path != stores[1].path
    for index in (0, 1):
        assert stores[0].file(index).read_bytes() == stores[1].file(index).read_bytes()


def test_experts_of_another_description_have_another_folder(url: str, task: Task, store: Store) -> None:
    other = Bucket.find(store_name(describe_experts(task, CONFIG, seed=8)))
    assert other is not None
    assert other.path != folder_of(store).path


def test_a_claim_is_renewed_and_one_that_is_not_is_taken_over(
    url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(bucket, "LEASE_SECONDS", 0.3)
    one, two = folder_of(store), folder_of(store)
    lease = one.try_claim(3, "one")
    assert lease is not None
    end = time.monotonic() + 0.6
    while time.monotonic() < end:
        assert two.try_claim(3, "two") is None, "it is renewed"
        time.sleep(0.02)
    lease.is_released.set()  # as where its process is killed
    end, successor = time.monotonic() + 5, None
    while successor is None and time.monotonic() < end:
        successor = two.try_claim(3, "two")
        time.sleep(0.02)
    assert successor is not None
    lease.release()  # where it was suspended alone
    assert one.files.exists(successor.path), "it is the other's now"
    successor.release()
    assert not one.files.exists(successor.path)


def test_a_damaged_expert_is_named_and_not_kept(url: str, store: Store, twin: Store) -> None:
    folder = folder_of(store)
    content = bytearray(store.file(0).read_bytes())
    content[-3] ^= 1
    folder.files.pipe_file(f"{folder.path}/expert-0000.safetensors", bytes(content))
    with pytest.raises(UserError, match=r"memory://lab/experts/digits-.*expert-0000.safetensors is damaged: .* there"):
        place_of(twin).missing([0])
    assert twin.indices() == []


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ("nope://lab", "cannot be reached (Protocol not known: nope); look after LIMBECK_EXPERTS"),
        ("/shared/experts", "set LIMBECK_HOME"),
        ("file:///shared/experts", "set LIMBECK_HOME"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(root: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_EXPERTS", root)
    with pytest.raises(UserError) as caught:
        Bucket.find("name")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ImportError("Install s3fs to access S3"), UserError, "pip install 'limbeck[s3]'"),
        (PermissionError("Access Denied"), UserError, "(Access Denied)"),
        (OSError(5, "the line is cut"), WriteError, "the same command goes on"),
        (RuntimeError(), WriteError, "(RuntimeError)"),
    ],
)
def test_what_a_client_raises_is_a_sentence(error: Exception, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught, remote_errors("s3://lab/x"):
        raise error
    assert words in str(caught.value)
    assert len(str(caught.value)) <= 300


def test_a_claim_that_cannot_be_written_is_no_claim(url: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(store)

    def fail(self: object, *arguments: object, **options: object) -> None:
        raise OSError(5, "the line is cut")

    monkeypatch.setattr(type(folder.files), "pipe_file", fail)
    with pytest.raises(WriteError, match="the line is cut"):
        place_of(store).try_claim(0)
    assert store.try_claim(0) is not None, "the claim on the disk is released as well"


def test_a_claim_that_is_released_in_the_same_moment_is_none_of_ours(
    url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there when ours is written, and gone when it is looked at."""
    folder = folder_of(store)

    def refuse_write(path: str, content: bytes, **options: object) -> None:
        raise FileExistsError("At least one of the pre-conditions you specified did not hold")

    monkeypatch.setattr(folder.files, "pipe_file", refuse_write)
    assert folder.try_claim(0, "one") is None


def test_a_lease_outlasts_failed_renewals(url: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "RENEW_SECONDS", 0.01)
    folder, calls = folder_of(store), list[int]()
    pipe: Callable[..., None] = folder.files.pipe_file

    class Flaky:
        """Fails at the first renewal."""

        def pipe_file(self, path: str, content: bytes) -> None:
            calls.append(1)
            if len(calls) == 1:
                raise OSError(5, "the line is cut")
            pipe(path, content)

    lease = Lease(Flaky(), f"{folder.path}/claims/0009", "one")
    end = time.monotonic() + 5
    while len(calls) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    lease.is_released.set()
    assert len(calls) >= 3


def test_no_renewal_follows_a_release(url: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "RENEW_SECONDS", 0.01)
    folder = folder_of(store)
    pipe: Callable[..., None] = folder.files.pipe_file

    def slow(path: str, content: bytes, **options: object) -> None:
        time.sleep(0.1)
        pipe(path, content, **options)

    monkeypatch.setattr(folder.files, "pipe_file", slow)
    lease = folder.try_claim(4, "one")
    assert lease is not None
    time.sleep(0.05)  # a renewal is on its way
    lease.release()
    time.sleep(0.2)
    assert not folder.files.exists(lease.path)


def test_a_full_disk_here_is_not_taken_for_the_network(
    url: str, store: Store, twin: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    place_of(store).missing([0])

    def fail(path: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder_of(store).files, "get_file", fail)
    with pytest.raises(WriteError, match=r"expert-0000.safetensors cannot be written \(no space left on device\)"):
        place_of(twin).missing([0])
