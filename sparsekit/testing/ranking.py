"""What methods promise that rank: which weights stay, which grow, which neurons are ablated.

The largest is found by sorting here, on purpose not by :mod:`sparsekit.topology.selection`: a fault there is to be
seen here.
"""

import math

import numpy as np

from sparsekit.testing.case import BrokenPromiseError, Case
from sparsekit.testing.contract import require_equal, require_none


def largest(score: np.ndarray, candidates: np.ndarray, count: int) -> np.ndarray:
    """Mark the `count` largest scores among the candidates, or all of them; ties go to the lower flat index."""
    positions = np.flatnonzero(candidates)
    descending = np.argsort(-score.flat[positions], kind="stable")
    chosen = np.zeros(score.shape, dtype=bool)
    chosen.flat[positions[descending[:count]]] = True
    return chosen


def counts(case: Case) -> tuple[int, int]:
    """How many weights to drop, int(f nnz), and how many to keep."""
    nnz = int(np.count_nonzero(case.layer.mask))
    n_drop = int(case.layer.drop_fraction * nnz)
    return n_drop, nnz - n_drop


def pruning(case: Case) -> None:
    """drops="magnitude": of the neurons left the nnz - int(f nnz) largest weights stay, at most `fan_in` each."""
    old, update = case.layer.mask, case.update
    if case.declared.drops == "nothing":
        require_equal("drops='nothing', so kept must be the old mask", update.kept, old)
    if case.declared.drops != "magnitude":
        return
    magnitude, n_keep = np.abs(case.layer.weight), counts(case)[1]
    if update.keep_candidates is not None:
        expected = largest(magnitude, old, n_keep)
        require_equal(f"keep_candidates must be the {n_keep} largest weights", update.keep_candidates, expected)
    expected = largest(magnitude, old & ~update.ablated[:, None], n_keep)
    what = f"kept must be the {n_keep} largest weights of the neurons left"
    if update.fan_in is not None:
        what = f"{what}, at most {update.fan_in} a neuron"
        for i, row in enumerate(expected):
            expected[i] = largest(magnitude[i], row, update.fan_in)
    require_equal(what, update.kept, expected)


def growth(case: Case) -> None:
    """grows="gradient": the largest of all positions not kept, in the layer or, with `fan_in`, in each neuron."""
    update, grows = case.update, case.declared.grows
    if grows == "nothing":
        require_none("grows='nothing', so all weights must have been there", update.grown)
    if grows in ("gradient", "random") and update.fan_in is None:
        before, after = int(case.layer.mask.sum()), int(update.mask.sum())
        if after != before:
            raise BrokenPromiseError(
                f"as many must grow as were dropped, but there are {after} weights, not {before}"
            )
    if grows != "gradient":
        return
    gradient, taken = np.abs(case.layer.grad), update.mask & ~update.kept
    if update.fan_in is None:
        expected = largest(gradient, ~update.kept, int(taken.sum()))
        require_equal("the largest gradients of all positions not kept must grow", taken, expected)
        return
    for i in np.flatnonzero(~update.ablated):
        expected = largest(gradient[i], ~update.kept[i], update.fan_in - int(update.kept[i].sum()))
        what = f"neuron {i} must grow its largest gradients of all positions not kept"
        require_equal(what, taken[i], expected)


def saliency(case: Case) -> None:
    """Salient is what is kept by magnitude or would grow by gradient."""
    old, update = case.layer.mask, case.update
    if update.salient is None:
        return
    if update.keep_candidates is None or update.grow_candidates is None or update.salient_counts is None:
        raise BrokenPromiseError("salient needs keep_candidates, grow_candidates and salient_counts beside it")
    together = update.keep_candidates | update.grow_candidates
    require_equal("salient must be the union of keep_candidates and grow_candidates", update.salient, together)
    if not np.array_equal(update.salient_counts, update.salient.sum(axis=1)):
        raise BrokenPromiseError("salient_counts must count the salient weights of each neuron")
    may_grow = {"inactive": ~old, "all": np.ones_like(old)}
    rule = getattr(case.method, "saliency_gradient", None)
    rules = [rule] if rule in may_grow else list(may_grow)
    gradient, n_drop = np.abs(case.layer.grad), counts(case)[0]
    if not any(np.array_equal(update.grow_candidates, largest(gradient, may_grow[r], n_drop)) for r in rules):
        where = " or ".join(rules)
        raise BrokenPromiseError(f"grow_candidates must be the {n_drop} largest gradients of {where} positions")


def ablation(case: Case) -> None:
    """Neurons below the threshold are ablated, except the ceil(budget / n_in) most salient ones."""
    update, layer = case.update, case.layer
    if update.salient_counts is None or update.ablation_threshold is None:
        return
    n_out, n_in = layer.mask.shape
    threshold, salient_counts = update.ablation_threshold, update.salient_counts
    if (wanted := _threshold(case)) not in (None, threshold):
        raise BrokenPromiseError(f"the ablation threshold must be {wanted}, not {threshold}")
    dead = np.zeros(n_out, dtype=bool) if getattr(case.method, "revive", True) else ~np.any(layer.mask, axis=1)
    order = sorted(range(n_out), key=lambda i: (dead[i], -salient_counts[i], i))
    expected = (salient_counts < threshold) | dead
    expected[order[: math.ceil(layer.budget / n_in)]] = False
    for i in np.flatnonzero(update.ablated != expected):
        raise BrokenPromiseError(
            f"neuron {i} has {salient_counts[i]} salient weights, {threshold} are needed, and it "
            f"{'was empty' if dead[i] else 'may live'}: it must be {'ablated' if expected[i] else 'active'}"
        )


def _threshold(case: Case) -> int | None:
    """max(1, int(gamma_sal k0)) for a method with a gamma_sal; 0 where nothing may be ablated."""
    gamma_sal = getattr(case.method, "gamma_sal", None)
    if gamma_sal is None:
        return None
    k0 = case.layer.budget // case.layer.mask.shape[0]
    return max(1, int(gamma_sal * k0)) if case.ablate and gamma_sal > 0 else 0


PROMISES = {"pruning": pruning, "saliency": saliency, "ablation": ablation, "growth": growth}
