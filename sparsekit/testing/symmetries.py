"""What must not matter: memory, the order of neurons and inputs, the sign of scores, a common factor of them."""

from collections.abc import Callable
from functools import wraps

import numpy as np

from sparsekit.testing.case import BrokenPromiseError, Case, first_difference
from sparsekit.testing.contract import require_equal


def of_distinct_scores(promise: Callable[[Case], None]) -> Callable[[Case], None]:
    """Ask for the promise where no two weights or gradients tie; that layer is then the example shown."""

    @wraps(promise)
    def asked(case: Case) -> None:
        case = case.without_ties()
        try:
            promise(case)
        except BrokenPromiseError as error:
            error.example = str(case)
            raise

    return asked


def memory_layout(case: Case) -> None:
    """Memory layout, dtype and write protection of the arguments do not matter."""
    arrays = {name: case.arguments()[name] for name in ("weight", "mask", "grad")}
    variants = {
        "Fortran order": {name: np.asfortranarray(array) for name, array in arrays.items()},
        "every other column": {name: np.repeat(array, 2, axis=1)[:, ::2] for name, array in arrays.items()},
        "read-only": {name: _read_only(array) for name, array in arrays.items()},
        "float64": {name: arrays[name].astype(np.float64) for name in ("weight", "grad")},
    }
    for words, changes in variants.items():
        if difference := first_difference(case.update, case.again(**changes)):
            raise BrokenPromiseError(f"the memory of the arguments must not matter, but with {words} another "
                                     f"{difference} comes out")  # fmt: skip


@of_distinct_scores
def order(case: Case) -> None:
    """Permuted neurons and inputs give the permuted update, where no two scores are equal."""
    if case.declared.needs_rng or not case.declared.permutable:
        return
    rng = np.random.default_rng(case.seed)
    n_out, n_in = case.layer.mask.shape
    rows = np.arange(n_out) if _tied_neurons(case) else rng.permutation(n_out)
    columns = rng.permutation(n_in)

    def permuted(array: np.ndarray) -> np.ndarray:
        return array[rows][:, columns]

    weight, mask, grad = (permuted(array) for array in case.layer.arguments[:3])
    moved = case.again(weight=weight, mask=mask, grad=grad)
    what = f"neurons in the order {rows.tolist()} and inputs in the order {columns.tolist()} must give the same"
    require_equal(f"{what} kept in that order", moved.kept, permuted(case.update.kept))
    require_equal(f"{what} mask in that order", moved.mask, permuted(case.update.mask))


@of_distinct_scores
def scale_and_sign(case: Case) -> None:
    """Ranking by magnitude knows neither the sign of a score nor a common factor."""
    changes = {}
    if case.declared.drops == "magnitude":
        changes["weight"] = -4 * case.layer.weight
    if case.declared.grows == "gradient":
        changes["grad"] = -0.5 * case.layer.grad
    for name, array in changes.items():
        update = case.again(**{name: array})
        if not np.array_equal(update.mask, case.update.mask):
            factor = -4 if name == "weight" else -0.5
            raise BrokenPromiseError(
                f"only the ranking of |{name}| may count, but {factor} * {name} gives another mask"
            )


def _tied_neurons(case: Case) -> bool:
    """Whether the floor saves neurons from ablation, some of which may be equally salient."""
    counts, threshold = case.update.salient_counts, case.update.ablation_threshold
    if counts is None or threshold is None:
        return False
    # without revival the floor may also save dead neurons that are salient enough
    saved = (counts < threshold) | ~case.layer.mask.any(axis=1)
    return bool((saved & ~case.update.ablated).any())


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


PROMISES = {"memory layout": memory_layout, "order": order, "scale and sign": scale_and_sign}
