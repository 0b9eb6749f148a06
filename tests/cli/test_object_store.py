"""Two machines without a folder in common, which share experts through S3: a server of moto, which runs here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import free_port

pytest.importorskip("s3fs", reason="s3fs is not installed: pip install '.[s3]'")
moto_server = pytest.importorskip("moto.server", reason="moto is not installed: pip install '.[cluster]'")

WORDS = ["experts", "digits", "--num-experts", "3", "--epochs", "8", "--model.width", "16", "--threads", "1"]
SHORT_LEASES = "from limbeck.experts import bucket; bucket.RENEW_SECONDS, bucket.LEASE_SECONDS = 0.2, 1.5; "
MAIN = "import sys; from limbeck.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server with an empty bucket, and a client of it."""
    import boto3

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    variables = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    variables |= {"AWS_DEFAULT_REGION": "us-east-1", "LIMBECK_EXPERTS": "s3://lab/experts"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="lab")
    yield client
    server.stop()


def machine(folder: Path, words: list[str] = WORDS) -> subprocess.Popen[str]:
    """A command in a process with a home of its own."""
    environment = {**os.environ, "LIMBECK_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SHORT_LEASES + MAIN, *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("experts/*/expert-*.safetensors"))}


def names(s3: Any) -> list[str]:
    return sorted(entry["Key"] for entry in s3.list_objects_v2(Bucket="lab").get("Contents", []))


def test_two_machines_train_each_expert_once_and_both_have_all(s3: Any, tmp_path: Path) -> None:
    processes = [machine(tmp_path / name) for name in ("one", "two")]
    texts = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 3
    assert [name.rpartition("/")[2] for name in names(s3)] == [*contents(tmp_path / "one"), "store.json"]
    trained = re.findall(r"expert (\d), validation", "".join(texts))
    assert set(trained) <= {"1", "2", "3"}
    alone = machine(tmp_path / "alone", [*WORDS, "--out", str(tmp_path / "store")])
    assert "3 of 3" in alone.communicate(timeout=240)[0] or alone.returncode == 0
    for name in contents(tmp_path / "one"):
        assert (tmp_path / "store" / name).read_bytes() == contents(tmp_path / "one")[name], "a named store shares too"


def test_the_expert_of_a_killed_machine_is_trained_by_another(s3: Any, tmp_path: Path) -> None:
    slow = [*WORDS[:5], "500", *WORDS[6:], "--num-experts", "1"]
    first = machine(tmp_path / "one", slow)
    end = time.monotonic() + 120
    while not any("/claims/" in name for name in names(s3)):
        assert time.monotonic() < end
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    first.kill()
    first.communicate()
    second = machine(tmp_path / "two", slow)
    text = second.communicate(timeout=240)[0]
    assert second.returncode == 0, text
    assert "waiting for another process" in text
    assert [name.rpartition("/")[2] for name in names(s3)] == ["expert-0000.safetensors", "store.json"]
    shutil.rmtree(tmp_path / "one")
    third = machine(tmp_path / "one", slow)
    text = third.communicate(timeout=240)[0]
    assert third.returncode == 0, text
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_bucket_that_is_not_there_is_refused_and_not_made(s3: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("LIMBECK_EXPERTS", "s3://typo/experts")
    process = machine(tmp_path / "one")
    text = process.communicate(timeout=240)[0]
    assert process.returncode == 2, text
    assert "s3://typo/experts/digits" in text
    assert "Traceback" not in text
    assert [entry["Name"] for entry in s3.list_buckets()["Buckets"]] == ["lab"]
