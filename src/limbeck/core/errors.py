"""The errors that are sentences: for mistakes of the user, and for a disk that cannot be written to."""

from __future__ import annotations

from collections.abc import Iterable

from limbeck.core.text import printable


class UserError(ValueError):
    """A mistake in what the user passed. Its sentence says what is wrong, where, and what to do next.

    The command line prints that sentence alone and exits with status 2. It is a ValueError. Whatever the sentence
    quotes from files, it is one line of characters that a terminal prints: others are written as their escapes.

    >>> import limbeck
    >>> limbeck.load_data("no/such/folder")
    Traceback (most recent call last):
    limbeck.core.errors.UserError: no data called 'no/such/folder'; give a path that exists or a known name: ...
    >>> print(UserError("the class a\\x1b[2J has no images; add some."))
    the class a\\x1b[2J has no images; add some.
    """

    def __init__(self, sentence: object = ""):
        super().__init__(printable(str(sentence)))


class NewerError(UserError):
    """A file that a newer version of limbeck wrote, which this one neither reads nor writes over."""


class WriteError(OSError):
    """A file could not be written, which is the machine's fault. The command line exits with status 1.

    Its sentence says which path, why, and what to do next. It is an OSError; see `limbeck.core.disk.write_errors`.
    """

    def __init__(self, number: int, reason: str, sentence: str):
        super().__init__(number, reason)
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence


OUT_OF_MEMORY = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory", "bad_alloc", "out of memory")
"""Words of torch's errors where memory is not enough; on a GPU they are of a class of their own."""


def explain_memory(error: BaseException) -> str | None:
    """A sentence on an error for lack of memory, with what to change; None for any other error.

    >>> explain_memory(MemoryError())
    'the memory of this machine is not enough; take smaller batches, fewer student steps, fewer threads or a ...
    >>> explain_memory(RuntimeError("shapes differ"))
    """
    is_on_gpu = type(error).__name__ == "OutOfMemoryError"
    is_of_torch = isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    if not (is_on_gpu or is_of_torch or isinstance(error, MemoryError)):
        return None
    place = "GPU" if is_on_gpu else "machine"
    return (
        f"the memory of this {place} is not enough; take smaller batches, fewer student steps, fewer threads or a "
        "narrower network (options like --batch-real, --batch-syn, --eval.batch-size, --syn-steps, --threads, "
        "--model.width)."
    )


def suggest_names(name: str, names: Iterable[str]) -> str:
    """The end of an error about an unknown name: the names near to it, or all where none is near.

    >>> suggest_names("mtc", ["mct", "mtt", "random"]), suggest_names("nope", ["mct", "mtt"])
    ('did you mean mtt or mct?', 'choose one of mct, mtt.')
    """
    from difflib import get_close_matches  # takes 5 ms, which only an error is to pay for

    names = list(names)
    near = get_close_matches(name, names)
    return f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(names)}."
