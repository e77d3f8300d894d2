"""The table of GPU kernels: every instance of `condensed.cu` that is ever launched, and what its launch needs.

The launcher and the test that compiles for GPUs which are not there read this one table. CuPy is not imported.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

SOURCE = Path(__file__).with_name("condensed.cu")
OPTIONS = ("-std=c++17",)

# C++ types of x by the dtype of its array. NumPy and CuPy have no bfloat16 of their own: an array of uint16 holds
# its bits, and where ml_dtypes gives the dtype a name, that is understood too.
KINDS = {"float32": "float", "float16": "Half", "bfloat16": "BFloat16", "uint16": "BFloat16"}
BYTES = {"float": 4, "Half": 2, "BFloat16": 2}
INDEX_TYPES = {"uint16": "unsigned short", "int32": "int"}

# These constants are those of condensed.cu.
ROWS = 16  # rows of W in a slice
ENTRIES = 4  # stored weights of a row in a step
ROW_BYTES = 128  # of a staged row of x
SEGMENTS = 8  # of 16 bytes in a staged row of x; each of two lanes multiplies half of them
TILED_THREADS = 384
FEW_THREADS = 128
PACK_THREADS = 256

FEW_SAMPLES = (1, 4, 16)  # samples that gather_few takes at a time


@dataclass(frozen=True)
class Shape:
    """How the warps of a block share the work.

    Attributes
    ----------
    slices : slices of 16 neurons in a block
    split : warps that share a slice
    """

    slices: int
    split: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.slices * self.split


# A staged row of x serves all neurons of a block, so wide blocks stage less; of narrow ones there are more, which
# keeps a GPU busy when there are few samples. Widest first; not tuned on a GPU yet.
SHAPES = (Shape(slices=6, split=2), Shape(slices=3, split=4), Shape(slices=1, split=8))
BLOCK_ROWS = SHAPES[1].slices * ROWS  # of an ordinary block, for predictions


@dataclass(frozen=True)
class Instance:
    """One kernel.

    Attributes
    ----------
    name : C++ name expression
    kind : C++ type of x, which decides what is compiled together
    threads : the most threads of a block it is launched with
    vector_loads : instructions that its machine code for sm_75 and newer has to contain
    """

    name: str
    kind: str
    threads: int
    vector_loads: tuple[str, ...]


def _table() -> list[Instance]:
    table = [Instance("pack", "float", PACK_THREADS, ("LDG.E.128", "STG.E.128"))]
    for kind in BYTES:
        table += [
            Instance(f"{kernel}<{kind}>", kind, TILED_THREADS, ("LDS.128", "LDG.E.128", "LDG.E.64"))
            for kernel in ("gather_features", "gather_samples", "gather_images", "outer")
        ]
        table += [
            Instance(f"gather_few<{kind}, {index}, {samples}>", kind, FEW_THREADS, ())
            for index, samples in product(INDEX_TYPES.values(), FEW_SAMPLES)
        ]
    return table


INSTANCES = _table()
