"""Grids: every combination of some settings, each combination a run configuration with a key of its own."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsekit.checks import nearest
from sparsekit.comparison import Contender
from sparsekit.config import RunConfig, make_config, parse_toml
from sparsekit.errors import InputError

# They say where and how fast a run is trained, not what comes out of it.
_MACHINE = {"threads", "checkpoint_every"}


@dataclass(frozen=True)
class Task:
    """One run of a sweep.

    Attributes
    ----------
    label : the method as the grid names it, such as 'srigl:gamma_sal=0'
    config : all settings of the run
    """

    label: str
    config: RunConfig

    @property
    def key(self) -> str:
        """Name of the run's row: 16 hexadecimal digits that the settings, but not the label, decide."""
        settings = {name: value for name, value in self.settings().items() if name not in _MACHINE}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def settings(self) -> dict[str, Any]:
        """All settings of the run as plain values."""
        return self.config.model_dump(mode="json")


def grid(settings: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> list[Task]:
    """The runs of a grid, the last axis varying fastest; a run that comes up again is left out.

    Parameters
    ----------
    settings : what all runs share, names of :class:`sparsekit.config.RunConfig`
    axes : values by name of the setting; a method may be METHOD:setting=value, which goes before other axes.
        Dense training has no sparsity: it is set to 0, so there is one dense run for all sparsities

    Raises
    ------
    InputError
        For an axis without values, a setting that does not exist, or a value that is not allowed.
    """
    for name, values in axes.items():
        if name not in RunConfig.model_fields:
            raise InputError(f"grid has no setting {name!r}{nearest(name, RunConfig.model_fields)}")
        if not isinstance(values, list | tuple) or not values:
            raise InputError(f"grid must give {name} a list of at least one value, not {values!r}")
    return _without_repetition(
        _task({**settings, **dict(zip(axes, point, strict=True))}) for point in itertools.product(*axes.values())
    )


def _task(settings: Mapping[str, Any]) -> Task:
    method = str(settings.get("method", RunConfig.model_fields["method"].default))
    contender = Contender.parse(method)
    config = make_config(settings, contender.settings)
    if config.method == "dense":
        config = make_config(config.model_dump(), {"sparsity": 0.0})
    return Task(method, config)


def _without_repetition(tasks: Iterable[Task]) -> list[Task]:
    """The first task of every key."""
    found: dict[str, Task] = {}
    for task in tasks:
        found.setdefault(task.key, task)
    return list(found.values())


def read_grids(path: str | Path) -> list[Task]:
    """The runs of a TOML file: settings at the top, one or more tables [[grid]] of lists below.

    Raises
    ------
    InputError
        If the file cannot be read, is not TOML or holds no [[grid]], and as :func:`grid`.
    """
    try:
        content = parse_toml(Path(path).read_bytes(), f"grid {path}")
    except OSError as error:
        raise InputError(f"grid {path} cannot be read: {error.strerror}") from None
    tables = content.pop("grid", None)
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise InputError(f"grid {path} must hold at least one table [[grid]] with a list for every axis")
    return _without_repetition(task for table in tables for task in grid(content, table))
