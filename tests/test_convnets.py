"""Convolutional networks: their architecture, what is sparse in them, their gradients, and that they train."""

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from gradients import check_module
from layer_helpers import assert_close
from numpy.lib.stride_tricks import sliding_window_view
from test_convolution import needs_speed

from sparsekit import CondensedMatrix, CSRMatrix, DenseMatrix, InputError, Trainer, counting, models
from sparsekit.data import Dataset
from sparsekit.kernels.threads import one_blas_thread
from sparsekit.masks import has_constant_fan_in
from sparsekit.nn import BatchNorm2d, Conv2d, Dropout, MaxPool2d, ReLU, Residual, WeightLayer
from sparsekit.topology import RigL, SRigL
from sparsekit.training import Callback

ERK = json.loads((Path(__file__).parent / "data" / "erk_test_vectors.json").read_text())
NETWORKS = {"mnist_cnn": models.mnist_cnn, "resnet18": models.resnet18, "wide_resnet22": models.wide_resnet22}
SAMPLES = {"mnist_cnn": (1, 28, 28), "resnet18": (3, 32, 32), "wide_resnet22": (3, 32, 32)}


def modules_of(network, kind):
    return {name: module for name, module in network.named_modules() if isinstance(module, kind)}


def multiply_adds(network, sample_shape):
    return sum(
        layer.matrix.nnz * layer.uses_per_sample(shape)
        for _, layer, shape in network.shapes(sample_shape)
        if isinstance(layer, WeightLayer)
    )


# Multiply-adds by hand: mnist_cnn 288 * 26^2 + 18,432 * 24^2 + 1,179,648 + 1,280.
@pytest.mark.parametrize(
    ("name", "n_weights", "n_parameters", "n_layers", "n_multiply_adds"),
    [
        ("mnist_cnn", 1_199_648, 1_199_882, 4, 11_992_448),
        ("resnet18", 11_164_352, 11_173_962, 21, 555_422_720),
        ("wide_resnet22", 1_076_912, 1_079_642, 23, 157_730_048),
    ],
)
def test_counts(name, n_weights, n_parameters, n_layers, n_multiply_adds):
    network = NETWORKS[name](storage="dense")
    layers = models.weight_layers(network)
    assert len(layers) == n_layers
    assert sum(math.prod(layer.weight_shape) for layer in layers.values()) == n_weights
    assert sum(layer.matrix.nnz for layer in layers.values()) == n_weights
    assert sum(parameter.values.size for parameter in network.named_parameters().values()) == n_parameters
    assert multiply_adds(network, SAMPLES[name]) == n_multiply_adds
    assert network.output_shape(SAMPLES[name]) == (10,)
    assert not models.sparse_layers(network)
    assert counting.sparsity(network) == 0


def test_the_layers_of_mnist_cnn():
    network = models.mnist_cnn()
    layers = models.weight_layers(network)
    assert {name: layer.weight_shape for name, layer in layers.items()} == {
        "conv1": (32, 1, 3, 3),
        "conv2": (64, 32, 3, 3),
        "fc1": (128, 9216),
        "fc2": (10, 128),
    }
    assert all(layer.bias is not None for layer in layers.values())
    assert [(conv.products.stride, conv.products.padding) for conv in modules_of(network, Conv2d).values()] == [
        ((1, 1), (0, 0))
    ] * 2
    kinds = [
        "Conv2d",
        "ReLU",
        "Conv2d",
        "ReLU",
        "MaxPool2d",
        "Dropout",
        "Flatten",
        "Linear",
        "ReLU",
        "Dropout",
        "Linear",
    ]
    assert [type(module).__name__ for module in network.children().values()] == kinds
    assert (
        modules_of(network, MaxPool2d)["pool"].kernel_size
        == modules_of(network, MaxPool2d)["pool"].stride
        == (2, 2)
    )
    assert [module.p for module in modules_of(network, Dropout).values()] == [0.25, 0.5]
    assert [shape for _, _, shape in network.shapes((1, 28, 28))][-5:] == [
        (64, 12, 12),
        (9216,),
        (128,),
        (128,),
        (128,),
    ]


