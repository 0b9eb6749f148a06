"""What a job costs: the seconds of its stages and the bytes of its experts, as an estimate says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limbeck.core.errors import UserError
from limbeck.core.short_repr import short_repr
from limbeck.report.text import duration, size

STAGES = {"experts": "experts", "distill": "distillation", "evaluate": "evaluation"}


@dataclass(frozen=True)
class Estimate:
    """The remaining work of a job: seconds by stage, as results.json names them, and bytes of experts yet to be stored.

    The stages of an evaluation on several networks are the networks.
    baselines: seconds of the evaluation that go into real images, whose rows are stored for other runs.
    step:      seconds of one outer step, without validations; 0 where there is none.
    steps:     outer steps that are left.

    >>> Estimate({"experts": 360.0, "distill": 120.0}).total
    480.0
    """

    __repr__ = short_repr

    seconds: Mapping[str, float]
    store_bytes: int = 0
    baselines: float = 0.0
    step: float = 0.0
    steps: int = 0

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    @property
    def text(self) -> str:
        """One line.

        >>> Estimate({"experts": 360.0, "distill": 120.0, "evaluate": 241.0}, 18_200_000).text
        'about 12 min 1 s (experts 6 min 0 s, distillation 2 min 0 s, evaluation 4 min 1 s), 18.2 MB of experts'
        """
        stages = [f"{STAGES.get(name, name)} {duration(seconds)}" for name, seconds in self.seconds.items() if seconds]
        parts = f" ({', '.join(stages)})" if len(stages) > 1 else ""
        disk = f", {size(self.store_bytes)} of experts" if self.store_bytes else ""
        return f"about {duration(self.total)}{parts}{disk}"

    def steps_within(self, seconds: float) -> int:
        """How many outer steps make all stages take so long, in two digits. Raises UserError where not one fits.

        >>> Estimate({"experts": 60.0, "distill": 100.0, "evaluate": 40.0}, step=0.1, steps=1000).steps_within(3600)
        35000
        """
        if not self.step:
            raise UserError("there are no outer steps to choose a number of; leave out --within.")
        fixed = self.total - self.steps * self.step
        steps = int((seconds - fixed) / self.step)
        if steps < 1:
            raise UserError(
                f"--within {duration(seconds)} is too short: all but the outer steps takes about {duration(fixed)}; "
                "give more time, or lower --num-experts, --eval.networks or --model.width."
            )
        unit = int(10 ** max(0, len(str(steps)) - 2))
        return steps // unit * unit

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        stages = {name: round(seconds, 2) for name, seconds in self.seconds.items()}
        return {
            "seconds": round(self.total, 2),
            "stages": stages,
            "step_seconds": round(self.step, 4),
            "store_bytes": self.store_bytes,
            "text": self.text,
        }
