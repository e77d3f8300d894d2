"""Checks of arguments. Each raises :class:`InputError` with one line: argument, value, what is allowed."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from sparsekit.errors import InputError

Pair = tuple[int, int]  # vertical, horizontal


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
    try:
        number = None if value is None or isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        raise InputError(f"{name} must be {allowed}, not {repr(value) if number is None else number}")
    return number


def require_pair(name: str, value: int | tuple[int, int], low: int) -> Pair:
    """One integer of at least `low` for both directions, or (vertical, horizontal), as a pair."""
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise InputError(f"{name} must be an integer or (vertical, horizontal), not {tuple(value)}")
        return require_integer(name, value[0], low), require_integer(name, value[1], low)
    number = require_integer(name, value, low)
    return number, number


def require_choice(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """Return `value` if it is one of `allowed`; the error suggests the nearest name."""
    choices = list(allowed)
    if value in choices:
        return value
    raise InputError(
        f"{name} must be one of {', '.join(map(str, choices))}, not {value!r}{nearest(value, choices)}"
    )


def require_rng(name: str, rng: object) -> np.random.Generator:
    """Return `rng` if it is a numpy.random.Generator."""
    if not isinstance(rng, np.random.Generator):
        raise InputError(f"{name} must be a numpy.random.Generator, not {type(rng).__name__}")
    return rng


def nearest(value: Any, choices: Iterable[Any]) -> str:
    """' (did you mean 'x'?)' for the choice closest to `value` in any case, or '' when nothing is close."""
    names = {str(choice).lower(): str(choice) for choice in choices}
    close = difflib.get_close_matches(str(value).lower(), names, n=1)
    return f" (did you mean {names[close[0]]!r}?)" if close else ""


def _as_number(name: str, value: Any, allowed: str) -> float:
    try:
        if hasattr(value, "__float__") and not isinstance(value, bool | str):
            return float(value)
    except (TypeError, OverflowError):  # an array of several numbers, an int beyond any float
        pass
    raise InputError(f"{name} must be a number ({allowed}), not {value!r}")
