"""The way from the outer loop to the kernels: how many functions and files a reader of the gradient has to follow."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType

import pytest

import limbeck
from limbeck import ImageData
from limbeck.derivatives.kernels import library
from limbeck.experts import Expert, ExpertConfig
from limbeck.methods import DataFacts, MethodInputs
from limbeck.methods.mct import MCTConfig, plan, resolve
from limbeck.networks.registry import ModelConfig
from limbeck.synthetic.loop import outer_loop
from limbeck.task import make_task

SOURCE = str(Path(limbeck.__file__).parent)
MAX_CALLS = 10
MAX_FILES = 6


def functions_above(target: CodeType, work: Callable[[], object]) -> list[CodeType]:
    """Limbeck's functions that are on the stack when `target` is called during `work`, in the order of their calls."""
    functions: dict[CodeType, None] = {}

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        if event != "call" or frame.f_code is not target:
            return
        stack, caller = [frame.f_code], frame.f_back
        while caller is not None:
            stack.append(caller.f_code)
            caller = caller.f_back
        functions.update(dict.fromkeys(code for code in reversed(stack) if code.co_filename.startswith(SOURCE)))

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(before)
    return list(functions)


@pytest.mark.skipif(library.load() is None, reason=f"no kernels: {library.unavailable_reason()}")
def test_the_gradient_of_an_outer_step_of_mct_is_few_calls_in_few_files(
    digits: ImageData, expert: Expert, expert_config: ExpertConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forwards and backwards, the loop itself not counted; it was 14 functions in 7 files before `Loss` had methods."""
    monkeypatch.setenv("LIMBECK_KERNELS", "1")
    task = make_task(digits, ModelConfig(width=8))
    assert expert.convex is not None
    config = resolve(MCTConfig(syn_steps=2), DataFacts(len(digits.train), 1, expert_config))
    mct = plan(config, MethodInputs(task, [expert.convex], 1, 0))

    def step() -> None:
        outer_loop(mct.objective, mct.synthetic, mct.optimisers, range(1), 0)

    functions = functions_above(library.Library.compute.__code__, step)
    names = [f"{Path(code.co_filename).stem}.{code.co_name}" for code in functions]
    assert names[0] == "loop.outer_loop"
    assert "explicit.hvp" in names, "the backward pass is on the way"
    assert len(functions) - 1 <= MAX_CALLS, names
    assert len({code.co_filename for code in functions}) <= MAX_FILES, names
