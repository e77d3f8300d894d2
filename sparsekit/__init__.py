"""sparsekit: dynamic sparse training with constant fan-in, stored sparse and trained sparse.

Public names are loaded on first use (PEP 562), so that `import sparsekit` stays light: it loads neither Numba
nor matplotlib, scikit-learn or the command line.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULE_OF = {
    "CSRMatrix": "sparsekit.csr",
    "Classifier": "sparsekit.training",
    "CondensedMatrix": "sparsekit.condensed",
    "DenseMatrix": "sparsekit.dense",
    "DivergedError": "sparsekit.errors",
    "History": "sparsekit.training",
    "InputError": "sparsekit.errors",
    "Trainer": "sparsekit.training",
    "load_dataset": "sparsekit.data",
    "load_exported": "sparsekit.export",
    "load_run": "sparsekit.training.run",
}
_SUBMODULES = (
    "counting",
    "data",
    "distributions",
    "gpu",
    "kernels",
    "masks",
    "models",
    "nn",
    "optim",
    "topology",
    "training",
)
__all__ = [*_MODULE_OF, *_SUBMODULES, "__version__"]

if TYPE_CHECKING:  # what __getattr__ loads, for editors and type checkers
    from sparsekit import counting as counting
    from sparsekit import data as data
    from sparsekit import distributions as distributions
    from sparsekit import gpu as gpu
    from sparsekit import kernels as kernels
    from sparsekit import masks as masks
    from sparsekit import models as models
    from sparsekit import nn as nn
    from sparsekit import optim as optim
    from sparsekit import topology as topology
    from sparsekit import training as training
    from sparsekit.condensed import CondensedMatrix as CondensedMatrix
    from sparsekit.csr import CSRMatrix as CSRMatrix
    from sparsekit.data import load_dataset as load_dataset
    from sparsekit.dense import DenseMatrix as DenseMatrix
    from sparsekit.errors import DivergedError as DivergedError
    from sparsekit.errors import InputError as InputError
    from sparsekit.export import load_exported as load_exported
    from sparsekit.training import Classifier as Classifier
    from sparsekit.training import History as History
    from sparsekit.training import Trainer as Trainer
    from sparsekit.training.run import load_run as load_run


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
