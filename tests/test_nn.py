"""Layers: forward against formulas, backward against central differences, and rewiring."""

import math

import numpy as np
import pytest
from gradients import check_module, numerical_gradient
from hypothesis import given
from hypothesis import strategies as st

from sparsekit import CondensedMatrix, CSRMatrix, DenseMatrix, InputError, models, nn
from sparsekit.masks import random_bernoulli, random_constant_fan_in
from sparsekit.nn import (
    BatchNorm,
    Dropout,
    Flatten,
    Linear,
    ReLU,
    Sequential,
    softmax_cross_entropy,
)


def linear(storage, rng, shape=(5, 7), **options):
    mask = {
        DenseMatrix: lambda: np.ones(shape, dtype=bool),
        CSRMatrix: lambda: random_bernoulli(shape, 0.4, rng),
        CondensedMatrix: lambda: random_constant_fan_in(shape, 3, rng) & (np.arange(shape[0]) != 1)[:, None],
    }[storage]()
    matrix = storage.from_mask(mask, np.float64)
    matrix.values[...] = rng.standard_normal(matrix.values.shape)
    return Linear(matrix, **options)


@pytest.mark.parametrize("storage", [DenseMatrix, CSRMatrix, CondensedMatrix])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_backward(storage, bias, rng):
    layer = linear(storage, rng, bias=bias)
    check_module(layer, rng.standard_normal((7, 4)), rng)


@pytest.mark.parametrize("storage", [CSRMatrix, CondensedMatrix])
def test_sparse_linear_equals_masked_dense(storage, rng):
    layer = linear(storage, rng, backend="vectorized")
    weight, mask = layer.matrix.to_dense(), layer.matrix.mask()
    x, g = rng.standard_normal((7, 6)), rng.standard_normal((5, 6))
    layer.keep_dense_gradient = True
    np.testing.assert_allclose(layer.forward(x, training=True), weight @ x + layer.bias.values)
    np.testing.assert_allclose(layer.backward(g), weight.T @ g)
    np.testing.assert_allclose(layer.weight.grad.ravel(), (g @ x.T)[mask])
    np.testing.assert_allclose(layer.dense_gradient(), g @ x.T)
    with pytest.raises(InputError, match="dense_gradient needs a backward pass with keep_dense_gradient=True"):
        layer.dense_gradient()


def test_the_first_layer_needs_no_input_gradient(rng):
    layer = linear(DenseMatrix, rng)
    layer.needs_grad_input = False
    network = Sequential({"flatten": Flatten(), "fc1": layer})
    network.forward(rng.standard_normal((1, 7, 1, 3)), training=True)
    assert network.backward(rng.standard_normal((5, 3))) is None
    assert layer.weight.grad.shape == (5, 7)


def test_backward_without_forward_is_refused(rng):
    layer = linear(DenseMatrix, rng)
    layer.forward(rng.standard_normal((7, 2)))
    with pytest.raises(InputError, match="backward needs a forward pass with training=True"):
        layer.backward(rng.standard_normal((5, 2)))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
def test_activation_backward(activation, rng):
    x = rng.standard_normal((6, 5))
    x[np.abs(x) < 1e-3] = 0.5  # away from the kink of ReLU, where there is no derivative
    check_module(activation(), x, rng)


@pytest.mark.parametrize("storage", [DenseMatrix, CSRMatrix, CondensedMatrix])
@pytest.mark.parametrize("backend", ["vectorized", "cpu"])
def test_a_linear_layer_applies_the_relu_that_follows(storage, backend, rng, monkeypatch):
    layer = linear(storage, rng, backend=backend)
    layer.bias.values[...] = rng.standard_normal((5, 1))
    network = Sequential({"fc1": layer, "relu": ReLU()})
    x, g = rng.standard_normal((7, 6)), rng.standard_normal((5, 6))
    y = layer.matrix.to_dense() @ x + layer.bias.values
    with monkeypatch.context() as patch:
        patch.setattr(ReLU, "forward", None)  # not called
        np.testing.assert_allclose(network.forward(x, training=True), np.maximum(y, 0))
    np.testing.assert_allclose(network.backward(g), layer.matrix.to_dense().T @ (g * (y > 0)))
    alone = Sequential({"relu1": ReLU(), "fc1": layer, "dropout": Dropout(0.5, rng), "relu2": ReLU()})
    expected = np.maximum(layer.matrix.to_dense() @ np.maximum(x, 0) + layer.bias.values, 0)
    np.testing.assert_allclose(alone.forward(x), expected)


