"""Changes of the question of which the answer's change is known: no oracle is needed.

Single updates first, then products, then whole trainings. `check_topology_method` asks for the order of neurons
and inputs and the scale of scores as well, of every method.
"""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Layer, drop_fractions, examples, gammas, layers, masks, shapes

from sparsekit import CondensedMatrix, CSRMatrix, DenseMatrix, Trainer, models
from sparsekit.data import Dataset
from sparsekit.kernels import BACKENDS
from sparsekit.masks import has_constant_fan_in
from sparsekit.nn import ReLU
from sparsekit.optim import SGD, AdamW, LearningRate
from sparsekit.topology import SET, RigL, SRigL, Static

SEEDS = st.integers(0, 2**32 - 1)
MANY = settings(max_examples=examples(100))
SOME = settings(max_examples=examples(25))


def distinct(shape, rng):
    """Whole numbers of either sign that all differ in magnitude."""
    size = math.prod(shape)
    return (rng.permutation(size) + 1.0).reshape(shape) * rng.choice([-1.0, 1.0], shape)


@st.composite
def layers_without_ties(draw):
    """A layer in which no two scores tie, and a generator for more."""
    layer, rng = draw(layers()), np.random.default_rng(draw(SEEDS))
    weight = np.where(layer.mask, distinct(layer.mask.shape, rng), 0.0)
    return replace(layer, weight=weight, grad=distinct(layer.mask.shape, rng)), rng


def updated(method, layer: Layer, **options):
    rng = np.random.default_rng(3)
    return method.update(*layer.arguments, **{"budget": layer.budget, "rng": rng} | options)


# --- One update -------------------------------------------------------------------------------------------------


@MANY
@given(layers_without_ties())
def test_permuted_neurons_and_inputs_permute_the_update(drawn):
    """With gamma_sal = 0, because equally salient neurons are a tie of another kind."""
    layer, rng = drawn
    rows, columns = (rng.permutation(size) for size in layer.mask.shape)
    arrays = (array[rows][:, columns] for array in layer.arguments[:3])
    other = Layer(*arrays, layer.drop_fraction, layer.budget)
    for method in (RigL(), SRigL(gamma_sal=0.0), Static()):
        before, after = updated(method, layer), updated(method, other)
        for name in ("mask", "kept", "grown", "dropped", "regrown"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name)[rows][:, columns])


@MANY
@given(layers_without_ties(), gammas())
def test_permuted_inputs_never_matter(drawn, gamma_sal):
    """Ties between neurons go by the neuron, so the inputs may be permuted with any ablation."""
    layer, rng = drawn
    columns = rng.permutation(layer.mask.shape[1])
    other = Layer(*(array[:, columns] for array in layer.arguments[:3]), layer.drop_fraction, layer.budget)
    before, after = (updated(SRigL(gamma_sal=gamma_sal), one) for one in (layer, other))
    np.testing.assert_array_equal(after.mask, before.mask[:, columns])
    np.testing.assert_array_equal(after.ablated, before.ablated)


@MANY
@given(layers(), gammas(), st.integers(-20, 20))
def test_gradients_times_a_power_of_two_change_nothing(layer, gamma_sal, power):
    grad = np.clip(layer.grad.astype(np.float64), -1e30, 1e30)  # with room for the factor
    layer = replace(layer, grad=grad)
    other = replace(layer, grad=np.ldexp(grad, power))
    for method in (RigL(), SRigL(gamma_sal=gamma_sal), SRigL(gamma_sal=gamma_sal, compat="official")):
        np.testing.assert_array_equal(updated(method, other).mask, updated(method, layer).mask)


@MANY
@given(layers(), gammas())
def test_gamma_sal_zero_is_no_ablation(layer, gamma_sal):
    without = updated(SRigL(gamma_sal=0.0), layer)
    np.testing.assert_array_equal(without.mask, updated(SRigL(gamma_sal=gamma_sal), layer, ablate=False).mask)
    assert without.fan_in == layer.budget // layer.mask.shape[0]
    assert not without.ablated.any()


@MANY
@given(layers(), gammas(), st.sampled_from(["inactive", "all"]))
def test_with_the_budget_of_the_whole_layer_srigl_is_dense(layer, gamma_sal, saliency_gradient):
    update = updated(SRigL(gamma_sal, saliency_gradient), layer, budget=layer.mask.size)
    assert update.mask.all()
    assert update.fan_in == layer.mask.shape[1]


@MANY
@given(layers(), st.lists(drop_fractions(), max_size=5), SEEDS)
def test_rigl_and_set_keep_the_number_of_weights(layer, fractions, seed):
    """Through any number of updates."""
    rng = np.random.default_rng(seed)
    for method in (RigL(), SET()):
        mask = layer.mask
        for fraction in fractions:
            weight = np.where(mask, rng.standard_normal(mask.shape), 0.0)
            mask = method.update(weight, mask, rng.standard_normal(mask.shape), fraction, rng=rng).mask
            assert mask.sum() == layer.mask.sum()


