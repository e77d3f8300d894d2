"""Intervals and tests of small samples against SciPy, plain enumeration and the definitions."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from analysis.intervals import (
    MOST_PAIRS,
    holm,
    mean_interval,
    mean_with_spread,
    paired_difference,
    permutation_p_value,
)
from sparsekit.errors import InputError

numbers = st.floats(-1e6, 1e6)
samples = st.lists(numbers, min_size=2, max_size=8)
small_integers = st.integers(-3, 3)  # full of ties and zeros
integer_pairs = st.lists(st.tuples(small_integers, small_integers), min_size=2, max_size=7)
probabilities = st.floats(0, 1)
families = st.lists(probabilities, min_size=1, max_size=8)
confidences = st.floats(0.01, 0.99)


def flips_by_enumeration(a, b) -> Fraction:
    """The definition in exact arithmetic: every choice of signs, one by one."""
    differences = [Fraction(x) - Fraction(y) for x, y in zip(a, b, strict=True)]
    observed = abs(sum(differences))
    totals = [
        abs(sum(sign * difference for sign, difference in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return Fraction(sum(total >= observed for total in totals), len(totals))


def rejected_by_holm(p_values, alpha) -> set[int]:
    """Holm's procedure as he states it: step up from the smallest, and stop at the first that is not rejected."""
    rejected = set()
    for step, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[i] * (len(p_values) - step) > alpha:
            break
        rejected.add(i)
    return rejected


def test_mean_interval_by_hand():
    # Mean 3, s^2 = 10/4, and the table of Student's t gives 2.7764 for 4 degrees of freedom.
    mean, half = mean_interval([1, 2, 3, 4, 5])
    assert mean == 3
    assert half == pytest.approx(2.7764 * math.sqrt(2.5 / 5), rel=1e-4)
    # One degree of freedom is Cauchy's distribution: its quantile is a tangent.
    assert mean_interval([0, 2], 0.9) == pytest.approx((1, math.tan(0.45 * math.pi)))


@given(samples, confidences)
def test_mean_interval_is_scipys(values, confidence):
    assume(np.std(values) > 1e-6 * max(map(abs, values)))
    low, high = stats.t.interval(confidence, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    mean, half = mean_interval(values, confidence)
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-9, abs=1e-9 * max(map(abs, values)))


@given(numbers, st.integers(2, 9))
def test_equal_values_have_no_spread(value, n):
    mean, half = mean_interval([value] * n)
    assert mean == pytest.approx(value)
    assert half == 0


def test_the_interval_holds_the_mean_as_often_as_it_says(rng):
    draws = rng.normal(10, 3, (4000, 5))
    intervals = [mean_interval(draw, 0.8) for draw in draws]
    hits = sum(abs(mean - 10) <= half for mean, half in intervals)
    assert abs(hits / len(draws) - 0.8) < 4 * math.sqrt(0.8 * 0.2 / len(draws))


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=8), confidences)
def test_paired_difference_is_scipys(pairs, confidence):
    a, b = np.array(pairs).T
    assume(np.std(a - b) > 1e-6 * np.abs(pairs).max())
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(confidence)
    got = paired_difference(a, b, confidence)
    assert got.n == len(pairs)
    assert got.mean == np.mean(a - b)
    assert (got.t, got.p_value) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9, abs=1e-12)
    ends = (got.mean - got.half_width, got.mean + got.half_width)
    assert ends == pytest.approx((interval.low, interval.high), rel=1e-9, abs=1e-9 * np.abs(pairs).max())


@given(integer_pairs)
def test_swapping_the_methods_turns_the_sign(pairs):
    a, b = zip(*pairs, strict=True)
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert (there.mean, there.t) == (-back.mean, -back.t)
    assert (there.half_width, there.p_value) == (back.half_width, back.p_value)
    assert permutation_p_value(a, b) == permutation_p_value(b, a)


@given(st.integers(-500, 500), st.lists(st.integers(0, 10_000), min_size=2, max_size=8))
def test_equal_differences_have_the_limit_of_the_formula(shift, counts):
    """Accuracies in per cent of 10,000 images: differences of equal counts are equal only up to rounding."""
    a, b = [(count + shift) / 100 for count in counts], [count / 100 for count in counts]
    got = paired_difference(a, b)
    assert got.mean == pytest.approx(shift / 100, abs=1e-10)
    assert got.half_width == 0
    assert (got.t, got.p_value) == ((0, 1) if shift == 0 else (math.copysign(math.inf, shift), 0))
    assert permutation_p_value(a, b) == (1 if shift == 0 else 2 / 2 ** len(counts))


@given(integer_pairs)
def test_sign_flips_by_enumeration(pairs):
    a, b = zip(*pairs, strict=True)
    assert permutation_p_value(a, b) == flips_by_enumeration(a, b)


def test_sign_flips_by_hand():
    # Of the eight sums of +-1 +-2 +-3 these are as far from 0 as the observed 1 + 2 - 3 = 0: all.
    assert permutation_p_value([1, 2, -3], [0, 0, 0]) == 1
    # Observed 1 + 2 + 3 = 6: it and -6.
    assert permutation_p_value([1, 2, 3], [0, 0, 0]) == 2 / 8
    # Observed -1 + 2 + 3 = 4: 6 and 4, and their opposites.
    assert permutation_p_value([-1, 2, 3], [0, 0, 0]) == 4 / 8
    # Five seeds on one side: the smallest p-value there is.
    assert permutation_p_value([0.9, 0.91, 0.88, 0.93, 0.9], [0.8] * 5) == 1 / 16


