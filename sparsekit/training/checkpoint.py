"""Checkpoints: a training on disk between two epochs, to go on from as if it had never stopped.

A checkpoint holds the network with its sparse weights in their own format, the optimizer with its memory of every
parameter, the state of every random source and callback, the step, the history and what tells the training data
from others.
Rates, schedules and the topology method are not in it: they are those of the trainer that goes on, and the methods
here remember nothing from one update to the next.
"""

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from sparsekit import __version__
from sparsekit.errors import InputError
from sparsekit.models import weight_layers
from sparsekit.nn import Module
from sparsekit.training.arrays import DAMAGE, one_line, read_arrays, write_arrays
from sparsekit.training.callbacks import Callback
from sparsekit.training.history import History
from sparsekit.training.model_file import fill_model, misfit, model_arrays
from sparsekit.training.trainer import Trainer

FORM = "checkpoint-1"
_FINGERPRINT = {"sample_shape", "n_classes", "n_train", "sha256"}
_POSITIONS = {"MT19937": 624, "Philox": 4}  # numbers made in advance; NumPy reads on from any place it is told


def save_checkpoint(path: str | Path, trainer: Trainer, config: str = "") -> None:
    """Write what :func:`load_checkpoint` needs, atomically: a process killed on the way leaves the old file.

    Parameters
    ----------
    trainer : between two epochs: in a callback's `on_epoch_end`, or after `fit`
    config : any text, to be given back by :func:`load_checkpoint`

    Raises
    ------
    InputError
        If the trainer is in the middle of an epoch, or the optimizer holds anything but numbers, words and the
        `state` of the parameters.
    """
    if trainer.fingerprint is None or trainer.step != len(trainer.history) * trainer.steps_per_epoch:
        raise InputError(
            f"trainer must be between two epochs of fit to be saved, not at step {trainer.step} with "
            f"{len(trainer.history)} epochs of {trainer.steps_per_epoch} steps done"
        )
    state = {
        "version": __version__,
        "config": config,
        "layers": _layers(trainer.model),
        "optimizer": type(trainer.optimizer).__name__,
        "optimizer_attributes": _plain_attributes(trainer.optimizer),
        "batch_size": trainer.batch_size,
        "fingerprint": trainer.fingerprint,
        "random": {name: _random_state(rng) for name, rng in _random_sources(trainer).items()},
        "step": trainer.step,
        "history": trainer.history.rows,
    }
    arrays = {"state": np.frombuffer(json.dumps(state).encode(), dtype=np.uint8)}
    for name, parameter in trainer.model.named_parameters().items():
        arrays |= {f"optimizer.{name}.{key}": array for key, array in parameter.state.items()}
    for callback in trainer.callbacks:
        arrays |= {f"{_prefix(callback)}{key}": array for key, array in callback.state().items()}
    write_arrays(path, FORM, model_arrays(trainer.model, arrays))


def load_checkpoint(path: str | Path, trainer: Trainer) -> str:
    """Put a trainer where :func:`save_checkpoint` left one; its `fit` trains the epochs that are left.

    On one thread the network ends with the same bits as in a training that was not stopped, if this trainer and
    its network were built like the first ones. `fit` refuses other training data.

    Parameters
    ----------
    trainer : of a network of the same architecture, with the same kind of optimizer and the same batch size

    Returns
    -------
    str
        The `config` that was given to :func:`save_checkpoint`.

    Raises
    ------
    InputError
        If the file is missing, damaged or no checkpoint, or if it does not fit the trainer.
    """
    arrays = read_arrays(path, FORM)
    try:
        return _restore(path, arrays, trainer)
    except InputError as error:
        raise InputError(one_line(error)) from error
    except DAMAGE as error:
        raise InputError(one_line(f"{path} is damaged: {type(error).__name__}: {error}")) from error


def _restore(path: str | Path, arrays: dict[str, np.ndarray], trainer: Trainer) -> str:
    state = json.loads(arrays["extra.state"].tobytes())
    _check_layers(path, state["layers"], _layers(trainer.model))
    _check_trainer(path, state, trainer)
    _check_plausible(path, state, arrays, trainer)
    extra = fill_model(path, trainer.model, arrays)
    for name, parameter in trainer.model.named_parameters().items():
        parameter.state = _part_of(extra, f"optimizer.{name}.")
        parameter.grad = None
    for callback in trainer.callbacks:
        if state_of_callback := _part_of(extra, _prefix(callback)):
            callback.restore(state_of_callback)
    for name, rng in _random_sources(trainer).items():
        rng.bit_generator.state = state["random"][name]
    vars(trainer.optimizer).update(state["optimizer_attributes"])
    trainer.go_on_from(History(state["history"]), state["step"], state["fingerprint"])
    return state["config"]


