"""The command line: `sparsekit train`, `compare`, `evaluate`, `inspect`, `export` and `bench`.

Every setting of a run is one flag, made from its description in :class:`sparsekit.config.RunConfig`.
"""

import inspect
import json
import sys
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console

from sparsekit import __version__
from sparsekit.atomic import write_text
from sparsekit.config import RunConfig, choices, kind, make_config, read_toml
from sparsekit.errors import DivergedError, InputError, RunError
from sparsekit.tables import comparison_table, evaluation_tables, export_table, inspection_tables, run_table

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
Resume = Annotated[bool, typer.Option("--resume", help="Train the unfinished run in --out to its end.")]
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


def _fail(message: object, code: int, notes_of: object = None) -> NoReturn:
    """Print one line, with what was noted on the error on its way."""
    line = " ".join("; ".join([str(message), *getattr(notes_of or message, "__notes__", [])]).split())
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
    resume: Resume = False,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Train one network and write its run folder: config.toml, history.csv, model, results and figures."""
    from sparsekit.training.run import resume_run, train_run

    _check_json(json_file)
    progress = _show_progress(quiet)
    try:
        if resume:
            folder = _folder_to_resume(out, config, overwrite, settings)
            run = resume_run(folder, threads=settings.get("threads"), progress=progress)
        else:
            chosen = make_config(read_toml(config) if config else {}, settings)
            folder = out or _folder_for(chosen)
            run = train_run(chosen, folder, overwrite=overwrite, progress=progress)
    except KeyboardInterrupt as error:  # Typer would drop what the error says about resuming
        _fail("interrupted", _INTERRUPTED, notes_of=error)
    _write_json(json_file, run.result)
    if not quiet:
        _console().print(run_table(run.result))
        print(
            f"test accuracy {run.result['test_accuracy']:.2%}, "
            f"{run.result['seconds_per_epoch']:.3g} s an epoch, "
            f"peak memory {run.result['peak_memory_bytes'] / 2**20:.0f} MiB, run in {folder}"
        )


def _folder_to_resume(out: Path | None, config: Path | None, overwrite: bool, settings: dict[str, Any]) -> Path:
    """A run goes on as it was set up; only the threads may be others."""
    others = [*(["overwrite"] if overwrite else []), *(["config"] if config else []), *settings]
    for name in others:
        if name != "threads":
            raise InputError(f"{name} must not be given with --resume: a run goes on as it was set up")
    if out is None:
        raise InputError("out must name the folder of the unfinished run with --resume, but is not given")
    return out


def _folder_for(config: RunConfig) -> Path:
    sparsity = "" if config.method == "dense" else f"-{config.sparsity:g}"
    return _new_folder(f"{Path(config.dataset).stem}-{config.method}{sparsity}-seed{config.seed}")


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
        _console().print(comparison_table(rows))
        print(f"table and runs in {folder}, picture in {folder / 'comparison.png'}")


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.", show_default=False)]
Best = Annotated[bool, typer.Option("--best", help="The network of the best validation accuracy, not the last.")]


@app.command()
def evaluate(
    run: RunFolder,
    dataset: Annotated[
        str | None,
        typer.Option(help="Another data set, a name or an .npz file, whose test set is used.", metavar="TEXT"),
    ] = None,
    best: Best = False,
    threads: Annotated[int | None, typer.Option(help="Threads of kernels and BLAS (default: all).")] = None,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Print the loss and accuracy of a run's network, of each class too, and the time of a batch."""
    from sparsekit.evaluation import evaluate_run

    _check_json(json_file)
    result = evaluate_run(run, dataset, best=best, threads=threads)
    _write_json(json_file, result)
    if not quiet:
        for table in evaluation_tables(result):
            _console().print(table)


@app.command("inspect")
def inspect_command(
    run: RunFolder,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Figure to write, .png, .svg or .pdf (default: RUN/inspection.png)."),
    ] = None,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Show a run's layers, what they cost and store, and draw its active neurons and how its masks evolved."""
    from sparsekit.inspection import inspect_run
    from sparsekit.training.folder import INSPECTION

    _check_json(json_file)
    inspection = inspect_run(run)
    figure = out or run / INSPECTION
    inspection.save_plot(figure)
    result = inspection.result
    _write_json(json_file, result)
    if not quiet:
        for table in inspection_tables(result):
            _console().print(table)
        print(
            f"a training step takes {result['training_flops']:,.0f} FLOPs a sample, "
            f"{result['training_flops'] / result['dense_training_flops']:.1%} of dense training; "
            f"the whole training took {result['total_training_flops']:.3g} FLOPs"
        )
        itop = "not recorded by this run" if result["itop"] is None else f"{result['itop']:.1%} of all positions"
        print(f"ever active (ITOP rate): {itop}; figure in {figure}")


@app.command()
def export(
    run: RunFolder,
    to: Annotated[str, typer.Option("--to", help="Storage of the sparse layers: condensed, csr or dense.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File to write, .safetensors (default: RUN/STORAGE.safetensors)."),
    ] = None,
    best: Best = False,
    overwrite: Overwrite = False,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Write a run's network for prediction to one file, without the neurons that always give the same value.

    sparsekit.load_exported(FILE).predict(x) classifies with it; its outputs are those of the trained network.
    """
    from sparsekit.export import export_run

    _check_json(json_file)
    result = export_run(run, to, out, best=best, overwrite=overwrite)
    _write_json(json_file, result)
    if not quiet:
        _console().print(export_table(result["layers"]))
        print(
            f"logits differ by at most {result['largest_difference']:.2g}, "
            f"{result['file_bytes'] / 1024:,.1f} KiB in {result['file']}"
        )


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
