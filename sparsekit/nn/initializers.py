"""Initial weights that take the sparsity into account."""

import numpy as np

from sparsekit.stored import StoredMatrix


def he_normal(matrix: StoredMatrix, rng: np.random.Generator) -> None:
    """Draw the stored weights of neuron i from N(0, 2 / fan_in_i), in place.

    2 / fan_in_i is the variance and fan_in_i the neuron's stored inputs, so that a sparse neuron's output varies
    as much as a dense one's. Source: Evci et al., "Gradient Flow in Sparse Neural Networks", arXiv 2010.03533.
    Deviation from the SRigL authors' code, which takes 2 / fan_in_i as the standard deviation.
    """
    fan_ins = matrix.fan_ins()
    std = np.sqrt(2 / np.repeat(fan_ins, fan_ins)).reshape(matrix.values.shape)
    matrix.values[...] = rng.standard_normal(matrix.values.shape) * std


def fan_in_uniform(matrix: StoredMatrix, rng: np.random.Generator) -> None:
    """Draw the stored weights of neuron i from U(-1 / sqrt(fan_in_i), 1 / sqrt(fan_in_i)), in place.

    For dense layers this is PyTorch's default, with which the dense networks of the SRigL experiments begin. Its
    variance is a sixth of that of :func:`he_normal`: steadier at large learning rates without batch
    normalisation.
    """
    fan_ins = matrix.fan_ins()
    bound = 1 / np.sqrt(np.repeat(fan_ins, fan_ins)).reshape(matrix.values.shape)
    matrix.values[...] = rng.uniform(-1, 1, matrix.values.shape) * bound