def test_the_layers_of_resnet18():
    network = models.resnet18()
    expected = {"conv1": ((64, 3, 3, 3), 1, 1)}
    n_in = 64
    for stage, width, stride in ((1, 64, 1), (2, 128, 2), (3, 256, 2), (4, 512, 2)):
        expected[f"stage{stage}.block1.conv1"] = ((width, n_in, 3, 3), stride, 1)
        expected[f"stage{stage}.block1.conv2"] = ((width, width, 3, 3), 1, 1)
        if width != n_in:
            expected[f"stage{stage}.block1.shortcut.conv"] = ((width, n_in, 1, 1), stride, 0)
        expected[f"stage{stage}.block2.conv1"] = expected[f"stage{stage}.block2.conv2"] = (
            (width, width, 3, 3),
            1,
            1,
        )
        n_in = width
    assert_convolutions(network, expected)
    assert [list(shape) for shape, *_ in expected.values()] == ERK["resnet18_cifar"]["shapes"][:-1]
    assert [block.relu for block in modules_of(network, Residual).values()] == [True] * 8
    assert not modules_of(network, Dropout)
    assert {name: shape for name, _, shape in network.shapes((3, 32, 32))}["pool"] == (512, 4, 4)


def test_the_layers_of_wide_resnet22():
    network = models.wide_resnet22()
    expected = {"conv1": ((16, 3, 3, 3), 1, 1)}
    n_in = 16
    for stage, width, stride in ((1, 32, 1), (2, 64, 2), (3, 128, 2)):
        expected[f"stage{stage}.block1.conv1"] = ((width, n_in, 3, 3), stride, 1)
        expected[f"stage{stage}.block1.conv2"] = ((width, width, 3, 3), 1, 1)
        expected[f"stage{stage}.block1.shortcut.conv"] = ((width, n_in, 1, 1), stride, 0)
        for block, conv in ((2, 1), (2, 2), (3, 1), (3, 2)):
            expected[f"stage{stage}.block{block}.conv{conv}"] = ((width, width, 3, 3), 1, 1)
        n_in = width
    assert_convolutions(network, expected)
    assert [block.relu for block in modules_of(network, Residual).values()] == [False] * 9
    assert [module.p for module in modules_of(network, Dropout).values()] == [0.3] * 9
    streams = {module.rng.random() for module in modules_of(network, Dropout).values()}
    assert len(streams) == 9  # each drops others
    norms = [len(module.running_mean) for module in modules_of(network, BatchNorm2d).values()]
    assert norms == [16, 32, *[32] * 4, 32, 64, *[64] * 4, 64, 128, *[128] * 4, 128]
    assert {name: shape for name, _, shape in network.shapes((3, 32, 32))}["pool"] == (128, 8, 8)


def assert_convolutions(network, expected):
    """Names in forward order, shapes, strides, paddings; the last layer is linear and alone has a bias."""
    layers = models.weight_layers(network)
    fc = layers.pop("fc")
    assert list(layers) == list(expected)
    for name, layer in layers.items():
        shape, stride, padding = expected[name]
        assert layer.weight_shape == shape, name
        assert layer.products.stride == (stride, stride), name
        assert layer.products.padding == (padding, padding), name
        assert layer.bias is None, name
    assert fc.bias is not None
    assert fc.matrix.shape[0] == 10


