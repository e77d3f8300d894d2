"""History: one row of numbers an epoch."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsekit.atomic import write_text
from sparsekit.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class History:
    """Rows that :class:`Trainer` adds, one an epoch, each a dict with the same keys.

    Keys
    ----
    epoch, step : counted from 1; step is the last one of the epoch
    learning_rate : of the last step
    train_loss, train_accuracy : means over the epoch's batches while the weights were changing
    validation_loss, validation_accuracy : after the epoch; absent without validation data
    sparsity : share of weights that is not stored
    LAYER.n_active, LAYER.fan_in : of each sparse layer; the mean fan-in where it is not constant
    seconds : time of the epoch's training, without validation; the one column that differs between equal runs
    """

    def __init__(self, rows: list[dict[str, Any]] | None = None) -> None:
        self.rows: list[dict[str, Any]] = list(rows or [])

    def __len__(self) -> int:
        return len(self.rows)

    def append(self, row: dict[str, Any]) -> None:
        """Add an epoch's row."""
        self.rows.append(row)

    def column(self, name: str) -> list[Any]:
        """The values of one key over the epochs."""
        return [row[name] for row in self.rows]

    def best(self) -> dict[str, Any] | None:
        """The row of the highest validation accuracy, the first of equals; None without validation data."""
        rows = [row for row in self.rows if "validation_accuracy" in row]
        return max(rows, key=lambda row: row["validation_accuracy"], default=None)

    def save(self, path: str | Path) -> None:
        """Write a CSV file, atomically; floats are written so that reading them gives the same bits."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.rows[0]) if self.rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(path, text.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "History":
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            If the file cannot be read, or is damaged.
        """
        try:
            with open(path, encoding="utf-8", newline="") as file:
                return cls([{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)])
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, csv.Error) as error:
            raise InputError(f"{path} is damaged: {error}") from None

    def plot(self) -> "Figure":
        """A figure of loss, accuracy and the sparse layers' active neurons over the epochs."""
        if not self.rows:
            raise InputError("history must have at least one row to be plotted, not none")
        from sparsekit.figures import history_figure

        return history_figure(self)


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)
