"""A Ray cluster of two machines with a network and a /tmp each: the bits of one, and what survives which loss."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from machines import Machine, two_machines, unavailable_reason

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
pytestmark = [
    pytest.mark.skipif("LIMBECK_CLUSTER" not in os.environ, reason="make cluster runs it: it takes minutes"),
    pytest.mark.skipif("LIMBECK_CLUSTER" in os.environ and unavailable_reason() != "", reason=unavailable_reason()),
]

HEAD = "10.77.0.1:6379"
WORDS = ["experts", "digits", "--model.width", "4", "--epochs", "20", "--lr", "0.05", "--threads", "1"]
WORDS += ["--keep", "recorded", "--num-experts", "4"]
COUNTER = """
import os, sys

def count(event, arguments):
    if event == "os.mkdir" and "/.expert-" in str(arguments[0]):
        with open(os.environ["WRITTEN"], "a") as file:
            file.write(str(arguments[0]) + "\\n")

sys.addaudithook(count)
"""
"""Of Python's sitecustomize, which every process imports: notes whenever the file of an expert is begun."""


class Lab:
    """Two machines with a Ray cluster, and a folder that they share."""

    def __init__(self, folder: Path, machines: tuple[Machine, Machine]):
        self.folder, (self.first, self.second) = folder, machines
        (folder / "code").mkdir()
        (folder / "code" / "sitecustomize.py").write_text(COUNTER)
        path = os.pathsep.join([str(folder / "code"), os.environ.get("PYTHONPATH", "")])
        own = {"LIMBECK_HOME": str(folder / "home"), "PYTHONPATH": path, "WRITTEN": str(folder / "written")}
        quick = {"timeout_ms": "2000", "period_ms": "1000", "failure_threshold": "3"}  # else it takes 90 s
        ray = {f"RAY_health_check_{name}": value for name, value in quick.items()}
        ray |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        s3 = {"AWS_ENDPOINT_URL": f"http://{self.first.address}:5055", "AWS_DEFAULT_REGION": "us-east-1"}
        s3 |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}  # Ray's workers have the variables of ray start
        self.variables = {**os.environ, **own, **ray, **s3}
        self.variables.pop("TMPDIR", None)  # theirs is /tmp

    def start_ray(self, machine: Machine, *words: str) -> None:
        ray = [Path(sys.executable).with_name("ray"), "start", "--node-ip-address", machine.address, "--num-cpus", "1"]
        ray += ["--object-store-memory", 80 * 2**20]
        machine.call(*ray, *words, env=self.variables, stderr=subprocess.STDOUT)

    def limbeck(self, machine: Machine, *words: object, **variables: str) -> subprocess.Popen[str]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": {**self.variables, **variables}}
        return machine.start(sys.executable, "-m", "limbeck", *words, **options)

    def on_ray(self, store: Path, machine: Machine | None = None, **variables: str) -> subprocess.Popen[str]:
        words = [*WORDS, "--out", store, "--engine", "ray", "--address", HEAD]
        return self.limbeck(machine or self.first, *words, **variables)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("machines")
    with two_machines(folder) as machines:
        lab = Lab(folder, machines)
        lab.start_ray(lab.first, "--head", "--port", "6379", "--include-dashboard", "false")
        lab.start_ray(lab.second, "--address", HEAD)
        yield lab


@pytest.fixture(scope="module")
def expected(lab: Lab) -> Path:
    """The store that one machine makes, alone."""
    store = lab.folder / "expected"
    require_success(lab.limbeck(lab.first, *WORDS, "--out", store))
    return store


def require_success(command: subprocess.Popen[str]) -> str:
    out, _ = command.communicate()
    assert command.returncode == 0, out
    return out


def contents(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(store.glob("expert-*.safetensors"))}


def holders(store: Path) -> dict[str, str]:
    """The process that has claimed an expert, as PROCESS on HOST; that of a command does so when it looks."""
    return {file.name: file.read_text().strip() for file in sorted((store / ".locks").glob("0*"))}


def wait_until(is_so: Callable[[], bool], seconds: float = 120) -> None:
    end = time.perf_counter() + seconds
    while not is_so():
        assert time.perf_counter() < end, "it did not come"
        time.sleep(0.05)


def trains_on_second(store: Path) -> bool:
    return any("node-2" in holder for holder in holders(store).values())


