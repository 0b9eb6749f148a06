"""Several listeners as one."""

from __future__ import annotations

from limbeck.core.events import Event, Listener


def combine(*listeners: Listener) -> Listener:
    """A listener that passes every event to all of these, in their order.

    >>> combine(lambda event: print("one", event), lambda event: print("two", event))({"event": "note"})
    one {'event': 'note'}
    two {'event': 'note'}
    """

    def forward(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return forward
