"""A linear layer in inference, Y = W X: the same weights again and again (hot), or many layers in turn (cold)."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.sparse import csr_matrix

from sparsekit.bench import torch_competitors
from sparsekit.bench.arrays import aligned, normal, output, random_condensed
from sparsekit.bench.measure import Case, Implementation, Problem, columns, in_turn, transposes
from sparsekit.condensed import CondensedMatrix
from sparsekit.csr import CSRMatrix
from sparsekit.kernels.memory import transposed
from sparsekit.masks import random_per_layer


@dataclass(frozen=True)
class Sizes:
    """What to measure."""

    n_in: int = 3072
    n_out: int = 768
    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95, 0.99)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
    cold_batches: tuple[int, ...] = (1, 8)
    cold_layers: int = 16


FULL = Sizes()
QUICK = Sizes(sparsities=(0.9,), batches=(1, 8, 64, 256), cold_batches=(1,))


def cases(*, quick: bool) -> Iterator[Case]:
    """The layer of the paper's timing figure: every sparsity with every batch, and some with cold weights."""
    sizes = QUICK if quick else FULL
    work = f"{sizes.n_in} -> {sizes.n_out}"
    for sparsity in sizes.sparsities:
        for weights, batches, layers in (
            ("hot", sizes.batches, 1),
            ("cold", sizes.cold_batches, sizes.cold_layers),
        ):
            for batch in batches:
                build = partial(_problem, (sizes.n_out, sizes.n_in), sparsity, batch, layers)
                yield Case("linear", work, sparsity, batch, build, weights)


def _problem(
    shape: tuple[int, int], sparsity: float, batch: int, layers: int, rng: np.random.Generator
) -> Problem:
    matrices = [random_condensed(shape, sparsity, rng) for _ in range(layers)]
    dense = [aligned(matrix.to_dense()) for matrix in matrices]
    x = normal((shape[1], batch), rng)
    ours = [
        *_condensed([matrix.frozen() for matrix in matrices], x),
        _csr([_unstructured(matrix, rng).frozen() for matrix in matrices], x),
    ]
    theirs = [
        *_numpy(dense, x),
        _scipy(matrices, x),
        *torch_competitors.linear(dense, x, aligned(x.T)),
        *torch_competitors.linear_csr(dense, [matrix.to_csr() for matrix in matrices], x),
    ]
    return Problem(
        [*ours, *theirs],
        [weight.astype(np.float64) @ x.astype(np.float64) for weight in dense],
        stored_macs=matrices[0].nnz * batch,
        dense_macs=shape[0] * shape[1] * batch,
        layers=layers,
    )


def _condensed(matrices: list[CondensedMatrix], x: np.ndarray) -> Iterator[Implementation]:
    n_out, batch = matrices[0].shape[0], x.shape[1]
    calls = [partial(matrix.matmul, x, out=output(n_out, batch)) for matrix in matrices]
    yield Implementation("condensed", "ours", in_turn(calls))
    x_rows = aligned(x.T)

    def samples_first(matrix: CondensedMatrix, out: np.ndarray) -> np.ndarray:
        return transposed(matrix.matmul(transposed(x_rows), out=out))

    calls = [partial(samples_first, matrix, output(n_out, batch)) for matrix in matrices]
    yield Implementation("condensed, samples first", "ours", in_turn(calls), convert=transposes)


def _csr(matrices: list[CSRMatrix], x: np.ndarray) -> Implementation:
    """Ours on weights that lie anywhere: as many as in the condensed matrix."""
    calls = [partial(matrix.matmul, x, out=output(matrix.shape[0], x.shape[1])) for matrix in matrices]
    expected = [matrix.to_dense().astype(np.float64) @ x.astype(np.float64) for matrix in matrices]
    return Implementation("CSR, unstructured", "ours", in_turn(calls), expected=expected)


def _unstructured(matrix: CondensedMatrix, rng: np.random.Generator) -> CSRMatrix:
    mask = random_per_layer(matrix.shape, matrix.nnz, rng)
    return CSRMatrix.from_dense(rng.standard_normal(matrix.shape, dtype=np.float32), mask)


def _numpy(weights: list[np.ndarray], x: np.ndarray) -> Iterator[Implementation]:
    n_out, batch = len(weights[0]), x.shape[1]
    calls = [partial(np.matmul, weight, x, out=output(n_out, batch)) for weight in weights]
    yield Implementation("NumPy dense", "dense", in_turn(calls))
    x_rows = aligned(x.T)
    calls = [partial(np.matmul, x_rows, weight.T, out=output(batch, n_out)) for weight in weights]
    yield Implementation("NumPy dense, samples first", "dense", in_turn(calls), convert=transposes)


def _scipy(matrices: list[CondensedMatrix], x: np.ndarray) -> Implementation:
    theirs = [csr_matrix(_csr_parts(matrix.to_csr()), shape=matrix.shape) for matrix in matrices]
    operand = x[:, 0] if x.shape[1] == 1 else x  # its product with a vector is the faster one
    calls = [partial(operator.matmul, matrix, operand) for matrix in theirs]
    return Implementation("SciPy CSR (1 thread)", "csr", in_turn(calls), convert=columns)


def _csr_parts(matrix: CSRMatrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return aligned(matrix.values), matrix.indices.astype(np.int32), matrix.indptr.astype(np.int32)
