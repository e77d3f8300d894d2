"""Exported networks: their outputs are the trained ones', and exactly those neurons are gone that may go."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from strategies import masks, shapes

from sparsekit import CondensedMatrix, CSRMatrix, DenseMatrix, InputError, load_exported, models, nn
from sparsekit.config import make_config
from sparsekit.data import Standardization
from sparsekit.export import architecture, export_classifier, export_run, exporting
from sparsekit.export.constants import Constants
from sparsekit.export.slimming import slimmed
from sparsekit.export.storage import store
from sparsekit.masks import random_bernoulli, random_constant_fan_in
from sparsekit.models import weight_layers
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
)
from sparsekit.training import Classifier
from sparsekit.training.run import load_run, train_run

STORAGES = {"condensed": CondensedMatrix, "csr": CSRMatrix, "dense": DenseMatrix}
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-10}


# Random networks


def sparse(shape, rng, dtype):
    """A random weight, of constant fan-in or not."""
    if rng.random() < 0.5:
        matrix = CondensedMatrix.from_mask(
            random_constant_fan_in(shape, int(rng.integers(1, shape[1] + 1)), rng), dtype
        )
    else:
        matrix = CSRMatrix.from_mask(random_bernoulli(shape, 0.5, rng), dtype)
    matrix.values[...] = rng.standard_normal(matrix.values.shape)
    return matrix


def conv(n_out, n_in, kernel, rng, dtype, stride=1):
    matrix = sparse((n_out, n_in * kernel**2), rng, dtype)
    padding, bias = int(rng.integers(0, 2)) * (kernel // 2), bool(rng.random() < 0.5)
    return Conv2d(matrix, n_in, kernel, stride, padding, bias=bias, budget=matrix.nnz)


def block(n_in, n_out, rng, dtype):
    """A residual block of any kind: normalised before or after, with a shortcut or without, a ReLU or none."""
    weights = [sparse((n_out, size * 9), rng, dtype) for size in (n_in, n_out)]
    convs = [Conv2d(m, m.shape[1] // 9, 3, 1, 1, bias=False, budget=m.nnz) for m in weights]
    if rng.random() < 0.5:
        branch = {"conv1": convs[0], "bn": BatchNorm2d(n_out, dtype), "relu": ReLU(), "conv2": convs[1]}
    else:
        branch = {
            "bn": BatchNorm2d(n_in, dtype),
            "relu": ReLU(),
            "conv1": convs[0],
            "relu2": ReLU(),
            "conv2": convs[1],
        }
    matrix = sparse((n_out, n_in), rng, dtype)
    shortcut = {"conv": Conv2d(matrix, n_in, 1, bias=False, budget=matrix.nnz), "bn": BatchNorm2d(n_out, dtype)}
    return Residual(
        branch, shortcut if n_in != n_out or rng.random() < 0.5 else None, relu=bool(rng.random() < 0.5)
    )


def of_modules(rng, dtype):
    """Convolutions, blocks, activations and pooling in any order, then linear layers."""
    layers, shape = {}, (2, 9, 9)
    for i in range(int(rng.integers(1, 5))):
        n_out, kind = int(rng.integers(2, 7)), rng.choice(["conv", "conv", "block"])
        layers[f"{kind}{i}"] = (
            block(shape[0], n_out, rng, dtype) if kind == "block"
            else conv(n_out, shape[0], int(rng.choice([1, 3])), rng, dtype, stride=int(rng.integers(1, 3)))
        )  # fmt: skip
        shape = Sequential(layers).output_shape((2, 9, 9))
        some = {"bn": BatchNorm2d(n_out, dtype), "relu": ReLU(), "gelu": GELU(), "dropout": Dropout(0.5, rng)}
        if min(shape[1:]) >= 4:
            some |= {"max": MaxPool2d(2), "mean": AvgPool2d(2)}
        layers |= {f"{name}{i}": module for name, module in some.items() if rng.random() < 0.4}
        shape = Sequential(layers).output_shape((2, 9, 9))
        if min(shape[1:]) < 3:
            break
    layers["flatten"] = Flatten() if rng.random() < 0.5 else GlobalAvgPool()
    n_in = Sequential(layers).output_shape((2, 9, 9))[0]
    if rng.random() < 0.5:
        layers["bn"] = BatchNorm(n_in, dtype)
    for i, size in enumerate(rng.integers(1, 7, int(rng.integers(1, 4)))):
        matrix = sparse((int(size), n_in), rng, dtype)
        layers[f"fc{i}"] = Linear(matrix, bias=bool(rng.random() < 0.7), budget=matrix.nnz)
        layers[f"act{i}"] = ReLU() if rng.random() < 0.5 else GELU()
        n_in = int(size)
    return Sequential(layers), (2, 9, 9)


def of_models(rng, dtype):
    """The networks that can be trained, small."""
    options = {
        "sparsity": float(rng.uniform(0.3, 0.9)), "storage": str(rng.choice(["condensed", "csr"])), "rng": rng,
        "first_layer_dense": bool(rng.random() < 0.3), "dtype": dtype,
    }  # fmt: skip
    kind = rng.choice(["mlp", "cnn", "mnist_cnn"])
    if kind == "mlp":
        hidden = {"batch_norm": bool(rng.random() < 0.5), "activation": str(rng.choice(["relu", "gelu"]))}
        sizes = (12, *map(int, rng.integers(2, 12, int(rng.integers(1, 4)))), 3)
        return models.mlp(sizes, dropout=0.2, **hidden, **options), (3, 2, 2)
    if kind == "cnn":
        return models.cnn((2, 9, 9), 3, channels=tuple(map(int, rng.integers(2, 8, 2))), **options), (2, 9, 9)
    return models.mnist_cnn((1, 8, 8), 3, **options), (1, 8, 8)


def ablate(model, rng, share):
    """Take all their weights from some neurons of the sparse layers; the output layer may lose some too."""
    for layer in models.sparse_layers(model).values():
        mask = layer.matrix.mask()
        mask[rng.random(len(mask)) < (share if rng.random() < 0.9 else 1)] = False
        layer.rewire(mask)


def as_if_trained(model, rng):
    """Biases, normalisation and running statistics as they may become; many of them make zeros behind a ReLU."""
    for name, parameter in model.named_parameters().items():
        if name.endswith("bias"):
            parameter.values[...] = rng.standard_normal(parameter.values.shape)
    for name, buffer in model.named_buffers().items():
        buffer[...] = rng.uniform(0.2, 2, buffer.shape) * (1 if name.endswith("var") else rng.choice([-1, 1]))


def classifier(model, sample_shape, dtype):
    ones = np.ones((sample_shape[0], 1, 1))
    return Classifier(model, Standardization(0 * ones, ones), sample_shape, dtype)


@settings(max_examples=120)
@given(
    seed=st.integers(0, 2**32 - 1),
    make=st.sampled_from([of_models, of_modules, of_modules]),
    dtype=st.sampled_from([np.float64, np.float32]),
    storage=st.sampled_from(list(STORAGES)),
    share=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
)
def test_outputs_are_those_of_the_trained_network(seed, make, dtype, storage, share):
    rng = np.random.default_rng(seed)
    check_export(*make(rng, dtype), rng, dtype, storage, share)


@pytest.mark.parametrize(("make", "dtype"), [(models.resnet18, np.float32), (models.wide_resnet22, np.float64)])
def test_outputs_of_residual_networks(make, dtype, rng):
    model = make((2, 8, 8), 3, sparsity=0.95, rng=rng, dtype=dtype)
    rows = check_export(model, (2, 8, 8), rng, dtype, "condensed", 0.5)
    assert sum(row["removed"] for row in rows) > 0
    assert sum(row["constants"] for row in rows) > 0


def check_export(model, sample_shape, rng, dtype, storage, share):
    ablate(model, rng, share)
    as_if_trained(model, rng)
    trained = classifier(model, sample_shape, dtype)
    before = [parameter.values.copy() for parameter in model.named_parameters().values()]
    network, rows = export_classifier(trained, storage, ("a", "b", "c"))
    x = rng.standard_normal((5, *sample_shape))
    check_equal(network.logits(x), trained.logits(x), dtype)
    assert not [module for _, module in network.model.named_modules() if isinstance(module, Dropout)]
    for parameter, values in zip(model.named_parameters().values(), before, strict=True):
        np.testing.assert_array_equal(parameter.values, values)
    check_rows(rows, model, network.model, storage)
    return rows


def check_equal(found, expected, dtype):
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    make=st.sampled_from([of_models, of_modules, of_modules]),
    dtype=st.sampled_from([np.float64, np.float32]),
    storage=st.sampled_from(list(STORAGES)),
)
def test_files_are_read_back(seed, make, dtype, storage, tmp_path_factory):
    rng = np.random.default_rng(seed)
    model, sample_shape = make(rng, dtype)
    ablate(model, rng, 0.3)
    as_if_trained(model, rng)
    network, _ = export_classifier(classifier(model, sample_shape, dtype), storage, ("a", "b", "c"))
    path = tmp_path_factory.mktemp("export") / "network.safetensors"
    network.save(path)
    loaded = load_exported(path)
    assert loaded.class_names == ("a", "b", "c")
    x = rng.standard_normal((5, *sample_shape))
    check_equal(loaded.logits(x), network.logits(x), dtype)


def check_rows(rows, model, new_model, storage):
    old, new = weight_layers(model), weight_layers(new_model)
    assert [row["name"] for row in rows] == list(old) == list(new)
    for row in rows:
        before, after = old[row["name"]], new[row["name"]]
        assert (row["shape"], row["new_shape"]) == (list(before.matrix.shape), list(after.matrix.shape))
        assert row["storage"] == (storage if before.is_sparse else "dense")
        assert type(after.matrix) is STORAGES[row["storage"]]
        assert row["removed"] == before.matrix.shape[0] - after.matrix.shape[0]
        assert row["nnz"] + row["zeros"] == after.matrix.nnz
        assert row["nnz"] <= before.matrix.nnz
        assert (row["bytes"], row["new_bytes"]) == (before.matrix.nbytes, after.matrix.nbytes)
        assert np.count_nonzero(after.matrix.values) <= row["nnz"]
        if storage == "csr":
            assert row["zeros"] == 0
    assert rows[-1]["removed"] == 0


# Which neurons go, by hand


def linear(weight, bias=None, mask=None):
    weight = np.array(weight, dtype=np.float64)
    layer = Linear(
        CSRMatrix.from_dense(weight, weight != 0 if mask is None else mask), bias=bias is not None, budget=1
    )
    if bias is not None:
        layer.bias.values[...] = np.reshape(bias, (-1, 1))
    return layer


def image_conv(weight, bias=None, padding=0):
    """A convolution with the weight (out, in, height, width)."""
    weight = np.array(weight, dtype=np.float64)
    flat = weight.reshape(len(weight), -1)
    matrix = CSRMatrix.from_dense(flat, flat != 0)
    layer = Conv2d(matrix, weight.shape[1], weight.shape[2:], 1, padding, bias=bias is not None, budget=1)
    if bias is not None:
        layer.bias.values[...] = np.reshape(bias, (-1, 1))
    return layer


def slim(layers, sample_shape):
    """The slim network, and for each layer with weights (neurons left, constants kept)."""
    model = Sequential(layers)
    constants = Constants(model, sample_shape)
    network = slimmed(model, constants)
    x = np.random.default_rng(0).standard_normal((*sample_shape, 4))
    np.testing.assert_allclose(network.forward(x), model.forward(x), rtol=1e-12, atol=1e-12)
    counts = {}
    for name, layer in weight_layers(model).items():
        neurons = constants.outputs[layer]
        kept = int((neurons.constant & ~neurons.removable).sum())
        counts[name] = (weight_layers(network)[name].matrix.shape[0], kept)
    return network, counts


DIAGONAL = np.eye(3).reshape(3, 3, 1, 1)
TWO_OF_THREE = DIAGONAL * np.array([1, 0, 1]).reshape(3, 1, 1, 1)  # channel 1 has no weights
ALL = np.arange(1.0, 19).reshape(2, 3, 3, 1)


def test_an_ablated_neuron_of_a_linear_layer_goes_and_its_constant_stays():
    layers = {
        "fc1": linear([[1, 2], [0, 0], [3, 0]], [4, 5, 6]),
        "relu": ReLU(),
        "fc2": linear([[1, 2, 3], [4, 5, 0]]),
    }
    network, counts = slim(layers, (2,))
    assert counts == {"fc1": (2, 0), "fc2": (2, 0)}
    fc2 = network.layers["fc2"]
    np.testing.assert_array_equal(fc2.matrix.to_dense(), [[1, 3], [4, 0]])
    np.testing.assert_array_equal(fc2.bias.values, [[2 * 5], [5 * 5]])  # it had none


def test_without_a_constant_no_bias_is_made():
    layers = {"fc1": linear([[1, 2], [0, 0]], [4, -5]), "relu": ReLU(), "fc2": linear([[1, 2], [4, 5]])}
    network, counts = slim(layers, (2,))
    assert counts["fc1"] == (1, 0)
    assert network.layers["fc2"].bias is None


def test_a_stored_weight_that_is_zero_is_a_weight():
    mask = np.array([[True, False], [False, False]])
    layers = {"fc1": linear([[0, 0], [0, 0]], [4, 5], mask), "fc2": linear([[1, 2]])}
    assert slim(layers, (2,))[1]["fc1"] == (1, 0)


def test_a_neuron_that_reads_constants_alone_is_one():
    layers = {
        "fc1": linear([[1, 0], [0, 0], [0, 0]], [1, 2, 3]),
        "gelu1": GELU(),
        "fc2": linear([[1, 1, 0], [0, 1, 1], [0, 0, 0]], [1, 2, 3]),
        "gelu2": GELU(),
        "fc3": linear([[1, 1, 1], [0, 1, 1]], [1, 2]),
    }
    network, counts = slim(layers, (2,))
    assert counts == {"fc1": (1, 0), "fc2": (1, 0), "fc3": (2, 1)}  # the outputs stay, constant or not
    assert network.layers["fc3"].matrix.nnz == 1


def test_of_a_layer_of_constants_one_neuron_stays():
    layers = {"fc1": linear(np.zeros((4, 2)), [1, 2, 3, 4]), "fc2": linear(np.ones((2, 4)), [0, 0])}
    network, counts = slim(layers, (2,))
    assert counts == {"fc1": (1, 1), "fc2": (2, 2)}
    np.testing.assert_array_equal(network.forward(np.zeros((2, 1))), [[10], [10]])


def test_normalisation_loses_what_its_layer_loses():
    norm = BatchNorm(3, np.float64)
    norm.running_mean[...] = [[1], [2], [3]]
    norm.bias.values[...] = [[4], [5], [6]]
    layers = {"fc1": linear([[1, 2], [0, 0], [3, 0]], [4, 5, 6]), "bn": norm, "fc2": linear([[1, 1, 1]])}
    network, _ = slim(layers, (2,))
    np.testing.assert_array_equal(network.layers["bn"].running_mean, [[1], [3]])
    np.testing.assert_array_equal(network.layers["bn"].bias.values, [[4], [6]])


@pytest.mark.parametrize("between", [ReLU(), MaxPool2d(2), AvgPool2d(2), GELU()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize(("padding", "left"), [(0, (2, 0)), ((1, 0), (3, 1))])
def test_before_padding_a_constant_stays(between, padding, left):
    layers = {
        "conv1": image_conv(TWO_OF_THREE, [1, 2, 3]),
        "between": between,
        "conv2": image_conv(ALL, padding=padding),
    }
    assert slim(layers, (3, 8, 8))[1] == {"conv1": left, "conv2": (2, 0)}


def test_before_padding_a_zero_goes():
    layers = {
        "conv1": image_conv(TWO_OF_THREE, [1, -2, 3]),
        "relu": ReLU(),
        "conv2": image_conv(ALL, padding=1),
        "relu2": ReLU(),
        "conv3": image_conv(np.ones((1, 2, 1, 1))),
    }
    network, counts = slim(layers, (3, 8, 8))
    assert counts["conv1"] == (2, 0)
    assert network.layers["conv2"].weight_shape == (2, 2, 3, 1)
    assert network.layers["conv2"].bias is None


@pytest.mark.parametrize("last", [Flatten(), GlobalAvgPool()], ids=["flatten", "mean"])
def test_channels_go_before_a_linear_layer(last):
    n_in = 12 if isinstance(last, Flatten) else 3
    weight = np.arange(1.0, 2 * n_in + 1).reshape(2, n_in)
    layers = {"conv1": image_conv(TWO_OF_THREE, [1, 2, 3]), "last": last, "fc": linear(weight)}
    network, counts = slim(layers, (3, 2, 2))
    assert counts["conv1"] == (2, 0)
    assert network.layers["fc"].matrix.shape == (2, n_in // 3 * 2)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    "shortcut", [None, {"conv": image_conv(TWO_OF_THREE, [1, 0, 1])}], ids=["identity", "conv"]
)
def test_what_is_added_stays(shortcut, relu):
    branch = {
        "conv1": image_conv(TWO_OF_THREE, [1, 2, 3]),
        "conv2": image_conv(TWO_OF_THREE, [1, -2, 3]),
    }
    layers = {
        "conv0": image_conv(TWO_OF_THREE, [1, 2, 3]),
        "block": Residual(branch, shortcut, relu=relu),
        "fc": image_conv(np.ones((1, 3, 1, 1))),
    }
    counts = slim(layers, (3, 4, 4))[1]
    assert counts["block.conv1"] == (2, 0)  # read by conv2 alone
    assert counts["block.conv2"] == (3, 1)
    # the block's input is added if there is no shortcut; else both of its readers can do without
    assert counts["conv0"] == ((3, 1) if shortcut is None else (2, 0))
    if shortcut is not None:
        assert counts["block.shortcut.conv"] == (3, 1)


def test_one_reader_that_needs_a_constant_keeps_it():
    branch = {"conv1": image_conv(np.ones((3, 3, 3, 3)), padding=1)}
    layers = {
        "conv0": image_conv(TWO_OF_THREE, [1, 2, 3]),
        "block": Residual(branch, {"conv": image_conv(DIAGONAL)}),
        "fc": image_conv(np.ones((1, 3, 1, 1))),
    }
    assert slim(layers, (3, 4, 4))[1]["conv0"] == (3, 1)


def test_networks_of_unknown_modules_are_refused():
    class Square(Module):
        def forward(self, x, training=False):
            return x * x

        def backward(self, grad_output):
            raise NotImplementedError

    with pytest.raises(InputError, match="model must not hold a Square"):
        slim({"fc1": linear([[1, 2]]), "square": Square()}, (2,))


# Storage


@given(data=st.data(), storage=st.sampled_from(list(STORAGES)), dtype=st.sampled_from([np.float32, np.float64]))
def test_stored_weights_are_the_weights(data, storage, dtype):
    mask = data.draw(shapes().flatmap(masks))
    weight = np.random.default_rng(0).standard_normal(mask.shape).astype(dtype)
    matrix = store(weight, mask, storage)
    assert type(matrix) is STORAGES[storage]
    assert matrix.dtype == dtype
    np.testing.assert_array_equal(matrix.to_dense(), np.where(mask, weight, 0))
    assert (matrix.mask() >= mask).all()
    if storage != "dense":
        np.testing.assert_array_equal(matrix.mask().any(axis=1), mask.any(axis=1))
    if storage == "condensed":
        assert matrix.nnz == mask.any(axis=1).sum() * mask.sum(axis=1).max()
    if storage == "csr":
        assert matrix.nnz == mask.sum()


# Runs

SMALL = {
    "hidden": [24, 16], "epochs": 2, "batch_size": 64, "delta_t": 3, "threads": 1, "gamma_sal": 0.8,
    "sparsity": 0.95, "validation": 0.1, "batch_norm": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run whose best network is surely not its last one."""
    path = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        train_run(make_config(SMALL, {"seed": seed}), path / str(seed), progress=False)
    (path / "1" / "model.safetensors").replace(path / "0" / "best.safetensors")
    return path / "0"


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("best", [False, True])
def test_a_run_is_exported(storage, best, run_folder, tmp_path):
    path = tmp_path / "network.safetensors"
    result = export_run(run_folder, storage, path, best=best)
    run, network = load_run(run_folder, best=best), load_exported(path)
    x = np.random.default_rng(0).integers(0, 17, (40, 1, 8, 8), dtype=np.uint8)
    np.testing.assert_allclose(network.logits(x), run.classifier.logits(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(network.predict(x), run.predict(x))
    assert network.class_names == tuple("0123456789")
    assert (result["file"], result["file_bytes"]) == (str(path), path.stat().st_size)
    assert 0 <= result["largest_difference"] < 1e-3
    json.dumps(result)
    hidden = result["layers"][:2]
    assert sum(row["removed"] for row in hidden) > 0
    assert all(row["constants"] == 0 for row in hidden)  # nothing is padded or added here
    for row, layer in zip(result["layers"], run.result["layers"], strict=True):
        assert row["shape"] == layer["shape"]


def test_the_file_says_what_it_is(run_folder, tmp_path):
    path = tmp_path / "network.safetensors"
    export_run(run_folder, "csr", path)
    with safe_open(path, framework="numpy") as file:
        about = json.loads(file.get_tensor("extra.about").tobytes())
        assert file.get_tensor("fc1.weight.indptr").size == about["network"]["fc1"]["shape"][0] + 1
    assert about["sample_shape"] == [1, 8, 8]
    assert about["network"]["fc1"]["storage"] == "csr"
    assert list(about["network"]) == ["flatten", "fc1", "bn1", "relu1", "fc2", "bn2", "relu2", "fc3"]


def test_an_export_stands_in_the_run_folder_and_belongs_to_the_run(tmp_path):
    folder = tmp_path / "run"
    config = make_config(SMALL, {"epochs": 1})
    train_run(config, folder, progress=False)
    assert export_run(folder, "csr")["file"] == str(folder / "csr.safetensors")
    with pytest.raises(InputError, match="csr.safetensors exists already; name another file or pass --overwrite"):
        export_run(folder, "csr")
    export_run(folder, "csr", overwrite=True)
    train_run(config, folder, overwrite=True, progress=False)
    assert not (folder / "csr.safetensors").exists()


def test_what_cannot_be_exported_is_refused(run_folder, tmp_path):
    for arguments, words in (
        ((run_folder, "coo", tmp_path / "a.safetensors"), "to must be one of condensed, csr, dense, not 'coo'"),
        ((run_folder, "coo"), "to must be one of"),
        ((run_folder, "csr", tmp_path / "a.npz"), "out must be a file that ends in .safetensors, not"),
        ((tmp_path, "csr"), "is not a run"),
        ((run_folder, "csr", tmp_path / "nowhere" / "a.safetensors"), "cannot be written"),
    ):
        with pytest.raises(InputError, match=words):
            export_run(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_only_an_export_is_replaced(run_folder):
    before = (run_folder / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="model.safetensors is not a network"):
        export_run(run_folder, "csr", run_folder / "model.safetensors", overwrite=True)
    assert (run_folder / "model.safetensors").read_bytes() == before


def test_every_module_can_be_exported():
    kinds = {name for name in nn.__all__ if isinstance(getattr(nn, name), type)}
    modules = {name for name in kinds if issubclass(getattr(nn, name), Module)} - {"Module", "WeightLayer"}
    tables = (getattr(architecture, f"_{name}") for name in ("PLAIN", "POOLS", "NORMS", "LAYERS"))
    assert modules == {"Sequential", "Residual", "Dropout"}.union(*tables)


def test_a_network_with_other_outputs_is_not_written(run_folder, tmp_path, monkeypatch):
    def wrong(model, constants):
        network = slimmed(model, constants)
        network.layers["fc3"].bias.values[0] += 1
        return network

    monkeypatch.setattr(exporting, "slimmed", wrong)
    with pytest.raises(InputError, match="must give the outputs of the trained one, but they differ by 1"):
        export_run(run_folder, "csr", tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_no_exported_networks(run_folder, tmp_path):
    with pytest.raises(InputError, match=r"model.safetensors is not a network of this version"):
        load_exported(run_folder / "model.safetensors")
    with pytest.raises(InputError, match="nowhere.safetensors is missing"):
        load_exported(tmp_path / "nowhere.safetensors")
    path = tmp_path / "network.safetensors"
    export_run(run_folder, "condensed", path)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="network.safetensors is damaged"):
        load_exported(path)


def test_loaded_networks_only_predict(run_folder, tmp_path):
    export_run(run_folder, "condensed", tmp_path / "a.safetensors")
    network = load_exported(tmp_path / "a.safetensors")
    layers = models.sparse_layers(network.model)
    assert layers
    assert not any(layer.matrix.values.flags.writeable for layer in layers.values())
    with pytest.raises(InputError, match="x must have shape"):
        network.predict(np.zeros((3, 7)))
