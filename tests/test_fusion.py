"""Fused neighbours against the same modules one after the other."""

import copy
import weakref

import numpy as np
import pytest
from gradients import check_module
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import read_only
from layer_helpers import (
    STORAGES,
    assert_close,
    assert_same_results,
    conv2d,
    linear,
    normalization,
    results,
)

from sparsekit import CondensedMatrix, DenseMatrix, InputError
from sparsekit.nn import (
    GELU,
    AvgPool2d,
    BatchNorm,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Residual,
    Sequential,
    WeightLayer,
)
from sparsekit.nn.fusion import NormalizedConv, RectifiedNorm, RectifiedProduct, fused

BACKENDS = ["cpu", "cpu", "vectorized", "csr"]


class OneByOne(Module):
    """The modules of a Sequential or Residual by their own forward and backward, and sums by NumPy."""

    def __init__(self, module):
        self.module = module
        if isinstance(module, Sequential):
            self.parts = [OneByOne(layer) for layer in module.layers.values()]
        elif isinstance(module, Residual):
            self.parts = [OneByOne(module.branch), OneByOne(module.shortcut or Sequential({}))]

    def forward(self, x, training=False):
        if isinstance(self.module, Sequential):
            for part in self.parts:
                x = part.forward(x, training)
            return x
        if isinstance(self.module, Residual):
            y = self.parts[0].forward(x, training) + self.parts[1].forward(x, training)
            self.positive = y > 0
            return np.maximum(y, 0) if self.module.relu else y
        return self.module.forward(x, training)

    def backward(self, grad_output):
        if isinstance(self.module, Sequential):
            for part in reversed(self.parts):
                grad_output = None if grad_output is None else part.backward(grad_output)
            return grad_output
        if isinstance(self.module, Residual):
            g = grad_output * self.positive if self.module.relu else grad_output
            grads = [part.backward(g) for part in self.parts]
            return None if any(grad is None for grad in grads) else grads[0] + grads[1]
        return self.module.backward(grad_output)

    def named_parameters(self):
        return self.module.named_parameters()

    def named_buffers(self):
        return self.module.named_buffers()


class Builder:
    """Random modules that fit each other: of every storage, often such that neighbours can be fused."""

    def __init__(self, seed, dtype):
        self.rng, self.dtype = np.random.default_rng(seed), dtype

    def choose(self, *choices):
        return choices[self.rng.integers(len(choices))]

    def conv(self, channels, n_out, kernel, stride, padding):
        storage, backend = self.choose(*STORAGES), self.choose(*BACKENDS)
        bias = bool(self.rng.integers(2))
        return conv2d(
            storage, self.rng, n_out, channels, kernel, stride, padding, self.dtype, bias=bias, backend=backend
        )

    def of_images(self, shape, previous=None):
        """A module for images of this shape, often one that is fused with the `previous` ones."""
        channels, kind = shape[0], None
        if self.rng.random() < 0.7:
            kind = {BatchNorm2d: "relu", Conv2d: "relu", ReLU: "conv"}.get(type(previous))
        kind = kind or self.choose(
            "conv", "conv", "norm", "norm", "norm", "relu", "relu", "residual", "pool", "dropout"
        )
        if kind == "conv":
            kernel = tuple(int(min(self.rng.integers(1, 4), size)) for size in shape[1:])
            stride = self.choose(1, 1, 2, (2, 1)) if min(shape[1:]) > 3 else 1
            padding = self.choose(0, 1, (1, 0))
            return self.conv(channels, int(self.rng.integers(1, 4)), kernel, stride, padding)
        if kind == "residual":
            branch = {"a": self.of_images(shape)}
            while branch["a"].output_shape(shape) != shape:
                branch = {"a": self.of_images(shape)}
            branch |= {"bn": normalization(BatchNorm2d, channels, self.rng, self.dtype)} if self.coin() else {}
            branch |= {"relu": ReLU()} if self.coin() and "bn" in branch else {}
            shortcut = {"conv": self.conv(channels, channels, 1, 1, 0)} if self.coin() else None
            return Residual(branch, shortcut, relu=self.coin())
        return {
            "norm": lambda: normalization(BatchNorm2d, channels, self.rng, self.dtype),
            "relu": ReLU,
            "pool": lambda: self.choose(MaxPool2d, AvgPool2d)(tuple(min(2, size) for size in shape[1:])),
            "dropout": lambda: Dropout(0.4, np.random.default_rng(self.rng.integers(99))),
        }[kind]()

    def of_features(self, n_features):
        storage, backend = self.choose(*STORAGES), self.choose(*BACKENDS)
        return {
            "linear": lambda: linear(storage, self.rng, 4, n_features, self.dtype, backend=backend),
            "norm": lambda: normalization(BatchNorm, n_features, self.rng, self.dtype),
            "relu": ReLU,
            "gelu": GELU,
            "dropout": lambda: Dropout(0.4, np.random.default_rng(self.rng.integers(99))),
        }[self.choose("linear", "linear", "norm", "relu", "relu", "gelu", "dropout")]()

    def coin(self):
        return bool(self.rng.integers(2))

    def network(self):
        """(modules in a row, some in lists within; shape of a sample)."""
        first = shape = (2, int(self.rng.integers(3, 6)), int(self.rng.integers(3, 6)))
        layers = {}
        for k in range(self.rng.integers(1, 8)):
            module = layers[f"{k}"] = self.of_images(shape, layers.get(f"{k - 1}"))
            shape = module.output_shape(shape)
        if self.coin():
            layers["flat"] = module = self.choose(Flatten, GlobalAvgPool)()
            shape = module.output_shape(shape)
            for k in range(self.rng.integers(0, 5)):
                layers[f"f{k}"] = module = self.of_features(*shape)
                shape = module.output_shape(shape)
        if self.coin() and len(layers) > 2:
            names = list(layers)
            cut = int(self.rng.integers(1, len(names)))
            inner = Sequential({name: layers.pop(name) for name in names[cut:]})
            layers["list"] = inner
        return Sequential(layers), first, shape