@given(st.lists(st.integers(-300, 300), min_size=2, max_size=7))
def test_rounding_does_not_break_ties(counts):
    """Hundredths are no binary fractions: sums that tie in counts must tie in floats."""
    floats = [0.5 + count / 100 for count in counts]
    assert permutation_p_value(floats, [0.5] * len(counts)) == flips_by_enumeration(counts, [0] * len(counts))


@given(integer_pairs, st.randoms(use_true_random=False))
def test_the_order_of_the_pairs_does_not_matter(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    p_values = [permutation_p_value(*zip(*order, strict=True)) for order in (pairs, shuffled)]
    assert p_values[0] == p_values[1]


def test_sign_flips_agree_with_scipys_permutation_test(rng):
    a, b = rng.normal(size=(2, 9))
    expected = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=math.inf
    )
    assert permutation_p_value(a, b) == pytest.approx(expected.pvalue, abs=1e-12)


def test_as_many_pairs_as_allowed(rng):
    a = rng.normal(size=MOST_PAIRS)
    assert permutation_p_value(np.abs(a), np.zeros(MOST_PAIRS)) == 2 / 2**MOST_PAIRS
    with pytest.raises(InputError, match=f"at most {MOST_PAIRS} pairs for an exact test, not {MOST_PAIRS + 1}"):
        permutation_p_value(np.ones(MOST_PAIRS + 1), np.zeros(MOST_PAIRS + 1))


def test_holm_by_hand():
    # 0.01 * 4, 0.02 * 3, then 0.03 * 2 and 0.04 * 1, neither below what comes before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6, 0.001]) == pytest.approx([1, 1, 0.003])
    assert holm([0.2]) == pytest.approx([0.2])


@given(families, probabilities)
def test_holm_rejects_what_his_procedure_rejects(p_values, alpha):
    assert set(np.flatnonzero(holm(p_values) <= alpha)) == (
        rejected_by_holm(p_values, alpha) if alpha < 1 else set(range(len(p_values)))
    )


@given(families)
def test_holm_lies_between_the_raw_values_and_bonferroni(p_values):
    raw, adjusted = np.array(p_values), holm(p_values)
    assert (adjusted >= raw).all()
    assert (adjusted <= np.minimum(1, len(raw) * raw)).all()


@given(families)
def test_holm_keeps_the_order(p_values):
    adjusted = holm(p_values)
    for i, j in itertools.permutations(range(len(p_values)), 2):
        if p_values[i] <= p_values[j]:
            assert adjusted[i] <= adjusted[j]


@given(families, st.randoms(use_true_random=False))
def test_holm_does_not_depend_on_the_order(p_values, random):
    order = random.sample(range(len(p_values)), len(p_values))
    assert (holm([p_values[i] for i in order]) == holm(p_values)[order]).all()


@given(families)
def test_another_test_makes_no_p_value_smaller(p_values):
    assert (holm([*p_values, 1.0])[:-1] >= holm(p_values)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([1.0]), r"values must be at least 2 numbers, not an array of shape \(1,\)"),
        (lambda: mean_interval([]), r"values must be at least 2 numbers, not an array of shape \(0,\)"),
        (lambda: mean_interval([[1, 2], [3, 4]]), r"values must be at least 2 numbers, not .* \(2, 2\)"),
        (lambda: mean_interval(["a", "b"]), r"values must be numbers, not \['a', 'b'\]"),
        (lambda: mean_interval([1, [2, 3]]), "values must be numbers"),
        (lambda: mean_interval([1, 2, math.nan]), r"values\[2\] must be a finite number, not nan"),
        (lambda: mean_interval([math.inf, 2]), r"values\[0\] must be a finite number, not inf"),
        (lambda: mean_interval([1, 2], 1), r"confidence must lie in \(0, 1\), not 1"),
        (lambda: mean_interval([1, 1], 0), r"confidence must lie in \(0, 1\), not 0"),
        (lambda: paired_difference([1, 1], [1, 1], 95), r"confidence must lie in \(0, 1\), not 95"),
        (lambda: paired_difference([1, 2], [3, math.nan]), r"b\[1\] must be a finite number, not nan"),
        (lambda: paired_difference([1, 2], [3, 4, 5]), "a and b must be pairs, not 2 and 3 values"),
        (lambda: permutation_p_value([1, math.nan], [3, 4]), r"a\[1\] must be a finite number, not nan"),
        (lambda: permutation_p_value([1], [2]), "a must be at least 2 numbers"),
        (lambda: holm([]), "p_values must hold at least one p-value, not none"),
        (lambda: holm([0.1, math.nan]), r"p_values\[1\] must lie in \[0, 1\], not nan"),
        (lambda: holm([1.2]), r"p_values\[0\] must lie in \[0, 1\], not 1.2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=f"^{message}"):
        call()


def test_one_value_has_no_spread():
    assert mean_with_spread([3.5]) == (3.5, None)
    assert mean_with_spread(iter([1.0, 2.0, 4.0])) == mean_interval([1.0, 2.0, 4.0])
