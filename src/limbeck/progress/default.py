"""The listener of a call from Python: the caller's own, or the screen where somebody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from limbeck.core.events import Event, Listener
from limbeck.progress.combine import combine


def ignore(event: Event) -> None:
    """A listener that does nothing."""


def is_watched() -> bool:
    """Whether somebody may look: standard error is a terminal, or the code runs in a notebook."""
    shell = sys.modules.get("IPython")
    if shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell":
        return True
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def listening(listen: Listener | None, progress: bool | None) -> Iterator[Listener]:
    """The listener for a `with` block.

    listen:   The caller's; it hears every event.
    progress: Whether to draw progress as well; by default where there is no `listen` and somebody may look.
    """
    if listen is None if progress is None and is_watched() else progress:
        from limbeck.progress.screen import Screen  # rich takes 60 ms to import

        with Screen() as screen:
            yield screen if listen is None else combine(screen, listen)
    else:
        yield ignore if listen is None else listen