@MANY
@given(layers(), gammas())
def test_a_larger_budget_never_gives_fewer_weights_to_a_neuron(layer, gamma_sal):
    """Without ablation; with it neurons may go, and what they had goes to the others."""
    smaller = updated(SRigL(gamma_sal), layer, ablate=False)
    larger = updated(SRigL(gamma_sal), layer, ablate=False, budget=min(layer.mask.size, layer.budget + 5))
    assert (larger.mask.sum(axis=1) >= smaller.mask.sum(axis=1)).all()
    n_out, n_in = layer.mask.shape
    assert smaller.mask.sum() > min(layer.budget, n_out * n_in) - n_out


@MANY
@given(layers())
def test_more_ablation_for_a_larger_gamma(layer):
    """A neuron that a small gamma_sal ablates, a larger one ablates too."""
    ablated = [updated(SRigL(gamma_sal), layer).ablated for gamma_sal in (0.0, 0.3, 0.6, 0.9, 0.99)]
    for smaller, larger in itertools.pairwise(ablated):
        assert not (smaller & ~larger).any()


# --- Products ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("storage", [CondensedMatrix, CSRMatrix, DenseMatrix])
@SOME
@given(data=st.data())
def test_adjoint_identity(storage, backend, data):
    """<y, W x> = <W^T y, x> = <y x^T, W>; whole numbers, so exactly."""
    shape = data.draw(shapes())
    mask = data.draw(masks(shape, constant_fan_in=storage is CondensedMatrix))
    rng = np.random.default_rng(data.draw(SEEDS))
    matrix = storage.from_mask(np.ones_like(mask) if storage is DenseMatrix else mask, np.float64)
    matrix.values[...] = rng.integers(-9, 10, matrix.values.shape)
    batch = data.draw(st.integers(1, 5))
    x, y = (rng.integers(-9, 10, (size, batch)).astype(np.float64) for size in shape[::-1])
    product = np.vdot(y, matrix.matmul(x, backend))
    assert np.vdot(matrix.rmatmul(y, backend), x) == product
    assert np.vdot(matrix.sampled_outer(y, x, backend), matrix.values) == product


@pytest.mark.parametrize("backend", BACKENDS)
@SOME
@given(data=st.data())
def test_products_are_linear_and_follow_permuted_neurons(backend, data):
    shape = data.draw(shapes())
    mask, rng = data.draw(masks(shape, constant_fan_in=True)), np.random.default_rng(data.draw(SEEDS))
    weight = np.where(mask, rng.integers(-9, 10, shape), 0).astype(np.float64)
    a, b = (rng.integers(-9, 10, (shape[1], 3)).astype(np.float64) for _ in range(2))
    rows = rng.permutation(shape[0])
    matrix, permuted = (CondensedMatrix.from_dense(weight[r], mask[r]) for r in (np.arange(shape[0]), rows))
    both = matrix.matmul(2 * a + b, backend)
    np.testing.assert_array_equal(both, 2 * matrix.matmul(a, backend) + matrix.matmul(b, backend))
    np.testing.assert_array_equal(permuted.matmul(a, backend), matrix.matmul(a, backend)[rows])


# --- Trainings --------------------------------------------------------------------------------------------------

SIZES = (9, 12, 4)
OPTIMIZERS = {"sgd": lambda: SGD(weight_decay=1e-3), "adamw": AdamW}


def dataset(columns=None):
    rng = np.random.default_rng(1)
    y = np.arange(80) % 4
    x = (rng.standard_normal((4, SIZES[0]))[y] + rng.standard_normal((80, SIZES[0]))).astype(np.float32)
    x = x if columns is None else x[:, columns]
    return Dataset("blobs", x, y, x, y, tuple("abcd"))


def network(storage="csr", **options):
    options = {"sparsity": 0.6, "distribution": "uniform", "first_layer_dense": False, "rng": 4} | options
    return models.mlp(SIZES, storage=storage, dtype=np.float64, **options)


def trained(model, topology, optimizer="sgd", data=None, **options):
    """Losses of the epochs, and the masks and dense weights of all layers at the end."""
    options = {"learning_rate": LearningRate(0.05), "epochs": 4, "batch_size": 8, "delta_t": 5} | options
    trainer = Trainer(model, topology=topology, optimizer=OPTIMIZERS[optimizer](), progress=False, **options)
    history = trainer.fit(dataset() if data is None else data)
    matrices = [layer.matrix for layer in models.weight_layers(model).values()]
    return history.column("train_loss"), [m.mask() for m in matrices], [m.to_dense() for m in matrices]


