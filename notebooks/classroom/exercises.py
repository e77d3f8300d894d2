"""Exercises: a reader's answer is judged in a sentence, the notebook's own solution must be right."""

from collections.abc import Callable
from typing import Any

Check = Callable[[Any], None]


def try_it(answer: Any, check: Check) -> None:
    """Say whether a reader's answer passes. It never raises, so that an unsolved exercise stops nobody.

    Parameters
    ----------
    answer : a value or a function; None, Ellipsis or a function that returns one of them is "not answered yet"
    check : called with the answer; raises AssertionError, best with a hint as its message, where it is wrong
    """
    if answer is None or answer is ...:
        print("Not answered yet.")
        return
    unfinished = _Unfinished(answer) if callable(answer) else None
    try:
        check(unfinished or answer)
    except Exception as error:  # whatever a half-written answer does
        if unfinished and unfinished.found:
            print("Not answered yet.")
        else:
            print(f"Not yet: {_first_line(error)}")
    else:
        print("Right!")


def verify(solution: Any, check: Check) -> None:
    """Show that the notebook's own solution passes the same check.

    Raises
    ------
    AssertionError
        If it does not: then the notebook is wrong.
    """
    check(solution)
    print("The solution passes the check.")


class _Unfinished:
    """Calls a function, and remembers whether it has returned nothing."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.found = False

    def __call__(self, *args: Any, **options: Any) -> Any:
        result = self.function(*args, **options)
        self.found |= result is None or result is ...
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.function, name)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:3]) or "the check fails"
    return text if isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"
