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
