"""Another number of torch's threads for a while, such as one for work whose bits would depend on their number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def number_of_threads(count: int) -> Iterator[None]:
    """Let torch and its linear algebra use `count` threads inside a `with` block, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