@settings(max_examples=400)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([np.float64, np.float64, np.float32]),
    batch=st.sampled_from([2, 3, 17]),
    training=st.sampled_from([True, True, False]),
)
def test_fused_equals_one_by_one(seed, dtype, batch, training):
    """Outputs, all gradients and running statistics, twice in a row."""
    network, in_shape, out_shape = Builder(seed, dtype).network()
    twin = OneByOne(copy.deepcopy(network))
    rng = np.random.default_rng(seed)
    for _ in range(2):
        x = rng.standard_normal((*in_shape, batch)).astype(dtype)
        g = rng.standard_normal((*out_shape, batch)).astype(dtype)
        x.flags.writeable = g.flags.writeable = False
        found = results(network, x, g, training)
        expected = results(twin, x, g, training)
        assert_same_results(found, expected, 1e-4 if dtype == np.float32 else 1e-11)
        assert {array.dtype for name, array in found.items() if "running" not in name} == {np.dtype(dtype)}


def test_what_can_be_fused_is_met_by_the_random_networks():
    """So that the test above tests something."""
    met = {NormalizedConv: 0, RectifiedNorm: 0, RectifiedProduct: 0}
    for seed in range(250):
        network, *_ = Builder(seed, np.float64).network()
        for _, module in network.named_modules():
            if isinstance(module, Sequential):
                for step in fused(list(module.layers.values())):
                    if type(step) in met:
                        met[type(step)] += 1
    assert min(met.values()) > 15


def test_which_neighbours_are_fused(rng):
    conv, fc = conv2d(CondensedMatrix, rng, 2, 2), linear(DenseMatrix, rng)
    bn, bn2 = BatchNorm(2), BatchNorm2d(2)

    def steps(*modules):
        return [type(step).__name__ for step in fused(modules)]

    assert steps(bn2, ReLU(), conv) == ["NormalizedConv"]
    assert steps(bn2, ReLU(), conv, ReLU()) == ["NormalizedConv", "ReLU"]
    assert steps(bn2, ReLU()) == steps(bn, ReLU()) == ["RectifiedNorm"]
    assert steps(bn, ReLU(), conv) == ["RectifiedNorm", "Conv2d"]  # batch norm of features is not for images
    assert steps(conv, ReLU()) == steps(fc, ReLU()) == ["RectifiedProduct"]
    assert steps(conv, bn2, ReLU(), conv) == ["Conv2d", "NormalizedConv"]
    assert steps(conv, ReLU(), bn2, ReLU(), fc) == ["RectifiedProduct", "RectifiedNorm", "Linear"]
    assert steps(bn2, conv, ReLU(), ReLU()) == ["BatchNorm2d", "RectifiedProduct", "ReLU"]
    assert steps(bn2, ReLU(), ReLU(), conv) == ["RectifiedNorm", "ReLU", "Conv2d"]
    assert steps(bn2, ReLU(), Dropout(0.1, rng), conv) == ["RectifiedNorm", "Dropout", "Conv2d"]
    assert steps(fc, GELU()) == ["Linear", "GELU"]
    assert steps() == []