def test_what_is_derived_from_relu_computes_itself(rng):
    class Doubled(ReLU):
        def forward(self, x, training=False):
            return 2 * super().forward(x, training)

    layer = linear(CondensedMatrix, rng)
    x = rng.standard_normal((7, 6))
    expected = 2 * np.maximum(layer.forward(x), 0)
    np.testing.assert_allclose(Sequential({"fc1": layer, "double": Doubled()}).forward(x), expected)


@pytest.mark.parametrize("storage", [CSRMatrix, CondensedMatrix])
def test_a_frozen_layer_predicts_and_cannot_be_trained(storage, rng):
    layer = linear(storage, rng)
    x = rng.standard_normal((7, 6))
    expected = layer.forward(x)
    layer.freeze()
    np.testing.assert_allclose(layer.forward(x), expected)
    with pytest.raises(ValueError, match="read-only"):
        layer.weight.values[...] = 0


def test_activation_values():
    x = np.array([[-2.0, 0.0, 3.0]])
    np.testing.assert_array_equal(nn.ReLU().forward(x), [[0, 0, 3]])
    expected = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x[0]]
    np.testing.assert_allclose(nn.GELU().forward(x)[0], expected, rtol=1e-15)
    assert nn.GELU().forward(x.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_forward(training, rng):
    layer = BatchNorm(3, np.float64)
    layer.weight.values[...], layer.bias.values[...] = rng.standard_normal((2, 3, 1))
    x = rng.standard_normal((3, 8)) * 4 + 2
    layer.running_mean[...], layer.running_var[...] = 0.5, 2.0
    mean, var = (x.mean(1, keepdims=True), x.var(1, keepdims=True)) if training else (0.5, 2.0)
    expected = layer.weight.values * (x - mean) / np.sqrt(var + 1e-5) + layer.bias.values
    np.testing.assert_allclose(layer.forward(x, training), expected)
    if training:
        np.testing.assert_allclose(layer.running_mean, 0.9 * 0.5 + 0.1 * x.mean(1, keepdims=True))
        np.testing.assert_allclose(layer.running_var, 0.9 * 2.0 + 0.1 * x.var(1, ddof=1, keepdims=True))


def test_batch_norm_backward(rng):
    layer = BatchNorm(4, np.float64)
    layer.weight.values[...] = rng.standard_normal((4, 1))
    check_module(layer, rng.standard_normal((4, 6)), rng, tolerance=1e-6)
    with pytest.raises(InputError, match="at least 2 values a feature for BatchNorm in training, not 1"):
        layer.forward(np.ones((4, 1)), training=True)


def test_dropout(rng):
    layer = Dropout(0.25, np.random.default_rng(0))
    x = np.ones((100, 100))
    y = layer.forward(x, training=True)
    assert set(np.unique(y)) == {0, 1 / 0.75}
    assert abs((y == 0).mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 10_000)
    np.testing.assert_array_equal(layer.backward(x), y)
    np.testing.assert_array_equal(layer.forward(x), x)
    np.testing.assert_array_equal(layer.backward(x), x)
    with pytest.raises(InputError, match=r"p must lie in \[0, 1\), not 1"):
        Dropout(1, rng)


def test_flatten_round_trip(rng):
    layer = Flatten()
    x = rng.standard_normal((2, 3, 4, 5))
    y = layer.forward(x, training=True)
    assert y.shape == (24, 5)
    np.testing.assert_array_equal(y[:, 1], x[..., 1].ravel())
    np.testing.assert_array_equal(layer.backward(y), x)


@pytest.mark.parametrize("storage", ["dense", "csr", "condensed"])
def test_a_whole_network_backward(storage, rng):
    network = models.mlp(
        (6, 8, 5, 3),
        storage=storage,
        sparsity=0.5,
        activation="gelu",
        batch_norm=True,
        dtype=np.float64,
        rng=rng,
    )
    check_module(network, rng.standard_normal((6, 7)), rng, tolerance=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy(smoothing, rng):
    logits, labels = rng.standard_normal((4, 6)) * 3, rng.integers(0, 4, 6)
    loss, grad = softmax_cross_entropy(logits, labels, smoothing)
    targets = (1 - smoothing) * np.eye(4)[:, labels] + smoothing / 4
    log_softmax = logits - np.log(np.exp(logits).sum(axis=0))
    assert loss == pytest.approx(-(targets * log_softmax).sum(axis=0).mean())
    numerical = numerical_gradient(lambda: softmax_cross_entropy(logits, labels, smoothing)[0], logits)
    np.testing.assert_allclose(grad, numerical, atol=1e-9)


def test_cross_entropy_of_huge_logits_is_finite():
    loss, grad = softmax_cross_entropy(np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32), np.array([0, 0]))
    assert loss == pytest.approx(1e4)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 4]), r"labels must lie in \[0, 4\), not between 0 and 4"),
        (np.array([-1, 0]), r"labels must lie in \[0, 4\), not between -1 and 0"),
        (np.array([0]), r"labels must be integers of shape \(2,\), not int64 \(1,\)"),
        (np.array([0.0, 1.0]), "labels must be integers"),
    ],
)
def test_cross_entropy_refuses_labels(labels, message):
    with pytest.raises(InputError, match=message):
        softmax_cross_entropy(np.zeros((4, 2)), labels)


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_rewiring_carries_values_and_optimizer_state(seed, constant):
    """Kept positions keep value and state, new ones are zero, gone ones are gone: against dense copies."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 6)), int(rng.integers(1, 8)))

    def draw():
        if not constant:
            return random_bernoulli(shape, rng.random(), rng)
        mask = random_constant_fan_in(shape, int(rng.integers(1, shape[1] + 1)), rng)
        return mask & (rng.random(shape[0]) < 0.8)[:, None]

    storage = CondensedMatrix if constant else CSRMatrix
    layer = Linear(storage.from_mask(draw(), np.float64))
    layer.weight.values[...] = rng.standard_normal(layer.weight.values.shape)
    layer.weight.state["velocity"] = rng.standard_normal(layer.weight.values.shape)
    old_mask, new_mask = layer.matrix.mask(), draw()
    old_weight = layer.matrix.to_dense()
    old_velocity = np.zeros(shape)
    old_velocity[old_mask] = layer.weight.state["velocity"].ravel()

    layer.rewire(new_mask)

    np.testing.assert_array_equal(layer.matrix.mask(), new_mask)
    np.testing.assert_array_equal(layer.matrix.to_dense(), old_weight * new_mask)
    np.testing.assert_array_equal(layer.weight.state["velocity"].ravel(), (old_velocity * old_mask)[new_mask])
    assert layer.weight.values is layer.matrix.values
    assert layer.weight.state["velocity"].shape == layer.weight.values.shape
    assert layer.weight.grad is None


def test_named_parameters_are_dotted():
    network = Sequential({"a": Sequential({"bn": BatchNorm(2)}), "act": ReLU()})
    assert list(network.named_parameters()) == ["a.bn.weight", "a.bn.bias"]
    assert list(network.named_buffers()) == ["a.bn.running_mean", "a.bn.running_var"]
    assert [name for name, _ in network.named_modules()] == ["", "a", "a.bn", "act"]


@pytest.mark.parametrize("storage", ["dense", "csr", "condensed"])
def test_initial_weights_have_variance_two_over_fan_in(storage):
    network = models.mlp((400, 300, 10), storage=storage, sparsity=0.8, rng=0)
    matrix = models.weight_layers(network)["fc1"].matrix
    weight = matrix.to_dense()
    scaled = weight[matrix.mask()] * np.repeat(np.sqrt(matrix.fan_ins() / 2), matrix.fan_ins())
    n = scaled.size
    assert abs(scaled.mean()) < 5 / math.sqrt(n)
    assert abs(scaled.var() - 1) < 5 * math.sqrt(2 / n)


@pytest.mark.parametrize("storage", ["dense", "csr", "condensed"])
def test_uniform_weights_are_bounded_by_the_fan_in(storage):
    network = models.mlp((400, 300, 10), storage=storage, sparsity=0.8, initializer="fan_in_uniform", rng=0)
    matrix = models.weight_layers(network)["fc1"].matrix
    scaled = matrix.to_dense()[matrix.mask()] * np.repeat(np.sqrt(matrix.fan_ins()), matrix.fan_ins())
    assert np.abs(scaled).max() <= 1 + 1e-6
    assert abs(scaled.mean()) < 5 / math.sqrt(3 * scaled.size)
    assert abs(scaled.var() - 1 / 3) < 5 * math.sqrt(4 / 45 / scaled.size)


def test_mlp_stores_what_the_distribution_says():
    network = models.mlp((784, 512, 512, 10), sparsity=0.9, rng=0)
    layers = models.weight_layers(network)
    assert list(layers) == ["fc1", "fc2", "fc3"]
    assert [layer.matrix.fan_ins().max() for layer in layers.values()] == [67, 53, 512]
    # by hand: (40141 + 26215 - 4608) weights to share over 1296 + 1024, fc3 dense
    assert [layer.budget for layer in layers.values()] == [34494, 27254, None]
    assert [layer.ablate for layer in layers.values()] == [True, True, False]
    assert list(models.sparse_layers(network)) == ["fc1", "fc2"]
    unstructured = models.mlp((784, 512, 512, 10), storage="csr", sparsity=0.9, rng=0)
    assert [layer.matrix.nnz for layer in models.sparse_layers(unstructured).values()] == [34494, 27254]


def test_mlp_options():
    network = models.mlp((9, 8, 7, 3), sparsity=0.5, dense_layers=["fc2"], no_ablation_layers=["fc1"], dropout=0.1)
    layers = models.weight_layers(network)
    assert [layer.is_sparse for layer in layers.values()] == [True, False, True]
    assert [layer.ablate for layer in layers.values()] == [False, True, True]
    assert list(network.children()) == [
        "flatten",
        "fc1",
        "relu1",
        "dropout1",
        "fc2",
        "relu2",
        "dropout2",
        "fc3",
    ]
    assert not models.sparse_layers(models.mlp((9, 3), sparsity=0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (4,)}, r"sizes must be \(n_features, hidden..., n_classes\), not \(4,\)"),
        ({"sizes": (4, 0, 2)}, r"sizes\[1\] must be an integer of at least 1, not 0"),
        ({"sparsity": 1.0}, r"sparsity must lie in \[0, 1\), not 1.0"),
        ({"sparsity": -0.1}, r"sparsity must lie in \[0, 1\), not -0.1"),
        ({"storage": "coo"}, "storage must be one of dense, csr, condensed, not 'coo'"),
        (
            {"distribution": "erkk"},
            r"distribution must be one of erk, er, uniform, not 'erkk' \(did you mean 'erk'",
        ),
        ({"initializer": "zeros"}, "initializer must be one of he_normal, fan_in_uniform, not 'zeros'"),
        ({"activation": "tanh"}, "activation must be one of relu, gelu, not 'tanh'"),
        ({"dense_layers": ["fc7"]}, "dense_layers must be one of fc1, fc2, not 'fc7'"),
        ({"no_ablation_layers": ["out"]}, "no_ablation_layers must be one of fc1, fc2, not 'out'"),
    ],
)
def test_mlp_refuses(options, message):
    with pytest.raises(InputError, match=message):
        models.mlp(**({"sizes": (4, 5, 2)} | options))
