"""Checks of arguments. Each raises :class:`InputError` with one line: argument, value, what is allowed."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any

from sparsekit.errors import InputError


def require_fraction(name: str, value: float, *, low_open: bool = False, high_open: bool = False) -> float:
    """Return `value` as a float if it lies between 0 and 1 (ends excluded where `*_open`)."""
    allowed = f"{'(' if low_open else '['}0, 1{')' if high_open else ']'}"
    number = _as_number(name, value, allowed)
    inside = (number > 0 if low_open else number >= 0) and (number < 1 if high_open else number <= 1)
    if not inside:
        raise InputError(f"{name} must lie in {allowed}, not {value!r}")
    return number


def require_number(name: str, value: float, *, low: float, low_open: bool = False) -> float:
    """Return `value` as a finite float that is at least (with `low_open`: greater than) `low`."""
    allowed = f"{'greater than' if low_open else 'at least'} {low:g}"
    number = _as_number(name, value, allowed)
    if not math.isfinite(number) or number < low or (low_open and number == low):
        raise InputError(f"{name} must be {allowed} and finite, not {value!r}")
    return number


def require_integer(name: str, value: int | None, low: int, high: int | None = None) -> int:
    """Return `value` as an int in [low, high]."""
    allowed = f"an integer of at least {low}" if high is None else f"an integer in [{low}, {high}]"
    if value is None or isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InputError(f"{name} must be {allowed}, not {value!r}")
    number = operator.index(value)
    if number < low or (high is not None and number > high):
        raise InputError(f"{name} must be {allowed}, not {number}")
    return number


def require_choice(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """Return `value` if it is one of `allowed`; the error suggests the nearest name."""
    choices = list(allowed)
    if value in choices:
        return value
    raise InputError(
        f"{name} must be one of {', '.join(map(str, choices))}, not {value!r}{nearest(value, choices)}"
    )


def nearest(value: Any, choices: Iterable[Any]) -> str:
    """' (did you mean 'x'?)' for the choice closest to `value`, or '' when nothing is close."""
    close = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _as_number(name: str, value: Any, allowed: str) -> float:
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise InputError(f"{name} must be a number ({allowed}), not {value!r}")
    return float(value)
