"""How lines look: a colour and a marker for every method, and an axis of sparsities."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from analysis.series import DENSE

# Okabe and Ito's palette; methods differ in their markers too.
_LOOKS: dict[str, dict[str, Any]] = {
    DENSE: {"color": "#000000", "marker": ""},
    "static": {"color": "#E69F00", "marker": "v"},
    "static, unstructured": {"color": "#999999", "marker": "<"},
    "SET": {"color": "#56B4E9", "marker": "^"},
    "RigL": {"color": "#D55E00", "marker": "s"},
    "SRigL without ablation": {"color": "#CC79A7", "marker": "D"},
    # dashed, because without an ablated neuron it is the same run as the one without ablation
    "SRigL, gamma 0.3": {"color": "#0072B2", "marker": "o", "ls": (0, (4, 2))},
}
_OTHER = {"color": "#009E73", "marker": "P"}


def look(series: str) -> dict[str, Any]:
    """Colour and marker of a series; SRigL with any other gamma_sal than the paper's is green."""
    return _LOOKS.get(series, _OTHER)


def sparsity_axis(axes: Axes, sparsities: Sequence[float]) -> None:
    """Sparsity to the right, spaced by the logarithm of the density; points go to :func:`density` of theirs."""
    axes.set_xscale("log")
    axes.set_xlim(1.25 * (1 - min(sparsities)), 0.8 * (1 - max(sparsities)))
    axes.set_xticks([1 - s for s in sparsities], [f"{100 * s:g}" for s in sparsities])
    axes.minorticks_off()
    axes.set_xlabel("sparsity, %")


def beside(sparsities: Sequence[float], place: int, n_places: int) -> list[float]:
    """Where on that axis the points of one of several series stand, so that their intervals do not overlap."""
    return [(1 - s) * 1.03 ** (place - (n_places - 1) / 2) for s in sparsities]
