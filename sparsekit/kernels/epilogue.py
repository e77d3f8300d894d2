"""What follows W x in a layer: the bias and ReLU, for backends that do not fuse them into their product."""

import numpy as np


def finish(out: np.ndarray, bias: np.ndarray | None, relu: bool) -> np.ndarray:
    """out = max(out + bias, 0), in place; without a bias or ReLU that part is left out. NaN stays NaN.

    Parameters
    ----------
    out : (n_out, batch)
    bias : (n_out,) or None
    relu : whether negative values become zero
    """
    if bias is not None:
        out += bias[:, None]
    if relu:
        np.maximum(out, 0, out=out)
    return out
