"""From a trained network to an exported one."""

from pathlib import Path
from typing import Any

import numpy as np

from sparsekit.checks import require_choice
from sparsekit.errors import InputError
from sparsekit.export.architecture import storage_of
from sparsekit.export.classifier import ExportedClassifier, load_exported
from sparsekit.export.constants import Constants
from sparsekit.export.slimming import slimmed
from sparsekit.export.storage import store
from sparsekit.models import sparse_layers, weight_layers
from sparsekit.training import Classifier
from sparsekit.training.folder import EXPORTS
from sparsekit.training.run import load_data, load_run

_TOLERANCE = {"float32": 1e-5, "float64": 1e-10}  # of the largest logit
_SAMPLES = 256  # of the test set, whose logits are compared


def export_run(
    folder: str | Path, storage: str, out: str | Path | None = None, *, best: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Write the network of a run to one file, for :func:`load_exported`, without the neurons it can do without.

    Parameters
    ----------
    folder : of a finished run
    storage : "dense", "csr" or "condensed", for the sparse layers
    out : the file, of the suffix .safetensors; by default STORAGE.safetensors in the run folder
    best : the network of the epoch with the highest validation accuracy, not the last one
    overwrite : replace an exported network that is there already

    Returns
    -------
    dict
        file, file_bytes : what was written
        layers : what became of each layer with weights, see :func:`export_classifier`
        largest_difference : of a logit, from the trained network's, on test samples

    Raises
    ------
    InputError
        If the folder is no such run, its data cannot be loaded, the file may not be written, or the exported
        network's outputs are not those of the trained one. Then nothing is written.
    """
    require_choice("to", storage, EXPORTS)
    path = Path(folder) / EXPORTS[storage] if out is None else Path(out)
    _check_out(path, overwrite)
    run = load_run(folder, best=best)
    dataset = load_data(run.config)
    network, layers = export_classifier(run.classifier, storage, dataset.class_names)
    difference = _require_equal(run.classifier, network, dataset.x_test[:_SAMPLES])
    network.save(path)
    return {
        "file": str(path),
        "file_bytes": path.stat().st_size,
        "layers": layers,
        "largest_difference": difference,
    }


def export_classifier(
    classifier: Classifier, storage: str, class_names: tuple[str, ...]
) -> tuple[ExportedClassifier, list[dict[str, Any]]]:
    """The network without the neurons it can do without, in another storage; and what became of each layer.

    Neurons that always give the same value are removed where that is exact, see
    :mod:`sparsekit.export.constants`. Dense layers stay dense.

    Returns
    -------
    network
    rows : one for each layer with weights, in forward order
        name : dotted name
        shape, new_shape : [n_out, n_in] before and after
        storage : of the new weight
        removed : neurons that are gone
        constants : neurons that always give the same value and had to stay
        nnz : stored weights, without the `zeros`
        zeros : stored in the place of weights: dense everywhere; condensed where neurons have fewer weights than
            others, see :func:`sparsekit.export.storage.store`
        bytes, new_bytes : of the weights and their indices before and after
    """
    model = classifier.model
    constants = Constants(model, classifier.sample_shape)
    slim = slimmed(model, constants)
    nnz = {name: layer.matrix.nnz for name, layer in weight_layers(slim).items()}
    for layer in sparse_layers(slim).values():
        layer.use(store(layer.matrix.to_dense(), layer.matrix.mask(), storage))
        layer.budget = None if storage == "dense" else layer.matrix.nnz
    rows = []
    for name, new in weight_layers(slim).items():
        old = weight_layers(model)[name]
        neurons = constants.outputs[old]
        rows.append(
            {
                "name": name,
                "shape": list(old.matrix.shape),
                "new_shape": list(new.matrix.shape),
                "storage": storage_of(new.matrix),
                "removed": int(neurons.removable.sum()),
                "constants": int((neurons.constant & ~neurons.removable).sum()),
                "nnz": nnz[name],
                "zeros": new.matrix.nnz - nnz[name],
                "bytes": old.matrix.nbytes,
                "new_bytes": new.matrix.nbytes,
            }
        )
    of_inputs = classifier.standardization, classifier.sample_shape, classifier.dtype
    return ExportedClassifier(slim, *of_inputs, class_names), rows


def _check_out(path: Path, overwrite: bool) -> None:
    """Refuse a file of another suffix, and one that is there already unless it is an export to be replaced."""
    if path.suffix != ".safetensors":
        raise InputError(f"out must be a file that ends in .safetensors, not {path}")
    if path.exists() and not overwrite:
        raise InputError(f"out {path} exists already; name another file or pass --overwrite")
    if path.exists():
        load_exported(path)


def _require_equal(trained: Classifier, network: Classifier, x: np.ndarray) -> float:
    """The largest difference of a logit; refuse one that is more than rounding."""
    logits = trained.logits(x)
    difference = float(np.abs(network.logits(x) - logits).max())
    allowed = _TOLERANCE[trained.dtype.name] * float(np.abs(logits).max())
    if not difference <= allowed:
        raise InputError(
            "the exported network must give the outputs of the trained one, but they differ by "
            f"{difference:.2g}, more than {allowed:.2g}"
        )
    return difference
