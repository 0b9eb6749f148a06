"""Lack of memory is a sentence with advice, and no other error is taken for it."""

from __future__ import annotations

import pytest
import torch

from limbeck.cli.failures import Failure, explain
from limbeck.core.errors import explain_memory
from limbeck.core.memory import total_memory
from limbeck.networks import registry
from limbeck.networks.registry import ModelConfig, flat_model


def real_errors() -> list[Exception]:
    """What Python and torch raise where memory is not enough; no memory is taken."""
    errors: list[Exception] = []
    for take in (lambda: torch.empty(2**55), lambda: bytearray(2**62)):
        try:
            take()
        except Exception as error:
            errors.append(error)
    return errors


def test_lack_of_memory_is_a_sentence_with_options_to_lower() -> None:
    errors = real_errors()
    assert [type(error) for error in errors] == [RuntimeError, MemoryError]
    for error in errors:
        sentence = explain_memory(error)
        assert sentence is not None
        assert sentence.startswith("the memory of this machine is not enough; take smaller batches")
        assert "--model.width" in sentence
        assert explain(error) == Failure(sentence, 1)


def test_on_a_gpu_the_sentence_says_so() -> None:
    sentence = explain_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert sentence is not None
    assert sentence.startswith("the memory of this GPU is not enough")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), OSError("x")])
def test_another_error_is_not_about_memory(error: Exception) -> None:
    assert explain_memory(error) is None


def test_a_network_larger_than_the_machine_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    config, shape = ModelConfig(name="mlp", width=100), (1, 8, 8)
    count = flat_model(config, shape, 10).layout.count
    monkeypatch.setattr(registry, "total_memory", lambda: 8 * count)
    flat_model(config, shape, 10)
    monkeypatch.setattr(registry, "total_memory", lambda: 8 * count - 1)
    monkeypatch.setattr(registry, "FlatModel", lambda *arguments: pytest.fail("it is built"))
    with pytest.raises(ValueError, match=rf"the network 'mlp' would have {count:,} parameters.*lower its width"):
        flat_model(config, shape, 10)


def test_this_machine_has_memory() -> None:
    memory = total_memory()
    assert memory is None or memory > 2**28
