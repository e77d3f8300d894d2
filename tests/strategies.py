"""The strategies of the tests are those that users get."""

from hypothesis import settings

from sparsekit.testing.strategies import (
    Layer,
    budgets,
    drop_fractions,
    gammas,
    layers,
    masks,
    ordinary_layer,
    random_bytes,
    scores,
    shapes,
)

__all__ = [
    "Layer",
    "budgets",
    "drop_fractions",
    "examples",
    "gammas",
    "layers",
    "masks",
    "ordinary_layer",
    "random_bytes",
    "scores",
    "shapes",
]


def examples(count: int) -> int:
    """`count` in the default profile, and as many times more as another profile has more examples."""
    return max(1, count * settings().max_examples // 100)
