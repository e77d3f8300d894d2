"""Running a sweep: what is not done yet is trained, and every row is kept at once."""

from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from analysis.sweep.folder import SweepFolder
from analysis.sweep.grid import Task
from analysis.sweep.row import Row
from analysis.sweep.schedulers import Scheduler


def run_sweep(
    tasks: Sequence[Task], folder: str | Path, scheduler: Scheduler, *, progress: bool = True
) -> list[Row]:
    """Train the runs that have no row in the folder yet, or failed; return the rows of all, in the grid's order.

    Parameters
    ----------
    folder : where the rows are, and the table of them as results.csv and results.parquet
    scheduler : where to train, see :mod:`analysis.sweep.schedulers`

    Raises
    ------
    InputError
        If the folder holds another sweep, or the scheduler cannot be reached.
    """
    sweep = SweepFolder(folder, tasks)
    todo = [task for task in tasks if task not in sweep]
    bar = tqdm(total=len(tasks), initial=len(tasks) - len(todo), unit="run", disable=not progress)
    n_failed = 0
    try:
        for row in scheduler.rows(todo):
            sweep.add(row)
            n_failed += row["status"] == "failed"
            bar.set_postfix_str(f"{n_failed} failed" if n_failed else "", refresh=False)
            bar.update()
    finally:
        bar.close()
        sweep.save()
    return sweep.rows
