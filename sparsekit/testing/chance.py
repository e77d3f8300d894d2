"""What methods promise that grow at random: every position that was not kept has a chance."""

import numpy as np

from sparsekit.testing.case import BrokenPromiseError, Case

N_DRAWS = 400  # each of some 40 positions grows with probability 1/10 or more: one is missed with 1e-17


def random_growth(case: Case) -> None:
    """grows="random": in many updates every position that was not kept grows, just-dropped ones too."""
    if case.declared.grows != "random":
        return
    weight = np.arange(48.0, 0.0, -1.0).reshape(6, 8)
    mask = weight > 36  # twelve weights in one and a half rows, of which the last six are dropped
    if case.method.constant_fan_in:
        mask = np.tile(np.arange(8) < 2, (6, 1))
    weight = np.where(mask, weight, 0.0)
    rng = np.random.default_rng(case.seed)
    changes = {"weight": weight, "mask": mask, "grad": weight, "drop_fraction": 0.5, "budget": 12}
    updates = [case.again(**changes, ablate=False, rng=rng) for _ in range(N_DRAWS)]
    never = ~np.any([update.kept | update.mask for update in updates], axis=0)
    if never.any():
        i, j = np.argwhere(never)[0]
        before = "just dropped" if mask[i, j] else "inactive"
        raise BrokenPromiseError(
            "every position that is not kept must be able to grow, but in "
            f"{N_DRAWS} updates [{i}, {j}] ({before}) never did"
        )


PROMISES = {"random growth": random_growth}
