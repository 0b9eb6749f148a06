"""Several processes give the bits of one, share its work, and end with a sentence where one of them is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import TINY
from machines import Machine, two_machines, unavailable_reason
from processes import call_on_ranks, environment, free_port
from safetensors.torch import load_file
from torch import Tensor

from limbeck.cli.main import main
from limbeck.core.distributed import RankLostError, join_ranks
from limbeck.core.launch import Launch
from limbeck.core.rng import make_generator
from limbeck.jobs.checkpoint import Log
from limbeck.objectives.combine import Average, value_and_grad
from limbeck.synthetic.hooks import OVERSHOOT
from limbeck.synthetic.set import SyntheticSet

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch has no gloo here"
)


def noisy(synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
    """A random loss, without a gradient in the step size at even steps, and in the images at some draws of odd ones."""
    weights = torch.randn(synthetic.images.shape, generator=make_generator(seed, "weights", step))
    images = synthetic.images.detach() if step % 2 and seed % 3 == 0 else synthetic.images
    lr = synthetic.log_lr if step % 2 else synthetic.log_lr.detach()
    return (images * weights).pow(2).mean() * lr.exp() + weights.sum()


def gradients(draws: int, steps: int = 6) -> list[list[Tensor]]:
    """The value and the gradients of the mean of `noisy` over draws, at several steps."""
    images = torch.randn(3, 1, 3, 3, generator=make_generator(0, "images"))
    synthetic = SyntheticSet.from_images(images, torch.arange(3), lr=0.3)
    with join_ranks() as ranks:
        pairs = [value_and_grad(Average(noisy, draws, ranks), synthetic, step, seed=step) for step in range(steps)]
    return [[value, *(torch.zeros(0) if part is None else part for part in parts)] for value, parts in pairs]


@pytest.mark.parametrize(("size", "draws"), [(2, 4), (4, 4)])
def test_ranks_give_the_bits_of_one_process(size: int, draws: int, tmp_path: Path) -> None:
    expected = gradients(draws)
    assert {parts[-1].numel() for parts in expected} == {0, 1}, "at some steps no draw has a gradient in the step size"
    for outcome in call_on_ranks(size, tmp_path, gradients, draws):
        assert outcome.status == 0, outcome.err
        for parts, others in zip(expected, outcome.result, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(parts, others, strict=True))


WORDS = ["distill", "digits", "--grad-accum", "2", "--num-experts", "2", "--eval.networks", "2"]
WORDS += ["--validate-networks", "3", "--lr-teacher", "0.005"]
WORDS += [word for pair in zip(TINY[::2], TINY[1::2]) if pair[0] not in WORDS for word in pair]


def run_command(words: list[str], lost_at: int | None = None) -> int:
    """Run a command; at the outer step `lost_at` rank 1 is killed."""
    if lost_at is not None and Launch.of_environment().rank == 1:
        write_line = Log.__call__

        def write_or_end(log: Log, synthetic: SyntheticSet, step: int, loss: float) -> None:
            if step == lost_at:
                os.kill(os.getpid(), signal.SIGKILL)
            write_line(log, synthetic, step, loss)

        Log.__call__ = write_or_end  # type: ignore[method-assign]
    with pytest.raises(SystemExit) as end:
        main(words)
    return int(end.value.code or 0)


def content(run: Path, home: Path) -> dict[str, Any]:
    """What a finished run found, without times."""
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    experts = sorted(home.glob("experts/*/expert-*.safetensors"))
    assert len(experts) == 2
    files = [run / "set-last.safetensors", run / "set-chosen.safetensors", run / "state.safetensors", *experts]
    return {
        "tensors": {f"{file.name} {name}": tensor for file in files for name, tensor in load_file(file).items()},
        "results": json.loads((run / "results.json").read_text())["results"],
        "losses": {line["step"]: line["loss"] for line in log if "loss" in line},
        "validation": {line["step"]: line["accuracy_mean"] for line in log if "accuracy_mean" in line and "n" in line},
        "baselines": {file.name: json.loads(file.read_text())["row"] for file in home.glob("baselines/*.json")},
        "key": json.loads((run / "run.json").read_text())["key"],
    }


def require_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name in one.keys() - {"tensors"}:
        assert one[name] == other[name], name
    assert one["tensors"].keys() == other["tensors"].keys()
    assert all(torch.equal(tensor, other["tensors"][name]) for name, tensor in one["tensors"].items())


def test_a_job_of_two_ranks_is_killed_and_ends_with_the_bits_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    homes, runs = [tmp_path / f"home{i}" for i in range(2)], [tmp_path / f"run{i}" for i in range(3)]
    monkeypatch.setenv("LIMBECK_HOME", str(homes[0]))
    assert run_command([*WORDS, "--out", str(runs[0])]) == 0
    expected = content(runs[0], homes[0])
    assert set(expected["losses"]) == {1, 2, 3, 4}
    assert max(expected["losses"].values()) < OVERSHOOT, "the images are learned"

    monkeypatch.setenv("LIMBECK_HOME", str(homes[1]))
    words = [*WORDS, "--out", str(runs[1])]
    first, second = call_on_ranks(2, tmp_path / "lost", run_command, words, 3)
    assert second.status == -signal.SIGKILL
    assert first.result == 1
    assert "another process of this job ended or does not answer" in first.err
    assert not (runs[1] / "results.json").exists()
    shutil.copytree(runs[1], runs[2])

    first, second = call_on_ranks(2, tmp_path / "again", run_command, words)
    assert (first.result, second.result) == (0, 0), (first.err, second.err)
    assert "distilled (chosen)" in first.out
    assert (second.out, second.err) == ("", "")
    require_equal(content(runs[1], homes[1]), expected)
    assert list((second.folder / "tmp").glob("limbeck-rank-*")) == [], "its copy of the run is removed"

    assert run_command([*WORDS, "--out", str(runs[2])]) == 0, "one process goes on with what two have begun"
    require_equal(content(runs[2], homes[1]), expected)
    capsys.readouterr()


def test_what_rank_0_refuses_the_others_do_not_repeat(tmp_path: Path) -> None:
    first, second = call_on_ranks(2, tmp_path, run_command, [*WORDS, "--ipc", "1000", "--out", str(tmp_path / "run")])
    assert (first.result, first.out) == (2, "")
    assert "fewer than --ipc 1000" in first.err
    assert (second.result, second.out, second.err) == (1, "", "")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif("LIMBECK_CLUSTER" not in os.environ, reason="make cluster runs it: torchrun takes long to start")
@pytest.mark.parametrize("size", [2, 4])
def test_torchrun_ends_with_a_sentence_and_the_same_command_resumes(size: int, tmp_path: Path) -> None:
    long = [*WORDS, "--iterations", "200", "--validate-every", "10", "--grad-accum", "4"]
    words = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", str(size), "-m", "limbeck", *long]
    words += ["--out", str(tmp_path / "run")]
    variables = {**os.environ, "LIMBECK_HOME": str(tmp_path / "home")}
    command = subprocess.Popen(words, env=variables, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "log.jsonl"
    while command.poll() is None and not (log.exists() and log.read_text().count('"loss"') > 12):
        time.sleep(0.1)
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
    second = next(pid for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(int(second), signal.SIGKILL)
    _, err = command.communicate()
    assert command.returncode == 1
    assert "limbeck: another process of this job ended or does not answer" in err
    assert subprocess.run(words, env=variables, check=False).returncode == 0
    assert json.loads(log.read_text().splitlines()[-1])
    assert (tmp_path / "run" / "report.html").exists()


HOST_NAMES = "127.0.0.1 localhost\n127.0.1.1 node-{own}\n10.77.0.{other} node-{other}\n"
"""A machine's /etc/hosts, as Debian writes it: its own name is an address that others cannot reach."""


