"""Small samples: intervals for a mean, paired comparisons and several of them at once.

The samples are a handful of numbers, one for each seed. What can be trusted with five of them:

* **Student's t** (:func:`mean_interval`, :func:`paired_difference`) assumes normally distributed values. Five
  values cannot show whether they are; for accuracies of trainings that differ in their seed alone it is a fair
  assumption, and the interval is honest about n: five values make it 2.78 standard errors to each side, not 1.96.
* **Sign flips** (:func:`permutation_p_value`) assume only that a difference is as likely to be positive as
  negative if the methods are equal. The price is resolution: of n pairs no p-value is below 2 / 2^n, which is 1/16
  for five. So five seeds can never reject at 5 % by this test; six can (1/32).
* **Holm** (:func:`holm`) keeps the chance of a single false claim in a whole table below the level, whatever the
  dependence between its rows. The smallest p-value is multiplied by the number of comparisons: with sign flips of
  five pairs it reaches 1 from sixteen comparisons on and says nothing; with Student's t it still may.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from sparsekit.checks import require_fraction
from sparsekit.errors import InputError

MOST_PAIRS = 20  # 2^20 sums are made in milliseconds and 8 MiB


@dataclass(frozen=True)
class PairedDifference:
    """What :func:`paired_difference` found; `mean` and `half_width` have the unit of the values.

    Attributes
    ----------
    mean : mean of a - b
    half_width : of the confidence interval around `mean`
    t : Student's t statistic, with n - 1 degrees of freedom
    p_value : two-sided
    n : number of pairs
    """

    mean: float
    half_width: float
    t: float
    p_value: float
    n: int


def mean_interval(values: Iterable[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean, and half the width of its confidence interval by Student's t.

    mean +- t(n - 1; (1 + confidence) / 2) * s / sqrt(n), with the sample's standard deviation s, whose sum of
    squares is divided by n - 1.

    Parameters
    ----------
    values : at least two finite numbers
    confidence : in (0, 1), how often such an interval holds the true mean

    Returns
    -------
    mean, half width; both in the unit of the values. The half width of equal values is 0, which says that they are
    too few or too coarse to differ, not that the mean is certain.

    Raises
    ------
    InputError
        For fewer than two values, a NaN or an infinity, or a confidence that is not in (0, 1).
    """
    sample = _sample("values", values)
    return float(sample.mean()), _half_width(sample, confidence)


def mean_with_spread(values: Iterable[float]) -> tuple[float, float | None]:
    """As :func:`mean_interval` at 95 %; a single value gives itself and None: one says nothing of its spread."""
    sample = list(values)
    return mean_interval(sample) if len(sample) > 1 else (sample[0], None)


def paired_difference(a: Iterable[float], b: Iterable[float], confidence: float = 0.95) -> PairedDifference:
    """Student's paired t-test of a - b: the same seeds under two methods, for example.

    Pairing takes out what a seed does to both methods; the test looks at the n differences alone. If all of them
    are equal (up to the rounding of the subtraction) their spread is 0 and the formula has no value. The result is
    then half width 0, with t = 0 and p = 1 if every difference is 0, else t = +-inf and p = 0. That p-value is the
    limit of the formula, not evidence: read :func:`permutation_p_value` instead.

    Parameters
    ----------
    a, b : equally many finite numbers, at least two; a[i] and b[i] belong together
    confidence : in (0, 1), of the interval

    Raises
    ------
    InputError
        For samples that are not pairs, too short, or hold a NaN or an infinity; for a confidence not in (0, 1).

    Notes
    -----
    Student, "The probable error of a mean", Biometrika 6 (1908).
    """
    differences, rounding = _differences(a, b)
    n, mean = len(differences), float(differences.mean())
    if np.ptp(differences) <= rounding:
        require_fraction("confidence", confidence, low_open=True, high_open=True)
        if abs(mean) <= rounding:
            return PairedDifference(mean, 0.0, 0.0, 1.0, n)
        return PairedDifference(mean, 0.0, math.copysign(math.inf, mean), 0.0, n)
    t = mean / _standard_error(differences)
    p_value = 2 * float(stats.t.sf(abs(t), n - 1))
    return PairedDifference(mean, _half_width(differences, confidence), t, p_value, n)


