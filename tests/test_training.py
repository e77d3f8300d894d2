"""Training: it learns, keeps its invariants, is deterministic, and stops with a clear word."""

import numpy as np
import pytest

from sparsekit import InputError, Trainer, counting, load_dataset, models, nn
from sparsekit.data import BatchLoader, Dataset, Standardization
from sparsekit.errors import DivergedError
from sparsekit.masks import has_constant_fan_in
from sparsekit.models.building import conv_layer, linear_layer, sparsified
from sparsekit.nn import softmax_cross_entropy
from sparsekit.optim import SGD, AdamW, LearningRate
from sparsekit.topology import SET, RigL, SRigL, Static
from sparsekit.training import Callback, Classifier, History

METHODS = {
    "dense": (None, "dense"),
    "static": (Static(), "condensed"),
    "static-unstructured": (Static(constant_fan_in=False), "csr"),
    "set": (SET(), "csr"),
    "rigl": (RigL(), "csr"),
    "srigl": (SRigL(), "condensed"),
}


def blobs(n=240, n_features=12, n_classes=4, seed=0) -> Dataset:
    """Classes around random centres: easy, small, with a test set."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.standard_normal((n_classes, n_features))
    y = np.arange(n) % n_classes
    x = (centres[y] + rng.standard_normal((n, n_features))).astype(np.float32)
    return Dataset("blobs", x[: n // 2], y[: n // 2], x[n // 2 :], y[n // 2 :], tuple("abcd"[:n_classes]))


def build(method, sizes=(12, 24, 16, 4), sparsity=0.7, seed=0, dtype=np.float32, **options):
    topology, storage = METHODS[method]
    model = models.mlp(sizes, storage=storage, sparsity=sparsity, dtype=dtype, rng=abs(seed))
    options = {"epochs": 6, "batch_size": 10, "delta_t": 7, "seed": seed, "progress": False} | options
    return Trainer(model, topology=topology, **options)


class UpdateLog(Callback):
    def __init__(self):
        self.updates = []

    def on_topology_update(self, trainer, layer, update):
        self.updates.append((trainer.step, layer, update))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(method):
    data = blobs()
    trainer = build(method)
    history = trainer.fit(data)
    assert history.rows[-1]["train_loss"] < 0.5 * history.rows[0]["train_loss"]
    assert trainer.classifier.evaluate(data.x_test, data.y_test)[1] > 0.8


def test_srigl_learns_the_digits():
    data = load_dataset("digits")
    model = models.mlp((64, 128, 10), sparsity=0.9)
    trainer = Trainer(model, topology=SRigL(), epochs=15, batch_size=32, delta_t=25, progress=False)
    trainer.fit(data)
    assert trainer.classifier.evaluate(data.x_test, data.y_test)[1] > 0.93


@pytest.mark.parametrize("method", ["srigl", "rigl", "set", "static"])
def test_invariants_after_every_update(method):
    log = UpdateLog()
    trainer = build(method, callbacks=[log])
    n_weights = {name: layer.matrix.nnz for name, layer in trainer.layers.items()}
    trainer.fit(blobs())
    # 12 steps an epoch, 72 in all, t_end = 54: updates at 7, 14, ..., 49
    assert [step for step, layer, _ in log.updates if layer == "fc1"] == [7, 14, 21, 28, 35, 42, 49]
    assert [layer for _, layer, _ in log.updates[: len(trainer.layers)]] == list(trainer.layers)
    for _, layer, update in log.updates:
        if method == "srigl":
            assert has_constant_fan_in(update.mask)
            assert update.mask.sum() <= trainer.layers[layer].budget
        else:
            assert update.mask.sum() == n_weights[layer]
    moved = sum(update.grown.sum() for _, _, update in log.updates)
    assert (moved == 0) == (method == "static")


def test_the_drop_fraction_follows_the_cosine():
    class Spy(RigL):
        fractions: list = []  # noqa: RUF012

        def update(self, weight, mask, grad, drop_fraction, **options):
            self.fractions.append(drop_fraction)
            return super().update(weight, mask, grad, drop_fraction, **options)

    trainer = build("rigl", delta_t=10, alpha=0.4)
    trainer.topology = Spy()
    trainer.fit(blobs())
    expected = [0.2 * (1 + np.cos(np.pi * step / 54)) for step in (10, 20, 30, 40, 50)]
    assert Spy.fractions[:: len(trainer.layers)] == pytest.approx(expected)


def test_update_uses_the_stepped_weight_and_the_gradient_of_the_masked_weight():
    """Replay one step with dense, masked arrays and compare what the topology method is handed."""
    data = blobs(n=20)
    handed = {}

    class Spy(SRigL):
        def update(self, weight, mask, grad, drop_fraction, **options):
            if not handed:
                handed.update(weight=weight.copy(), mask=mask.copy(), grad=grad.copy(), **options)
            return super().update(weight, mask, grad, drop_fraction, **options)

    model = models.mlp((12, 9, 4), sparsity=0.6, dtype=np.float64, rng=3)
    fc1, fc2 = models.weight_layers(model).values()
    w1, m1, w2 = fc1.matrix.to_dense(), fc1.matrix.mask(), fc2.matrix.to_dense()
    rate, decay = 0.3, 0.01
    trainer = Trainer(
        model,
        topology=Spy(),
        optimizer=SGD(momentum=0.0, nesterov=False, weight_decay=decay),
        learning_rate=LearningRate(rate, "constant"),
        epochs=10,
        batch_size=10,
        delta_t=1,
        progress=False,
    )
    batches = []
    original = trainer.train_step
    trainer.train_step = lambda x, y: (batches.append((x, y)), original(x, y))
    trainer.fit(data)
    x, y = batches[0]
    hidden = np.maximum(w1 @ x, 0)
    _, grad_logits = softmax_cross_entropy(w2 @ hidden, y)
    dense_grad = ((w2.T @ grad_logits) * (hidden > 0)) @ x.T
    np.testing.assert_allclose(handed["grad"], dense_grad, atol=1e-12)
    np.testing.assert_allclose(handed["weight"], (w1 - rate * (dense_grad + decay * w1)) * m1, atol=1e-12)
    np.testing.assert_array_equal(handed["mask"], m1)
    assert handed["budget"] == fc1.budget
    assert handed["ablate"] is True


@pytest.mark.parametrize("make_optimizer", [lambda: SGD(weight_decay=1e-3), AdamW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("method", ["srigl", "rigl"])
def test_stored_sparse_training_equals_masked_dense_training(method, make_optimizer):
    """The same run on dense, masked weights: losses agree to rounding through many topology updates."""
    data = blobs()
    options = {
        "optimizer": make_optimizer(),
        "dtype": np.float64,
        "epochs": 4,
        "learning_rate": LearningRate(0.02),
    }
    log = UpdateLog()
    trainer = build(method, callbacks=[log], **options)
    weights = {n: layer.matrix.to_dense() for n, layer in models.weight_layers(trainer.model).items()}
    masks = {n: layer.matrix.mask() for n, layer in models.weight_layers(trainer.model).items()}
    sparse_history = trainer.fit(data)

    losses = _masked_training(data, weights, masks, log.updates, trainer)
    assert sparse_history.column("train_loss") == pytest.approx(losses, rel=1e-9)
    for name, layer in models.weight_layers(trainer.model).items():
        np.testing.assert_allclose(layer.matrix.to_dense(), weights[name] * masks[name], atol=1e-9)
    assert any(update.grown.any() for _, _, update in log.updates)
    assert method != "srigl" or any(update.ablated.any() for _, _, update in log.updates)


def _masked_training(data, weights, masks, updates, trainer) -> list[float]:
    """Dense arrays times masks, plain formulas; masks change as `updates` says. Returns each epoch's loss."""
    standard = Standardization.fit(data.x_train)
    loader = BatchLoader(
        data.x_train, data.y_train, 10, standard, dtype=np.float64, rng=np.random.default_rng(0).spawn(2)[0],
        drop_last=True,
    )  # fmt: skip
    names = list(weights)
    biases = {name: np.zeros((len(weights[name]), 1)) for name in names}
    arrays = [*weights.values(), *biases.values()]
    states = [[np.zeros_like(a), np.zeros_like(a)] for a in arrays]
    step, losses = 0, []
    for _ in range(trainer.epochs):
        epoch_loss = []
        for x, y in loader:
            step += 1
            activations = [x]
            for name in names:
                z = weights[name] @ activations[-1] + biases[name]
                activations.append(z if name == names[-1] else np.maximum(z, 0))
            loss, delta = softmax_cross_entropy(activations[-1], y)
            epoch_loss.append(loss)
            weight_grads, bias_grads = {}, {}
            for i in reversed(range(len(names))):
                weight_grads[names[i]] = (delta @ activations[i].T) * masks[names[i]]
                bias_grads[names[i]] = delta.sum(axis=1, keepdims=True)
                delta = (weights[names[i]].T @ delta) * (activations[i] > 0)
            grads = [*(weight_grads[n] for n in names), *(bias_grads[n] for n in names)]
            rate = trainer.learning_rate.at(step, len(loader), trainer.epochs)
            _masked_step(trainer.optimizer, step, arrays, grads, states, rate)
            for _, name, update in (u for u in updates if u[0] == step):
                masks[name][...] = update.mask
                for array in (weights[name], *states[names.index(name)]):
                    array *= update.mask
                    array[update.grown] = 0
        losses.append(float(np.mean(epoch_loss)))
    return losses


