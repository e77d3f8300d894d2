"""The record of the masks' evolution: against masks kept whole, and over a training that was stopped."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekit import InputError, Trainer, load_dataset, models
from sparsekit.config import make_config
from sparsekit.topology import SET, RigL, SRigL, Static
from sparsekit.training import Callback, MaskEvolution, load_checkpoint, save_checkpoint
from sparsekit.training.evolution import read_evolution
from sparsekit.training.run import train_run

METHODS = {
    "srigl": (SRigL(0.5), "condensed"),
    "rigl": (RigL(), "csr"),
    "set": (SET(), "csr"),
    "static": (Static(constant_fan_in=True), "condensed"),
}
DIGITS = load_dataset("digits")


class WholeMasks(Callback):
    """Every mask that a layer has had, one after the other."""

    def __init__(self):
        self.masks = {}

    def on_fit_start(self, trainer):
        for name, layer in trainer.layers.items():
            self.masks.setdefault(name, [(0, layer.matrix.mask())])

    def on_topology_update(self, trainer, layer, update):
        self.masks[layer].append((trainer.step, trainer.layers[layer].matrix.mask()))


class Stop(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, trainer, row):
        if row["epoch"] == self.epoch:
            raise KeyboardInterrupt


def trainer(method, *callbacks, epochs=4):
    topology, storage = METHODS[method]
    model = models.mlp((64, 20, 10, 10), sparsity=0.9, storage=storage, backend="vectorized")
    options = {"epochs": epochs, "batch_size": 100, "delta_t": 4, "alpha": 0.5, "t_end_fraction": 0.9}
    return Trainer(model, topology=topology, callbacks=callbacks, progress=False, **options)


@pytest.mark.parametrize("method", METHODS)
def test_rows_say_what_the_masks_say(method):
    evolution, whole = MaskEvolution(), WholeMasks()
    trainer(method, evolution, whole).fit(DIGITS)
    assert [row["step"] for row in evolution.rows[:3]] == [0, 0, 0]
    for name, masks in whole.masks.items():
        rows = [row for row in evolution.rows if row["layer"] == name]
        assert [row["step"] for row in rows] == [step for step, _ in masks]
        old = seen = masks[0][1]
        for row, (_, mask) in zip(rows, masks, strict=True):
            seen = seen | mask
            before, after = old.sum(axis=1) > 0, mask.sum(axis=1) > 0
            assert row["n_active"] == after.sum()
            assert row["nnz"] == mask.sum()
            assert row["fan_in"] == pytest.approx(mask.sum() / after.sum())
            assert row["n_grown"] == (mask & ~old).sum()
            assert row["n_dropped"] == (old & ~mask).sum()
            assert row["n_ablated"] == (before & ~after).sum()
            assert row["n_revived"] == (after & ~before).sum()
            assert row["itop"] == pytest.approx(seen.mean())
            old = mask
    moving = [row for row in evolution.rows if row["step"]]
    assert any(row["n_grown"] for row in moving) == (method != "static")
    assert any(row["n_regrown"] for row in moving) == (method != "static")
    assert any(row["n_ablated"] for row in moving) or method != "srigl"


def test_a_dense_training_has_nothing_to_record(tmp_path):
    evolution = MaskEvolution()
    model = models.mlp((64, 8, 10), storage="dense")
    Trainer(model, epochs=1, callbacks=[evolution], progress=False).fit(DIGITS)
    evolution.save(tmp_path / "topology.csv")
    assert evolution.rows == read_evolution(tmp_path / "topology.csv") == []


@pytest.mark.parametrize("method", ["srigl", "rigl"])
def test_a_training_that_was_stopped_has_the_same_record(method, tmp_path):
    whole = MaskEvolution()
    trainer(method, whole).fit(DIGITS)
    stopped = trainer(method, MaskEvolution(), Stop(2))
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(DIGITS)
    save_checkpoint(tmp_path / "checkpoint.safetensors", stopped)
    evolution = MaskEvolution()
    resumed = trainer(method, evolution)
    load_checkpoint(tmp_path / "checkpoint.safetensors", resumed)
    assert 0 < len(evolution.rows) < len(whole.rows)
    resumed.fit(DIGITS)
    assert evolution.rows == whole.rows


def test_a_record_may_begin_in_the_middle(tmp_path):
    """A checkpoint that knows nothing of this callback is no obstacle."""
    stopped = trainer("rigl", Stop(2))
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(DIGITS)
    save_checkpoint(tmp_path / "checkpoint.safetensors", stopped)
    evolution = MaskEvolution()
    resumed = trainer("rigl", evolution)
    load_checkpoint(tmp_path / "checkpoint.safetensors", resumed)
    resumed.fit(DIGITS)
    assert evolution.rows[0]["step"] == stopped.step
    assert evolution.rows[0]["itop"] < evolution.rows[-3]["itop"]


def test_a_resumed_run_writes_the_same_record(tmp_path, monkeypatch):
    from sparsekit.training import run

    settings = {
        "hidden": [16],
        "epochs": 3,
        "batch_size": 100,
        "delta_t": 4,
        "threads": 1,
        "backend": "vectorized",
    }
    config = make_config(settings, {"validation": 0.2})
    train_run(config, tmp_path / "whole", progress=False)
    write = run._FolderWriter.on_epoch_end

    def write_and_stop(writer, trainer, row):
        write(writer, trainer, row)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run._FolderWriter, "on_epoch_end", write_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_run(config, tmp_path / "run", progress=False)
    half = read_evolution(tmp_path / "run" / "topology.csv")
    run.resume_run(tmp_path / "run", progress=False)
    texts = [(tmp_path / name / "topology.csv").read_text() for name in ("run", "whole")]
    assert texts[0] == texts[1]
    rows = read_evolution(tmp_path / "run" / "topology.csv")
    assert 0 < len(half) < len(rows)
    assert rows[: len(half)] == half


@settings(max_examples=30)
@given(data=st.data())
def test_states_and_files_are_read_back(data, tmp_path_factory):
    numbers = st.integers(0, 10**9)
    keys = ("n_active", "nnz", "n_grown", "n_dropped", "n_regrown", "n_ablated", "n_revived")
    row = st.fixed_dictionaries(
        {"step": numbers, "layer": st.sampled_from(["fc1", "stage1.block1.conv1"])}
        | dict.fromkeys(keys, numbers)
        | {"fan_in": st.floats(0, 1e6), "itop": st.floats(0, 1)}
    )
    evolution, other = MaskEvolution(), MaskEvolution()
    evolution.rows = data.draw(st.lists(row, max_size=4))
    other.restore({name: np.copy(array) for name, array in evolution.state().items()})
    assert other.rows == evolution.rows
    path = tmp_path_factory.mktemp("rows") / "topology.csv"
    evolution.save(path)
    assert read_evolution(path) == evolution.rows


def test_damaged_files_are_refused_by_name(tmp_path):
    path = tmp_path / "topology.csv"
    with pytest.raises(InputError, match="topology.csv cannot be read: No such file"):
        read_evolution(path)
    for text in ("step,layer\n1,fc1\n", "step\nx\n"):
        path.write_text(text)
        with pytest.raises(InputError, match="topology.csv is damaged"):
            read_evolution(path)
