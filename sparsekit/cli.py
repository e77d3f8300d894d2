"""The command line: `sparsekit train`, `compare`, `evaluate`, `inspect`, `export` and `bench`.

Every setting of a run is one flag, made from its description in :class:`sparsekit.config.RunConfig`.
"""

import inspect
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsekit import __version__
from sparsekit.config import RunConfig, choices, kind, make_config, read_toml
from sparsekit.console import (
    INTERRUPTED,
    Json,
    Out,
    Quiet,
    check_json,
    console,
    fail,
    new_folder,
    numbers,
    run_app,
    show_progress,
    write_json,
)
from sparsekit.errors import InputError
from sparsekit.tables import comparison_table, evaluation_tables, export_table, inspection_tables, run_table

_METHODS = "dense, static, set, rigl, srigl:gamma_sal=0, srigl"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Dynamic sparse training with constant fan-in: stored sparse, trained sparse.",
)

Resume = Annotated[bool, typer.Option("--resume", help="Train the unfinished run in --out to its end.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier command wrote to --out.")]
Config = Annotated[Path | None, typer.Option("--config", help="TOML file of settings; flags override it.")]


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


def main() -> None:
    """Run the command line."""
    run_app(app)


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

    check_json(json_file)
    progress = show_progress(quiet)
    try:
        if resume:
            folder = _folder_to_resume(out, config, overwrite, settings)
            run = resume_run(folder, threads=settings.get("threads"), progress=progress)
        else:
            chosen = make_config(read_toml(config) if config else {}, settings)
            folder = out or _folder_for(chosen)
            run = train_run(chosen, folder, overwrite=overwrite, progress=progress)
    except KeyboardInterrupt as error:  # Typer would drop what the error says about resuming
        fail("interrupted", INTERRUPTED, notes_of=error)
    write_json(json_file, run.result)
    if not quiet:
        console().print(run_table(run.result))
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
    return new_folder(f"{Path(config.dataset).stem}-{config.method}{sparsity}-seed{config.seed}")


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

    check_json(json_file)
    shared = (read_toml(config) if config else {}) | settings
    # what the file says of one run is what is compared where no flag says more
    methods = methods if methods is not None else str(shared.pop("method", _METHODS))
    sparsities = sparsities if sparsities is not None else str(shared.pop("sparsity", 0.9))
    seeds = seeds if seeds is not None else str(shared.pop("seed", 0))
    name = Path(str(shared.get("dataset", RunConfig.model_fields["dataset"].default))).stem
    folder = out or new_folder(f"compare-{name}")
    rows = comparison.compare(
        shared,
        methods.split(","),
        numbers("sparsities", sparsities, float),
        numbers("seeds", seeds, int),
        folder,
        overwrite=overwrite,
        progress=show_progress(quiet),
    )
    write_json(json_file, {"rows": rows})
    if not quiet:
        console().print(comparison_table(rows))
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

    check_json(json_file)
    result = evaluate_run(run, dataset, best=best, threads=threads)
    write_json(json_file, result)
    if not quiet:
        for table in evaluation_tables(result):
            console().print(table)


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

    check_json(json_file)
    inspection = inspect_run(run)
    figure = out or run / INSPECTION
    inspection.save_plot(figure)
    result = inspection.result
    write_json(json_file, result)
    if not quiet:
        for table in inspection_tables(result):
            console().print(table)
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

    check_json(json_file)
    result = export_run(run, to, out, best=best, overwrite=overwrite)
    write_json(json_file, result)
    if not quiet:
        console().print(export_table(result["layers"]))
        print(
            f"logits differ by at most {result['largest_difference']:.2g}, "
            f"{result['file_bytes'] / 1024:,.1f} KiB in {result['file']}"
        )


@app.command()
def bench(
    benchmark: Annotated[
        str, typer.Argument(help="linear, train-step, conv, epoch, resnet18, gpu, or all but gpu.")
    ] = "all",
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
    """Time the sparse kernels against NumPy, SciPy and PyTorch if it is installed; on a GPU, against cuBLAS."""
    from sparsekit.bench.report import tables
    from sparsekit.bench.run import run

    check_json(json_file)
    counts = numbers("threads", threads, int) if threads is not None else None
    folder = out or new_folder(f"bench-{benchmark}")
    results = run(benchmark, folder, threads=counts, quick=quick, seed=seed, progress=show_progress(quiet))
    write_json(json_file, results.to_json())
    if not quiet:
        for name, rows in results.rows.items():
            for table in tables(name, rows):
                console().print(table)
        print("\n".join([*(f"{name}: {value}" for name, value in results.environment.items()), *results.notes]))
        print(f"tables and figures in {folder}")