def _masked_step(optimizer, step, arrays, grads, states, rate):
    for w, grad, state in zip(arrays, grads, states, strict=True):
        if isinstance(optimizer, SGD):
            g = grad + optimizer.weight_decay * w
            state[0][...] = optimizer.momentum * state[0] + g
            w -= rate * (g + optimizer.momentum * state[0])
        else:
            state[0][...] = 0.9 * state[0] + 0.1 * grad
            state[1][...] = 0.999 * state[1] + 0.001 * grad**2
            mean, square = state[0] / (1 - 0.9**step), state[1] / (1 - 0.999**step)
            w -= rate * (optimizer.weight_decay * w + mean / (np.sqrt(square) + 1e-8))


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_history(method):
    histories = [build(method, epochs=3).fit(blobs()) for _ in range(2)]
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in h.rows] for h in histories]
    assert timeless[0] == timeless[1]


def test_another_seed_another_history():
    first, second = (build("srigl", epochs=1, seed=seed).fit(blobs()) for seed in (0, 1))
    assert first.column("train_loss") != second.column("train_loss")


def test_history_rows_and_validation():
    data = blobs().with_validation(0.25, np.random.default_rng(0))
    trainer = build("srigl", epochs=2)
    history = trainer.fit(data)
    assert [row["epoch"] for row in history.rows] == [1, 2]
    assert history.column("step") == [9, 18]
    loss, accuracy = trainer.classifier.evaluate(data.x_validation, data.y_validation)
    assert history.rows[-1]["validation_loss"] == pytest.approx(loss)
    assert history.rows[-1]["validation_accuracy"] == accuracy
    for layer in counting.layer_summary(trainer.model)[:2]:
        assert history.rows[-1][f"{layer['name']}.n_active"] == layer["n_active"]
        assert history.rows[-1][f"{layer['name']}.fan_in"] == layer["fan_in"]
    assert history.rows[-1]["sparsity"] == pytest.approx(counting.sparsity(trainer.model))


