"""The check that a mistake of the user is refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from limbeck.core.errors import UserError


def assert_refused(call: Callable[[], object], *parts: str) -> None:
    """Check that a call raises a UserError of one sentence that contains all of `parts`."""
    with pytest.raises(UserError) as caught:
        call()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    for part in parts:
        assert part in sentence, sentence
