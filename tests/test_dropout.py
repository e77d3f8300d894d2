"""Dropout: backward against central differences, with the drops held fixed."""

import numpy as np
import pytest
from gradients import check_module

from sparsekit.dense import DenseMatrix
from sparsekit.nn import Dropout, Linear, Module, ReLU, Sequential


class Fixed(Module):
    """A module with dropout that drops the same elements in every forward pass."""

    def __init__(self, module: Module, dropout: Dropout) -> None:
        self.module = module
        self.dropout = dropout

    def forward(self, x, training=False):
        self.dropout.rng = np.random.default_rng(7)
        return self.module.forward(x, training)

    def backward(self, grad_output):
        return self.module.backward(grad_output)

    def children(self):
        return {"module": self.module}


@pytest.mark.parametrize("p", [0.0, 0.3, 0.9])
def test_dropout_backward(p, rng):
    layer = Dropout(p, rng)
    check_module(Fixed(layer, layer), rng.standard_normal((6, 5)), rng)


def test_dropout_backward_within_a_network(rng):
    dropout = Dropout(0.4, rng)
    network = Sequential(
        {
            "fc1": Linear(DenseMatrix(rng.standard_normal((8, 5)))),
            "relu1": ReLU(),
            "dropout1": dropout,
            "fc2": Linear(DenseMatrix(rng.standard_normal((3, 8)))),
        }
    )
    check_module(Fixed(network, dropout), rng.standard_normal((5, 4)), rng)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout_keeps_the_precision(dtype, rng):
    layer = Dropout(0.3, rng)
    x = np.ones((4, 5), dtype)
    assert layer.forward(x, training=True).dtype == dtype
    assert layer.backward(x).dtype == dtype


def test_every_pass_drops_other_elements(rng):
    layer = Dropout(0.5, rng)
    x = np.ones((20, 20))
    first, second = layer.forward(x, training=True), layer.forward(x, training=True)
    assert (first != second).any()
    np.testing.assert_array_equal(layer.backward(x), second)  # of the last pass
