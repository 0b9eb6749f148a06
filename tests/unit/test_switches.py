"""torch's switches for NVIDIA's GPUs belong to the process that calls the library: a call puts them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import limbeck
from limbeck import UserError
from limbeck.evaluation import sets as evaluation
from limbeck.interop import experts, import_experts
from limbeck.jobs import inspection, job
from limbeck.jobs.inspection import inspect_store
from limbeck.task import allow_tf32

MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn


def state() -> list[Any]:
    """What is in force, by the newer switches, which can always be read."""
    return [MATMUL.fp32_precision, CUDNN.conv.fp32_precision, CUDNN.rnn.fp32_precision, CUDNN.deterministic]  # type: ignore[attr-defined]


@pytest.fixture(params=["older", "newer", "tf32"])
def before(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """The state that a user of the library left: torch's own, one by the newer switches, or tf32 everywhere."""
    allow_tf32(request.param == "tf32")
    CUDNN.allow_tf32 = True
    if request.param == "newer":
        MATMUL.fp32_precision = "tf32"  # type: ignore[attr-defined]
    yield state()
    MATMUL.allow_tf32, CUDNN.allow_tf32, CUDNN.deterministic = False, True, False


CALLS: dict[str, tuple[Any, str, Callable[[], Any]]] = {
    "distill": (job, "make_task", lambda: limbeck.distill("digits", out="never")),
    "train_experts": (job, "make_task", lambda: limbeck.train_experts("digits", out="never")),
    "evaluate": (evaluation, "load_sets", lambda: limbeck.evaluate("never")),
    "inspect_store": (inspection, "load_data", lambda: inspect_store("never", "never", data="digits")),
    "import_experts": (experts, "find_buffers", lambda: import_experts("never", "never", "digits")),
}


@pytest.mark.parametrize(("module", "name", "call"), CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_a_call_puts_the_switches_back(
    module: Any, name: str, call: Any, precision: str, before: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_task_for_a_gpu(*args: Any, **options: Any) -> Any:
        allow_tf32(precision == "tf32")
        CUDNN.deterministic = True
        raise UserError("as far as this")

    if module is inspection:
        monkeypatch.setattr(module, "Store", type("Store", (), {"open": make_task_for_a_gpu}))
    monkeypatch.setattr(module, name, make_task_for_a_gpu)
    older = MATMUL.fp32_precision != "tf32" or before[1] == "tf32"
    with pytest.raises(UserError, match="as far as this"):
        call()
    assert state() == before
    if older and before[0] != "tf32":
        assert (MATMUL.allow_tf32, CUDNN.allow_tf32) == (False, True)  # still readable
