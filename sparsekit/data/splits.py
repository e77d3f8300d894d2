"""Stratified random splits of labelled samples."""

import numpy as np

from sparsekit.checks import require_integer, require_rng


def stratified_split(y: np.ndarray, n_picked: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pick samples at random so that each class gives its share.

    A class with c of the n samples gives c * n_picked / n of them, rounded down or up: the samples that
    rounding down leaves over go to the classes with the largest remainders (lower class first among equals).
    No class gives its last sample, so a few less than `n_picked` may be picked when classes are small.

    Parameters
    ----------
    y : int array (n,) of labels, n > 0
    n_picked : how many samples to pick, 0 <= n_picked < n
    rng : random source of the picks

    Returns
    -------
    left, picked : int64 arrays of ascending positions in `y`; together they hold each position once

    Raises
    ------
    InputError
        If `n_picked` is not an integer in [0, n) or `rng` is not a Generator.
    """
    rng = require_rng("rng", rng)
    n_picked = require_integer("n_picked", n_picked, 0, len(y) - 1)
    classes, counts = np.unique(y, return_counts=True)
    picked = [
        rng.permutation(np.flatnonzero(y == label))[:share]
        for label, share in zip(classes, _shares(counts, n_picked), strict=True)
    ]
    is_picked = np.zeros(len(y), dtype=bool)
    is_picked[np.concatenate(picked)] = True
    return np.flatnonzero(~is_picked), np.flatnonzero(is_picked)


def _shares(counts: np.ndarray, n_picked: int) -> np.ndarray:
    """How many samples each class gives, by largest remainders in exact integers."""
    shares, remainders = np.divmod(counts * n_picked, counts.sum())
    order = np.argsort(-remainders, kind="stable")
    can_give = order[(remainders[order] > 0) & (shares[order] + 1 < counts[order])]
    shares[can_give[: n_picked - shares.sum()]] += 1
    return shares