def permutation_p_value(a: Iterable[float], b: Iterable[float]) -> float:
    """Two-sided p-value of a - b by the exact sign-flip test.

    If the two methods are equal, each difference might as well have had the other sign. The p-value is the share
    of all 2^n choices of signs whose sum is at least as far from 0 as the observed one; sums that differ from it
    only by rounding count. It needs no distribution, and it is never below 2 / 2^n: 1/16 for n = 5.

    Parameters
    ----------
    a, b : equally many finite numbers, from 2 to `MOST_PAIRS`; a[i] and b[i] belong together

    Raises
    ------
    InputError
        For samples that are not pairs, too short or too long, or hold a NaN or an infinity.

    Notes
    -----
    R. A. Fisher, "The Design of Experiments" (1935), section 21.
    """
    differences, rounding = _differences(a, b)
    n = len(differences)
    if n > MOST_PAIRS:
        raise InputError(f"a and b must hold at most {MOST_PAIRS} pairs for an exact test, not {n}")
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate((sums + difference, sums - difference))
    observed = abs(sums[0])  # all signs as they are
    return float(np.mean(np.abs(sums) >= observed - n * n * rounding))


def holm(p_values: Iterable[float]) -> np.ndarray:
    """Holm's adjusted p-values of a family of tests, in the order of `p_values`.

    The i-th smallest of m p-values (i from 0) becomes max over j <= i of min(1, (m - j) p_j). Whoever rejects
    what is then at most alpha makes any false rejection in the whole family with a probability of at most alpha,
    however the tests depend on each other. It rejects all that Bonferroni's correction does, and more.

    Parameters
    ----------
    p_values : at least one number in [0, 1]

    Raises
    ------
    InputError
        For no value at all, or one that is no probability (a NaN is none).

    Notes
    -----
    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6
    (1979).
    """
    raw = np.array([require_fraction(f"p_values[{i}]", p) for i, p in enumerate(p_values)])
    if not raw.size:
        raise InputError("p_values must hold at least one p-value, not none")
    order = np.argsort(raw, kind="stable")
    scaled = np.minimum(raw[order] * np.arange(raw.size, 0, -1), 1)
    adjusted = np.empty_like(raw)
    adjusted[order] = np.maximum.accumulate(scaled)
    return adjusted


def _sample(name: str, values: Iterable[float]) -> np.ndarray:
    """The values as float64, of which there are at least two, all finite."""
    try:
        sample = np.array(list(values), dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be numbers, not {values!r}") from None
    if sample.ndim != 1 or len(sample) < 2:
        raise InputError(f"{name} must be at least 2 numbers, not an array of shape {sample.shape}")
    for i in np.flatnonzero(~np.isfinite(sample)):
        raise InputError(f"{name}[{i}] must be a finite number, not {sample[i]}")
    return sample


def _differences(a: Iterable[float], b: Iterable[float]) -> tuple[np.ndarray, float]:
    """a - b, and by how much two differences that should be equal may differ.

    The values are rounded, and so is the subtraction: one unit in the last place of the largest value for each.
    """
    first, second = _sample("a", a), _sample("b", b)
    if len(first) != len(second):
        raise InputError(f"a and b must be pairs, not {len(first)} and {len(second)} values")
    largest = max(np.abs(first).max(), np.abs(second).max())
    return first - second, 4 * float(np.spacing(largest))


def _standard_error(sample: np.ndarray) -> float:
    return float(sample.std(ddof=1)) / math.sqrt(len(sample))


def _half_width(sample: np.ndarray, confidence: float) -> float:
    level = require_fraction("confidence", confidence, low_open=True, high_open=True)
    if np.ptp(sample) == 0:  # the rounded mean of equal values need not be one of them
        return 0.0
    return float(stats.t.ppf((1 + level) / 2, len(sample) - 1)) * _standard_error(sample)
