"""The style of all figures, and how they are saved: as SVG and PNG, the same bytes for the same rows."""

from pathlib import Path
from typing import Any

from matplotlib import rc_context, rc_params_from_file
from matplotlib.figure import Figure

from sparsekit.atomic import atomic_path

WIDTH = 7.0  # inches, a page of a paper
_STYLE = rc_params_from_file(Path(__file__).with_name("paper.mplstyle"), use_default_template=False)
# Neither the date nor the version of matplotlib belongs in a file that is kept.
_METADATA: dict[str, dict[str, Any]] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}


def new_figure(height: float, n_rows: int = 1, n_columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of a page's width and its axes, an array (n_rows, n_columns); `options` are those of subplots.

    It is drawn without pyplot, so no display or global state is needed. What the style sets must be in force when
    axes get their contents too: draw within `style()`.
    """
    with style():
        figure = Figure(figsize=(WIDTH, height))
        return figure, figure.subplots(n_rows, n_columns, squeeze=False, **options)


def style() -> Any:
    """A context within which matplotlib draws in the style of `paper.mplstyle`."""
    return rc_context(_STYLE)


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write NAME.svg and NAME.png into the folder, each atomically."""
    with style():
        for suffix, metadata in _METADATA.items():
            with atomic_path(folder / f"{name}.{suffix}") as path:
                figure.savefig(path, metadata=metadata)
