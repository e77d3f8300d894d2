"""Every setting reaches the training: changing it alone changes the network that comes out, or where it runs."""

from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
from matplotlib.figure import Figure

from sparsekit import InputError, Trainer, kernels, load_dataset, models, nn
from sparsekit.config import RunConfig, choices, make_config
from sparsekit.training.run import build_model, train_run

BASE = {
    "dataset": "digits",
    "hidden": [16],
    "sparsity": 0.8,
    "epochs": 2,
    "batch_size": 64,
    "delta_t": 5,
    "threads": 1,
}
ABLATING = {"method": "srigl", "gamma_sal": 0.95, "alpha": 0.6}
STEPWISE = {"lr_schedule": "step", "step_epochs": 1.0}

# Field: (another value than the default's, what else the field needs to matter).
CASES = {
    "dataset": ("own.npz", {}),
    "validation": (0.2, {}),
    "scaling": ("unit", {}),
    "augmentation": ("crop-flip", {}),
    "hidden": ((16, 12), {}),
    "channels": ((6,), {"model": "cnn"}),
    "activation": ("gelu", {}),
    "batch_norm": (True, {}),
    "dropout": (0.2, {}),
    "method": ("rigl", {}),
    "sparsity": (0.6, {}),
    "distribution": ("uniform", {}),
    "first_layer_dense": (True, {}),
    "dense_layers": (("fc1",), {}),
    "no_ablation_layers": (("fc1", "fc2"), ABLATING),
    "gamma_sal": (0.95, {}),
    "saliency_gradient": ("all", ABLATING),
    "revive": (False, ABLATING),
    "compat": ("official", ABLATING),
    "initializer": ("fan_in_uniform", {}),
    "delta_t": (7, {}),
    "alpha": (0.6, {}),
    "t_end_fraction": (0.4, {}),
    "epochs": (3, {}),
    "batch_size": (50, {}),
    "optimizer": ("adamw", {}),
    "learning_rate": (0.05, {}),
    "lr_schedule": ("constant", {}),
    "warmup_epochs": (1.0, {}),
    "step_epochs": (1.0, {"lr_schedule": "step"}),
    "step_factor": (0.5, STEPWISE),
    "momentum": (0.5, {"optimizer": "sgd"}),
    "nesterov": (False, {"optimizer": "sgd"}),
    "weight_decay": (0.05, {}),
    "label_smoothing": (0.1, {}),
    "seed": (1, {}),
    "dtype": ("float64", {}),
}
# More than one path through the program: the same setting has to reach them all.
MORE = {
    "rigl-alpha": ("alpha", 0.6, {"method": "rigl"}),
    "rigl-distribution": ("distribution", "uniform", {"method": "rigl"}),
    "set-seed": ("seed", 1, {"method": "set"}),
    "adamw-weight_decay": ("weight_decay", 0.05, {"optimizer": "adamw"}),
    "warmup-step": ("warmup_epochs", 1.0, STEPWISE),
    "method-static": ("method", "static", {}),
    "method-static-unstructured": ("method", "static-unstructured", {"method": "static"}),
    "method-set": ("method", "set", {"method": "rigl"}),
    "method-dense": ("method", "dense", {}),
    "model-cnn": ("model", "cnn", {}),
    "model-mnist_cnn": ("model", "mnist_cnn", {}),
    "dropout-mnist_cnn": ("dropout", 0.1, {"model": "mnist_cnn"}),
    "first_layer_dense-cnn": ("first_layer_dense", True, {"model": "cnn", "sparsity": 0.95}),
}
SEPARATE = {"model", "threads", "backend", "checkpoint_every"}  # tests of their own below and in test_resume.py


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Trains a configuration as the command line does, once each; the figures are left blank to save time."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("history_figure", "topology_figure"):
            patch.setattr(f"sparsekit.figures.{name}", lambda *_: Figure(figsize=(1, 1)))

        @cache
        def train(config: RunConfig, repetition: int = 0):
            return train_run(config, folder / str(len(list(folder.iterdir()))), progress=False)

        yield train


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    data = load_dataset("digits")
    path = tmp_path_factory.mktemp("data") / "own.npz"
    np.savez(path, x=data.x_train[:640], y=data.y_train[:640])
    return str(path)


def outcome(run) -> dict[str, np.ndarray]:
    """All that training changed: values of the parameters and places of the weights."""
    values = {name: parameter.values for name, parameter in run.model.named_parameters().items()}
    masks = {f"{name}.mask": layer.matrix.mask() for name, layer in models.weight_layers(run.model).items()}
    return values | masks


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_every_setting_has_a_case():
    assert set(RunConfig.model_fields) == set(CASES) | SEPARATE


