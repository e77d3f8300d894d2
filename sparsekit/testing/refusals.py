"""What a method must refuse, with an InputError of one line: arguments that do not fit the contract."""

import numpy as np

from sparsekit.testing.case import BrokenPromiseError, Case


def refusals(case: Case) -> None:
    """Wrong shapes and dtypes, values that are not finite, fractions and budgets out of range are refused."""
    weight, mask, grad = case.layer.arguments[:3]
    bad = [
        ("a weight of another shape", {"weight": weight.T}),
        ("a weight of integers", {"weight": weight.astype(int)}),
        ("a weight that is NaN", {"weight": _with(weight, np.nan)}),
        ("an infinite weight", {"weight": _with(weight, np.inf)}),
        ("a mask of floats", {"mask": mask.astype(float)}),
        ("a flat mask", {"mask": mask.ravel()}),
        ("a gradient of another shape", {"grad": grad[:-1]}),
        ("a gradient that is NaN", {"grad": _with(grad, np.nan)}),
        ("an infinite gradient", {"grad": _with(grad, -np.inf)}),
        ("a negative drop_fraction", {"drop_fraction": -0.1}),
        ("a drop_fraction above 1", {"drop_fraction": 1.1}),
        ("a drop_fraction that is NaN", {"drop_fraction": np.nan}),
    ]
    if case.declared.needs_rng:
        bad.append(("rng=None", {"rng": None}))
    if case.declared.needs_budget:
        bad.append(("budget=None", {"budget": None}))
        n_out = mask.shape[0]
        bad += [
            (f"a budget of {budget} for {n_out} x {mask.shape[1]} weights", {"budget": budget})
            for budget in (n_out - 1, mask.size + 1)
        ]
    for what, changes in bad:
        if not case.refuses(**changes):
            raise BrokenPromiseError(f"update must raise an InputError of one line for {what}")


def _with(array: np.ndarray, value: float) -> np.ndarray:
    """A copy with this value in the last place."""
    copy = array.copy()
    copy.flat[-1] = value
    return copy


PROMISES = {"refusals": refusals}