def assert_same_training(one, other):
    np.testing.assert_allclose(one[0], other[0], rtol=1e-9)
    for got, expected in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(got, expected)
    for got, expected in zip(one[2], other[2], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-10)


def moved_to(model, storage):
    """The network with each weight in another storage."""
    for layer in models.weight_layers(model).values():
        layer.use(storage.from_dense(layer.matrix.to_dense(), layer.matrix.mask()))
    return model


class InCSR(SRigL):
    """SRigL that lets itself be trained in CSR storage."""

    constant_fan_in = False


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("condensed", "csr"),
    [(Static(), Static(constant_fan_in=False)), (SRigL(gamma_sal=0.9), InCSR(gamma_sal=0.9))],
    ids=["static", "srigl"],
)
def test_condensed_and_csr_training_of_the_same_mask_agree(condensed, csr, optimizer):
    one = trained(network("condensed"), condensed, optimizer)
    other = trained(moved_to(network("condensed"), CSRMatrix), csr, optimizer)
    assert_same_training(one, other)
    assert all(has_constant_fan_in(mask) for mask in other[1])
    initial = [layer.matrix.mask() for layer in models.weight_layers(network("condensed")).values()]
    changed = any((before != after).any() for before, after in zip(initial, one[1], strict=True))
    assert changed == isinstance(condensed, SRigL)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_every_backend_trains_alike(backend):
    one = trained(network("condensed", backend="reference"), SRigL(gamma_sal=0.9))
    assert_same_training(trained(network("condensed", backend=backend), SRigL(gamma_sal=0.9)), one)


def test_with_the_whole_fan_in_srigl_trains_as_a_dense_network():
    """Full masks stored sparse, with a budget of every weight, against the same weights stored dense."""
    dense = network("dense")
    full = moved_to(network("dense"), CondensedMatrix)
    for layer in models.weight_layers(full).values():
        layer.budget = layer.matrix.nnz
    one, other = trained(full, SRigL(gamma_sal=0.9)), trained(dense, None)
    assert_same_training(one, other)
    assert all(mask.all() for mask in one[1])


@pytest.mark.parametrize("method", [RigL(), SRigL(gamma_sal=0.0)], ids=["rigl", "srigl"])
def test_permuted_features_train_the_permuted_network(method):
    """Both the columns of the data and those of the first layer: nothing else changes, at any update."""
    # Gradients of a neuron that is silent on a whole batch, or that no other reads, are zero and tie: no ReLU and
    # a dense second layer.
    storage = "condensed" if method.constant_fan_in else "csr"
    options = {"storage": storage, "activation": "gelu", "dense_layers": ("fc2",)}
    columns = np.random.default_rng(5).permutation(SIZES[0])
    plain, permuted = network(**options), network(**options)
    first = models.weight_layers(permuted)["fc1"]
    matrix = first.matrix
    first.use(type(matrix).from_dense(matrix.to_dense()[:, columns], matrix.mask()[:, columns]))
    one, other = trained(plain, method), trained(permuted, method, data=dataset(columns))
    np.testing.assert_allclose(other[0], one[0], rtol=1e-9)
    np.testing.assert_array_equal(other[1][0], one[1][0][:, columns])
    np.testing.assert_array_equal(other[1][1], one[1][1])
    np.testing.assert_allclose(other[2][0], one[2][0][:, columns], atol=1e-9)


def test_permuted_hidden_neurons_train_the_permuted_network():
    order = np.random.default_rng(6).permutation(SIZES[1])
    plain, permuted = network(activation="gelu"), network(activation="gelu")
    first, second = models.weight_layers(permuted).values()
    first.use(CSRMatrix.from_dense(first.matrix.to_dense()[order], first.matrix.mask()[order]))
    second.use(CSRMatrix.from_dense(second.matrix.to_dense()[:, order], second.matrix.mask()[:, order]))
    one, other = trained(plain, RigL()), trained(permuted, RigL())
    np.testing.assert_allclose(other[0], one[0], rtol=1e-9)
    np.testing.assert_array_equal(other[1][0], one[1][0][order])
    np.testing.assert_array_equal(other[1][1], one[1][1][:, order])


def test_an_ablated_neuron_without_a_bias_may_as_well_not_be_there():
    """ReLU(0 + bias): a neuron without weights gives a constant, zero where its bias is not positive."""
    model = network("condensed")
    first, second = models.weight_layers(model).values()
    mask = first.matrix.mask()
    mask[3] = False
    first.rewire(mask)
    first.bias.values[3] = -1.0
    x = np.random.default_rng(7).standard_normal((SIZES[0], 6))
    with_neuron = model.forward(x)
    hidden = np.delete(ReLU().forward(first.forward(x)), 3, axis=0)
    dense = np.delete(second.matrix.to_dense(), 3, axis=1)
    np.testing.assert_allclose(with_neuron, dense @ hidden + second.bias.values, atol=1e-12)
