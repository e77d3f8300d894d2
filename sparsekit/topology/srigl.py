"""SRigL, structured RigL: RigL under a constant fan-in, with neuron ablation."""

import math
from dataclasses import dataclass

import numpy as np

from sparsekit.checks import require_choice, require_fraction, require_integer
from sparsekit.errors import InputError
from sparsekit.topology import srigl_official
from sparsekit.topology.selection import largest, largest_per_row
from sparsekit.topology.update import TopologyUpdate, check_layer


@dataclass(frozen=True)
class SRigL:
    """Every active neuron has the same fan-in; neurons with too few salient weights are ablated.

    Attributes
    ----------
    gamma_sal : in [0, 1); a neuron needs max(1, int(gamma_sal * k0)) salient weights, where
        k0 = budget // n_out is the fan-in before any ablation. 0 switches ablation off.
    saliency_gradient : "inactive": only inactive positions can be salient by their gradient (the paper);
        "all": all positions (the authors' code)
    revive : whether a neuron without weights may get some again
    compat : "official" reproduces the authors' code with its faults, see
        :mod:`sparsekit.topology.srigl_official`; `saliency_gradient` is then "all" whatever it says

    Source: Lasby et al., "Dynamic Sparse Training with Structured Sparsity", arXiv 2305.02299. Deviations:
    the number of kept weights is counted again after ablation; ties go to the lower flat index; at least
    ceil(budget / n_in) neurons stay, so that the fan-in fits into n_in.
    """

    gamma_sal: float = 0.3
    saliency_gradient: str = "inactive"
    revive: bool = True
    compat: str | None = None
    constant_fan_in = True
    needs_grad = True

    def __post_init__(self) -> None:
        require_fraction("gamma_sal", self.gamma_sal, high_open=True)
        require_choice("saliency_gradient", self.saliency_gradient, ("inactive", "all"))
        require_choice("compat", self.compat, (None, "official"))
        if self.compat == "official" and not self.revive:
            raise InputError("revive must be True with compat='official', which always revives, not False")

    def update(self, weight, mask, grad, drop_fraction, *, budget=None, ablate=True, rng=None) -> TopologyUpdate:
        """Return the layer's next topology. See :class:`TopologyMethod` for the arguments."""
        n_prune, n_keep = check_layer(weight, mask, grad, drop_fraction, needs_grad=True)
        n_out, n_in = mask.shape
        budget = require_integer("budget", budget, n_out, n_out * n_in)
        threshold = ablation_threshold(self.gamma_sal, budget, n_out) if ablate else 0
        magnitude, gradient = np.abs(weight), np.abs(grad)
        if self.compat == "official":
            return srigl_official.update(magnitude, mask, gradient, n_prune, n_keep, budget, threshold)

        # 1-3: a weight is salient if it is kept by magnitude or would grow by gradient.
        keep_candidates = largest(magnitude, mask, n_keep)
        may_grow = np.ones_like(mask) if self.saliency_gradient == "all" else ~mask
        grow_candidates = largest(gradient, may_grow, n_prune)
        salient = keep_candidates | grow_candidates
        salient_counts = salient.sum(axis=1)

        # 4-5: what ablated neurons would have stored goes to the others.
        ablated = self._ablated(salient_counts, mask, threshold, floor=math.ceil(budget / n_in))
        active = ~ablated[:, None]
        fan_in = min(n_in, budget // int(np.count_nonzero(~ablated)))

        # 6: prune over the whole layer, then bring neurons that kept too many down to the fan-in.
        kept = largest(magnitude, mask & active, n_keep)
        full = kept.sum(axis=1) > fan_in
        kept[full] = largest_per_row(np.where(kept[full], magnitude[full], -np.inf), fan_in)

        # 7: what was kept ranks before every gradient, so each neuron fills up to exactly the fan-in.
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

    def _ablated(self, salient_counts: np.ndarray, mask: np.ndarray, threshold: int, floor: int) -> np.ndarray:
        """Bool (n_out,): neurons below the threshold, or dead for good, but never the `floor` best ones."""
        ablated = salient_counts < threshold
        dead = np.zeros_like(ablated) if self.revive else ~mask.any(axis=1)
        ablated |= dead
        # lexsort is stable: living neurons first, then by salient count, then by index.
        ablated[np.lexsort((-salient_counts, dead))[:floor]] = False
        return ablated


def ablation_threshold(gamma_sal: float, budget: int, n_out: int) -> int:
    """Salient weights that a neuron needs to stay: max(1, int(gamma_sal * k0)); 0 without ablation."""
    return max(1, int(gamma_sal * (budget // n_out))) if gamma_sal > 0 else 0
