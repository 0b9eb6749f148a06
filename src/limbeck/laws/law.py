"""What a law is, and how laws are checked one by one."""

from __future__ import annotations

import inspect
import pickle
import random
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from numpy.random import get_state

import limbeck
from limbeck.core.errors import UserError

Subject = TypeVar("Subject")
Law = Callable[[Subject], None]
"""A function whose docstring states the law. It raises `Violation` where the subject breaks it."""


class Violation(AssertionError):
    """A law is broken. The sentence says where, and by how much."""


class NotApplicable(Exception):
    """A law does not concern the subject. The sentence says why."""


class Outcome(NamedTuple):
    """The result of one law.

    law: the first line of its docstring.
    status: "passed", "failed" or "skipped".
    reason: what failed and where, or why the law was skipped.
    """

    law: str
    status: str
    reason: str = ""

    @property
    def text(self) -> str:
        """The result as one line."""
        return f"{self.status:<8}{self.law}{self.reason and ': '}{self.reason}"


def require(condition: bool, sentence: str) -> None:
    """Raise `Violation` with this sentence unless the condition holds."""
    if not condition:
        raise Violation(sentence)


def check_laws(laws: Sequence[Law[Subject]], subject: Subject) -> Iterator[Outcome]:
    """Yield the outcome of each law on the subject. An error in the subject's own code counts as a failure.

    >>> def is_even(number: int) -> None:
    ...     "it is even"
    ...     require(number % 2 == 0, f"{number} is odd")
    >>> [outcome.text for outcome in check_laws([is_even], 3)]
    ['failed  it is even: 3 is odd']
    """
    for law in laws:
        text = (inspect.getdoc(law) or law.__name__).splitlines()[0].rstrip(".")
        try:
            with untouched_generators():
                law(subject)
        except NotApplicable as reason:
            yield Outcome(text, "skipped", str(reason))
        except (Violation, UserError) as error:
            yield Outcome(text, "failed", _first_line(error))
        except Exception as error:  # of the user's own code, anything
            yield Outcome(text, "failed", f"{type(error).__name__} {_place(error)}: {_first_line(error)}")
        else:
            yield Outcome(text, "passed")


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Raise `Violation` where the block draws from, or reseeds, a global generator of torch, NumPy or Python."""
    before = torch.get_rng_state(), _numpy_state(), random.getstate()
    yield
    require(torch.equal(torch.get_rng_state(), before[0]), "it draws from torch's global generator; pass a generator")
    require(_numpy_state() == before[1], "it draws from NumPy's global generator; take limbeck.core.rng.make_generator")
    require(random.getstate() == before[2], "it draws from the generator of Python's module random")


def _numpy_state() -> bytes:
    return pickle.dumps(get_state())  # noqa: NPY002 - only looked at


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _place(error: Exception) -> str:
    """The file and line of an error: the last one outside of limbeck and of installed packages, if there is one."""
    own = str(Path(limbeck.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if own not in frame.filename and "site-packages" not in frame.filename]
    frame = (users or frames)[-1]
    return f"in {Path(frame.filename).name}, line {frame.lineno}"
