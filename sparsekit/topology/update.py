"""What every topology method takes and returns."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sparsekit.checks import require_fraction
from sparsekit.errors import InputError
from sparsekit.masks import require_mask


@dataclass(frozen=True, eq=False)
class TopologyUpdate:
    """One update of one layer, with every intermediate result. All masks are bool arrays (n_out, n_in).

    Attributes
    ----------
    mask : the new mask
    kept : what is left after pruning, before anything grows (for SRigL: after step 6)
    grown : active now, not before; their values and optimizer state start at zero
    dropped : active before, not now
    regrown : pruned and taken again in the same update; they keep value and optimizer state
    ablated : bool (n_out,), neurons without any weight in the new mask
    keep_candidates : step 1, the active weights of largest magnitude (None if the method does not prune)
    grow_candidates : step 2, the positions of largest gradient from which saliency is counted (SRigL)
    salient : step 3, the union of the two (SRigL)
    salient_counts : step 3, salient weights of each neuron, int64 (n_out,) (SRigL)
    ablation_threshold : step 4, neurons with fewer salient weights are ablated (SRigL with ablation)
    fan_in : step 5, the new constant fan-in (SRigL)
    """

    mask: np.ndarray
    kept: np.ndarray
    grown: np.ndarray
    dropped: np.ndarray
    regrown: np.ndarray
    ablated: np.ndarray
    keep_candidates: np.ndarray | None = None
    grow_candidates: np.ndarray | None = None
    salient: np.ndarray | None = None
    salient_counts: np.ndarray | None = None
    ablation_threshold: int | None = None
    fan_in: int | None = None

    @classmethod
    def between(cls, old: np.ndarray, kept: np.ndarray, new: np.ndarray, **steps) -> "TopologyUpdate":
        """Compare the masks before and after; `steps` holds the intermediate results."""
        return cls(
            mask=new,
            kept=kept,
            grown=new & ~old,
            dropped=old & ~new,
            regrown=old & ~kept & new,
            ablated=~np.any(new, axis=1),
            **steps,
        )


class TopologyMethod(Protocol):
    """A topology method: it decides which weights a layer stores next.

    `constant_fan_in` tells the storage that its masks need: condensed if True, CSR if False. `needs_grad` tells
    whether an update looks at the dense gradient, which is not computed otherwise.
    """

    @property
    def constant_fan_in(self) -> bool: ...

    @property
    def needs_grad(self) -> bool: ...

    def update(
        self,
        weight: np.ndarray,
        mask: np.ndarray,
        grad: np.ndarray | None,
        drop_fraction: float,
        *,
        budget: int | None = None,
        ablate: bool = True,
        rng: np.random.Generator | None = None,
    ) -> TopologyUpdate:
        """Return the layer's next topology; the arguments are left as they are.

        Parameters
        ----------
        weight : float (n_out, n_in), zero where inactive; convolutions as (out, in * kh * kw)
        mask : bool (n_out, n_in), the current topology
        grad : float (n_out, n_in), dense gradient of the loss at the masked weight, without weight decay
        drop_fraction : in [0, 1], fraction of the active weights to replace
        budget : weights the layer may store, in [n_out, n_out * n_in]; needed by SRigL
        ablate : False exempts the layer from neuron ablation (the output layer)
        rng : random source; needed by SET

        Raises
        ------
        InputError
            For arrays that do not fit each other, non-finite values, or a fraction or budget out of range.
        """
        ...


def check_layer(
    weight: np.ndarray, mask: np.ndarray, grad: np.ndarray | None, drop_fraction: float, *, needs_grad: bool
) -> tuple[int, int]:
    """Check the arguments of an update; return (weights to prune, weights to keep), int(f * nnz) and the rest."""
    require_mask(mask)
    _require_values("weight", weight, mask.shape)
    if grad is not None:
        _require_values("grad", grad, mask.shape)
    elif needs_grad:
        raise InputError("grad must be the dense gradient of the layer, not None")
    nnz = int(np.count_nonzero(mask))
    n_prune = int(require_fraction("drop_fraction", drop_fraction) * nnz)
    return n_prune, nnz - n_prune


def _require_values(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.shape != shape:
        kind = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(f"{name} must be a float array of the mask's shape {shape}, not {kind}")
    if not np.isfinite(array).all():
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise InputError(f"{name} must be finite, but {name}{list(first)} is {array[first]}")
