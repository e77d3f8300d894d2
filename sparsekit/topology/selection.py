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
    positions = np.flatnonzero(candidates)
    if count >= positions.size:
        return candidates.copy()
    chosen = np.zeros(score.shape, dtype=bool)
    if count == 0:
        return chosen
    scores = score.ravel()[positions]
    threshold = np.partition(scores, scores.size - count)[scores.size - count]
    above = scores > threshold
    ties = np.flatnonzero(scores == threshold)[: count - np.count_nonzero(above)]
    chosen.flat[positions[above]] = True
    chosen.flat[positions[ties]] = True
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
    above = score > threshold
    ties = score == threshold
    places_left = count - above.sum(axis=1, keepdims=True)
    return above | (ties & (ties.cumsum(axis=1) <= places_left))