def test_subclasses_compute_themselves(rng):
    """In each place where the very class would be fused, its subclass is called as it is."""

    class Loud(Module):
        calls = 0

        def forward(self, x, training=False):
            self.calls += 1
            return super().forward(x, training)

    x = rng.standard_normal((2, 4, 4, 3))
    for k in range(3):
        modules = [normalization(BatchNorm2d, 2, rng), ReLU(), conv2d(CondensedMatrix, rng, 2, 2, 3)]
        plain = Sequential({str(i): module for i, module in enumerate(modules)}).forward(x)
        modules[k].__class__ = type("Derived", (Loud, type(modules[k])), {})
        network = Sequential({str(i): module for i, module in enumerate(modules)})
        assert_close(network.forward(x), plain)
        assert modules[k].calls == 1


def test_a_fused_relu_is_not_called(rng, monkeypatch):
    conv = conv2d(CondensedMatrix, rng, 3, 2, 3, dtype=np.float32)
    bn = normalization(BatchNorm2d, 2, rng, np.float32)
    network = Sequential({"bn": bn, "relu1": ReLU(), "conv1": conv})
    behind = Sequential({"conv1": conv, "relu1": ReLU()})
    alone = Sequential({"bn": bn, "relu1": ReLU()})
    x, g = rng.standard_normal((2, 4, 5, 3)), rng.standard_normal((3, 2, 3, 3))
    for modules, grad in ((network, g), (behind, g), (alone, x)):
        bn.running_mean[...], bn.running_var[...] = 0, 1
        expected = results(OneByOne(modules), x.astype(np.float32), grad.astype(np.float32))
        bn.running_mean[...], bn.running_var[...] = 0, 1
        with monkeypatch.context() as patch:
            patch.setattr(ReLU, "forward", None)
            assert_same_results(results(modules, x.astype(np.float32), grad.astype(np.float32)), expected, 1e-5)


@pytest.mark.parametrize("storage", STORAGES)
def test_normalised_images_are_not_remembered(storage, rng):
    """The convolution keeps the images before the normalisation, not a copy of them behind it."""
    conv = conv2d(storage, rng, 3, 2, 3, padding=1)
    network = Sequential({"bn": normalization(BatchNorm2d, 2, rng), "relu": ReLU(), "conv": conv})
    x = rng.standard_normal((2, 4, 5, 3))
    network.forward(x, training=True)
    assert conv._input is x
    assert network.layers["bn"]._remembered.x is x
    network.backward(rng.standard_normal((3, 4, 5, 3)))
    assert conv._input is None
    assert network.layers["bn"]._remembered is None


@pytest.mark.parametrize("storage", STORAGES)
def test_fused_backward_equals_central_differences(storage, rng):
    network = Sequential(
        {
            "conv1": conv2d(storage, rng, 3, 2, 3, padding=1),
            "relu1": ReLU(),
            "bn1": normalization(BatchNorm2d, 3, rng),
            "relu2": ReLU(),
            "conv2": conv2d(storage, rng, 2, 3, (3, 2), (2, 1), (1, 0)),
            "bn2": normalization(BatchNorm2d, 2, rng),
            "relu3": ReLU(),
            "flatten": Flatten(),
            "fc1": linear(storage, rng, 5, 12),
            "bn3": normalization(BatchNorm, 5, rng),
            "relu4": ReLU(),
            "fc2": linear(storage, rng, 4, 5),
            "relu5": ReLU(),
        }
    )
    assert [type(step).__name__ for step in network._steps] == [
        "RectifiedProduct", "NormalizedConv", "RectifiedNorm", "Flatten", "Linear", "RectifiedNorm",
        "RectifiedProduct",
    ]  # fmt: skip
    check_module(network, rng.standard_normal((2, 4, 4, 3)), rng, tolerance=1e-6)


