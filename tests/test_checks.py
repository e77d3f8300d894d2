"""Argument checks: what passes, and the one line that says what does not."""

import numpy as np
import pytest

from sparsekit import checks
from sparsekit.errors import InputError


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: checks.require_fraction("f", 1), 1.0),
        (lambda: checks.require_fraction("f", np.float32(0.5)), 0.5),
        (lambda: checks.require_number("x", 0, low=0), 0.0),
        (lambda: checks.require_integer("n", np.int64(3), 1), 3),
        (lambda: checks.require_choice("c", None, (None, "official")), None),
        (lambda: checks.nearest("RELU", ["relu", "gelu"]), " (did you mean 'relu'?)"),
        (lambda: checks.nearest("zzz", ["relu", "gelu"]), ""),
    ],
)
def test_what_passes(call, expected):
    value = call()
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: checks.require_fraction("f", 0, low_open=True), r"^f must lie in \(0, 1\], not 0$"),
        (lambda: checks.require_fraction("f", 1, high_open=True), r"^f must lie in \[0, 1\), not 1$"),
        (lambda: checks.require_fraction("f", float("nan")), r"^f must lie in \[0, 1\], not nan$"),
        (lambda: checks.require_fraction("f", "0.5"), r"^f must be a number \(\[0, 1\]\), not '0.5'$"),
        (lambda: checks.require_fraction("f", True), "^f must be a number"),
        (lambda: checks.require_fraction("f", None), "^f must be a number"),
        (lambda: checks.require_number("x", float("inf"), low=0), "^x must be at least 0 and finite, not inf$"),
        (lambda: checks.require_integer("n", 1.0, 1), "^n must be an integer of at least 1, not 1.0$"),
        (lambda: checks.require_integer("n", None, 1), "^n must be an integer of at least 1, not None$"),
        (lambda: checks.require_integer("n", True, 1), "^n must be an integer"),
        (lambda: checks.require_integer("n", 9, 1, 8), r"^n must be an integer in \[1, 8\], not 9$"),
        (lambda: checks.require_choice("c", "b", ("a1", "a2")), "^c must be one of a1, a2, not 'b'$"),
        (lambda: checks.require_rng("rng", np.random), "^rng must be a numpy.random.Generator"),
    ],
)
def test_what_does_not(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
