"""Exported networks on disk: one file that has all it takes to predict.

It is a safetensors file. It holds the arrays of the network, sparse weights in their own format; `extra.mean` and
`extra.std` of its inputs; and in `extra.about`, bytes of JSON, the architecture, the shape of a sample and the
names of the classes.
"""

import json
from pathlib import Path

import numpy as np

from sparsekit import __version__
from sparsekit.checks import require_choice, require_integer
from sparsekit.data import Standardization
from sparsekit.errors import InputError
from sparsekit.export.architecture import build, describe, n_values
from sparsekit.models import weight_layers
from sparsekit.nn import Sequential
from sparsekit.training import Classifier
from sparsekit.training.arrays import DAMAGE, one_line, read_arrays, write_arrays
from sparsekit.training.model_file import fill_model, model_arrays

FORM = "network-1"
_ROOM = 2**24  # values a network may have that are not in its file: those of neurons without weights and bias


class ExportedClassifier(Classifier):
    """A network that was exported; it predicts like any :class:`Classifier`.

    Parameters
    ----------
    class_names : the name of each class

    The others are those of :class:`Classifier`.
    """

    def __init__(
        self,
        model: Sequential,
        standardization: Standardization,
        sample_shape: tuple[int, ...],
        dtype: np.dtype | type,
        class_names: tuple[str, ...],
    ) -> None:
        super().__init__(model, standardization, sample_shape, dtype)
        self.class_names = tuple(class_names)

    def save(self, path: str | Path) -> None:
        """Write the file that :func:`load_exported` reads, atomically."""
        about = {
            "sparsekit_version": __version__,
            "network": describe(self.model),
            "dtype": self.dtype.name,
            "sample_shape": self.sample_shape,
            "class_names": self.class_names,
        }
        extra = {
            "mean": self.standardization.mean,
            "std": self.standardization.std,
            "about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
        }
        write_arrays(path, FORM, model_arrays(self.model, extra))


def load_exported(path: str | Path) -> ExportedClassifier:
    """Read an exported network; `load_exported(path).predict(x)` classifies samples x (n, *sample_shape).

    Samples are unscaled. The network only predicts: its sparse weights are read-only.

    Raises
    ------
    InputError
        If the file is missing, damaged or no exported network.
    """
    arrays = read_arrays(path, FORM)
    try:
        about = json.loads(arrays["extra.about"].tobytes())
        dtype = np.dtype(require_choice("dtype", about["dtype"], ("float32", "float64")))
        if n_values(about["network"]) > _ROOM + sum(array.size for array in arrays.values()):
            raise InputError("it describes a network that is far larger than what it holds")
        model = build(about["network"], dtype)
        extra = fill_model(path, model, arrays)
        standardization = Standardization(extra["mean"], extra["std"])
        shape = tuple(require_integer("sample_shape", size, 1) for size in about["sample_shape"])
        names = tuple(map(str, about["class_names"]))
        _require_fitting(model, standardization, shape)
        exported = ExportedClassifier(model, standardization, shape, dtype, names)
    except DAMAGE as error:
        raise InputError(one_line(f"{path} is damaged: {error}")) from None
    for layer in weight_layers(model).values():
        layer.freeze()
    return exported


def _require_fitting(model: Sequential, inputs: Standardization, shape: tuple[int, ...]) -> None:
    """Refuse a network that does not take the samples it says."""
    if inputs.mean.ndim != len(shape) or len(inputs.mean) != shape[0]:
        raise InputError(f"mean has shape {inputs.mean.shape}, which is not that of samples {shape}")
    model.output_shape(shape)
