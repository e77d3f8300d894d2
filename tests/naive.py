"""Slow, independent versions: the oracles of ``test_topology.py`` and of ``test_convolution.py``.

Written from the specification alone, with nothing but Python lists, loops over positions, and ``sorted`` on
(-score, flat index). NumPy only turns arrays into lists at the entrance and lists into arrays at the exit.
Nothing is validated: inputs are assumed to be allowed ones.

In a topology update a position is a flat index ``i * n_in + j`` of neuron i and input j. "The K largest": ties
go to the lower flat index, and if there are fewer than K candidates all of them are taken.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class NaiveUpdate:
    """What one update did. Fields are those of ``sparsekit.topology.TopologyUpdate``."""

    mask: np.ndarray
    kept: np.ndarray
    grown: np.ndarray
    dropped: np.ndarray
    regrown: np.ndarray
    ablated: np.ndarray
    salient: np.ndarray | None = None
    salient_counts: np.ndarray | None = None
    fan_in: int | None = None


def magnitude_drop(weight: np.ndarray, mask: np.ndarray, drop_fraction: float) -> tuple[np.ndarray, int]:
    """Drop step shared by RigL and SET (section 4, step 1).

    1. nnz = m.sum(); K = int(f * nnz); kept: the nnz - K active weights of largest absolute value, over the
       whole layer.

    Returns the kept positions (bool, like mask) and K.
    """
    active = _positions(mask)
    n_dropped = int(float(drop_fraction) * len(active))
    kept = _largest(_absolute(weight), active, len(active) - n_dropped)
    return _to_array(kept, mask.shape), n_dropped


def rigl(weight: np.ndarray, mask: np.ndarray, grad: np.ndarray, drop_fraction: float) -> NaiveUpdate:
    """RigL (section 4): step 1, then growth over the whole layer.

    1. As ``magnitude_drop``.
    Then the K largest absolute gradients among all positions not kept (just-dropped ones too).
    """
    kept_array, n_grown = magnitude_drop(weight, mask, drop_fraction)
    kept = _positions(kept_array)
    not_kept = [position for position in range(mask.size) if position not in kept]
    new = kept | _largest(_absolute(grad), not_kept, n_grown)
    n_out, n_in = mask.shape
    empty = [i for i in range(n_out) if not any(position in new for position in _row(i, n_in))]
    return _report(_positions(mask), kept, new, set(empty), mask.shape)


def srigl(
    weight: np.ndarray,
    mask: np.ndarray,
    grad: np.ndarray,
    drop_fraction: float,
    budget: int,
    *,
    gamma_sal: float = 0.3,
    saliency_gradient: str = "inactive",
    revive: bool = True,
    ablate: bool = True,
) -> NaiveUpdate:
    """SRigL with the default semantics (section 4, steps 1 to 7).

    1. nnz = m.sum(); K = int(f * nnz); candidates to keep: the nnz - K active weights of largest |w|, over
       the whole layer.
    2. Candidates to grow: the K largest |g| among inactive positions ("inactive"), or among all positions
       ("all").
    3. salient = union of 1 and 2; salient_counts = per neuron.
    4. Ablate neurons with fewer than max(1, int(gamma_sal * k0)) salient weights, k0 = budget // n_out. Never
       ablated is the floor: the ceil(budget / n_in) neurons of highest count (lower index among equals).
       gamma_sal = 0 or ablate=False: no neuron is ablated for its count. revive=False: a neuron that was
       empty stays ablated unless the floor needs it; the floor takes the non-empty neurons first.
    5. n_active = neurons left; fan_in = min(n_in, budget // n_active).
    6. Among active weights of the neurons left keep the min(nnz - K, how many there are) largest |w| of the
       layer; a neuron with more than fan_in keeps its fan_in largest.
    7. Each neuron left takes, from all positions not kept, the largest |g| until it has fan_in.
    """
    n_out, n_in = mask.shape
    weight_score, grad_score = _absolute(weight), _absolute(grad)
    old = _positions(mask)

    # Steps 1 to 3.
    n_dropped = int(float(drop_fraction) * len(old))
    n_keep = len(old) - n_dropped
    to_keep = _largest(weight_score, old, n_keep)
    everywhere = range(n_out * n_in)
    growable = everywhere if saliency_gradient == "all" else [p for p in everywhere if p not in old]
    salient = to_keep | _largest(grad_score, growable, n_dropped)
    counts = _counts(salient, n_out, n_in)

    # Step 4. The sort key puts every non-empty neuron ahead of every empty one only where revive=False.
    was_empty = [not any(position in old for position in _row(i, n_in)) for i in range(n_out)]
    threshold = max(1, int(float(gamma_sal) * (budget // n_out)))
    n_floor = -(-budget // n_in)
    order = sorted(range(n_out), key=lambda i: (was_empty[i] and not revive, -counts[i], i))
    ablated = set()
    for i in order[n_floor:]:
        too_few = ablate and gamma_sal > 0 and counts[i] < threshold
        stays_empty = was_empty[i] and not revive
        if too_few or stays_empty:
            ablated.add(i)

    # Step 5.
    survivors = [i for i in range(n_out) if i not in ablated]
    fan_in = min(n_in, budget // len(survivors))

    # Step 6.
    still_there = [position for i in survivors for position in _row(i, n_in) if position in old]
    layer_kept = _largest(weight_score, still_there, n_keep)
    kept = set()
    for i in survivors:
        kept |= _largest(weight_score, [p for p in _row(i, n_in) if p in layer_kept], fan_in)

    # Step 7.
    new = _grow_per_neuron(kept, grad_score, survivors, fan_in, n_in)
    return _report(old, kept, new, ablated, mask.shape, salient, fan_in)


def srigl_official(
    weight: np.ndarray,
    mask: np.ndarray,
    grad: np.ndarray,
    drop_fraction: float,
    budget: int,
    *,
    gamma_sal: float = 0.3,
    ablate: bool = True,
) -> NaiveUpdate:
    """SRigL as the official code does it (methods.md 2.3, with faults (a) and (c) of 2.5).

    Step numbers are those of methods.md 2.3; arbitrary choices go to the lowest flat index.

    1. Scores: |w|, 0 where inactive; |g| everywhere.
    2. n_prune = int(nnz * f); n_keep = nnz - n_prune; with fewer than n_keep non-zero weights, n_keep is
       their number and n_prune = nnz - n_keep.
    3. salient = n_keep largest |w| united with n_prune largest |g|, both over all positions.
    4. threshold = max(1, int(gamma_sal * k0)); gamma_sal = 0 or ablate=False: no ablation.
    5. The threshold is lowered to the (min_neurons + 1)-th highest count, min_neurons = budget // n_in (at
       most the last).
    6. Ablate neurons with count < threshold.
    7. fan_in = budget // n_active (never above n_in).
    8. Keep the n_keep largest |w| over all positions of the surviving rows, inactive ones included as 0:
       n_keep is not recomputed (fault c). A neuron with more than fan_in retains its fan_in lowest positions
       (fault a).
    9. Each surviving neuron takes, from all positions not kept, the largest |g| until it has fan_in.
    """
    n_out, n_in = mask.shape
    old = _positions(mask)
    # Step 1.
    weight_score = [score if position in old else 0.0 for position, score in enumerate(_absolute(weight))]
    grad_score = _absolute(grad)

    # Step 2.
    n_prune = int(float(drop_fraction) * len(old))
    n_keep = len(old) - n_prune
    n_nonzero = sum(1 for score in weight_score if score > 0.0)
    if n_nonzero < n_keep:
        n_keep = n_nonzero
        n_prune = len(old) - n_keep

    # Step 3.
    everywhere = range(n_out * n_in)
    salient = _largest(weight_score, everywhere, n_keep) | _largest(grad_score, everywhere, n_prune)
    counts = _counts(salient, n_out, n_in)

    # Steps 4 to 6.
    ablated = set()
    if ablate and gamma_sal > 0:
        descending = sorted(counts, reverse=True)
        threshold = max(1, int(float(gamma_sal) * (budget // n_out)))
        threshold = min(threshold, descending[min(budget // n_in, n_out - 1)])
        ablated = {i for i in range(n_out) if counts[i] < threshold}

    # Step 7.
    survivors = [i for i in range(n_out) if i not in ablated]
    fan_in = min(n_in, budget // len(survivors))

    # Step 8.
    layer_kept = _largest(weight_score, [p for i in survivors for p in _row(i, n_in)], n_keep)
    kept = set()
    for i in survivors:
        kept |= set([p for p in _row(i, n_in) if p in layer_kept][:fan_in])

    # Step 9.
    new = _grow_per_neuron(kept, grad_score, survivors, fan_in, n_in)
    return _report(old, kept, new, ablated, mask.shape, salient, fan_in)


def convolution(
    weight: np.ndarray, mask: np.ndarray, x: np.ndarray, stride: tuple[int, int], padding: tuple[int, int]
) -> np.ndarray:
    """Cross-correlation of zero-padded images, as PyTorch's conv2d: the sum over the stored (i, u, v) of

    y[o, r, c, b] += weight[o, i, u, v] * x[i, r * stride[0] - padding[0] + u, c * stride[1] - padding[1] + v, b]

    with weight and mask (out, in, kernel height, kernel width), x (in, height, width, batch) and y (out, height,
    width, batch). Outside the image x is zero: nothing is added.
    """
    height, width = (len(starts) for starts in _window_starts(mask, x.shape[1:3], stride, padding))
    shape = (len(mask), height, width, x.shape[3])
    w, image, y = weight.tolist(), x.tolist(), np.zeros(shape).tolist()
    for o, i, u, v, r, c, row, column in _products(mask, x.shape[1:3], stride, padding):
        for b in range(x.shape[3]):
            y[o][r][c][b] += w[o][i][u][v] * image[i][row][column][b]
    return np.array(y).reshape(shape)


def convolution_input_gradient(
    weight: np.ndarray,
    mask: np.ndarray,
    g: np.ndarray,
    input_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> np.ndarray:
    """Each product w * x that ``convolution`` adds to y adds w * g to dx; g is shaped like y, dx like x."""
    shape = (mask.shape[1], *input_size, g.shape[3])
    w, gradient, dx = weight.tolist(), g.tolist(), np.zeros(shape).tolist()
    for o, i, u, v, r, c, row, column in _products(mask, input_size, stride, padding):
        for b in range(g.shape[3]):
            dx[i][row][column][b] += w[o][i][u][v] * gradient[o][r][c][b]
    return np.array(dx).reshape(shape)


def convolution_weight_gradient(
    mask: np.ndarray, g: np.ndarray, x: np.ndarray, stride: tuple[int, int], padding: tuple[int, int]
) -> np.ndarray:
    """Each product w * x that ``convolution`` adds to y adds g * x to dw, which is shaped like the mask."""
    gradient, image, dw = g.tolist(), x.tolist(), np.zeros(mask.shape).tolist()
    for o, i, u, v, r, c, row, column in _products(mask, x.shape[1:3], stride, padding):
        for b in range(x.shape[3]):
            dw[o][i][u][v] += gradient[o][r][c][b] * image[i][row][column][b]
    return np.array(dw)


def _products(
    mask: np.ndarray, input_size: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int]
) -> Iterator[tuple[int, ...]]:
    """(o, i, u, v, r, c, row, column): the stored weight [o, i, u, v] meets x[i, row, column] for y[o, r, c]."""
    height, width = input_size
    top, left = _window_starts(mask, input_size, stride, padding)
    stored = [tuple(position) for position in np.argwhere(mask).tolist()]
    for o, i, u, v in stored:
        for r in range(len(top)):
            for c in range(len(left)):
                row, column = top[r] + u, left[c] + v
                if 0 <= row < height and 0 <= column < width:
                    yield o, i, u, v, r, c, row, column


def _window_starts(
    mask: np.ndarray, input_size: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int]
) -> list[range]:
    """First row (column) of every window that lies within the padded image; negative ones in the padding."""
    return [
        range(-pad, size + pad - kernel + 1, step)
        for kernel, size, step, pad in zip(mask.shape[2:], input_size, stride, padding, strict=True)
    ]


def _row(neuron: int, n_in: int) -> range:
    return range(neuron * n_in, (neuron + 1) * n_in)


def _positions(mask: np.ndarray) -> set[int]:
    flat = [entry for row in mask.tolist() for entry in row]
    return {position for position, entry in enumerate(flat) if entry}


def _absolute(array: np.ndarray) -> list[float]:
    # A float32 becomes the Python float of the same value, so comparisons are exact for both precisions.
    return [abs(float(entry)) for row in array.tolist() for entry in row]


def _largest(scores: list[float], candidates: Iterable[int], how_many: int) -> set[int]:
    ranked = sorted((-scores[position], position) for position in candidates)
    return {position for _, position in ranked[:how_many]}


def _counts(positions: set[int], n_out: int, n_in: int) -> list[int]:
    return [sum(1 for position in _row(i, n_in) if position in positions) for i in range(n_out)]


def _grow_per_neuron(
    kept: set[int], grad_score: list[float], survivors: list[int], fan_in: int, n_in: int
) -> set[int]:
    new = set(kept)
    for i in survivors:
        not_kept = [position for position in _row(i, n_in) if position not in kept]
        new |= _largest(grad_score, not_kept, fan_in - (n_in - len(not_kept)))
    return new


def _to_array(positions: set[int], shape: tuple[int, int]) -> np.ndarray:
    n_out, n_in = shape
    rows = [[position in positions for position in _row(i, n_in)] for i in range(n_out)]
    return np.array(rows, dtype=bool).reshape(shape)


def _report(
    old: set[int],
    kept: set[int],
    new: set[int],
    ablated: set[int],
    shape: tuple[int, int],
    salient: set[int] | None = None,
    fan_in: int | None = None,
) -> NaiveUpdate:
    n_out, n_in = shape
    return NaiveUpdate(
        mask=_to_array(new, shape),
        kept=_to_array(kept, shape),
        grown=_to_array(new - old, shape),
        dropped=_to_array(old - new, shape),
        regrown=_to_array((old - kept) & new, shape),
        ablated=np.array([i in ablated for i in range(n_out)], dtype=bool),
        salient=None if salient is None else _to_array(salient, shape),
        salient_counts=None if salient is None else np.array(_counts(salient, n_out, n_in)),
        fan_in=fan_in,
    )
