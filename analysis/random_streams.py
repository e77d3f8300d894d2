"""Random numbers inside compiled loops: one independent stream for each block of samples.

Numba's own generator is one a thread, so that what a loop draws would depend on how many threads share it. Here a
stream is an array of four 64-bit words that the loop hands on, and whoever holds the array holds the stream:

* the generator is xoshiro256++ (D. Blackman, S. Vigna: Scrambled linear pseudorandom number generators, ACM TOMS
  47, 2021), with period 2^256 - 1;
* the streams are seeded by the children of a `numpy.random.SeedSequence`, which hashes the seed and the number of
  the child into 256 bits: that two streams overlap is as likely as guessing a key;
* normal numbers come from the ziggurat method (G. Marsaglia, W. W. Tsang, J. Stat. Software 5(8), 2000) with 256
  layers; layer, sign and position use different bits of the same word.
"""

import math

import numba
import numpy as np

_LAYERS = 256
_TO_UNIT = 2.0**-53
_ONE = np.uint64(1)


def streams(seed: np.random.SeedSequence, n_streams: int) -> np.ndarray:
    """States of independent streams, uint64 array (n_streams, 4); equal seeds give equal streams."""
    return np.stack([child.generate_state(4, np.uint64) for child in seed.spawn(n_streams)])


@numba.njit(inline="always")
def _rotated(word, bits):
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))


@numba.njit
def next_word(state):
    """The next 64 random bits; `state`, uint64 array (4,), moves on."""
    first, second, third, fourth = state[0], state[1], state[2], state[3]
    word = _rotated(first + fourth, 23) + first
    third ^= first
    fourth ^= second
    state[0] = first ^ fourth
    state[1] = second ^ third
    state[2] = third ^ (second << np.uint64(17))
    state[3] = _rotated(fourth, 45)
    return word


@numba.njit
def next_uniform(state):
    """Uniform on the multiples of 2^-53 in [0, 1)."""
    return float(next_word(state) >> np.uint64(11)) * _TO_UNIT


@numba.njit
def next_below(state, bound):
    """Uniform integer in [0, bound), for bounds up to 2^31; no value is off by more than one part in 2^22.

    The product of `bound` and a number below 1 is never rounded up to `bound`.
    """
    return int(next_uniform(state) * bound)


def _ziggurat() -> tuple[np.ndarray, np.ndarray]:
    """Right edges of the layers, the lowest first, and the height of exp(-x^2/2) at each.

    All 256 layers have one area V; the lowest is a rectangle up to r together with the tail beyond r, drawn as a
    rectangle of width V / f(r). The r for which the topmost layer ends at f = 1 is found by bisection.
    """
    low, high = 3.0, 4.0
    edges = _edges(high)
    while low < (r := (low + high) / 2) < high:
        found = _edges(r)
        if found is None:
            low = r
        else:
            high, edges = r, found
    assert edges is not None
    return edges, np.exp(-(edges**2) / 2)


def _edges(r: float) -> np.ndarray | None:
    """Edges of the layers over the tail beyond r; None if they reach the top too early: r is too small."""
    area = r * math.exp(-r * r / 2) + math.sqrt(math.pi / 2) * math.erfc(r / math.sqrt(2))
    edges = np.zeros(_LAYERS + 1)
    edges[:2] = area / math.exp(-r * r / 2), r
    for i in range(2, _LAYERS + 1):
        height = math.exp(-(edges[i - 1] ** 2) / 2) + area / edges[i - 1]
        if height >= 1:
            return None
        edges[i] = math.sqrt(-2 * math.log(height))
    edges[-1] = 0  # where it is but for rounding
    return edges


_EDGES, _HEIGHTS = _ziggurat()
_TAIL = _EDGES[1]


@numba.njit
def next_normal(state):
    """Standard normal number."""
    while True:
        word = next_word(state)
        layer = word & np.uint64(_LAYERS - 1)
        sign = 1.0 if (word >> np.uint64(8)) & _ONE else -1.0
        x = float(word >> np.uint64(11)) * _TO_UNIT * _EDGES[layer]
        if x < _EDGES[layer + _ONE]:  # below the curve whatever the height
            return sign * x
        if layer == 0:
            return sign * _from_tail(state)
        height = _HEIGHTS[layer] + next_uniform(state) * (_HEIGHTS[layer + _ONE] - _HEIGHTS[layer])
        if height < math.exp(-x * x / 2):
            return sign * x


@numba.njit
def _from_tail(state):
    """Normal number beyond r: an exponential one of rate r, accepted with the ratio of the two densities."""
    while True:
        beyond = -math.log(1 - next_uniform(state)) / _TAIL
        if -2 * math.log(1 - next_uniform(state)) > beyond * beyond:
            return _TAIL + beyond
