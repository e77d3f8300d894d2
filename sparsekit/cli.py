"""The command line: `sparsekit train`, `sparsekit compare` and `sparsekit bench`.

Every setting of a run is one flag, made from its description in :class:`sparsekit.config.RunConfig`.
"""

import inspect
import json
import sys
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from sparsekit import __version__
from sparsekit.atomic import write_text
from sparsekit.config import RunConfig, choices, kind, make_config, read_toml
from sparsekit.errors import DivergedError, InputError, RunError

_INTERRUPTED = 130
_METHODS = "dense, static, set, rigl, srigl:gamma_sal=0, srigl"

Number = TypeVar("Number", int, float)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Dynamic sparse training with constant fan-in: stored sparse, trained sparse.",
)

Out = Annotated[Path | None, typer.Option("--out", help="Folder to write to (default: a new one in runs/).")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier command wrote to --out.")]
Config = Annotated[Path | None, typer.Option("--config", help="TOML file of settings; flags override it.")]
Json = Annotated[Path | None, typer.Option("--json", help="File to write the results to, as one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors, and show no progress bar.")]


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2, never a traceback."""
    try:
        code = app(standalone_mode=False) or 0
        if code == _INTERRUPTED:  # Typer turns Ctrl-C into this code without a word
            _fail("interrupted", _INTERRUPTED)
        sys.exit(code)
    except InputError as error:
        _fail(error, 2)
    except (DivergedError, RunError) as error:
        _fail(error, 1)
    except MemoryError as error:
        _fail(f"not enough memory: {error}", 1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", _INTERRUPTED)
    except OSError as error:
        _fail(error, 1)
    except Exception as error:
        message = getattr(error, "format_message", None)
        if message is None:  # not a usage error of the command-line library: a bug
            raise
        if not message():  # no command was named; the help is printed already
            sys.exit(2)
        _fail(message(), 2)


def _fail(message: object, code: int) -> None:
    line = " ".join(str(message).split())
    print(f"sparsekit: error: {line}", file=sys.stderr)
    sys.exit(code)


def _with_settings(leave_out: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one flag for every setting of a run; those that are set arrive in `settings`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        names = [name for name in RunConfig.model_fields if name not in leave_out]

        def with_flags(**arguments: Any) -> None:
            settings = {name: arguments.pop(name) for name in names}
            command(settings={name: value for name, value in settings.items() if value is not None}, **arguments)

        own = [p for p in inspect.signature(command).parameters.values() if p.name != "settings"]
        flags = [_flag(name) for name in names]
        with_flags.__signature__ = inspect.Signature(own + flags)  # pyright: ignore[reportFunctionMemberAccess]
        with_flags.__name__ = command.__name__
        with_flags.__doc__ = command.__doc__
        return with_flags

    return decorate


_PANEL_FROM = {  # the setting that opens each group of flags in the help
    "dataset": "Data",
    "model": "Network",
    "method": "Topology",
    "epochs": "Training",
    "seed": "Seed and machine",
}


@cache
def _panels() -> dict[str, str]:
    """The group of every setting, in the order of :class:`RunConfig`."""
    panels, panel = {}, ""
    for name in RunConfig.model_fields:
        panel = _PANEL_FROM.get(name, panel)
        panels[name] = panel
    return panels


def _flag(name: str) -> inspect.Parameter:
    field = RunConfig.model_fields[name]
    is_bool = kind(name) == "boolean"
    text = field.description or ""
    if choices(name):
        text += f": {', '.join(choices(name))}"
    default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    if default not in (None, ""):
        text += f" (default: {str(default).lower() if is_bool else default})"
    dashed = name.replace("_", "-")
    declaration = f"--{dashed}/--no-{dashed}" if is_bool else f"--{dashed}"
    metavar = {"boolean": None, "integer": "INT", "number": "FLOAT", "array": "A,B"}.get(kind(name), "TEXT")
    option = typer.Option(declaration, help=text, metavar=metavar, rich_help_panel=_panels()[name])
    annotation = Annotated[(bool if is_bool else str) | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
@_with_settings()
def train(
    settings: dict[str, Any],
    config: Config = None,
    out: Out = None,
    overwrite: Overwrite = False,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Train one network and write its run folder: config.toml, history.csv, model, results and figures."""
    from sparsekit.training.run import train_run

    _check_json(json_file)
    chosen = make_config(read_toml(config) if config else {}, settings)
    sparsity = "" if chosen.method == "dense" else f"-{chosen.sparsity:g}"
    folder = out or _new_folder(f"{Path(chosen.dataset).stem}-{chosen.method}{sparsity}-seed{chosen.seed}")
    run = train_run(chosen, folder, overwrite=overwrite, progress=_show_progress(quiet))
    _write_json(json_file, run.result)
    if not quiet:
        _console().print(_run_table(run.result))
        print(
            f"test accuracy {run.result['test_accuracy']:.2%}, "
            f"{run.result['seconds_per_epoch']:.3g} s an epoch, "
            f"peak memory {run.result['peak_memory_bytes'] / 2**20:.0f} MiB, run in {folder}"
        )


@app.command()
@_with_settings(leave_out=("method", "sparsity", "seed"))
def compare(
    settings: dict[str, Any],
    methods: Annotated[
        str | None,
        typer.Option(
            help=f"Methods to compare, each METHOD or METHOD:setting=value, no comma in it (default: {_METHODS}).",
            metavar="A,B,...",
        ),
    ] = None,
    sparsities: Annotated[
        str | None,
        typer.Option("--sparsities", "--sparsity", help="Sparsities (default: 0.9).", metavar="A,B,..."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", "--seed", help="Seeds (default: 0).", metavar="A,B,...")
    ] = None,
    config: Config = None,
    out: Out = None,
    overwrite: Overwrite = False,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Train several methods on the same data and seeds, each in a process of its own, and print one table."""
    from sparsekit import comparison

    _check_json(json_file)
    shared = (read_toml(config) if config else {}) | settings
    # what the file says of one run is what is compared where no flag says more
    methods = methods if methods is not None else str(shared.pop("method", _METHODS))
    sparsities = sparsities if sparsities is not None else str(shared.pop("sparsity", 0.9))
    seeds = seeds if seeds is not None else str(shared.pop("seed", 0))
    name = Path(str(shared.get("dataset", RunConfig.model_fields["dataset"].default))).stem
    folder = out or _new_folder(f"compare-{name}")
    rows = comparison.compare(
        shared,
        methods.split(","),
        _numbers("sparsities", sparsities, float),
        _numbers("seeds", seeds, int),
        folder,
        overwrite=overwrite,
        progress=_show_progress(quiet),
    )
    _write_json(json_file, {"rows": rows})
    if not quiet:
        _console().print(_comparison_table(rows))
        print(f"table and runs in {folder}, picture in {folder / 'comparison.png'}")


@app.command()
def bench(
    benchmark: Annotated[str, typer.Argument(help="linear, train-step, conv, epoch or all.")] = "all",
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer cases and samples, no epochs: a minute for all.")
    ] = False,
    threads: Annotated[
        str | None,
        typer.Option(help="Thread counts (default: 1 and all processors; with --quick 1).", metavar="A,B,..."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of masks, weights and inputs.")] = 0,
    out: Out = None,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Time the sparse kernels against NumPy, SciPy and, where it is installed, PyTorch."""
    from sparsekit.bench.report import tables
    from sparsekit.bench.run import run

    _check_json(json_file)
    counts = _numbers("threads", threads, int) if threads is not None else None
    folder = out or _new_folder(f"bench-{benchmark}")
    results = run(benchmark, folder, threads=counts, quick=quick, seed=seed, progress=_show_progress(quiet))
    _write_json(json_file, results.to_json())
    if not quiet:
        for name, rows in results.rows.items():
            for table in tables(name, rows):
                _console().print(table)
        print("\n".join([*(f"{name}: {value}" for name, value in results.environment.items()), *results.notes]))
        print(f"tables and figures in {folder}")


def _show_progress(quiet: bool) -> bool:
    """Bars are for terminals; in a log file every refresh would be a line of its own."""
    return not quiet and sys.stderr.isatty()


def _numbers(name: str, text: str, kind: type[Number]) -> list[Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{name} must be numbers separated by commas, not {text!r}") from None


def _new_folder(name: str) -> Path:
    """runs/NAME, or runs/NAME-2, -3, ... where that exists."""
    folder = Path("runs") / name
    number = 2
    while folder.exists():
        folder = Path("runs") / f"{name}-{number}"
        number += 1
    return folder


def _check_json(path: Path | None) -> None:
    """Refuse a place that cannot be written to before hours of training, not after."""
    if path and (not path.absolute().parent.is_dir() or (path.exists() and not path.is_file())):
        raise InputError(f"json must name a file in a folder that exists, not {path}")


def _write_json(path: Path | None, result: dict[str, Any]) -> None:
    if path:
        write_text(path, json.dumps(result, indent=2) + "\n")


def _console() -> Console:
    """As wide as the table needs where the output is a file or a pipe."""
    return Console() if sys.stdout.isatty() else Console(width=200)


def _run_table(result: dict[str, Any]) -> Table:
    table = Table(title=f"{result['method']} on {result['dataset']}")
    for heading in ("layer", "shape", "fan-in", "active neurons", "stored weights", "sparsity"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for layer in result["layers"]:
        n_out, n_in = layer["shape"]
        active = f"{layer['n_active']} of {n_out}"
        stored = f"{layer['nnz']:,}"
        table.add_row(
            layer["name"], f"{n_out} x {n_in}", _fan_in(layer), active, stored, f"{layer['sparsity']:.1%}"
        )
    return table


def _comparison_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        caption="Inference: microseconds a sample of this storage, and how many times faster it is than the same "
        "weights dense (BLAS) / in SciPy CSR.\nWeights KiB: values, indices, gradients, optimizer state. "
        "Stored weights, fan-in, active neurons and inference: the first seed's."
    )
    headings = (
        "method,sparsity,test accuracy %,stored weights,fan-in,active neurons,s an epoch,weights KiB,peak MiB"
    )
    for heading in headings.split(","):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for batch in (1, 256):
        table.add_column(f"us a sample, batch {batch}", justify="right")
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


def _fan_in(layer: dict[str, Any]) -> str:
    if layer["fan_in_min"] == layer["fan_in_max"]:
        return str(layer["fan_in"])
    return f"{layer['fan_in_min']}-{layer['fan_in_max']}"


def _speed(row: dict[str, Any], batch: int) -> str:
    stored, dense, csr = (row[f"inference_{batch}_{storage}_us"] for storage in ("stored", "dense", "csr"))
    return f"{stored:.3g} ({dense / stored:.1f}x / {csr / stored:.1f}x)"