def test_history_round_trip(tmp_path):
    history = build("srigl", epochs=2).fit(blobs())
    history.save(tmp_path / "history.csv")
    assert History.load(tmp_path / "history.csv").rows == history.rows
    assert [p.name for p in tmp_path.iterdir()] == ["history.csv"]


def test_history_plots():
    figure = build("srigl", epochs=2).fit(blobs().with_validation(0.2, np.random.default_rng(0))).plot()
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["Cross-entropy", "Accuracy", "Active neurons"]
    assert {text.get_text() for text in figure.axes[0].get_legend().get_texts()} == {"train", "validation"}


def test_callbacks_see_every_event():
    events = []

    class Recorder(Callback):
        def __getattribute__(self, name):
            if name.startswith("on_"):
                return lambda trainer, *details: events.append(name)
            return super().__getattribute__(name)

    build("srigl", epochs=1, delta_t=4, t_end_fraction=1.0, callbacks=[Recorder()]).fit(blobs())
    assert events[0] == "on_fit_start"
    assert events[-2:] == ["on_epoch_end", "on_fit_end"]
    assert events.count("on_step_end") == 12
    assert events.count("on_topology_update") == 2 * 3  # two sparse layers at steps 4, 8; step 12 is t_end


def test_progress_bar_shows_loss_accuracy_and_sparsity(capsys):
    build("srigl", epochs=2, progress=True).fit(blobs())
    shown = capsys.readouterr().err
    for part in ("epoch 2/2", "loss=", "accuracy=", "sparsity=", "24/24"):
        assert part in shown