@pytest.mark.parametrize(("name", "vectors"), [("mnist_cnn", ERK["mnist"]), ("resnet18", ERK["resnet18_cifar"])])
def test_erk_in_networks(name, vectors):
    """Which layers become dense, and the fan-in of each layer, see methods.md section 1.1."""
    for density, expected in vectors["erk"].items():
        network = NETWORKS[name](sparsity=1 - float(density))
        layers = list(models.weight_layers(network).values())
        assert [list(layer.weight_shape) for layer in layers] == vectors["shapes"]
        assert [k for k, layer in enumerate(layers) if not layer.is_sparse] == sorted(expected["dense_order"])
        assert [set(layer.matrix.fan_ins()) for layer in layers] == [{k0} for k0 in expected["k0"]]
        assert sum(layer.matrix.nnz for layer in layers) == expected["nnz_const_fan_in"]
        for layer in layers:
            assert isinstance(layer.matrix, CondensedMatrix if layer.is_sparse else DenseMatrix)
            if layer.is_sparse:
                assert 0 <= layer.budget - layer.matrix.nnz < layer.matrix.shape[0]


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99])
def test_wide_resnet22_keeps_its_budget(sparsity):
    """By weights stored; constant fan-in rounds down in each neuron."""
    unstructured = models.wide_resnet22(storage="csr", sparsity=sparsity)
    one_each = len(models.weight_layers(unstructured)) / 1_076_912  # numbers of weights are rounded
    assert counting.sparsity(unstructured) == pytest.approx(sparsity, abs=one_each)
    network = models.wide_resnet22(sparsity=sparsity)
    assert sparsity <= counting.sparsity(network) < sparsity + 0.005
    for name, layer in models.sparse_layers(network).items():
        assert layer.budget == models.weight_layers(unstructured)[name].matrix.nnz


@pytest.mark.parametrize("distribution", ["erk", "er", "uniform"])
@pytest.mark.parametrize("storage", ["csr", "condensed"])
def test_which_layers_stay_dense(distribution, storage):
    def small(**options):
        network = models.cnn(
            (3, 16, 16),
            10,
            channels=(8, 16, 16),
            storage=storage,
            distribution=distribution,
            sparsity=0.8,
            **options,
        )
        return network, {name: layer.is_sparse for name, layer in models.weight_layers(network).items()}

    sparse = dict.fromkeys(["conv1", "conv2", "conv3", "fc"], True)
    by_default = small()[1]
    assert by_default == sparse | {"conv1": distribution != "uniform"}
    assert small(first_layer_dense=False)[1] == sparse
    network, is_sparse = small(first_layer_dense=True)
    assert is_sparse == sparse | {"conv1": False}
    assert isinstance(models.weight_layers(network)["conv1"].matrix, DenseMatrix)
    network, is_sparse = small(first_layer_dense=True, dense_layers=["conv3"])
    assert is_sparse == sparse | {"conv1": False, "conv3": False}
    # What is left keeps the sparsity by itself.
    layers = models.sparse_layers(network)
    budgets = sum(layer.budget for layer in layers.values())
    assert budgets / sum(math.prod(layer.weight_shape) for layer in layers.values()) == pytest.approx(
        0.2, abs=1e-3
    )
    kind = CSRMatrix if storage == "csr" else CondensedMatrix
    assert all(isinstance(layer.matrix, kind) for layer in layers.values())
    assert small(dense_layers=["fc", "conv1", "conv2", "conv3"])[1] == dict.fromkeys(sparse, False)
    if distribution == "uniform":
        for layer in models.sparse_layers(small(first_layer_dense=False)[0]).values():
            assert layer.budget == math.floor(0.2 * math.prod(layer.weight_shape) + 0.5)


@pytest.mark.parametrize("name", NETWORKS)
def test_which_layers_may_be_ablated(name):
    """All but the output layer, or as asked for."""
    build, last = NETWORKS[name], "fc2" if name == "mnist_cnn" else "fc"
    layers = models.weight_layers(build(sparsity=0.99))
    assert [layer_name for layer_name, layer in layers.items() if not layer.ablate] == [last]
    layers = models.weight_layers(build(sparsity=0.99, no_ablation_layers=["conv1", last]))
    assert [layer_name for layer_name, layer in layers.items() if not layer.ablate] == ["conv1", last]
    assert [layer.needs_grad_input for layer in layers.values()] == [False] + [True] * (len(layers) - 1)
    assert all(layer.ablate for layer in models.weight_layers(build(no_ablation_layers=())).values())


