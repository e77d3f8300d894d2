"""A training in which anything may happen next, and what must hold whatever did.

Hypothesis takes a small network through steps, topology updates of any method, conversions, checkpoints, ablation
and revival, other kernels and thread counts. After each of them the network is compared with dense, masked arrays.
"""

import contextlib
import itertools
import math
import tempfile
from pathlib import Path

import naive
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from planted_faults import FAULTS_AROUND, Fault
from strategies import drop_fractions, examples

from sparsekit import CondensedMatrix, CSRMatrix, DenseMatrix, Trainer, models
from sparsekit.data import Dataset
from sparsekit.kernels import BACKENDS
from sparsekit.kernels.threads import resolve_threads, thread_limit
from sparsekit.masks import fan_in, has_constant_fan_in
from sparsekit.nn import softmax_cross_entropy
from sparsekit.optim import SGD, AdamW, LearningRate
from sparsekit.testing.training import Watched, dense_arrays
from sparsekit.topology import SET, RigL, SRigL, Static
from sparsekit.training import checkpoint

SIZES = (6, 8, 5, 3)
BATCH = 4
RATE = 0.05
METHODS = {
    "srigl": SRigL(),
    "srigl, much ablation": SRigL(gamma_sal=0.9),
    "srigl, no ablation": SRigL(gamma_sal=0.0),
    "srigl, dead stay dead": SRigL(gamma_sal=0.9, revive=False),
    "static": Static(),
    "rigl": RigL(),
    "set": SET(),
}
SEEDS = st.integers(0, 2**32 - 1)
LAYERS = st.sampled_from(["fc1", "fc2", "fc3"])


class Recorder(Watched):
    """Also keeps what the method was handed and what it gave, layer by layer."""

    def __init__(self, method):
        super().__init__(method)
        self.handed, self.updates = [], []

    def update(self, weight, mask, grad, drop_fraction, **options):
        update = super().update(weight, mask, grad, drop_fraction, **options)
        self.handed.append((self._before, mask, grad, options))
        self.updates.append(update)
        return update


class Always:
    """A schedule by which the topology is updated now, with this drop fraction, or never."""

    def __init__(self, fraction=None):
        self.fraction = fraction

    def is_due(self, step):
        return self.fraction is not None

    def drop_fraction(self, step):
        return self.fraction


