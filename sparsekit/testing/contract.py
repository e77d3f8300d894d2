"""What every topology method promises, whatever its rule: see :class:`sparsekit.topology.TopologyMethod`."""

import math

import numpy as np

from sparsekit.masks import has_constant_fan_in
from sparsekit.testing.case import BrokenPromiseError, Case, first_difference

MASKS = ("mask", "kept", "grown", "dropped", "regrown")
OPTIONAL_MASKS = ("keep_candidates", "grow_candidates", "salient")


def every_layer(case: Case) -> None:
    """Whatever fits the contract is updated, without an error."""
    case.again()


def arrays(case: Case) -> None:
    """Fields are bool arrays of the mask's shape, counts are integers."""
    n_out = case.layer.mask.shape[0]
    shapes = dict.fromkeys((*MASKS, *OPTIONAL_MASKS), case.layer.mask.shape) | {"ablated": (n_out,)}
    for name, shape in shapes.items():
        array = getattr(case.update, name)
        if array is None and name in OPTIONAL_MASKS:
            continue
        if not isinstance(array, np.ndarray) or array.dtype != bool or array.shape != shape:
            raise BrokenPromiseError(f"{name} must be a bool array {shape}, not {_kind(array)}")
    counts = case.update.salient_counts
    if counts is not None and (np.shape(counts) != (n_out,) or np.asarray(counts).dtype.kind not in "iu"):
        raise BrokenPromiseError(f"salient_counts must be an integer array ({n_out},), not {_kind(counts)}")
    for name in ("fan_in", "ablation_threshold"):
        number = getattr(case.update, name)
        if number is not None and type(number) is not int:  # results go into JSON files
            raise BrokenPromiseError(f"{name} must be a plain int, not {_kind(number)}")


def arguments_unchanged(case: Case) -> None:
    """The arguments stay as they are, and the new mask is a new array."""
    arguments = case.arguments()
    before = {name: arguments[name].copy() for name in ("weight", "mask", "grad")}
    update = case.again(**{name: arguments[name] for name in before})
    for name, array in before.items():
        if arguments[name].tobytes() != array.tobytes():
            raise BrokenPromiseError(f"update must leave its arguments as they are, but it has changed {name}")
    if np.shares_memory(update.mask, arguments["mask"]):
        raise BrokenPromiseError("the new mask must be a new array, but it shares memory with the old one")


def repeatable(case: Case) -> None:
    """The same arguments and random state give the same update, whatever was updated in between."""
    first, layer = case.update, case.layer
    case.again(weight=layer.weight[::-1], mask=layer.mask[::-1], grad=layer.grad[::-1])
    if difference := first_difference(first, case.again()):
        raise BrokenPromiseError(
            f"the same arguments and random state must give the same update, but {difference} differs "
            "the second time"
        )


def random_source(case: Case) -> None:
    """A method that works without a random source must not touch the one it is given."""
    if case.declared.needs_rng:
        return
    rng = np.random.default_rng(case.seed)
    before = rng.bit_generator.state
    case.again(rng=rng)
    if rng.bit_generator.state != before:
        raise BrokenPromiseError(
            "update draws from rng, but also works without: it must need rng or leave it alone"
        )
    if difference := first_difference(case.update, case.again(rng=None)):
        raise BrokenPromiseError(f"update works without rng, but {difference} then differs")


def gradient_use(case: Case) -> None:
    """needs_grad says whether update looks at the gradient."""
    if case.method.needs_grad:
        if not case.refuses(grad=None):
            raise BrokenPromiseError("needs_grad is True, so update must raise an InputError for grad=None")
    elif difference := first_difference(case.update, case.again(grad=None)):
        raise BrokenPromiseError(f"needs_grad is False, but {difference} is another one with grad=None")


