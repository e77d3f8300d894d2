"""One update of the method under test: its arguments, its result, and how to ask again with others."""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from sparsekit.errors import InputError
from sparsekit.testing.strategies import Layer
from sparsekit.topology import TopologyMethod, TopologyUpdate


class BrokenPromiseError(AssertionError):
    """A topology method does not do what it promises.

    Attributes
    ----------
    promise : name of the promise, one of those that :func:`check_topology_method` lists
    example : code for the smallest layer found, "" where none shows it
    """

    promise = ""
    example = ""


@dataclass(frozen=True)
class Declarations:
    """What is known of the method before it is checked.

    Attributes
    ----------
    drops, grows, permutable : as handed to :func:`check_topology_method`
    needs_rng, needs_budget : whether it does not work without
    """

    drops: str | None
    grows: str | None
    permutable: bool
    needs_rng: bool = False
    needs_budget: bool = False


@dataclass(frozen=True, eq=False)
class Case:
    """A layer for the method to update.

    Attributes
    ----------
    ablate : as in `update`
    seed : of the random source that `update` is given, and of what a promise draws for itself
    """

    method: TopologyMethod
    layer: Layer
    ablate: bool
    seed: int
    declared: Declarations

    @cached_property
    def update(self) -> TopologyUpdate:
        """What the method does with this layer."""
        return self.again()

    def again(self, **changes: Any) -> TopologyUpdate:
        """Update the layer, of which the method gets copies, with some arguments replaced."""
        try:
            update = self._call(changes)
        except InputError as error:
            raise BrokenPromiseError(
                f"update must take every layer that fits its contract, but: {error}"
            ) from error
        except Exception as error:
            raise BrokenPromiseError(f"update raises {type(error).__name__}: {error}") from error
        if not isinstance(update, TopologyUpdate):
            raise BrokenPromiseError(f"update must return a TopologyUpdate, not {type(update).__name__}")
        return update

    def arguments(self) -> dict[str, Any]:
        """Copies of the arguments of `update`, by name."""
        layer = self.layer
        return {
            "weight": layer.weight.copy(),
            "mask": layer.mask.copy(),
            "grad": layer.grad.copy(),
            "drop_fraction": layer.drop_fraction,
            "budget": layer.budget,
            "ablate": self.ablate,
            "rng": np.random.default_rng(self.seed),
        }

    def works(self, **changes: Any) -> bool:
        """Whether `update` takes these arguments."""
        try:
            self.again(**changes)
        except BrokenPromiseError:
            return False
        return True

    def refuses(self, **changes: Any) -> bool:
        """Whether `update` raises an InputError of one line for these arguments, and nothing else."""
        try:
            self._call(changes)
        except InputError as error:
            return "\n" not in str(error)
        except Exception as error:
            raise BrokenPromiseError(
                f"update raises {type(error).__name__} instead of an InputError for {_words(changes)}: {error}"
            ) from error
        return False

    def without_ties(self) -> "Case":
        """The same case with weights and gradients that all differ in magnitude, small integers."""
        rng = np.random.default_rng(self.seed)

        def distinct() -> np.ndarray:
            magnitude = rng.permutation(self.layer.mask.size).reshape(self.layer.mask.shape) + 1.0
            return magnitude * rng.choice([-1.0, 1.0], magnitude.shape)

        weight = np.where(self.layer.mask, distinct(), 0.0)
        return replace(self, layer=replace(self.layer, weight=weight, grad=distinct()))

    def _call(self, changes: dict[str, Any]) -> TopologyUpdate:
        """As the trainer calls it, the first four arguments by position."""
        arguments = self.arguments() | changes
        positional = [arguments.pop(name) for name in ("weight", "mask", "grad", "drop_fraction")]
        return self.method.update(*positional, **arguments)

    def __str__(self) -> str:
        """Code that makes the same update."""
        layer = self.layer
        options = f"budget={layer.budget}, ablate={self.ablate}, rng=np.random.default_rng({self.seed})"
        return "\n".join([
            "import numpy as np",
            "",
            f"weight = np.array({layer.weight.tolist()}, dtype=np.{layer.weight.dtype})",
            f"mask = np.array({layer.mask.astype(int).tolist()}, dtype=bool)",
            f"grad = np.array({layer.grad.tolist()}, dtype=np.{layer.grad.dtype})",
            f"method.update(weight, mask, grad, {layer.drop_fraction!r}, {options})",
        ])  # fmt: skip


def first_difference(one: TopologyUpdate, other: TopologyUpdate) -> str | None:
    """Name of the first field in which two updates differ, or None."""
    for field in fields(TopologyUpdate):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if (first is None) != (second is None) or (first is not None and not np.array_equal(first, second)):
            return field.name
    return None


def _words(changes: dict[str, Any]) -> str:
    """The replaced arguments in one line."""
    return ", ".join(f"{name}={' '.join(repr(value).split())}" for name, value in changes.items())
