"""The one error that is the user's to mend; the command line prints its sentence and exits with status 2."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user gave: says what was wrong, where, and what to do next."""