def _part_of(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _prefix(callback: Callback) -> str:
    return f"callback.{type(callback).__name__}."


def _check_layers(path: str | Path, saved: dict[str, str], own: dict[str, str]) -> None:
    for name in saved | own:
        old, new = saved.get(name, "missing"), own.get(name, "missing")
        if old != new:
            raise misfit(path, f"its layer {name!r} is {old}, not {new}")


def _check_trainer(path: str | Path, state: dict[str, Any], trainer: Trainer) -> None:
    """Compare what the state has no meaning without."""
    saved_random = {name: rng["bit_generator"] for name, rng in state["random"].items()}
    random = {name: _random_state(rng)["bit_generator"] for name, rng in _random_sources(trainer).items()}
    for what, saved, own in (
        ("optimizer", state["optimizer"], type(trainer.optimizer).__name__),
        ("batch_size", state["batch_size"], trainer.batch_size),
        ("random sources", saved_random, random),
    ):
        if saved != own:
            raise InputError(f"{path} does not fit this trainer: {what} must be {saved}, not {own}")


def _check_plausible(
    path: str | Path, state: dict[str, Any], arrays: dict[str, np.ndarray], trainer: Trainer
) -> None:
    """Refuse what no training has left, before it changes anything and is stumbled over much later."""
    history, step, fingerprint = state["history"], state["step"], state["fingerprint"]
    numbers = [value for row in history for value in row.values()]
    sources, own = _random_sources(trainer), _plain_attributes(trainer.optimizer)
    saved = state["optimizer_attributes"]
    for name, rng in sources.items():
        copy.deepcopy(rng.bit_generator).state = state["random"][name]
    for what, is_plausible in (
        ("config", isinstance(state["config"], str)),
        ("fingerprint", _is_fingerprint(fingerprint)),
        ("history", isinstance(history, list) and all(isinstance(value, int | float) for value in numbers)),
        ("step", type(step) is int and step == (history[-1]["step"] if history else 0)),
        ("step", len(history) == (history[-1]["epoch"] if history else 0) and step % max(len(history), 1) == 0),
        ("optimizer", own.keys() == saved.keys() and all(_is_like(own[name], saved[name]) for name in own)),
        ("optimizer", all(_fits_its_parameter(name, arrays, trainer) for name in arrays)),
        ("random sources", all(_has_a_place(state["random"][name]) for name in sources)),
    ):
        if not is_plausible:
            raise InputError(f"{path} is damaged: no training leaves such {what}")


def _is_fingerprint(saved: dict[str, Any]) -> bool:
    """Whether it tells training data from others, as the trainer does."""
    if saved.keys() != _FINGERPRINT or not re.fullmatch("[0-9a-f]{64}", saved["sha256"]):
        return False
    return all(type(number) is int for number in (saved["n_classes"], saved["n_train"], *saved["sample_shape"]))


def _is_like(own: object, saved: object) -> bool:
    """Whether a saved attribute of an optimizer may be what its own became: a count is one still, a share too."""
    if own is None:
        return isinstance(saved, int | float | str | None)
    if type(own) is int:
        return type(saved) is int and (own < 0 or 0 <= saved < 2**63)
    if type(own) is float:
        return type(saved) in (int, float) and (0 <= saved < 1 or not 0 <= own < 1)  # pyright: ignore[reportOperatorIssue]
    return type(saved) is type(own)


def _fits_its_parameter(name: str, arrays: dict[str, np.ndarray], trainer: Trainer) -> bool:
    """Whether an array, if the optimizer keeps it of a parameter, has the shape and dtype of that."""
    for parameter in trainer.model.named_parameters():
        if name.startswith(f"extra.optimizer.{parameter}."):
            values = arrays[parameter if parameter in arrays else f"{parameter}.values"]
            return (arrays[name].shape, arrays[name].dtype) == (values.shape, values.dtype)
    return True


def _has_a_place(random: dict[str, Any]) -> bool:
    """Whether a random source that makes numbers in advance stands within them."""
    kind = random["bit_generator"]
    place = random["state"]["pos"] if kind == "MT19937" else random["buffer_pos"] if kind == "Philox" else 0
    return 0 <= place <= _POSITIONS.get(kind, 0)


def _layers(model: Module) -> dict[str, str]:
    """What every layer with weights is, in words: arrays of a sparse weight do not tell its full shape."""
    return {
        name: f"a {type(layer.matrix).__name__} {layer.weight_shape}"
        + (f" with a budget of {layer.budget}" if layer.is_sparse else "")
        for name, layer in weight_layers(model).items()
    }


def _plain_attributes(optimizer: object) -> dict[str, int | float | str]:
    """An optimizer's settings and counters."""
    for name, value in vars(optimizer).items():
        if not isinstance(value, int | float | str | None):
            kind, found = type(optimizer).__name__, type(value).__name__
            raise InputError(f"optimizer must hold numbers and words only, but {kind}.{name} is a {found}")
    return vars(optimizer)


def _random_sources(trainer: Trainer) -> dict[str, np.random.Generator]:
    """Every random source of a training by name."""
    sources = {"batches": trainer.batch_rng, "topology": trainer.topology_rng}
    if trainer.augmentation is not None:
        sources["augmentation"] = trainer.augmentation.rng
    for name, module in trainer.model.named_modules():
        rng = getattr(module, "rng", None)
        if isinstance(rng, np.random.Generator):
            sources[f"module {name}"] = rng
    return sources


def _random_state(rng: np.random.Generator) -> dict[str, Any]:
    """The state as JSON has it; some bit generators keep theirs in arrays."""
    return json.loads(json.dumps(rng.bit_generator.state, default=np.ndarray.tolist))
