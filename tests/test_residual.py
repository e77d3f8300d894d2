"""Residual sums: against plain sums and central differences, with every kind of branch and shortcut."""

import naive
import numpy as np
import pytest
from gradients import check_module
from kernel_helpers import read_only
from layer_helpers import STORAGES, assert_close, assert_same_results, conv2d, linear, normalization, results

from sparsekit import CondensedMatrix, CSRMatrix, DenseMatrix, InputError
from sparsekit.nn import (
    GELU,
    BatchNorm,
    BatchNorm2d,
    Dropout,
    Flatten,
    MaxPool2d,
    Module,
    ReLU,
    Residual,
    Sequential,
    WeightLayer,
)


def branch(kind, storage, rng, dtype=np.float64):
    """Modules from images of 2 channels to images of as many and as large; some halve them ('strided')."""

    def conv(n_out=2, n_in=2, kernel=3, stride=1, padding=1):
        return conv2d(storage, rng, n_out, n_in, kernel, stride, padding, dtype=dtype)

    def norm(n_features=2):
        return normalization(BatchNorm2d, n_features, rng, dtype)

    return {
        "conv": lambda: {"conv": conv()},
        "conv, relu": lambda: {"conv": conv(), "relu": ReLU()},
        "norm": lambda: {"bn": norm()},
        "norm, relu": lambda: {"bn": norm(), "relu": ReLU()},
        "resnet": lambda: {
            "conv1": conv(3), "bn1": norm(3), "relu1": ReLU(), "conv2": conv(2, 3), "bn2": norm(),
        },
        "wide resnet": lambda: {
            "bn1": norm(), "relu1": ReLU(), "conv1": conv(3), "bn2": norm(3), "relu2": ReLU(),
            "dropout": Dropout(0.0, rng), "conv2": conv(2, 3),
        },
        "nested": lambda: {
            "inner": Residual({"bn": norm(), "act": GELU()}, relu=True),
            "list": Sequential({"conv": conv(), "empty": Sequential({}), "bn": norm()}),
        },
        "nothing": lambda: {"dropout": Dropout(0.0, rng)},
        "strided": lambda: {"conv": conv(stride=2), "bn": norm()},
        "strided, pooled": lambda: {"pool": MaxPool2d(2)},
    }[kind]()  # fmt: skip


BRANCHES = ["conv", "conv, relu", "norm", "norm, relu", "resnet", "wide resnet", "nested", "nothing"]


def shortcut(kind, storage, rng, dtype=np.float64):
    """Modules for the other side, which keep the size of images or halve it."""

    def conv(stride=1):
        return conv2d(storage, rng, 2, 2, 1, stride, dtype=dtype)

    return {
        "identity": lambda: None,
        "empty": dict,
        "conv": lambda: {"conv": conv()},
        "conv, norm": lambda: {"conv": conv(), "bn": normalization(BatchNorm2d, 2, rng, dtype)},
        "nothing": lambda: {"dropout": Dropout(0.0, rng)},
        "strided": lambda: {"conv": conv(2), "bn": normalization(BatchNorm2d, 2, rng, dtype)},
    }[kind]()


CASES = [
    *((kind, "identity") for kind in BRANCHES),
    *((kind, "conv, norm") for kind in BRANCHES),
    ("resnet", "conv"),
    ("conv", "empty"),
    ("nothing", "nothing"),
    ("strided", "strided"),
    ("strided, pooled", "strided"),
]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("kind", "side"), CASES)
def test_backward_equals_central_differences(kind, side, relu, rng):
    number = CASES.index((kind, side))
    storage, batch = STORAGES[number % 3], (3, 5, 3, 1)[number % 4]
    block = Residual(branch(kind, storage, rng), shortcut(side, storage, rng), relu=relu)
    check_module(block, rng.standard_normal((2, 4, 4, batch)), rng, tolerance=5e-7)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("kind", "side"), CASES)
