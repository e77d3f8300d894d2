"""`python -m analysis.sweep GRID.toml`: train every run of a grid, here or on a cluster."""

from pathlib import Path
from typing import Annotated

import typer

from analysis.sweep import DaskScheduler, JoblibScheduler, read_grids, run_sweep
from analysis.sweep.folder import CSV
from sparsekit.console import Json, Quiet, check_json, console, run_app, show_progress, write_json
from sparsekit.errors import RunError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def sweep(
    grid: Annotated[Path, typer.Argument(metavar="GRID.toml", help="Settings, and tables named grid with lists.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the sweep (default: runs/NAME, by the grid's name).")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes on this machine (default: processors).")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of a run (default: a fair share).")] = None,
    dask: Annotated[
        str | None,
        typer.Option(help="Address of a running Dask scheduler, or 'local' for a Dask cluster on this machine."),
    ] = None,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Train every run of a grid and write one row each, as results.csv and results.parquet.

    Called again it goes on where it stopped: runs that are done stay, those that failed are trained anew.
    """
    check_json(json_file)
    tasks = read_grids(grid)
    folder = out or Path("runs") / grid.stem
    scheduler = JoblibScheduler(workers, threads)
    if dask is not None:
        scheduler = DaskScheduler(None if dask == "local" else dask, workers, threads)
    rows = run_sweep(tasks, folder, scheduler, progress=show_progress(quiet))
    write_json(json_file, {"rows": rows})
    failures = [row for row in rows if row["status"] == "failed"]
    if failures:
        raise RunError(f"{len(failures)} of {len(rows)} runs failed, the first with: {failures[0]['error']}")
    if not quiet:
        console().print(f"{len(rows)} runs, all done; table in {folder / CSV}")


if __name__ == "__main__":
    run_app(app)