@pytest.mark.parametrize("storage", STORAGES)
def test_dense_gradients_survive_the_rest_of_the_backward_pass(storage, rng):
    """Sums and gradients are computed in place: what a layer keeps for its dense gradient must not be."""
    shape = (3, 4, 4)

    def block(relu, side):
        branch = {
            "conv1": conv2d(storage, rng, 3, 3, 3, padding=1, bias=False),
            "bn1": normalization(BatchNorm2d, 3, rng),
            "relu1": ReLU(),
            "conv2": conv2d(storage, rng, 3, 3, 3, padding=1),
            "drop": Dropout(0.0, rng),
        }
        return Residual(branch, {"conv": conv2d(storage, rng, 3, 3, 1)} if side else None, relu=relu)

    def features(relu):
        branch = {"drop": Dropout(0.0, rng), "fc": linear(storage, rng, 8, 8), "list": Sequential({})}
        return Residual(branch, {"fc": linear(storage, rng, 8, 8)}, relu=relu)

    network = Sequential(
        {
            "block1": block(relu=False, side=True),
            "block2": block(relu=True, side=False),
            "flatten": Flatten(),
            "fc1": linear(storage, rng, 8, 48),
            "features1": features(relu=False),
            "features2": features(relu=True),
            "features3": features(relu=False),
            "fc2": linear(storage, rng, 4, 8),
        }
    )
    dense = copy.deepcopy(network)
    layers, of_dense = (
        {name: module for name, module in net.named_modules() if isinstance(module, WeightLayer)}
        for net in (network, dense)
    )
    assert len(layers) == 13
    for name, layer in layers.items():
        layer.keep_dense_gradient = True
        of_dense[name].use(DenseMatrix(layer.matrix.to_dense()))
    x, g = rng.standard_normal((*shape, 5)), rng.standard_normal((4, 5))
    results(network, x, g), results(dense, x, g)
    for name, layer in layers.items():
        expected = of_dense[name].weight.grad
        assert_close(layer.weight.grad.ravel(), expected[layer.matrix.mask()], what=name)
        assert_close(layer.dense_gradient(), expected, what=name)


@pytest.mark.parametrize("storage", STORAGES)
def test_nothing_handed_in_is_overwritten(storage, rng):
    dtype = np.float32
    conv, bn = conv2d(storage, rng, 2, 2, 1, dtype=dtype), normalization(BatchNorm2d, 2, rng, dtype)
    networks = [(bn, ReLU(), conv), (bn, ReLU()), (conv, ReLU()), (ReLU(), conv), (ReLU(),), (conv,), (bn,)]
    networks += [
        (bn, ReLU(), conv, ReLU()),
        (ReLU(), bn),
        (GELU(),),
        (MaxPool2d(1), Flatten()),
        (Dropout(0.5, rng),),
    ]
    for modules in networks:
        network = Sequential({str(k): module for k, module in enumerate(modules)})
        x = rng.standard_normal((2, 4, 5, 17)).astype(dtype)
        g = rng.standard_normal(network.forward(x).shape).astype(dtype)
        inputs = read_only(x), read_only(g)
        results(network, *inputs)
        np.testing.assert_array_equal(inputs[0], x)
        np.testing.assert_array_equal(inputs[1], g)
        x_before, g_before = x.copy(), g.copy()
        results(network, x, g)  # writeable: what need not be copied is not
        np.testing.assert_array_equal(x, x_before)
        np.testing.assert_array_equal(g, g_before)


def test_backward_needs_a_forward_pass_in_training(rng):
    x, g = rng.standard_normal((2, 4, 4, 3)), rng.standard_normal((2, 4, 4, 3))
    conv, bn = conv2d(CondensedMatrix, rng, 2, 2, 1), normalization(BatchNorm2d, 2, rng)
    for modules in ((bn, ReLU(), conv), (bn, ReLU()), (conv, ReLU())):
        network = Sequential({str(k): module for k, module in enumerate(modules)})
        network.forward(x, training=True)
        network.forward(x)
        with pytest.raises(InputError, match="backward needs a forward pass with training=True before it"):
            network.backward(g)


