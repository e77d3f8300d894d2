"""Selecting the largest scores. Ties always go to the lower flat index, so every update is deterministic."""

import numpy as np


def largest(score: np.ndarray, candidates: np.ndarray, count: int) -> np.ndarray:
    """Mark the `count` largest scores among the candidates; all of them if there are fewer.

    Parameters
    ----------
    score : float array, any shape
    candidates : bool array of the same shape
    count : how many, >= 0

    Returns
    -------
    bool array of the same shape.
    """
    scores = score[candidates]
    if count >= scores.size:
        return candidates.copy()
    if count == 0:
        return np.zeros(score.shape, dtype=bool)
    threshold = np.partition(scores, scores.size - count)[scores.size - count]
    chosen = candidates & (score >= threshold)
    surplus = np.count_nonzero(chosen) - count
    if surplus:
        ties = np.flatnonzero(candidates & (score == threshold))
        chosen.flat[ties[-surplus:]] = False
    return chosen


def largest_per_row(score: np.ndarray, count: int) -> np.ndarray:
    """Mark the `count` largest scores of every row.

    Parameters
    ----------
    score : float array (n_rows, n_columns); +inf marks what is certainly taken, -inf what comes last
    count : how many a row, 0 <= count <= n_columns

    Returns
    -------
    bool array (n_rows, n_columns) with `count` True in each row.
    """
    n_columns = score.shape[1]
    if count == 0 or score.shape[0] == 0:
        return np.zeros(score.shape, dtype=bool)
    threshold = np.partition(score, n_columns - count, axis=1)[:, n_columns - count, None]
    chosen = score >= threshold
    for row in np.flatnonzero(chosen.sum(axis=1) > count):
        ties = np.flatnonzero(score[row] == threshold[row])
        chosen[row, ties[count - np.count_nonzero(chosen[row]) :]] = False
    return chosen
