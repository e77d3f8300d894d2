"""Whether simulations agree with a theory: z-scores against what chance allows.

If the theory holds, the z-score of an estimate, its distance from the theory over its standard error, is close to
a standard normal number. Of many independent ones some are large by chance. Two limits tell chance from error; a
right theory exceeds each of them once in ten thousand comparisons:

* how many lie outside the 95 % interval, |z| > 1.96: at most the 1 - 1e-4 quantile of the binomial distribution.
  This finds many small errors;
* how far the worst lies out: at most the |z| that a normal number exceeds with probability 1e-4 over the number of
  z-scores (Bonferroni). This finds a single large error.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binom, norm

from sparsekit.errors import InputError

LEVEL = 1e-4
NORMAL_95 = float(norm.isf(0.025))  # 1.96


@dataclass(frozen=True)
class Verdict:
    """How many z-scores lie outside the 95 % interval and how far the worst does, each with what is allowed."""

    points: int
    outside: int
    outside_allowed: int
    worst: float
    worst_allowed: float

    @property
    def agrees(self) -> bool:
        """Whether chance explains the z-scores."""
        return self.outside <= self.outside_allowed and self.worst <= self.worst_allowed

    def __str__(self) -> str:
        return (
            f"{self.outside} of {self.points} outside 95 % (chance allows {self.outside_allowed}), "
            f"worst |z| {self.worst:.2f} (chance allows {self.worst_allowed:.2f})"
        )


def judge(z_scores: Sequence[float]) -> Verdict:
    """Compare z-scores of independent estimates with chance.

    Raises
    ------
    InputError
        If there is none.
    """
    if not z_scores:
        raise InputError("z_scores must hold at least one number, not none")
    worst = max(abs(z) for z in z_scores)
    return Verdict(
        points=len(z_scores),
        outside=sum(abs(z) > NORMAL_95 for z in z_scores),
        outside_allowed=int(binom.isf(LEVEL, len(z_scores), 0.05)),
        worst=worst,
        worst_allowed=float(norm.isf(LEVEL / 2 / len(z_scores))),
    )