def test_it_is_the_sum_of_its_sides(kind, side, relu, training, rng):
    """By modules of the same seed, one after the other, and a plain sum."""
    storage, seed = STORAGES[CASES.index((kind, side)) % 3], 7
    x = rng.standard_normal((2, 4, 4, 3))
    twins = [np.random.default_rng(seed) for _ in range(2)]
    block = Residual(branch(kind, storage, twins[0]), shortcut(side, storage, twins[0]), relu=relu)
    left, right = branch(kind, storage, twins[1]), shortcut(side, storage, twins[1]) or {}

    def one_by_one(modules, x):
        for module in modules.values():
            x = module.forward(x, training)
        return x

    y = naive.residual_sum(one_by_one(left, x), one_by_one(right, x), relu)
    g = rng.standard_normal(y.shape)
    found = results(block, x, g, training)
    assert_close(found.pop("output"), y)
    if training:
        g = g * (y > 0) if relu else g
        sides = []
        for modules in (left, right):
            grad = g
            for module in reversed(modules.values()):
                grad = module.backward(grad)
            sides.append(grad)
        assert_close(found.pop("gradient of the input"), sides[0] + sides[1])
    expected = Sequential(left | {"shortcut": Sequential(right)})
    for name, parameter in expected.named_parameters().items():
        if training:
            assert_close(found.pop(f"gradient of {name}"), parameter.grad)
    for name, buffer in expected.named_buffers().items():
        assert_close(found.pop(name), buffer)
    assert not found


@pytest.mark.parametrize("storage", STORAGES)
def test_nothing_handed_in_is_overwritten(storage, rng):
    """Sums are made in place where the memory is the block's own, which it may not be."""
    for relu in (False, True):
        for kind, side in CASES:
            block = Residual(branch(kind, storage, rng), shortcut(side, storage, rng), relu=relu)
            x = rng.standard_normal((2, 4, 4, 3))
            g = rng.standard_normal(block.forward(x).shape)
            expected = results(block, x.copy(), g.copy())
            x_before, g_before = x.copy(), g.copy()
            found = results(block, x, g)
            np.testing.assert_array_equal(x, x_before)
            np.testing.assert_array_equal(g, g_before)
            assert_close(found["output"], expected["output"])
            assert_close(found["gradient of the input"], expected["gradient of the input"])
            found = results(block, read_only(x), read_only(g))
            assert_close(found["gradient of the input"], expected["gradient of the input"])
            batch_first = (np.moveaxis(np.moveaxis(a, -1, 0).copy(), 0, -1) for a in (x, g))
            assert_close(results(block, *batch_first)["gradient of the input"], expected["gradient of the input"])


def test_what_a_branch_gave_is_not_overwritten(rng):
    """A branch may return what it keeps, such as the gradient it was handed."""

    class Keeps(Module):
        def forward(self, x, training=False):
            return x

        def backward(self, grad_output):
            self.kept = grad_output
            return grad_output

    keeps = Keeps()
    block = Residual({"keeps": keeps}, {"twice": Residual({"keeps": Keeps()})})
    x, g = rng.standard_normal((2, 3)), rng.standard_normal((2, 3))
    np.testing.assert_array_equal(block.forward(x, training=True), 3 * x)
    np.testing.assert_array_equal(block.backward(g), 3 * g)
    assert keeps.kept is g


@pytest.mark.parametrize("relu", [False, True])
def test_sums_of_features(relu, rng):
    layers = {"fc": linear(CondensedMatrix, rng, 4, 4), "bn": normalization(BatchNorm, 4, rng)}
    check_module(Residual(layers, relu=relu), rng.standard_normal((4, 6)), rng, tolerance=2e-7)
    layers = {"fc1": linear(CSRMatrix, rng, 3, 4), "relu": ReLU(), "fc2": linear(DenseMatrix, rng, 4, 3)}
    check_module(Residual(layers, relu=relu), rng.standard_normal((4, 6)), rng)


def test_a_block_without_a_gradient_for_its_input_trains_all_of_its_layers(rng):
    """The first layer of a network may be within a block."""
    layers = [conv2d(CondensedMatrix, rng, 2, 2, 3, padding=1) for _ in range(3)]
    x, g = rng.standard_normal((2, 4, 4, 3)), rng.standard_normal((2, 4, 4, 3))
    for side in (None, {"conv": layers[2]}):
        block = Residual({"conv1": layers[0], "relu": ReLU(), "conv2": layers[1]}, side, relu=True)
        network = Sequential({"block": block})
        expected = results(network, x, g)
        layers[0].needs_grad_input = False
        for layer in layers:
            layer.weight.grad = layer.bias.grad = None
        found = results(network, x, g)
        assert expected.pop("gradient of the input").shape == x.shape
        assert_same_results(found, expected)
        assert all(layer.weight.grad is not None for layer in (layers if side else layers[:2]))
        layers[0].needs_grad_input = True


