"""Sweeps: a grid of run configurations becomes one row each, on one machine or on many.

Nothing is lost: every row is a file of its own as soon as its run has ended, and the same command goes on where a
killed one stopped. Nothing is doubled: a row is named by its configuration, however often its run is trained.
"""

from analysis.sweep.folder import SweepFolder, load_rows
from analysis.sweep.grid import Task, grid, read_grids
from analysis.sweep.running import run_sweep
from analysis.sweep.schedulers import DaskScheduler, JoblibScheduler

__all__ = [
    "DaskScheduler",
    "JoblibScheduler",
    "SweepFolder",
    "Task",
    "grid",
    "load_rows",
    "read_grids",
    "run_sweep",
]
