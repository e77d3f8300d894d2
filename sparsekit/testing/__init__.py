"""Tests for topology methods of your own: one call that checks everything a method promises.

    from sparsekit.testing import check_topology_method

    def test_my_method():
        check_topology_method(MyMethod())

What every method promises is checked on hundreds of small random layers, and in the training of a tiny network. A
broken promise is an AssertionError with one sentence and the smallest layer that shows it, ready to be pasted.

Say more about the method, and more is checked: ``check_topology_method(MyMethod(), drops="magnitude",
grows="gradient")``. For tests beyond these, the strategies that draw the layers are public too: ``layers()`` gives
everything one update needs, see :mod:`sparsekit.testing.strategies`.

This package needs Hypothesis, which is no dependency of sparsekit itself, and is not loaded by `import sparsekit`.
"""

import importlib.util

if importlib.util.find_spec("hypothesis") is None:
    raise ImportError(
        "sparsekit.testing needs Hypothesis: pip install 'sparsekit[dev]', or just pip install hypothesis"
    )

from sparsekit.testing.case import BrokenPromiseError
from sparsekit.testing.check import check_topology_method
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
    "BrokenPromiseError",
    "Layer",
    "budgets",
    "check_topology_method",
    "drop_fractions",
    "gammas",
    "layers",
    "masks",
    "ordinary_layer",
    "random_bytes",
    "scores",
    "shapes",
]
