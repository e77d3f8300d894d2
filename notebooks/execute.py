"""Write the executed notebooks: NN_title.py in, NN_title.ipynb with all outputs beside it.

    python notebooks/execute.py                  # all, in order
    python notebooks/execute.py 03 05            # those whose names begin so

A notebook that raises, warns, or grows beyond 700 kB is refused, and the file that was there stays.
"""

import base64
import time
from pathlib import Path
from typing import Annotated

import jupytext
import nbformat
import typer
from classroom.moving import WIDGET_VIEW, encoded, with_palette
from nbclient import NotebookClient

from sparsekit.atomic import write_text
from sparsekit.console import run_app
from sparsekit.errors import InputError, RunError

FOLDER = Path(__file__).parent
MOST_BYTES = 700_000
_TIMEOUT = 600  # seconds a cell may take

app = typer.Typer(add_completion=False)


@app.command()
def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="Beginnings of file names; none: all notebooks.")
    ] = None,
) -> None:
    """Execute the notebooks and write what they show beside their sources."""
    for source in _chosen(names):
        began = time.perf_counter()
        text = nbformat.writes(execute(source)) + "\n"
        write_text(source.with_suffix(".ipynb"), text)
        print(f"{source.stem:34} {time.perf_counter() - began:6.1f} s {len(text) / 1000:7.0f} kB", flush=True)


def _chosen(names: list[str] | None) -> list[Path]:
    sources = lessons()
    for name in names or ():
        if not any(source.name.startswith(name) for source in sources):
            raise InputError(
                f"names must be beginnings of {', '.join(path.stem for path in sources)}, not {name!r}"
            )
    return [source for source in sources if not names or source.name.startswith(tuple(names))]


def lessons() -> list[Path]:
    """The sources of all notebooks, in the order of reading."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def read(source: Path) -> nbformat.NotebookNode:
    """The notebook of a source, without outputs; the same source gives the same bytes."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:03}"
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def execute(source: Path) -> nbformat.NotebookNode:
    """The notebook of a source with the outputs of every cell, run top to bottom in a fresh kernel.

    Raises
    ------
    CellExecutionError
        If a cell raises.
    RunError
        If a cell writes to stderr, as warnings do, or the notebook is too large.
    """
    notebook = read(source)
    NotebookClient(
        notebook,
        timeout=_TIMEOUT,
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
    ).execute(cwd=source.parent)
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                raise RunError(f"{source.name}: a cell wrote to stderr: {output.text.strip()[:500]}")
            data = output.get("data", {})
            # A slider needs a kernel; without one its place is taken by the HTML in the same output.
            data.pop(WIDGET_VIEW, None)
            if "image/png" in data:
                data["image/png"] = encoded(with_palette(base64.b64decode(data["image/png"]), 256), "PNG")
    if (size := len(nbformat.writes(notebook))) > MOST_BYTES:
        raise RunError(
            f"{source.name} has {size / 1000:.0f} kB with its outputs, more than {MOST_BYTES / 1000:.0f}"
        )
    return notebook


if __name__ == "__main__":
    run_app(app)
