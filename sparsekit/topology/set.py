"""SET, sparse evolutionary training: drop by magnitude, grow at random."""

from dataclasses import dataclass

import numpy as np

from sparsekit.checks import require_rng
from sparsekit.topology.selection import largest
from sparsekit.topology.update import TopologyUpdate, check_layer


@dataclass(frozen=True)
class SET:
    """Drop the int(f nnz) active weights of smallest magnitude, grow as many uniformly at random.

    The random positions are drawn from all that were not kept, so a weight just dropped may return; it then
    keeps its value. Source: Mocanu et al., arXiv 1707.04780. Deviation: one magnitude ranking instead of
    separate ones for positive and negative weights, as in the RigL paper's SET.
    """

    constant_fan_in = False
    needs_grad = False

    def update(self, weight, mask, grad, drop_fraction, *, budget=None, ablate=True, rng=None) -> TopologyUpdate:
        """Return the layer's next topology; `grad` may be None. See :class:`TopologyMethod`."""
        n_prune, n_keep = check_layer(weight, mask, grad, drop_fraction, needs_grad=False)
        rng = require_rng("rng", rng)
        kept = largest(np.abs(weight), mask, n_keep)
        new = kept.copy()
        new.flat[rng.choice(np.flatnonzero(~kept), n_prune, replace=False)] = True
        return TopologyUpdate.between(mask, kept, new, keep_candidates=kept)
