"""The error for mistakes that the user can correct."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user passed. Its sentence says what is wrong, where, and what to do next.

    The command line prints that sentence alone and exits with status 2. It is a ValueError.

    >>> import limbeck
    >>> limbeck.load_data("no/such/folder")
    Traceback (most recent call last):
    limbeck.core.errors.UserError: no data called 'no/such/folder'; give a path that exists or a known name: ...
    """
