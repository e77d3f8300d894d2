"""Central differences: the independent check of every backward pass."""

from collections.abc import Callable

import numpy as np


def numerical_gradient(loss: Callable[[], float], array: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """d loss / d array by central differences; `array` is changed in place and put back."""
    gradient = np.zeros_like(array)
    for position in np.ndindex(array.shape):
        value = array[position]
        array[position] = value + step
        above = loss()
        array[position] = value - step
        below = loss()
        array[position] = value
        gradient[position] = (above - below) / (2 * step)
    return gradient


def check_module(module, x: np.ndarray, rng: np.random.Generator, tolerance: float = 1e-7) -> None:
    """Compare backward of a module with differences of <forward(x), r> for a random r, in float64."""
    direction = rng.standard_normal(module.forward(x, training=True).shape)

    def loss() -> float:
        return float((module.forward(x, training=True) * direction).sum())

    module.forward(x, training=True)
    grad_input = module.backward(direction)
    if grad_input is not None:
        np.testing.assert_allclose(grad_input, numerical_gradient(loss, x), rtol=tolerance, atol=tolerance)
    analytic = {name: p.grad.copy() for name, p in module.named_parameters().items()}
    for name, parameter in module.named_parameters().items():
        expected = numerical_gradient(loss, parameter.values)
        np.testing.assert_allclose(analytic[name], expected, rtol=tolerance, atol=tolerance, err_msg=name)
