"""Times of predictions: what is compared is the same network in three storages, and it is compared fairly."""

import itertools

import numpy as np
import pytest
from scipy import sparse

from sparsekit import InputError, models, nn
from sparsekit.condensed import CondensedMatrix
from sparsekit.inference import FORMATS, inference_times
from sparsekit.models.building import conv_layer, linear_layer, sparsified

SIZES = (20, 24, 16, 5)
NETWORKS = {
    "condensed": {},
    "csr": {"storage": "csr"},
    "dense": {"storage": "dense"},
    "one dense layer": {"dense_layers": ["fc2"]},
    "batch norm and dropout": {"batch_norm": True, "dropout": 0.3, "activation": "gelu"},
    "float64": {"dtype": np.float64},
}


def network(**options):
    """An untrained network in which biases and running statistics are not their first values either."""
    model = models.mlp(SIZES, **{"sparsity": 0.7, "rng": 1} | options)
    rng = np.random.default_rng(2)
    for name, parameter in model.named_parameters().items():
        if name.endswith("bias"):
            parameter.values[...] = rng.standard_normal(parameter.values.shape)
    for buffer in model.named_buffers().values():
        buffer[...] = rng.uniform(0.5, 1.5, buffer.shape)
    return model


@pytest.fixture
def quick(monkeypatch):
    """A clock that moves on by 2**-10 seconds whenever it is read, and no pauses."""
    ticks = itertools.count()
    monkeypatch.setattr("sparsekit.inference.time.perf_counter", lambda: next(ticks) / 1024)
    monkeypatch.setattr("sparsekit.inference.time.sleep", lambda seconds: None)


@pytest.fixture
def baseline(monkeypatch):
    """The scipy.sparse matrices that are made on the way."""
    made = []

    def recorded(*arguments, **options):
        made.append(sparse.csr_matrix(*arguments, **options))
        return made[-1]

    monkeypatch.setattr("sparsekit.inference.csr_matrix", recorded)
    return made


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_every_storage_and_batch_has_a_time(options):
    times = inference_times(network(**options), SIZES[:1], batches=(1, 32), repeats=3)
    assert list(times) == [1, 32]
    for row in times.values():
        assert set(row) == set(FORMATS) == {"stored", "dense", "csr"}
        assert all(0 < time < 1e6 for time in row.values())  # microseconds: less than a second a sample


@pytest.mark.parametrize("storage", ["condensed", "csr", "dense"])
def test_convolutional_networks_have_times(storage, quick):
    """The three networks are compared before they are timed, so that each must compute the same."""
    images = (2, 8, 8)
    model = models.cnn(images, 3, channels=(4, 6), storage=storage, sparsity=0.6, rng=1)
    assert set(inference_times(model, images, batches=(2,), repeats=3)[2]) == set(FORMATS)
    block = nn.Residual({"conv": conv_layer(2, 2, 3, padding=1, dtype=np.float32)}, relu=True)
    layers = {"block": block, "pool": nn.GlobalAvgPool(), "fc": linear_layer(3, 2, np.float32)}
    model = sparsified(layers, 0, {"storage": storage, "sparsity": 0.5})
    assert set(inference_times(model, images, batches=(2,), repeats=3)[2]) == set(FORMATS)


def test_times_are_microseconds_a_sample(quick):
    times = inference_times(network(), SIZES[:1], batches=(1, 4), repeats=6)
    tick = 1e6 / 1024
    assert times == {1: dict.fromkeys(FORMATS, tick), 4: dict.fromkeys(FORMATS, tick / 4)}


@pytest.mark.parametrize("storage", ["condensed", "csr"])
def test_the_baseline_stores_what_the_network_stores(storage, quick, baseline):
    """Weights that are exactly zero too: the product takes as long for them."""
    model = network(storage=storage)
    layers = models.weight_layers(model)
    for layer in layers.values():
        layer.matrix.values.flat[::3] = 0
    inference_times(model, SIZES[:1], batches=(2,), repeats=3)
    assert [matrix.nnz for matrix in baseline] == [layer.matrix.nnz for layer in layers.values()]
    for matrix, layer in zip(baseline, layers.values(), strict=True):
        assert matrix.dtype == layer.matrix.dtype
        np.testing.assert_array_equal(matrix.toarray(), layer.matrix.to_dense())
        places = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)), matrix.indices
        assert layer.matrix.mask()[places].all()


def test_the_baseline_of_a_dense_layer_is_full(quick, baseline):
    inference_times(network(storage="dense"), SIZES[:1], batches=(2,), repeats=3)
    assert [matrix.nnz for matrix in baseline] == [20 * 24, 24 * 16, 16 * 5]


def test_timing_leaves_the_network_alone(quick):
    model = network(batch_norm=True, dropout=0.3)
    arrays = {name: parameter.values for name, parameter in model.named_parameters().items()}
    arrays |= model.named_buffers()
    before = {name: array.copy() for name, array in arrays.items()}
    inference_times(model, SIZES[:1], batches=(2,), repeats=3)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    assert all(layer.is_sparse for layer in models.weight_layers(model).values())


def test_a_wrong_dense_copy_is_noticed(quick, monkeypatch):
    to_dense = CondensedMatrix.to_dense
    monkeypatch.setattr(CondensedMatrix, "to_dense", lambda matrix: 1.01 * to_dense(matrix))
    check_that_it_is_noticed(network())


def test_a_wrong_csr_copy_is_noticed(quick, monkeypatch):
    def wrong(*arguments, **options):
        matrix = sparse.csr_matrix(*arguments, **options)
        matrix.data[np.abs(matrix.data).argmax()] *= -1
        return matrix

    monkeypatch.setattr("sparsekit.inference.csr_matrix", wrong)
    check_that_it_is_noticed(network())


def test_a_wrong_kernel_is_noticed(quick, monkeypatch):
    from sparsekit.kernels import vectorized

    right = vectorized.condensed_matmul

    def wrong(values, indices, rows, x, out, plan, bias, relu):
        right(values, indices, rows, x, out, plan, bias, relu)
        out[0] = 0
        return out

    monkeypatch.setattr(vectorized, "condensed_matmul", wrong)
    check_that_it_is_noticed(network(backend="vectorized"))


def check_that_it_is_noticed(model):
    with pytest.raises((AssertionError, InputError)):
        inference_times(model, SIZES[:1], batches=(4,), repeats=3)