def test_options_of_networks():
    network = models.cnn((2, 8, 9), 3, channels=[4, 5], sparsity=0.5, backend="vectorized", dtype=np.float64)
    assert [shape for _, _, shape in network.shapes((2, 8, 9))][-2:] == [(5, 2, 2), (20,)]
    assert list(network.children()) == [
        *("conv1", "bn1", "relu1", "pool1", "conv2", "bn2", "relu2", "pool2", "flatten", "fc")
    ]
    assert {layer.backend for layer in models.weight_layers(network).values()} == {"vectorized"}
    assert {parameter.values.dtype for parameter in network.named_parameters().values()} == {np.dtype(np.float64)}
    network = models.mnist_cnn((1, 12, 10), 7, dropout=(0.0, 0.75))
    assert network.output_shape((1, 12, 10)) == (7,)
    assert models.weight_layers(network)["fc1"].matrix.shape == (128, 64 * 4 * 3)
    assert [module.p for module in modules_of(network, Dropout).values()] == [0.0, 0.75]
    network = models.wide_resnet22((1, 8, 12), 4, dropout=0.1)
    assert {module.p for module in modules_of(network, Dropout).values()} == {0.1}
    assert network.output_shape((1, 8, 12)) == (4,)
    assert models.resnet18((2, 5, 7), 3).output_shape((2, 5, 7)) == (3,)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_seed_gives_the_same_network(name):
    networks = [NETWORKS[name](sparsity=0.99, rng=seed) for seed in (3, np.random.default_rng(3), 4)]
    bits = [
        b"".join(parameter.values.tobytes() for parameter in network.named_parameters().values())
        for network in networks
    ]
    assert bits[0] == bits[1] != bits[2]
    masks = [next(iter(models.sparse_layers(network).values())).matrix.mask() for network in networks]
    assert (masks[0] == masks[1]).all()
    assert (masks[0] != masks[2]).any()


