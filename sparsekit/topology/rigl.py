"""RigL, "Rigging the Lottery": drop by magnitude, grow by gradient, over the whole layer."""

from dataclasses import dataclass

import numpy as np

from sparsekit.topology.selection import largest
from sparsekit.topology.update import TopologyUpdate, check_layer


@dataclass(frozen=True)
class RigL:
    """Drop the int(f nnz) active weights of smallest magnitude, grow as many of largest gradient.

    The gradients compete at all positions that were not kept, so a weight just dropped may return; it then
    keeps its value. Source: Evci et al., arXiv 1911.11134. Deviation: ties go to the lower flat index, where
    the original adds a little noise; inactive positions never count as kept.
    """

    constant_fan_in = False
    needs_grad = True

    def update(self, weight, mask, grad, drop_fraction, *, budget=None, ablate=True, rng=None) -> TopologyUpdate:
        """Return the layer's next topology. See :class:`TopologyMethod` for the arguments."""
        n_prune, n_keep = check_layer(weight, mask, grad, drop_fraction, needs_grad=True)
        kept = largest(np.abs(weight), mask, n_keep)
        new = kept | largest(np.abs(grad), ~kept, n_prune)
        return TopologyUpdate.between(mask, kept, new, keep_candidates=kept)