def writings(lab: Lab, store: Path) -> Counter[str]:
    """How often the file of an expert was begun."""
    lines = (lab.folder / "written").read_text().splitlines()
    return Counter(Path(line).name[1:12] for line in lines if line.startswith(f"{store}/"))


def test_two_commands_on_one_store_train_every_expert_once_on_two_machines(lab: Lab, expected: Path) -> None:
    store = lab.folder / "shared"
    commands = [lab.on_ray(store), lab.on_ray(store, lab.second), lab.limbeck(lab.first, *WORDS, "--out", store)]
    for command in commands:
        require_success(command)
    assert contents(store) == contents(expected)
    assert writings(lab, store) == {f"expert-{index:04d}": 1 for index in range(4)}


def test_machines_without_a_common_folder_share_experts_through_an_object_store(lab: Lab, expected: Path) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install '.[s3]'")
    pytest.importorskip("moto", reason="moto is not installed: pip install '.[cluster]'")
    server = [Path(sys.executable).with_name("moto_server"), "--host", lab.first.address, "--port", "5055"]
    process = lab.first.start(*server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    make = "import boto3; boto3.client('s3').create_bucket(Bucket='lab')"
    lab.first.call(sys.executable, "-c", make, env={**lab.variables, "AWS_MAX_ATTEMPTS": "20"})  # until it listens
    own = Path("/tmp/apart")  # of each machine
    apart = {"LIMBECK_HOME": str(own / "home"), "LIMBECK_EXPERTS": "s3://lab/experts"}
    require_success(lab.on_ray(own / "store", **apart))
    process.terminate()
    process.wait()
    digests = [
        machine.call("sh", "-c", f"cd {own}/store && sha256sum expert-*").splitlines()
        for machine in (lab.first, lab.second)
    ]
    names = sorted(contents(expected))
    assert digests[0] == [f"{hashlib.sha256(contents(expected)[name]).hexdigest()}  {name}" for name in names]
    assert 0 < len(digests[1]) < len(names), "what the first machine has trained the second one does not need"
    assert set(digests[1]) < set(digests[0])


def test_a_full_disk_of_one_machine_is_named_with_it_and_the_same_command_ends(lab: Lab, expected: Path) -> None:
    store = lab.folder / "full"
    store.mkdir()
    shutil.copy(expected / "store.json", store)
    lab.second.mount_full(store, "24k")
    out, _ = (command := lab.on_ray(store)).communicate()
    assert command.returncode == 1, out
    assert "failed: on node-2: " in out
    assert "safetensors cannot be written (no space left on device); free some space there" in out
    trained = contents(store)
    assert 0 < len(trained) < 4
    lab.second.call("umount", store)
    require_success(lab.on_ray(store))
    assert contents(store) == contents(expected)
    assert set(writings(lab, store).values()) == {1, 2}, "what was written on the first is not trained again"


def test_a_machine_without_the_folder_is_named(lab: Lab) -> None:
    store = lab.folder / "elsewhere"
    store.mkdir()
    lab.second.mount_small(store, "1m")
    out, _ = (command := lab.on_ray(store)).communicate()
    lab.second.call("umount", store)
    assert command.returncode == 2, out
    assert f"on node-2: {store} is not the store of the command" in out


def test_a_machine_whose_power_fails_leaves_its_expert_to_the_other(lab: Lab, expected: Path) -> None:
    """Nothing arrives from it any more, not even that its connections are closed."""
    store = lab.folder / "power"
    command = lab.on_ray(store)
    wait_until(lambda: trains_on_second(store))
    lab.second.plug("down")
    os.kill(lab.second.process, signal.SIGKILL)
    out = require_success(command)
    assert "it is done again" in out
    assert contents(store) == contents(expected)
    assert not any("node-2" in holder for holder in holders(store).values())


def test_the_head_of_the_cluster_is_killed_and_the_sentence_is_ours(lab: Lab) -> None:
    """This is the last test of the cluster."""
    store = lab.folder / "head"
    command = lab.on_ray(store)
    wait_until(lambda: len(contents(store)) > 0)
    lab.first.call("pkill", "-9", "gcs_server")
    out, _ = command.communicate()
    assert command.returncode == 1, out
    assert f"the head of the Ray cluster at {HEAD} does not answer any more (Connection refused)" in out
    assert "the same command does what is left" in out
    assert "The program will terminate" not in out