def test_without_a_change_nothing_changes(train):
    """Otherwise the tests below would see differences everywhere."""
    for settings in (BASE, BASE | ABLATING, BASE | {"dropout": 0.2, "validation": 0.2}):
        config = make_config(settings)
        assert equal(outcome(train(config)), outcome(train(config, repetition=1)))


@pytest.mark.parametrize("name", CASES)
def test_every_setting_reaches_the_training(name, train, own_data):
    value, context = CASES[name]
    value = own_data if name == "dataset" else value
    assert value != RunConfig.model_fields[name].default
    check_that_it_matters(name, value, context, train)


@pytest.mark.parametrize(("name", "value", "context"), MORE.values(), ids=MORE)
def test_settings_reach_every_method(name, value, context, train):
    check_that_it_matters(name, value, context, train)


def check_that_it_matters(name, value, context, train):
    before, after = make_config(BASE, context), make_config(BASE, context, {name: value})
    assert {field for field in RunConfig.model_fields if getattr(before, field) != getattr(after, field)} == {name}
    assert not equal(outcome(train(before)), outcome(train(after)))


def test_a_step_schedule_decays_by_its_factor(train):
    history = train(make_config(BASE, STEPWISE, {"step_factor": 0.5})).history
    assert history.column("learning_rate") == pytest.approx([0.1, 0.05])


def test_precision_holds_for_the_whole_network(train):
    run = train(make_config(BASE, {"dtype": "float64", "batch_norm": True}))
    arrays = outcome(run) | run.model.named_buffers()
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float64), np.dtype(bool)}
    assert run.classifier.logits(load_dataset("digits").x_test[:3]).dtype == np.float64


def test_ablation_settings_do_what_they_say(train):
    """Differences could come from anywhere; these are the ones that the settings promise."""

    def n_active(**changes):
        run = train(make_config(BASE, ABLATING, changes))
        return [layer["n_active"] for layer in run.result["layers"]]

    assert n_active()[0] < 16
    assert n_active()[1] == 10  # the output layer by default
    assert n_active(gamma_sal=0.0) == [16, 10]
    assert n_active(no_ablation_layers=("fc1", "fc2")) == [16, 10]
    assert n_active(no_ablation_layers=())[1] < 10


def test_every_architecture_is_built():
    """The large ones are too slow for a case above; their layers tell them apart."""
    n_layers = {"mlp": 2, "cnn": 3, "mnist_cnn": 4, "resnet18": 21, "wide_resnet22": 23}
    assert set(choices("model")) == set(n_layers)
    dataset = load_dataset("digits")
    for name, expected in n_layers.items():
        settings = BASE | {"model": name}
        if name in ("cnn", "resnet18"):
            with pytest.raises(InputError, match=f"dropout must be left out with model {name}, which has none"):
                build_model(make_config(settings, {"dropout": 0.125}), dataset)
        else:
            settings["dropout"] = 0.125
        model = build_model(make_config(settings), dataset)
        assert len(models.weight_layers(model)) == expected
        rates = {module.p for _, module in model.named_modules() if isinstance(module, nn.Dropout)}
        assert rates == ({0.125} if "dropout" in settings else set())


@pytest.mark.parametrize("name", kernels.BACKENDS)
def test_the_backend_computes_the_products(name, train, monkeypatch):
    called = set()

    def watch(module, function):
        original = getattr(module, function)

        def watched(*arrays):
            called.add(function)
            return original(*arrays)

        monkeypatch.setattr(module, function, watched)

    small = {"hidden": [8], "sparsity": 0.9, "method": "static", "epochs": 1, "batch_size": 700}
    expected = outcome(train(make_config(BASE, small)))  # by the default backend
    for backend in kernels.BACKENDS:
        if backend != name:
            monkeypatch.setattr(kernels.get_backend(backend), "condensed_matmul", None)  # not to be called
    products = {"condensed_matmul", "condensed_rmatmul", "condensed_sampled_outer"}
    for function in products:
        watch(kernels.get_backend(name), function)
    run = train(make_config(BASE, small, {"backend": name}), repetition=2)
    assert called == products
    assert {layer.backend for layer in models.sparse_layers(run.model).values()} == {name}
    for key, value in outcome(run).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-4, atol=1e-5, err_msg=key)


def test_threads_limit_the_training(train, monkeypatch):
    events = []

    @contextmanager
    def limit(threads):
        events.append(threads)
        yield threads
        events.append("free again")

    fit = Trainer.fit
    monkeypatch.setattr("sparsekit.training.run.thread_limit", limit)
    monkeypatch.setattr(Trainer, "fit", lambda trainer, data: (events.append("fit"), fit(trainer, data))[1])
    run = train(make_config(BASE, {"threads": 3}))  # more than a small machine has: nothing is really limited
    assert events == [3, "fit", "free again"]
    assert run.result["threads"] == 3
