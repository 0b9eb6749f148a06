"""How the command line behaves in one of several processes that torchrun started: one of them speaks for all."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

from limbeck.core.errors import UserError
from limbeck.core.launch import Launch

SECONDS = 2.0  # torchrun ends the other processes 0.1 s after one has failed


def require_shareable(name: str, is_shareable: bool) -> None:
    """Raise UserError where torchrun starts several processes of a command that cannot share its work."""
    if Launch.of_environment().size > 1 and not is_shareable:
        raise UserError(
            f"torchrun starts 'limbeck distill' and 'limbeck experts' alone: several processes of 'limbeck {name}' "
            "would do the same work; start it without torchrun."
        )


@contextmanager
def silence_others() -> Iterator[None]:
    """Print nothing inside a `with` block, unless this is rank 0."""
    with ExitStack() as stack:
        if Launch.of_environment().rank:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield


def label_failure(error: BaseException) -> str | None:
    """What stands before the sentence of a failure: the rank, of several; None where another rank says it.

    A failure of all ranks is rank 0's to tell. The others wait until torchrun ends them, and speak when it does not.
    """
    try:
        rank, size, _ = Launch.of_environment()
    except UserError:
        rank, size = 0, 1
    if size > 1 and isinstance(error, ConnectionError):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, which would only interrupt the end
    if rank == 0:
        return "limbeck"
    if isinstance(error, KeyboardInterrupt):
        return None
    if isinstance(error, ConnectionError):  # of rank 0, perhaps
        return None if rank > 1 else f"limbeck (rank {rank})"
    time.sleep(SECONDS)
    return f"limbeck (rank {rank})"
