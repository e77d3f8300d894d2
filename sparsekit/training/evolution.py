"""The evolution of the masks: what every topology update changes, and which positions have ever been active."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from sparsekit.atomic import write_text
from sparsekit.errors import InputError
from sparsekit.training.callbacks import Callback

_COLUMNS = {
    "step": int,
    "layer": str,
    "n_active": int,
    "nnz": int,
    "fan_in": float,
    "n_grown": int,
    "n_dropped": int,
    "n_regrown": int,
    "n_ablated": int,
    "n_revived": int,
    "itop": float,
}


_DAMAGE = (ValueError, KeyError, TypeError, csv.Error)  # what a damaged table raises


class MaskEvolution(Callback):
    """Records every topology update of a training, layer by layer.

    It keeps one bit a position for the In-Time Over-Parameterization rate: the share of a layer's positions that
    have been active at any time so far.

    Attributes
    ----------
    rows : one for each sparse layer before the first step, then one for each layer and update, with the keys

        step : optimizer steps taken
        layer : dotted name
        n_active : neurons with at least one weight
        nnz, fan_in : stored weights, and their mean number in a neuron that has any
        n_grown, n_dropped : weights active after the update and not before it, and the other way round
        n_regrown : weights pruned and taken again in the same update
        n_ablated, n_revived : neurons that lost all their weights in the update, and that had none before it
        itop : rate in [0, 1]

    Source of the rate: Liu et al., "Do We Actually Need Dense Over-Parameterization?", arXiv 2102.02887.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._seen: dict[str, np.ndarray] = {}

    def on_fit_start(self, trainer):
        for name, layer in trainer.layers.items():
            mask = layer.matrix.mask()
            if name in self._seen and self._seen[name].shape != np.packbits(mask).shape:
                raise InputError(f"evolution of layer {name!r} is not that of a mask of shape {mask.shape}")
            if name not in self._seen:
                self._record(trainer.step, name, old=mask, new=mask, n_regrown=0)

    def on_topology_update(self, trainer, layer, update):
        old = update.mask & ~update.grown | update.dropped
        self._record(trainer.step, layer, old, update.mask, int(update.regrown.sum()))

    def state(self):
        rows = np.frombuffer(self._text().encode(), dtype=np.uint8)
        return {"rows": rows} | {f"seen.{name}": bits for name, bits in self._seen.items()}

    def restore(self, arrays):
        try:
            rows = _rows(arrays["rows"].tobytes().decode())
        except _DAMAGE as error:
            raise InputError(f"evolution of the masks is damaged: {error}") from None
        seen = {name.removeprefix("seen."): bits for name, bits in arrays.items() if name != "rows"}
        for name, bits in seen.items():
            if bits.dtype != np.uint8 or bits.ndim != 1:
                raise InputError(
                    f"evolution of layer {name!r} must be a row of bits, not {bits.dtype} {bits.shape}"
                )
        self.rows, self._seen = rows, seen

    def save(self, path: str | Path) -> None:
        """Write a CSV file that :func:`read_evolution` reads, atomically."""
        write_text(path, self._text())

    def _record(self, step: int, layer: str, old: np.ndarray, new: np.ndarray, n_regrown: int) -> None:
        bits = np.packbits(new)
        self._seen[layer] = seen = self._seen.get(layer, bits) | bits
        was_active, is_active = old.any(axis=1), new.any(axis=1)
        nnz, n_active = int(new.sum()), int(is_active.sum())
        self.rows.append(
            {
                "step": step,
                "layer": layer,
                "n_active": n_active,
                "nnz": nnz,
                "fan_in": nnz / n_active if n_active else 0.0,
                "n_grown": int((new & ~old).sum()),
                "n_dropped": int((old & ~new).sum()),
                "n_regrown": n_regrown,
                "n_ablated": int((was_active & ~is_active).sum()),
                "n_revived": int((is_active & ~was_active).sum()),
                "itop": int(np.bitwise_count(seen).sum()) / new.size,
            }
        )

    def _text(self) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(_COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


def read_evolution(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a :class:`MaskEvolution` that was saved.

    Raises
    ------
    InputError
        If the file cannot be read, or is damaged.
    """
    try:
        return _rows(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except _DAMAGE as error:
        raise InputError(f"{path} is damaged: {error}") from None


def _rows(text: str) -> list[dict[str, Any]]:
    return [{key: kind(row[key]) for key, kind in _COLUMNS.items()} for row in csv.DictReader(io.StringIO(text))]
