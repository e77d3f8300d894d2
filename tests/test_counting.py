"""Counting: operations by hand and by formula, bytes against the classes that hold them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import masks, shapes

from sparsekit import CondensedMatrix, CSRMatrix, DenseMatrix, models
from sparsekit.counting import inference_flops, storage_bytes, training_flops


def dense_flops(model, sample_shape):
    return inference_flops(model, sample_shape, dense=True)


def test_flops_of_an_mlp_by_hand():
    model = models.mlp((12, 8, 5), sparsity=0.5, distribution="uniform", first_layer_dense=False)
    assert inference_flops(model, (12,)) == {"fc1": 2 * 8 * 6, "fc2": 2 * 5 * 4}
    assert dense_flops(model, (12,)) == {"fc1": 2 * 8 * 12, "fc2": 2 * 5 * 8}
    assert inference_flops(model, (3, 2, 2)) == inference_flops(model, (12,))  # images are flattened


def test_flops_of_mnist_cnn_by_hand():
    model = models.mnist_cnn(storage="dense")
    by_hand = {
        "conv1": 2 * 26 * 26 * 32 * 9,
        "conv2": 2 * 24 * 24 * 64 * 32 * 9,
        "fc1": 2 * 128 * 9216,
        "fc2": 2 * 10 * 128,
    }
    assert inference_flops(model, (1, 28, 28)) == dense_flops(model, (1, 28, 28)) == by_hand
    sparse = models.mnist_cnn(sparsity=0.9)
    nnz = {name: layer.matrix.nnz for name, layer in models.weight_layers(sparse).items()}
    uses = {"conv1": 26 * 26, "conv2": 24 * 24, "fc1": 1, "fc2": 1}
    assert inference_flops(sparse, (1, 28, 28)) == {name: 2 * uses[name] * nnz[name] for name in nnz}


def test_flops_of_resnet18():
    """555,422,720 multiply-adds are what other counters of ResNet-18 for CIFAR report."""
    flops = dense_flops(models.resnet18(sparsity=0.99), (3, 32, 32))
    assert sum(flops.values()) == 2 * 555_422_720
    assert len(flops) == 21
    assert flops["conv1"] == 2 * 32 * 32 * 64 * 3 * 9
    assert flops["stage2.block1.conv1"] == 2 * 16 * 16 * 128 * 64 * 9
    assert flops["stage2.block1.shortcut.conv"] == 2 * 16 * 16 * 128 * 64
    assert flops["fc"] == 2 * 10 * 512


def test_training_flops():
    assert training_flops(10, 10, None) == 30  # dense
    assert training_flops(2, 10, None) == 6  # static, SET
    # 100 steps of 3 * 2 and one that computes the dense gradient of the weights
    assert training_flops(2, 10, 100) == pytest.approx((100 * 6 + 2 * 2 + 10) / 101)
    assert training_flops(7, 7, 50) == pytest.approx(3 * 7)


@given(data=st.data(), dtype=st.sampled_from([np.float32, np.float64]))
def test_bytes_are_those_of_the_storages(data, dtype):
    mask = data.draw(shapes().flatmap(masks))
    found = storage_bytes(CSRMatrix.from_mask(mask, dtype))
    filled = CondensedMatrix.from_mask(filled_up(mask), dtype)
    assert found == {
        "dense": DenseMatrix(np.zeros(mask.shape, dtype)).nbytes,
        "csr": CSRMatrix.from_mask(mask, dtype).nbytes,
        "condensed": filled.nbytes,
    }
    assert storage_bytes(filled)["condensed"] == filled.nbytes


def filled_up(mask):
    """Every row that has weights gets as many as the fullest one."""
    most = mask.sum(axis=1).max()
    filled = mask.copy()
    for row in filled:
        while 0 < row.sum() < most:
            row[np.argmin(row)] = True
    return filled


@pytest.mark.parametrize(("n_in", "index"), [(65536, 2), (65537, 4)])
def test_indices_are_as_wide_as_they_must_be(n_in, index):
    mask = np.zeros((2, n_in), dtype=bool)
    mask[0, -1] = True
    matrix = CondensedMatrix.from_mask(mask)
    assert storage_bytes(matrix) == {"dense": 8 * n_in, "csr": 4 + index + 24, "condensed": 4 + index + 4}
    assert matrix.nbytes == 4 + index + 4
    assert CSRMatrix.from_mask(mask).nbytes == 4 + index + 24