def start_on_both(folder: Path, machines: tuple[Machine, Machine], words: list[str]) -> list[subprocess.Popen[str]]:
    """Start a command by torchrun on two machines, which are told that the cable joins them."""
    variables = {**os.environ, "LIMBECK_HOME": str(folder / "home"), "GLOO_SOCKET_IFNAME": "cable"}
    variables.pop("TMPDIR", None)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "node-1:29500", "-m", "limbeck", *words]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return [machine.start(*torchrun, env=variables, **streams) for machine in machines]


@pytest.mark.skipif("LIMBECK_CLUSTER" not in os.environ, reason="make cluster runs it: torchrun takes long to start")
def test_two_machines_have_the_bits_of_one_process_also_where_their_cable_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if reason := unavailable_reason():
        pytest.skip(reason)
    long = [*WORDS, "--iterations", "200", "--validate-every", "10", "--grad-accum", "4"]
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "alone"))
    assert run_command([*long, "--out", str(tmp_path / "one")]) == 0
    capsys.readouterr()
    words, log = [*long, "--out", str(tmp_path / "two")], tmp_path / "two" / "log.jsonl"
    with two_machines(tmp_path) as machines:
        for own, machine in enumerate(machines, 1):
            machine.call("sh", "-c", f"echo '{HOST_NAMES.format(own=own, other=3 - own)}' > /etc/hosts")
            machine.call("sh", "-c", "echo 3 > /proc/sys/net/ipv4/tcp_retries2")  # else it takes 15 minutes
        commands = start_on_both(tmp_path, machines, words)
        while all(command.poll() is None for command in commands) and not (
            log.exists() and log.read_text().count('"loss"') > 12
        ):
            time.sleep(0.05)
        machines[1].plug("down")
        texts = [command.communicate(timeout=200)[0] for command in commands]
        assert [command.returncode for command in commands] == [1, 1]
        assert "limbeck: another process of this job ended or does not answer" in texts[0], texts[0]
        assert not (tmp_path / "two" / "results.json").exists()
        machines[1].plug("up")
        for command in start_on_both(tmp_path, machines, words):
            text, _ = command.communicate()
            assert command.returncode == 0, text
    require_equal(content(tmp_path / "two", tmp_path / "home"), content(tmp_path / "one", tmp_path / "alone"))


def test_processes_that_do_not_find_each_other_say_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process never comes."""
    monkeypatch.setattr("limbeck.core.distributed.JOIN_MINUTES", 0.01)
    for name, value in environment(0, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RankLostError, match="do not reach each other"), join_ranks():
        pass
