"""Slow, independent versions: the oracles of ``test_topology.py``, of convolutions, pooling and normalisation.

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


def rectified(y: np.ndarray) -> np.ndarray:
    """ReLU: negative values become zero, NaN stays NaN."""
    flat = [0.0 if value < 0 else value for value in y.reshape(-1).astype(float).tolist()]
    return np.array(flat).reshape(y.shape)


def scaled_and_rectified(x: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """ReLU of scale[c] * x[c] + shift[c] for images (channels, height, width, batch)."""
    y = np.zeros(x.shape)
    for c in range(len(x)):
        for h, w, b in np.ndindex(x.shape[1:]):
            y[c, h, w, b] = float(scale[c]) * float(x[c, h, w, b]) + float(shift[c])
    return rectified(y)


def conv_layer(
    weight: np.ndarray,
    mask: np.ndarray,
    x: np.ndarray,
    stride: tuple[int, int],
    padding: tuple[int, int],
    *,
    bias: np.ndarray | None = None,
    relu: bool = False,
    before: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """ReLU of (convolution of x, or of the ReLU of scale * x + shift, plus the bias of the output channel)."""
    y = convolution(weight, mask, x if before is None else scaled_and_rectified(x, *before), stride, padding)
    if bias is not None:
        for o, h, w, b in np.ndindex(y.shape):
            y[o, h, w, b] += float(bias[o])
    return rectified(y) if relu else y


def max_pooling(x: np.ndarray, kernel: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """The largest value of each window, NaN if it holds one."""
    shape, y = _pooled_shape(x, kernel, stride), []
    for c, h, w, b in np.ndindex(shape):
        values = [float(x[c, row, column, b]) for row, column in _window(h, w, kernel, stride)]
        y.append(next((value for value in values if value != value), max(values)))
    return np.array(y).reshape(shape)


def max_pooling_gradient(
    g: np.ndarray, x: np.ndarray, kernel: tuple[int, int], stride: tuple[int, int]
) -> np.ndarray:
    """Each g goes to the largest pixel of its window: a NaN, if there is one; the first among equals."""
    dx = np.zeros(x.shape)
    for c, h, w, b in np.ndindex(g.shape):
        pixels = _window(h, w, kernel, stride)
        values = [float(x[c, row, column, b]) for row, column in pixels]
        nans = [k for k, value in enumerate(values) if value != value]
        row, column = pixels[nans[0] if nans else values.index(max(values))]
        dx[c, row, column, b] += float(g[c, h, w, b])
    return dx


def average_pooling(x: np.ndarray, kernel: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """The mean of each window."""
    shape, y = _pooled_shape(x, kernel, stride), []
    for c, h, w, b in np.ndindex(shape):
        values = [float(x[c, row, column, b]) for row, column in _window(h, w, kernel, stride)]
        y.append(sum(values) / len(values))
    return np.array(y).reshape(shape)


def average_pooling_gradient(
    g: np.ndarray, x: np.ndarray, kernel: tuple[int, int], stride: tuple[int, int]
) -> np.ndarray:
    """Each g is shared out evenly among the pixels of its window."""
    dx = np.zeros(x.shape)
    for c, h, w, b in np.ndindex(g.shape):
        pixels = _window(h, w, kernel, stride)
        for row, column in pixels:
            dx[c, row, column, b] += float(g[c, h, w, b]) / len(pixels)
    return dx


def feature_statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance of every feature of x (features, ...), in float64."""
    means, variances = [], []
    for row in x.reshape(len(x), -1).tolist():
        mean = sum(row) / len(row)
        means.append(mean)
        variances.append(sum((value - mean) ** 2 for value in row) / len(row))
    return np.array(means), np.array(variances)


def batch_norm(
    x: np.ndarray, mean: np.ndarray, var: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float
) -> np.ndarray:
    """weight * (x - mean) / sqrt(var + eps) + bias, feature by feature; x is (features, ...)."""
    y = []
    for i, row in enumerate(x.reshape(len(x), -1).tolist()):
        std = (float(var[i]) + eps) ** 0.5
        y.append([float(weight[i]) * (value - float(mean[i])) / std + float(bias[i]) for value in row])
    return np.array(y).reshape(x.shape)


def batch_norm_gradient(
    g: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dx, d weight, d bias in training, by the derivative of every output with respect to every input.

    With z_j = (x_j - mean) / std, of n values: dz_j / dx_i = (1[i = j] - 1 / n - z_i z_j / n) / std.
    """
    means, variances = feature_statistics(x)
    dx, d_weight, d_bias = [], [], []
    for i, (row, grad) in enumerate(
        zip(x.reshape(len(x), -1).tolist(), g.reshape(len(g), -1).tolist(), strict=True)
    ):
        n, std = len(row), (variances[i] + eps) ** 0.5
        z = [(value - means[i]) / std for value in row]
        d_weight.append(sum(grad[j] * z[j] for j in range(n)))
        d_bias.append(sum(grad))
        dz = [float(weight[i]) * value for value in grad]
        dx.append([sum(dz[j] * ((i == j) - 1 / n - z[i] * z[j] / n) / std for j in range(n)) for i in range(n)])
    return np.array(dx).reshape(x.shape), np.array(d_weight), np.array(d_bias)


def residual_sum(branch: np.ndarray, side: np.ndarray, relu: bool) -> np.ndarray:
    """The ReLU of branch + side, or that sum."""
    pairs = zip(branch.reshape(-1).tolist(), side.reshape(-1).tolist(), strict=True)
    y = np.array([a + b for a, b in pairs]).reshape(branch.shape)
    return rectified(y) if relu else y


def _pooled_shape(x: np.ndarray, kernel: tuple[int, int], stride: tuple[int, int]) -> tuple[int, ...]:
    """(channels, pooled height, pooled width, batch): windows that lie within the image."""
    size = (len(range(0, x.shape[1 + d] - kernel[d] + 1, stride[d])) for d in (0, 1))
    return (len(x), *size, x.shape[3])


def _window(h: int, w: int, kernel: tuple[int, int], stride: tuple[int, int]) -> list[tuple[int, int]]:
    """(row, column) of the pixels of window (h, w), row by row."""
    rows = range(h * stride[0], h * stride[0] + kernel[0])
    columns = range(w * stride[1], w * stride[1] + kernel[1])
    return [(row, column) for row in rows for column in columns]


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