class Training(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.limit = contextlib.ExitStack()  # holds the limit of threads
        self.limit.enter_context(thread_limit(1))
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("sparsekit.kernels.compiled._PARALLEL_FROM", 0)  # layers as small as these too

    @initialize(
        storage=st.sampled_from(["condensed", "csr"]),
        optimizer=st.sampled_from([SGD, AdamW]),
        sparsity=st.sampled_from([0.3, 0.6, 0.8]),
        seed=SEEDS,
    )
    def build(self, storage, optimizer, sparsity, seed):
        self.storage, self.sparsity, self.backend = storage, sparsity, "vectorized"
        self.make_optimizer = lambda: optimizer(weight_decay=0.01)
        self.trainer = self.fresh_trainer(seed)
        self.constant = storage == "condensed"  # whether a method of constant fan-in was the last to move weights
        self.needed = np.any(self.layers["fc3"].matrix.mask(), axis=1)  # output neurons that must stay active

    def fresh_trainer(self, seed):
        """A trainer one step an epoch, so that a checkpoint can be written after each."""
        options = {"storage": self.storage, "sparsity": self.sparsity, "backend": self.backend}
        options |= {"distribution": "uniform", "first_layer_dense": False}  # so that no layer is dense
        model = models.mlp(SIZES, dtype=np.float64, rng=seed, **options)
        trainer = Trainer(
            model,
            optimizer=self.make_optimizer(),
            learning_rate=LearningRate(RATE, "constant"),
            epochs=1000,
            batch_size=BATCH,
            seed=seed,
            progress=False,
        )
        x, y = np.ones((BATCH, SIZES[0]), np.float32), np.arange(BATCH) % SIZES[-1]
        trainer.prepare(Dataset("ones", x, y, x, y, tuple("abc")))
        return trainer

    @property
    def layers(self):
        return models.weight_layers(self.trainer.model)

    # --- What may happen ------------------------------------------------------------------------------------

    @rule(seed=SEEDS)
    def step(self, seed):
        x, y = batch(seed)
        expected, _ = masked_step(self.trainer, x, y)
        self.take_step(x, y, Always())
        assert_close(snapshot(self.trainer), expected)

    @rule(name=st.sampled_from(sorted(METHODS)), fraction=drop_fractions(), seed=SEEDS)
    def update_topology(self, name, fraction, seed):
        method = METHODS[name]
        if not method.constant_fan_in and self.storage == "condensed":
            self.convert("csr")
        x, y = batch(seed)
        stepped, dense_gradients = masked_step(self.trainer, x, y)
        recorder = Recorder(method)
        self.trainer.topology, self.trainer.callbacks = recorder, [recorder]
        recorder.on_fit_start(self.trainer)
        self.take_step(x, y, Always(fraction))
        assert recorder.n_updates == 3
        for (layer_name, layer), handed, update in zip(
            self.layers.items(), recorder.handed, recorder.updates, strict=True
        ):
            arrays, mask, grad, options = handed
            for array_name, array in arrays.items():
                assert_close({array_name: array}, {array_name: stepped[f"{layer_name}.{array_name}"]})
            if grad is not None:
                assert_close({"grad": grad}, {"grad": dense_gradients[layer_name]})
            assert (options["budget"], options["ablate"]) == (layer.budget, layer_name != "fc3")
            if expected := oracle(method, arrays["weight"], mask, grad, fraction, options):
                np.testing.assert_array_equal(update.mask, expected.mask)
            np.testing.assert_array_equal(layer.matrix.mask(), update.mask)
        if not isinstance(method, Static):
            self.constant = method.constant_fan_in
        if not method.constant_fan_in:
            self.needed = np.any(self.layers["fc3"].matrix.mask(), axis=1)

    @rule(storage=st.sampled_from(["condensed", "csr", "dense and back"]))
    def convert(self, storage):
        """To another storage by each of the ways there are; values and optimizer state go with it."""
        fits = all(has_constant_fan_in(layer.matrix.mask()) for layer in self.layers.values())
        if storage == "condensed" and not fits:
            storage = "dense and back"
        before = snapshot(self.trainer)
        for layer in self.layers.values():
            matrix = converted(layer.matrix, storage)
            layer.use(matrix)
            layer.weight.state = {
                key: array.reshape(matrix.values.shape) for key, array in layer.weight.state.items()
            }
            layer.weight.grad = None
        self.storage = self.storage if storage == "dense and back" else storage
        assert_same(snapshot(self.trainer), before)

    @rule(seed=SEEDS)
    def save_and_load(self, seed):
        """The training goes on in another trainer, of another seed, from a checkpoint."""
        before, steps = snapshot(self.trainer), self.trainer.step
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.safetensors"
            self.trainer.callbacks = []
            checkpoint.save_checkpoint(path, self.trainer)
            draws = [rng.random() for rng in (self.trainer.batch_rng, self.trainer.topology_rng)]
            self.trainer = self.fresh_trainer(seed)
            checkpoint.load_checkpoint(path, self.trainer)
        assert_same(snapshot(self.trainer), before)
        assert self.trainer.step == len(self.trainer.history) == steps
        assert [rng.random() for rng in (self.trainer.batch_rng, self.trainer.topology_rng)] == draws

    @rule(name=st.sampled_from(["fc1", "fc2"]), data=st.data())
    def ablate(self, name, data):
        """By hand; as methods do, not beyond the floor, and not in the output layer."""
        layer, mask = self.layers[name], self.layers[name].matrix.mask()
        active = np.flatnonzero(mask.any(axis=1))
        if len(active) > floor(layer):
            mask[data.draw(st.sampled_from(active.tolist()))] = False
            self.rewire(name, mask)

    @rule(name=LAYERS, data=st.data(), seed=SEEDS)
    def revive(self, name, data, seed):
        """By hand: an empty neuron gets weights where the budget allows."""
        layer, mask = self.layers[name], self.layers[name].matrix.mask()
        empty, wanted = np.flatnonzero(~mask.any(axis=1)), int(fan_in(mask).max(initial=1))
        if len(empty) and mask.sum() + wanted <= layer.budget:
            row = data.draw(st.sampled_from(empty.tolist()))
            mask[row, np.random.default_rng(seed).permutation(mask.shape[1])[:wanted]] = True
            self.rewire(name, mask)

    @rule(name=LAYERS, data=st.data())
    def weaken(self, name, data):
        """Make a neuron's weights so small that a method with ablation is likely to take them."""
        layer = self.layers[name]
        row = data.draw(st.integers(0, layer.matrix.shape[0] - 1))
        rows = layer.matrix.flat_positions() // layer.matrix.shape[1]
        layer.weight.values.reshape(-1)[rows == row] *= 2.0**-20

    @rule(threads=st.sampled_from(sorted({1, resolve_threads(None)})), backend=st.sampled_from(BACKENDS))
    def use_kernels(self, threads, backend):
        self.limit.close()
        self.limit.enter_context(thread_limit(threads))
        self.backend = backend
        for layer in self.layers.values():
            layer.backend = backend

    def teardown(self):
        self.limit.close()
        self.patch.undo()

    def rewire(self, name, mask):
        layer, old = self.layers[name], self.layers[name].matrix.mask()
        before = dense_arrays(layer)
        layer.rewire(mask)
        after = dense_arrays(layer)
        np.testing.assert_array_equal(layer.matrix.mask(), mask)
        assert after.keys() == before.keys()
        for key, array in after.items():
            np.testing.assert_array_equal(array, np.where(mask & old, before[key], 0))

    def take_step(self, x, y, schedule):
        self.trainer.schedule = schedule
        self.trainer.train_step(x, y)
        self.trainer.history.append({"epoch": self.trainer.step, "step": self.trainer.step})

    # --- What must hold ---------------------------------------------------------------------------------------

    @invariant()
    def indices_are_sorted_unique_and_in_range(self):
        for layer in self.layers.values():
            (n_out, n_in), matrix = layer.matrix.shape, layer.matrix
            assert isinstance(matrix, {"condensed": CondensedMatrix, "csr": CSRMatrix}[self.storage])
            if isinstance(matrix, CondensedMatrix):
                rows, lists = matrix.rows.tolist(), matrix.indices.tolist()
                assert rows == sorted(set(rows))
                assert all(0 <= row < n_out for row in rows)
            else:
                pointers = matrix.indptr.tolist()
                lists = [matrix.indices.tolist()[i:j] for i, j in itertools.pairwise(pointers)]
                assert (len(lists), pointers[-1]) == (n_out, matrix.values.size)
            for inputs in lists:
                assert inputs == sorted(set(inputs))
                assert all(0 <= i < n_in for i in inputs)

    @invariant()
    def stored_arrays_belong_together(self):
        for layer in self.layers.values():
            assert layer.weight.values is layer.matrix.values
            assert np.isfinite(layer.weight.values).all()
            for state in layer.weight.state.values():
                assert state.shape == layer.matrix.values.shape

    @invariant()
    def the_budget_holds_and_what_is_inactive_is_zero(self):
        for layer in self.layers.values():
            mask = layer.matrix.mask()
            assert mask.sum() == layer.matrix.nnz <= layer.budget
            assert not layer.matrix.to_dense()[~mask].any()

    @invariant()
    def a_constant_fan_in_leaves_enough_neurons(self):
        if self.constant:
            for layer in self.layers.values():
                mask = layer.matrix.mask()
                assert has_constant_fan_in(mask)
                assert mask.any(axis=1).sum() >= floor(layer)

    @invariant()
    def the_output_layer_is_not_ablated(self):
        assert not (self.needed & ~self.layers["fc3"].matrix.mask().any(axis=1)).any()

    @invariant()
    def forward_and_gradients_are_those_of_the_masked_dense_network(self):
        x, y = batch(0)
        weights, biases = masked_network(self.trainer)
        loss, logits, weight_grads, bias_grads = masked_gradients(weights, biases, x, y)
        got = self.trainer.model.forward(x, training=True)
        got_loss, grad = softmax_cross_entropy(got, y)
        self.trainer.model.backward(grad)
        assert got_loss == pytest.approx(loss, rel=1e-9)
        assert_close({"logits": got}, {"logits": logits})
        for name, layer in self.layers.items():
            mask = layer.matrix.mask()
            assert_close(
                {"weight": layer.weight.grad.reshape(-1), "bias": layer.bias.grad},
                {"weight": weight_grads[name][mask], "bias": bias_grads[name]},
            )


# --- The same with dense arrays ---------------------------------------------------------------------------------


def batch(seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((SIZES[0], BATCH)), rng.integers(0, SIZES[-1], BATCH)


def floor(layer):
    """The fewest neurons that can hold the budget."""
    return math.ceil(layer.budget / layer.matrix.shape[1])


def converted(matrix, storage):
    if storage == "dense and back":
        dense = DenseMatrix(matrix.to_dense())
        return type(matrix).from_dense(dense.to_dense(), matrix.mask())
    if storage == "csr" and isinstance(matrix, CondensedMatrix):
        return matrix.to_csr()
    return {"csr": CSRMatrix, "condensed": CondensedMatrix}[storage].from_dense(matrix.to_dense(), matrix.mask())


def snapshot(trainer):
    """Copies of everything that is trained or remembered, weights as (n_out, n_in), by name."""
    arrays = {}
    for name, layer in models.weight_layers(trainer.model).items():
        arrays |= {f"{name}.{key}": array for key, array in dense_arrays(layer).items()}
        arrays[f"{name}.mask"] = layer.matrix.mask()
        arrays[f"{name}.bias"] = layer.bias.values.copy()
        arrays |= {f"{name}.bias.{key}": array.copy() for key, array in layer.bias.state.items()}
    return arrays


def masked_network(trainer):
    layers = models.weight_layers(trainer.model).items()
    weights = {name: np.where(layer.matrix.mask(), layer.matrix.to_dense(), 0) for name, layer in layers}
    return weights, {name: layer.bias.values for name, layer in layers}


def masked_gradients(weights, biases, x, y):
    """Loss, logits and the gradients of dense weights and biases, by the formulas of a ReLU network."""
    activations, names = [x], list(weights)
    for name in names:
        z = weights[name] @ activations[-1] + biases[name]
        activations.append(z if name == names[-1] else np.maximum(z, 0))
    loss, delta = softmax_cross_entropy(activations[-1], y)
    weight_grads, bias_grads = {}, {}
    for i in reversed(range(len(names))):
        weight_grads[names[i]] = delta @ activations[i].T
        bias_grads[names[i]] = delta.sum(axis=1, keepdims=True)
        delta = (weights[names[i]].T @ delta) * (activations[i] > 0)
    return loss, activations[-1], weight_grads, bias_grads


def masked_step(trainer, x, y):
    """What one optimizer step makes of the snapshot, and the dense gradients."""
    weights, biases = masked_network(trainer)
    *_, weight_grads, bias_grads = masked_gradients(weights, biases, x, y)
    arrays, optimizer = snapshot(trainer), trainer.optimizer
    step = optimizer.step_count + 1 if isinstance(optimizer, AdamW) else None
    for name in weights:
        mask = arrays[f"{name}.mask"]
        for key, value_key, grad in (
            (name, f"{name}.weight", weight_grads[name] * mask),
            (f"{name}.bias", f"{name}.bias", bias_grads[name]),
        ):
            values, zeros = arrays[value_key], np.zeros_like(grad)
            if step is None:
                g = grad + optimizer.weight_decay * values
                velocity = optimizer.momentum * arrays.get(f"{key}.velocity", zeros) + g
                arrays[f"{key}.velocity"] = velocity
                arrays[value_key] = values - RATE * (g + optimizer.momentum * velocity)
            else:
                mean = 0.9 * arrays.get(f"{key}.mean", zeros) + 0.1 * grad
                square = 0.999 * arrays.get(f"{key}.square", zeros) + 0.001 * grad**2
                arrays[f"{key}.mean"], arrays[f"{key}.square"] = mean, square
                direction = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
                arrays[value_key] = values - RATE * (optimizer.weight_decay * values + direction)
    return arrays, weight_grads


def oracle(method, weight, mask, grad, fraction, options):
    if isinstance(method, RigL):
        return naive.rigl(weight, mask, grad, fraction)
    if isinstance(method, SRigL):
        rules = {"gamma_sal": method.gamma_sal, "revive": method.revive, "ablate": options["ablate"]}
        return naive.srigl(weight, mask, grad, fraction, options["budget"], **rules)
    return None


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].tobytes() == array.tobytes(), name


def assert_close(got, expected):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-7, atol=1e-10, err_msg=name)


def search(max_examples, **options):
    return settings(
        max_examples=examples(max_examples),
        stateful_step_count=20,
        suppress_health_check=[HealthCheck.too_slow],
        **options,
    )


TestTraining = Training.TestCase
TestTraining.settings = search(100)


@pytest.mark.parametrize("fault", FAULTS_AROUND, ids=lambda fault: fault.words)
def test_the_state_machine_catches_the_fault(fault: Fault):
    options = {"phases": [Phase.generate], "database": None, "report_multiple_bugs": False}
    with fault.planted(), pytest.raises(AssertionError):
        run_state_machine_as_test(Training, settings=search(60, **options))