def consistent_report(case: Case) -> None:
    """Fields fit the masks before and after."""
    old, update = case.layer.mask, case.update
    wanted = {
        "grown": ("active now and not before", update.mask & ~old),
        "dropped": ("active before and not now", old & ~update.mask),
        "regrown": ("active before, not in kept, and active now", old & ~update.kept & update.mask),
        "ablated": ("the neurons without a weight in the new mask", ~update.mask.any(axis=1)),
    }
    for name, (words, expected) in wanted.items():
        require_equal(f"{name} must be {words}", getattr(update, name), expected)
    require_none("kept must hold weights that were there", update.kept & ~old)
    require_none("what is kept must be in the new mask", update.kept & ~update.mask)


def constant_fan_in(case: Case) -> None:
    """A method that claims a constant fan-in gives every active neuron the same one."""
    if not case.method.constant_fan_in:
        return
    fan_ins = case.update.mask.sum(axis=1)
    if not has_constant_fan_in(case.update.mask):
        raise BrokenPromiseError(f"constant_fan_in is True, but the new mask has fan-ins {fan_ins.tolist()}")
    fan_in = case.update.fan_in
    if fan_in is not None and (fan_ins[fan_ins > 0] != fan_in).any():
        raise BrokenPromiseError(f"fan_in is {fan_in}, but the new mask has fan-ins {fan_ins.tolist()}")


def budget(case: Case) -> None:
    """A layer never stores more than its budget, or than it did; a fan-in is as large as the budget allows."""
    (n_out, n_in), update = case.layer.mask.shape, case.update
    nnz, before, allowed = int(update.mask.sum()), int(case.layer.mask.sum()), case.layer.budget
    if update.fan_in is None:
        if nnz > max(before, allowed):
            raise BrokenPromiseError(
                f"the new mask has {nnz} weights: more than the budget, {allowed}, and before"
            )
        return
    n_active = int(np.count_nonzero(update.mask.any(axis=1)))
    floor = math.ceil(allowed / n_in)
    if n_active < floor:
        raise BrokenPromiseError(
            f"only {n_active} of {n_out} neurons are active, but a budget of {allowed} needs at least {floor}"
        )
    if update.fan_in != min(n_in, allowed // n_active):
        raise BrokenPromiseError(
            f"a budget of {allowed} gives {n_active} active neurons a fan-in of {min(n_in, allowed // n_active)}, "
            f"not {update.fan_in}"
        )


def output_layer(case: Case) -> None:
    """With ablate=False a method of constant fan-in leaves every neuron its weights."""
    if not case.method.constant_fan_in:
        return
    lost = case.layer.mask.any(axis=1) & ~case.again(ablate=False).mask.any(axis=1)
    if lost.any():
        raise BrokenPromiseError(f"ablate=False, but neuron {int(np.argmax(lost))} has lost all its weights")


def require_equal(what: str, got: np.ndarray, expected: np.ndarray) -> None:
    """Raise with `what` and the first place where two bool arrays differ."""
    if not np.array_equal(got, expected):
        place = tuple(int(i) for i in np.argwhere(got != expected)[0])
        found, wanted = bool(got[place]), bool(expected[place])
        where = f"[{', '.join(map(str, place))}]"
        raise BrokenPromiseError(f"{what}, but at {where} it is {found} instead of {wanted}")


def require_none(what: str, wrong: np.ndarray) -> None:
    """Raise with `what` and the first place where `wrong` is True."""
    if wrong.any():
        raise BrokenPromiseError(f"{what}, but [{', '.join(map(str, np.argwhere(wrong)[0]))}] is not")


def _kind(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"{type(value).__name__} {value!r}"


PROMISES = {
    "every layer": every_layer,
    "arrays": arrays,
    "arguments unchanged": arguments_unchanged,
    "repeatable": repeatable,
    "random source": random_source,
    "gradient use": gradient_use,
    "consistent report": consistent_report,
    "constant fan-in": constant_fan_in,
    "budget": budget,
    "output layer": output_layer,
}