def test_nan_and_infinity(rng):
    """Of both sides; a ReLU keeps NaN and stops -inf, and no gradient comes back through them."""
    x = np.array([[np.nan, np.inf, -np.inf, 1.0, -1.0]])
    block = Residual({"dropout": Dropout(0.0, rng)}, relu=True)
    np.testing.assert_array_equal(block.forward(x, training=True), [[np.nan, np.inf, 0, 2, 0]])
    np.testing.assert_array_equal(block.backward(np.ones((1, 5))), [[0, 2, 0, 2, 0]])
    norm = normalization(BatchNorm, 1, rng)
    block = Residual({"bn": norm}, {"x": Dropout(0.0, rng)}, relu=True)
    with np.errstate(invalid="ignore"):
        expected = norm.forward(x) + x
        found = block.forward(x)
    np.testing.assert_allclose(found, naive.rectified(expected))
    assert np.isnan(found[0, 0])


def test_what_is_derived_from_batch_norm_computes_itself(rng):
    class Doubled(BatchNorm2d):
        def forward(self, x, training=False):
            return 2 * super().forward(x, training)

    x = rng.standard_normal((2, 4, 4, 3))
    np.testing.assert_allclose(
        Residual({"bn": Doubled(2, np.float64)}).forward(x), 2 * BatchNorm2d(2, np.float64).forward(x) + x
    )


def test_sides_that_do_not_fit_are_refused(rng):
    """Compiled loops check nothing: a smaller side would be read beyond its end."""
    x = rng.standard_normal((2, 4, 4, 3))
    grown = conv2d(CondensedMatrix, rng, 2, 2, 1, padding=1)
    for layers in ({"conv": grown}, {"conv": grown, "bn": normalization(BatchNorm2d, 2, rng)}):
        block = Residual(layers)
        with pytest.raises(InputError, match=r"must .*shape.*\(2, 6, 6, 3\).* not .*\(2, 4, 4, 3\)|same shape"):
            block.forward(x, training=True)
        with pytest.raises(
            InputError, match=r"^branch and shortcut must give the same shape, not \(2, 6, 6\) and \(2, 4, 4\)$"
        ):
            block.output_shape((2, 4, 4))
    for wrong in ({"pool": MaxPool2d((2, 4))}, {"pool": MaxPool2d(4)}):  # as many pixels in another form, or one
        block = Residual(wrong, {"pool": MaxPool2d((4, 2))})
        with pytest.raises(InputError, match="same shape"):
            block.forward(x)
    turned = Residual({"bn": normalization(BatchNorm2d, 2, rng)}, {"pool": MaxPool2d((1, 2))})
    with pytest.raises(InputError, match="shape"):
        turned.forward(x)
    with pytest.raises(InputError, match="branch must not name a module 'shortcut'"):
        Residual({"shortcut": ReLU()}, {"relu": ReLU()})
    with pytest.raises(InputError, match=r"^branch must have at least one module, not none$"):
        Residual({})
    block = Residual(branch("resnet", CondensedMatrix, rng), relu=True)
    with pytest.raises(InputError, match="backward needs a forward pass with training=True"):
        block.backward(x)
    block.forward(x, training=True)
    block.forward(x)
    with pytest.raises(InputError, match="backward needs a forward pass with training=True"):
        block.backward(x)


def test_names_and_shapes(rng):
    block = Residual(branch("strided", CSRMatrix, rng), shortcut("strided", CSRMatrix, rng))
    network = Sequential({"block": block, "flatten": Flatten()})
    assert list(network.named_parameters()) == [
        f"block.{name}"
        for name in (
            "conv.weight", "conv.bias", "bn.weight", "bn.bias",
            "shortcut.conv.weight", "shortcut.conv.bias", "shortcut.bn.weight", "shortcut.bn.bias",
        )
    ]  # fmt: skip
    assert block.output_shape((2, 5, 4)) == (2, 3, 2)
    shapes = [(name, shape) for name, _, shape in network.shapes((2, 5, 4))]
    assert shapes == [
        ("block.conv", (2, 5, 4)),
        ("block.bn", (2, 3, 2)),
        ("block.shortcut.conv", (2, 5, 4)),
        ("block.shortcut.bn", (2, 3, 2)),
        ("flatten", (2, 3, 2)),
    ]
    assert [name for name, *_ in block.shapes((2, 5, 4))][2] == "shortcut.conv"
    named = dict(network.named_modules())
    assert all(named[name] is module for name, module, _ in network.shapes((2, 5, 4)))
    assert sum(isinstance(module, WeightLayer) for module in named.values()) == 2
