"""When the topology is updated, and which fraction of the weights is dropped then."""

import math
from dataclasses import dataclass

from sparsekit.checks import require_fraction, require_integer


def cosine_drop_fraction(step: int, alpha: float, t_end: int) -> float:
    """Drop fraction f = alpha / 2 * (1 + cos(pi * step / t_end)).

    Parameters
    ----------
    step : optimizer step, 0 <= step <= t_end
    alpha : drop fraction at step 0, in [0, 1]
    t_end : step at which the fraction reaches 0

    Source: Evci et al., "Rigging the Lottery", arXiv 1911.11134.
    """
    t_end = require_integer("t_end", t_end, 1)
    step = require_integer("step", step, 0, t_end)
    return require_fraction("alpha", alpha) / 2 * (1 + math.cos(math.pi * step / t_end))


@dataclass(frozen=True)
class UpdateSchedule:
    """Updates every `delta_t` steps, before step `t_end`, with a drop fraction that decays as a cosine.

    Attributes
    ----------
    delta_t : optimizer steps between two updates
    alpha : drop fraction at the start, in [0, 1]
    t_end : optimizer step from which the topology is left alone (0: it is never updated)
    """

    delta_t: int = 100
    alpha: float = 0.3
    t_end: int = 0

    def __post_init__(self) -> None:
        require_integer("delta_t", self.delta_t, 1)
        require_fraction("alpha", self.alpha)
        require_integer("t_end", self.t_end, 0)

    def is_due(self, step: int) -> bool:
        """Whether the topology is updated after optimizer step `step`, counted from 1."""
        return require_integer("step", step, 1) % self.delta_t == 0 and step < self.t_end

    def drop_fraction(self, step: int) -> float:
        """The drop fraction at optimizer step `step`."""
        return cosine_drop_fraction(step, self.alpha, self.t_end)