def test_a_diverged_run_names_step_layer_and_learning_rate():
    trainer = build("srigl", learning_rate=LearningRate(1e12, "constant"))
    with pytest.raises(DivergedError) as caught:
        trainer.fit(blobs())
    message = str(caught.value)
    assert f"training diverged at step {trainer.step}: " in message
    assert "come from layer 'fc" in message
    assert "the learning rate was 1e+12" in message
    assert "\n" not in message


def test_a_residual_block_that_diverges_is_named():
    """Its two ways are not one after the other: only the block itself can be run on what came before it."""
    block = nn.Residual(
        {"conv": conv_layer(4, 2, 3, 2, padding=1, dtype=np.float32)},
        {"conv": conv_layer(4, 2, 1, 2, dtype=np.float32)},
    )
    layers = {"block": block, "pool": nn.GlobalAvgPool(), "fc": linear_layer(2, 4, np.float32)}
    model = sparsified(layers, 0, {"storage": "dense"})
    models.weight_layers(model)["block.shortcut.conv"].weight.values[...] = 3e38
    images = np.random.default_rng(0).standard_normal((8, 2, 4, 4)).astype(np.float32)
    y = np.arange(8) % 2
    trainer = Trainer(model, epochs=1, batch_size=4, progress=False)
    with pytest.raises(DivergedError, match="the first values that are not finite come from layer 'block'"):
        trainer.fit(Dataset("noise", images, y, images, y, ("a", "b")))


def test_a_network_that_diverges_in_the_last_step_is_reported():
    trainer = build("srigl", epochs=1, delta_t=100)

    class Poison(Callback):
        def on_step_end(self, trainer):
            if trainer.step == 12:
                models.weight_layers(trainer.model)["fc2"].weight.values[0] = np.nan

    trainer.callbacks.append(Poison())
    with pytest.raises(DivergedError, match=r"at step 12: a weight is not finite; .* from layer 'fc2'"):
        trainer.fit(blobs())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer of at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"delta_t": 0}, "delta_t must be"),
        ({"alpha": 1.5}, r"alpha must lie in \[0, 1\], not 1.5"),
        ({"t_end_fraction": -1}, r"t_end_fraction must lie"),
        ({"seed": -1}, "seed must be"),
        ({"label_smoothing": 1}, "label_smoothing must lie"),
    ],
)
def test_trainer_refuses(options, message):
    with pytest.raises(InputError, match=message):
        build("srigl", **options)


def test_storage_must_suit_the_method():
    model = models.mlp((12, 8, 4), storage="csr", sparsity=0.5)
    with pytest.raises(
        InputError, match="topology SRigL needs CondensedMatrix weights, but layer 'fc1' has a CSR"
    ):
        Trainer(model, topology=SRigL())


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(InputError, match="batch_size must be at most 120, the training samples, not 121"):
        build("srigl", batch_size=121).fit(blobs())


def test_classifier_takes_samples_first():
    data = load_dataset("digits")
    trainer = Trainer(models.mlp((64, 16, 10), sparsity=0.5), epochs=1, progress=False)
    trainer.fit(data)
    classifier = trainer.classifier
    expected = classifier.predict(data.x_test)
    assert expected.shape == (len(data.x_test),)
    np.testing.assert_array_equal(classifier.predict(data.x_test[:, 0]), expected)
    np.testing.assert_array_equal(classifier.predict(data.x_test.reshape(len(expected), -1)), expected)
    np.testing.assert_array_equal(classifier.predict_proba(data.x_test).argmax(axis=1), expected)
    np.testing.assert_allclose(classifier.predict_proba(data.x_test).sum(axis=1), 1, rtol=1e-5)
    small = Classifier(classifier.model, classifier.standardization, classifier.sample_shape, batch_size=7)
    np.testing.assert_array_equal(small.predict(data.x_test), expected)
    loss, accuracy = classifier.evaluate(data.x_test, data.y_test)
    assert accuracy == (expected == data.y_test).mean()
    probability = classifier.predict_proba(data.x_test)[np.arange(len(expected)), data.y_test]
    assert loss == pytest.approx(-np.log(probability).mean(), rel=1e-4)
    with pytest.raises(InputError, match="x "):
        classifier.predict(data.x_test[:, :, :5])


