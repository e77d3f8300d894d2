"""The folder of a sweep: a file for every row, and the table of all rows as CSV and Parquet."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.sweep.grid import Task
from sparsekit.atomic import atomic_path, write_text
from sparsekit.errors import InputError
from sparsekit.training.folder import make_folder

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]

ROWS, CSV, PARQUET = "rows", "results.csv", "results.parquet"


class SweepFolder:
    """Rows by key, each written atomically the moment it is known; a key that comes again replaces its row.

    Parameters
    ----------
    path : a new folder, or one that holds rows of the same sweep, or of a part of it
    tasks : all runs of the sweep

    Raises
    ------
    InputError
        If the folder holds rows of another sweep or other files, or a row is damaged.
    """

    def __init__(self, path: str | Path, tasks: Sequence[Task]) -> None:
        import pandas  # noqa: F401  # if it is missing, say so before hours of training and not after
        import pyarrow  # noqa: F401

        self.path = Path(path)
        self._order = {task.key: place for place, task in enumerate(tasks)}
        self._refuse_other_files()
        self._rows = {row["key"]: row for row in map(_read, self._files())}
        for key, row in self._rows.items():
            if key not in self._order:
                raise InputError(
                    f"out {self.path} holds another sweep: {_name(row)}, key {key}, is no run of this one; "
                    "name a new folder"
                )
        make_folder(self.path / ROWS)

    def __contains__(self, task: Task) -> bool:
        """Whether the run is done; one that failed is not."""
        return self._rows.get(task.key, {}).get("status") == "done"

    def add(self, row: Row) -> None:
        """Keep a row; once this returns it is on the disk."""
        write_text(self.path / ROWS / f"{row['key']}.json", json.dumps(row, indent=1) + "\n")
        self._rows[row["key"]] = row

    @property
    def rows(self) -> list[Row]:
        """The rows there are, in the order of the grid."""
        return sorted(self._rows.values(), key=lambda row: self._order[row["key"]])

    def save(self) -> None:
        """Write results.csv and results.parquet, the same table; what is nested within a row is JSON in it."""
        if not self._rows:
            return
        table = self.table()
        with atomic_path(self.path / CSV) as path:
            table.to_csv(path, index=False, lineterminator="\n")
        with atomic_path(self.path / PARQUET) as path:
            table.to_parquet(path, index=False)

    def table(self) -> "pandas.DataFrame":
        """One row a run, in the order of the grid."""
        import pandas

        return pandas.DataFrame(
            [
                {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
                for row in self.rows
            ]
        )

    def _files(self) -> list[Path]:
        """The rows' files; one that a killed process had half written begins with a dot."""
        return [path for path in sorted((self.path / ROWS).glob("*.json")) if not path.name.startswith(".")]

    def _refuse_other_files(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"out {self.path} is a file; name a folder")
        names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        if names and ROWS not in names:
            raise InputError(f"out {self.path} exists and is not a sweep: it has no {ROWS}/; name a new folder")


def _read(path: Path) -> Row:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        if row["key"] != path.stem or row["status"] not in ("done", "failed"):
            raise ValueError(f"it is the row {row['key']}, {row['status']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error}; remove it to train its run again") from None
    return row


def _name(row: Row) -> str:
    return f"{row.get('label')} at sparsity {row.get('sparsity')} with seed {row.get('seed')}"


_NESTED = ("layers", "updates")


def load_rows(path: str | Path) -> list[Row]:
    """The rows of a sweep that are done, from its folder, its results.csv or its results.parquet.

    Raises
    ------
    InputError
        If there is no such file, it is not the table of a sweep, or no run in it is done.
    """
    import pandas

    path = Path(path)
    file = path / CSV if path.is_dir() else path
    try:
        table = pandas.read_parquet(file) if file.suffix == ".parquet" else pandas.read_csv(file)
    except (OSError, ValueError) as error:
        raise InputError(f"results {file} cannot be read: {str(error).splitlines()[0]}") from None
    missing = {"key", "label", "status", "sparsity", "seed"} - set(table.columns)
    if missing:
        raise InputError(f"results {file} is not the table of a sweep: it has no column {min(missing)!r}")
    records = table.loc[table["status"] == "done"].to_dict(orient="records")
    if not records:
        raise InputError(f"results {file} holds no run that is done")
    return [_unpacked(record) for record in records]


def _unpacked(record: dict[Any, Any]) -> Row:
    """Without the columns that this run has nothing in, and with nested values as they were."""
    row = {str(name): value for name, value in record.items() if value == value}  # NaN is not equal to itself
    return row | {name: json.loads(row[name]) for name in _NESTED if name in row}
