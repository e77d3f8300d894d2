"""What the commands print: their results as tables."""

from typing import Any

from rich.table import Table

_COUNTS, _SIZES = ("removed", "constants", "nnz", "zeros"), ("bytes", "new_bytes")  # of an exported layer


def run_table(result: dict[str, Any]) -> Table:
    """The layers of a run, see :func:`sparsekit.training.run.train_run`."""
    table = _table("layer|shape|fan-in|active neurons|stored weights|sparsity")
    table.title = f"{result['method']} on {result['dataset']}"
    for layer in result["layers"]:
        table.add_row(layer["name"], _shape(layer["shape"]), *_topology(layer))
    return table


def comparison_table(rows: list[dict[str, Any]]) -> Table:
    """One row for each method and sparsity, see :func:`sparsekit.comparison.compare`."""
    table = _table(
        "method|sparsity|test accuracy %|stored weights|fan-in|active neurons|s an epoch|weights KiB|peak MiB"
        "|us a sample, batch 1|us a sample, batch 256"
    )
    table.caption = (
        "Inference: microseconds a sample of this storage, and how many times faster it is than the same "
        "weights dense (BLAS) / in SciPy CSR.\nWeights KiB: values, indices, gradients, optimizer state. "
        "Stored weights, fan-in, active neurons and inference: the first seed's."
    )
    for row in rows:
        spread = f" ± {100 * row['test_accuracy_std']:.2f}" if len(row["seeds"]) > 1 else ""
        table.add_row(
            row["label"],
            f"{100 * row['sparsity']:g} %",
            f"{100 * row['test_accuracy_mean']:.2f}{spread}",
            f"{row['stored_weights']:,}",
            " / ".join(_fan_in(layer) for layer in row["layers"]),
            " / ".join(str(layer["n_active"]) for layer in row["layers"]),
            f"{row['seconds_per_epoch_mean']:.3g}",
            f"{row['weight_bytes_mean'] / 1024:,.0f}",
            f"{row['peak_memory_bytes_mean'] / 2**20:.0f}",
            *(_speed(row, batch) for batch in (1, 256)),
        )
    return table


def inspection_tables(result: dict[str, Any]) -> list[Table]:
    """What is in a network and what it costs, see :func:`sparsekit.inspection.inspect_run`."""
    topology = _table("layer|weight|fan-in|active neurons|stored weights|sparsity|ever active (ITOP)")
    topology.title = f"{result['model']}, {result['method']} on {result['dataset']}"
    for layer in result["layers"]:
        topology.add_row(layer["name"], _shape(layer["weight_shape"]), *_topology(layer), _percent(layer["itop"]))
    cost = _table("layer|FLOPs a sample|if dense|share|KiB condensed|KiB CSR|KiB dense")
    cost.title = "Cost of a prediction, and bytes of the weights"
    cost.caption = "A multiplication and an addition are two FLOPs."
    for layer in result["layers"]:
        cost.add_row(layer["name"], *_cost(layer))
    cost.add_section()
    cost.add_row("all", *_cost(result))
    return [topology, cost]


def evaluation_tables(result: dict[str, Any]) -> list[Table]:
    """How well a network does, over all and by class, see :func:`sparsekit.evaluation.evaluate_run`."""
    overall = _table("data|samples|loss|accuracy|ms a batch|batch")
    overall.title = result["dataset"]
    parts = {name: result[name] for name in ("test", "validation") if name in result}
    classes = _table("|".join(["class", *(f"{name} samples|{name} accuracy" for name in parts)]))
    for name, part in parts.items():
        milliseconds = f"{part['milliseconds_per_batch']:.3g}"
        overall.add_row(
            name, f"{part['n_samples']:,}", f"{part['loss']:.4f}", _percent(part["accuracy"], 2), milliseconds,
            str(part["batch_size"]),
        )  # fmt: skip
    for rows in zip(*(part["classes"] for part in parts.values()), strict=True):
        cells = ((f"{row['n_samples']:,}", _percent(row["accuracy"], 2)) for row in rows)
        classes.add_row(rows[0]["name"], *(text for pair in cells for text in pair))
    return [overall, classes]


def export_table(rows: list[dict[str, Any]]) -> Table:
    """What became of each layer, see :func:`sparsekit.export.export_classifier`."""
    table = _table(
        "layer|shape|exported|storage|neurons removed|constants kept|stored weights|zeros|KiB before|KiB after"
    )
    table.caption = (
        "Constants: neurons that always give the same value and cannot be removed exactly. "
        "Zeros: stored in the place of weights."
    )
    for row in rows:
        shapes = _shape(row["shape"]), _shape(row["new_shape"])
        table.add_row(row["name"], *shapes, row["storage"], *_exported(row))
    table.add_section()
    totals = {key: sum(row[key] for row in rows) for key in (*_COUNTS, *_SIZES)}
    table.add_row("all", "", "", "", *_exported(totals))
    return table


def _table(headings: str) -> Table:
    """Headings are divided by |; all columns but the first hold numbers."""
    table = Table()
    for i, heading in enumerate(headings.split("|")):
        table.add_column(heading, justify="right" if i else "left")
    return table


def _topology(layer: dict[str, Any]) -> tuple[str, ...]:
    active = f"{layer['n_active']} of {layer['shape'][0]}"
    return _fan_in(layer), active, f"{layer['nnz']:,}", _percent(layer["sparsity"])


def _cost(row: dict[str, Any]) -> tuple[str, ...]:
    flops, dense = row["flops"], row["dense_flops"]
    sizes = (_kib(row["bytes"][storage]) for storage in ("condensed", "csr", "dense"))
    return f"{flops:,}", f"{dense:,}", _percent(flops / dense), *sizes


def _exported(row: dict[str, Any]) -> tuple[str, ...]:
    return *(f"{row[key]:,}" for key in _COUNTS), *(_kib(row[key]) for key in _SIZES)


def _shape(shape: list[int]) -> str:
    return " x ".join(map(str, shape))


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{share:.{digits}%}"


def _kib(count: int) -> str:
    return f"{count / 1024:,.1f}"


def _fan_in(layer: dict[str, Any]) -> str:
    if layer["fan_in_min"] == layer["fan_in_max"]:
        return str(layer["fan_in"])
    return f"{layer['fan_in_min']}-{layer['fan_in_max']}"


def _speed(row: dict[str, Any], batch: int) -> str:
    stored, dense, csr = (row[f"inference_{batch}_{storage}_us"] for storage in ("stored", "dense", "csr"))
    return f"{stored:.3g} ({dense / stored:.1f}x / {csr / stored:.1f}x)"
