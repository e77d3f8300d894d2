"""What the tests of layers share: random layers of every storage, and what a pass through a module gives."""

import numpy as np

from sparsekit import CondensedMatrix, CSRMatrix, DenseMatrix
from sparsekit.kernels.memory import aligned_empty
from sparsekit.masks import random_constant_fan_in
from sparsekit.nn import BatchNorm, Conv2d, Linear

STORAGES = [DenseMatrix, CSRMatrix, CondensedMatrix]
SPARSE = [CSRMatrix, CondensedMatrix]


def random_mask(storage, shape, rng):
    """Everywhere for dense storage; else about a third, and the second neuron of several is ablated."""
    n_out, n_in = shape
    if storage is DenseMatrix:
        return np.ones(shape, dtype=bool)
    if storage is CSRMatrix:
        mask = rng.random(shape) < 0.35
    else:
        mask = random_constant_fan_in(shape, max(1, n_in // 3), rng)
    mask[1:2] = False
    if n_out == 1:
        mask[0, 0] = mask.sum() == 0 or mask[0, 0]
    return mask


def stored(storage, shape, rng, dtype=np.float64):
    """A matrix of normal weights."""
    matrix = storage.from_mask(random_mask(storage, shape, rng), dtype)
    matrix.values[...] = rng.standard_normal(matrix.values.shape) / np.sqrt(max(1, matrix.nnz / shape[0]))
    return matrix


def conv2d(storage, rng, n_out=3, n_in=2, kernel=(3, 3), stride=1, padding=0, dtype=np.float64, **options):
    """A convolution with a random bias, or none with bias=False."""
    height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    matrix = stored(storage, (n_out, n_in * height * width), rng, dtype)
    return with_random_bias(Conv2d(matrix, n_in, kernel, stride, padding, **options), rng)


def linear(storage, rng, n_out=4, n_in=6, dtype=np.float64, **options):
    return with_random_bias(Linear(stored(storage, (n_out, n_in), rng, dtype), **options), rng)


def with_random_bias(layer, rng):
    if layer.bias is not None:
        layer.bias.values[...] = rng.standard_normal(layer.bias.values.shape)
    return layer


def normalization(kind, n_features, rng, dtype=np.float64):
    """Batch normalisation in mid-training: nothing is one or zero any more."""
    layer = kind(n_features, dtype)
    assert isinstance(layer, BatchNorm)
    layer.weight.values[...] = rng.uniform(0.5, 1.5, (n_features, 1)) * rng.choice([-1, 1], (n_features, 1))
    layer.bias.values[...] = rng.standard_normal((n_features, 1))
    layer.running_mean[...] = rng.standard_normal((n_features, 1))
    layer.running_var[...] = rng.uniform(0.5, 2, (n_features, 1))
    return layer


def results(module, x, g, training=True):
    """Everything that a pass forth and back leaves, by name; backward only in training."""
    found = {"output": module.forward(x, training)}
    if training:
        grad = module.backward(g)
        if grad is not None:
            found["gradient of the input"] = grad
        found |= {f"gradient of {name}": p.grad for name, p in module.named_parameters().items()}
    return found | {name: buffer.copy() for name, buffer in module.named_buffers().items()}


def assert_close(got, expected, tolerance=1e-11, what=""):
    """Within `tolerance` of the largest value: rounding in another order, NaN and infinity alike."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, what
    finite = np.abs(expected[np.isfinite(expected)])
    np.testing.assert_allclose(
        got, expected, rtol=tolerance, atol=tolerance * finite.max(initial=1e-300), err_msg=what
    )


def assert_same_results(got, expected, tolerance=1e-11):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert_close(got[name], array, tolerance, name)


def spoil_free_memory():
    """The next large arrays lie in memory full of NaN: who reads before it writes is seen."""
    aligned_empty((96 << 20,), np.uint8)[...] = 255
