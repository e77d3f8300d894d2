"""Figures of the experiments: functions from rows to axes, in one style (`paper.mplstyle`)."""

from analysis.plots.style import new_figure, save_figure, style

__all__ = ["new_figure", "save_figure", "style"]
