"""Stratified random splits of labelled samples."""

import numpy as np

from sparsekit.errors import InputError


def stratified_split(y: np.ndarray, n_picked: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pick samples at random so that each class gives its share.

    A class with c of the n samples gives c * n_picked / n of them, rounded down or up: the samples that
    rounding down leaves over go to the classes with the largest remainders (lower class first among equals).
    No class gives its last sample, so a few less than `n_picked` may be picked when classes are small.

    Parameters
    ----------
    y : int array (n,)
        Labels.
    n_picked : int
        How many samples to pick, 0 <= n_picked < n.
    rng : numpy.random.Generator

    Returns
    -------
    left, picked : int64 arrays
        Ascending positions in `y`; together they hold each position once.

    Raises
    ------
    InputError
        If `n_picked` is outside [0, n) or `rng` is not a Generator.
    """
    if not isinstance(rng, np.random.Generator):
        raise InputError(f"rng must be a numpy.random.Generator, not {type(rng).__name__}")
    if not 0 <= n_picked < len(y):
        raise InputError(f"n_picked is {n_picked}, but must be in [0, {len(y)}), the number of samples")
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