def test_weights_held_in_training_are_small():
    dense, sparse = build("dense", epochs=1), build("srigl", sizes=(12, 24, 16, 4), sparsity=0.9, epochs=1)
    for trainer in (dense, sparse):
        trainer.fit(blobs())
    held = counting.weight_bytes(dense.model)
    n = 12 * 24 + 24 * 16 + 16 * 4
    assert held == {"storage": 4 * n, "products": 0, "gradients": 4 * n, "optimizer": 4 * n, "total": 12 * n}
    by_hand = 0
    for layer in models.weight_layers(sparse.model).values():
        by_hand += layer.matrix.held_nbytes + layer.weight.grad.nbytes + layer.weight.state["velocity"].nbytes
    assert counting.weight_bytes(sparse.model)["total"] == by_hand


def test_fit_is_called_once():
    trainer = build("srigl", epochs=1)
    trainer.fit(blobs())
    with pytest.raises(InputError, match="fit must be called once, but this trainer has taken 12 steps"):
        trainer.fit(blobs())


def test_stepping_by_hand_equals_fit():
    data = blobs()
    fitted, stepped = build("srigl", epochs=1), build("srigl", epochs=1)
    with pytest.raises(InputError, match="train_step must follow fit or prepare"):
        stepped.train_step(data.x_train.T, data.y_train)
    fitted.fit(data)
    for x, y in stepped.prepare(data):
        stepped.train_step(x, y)
    for name, layer in models.weight_layers(stepped.model).items():
        np.testing.assert_array_equal(
            layer.matrix.to_dense(), models.weight_layers(fitted.model)[name].matrix.to_dense()
        )


def test_dropout_and_batches_draw_from_streams_of_their_own():
    model = models.mlp((12, 24, 16, 4), dropout=0.1, rng=0)
    trainer = Trainer(model, seed=0, progress=False)
    streams = [trainer.batch_rng, trainer.topology_rng, model.layers["dropout1"].rng, model.layers["dropout2"].rng]
    assert len({str(stream.bit_generator.state) for stream in streams}) == 4


@pytest.mark.parametrize("method", ["srigl", "rigl", "set", "static"])
def test_weights_that_overflow_in_an_update_step_are_reported(method):
    trainer = build(method, learning_rate=LearningRate(1e39, "constant"), delta_t=1)
    with pytest.raises(
        DivergedError, match=r"diverged at step 1: a weight of layer 'fc1' is not finite; .* 1e\+39"
    ):
        trainer.fit(blobs())


def test_a_loss_that_overflows_in_validation_is_reported():
    trainer = build("dense", epochs=1, batch_size=90, learning_rate=LearningRate(1e20, "constant"))
    with pytest.raises(DivergedError, match="diverged at step 1: "):
        trainer.fit(blobs().with_validation(0.25, np.random.default_rng(0)))


def test_only_one_dense_gradient_lives_at_a_time():
    import weakref

    alive = []

    class Spy(SRigL):
        def update(self, weight, mask, grad, drop_fraction, **options):
            assert all(reference() is None for reference in alive)
            alive.append(weakref.ref(grad))
            return super().update(weight, mask, grad, drop_fraction, **options)

    trainer = build("srigl")
    trainer.topology = Spy()
    trainer.fit(blobs())
    assert len(alive) == 7 * len(trainer.layers)


def test_no_activation_is_held_after_training():
    model = models.mlp((12, 24, 16, 4), sparsity=0.7, batch_norm=True, activation="gelu")
    Trainer(model, topology=SRigL(), epochs=1, batch_size=10, progress=False).fit(blobs())
    held = [
        (name, attribute)
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, np.ndarray) and value.ndim == 2 and value.shape[1] == 10
    ]
    assert held == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topology": "srigl"}, r"topology must be a method such as SRigL\(\), or None, not 'srigl'"),
        ({"learning_rate": 0}, "initial must be greater than 0"),
    ],
)
def test_trainer_refuses_what_is_no_method_or_rate(options, message):
    with pytest.raises(InputError, match=message):
        Trainer(models.mlp((12, 8, 4)), **options)


def test_batch_norm_needs_batches_of_two():
    model = models.mlp((12, 8, 4), batch_norm=True)
    with pytest.raises(InputError, match="batch_size must be at least 2 with batch normalisation, not 1"):
        Trainer(model, batch_size=1, progress=False).fit(blobs())


def test_an_empty_history_cannot_be_plotted():
    with pytest.raises(InputError, match="history must have at least one row"):
        History().plot()