class Written:
    """The residual networks once more, in evaluation, on plain arrays (channels, height, width, batch)."""

    def __init__(self, network):
        layers = models.weight_layers(network)
        self.weights = {
            name: layer.matrix.to_dense().reshape(layer.weight_shape) for name, layer in layers.items()
        }
        self.values = {name: parameter.values for name, parameter in network.named_parameters().items()}
        self.values |= network.named_buffers()

    def conv(self, name, x, stride=1):
        weight = self.weights[name]
        pad = weight.shape[2] // 2
        padded = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
        windows = sliding_window_view(padded, weight.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
        return np.tensordot(weight, windows, axes=([1, 2, 3], [0, 4, 5]))

    def norm(self, name, x):
        weight, bias, mean, var = (
            self.values[f"{name}.{part}"][:, :, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * weight + bias

    def head(self, x):
        return self.weights["fc"] @ x.mean(axis=(1, 2)) + self.values["fc.bias"]

    def resnet18(self, x):
        x = relu(self.norm("bn1", self.conv("conv1", x)))
        for stage in (1, 2, 3, 4):
            for block in (1, 2):
                stride = 2 if stage > 1 and block == 1 else 1
                at = f"stage{stage}.block{block}"
                y = relu(self.norm(f"{at}.bn1", self.conv(f"{at}.conv1", x, stride)))
                y = self.norm(f"{at}.bn2", self.conv(f"{at}.conv2", y))
                if stride == 2:
                    x = self.norm(f"{at}.shortcut.bn", self.conv(f"{at}.shortcut.conv", x, 2))
                x = relu(y + x)
        return self.head(x)

    def wide_resnet22(self, x):
        x = self.conv("conv1", x)
        for stage in (1, 2, 3):
            for block in (1, 2, 3):
                at, first = f"stage{stage}.block{block}", block == 1
                stride = 2 if stage > 1 and first else 1
                activated = relu(self.norm(f"stage{stage}.bn" if first else f"{at}.bn1", x))
                y = relu(self.norm(f"{at}.bn2", self.conv(f"{at}.conv1", activated, stride)))
                y = self.conv(f"{at}.conv2", y)
                x = y + (self.conv(f"{at}.shortcut.conv", activated, stride) if first else x)
        return self.head(relu(self.norm("bn", x)))


def relu(x):
    return np.maximum(x, 0)


def unsettle(network, rng):
    """Parameters and running statistics as in mid-training: nothing is one or zero any more."""
    for norm in modules_of(network, BatchNorm2d).values():
        norm.weight.values[...] = rng.uniform(0.5, 1.5, norm.weight.values.shape)
        norm.bias.values[...] = 0.3 * rng.standard_normal(norm.bias.values.shape)
        norm.running_mean[...] = 0.3 * rng.standard_normal(norm.running_mean.shape)
        norm.running_var[...] = rng.uniform(0.5, 2, norm.running_var.shape)
    for layer in models.weight_layers(network).values():
        if layer.bias is not None:
            layer.bias.values[...] = rng.standard_normal(layer.bias.values.shape)


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet22"])
def test_the_wiring_of_residual_networks(name, rng):
    network = NETWORKS[name]((3, 8, 6), sparsity=0.97, dtype=np.float64, rng=rng)
    unsettle(network, rng)
    x = rng.standard_normal((3, 8, 6, 2))
    with one_blas_thread():
        y = network.forward(x)
        expected = getattr(Written(network), name)(x)
    assert_close(y, expected, 1e-9)
    assert np.std(y) > 1e-3


@pytest.mark.parametrize("storage", ["dense", "csr", "condensed"])
def test_backward_of_a_small_network(storage, rng):
    network = models.cnn(
        (2, 7, 6),
        3,
        channels=(3, 4),
        storage=storage,
        sparsity=0.5,
        dtype=np.float64,
        rng=rng,
        first_layer_dense=True,
    )
    unsettle(network, rng)
    x = rng.standard_normal((2, 7, 6, 3))
    check_module(network, x, rng, tolerance=1e-6)
    models.weight_layers(network)["conv1"].needs_grad_input = True
    check_module(network, x, rng, tolerance=1e-6)


SMALL = {"mnist_cnn": (1, 12, 12), "wide_resnet22": (3, 6, 5), "resnet18": (3, 5, 6)}


@pytest.mark.parametrize(
    ("name", "storage"),
    [*product(["mnist_cnn", "wide_resnet22"], models.STORAGES), ("resnet18", "condensed")],
)
def test_backward_along_random_directions(name, storage, rng):
    """The derivative of <forward(x), r> along random directions of all parameters, by central differences."""
    options = {"mnist_cnn": {"dropout": (0.0, 0.0)}, "wide_resnet22": {"dropout": 0.0}}.get(name, {})
    network = NETWORKS[name](SMALL[name], storage=storage, sparsity=0.98, dtype=np.float64, rng=rng, **options)
    unsettle(network, rng)
    next(iter(models.weight_layers(network).values())).needs_grad_input = True
    x = rng.standard_normal((*SMALL[name], 3))
    parameters = {"x": x} | {name: p.values for name, p in network.named_parameters().items()}
    r = rng.standard_normal((10, 3))
    with one_blas_thread():
        network.forward(x, training=True)
        grads = {"x": network.backward(r)} | {
            name: p.grad.copy() for name, p in network.named_parameters().items()
        }
        for _ in range(4):
            directions = {name: rng.standard_normal(grad.shape) for name, grad in grads.items()}
            directions = {
                name: d * np.linalg.norm(parameters[name]) / np.linalg.norm(d) for name, d in directions.items()
            }
            slopes = []  # over steps so short that they meet no kink of a ReLU
            for step in (1e-8, -1e-8):
                for name, d in directions.items():
                    parameters[name] += step * d
                slopes.append((network.forward(x, training=True) * r).sum())
                for name, d in directions.items():
                    parameters[name] -= step * d
            expected = (slopes[0] - slopes[1]) / 2e-8
            terms = [float((grads[name] * d).sum()) for name, d in directions.items()]
            assert sum(terms) == pytest.approx(expected, rel=1e-5, abs=1e-6 * np.linalg.norm(terms))


class Watch(Callback):
    """Checks every update: constant fan-in and the budget, in the update and in the layer."""

    def __init__(self):
        self.n_updates, self.moved = 0, 0

    def on_topology_update(self, trainer, layer, update):
        matrix = trainer.layers[layer].matrix
        np.testing.assert_array_equal(matrix.mask(), update.mask)
        if isinstance(matrix, CondensedMatrix):
            assert has_constant_fan_in(update.mask)
            assert matrix.fan_in == update.fan_in
        n_out = matrix.shape[0]
        assert trainer.layers[layer].budget - n_out < matrix.nnz <= trainer.layers[layer].budget
        assert trainer.layers[layer].ablate or not update.ablated.any()
        assert np.isfinite(matrix.values).all()
        assert trainer.layers[layer].weight.state["velocity"].shape == matrix.values.shape
        self.n_updates += 1
        self.moved += int(update.grown.sum())


def images(n, sample_shape, seed=0, n_classes=10):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    x = (rng.standard_normal((n, *sample_shape)) + 0.3 * y[:, None, None, None]).astype(np.float32)
    return Dataset("noise", x, y, x[:2], y[:2], tuple("abcdefghij"[:n_classes]))


@needs_speed
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["resnet18", "wide_resnet22"])
def test_srigl_at_every_step(name, sparsity):
    network = NETWORKS[name]((3, 16, 16), sparsity=sparsity, rng=1)
    watch = Watch()
    trainer = Trainer(
        network, topology=SRigL(), learning_rate=0.02, epochs=9, batch_size=8, delta_t=1, t_end_fraction=1.0,
        callbacks=[watch], progress=False,
    )  # fmt: skip
    loader = trainer.prepare(images(8, (3, 16, 16)))
    with one_blas_thread():
        for _ in range(3):
            for x, y in loader:
                trainer.train_step(x, y)
                assert math.isfinite(float(trainer.running_metrics()["loss"]))
    assert trainer.step == 3
    assert watch.n_updates == 3 * len(trainer.layers)
    assert watch.moved > 0.05 * sum(layer.matrix.nnz for layer in trainer.layers.values())
    assert counting.sparsity(network) >= sparsity - 1e-6
    assert all(np.isfinite(parameter.values).all() for parameter in network.named_parameters().values())


@pytest.mark.parametrize(("topology", "storage"), [(SRigL(), "condensed"), (RigL(), "csr"), (None, "dense")])
def test_a_small_network_learns(topology, storage):
    network = models.cnn((2, 8, 8), 4, channels=(8, 8), storage=storage, sparsity=0.7, rng=0)
    data = images(80, (2, 8, 8), n_classes=4)
    trainer = Trainer(network, topology=topology, epochs=12, batch_size=16, delta_t=5, progress=False)
    rows = trainer.fit(data).rows
    assert rows[-1]["train_loss"] < 0.3 * rows[0]["train_loss"]
    # Behind training the running statistics stand for those of a batch.
    assert trainer.evaluate(data.x_train, data.y_train)[1] > 0.9


def test_the_gradient_a_topology_method_sees_is_that_of_the_dense_network(rng):
    """Of every layer after a whole backward pass, in a network of normalisations, pooling and residual sums."""
    network = models.wide_resnet22((3, 8, 8), sparsity=0.9, dtype=np.float64, rng=rng, dropout=0.0)
    twin = models.wide_resnet22((3, 8, 8), storage="dense", dtype=np.float64, dropout=0.0)
    layers, of_twin = models.weight_layers(network), models.weight_layers(twin)
    for name, layer in layers.items():
        of_twin[name].matrix.values[...] = layer.matrix.to_dense()
        layer.keep_dense_gradient = True
    x, g = rng.standard_normal((3, 8, 8, 3)), rng.standard_normal((10, 3))
    with one_blas_thread():
        assert_close(network.forward(x, training=True), twin.forward(x, training=True), 1e-9)
        network.backward(g), twin.backward(g)
    for name, layer in layers.items():
        expected = of_twin[name].weight.grad
        assert_close(layer.dense_gradient(), expected, 1e-7, name)
        assert_close(layer.weight.grad.ravel(), expected[layer.matrix.mask()], 1e-7, name)
    for name, parameter in network.named_parameters().items():
        if "bn" in name or "bias" in name:
            assert_close(parameter.grad, twin.named_parameters()[name].grad, 1e-7, name)


def refused(message, build, *arguments, **options):
    with pytest.raises(InputError) as caught:
        build(*arguments, **options)
    assert str(caught.value) == message
    assert "\n" not in message


def test_images_too_small_for_a_network_are_refused():
    """In one line: the network, the layer, the sizes."""
    kernel, image = "kernel_size must be at most the padded input", "kernel_size must be at most the image"
    refused(
        f"images of 2 x 28 do not fit model mnist_cnn: in layer conv1 {kernel} 2 x 28, not 3 x 3",
        models.mnist_cnn, (1, 2, 28),
    )  # fmt: skip
    refused(
        f"images of 9 x 4 do not fit model mnist_cnn: in layer conv2 {kernel} 7 x 2, not 3 x 3",
        models.mnist_cnn, (1, 9, 4),
    )  # fmt: skip
    refused(
        f"images of 5 x 9 do not fit model mnist_cnn: in layer pool {image} 1 x 5, not 2 x 2",
        models.mnist_cnn, (1, 5, 9),
    )  # fmt: skip
    refused(
        f"images of 3 x 8 do not fit model cnn: in layer pool2 {image} 1 x 4, not 2 x 2", models.cnn, (3, 3, 8), 10
    )
    assert models.cnn((3, 4, 8), 10).output_shape((3, 4, 8)) == (10,)
    assert models.mnist_cnn((1, 6, 6), sparsity=0).output_shape((1, 6, 6)) == (10,)


@pytest.mark.parametrize("name", ["cnn", "mnist_cnn", "resnet18", "wide_resnet22"])
def test_samples_that_are_no_images_are_refused(name):
    build = getattr(models, name)
    for shape in ((784,), (28, 28), (1, 3, 32, 32)):
        message = f"model {name} must be given images (channels, height, width), not samples {shape}"
        refused(message, build, shape, 10)
    refused("a size in sample_shape must be an integer of at least 1, not 0", build, (3, 0, 32), 10)
    refused("a size in sample_shape must be an integer of at least 1, not 2.5", build, (2.5, 32, 32), 10)
    refused("n_classes must be an integer of at least 1, not 0", build, (1, 32, 32), 0)


def test_other_bad_options_are_refused():
    refused("channels must name at least one convolution, not none", models.cnn, (1, 8, 8), 2, channels=())
    refused("channels[1] must be an integer of at least 1, not 0", models.cnn, (1, 8, 8), 2, channels=(4, 0))
    refused("p must lie in [0, 1), not 1.0", models.mnist_cnn, dropout=(1.0, 0.5))
    refused("p must lie in [0, 1), not -0.1", models.wide_resnet22, dropout=-0.1)
    refused(
        "dense_layers must be one of conv1, conv2, fc1, fc2, not 'conv3' (did you mean 'conv2'?)",
        models.mnist_cnn, dense_layers=["conv3"],
    )  # fmt: skip
    refused(
        "no_ablation_layers must be one of conv1, conv2, fc, not 'fc1' (did you mean 'fc'?)",
        models.cnn, (1, 8, 8), 2, no_ablation_layers=["fc1"],
    )  # fmt: skip
    refused("sparsity must lie in [0, 1), not 1", models.resnet18, sparsity=1)


def test_input_of_another_shape_than_the_network_was_built_for_is_refused():
    network = models.cnn((3, 8, 8), 4, channels=(4,), rng=0)
    assert isinstance(network.children()["relu1"], ReLU)
    refused(
        "x must have shape (3, height, width, batch), not (1, 8, 8, 2)", network.forward, np.ones((1, 8, 8, 2))
    )
    refused("x must have shape (3, height, width, batch), not (192, 2)", network.forward, np.ones((192, 2)))
    refused("x must be images (3, height, width, batch), not (192, 'batch')", network.output_shape, (192,))
    with pytest.raises(InputError, match=r"x must have shape \(64, batch\)"):
        network.forward(np.ones((3, 10, 8, 2), np.float32))
