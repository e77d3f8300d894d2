"""What is in a trained network: its layers, what a prediction and a training step cost, how its masks evolved."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsekit import counting
from sparsekit.atomic import atomic_path
from sparsekit.errors import InputError
from sparsekit.models import weight_layers
from sparsekit.training.evolution import read_evolution
from sparsekit.training.folder import EVOLUTION
from sparsekit.training.run import Run, build_topology, load_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Inspection:
    """What :func:`inspect_run` finds.

    Attributes
    ----------
    evolution : rows of :class:`sparsekit.training.MaskEvolution`; None where they were not recorded
    result : numbers, by name

        dataset, model, method, sparsity : of the run
        layers : one row for each layer with weights, in forward order: the keys of
            :func:`sparsekit.counting.layer_summary`, and

            weight_shape : (out, in) or (out, in, height, width)
            flops, dense_flops : of a prediction for one sample, with the stored weights and with all of them
            bytes : {"dense", "csr", "condensed"}, see :func:`sparsekit.counting.storage_bytes`
            itop : share of the positions that were active at any time of the training; 1 for dense layers, None
                where it was not recorded
            initial_n_active : neurons with weights before the first step; None where it was not recorded

        flops, dense_flops : of a prediction for one sample
        training_flops, dense_training_flops : of a training step for one sample
        total_training_flops, total_dense_training_flops : of the whole training
        bytes, itop : of the whole network
        n_updates : topology updates of the training; None where they were not recorded
    """

    result: dict[str, Any]
    evolution: list[dict[str, Any]] | None

    def plot(self) -> "Figure":
        """A figure of the active neurons of each layer, and of the evolution of the masks."""
        from sparsekit.figures import inspection_figure

        about = self.result
        sparse = f", {about['sparsity']:.1%} sparse" if about["sparsity"] else ""
        title = f"{about['model']} on {about['dataset']}, {about['method']}{sparse}"
        return inspection_figure(about["layers"], self.evolution, title)

    def save_plot(self, path: str | Path) -> None:
        """Write the figure, atomically; the suffix says in which format."""
        if Path(path).suffix not in _PICTURES:
            raise InputError(f"out must be a file that ends in {', '.join(_PICTURES)}, not {path}")
        with atomic_path(path) as temporary:
            self.plot().savefig(temporary)


def inspect_run(folder: str | Path) -> Inspection:
    """Look into a finished run, also one of an earlier version that has not recorded the evolution of its masks.

    Raises
    ------
    InputError
        If the folder is no such run.
    """
    run = load_run(folder)
    path = Path(folder) / EVOLUTION
    evolution = read_evolution(path) if path.is_file() else None
    layers = _layers(run, evolution)
    totals = {key: sum(layer[key] for layer in layers) for key in ("flops", "dense_flops")}
    result = {key: getattr(run.config, key) for key in ("dataset", "model", "method")}
    result |= {"sparsity": run.result["sparsity"], "layers": layers} | totals
    result |= _training_flops(run, totals["flops"], totals["dense_flops"])
    result["bytes"] = {key: sum(layer["bytes"][key] for layer in layers) for key in layers[0]["bytes"]}
    result["itop"] = _mean_itop(layers)
    result["n_updates"] = None if evolution is None else len({row["step"] for row in evolution if row["step"]})
    return Inspection(result, evolution)


def _layers(run: Run, evolution: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    sample_shape = run.classifier.sample_shape
    flops = counting.inference_flops(run.model, sample_shape)
    dense_flops = counting.inference_flops(run.model, sample_shape, dense=True)
    rows = counting.layer_summary(run.model)
    for row, layer in zip(rows, weight_layers(run.model).values(), strict=True):
        name = row["name"]
        recorded = [other for other in evolution or [] if other["layer"] == name]
        row |= {
            "weight_shape": list(layer.weight_shape),
            "flops": flops[name],
            "dense_flops": dense_flops[name],
            "bytes": counting.storage_bytes(layer.matrix),
            "itop": recorded[-1]["itop"] if recorded else None,
            "initial_n_active": recorded[0]["n_active"] if recorded else None,
        }
        if not layer.is_sparse:
            row |= {"itop": 1.0, "initial_n_active": row["n_active"]}
    return rows


def _training_flops(run: Run, sparse: int, dense: int) -> dict[str, float]:
    topology = build_topology(run.config)
    looks_at_gradients = topology is not None and topology.needs_grad
    steps = {
        "training_flops": counting.training_flops(
            sparse, dense, run.config.delta_t if looks_at_gradients else None
        ),
        "dense_training_flops": counting.training_flops(dense, dense, None),
    }
    n_samples = run.history.rows[-1]["step"] * run.config.batch_size
    return steps | {f"total_{key}": n_samples * flops for key, flops in steps.items()}


def _mean_itop(layers: list[dict[str, Any]]) -> float | None:
    """Over all positions of the network."""
    if any(layer["itop"] is None for layer in layers):
        return None
    sizes = [layer["shape"][0] * layer["shape"][1] for layer in layers]
    return sum(size * layer["itop"] for size, layer in zip(sizes, layers, strict=True)) / sum(sizes)