@pytest.mark.parametrize("storage", STORAGES)
def test_nothing_depends_on_what_lies_in_fresh_memory(storage, rng, monkeypatch):
    """It may hold anything, NaN too."""
    empty = np.empty

    def full_of_nan(*arguments, **options):
        array = empty(*arguments, **options)
        array.reshape(-1).view(np.uint8)[...] = 255
        return array

    def convolutions(backend):
        return [
            conv2d(storage, rng, 2, 2, kernel, stride, padding, backend=backend)
            for kernel, stride, padding in ((3, 1, 1), (3, 2, 0), (1, 3, 0), (2, 1, (0, 2)))
        ]

    networks = [(conv,) for backend in ("cpu", "vectorized", "csr") for conv in convolutions(backend)]
    networks += [(normalization(BatchNorm2d, 2, rng), ReLU(), conv, ReLU()) for conv in convolutions("cpu")]
    networks += [
        (pool,) for pool in (MaxPool2d(2), MaxPool2d(2, 3), AvgPool2d(2), AvgPool2d(3, 1), GlobalAvgPool())
    ]
    networks += [
        (Residual({"conv": conv2d(storage, rng, 2, 2, 1)}, relu=True), GELU(), Dropout(0.0, rng), Flatten())
    ]
    networks += [(Flatten(), linear(storage, rng, 4, 60), normalization(BatchNorm, 4, rng), ReLU())]
    for modules in networks:
        network = Sequential({str(k): module for k, module in enumerate(modules)})
        layers = [module for module in modules if isinstance(module, WeightLayer)]
        for layer in layers:
            layer.keep_dense_gradient = True
        x = rng.standard_normal((2, 5, 6, 3))
        g = rng.standard_normal(network.forward(x).shape)
        found = []
        for allocate in (empty, full_of_nan):
            for buffer in network.named_buffers().values():
                buffer[...] = 1
            with monkeypatch.context() as patch:
                patch.setattr(np, "empty", allocate)
                found.append(results(network, x, g))
                found[-1] |= {f"dense gradient {k}": layer.dense_gradient() for k, layer in enumerate(layers)}
        assert all(np.isfinite(array).all() for array in found[0].values())
        assert_same_results(found[1], found[0])


@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_kept_longer_than_needed(training, rng):
    """Neither in evaluation nor once the backward pass is done: images are what fills the memory."""
    conv, bn = conv2d(CondensedMatrix, rng, 2, 2, 1), normalization(BatchNorm2d, 2, rng)
    networks = [(bn, ReLU(), conv), (bn, ReLU()), (conv, ReLU()), (conv, ReLU(), bn), (bn,), (conv,), (ReLU(),)]
    networks += [(GELU(),), (MaxPool2d(1),), (AvgPool2d(1), Dropout(0.5, rng)), (linear(DenseMatrix, rng), ReLU())]
    networks += [
        (Residual({"bn": bn}, relu=True),),
        (Residual({"conv": conv}, {"conv": conv2d(DenseMatrix, rng, 2, 2, 1)}),),
    ]
    for modules in networks:
        network = Sequential({str(k): module for k, module in enumerate(modules)})
        x = rng.standard_normal((6, 5) if isinstance(modules[0], Linear) else (2, 4, 5, 3))
        y = network.forward(x.copy(), training=True)
        network.backward(y.copy())  # compiling keeps its arguments until the garbage collector comes
        y = network.forward(x, training)
        grads = [np.ones(y.shape), None]
        if training:
            grads[1] = network.backward(grads[0])
        references = [weakref.ref(array) for array in (x, y, *grads) if array is not None]
        assert len(references) == 3 + training
        del x, y, grads
        assert all(reference() is None for reference in references), modules


def test_the_first_layer_with_weights_ends_the_backward_pass(rng):
    """Nothing before it is asked, and its own gradients are there."""
    conv = conv2d(CondensedMatrix, rng, 2, 2, 1)
    conv.needs_grad_input = False
    network = Sequential({"pool": MaxPool2d(1), "conv": conv, "relu": ReLU()})
    network.forward(rng.standard_normal((2, 4, 4, 3)), training=True)
    assert network.backward(rng.standard_normal((2, 4, 4, 3))) is None
    assert isinstance(conv, Conv2d)
    assert conv.weight.grad.shape == conv.weight.values.shape
    fc = linear(CondensedMatrix, rng, 4, 6)
    assert isinstance(fc, Linear)
    fc.needs_grad_input = False
    network = Sequential({"list": Sequential({"fc": fc, "relu": ReLU()}), "drop": Dropout(0.1, rng)})
    network.forward(rng.standard_normal((6, 5)), training=True)
    assert network.backward(rng.standard_normal((4, 5))) is None
