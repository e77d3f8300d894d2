"""Static sparse training: the mask drawn at the start stays."""

from dataclasses import dataclass

import numpy as np

from sparsekit.topology.update import TopologyUpdate, check_layer


@dataclass(frozen=True)
class Static:
    """Keep the mask as it is.

    Attributes
    ----------
    constant_fan_in : whether the initial mask gives every neuron the same fan-in (condensed storage),
        or places the budget at random over the layer (CSR storage)
    """

    constant_fan_in: bool = True
    needs_grad = False

    def update(self, weight, mask, grad, drop_fraction, *, budget=None, ablate=True, rng=None) -> TopologyUpdate:
        """Return the mask unchanged. See :class:`TopologyMethod` for the arguments."""
        check_layer(weight, mask, grad, drop_fraction, needs_grad=False)
        return TopologyUpdate.between(mask, mask.copy(), mask.copy(), keep_candidates=np.copy(mask))
