"""Checkpoints: all of a training is read back and goes on with the same bits; what does not fit is refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import METHODS, blobs

from sparsekit import InputError, Trainer, load_dataset, models
from sparsekit.data import CropAndFlip
from sparsekit.nn import Dropout
from sparsekit.optim import SGD, AdamW
from sparsekit.training import Callback, History, load_checkpoint, save_checkpoint
from sparsekit.training.arrays import read_arrays, write_arrays
from sparsekit.training.model_file import load_model, save_model

OPTIMIZERS = {"sgd": lambda: SGD(weight_decay=1e-3), "adamw": AdamW}


def build(method="srigl", optimizer="sgd", *, seed=0, sizes=(12, 24, 16, 4), dtype=np.float32, **options):
    topology, storage = METHODS[method]
    network = {"batch_norm": True, "dropout": 0.1, "dtype": dtype, "backend": "vectorized", "rng": seed}
    model = models.mlp(sizes, storage=storage, sparsity=0.7, **network)
    options = {"learning_rate": 0.02, "epochs": 5, "batch_size": 10, "delta_t": 7, "progress": False} | options
    return Trainer(model, topology=topology, optimizer=OPTIMIZERS[optimizer](), seed=seed, **options)


def data():
    return blobs().with_validation(0.25, np.random.default_rng(0))


class SaveAfter(Callback):
    def __init__(self, epoch, path):
        self.epoch, self.path = epoch, path

    def on_epoch_end(self, trainer, row):
        if row["epoch"] == self.epoch:
            save_checkpoint(self.path, trainer, "a text of the user's")


def everything(trainer) -> dict:
    """The whole state of a training, gathered without the code under test; bytes, so that bits are compared."""
    state = {"step": trainer.step, "optimizer": dict(vars(trainer.optimizer)), "fingerprint": trainer.fingerprint}
    for name, parameter in trainer.model.named_parameters().items():
        state[name] = parameter.values.tobytes(), parameter.values.dtype, parameter.values.shape
        state[f"{name} optimizer"] = {key: array.tobytes() for key, array in parameter.state.items()}
    state |= {name: buffer.tobytes() for name, buffer in trainer.model.named_buffers().items()}
    for name, layer in models.weight_layers(trainer.model).items():
        state[f"{name} mask"] = layer.matrix.mask().tobytes()
    for name, module in trainer.model.named_modules():
        if isinstance(module, Dropout):
            state[f"{name} rng"] = module.rng.bit_generator.state
    state |= {name: getattr(trainer, name).bit_generator.state for name in ("batch_rng", "topology_rng")}
    state["history"] = [{key: v for key, v in row.items() if key != "seconds"} for row in trainer.history.rows]
    return state


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_everything_is_read_back(method, optimizer, tmp_path):
    trained = build(method, optimizer, epochs=2)
    trained.fit(data())
    save_checkpoint(tmp_path / "a.safetensors", trained)
    other = build(method, optimizer, epochs=2, seed=5)
    assert load_checkpoint(tmp_path / "a.safetensors", other) == ""
    assert everything(other) == everything(trained)
    assert other.history.rows == trained.history.rows  # the seconds too
    for layer in models.weight_layers(other.model).values():
        assert layer.weight.values is layer.matrix.values
    other.prepare(data())
    save_checkpoint(tmp_path / "b.safetensors", other)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("epoch", [1, 3, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_training_goes_on_with_the_same_bits(method, optimizer, dtype, epoch, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    whole = build(method, optimizer, dtype=dtype, callbacks=[SaveAfter(epoch, path)])
    whole.fit(data())
    resumed = build(method, optimizer, dtype=dtype, seed=0)
    assert load_checkpoint(path, resumed) == "a text of the user's"
    assert len(resumed.history) == epoch
    resumed.fit(data())
    assert everything(resumed) == everything(whole)


def test_augmented_images_go_on_with_the_same_bits(tmp_path):
    path, digits = tmp_path / "checkpoint.safetensors", load_dataset("digits")

    def trainer(**options):
        augmentation = CropAndFlip(np.random.default_rng(3), padding=2)
        return build(sizes=(64, 16, 10), batch_size=100, augmentation=augmentation, **options)

    whole = trainer(callbacks=[SaveAfter(2, path)])
    whole.fit(digits)
    resumed = trainer()
    load_checkpoint(path, resumed)
    resumed.fit(digits)
    assert everything(resumed) == everything(whole)
    unchanged = build(sizes=(64, 16, 10), batch_size=100)
    unchanged.fit(digits)
    assert everything(unchanged)["history"] != everything(whole)["history"]
    with pytest.raises(InputError, match="random sources must be .*'augmentation': 'PCG64'"):
        load_checkpoint(path, build(sizes=(64, 16, 10), batch_size=100))


@pytest.mark.parametrize("kind", ["MT19937", "PCG64DXSM", "Philox", "SFC64"])
def test_every_kind_of_random_source_is_kept(kind, tmp_path):
    def trainer(seed):
        made = build(epochs=1)
        made.model.layers["dropout1"].rng = np.random.Generator(getattr(np.random, kind)(seed))
        return made

    first, second = trainer(1), trainer(2)
    first.fit(data())
    save_checkpoint(tmp_path / "c.safetensors", first)
    load_checkpoint(tmp_path / "c.safetensors", second)
    numbers = [made.model.layers["dropout1"].rng.random(99, dtype=np.float32) for made in (first, second)]
    np.testing.assert_array_equal(*numbers)
    with pytest.raises(InputError, match=f"random sources must be .*{kind}.*, not .*PCG64"):
        load_checkpoint(tmp_path / "c.safetensors", build())


def test_a_trainer_can_go_back_to_a_checkpoint(tmp_path):
    """Whatever it did since: gradients and optimizer state of another topology are no hindrance."""
    path = tmp_path / "c.safetensors"
    trainer = build(callbacks=[SaveAfter(2, path)])
    trainer.fit(data())
    end = everything(trainer)
    trainer.callbacks = []
    load_checkpoint(path, trainer)
    assert trainer.step == 2 * trainer.steps_per_epoch
    trainer.fit(data())
    assert everything(trainer) == end


def test_a_finished_training_has_no_epoch_left(tmp_path):
    trainer = build(epochs=1)
    trainer.fit(data())
    save_checkpoint(tmp_path / "c.safetensors", trainer)
    again = build(epochs=1)
    load_checkpoint(tmp_path / "c.safetensors", again)
    assert len(again.fit(data())) == 1
    np.testing.assert_array_equal(again.classifier.logits(data().x_test), trainer.classifier.logits(data().x_test))
    longer = build(epochs=3)
    load_checkpoint(tmp_path / "c.safetensors", longer)
    assert [row["epoch"] for row in longer.fit(data()).rows] == [1, 2, 3]


def test_a_resumed_progress_bar_begins_where_it_was(tmp_path, capsys):
    trainer = build(callbacks=[SaveAfter(3, tmp_path / "c.safetensors")])
    trainer.fit(data())
    resumed = build(progress=True)
    load_checkpoint(tmp_path / "c.safetensors", resumed)
    resumed.fit(data())
    shown = capsys.readouterr().err
    assert "epoch 4/5:  60%" in shown
    assert "45/45" in shown
    assert "epoch 3/5" not in shown


def test_other_data_are_refused_by_name(tmp_path):
    trainer, dataset = build(epochs=2), data()
    trainer.fit(dataset)
    save_checkpoint(tmp_path / "c.safetensors", trainer)
    flipped = blobs().with_validation(0.25, np.random.default_rng(0))
    flipped.x_train[3, 4] += 1
    for other, words in ((blobs(), "n_train 90, not 120"), (flipped, "sha256 [0-9a-f]{64}, not [0-9a-f]{64}")):
        resumed = build(epochs=2)
        load_checkpoint(tmp_path / "c.safetensors", resumed)
        with pytest.raises(InputError, match=f"dataset must be the one that this training began with, of {words}"):
            resumed.fit(other)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.safetensors"
    trainer = build(sizes=(12, 8, 4), epochs=1)
    trainer.fit(data())
    save_checkpoint(path, trainer)
    return path, path.read_bytes()


@settings(max_examples=150)
@given(choices=st.data())
def test_any_damaged_byte_is_noticed(saved, choices):
    path, good = saved
    damaged = bytearray(good)
    if choices.draw(st.booleans()):
        damaged[choices.draw(st.integers(0, len(good) - 1))] ^= 1 << choices.draw(st.integers(0, 7))
    else:
        del damaged[choices.draw(st.integers(0, len(good) - 1)) :]
    other = path.with_name("damaged.safetensors")
    other.write_bytes(damaged)
    with pytest.raises(InputError, match=r"damaged.safetensors") as caught:
        load_checkpoint(other, build(sizes=(12, 8, 4)))
    assert "\n" not in str(caught.value)


def test_files_of_another_kind_are_refused(saved, tmp_path):
    path, _ = saved
    trainer = build(sizes=(12, 8, 4))
    with pytest.raises(InputError, match=r"nowhere.safetensors is missing"):
        load_checkpoint(tmp_path / "nowhere.safetensors", trainer)
    with pytest.raises(InputError, match=r"checkpoint.safetensors is not a model .*'checkpoint-1', not 'model-1'"):
        load_model(path, trainer.model)
    save_model(tmp_path / "m.safetensors", trainer.model, {})
    with pytest.raises(InputError, match=r"m.safetensors is not a checkpoint .*'model-1', not 'checkpoint-1'"):
        load_checkpoint(tmp_path / "m.safetensors", trainer)
    (tmp_path / "text.safetensors").write_text("epoch,loss\n1,2.0\n" * 20)
    with pytest.raises(InputError, match=r"text.safetensors is damaged or no safetensors file"):
        load_checkpoint(tmp_path / "text.safetensors", trainer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sizes": (12, 9, 4)},
            r"network: its layer 'fc1' is a CondensedMatrix \(8, 12\) with a budget of 24, not a CondensedMatrix "
            r"\(9, 12\) with a budget of 27",
        ),
        ({"sizes": (13, 8, 4)}, r"network: its layer 'fc1' is .*\(8, 12\).*, not .*\(8, 13\)"),
        ({"sizes": (12, 8, 8, 4)}, "network: its layer 'fc1' is .* with a budget of 24, not .* of 25"),
        ({"method": "rigl"}, r"network: its layer 'fc1' is a CondensedMatrix .*, not a CSRMatrix"),
        ({"method": "dense"}, r"network: its layer 'fc1' is a CondensedMatrix .*, not a DenseMatrix \(8, 12\)$"),
        ({"dtype": np.float64}, "network: fc1.weight.values is float32, not float64"),
        ({"optimizer": "adamw"}, "trainer: optimizer must be SGD, not AdamW"),
        ({"batch_size": 9}, "trainer: batch_size must be 10, not 9"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_and_changes_nothing(saved, options, message):
    path, _ = saved
    trainer = build(**{"sizes": (12, 8, 4), "seed": 3} | options)
    before = everything(trainer)
    with pytest.raises(InputError, match=f"checkpoint.safetensors does not fit this {message}") as caught:
        load_checkpoint(path, trainer)
    assert "\n" not in str(caught.value)
    assert everything(trainer) == before


def test_networks_with_more_or_fewer_layers_are_refused(tmp_path):
    short, long = (build("dense", epochs=1, sizes=sizes) for sizes in ((12, 8, 4), (12, 8, 4, 4)))
    for trainer, other, words in ((short, long, "missing, not a "), (long, short, ".*, not missing")):
        trainer.fit(data())
        save_checkpoint(tmp_path / "c.safetensors", trainer)
        with pytest.raises(InputError, match=rf"its layer 'fc3' is {words}"):
            load_checkpoint(tmp_path / "c.safetensors", other)


def test_networks_with_other_parts_are_refused(saved):
    path, _ = saved
    for options, message in (
        ({"dropout": 0.1}, "network: it also holds bn1.bias and 3 more"),
        ({"batch_norm": True}, "trainer: random sources must be .*'module dropout1': 'PCG64'}, not {"),
    ):
        trainer = Trainer(models.mlp((12, 8, 4), sparsity=0.7, **options), batch_size=10, optimizer=SGD())
        with pytest.raises(InputError, match=f"checkpoint.safetensors does not fit this {message}"):
            load_checkpoint(path, trainer)


def test_weights_in_impossible_places_are_refused(saved, tmp_path):
    """What is whole can still be made up: a kernel must never see an index out of range."""
    path, _ = saved
    arrays = read_arrays(path, "checkpoint-1")
    arrays["fc1.weight.indices"][0, 0] = 60000
    write_arrays(tmp_path / "c.safetensors", "checkpoint-1", arrays)
    with pytest.raises(
        InputError, match=r"c.safetensors does not fit this network: indices must lie in \[0, 12\)"
    ):
        load_checkpoint(tmp_path / "c.safetensors", build(sizes=(12, 8, 4)))


def test_only_whole_epochs_are_saved(tmp_path):
    class Save(Callback):
        def on_step_end(self, trainer):
            save_checkpoint(tmp_path / "c.safetensors", trainer)

    with pytest.raises(
        InputError, match="trainer must be between two epochs of fit to be saved, not at step 1 with 0"
    ):
        build(callbacks=[Save()]).fit(data())
    with pytest.raises(InputError, match="trainer must be between two epochs of fit to be saved, not at step 0"):
        save_checkpoint(tmp_path / "c.safetensors", build())
    assert list(tmp_path.iterdir()) == []


def test_a_training_stopped_within_an_epoch_is_not_gone_on_with(tmp_path):
    class Stop(Callback):
        def on_step_end(self, trainer):
            if trainer.step == 13:
                raise KeyboardInterrupt

    trainer = build(callbacks=[SaveAfter(1, tmp_path / "c.safetensors"), Stop()])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(data())
    with pytest.raises(InputError, match="fit must be called once, but this trainer has taken 13 steps"):
        trainer.fit(data())


def test_optimizers_that_hide_arrays_are_refused(tmp_path):
    class Averaging(SGD):
        average = None

        def step(self, parameters, learning_rate):
            super().step(parameters, learning_rate)
            self.average = np.zeros(3)

    trainer = build(epochs=1)
    trainer.optimizer = Averaging()
    trainer.fit(data())
    with pytest.raises(
        InputError, match="optimizer must hold numbers and words only, but Averaging.average is a nd"
    ):
        save_checkpoint(tmp_path / "c.safetensors", trainer)


def test_the_version_is_in_the_file(saved):
    from sparsekit import __version__

    path, _ = saved
    state = json.loads(read_arrays(path, "checkpoint-1")["extra.state"].tobytes())
    assert state["version"] == __version__


def test_the_best_epoch_is_the_first_of_equals():
    assert History([{"epoch": 1, "train_accuracy": 1.0}]).best() is None
    assert History().best() is None
    rows = [{"epoch": i + 1, "validation_accuracy": value} for i, value in enumerate([0.5, 0.9, 0.7, 0.9])]
    assert History(rows).best() is rows[1]
