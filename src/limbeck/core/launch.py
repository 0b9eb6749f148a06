"""What torchrun told this process, without torch: its rank, and how many processes there are."""

from __future__ import annotations

import os
from typing import NamedTuple

from limbeck.core.errors import UserError


class Launch(NamedTuple):
    """This process among those that torchrun started for one job.

    rank:  from 0 to size - 1, over all machines.
    local: the same among the processes of this machine, and so the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls) -> Launch:
        """Read the environment variables of torchrun; one process where it was not started by torchrun.

        Other launchers set RANK and WORLD_SIZE too, some of them for every process of a container, so that these alone
        say nothing. Raises UserError where they are no numbers.
        """
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        try:
            return cls(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
        except (KeyError, ValueError):
            raise UserError(
                "TORCHELASTIC_RUN_ID is set, but RANK, WORLD_SIZE and LOCAL_RANK are not all whole numbers; start the "
                "command by torchrun, or unset TORCHELASTIC_RUN_ID."
            ) from None
