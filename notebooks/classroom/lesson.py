"""The start of a lesson: is everything there that it needs, and how are its pictures drawn?"""

import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import matplotlib.pyplot as plt

T = TypeVar("T")

FAST = os.environ.get("SPARSEKIT_NOTEBOOKS") == "fast"
_STYLE = Path(__file__).with_name("lesson.mplstyle")
_REPOSITORY = Path(__file__).resolve().parents[2]


def start(*modules: str) -> None:
    """Set the style of the pictures and look whether the modules are there that this lesson needs.

    Parameters
    ----------
    modules : importable names beyond sparsekit's own dependencies, such as "hypothesis"

    Raises
    ------
    ImportError
        If one is missing; the message is the command that installs it.
    """
    if str(_REPOSITORY) not in sys.path:
        sys.path.append(str(_REPOSITORY))  # for `analysis`, which is not part of the installed package
    for module in modules:
        if find_spec(module) is None:
            raise ImportError(
                f"this notebook needs {module}: pip install '.[notebooks]' in the folder of the repository"
            )
    plt.style.use(_STYLE)
    if FAST:
        warnings.simplefilter("error")  # a notebook shows no warnings; the tests make sure
        warnings.filterwarnings("ignore", module="(ipykernel|jupyter_client|tornado|traitlets|zmq)")


def unless_fast(full: T, fast: T) -> T:
    """`full`, or `fast` where SPARSEKIT_NOTEBOOKS=fast asks for a quick run, as the tests do."""
    return fast if FAST else full
