"""The SRigL update as the authors' published code carries it out, with its faults, for comparisons.

It differs from :class:`SRigL` in five points, all found by reading that code (calgaryml/condensed-sparsity):

* gradients make weights salient at all positions, active ones included;
* where fewer active weights than n_keep are non-zero, n_keep shrinks to their number and growth gains the rest;
* the ablation threshold is lowered to the (budget // n_in + 1)-th highest salient count;
* n_keep is not counted again after ablation: inactive positions of value zero, by lowest flat index, may be
  "kept" in the place of the ablated neurons' weights;
* a neuron with too many kept weights keeps those of lowest index, not of largest magnitude (that code sorts
  a mask of booleans).

Where its choice among equal scores is arbitrary, the lower flat index wins here.
"""

import numpy as np

from sparsekit.topology.selection import largest, largest_per_row
from sparsekit.topology.update import TopologyUpdate


def update(
    magnitude: np.ndarray,
    mask: np.ndarray,
    gradient: np.ndarray,
    n_prune: int,
    n_keep: int,
    budget: int,
    threshold: int,
) -> TopologyUpdate:
    """One update from |weight| (n_out, n_in), |grad| (n_out, n_in) and the counts of step 1.

    `threshold` is the salient count a neuron needs, 0 where no neuron may be ablated.
    """
    n_out, n_in = mask.shape
    everywhere = np.ones_like(mask)
    magnitude = np.where(mask, magnitude, 0)
    non_zero = int(np.count_nonzero(magnitude))
    if non_zero < n_keep:
        n_keep, n_prune = non_zero, n_keep + n_prune - non_zero

    keep_candidates = largest(magnitude, everywhere, n_keep)
    grow_candidates = largest(gradient, everywhere, n_prune)
    salient = keep_candidates | grow_candidates
    salient_counts = salient.sum(axis=1)

    most_salient_first = np.sort(salient_counts)[::-1]
    threshold = min(threshold, int(most_salient_first[min(budget // n_in, n_out - 1)]))
    active = (salient_counts >= threshold)[:, None]
    fan_in = min(n_in, budget // int(np.count_nonzero(active)))

    kept = largest(magnitude, everywhere & active, n_keep)
    kept &= kept.cumsum(axis=1) <= fan_in
    new = largest_per_row(np.where(kept, np.inf, gradient), fan_in) & active
    return TopologyUpdate.between(
        mask,
        kept,
        new,
        keep_candidates=keep_candidates,
        grow_candidates=grow_candidates,
        salient=salient,
        salient_counts=salient_counts,
        ablation_threshold=threshold,
        fan_in=fan_in,
    )
