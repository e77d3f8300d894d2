"""The whole battery in one call."""

from collections.abc import Callable, Collection
from dataclasses import replace

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from sparsekit.checks import require_choice, require_integer
from sparsekit.errors import InputError
from sparsekit.testing import chance, contract, ranking, refusals, symmetries
from sparsekit.testing.case import BrokenPromiseError, Case, Declarations
from sparsekit.testing.strategies import Layer, edge_layers, ordinary_layer
from sparsekit.testing.training import training
from sparsekit.topology import TopologyMethod

Promise = Callable[[Case], None]
# In this order: the first that is broken is reported, and the plainer ones come first.
OF_EVERY_LAYER: dict[str, Promise] = contract.PROMISES | ranking.PROMISES | symmetries.PROMISES
OF_ONE_LAYER: dict[str, Promise] = refusals.PROMISES | chance.PROMISES
OF_TRAINING = {"training": training}
PROMISES = tuple(OF_EVERY_LAYER | OF_ONE_LAYER | OF_TRAINING)


def check_topology_method(
    method: TopologyMethod,
    *,
    drops: str | None = None,
    grows: str | None = None,
    permutable: bool = True,
    promises: Collection[str] | None = None,
    max_examples: int | None = None,
) -> None:
    """Check that a topology method does what it promises.

    Parameters
    ----------
    method : an object with `constant_fan_in`, `needs_grad` and `update`, see
        :class:`sparsekit.topology.TopologyMethod`
    drops : "magnitude" if the int(f nnz) smallest weights are dropped; "nothing" if no weight ever is; None for
        another rule, of which nothing is checked
    grows : "gradient" if the largest gradients grow, among all positions not kept; "random" if each of these may
        grow; "nothing" if none does; None for another rule
    permutable : False if the order of neurons or inputs matters even where no two scores are equal; methods that
        need `rng` are not asked
    promises : names of those to check, see below; None for all
    max_examples : random layers to try; None: as many as the Hypothesis profile in use says

    Raises
    ------
    BrokenPromiseError
        An AssertionError: the name of the promise that is broken, one sentence, and code for the smallest layer
        that was found to show it.

    Notes
    -----
    All methods promise:

    * every layer: whatever fits the contract is updated, without an error
    * arrays: fields of the update are bool arrays of the mask's shape, counts are integers
    * arguments unchanged: they are as they were, and the new mask is a new array
    * repeatable: same arguments and random state, same update
    * random source: a method that works without `rng` does not draw from it
    * gradient use: without `needs_grad`, `grad=None` changes nothing; with it, `grad=None` is refused
    * consistent report: `grown`, `dropped`, `regrown`, `ablated` and `kept` fit the two masks
    * constant fan-in: a method that claims it gives all active neurons the same fan-in
    * budget: never more weights than `budget`, or than before; with a `fan_in`: as large as the budget allows, in
      enough neurons
    * output layer: with `ablate=False` a method of constant fan-in empties no neuron
    * memory layout: order, strides, write protection and dtype of the arguments do not matter
    * order: without ties, permuted neurons and inputs give the permuted update
    * refusals: what does not fit the contract, or is missing, is an InputError of one line
    * training: in a tiny network, with SGD and AdamW, weights that stay keep value and optimizer state, new ones
      start at zero in both, biases are left alone

    What is declared by `drops` and `grows`, or reported in the update, is a promise too:

    * pruning: `kept` and `keep_candidates` are what `drops` says, ties go to the lower flat index
    * growth: new weights are those that `grows` says, as many as were dropped, or up to the `fan_in`
    * random growth: with grows="random" every position that was not kept grows in one of many updates
    * saliency: `salient`, `salient_counts` and `grow_candidates` are what :class:`TopologyUpdate` says
    * ablation: neurons below the `ablation_threshold` are ablated, but never the most salient
      ceil(budget / n_in)
    * scale and sign: ranked scores may be multiplied by any factor, negative ones too

    Where the method has an attribute `gamma_sal`, `saliency_gradient` or `revive`, it means what it means in
    :class:`sparsekit.topology.SRigL`. Methods of constant fan-in are asked about masks of constant fan-in only.

    Examples
    --------
    >>> from sparsekit.topology import RigL
    >>> check_topology_method(RigL(), drops="magnitude", grows="gradient", max_examples=20)
    """
    __tracebackhide__ = True  # pytest then shows the call, not this function
    require_choice("drops", drops, (None, "magnitude", "nothing"))
    require_choice("grows", grows, (None, "gradient", "random", "nothing"))
    for name in ("constant_fan_in", "needs_grad", "update"):
        if not hasattr(method, name):
            raise InputError(
                f"method must have {name}, see sparsekit.topology.TopologyMethod, but {method!r} has not"
            )
    declared = Declarations(drops, grows, permutable)
    count = settings().max_examples if max_examples is None else require_integer("max_examples", max_examples, 1)
    chosen = {require_choice("promises", name, PROMISES) for name in (PROMISES if promises is None else promises)}
    try:
        declared = _observed(method, declared)
        if searched := {name: promise for name, promise in OF_EVERY_LAYER.items() if name in chosen}:
            # Edge cases first: Hypothesis shrinks them, of an ordinary layer it knows the seed only.
            ordinary = st.integers(0, 2**32 - 1).map(ordinary_layer)
            for drawn in (edge_layers(method.constant_fan_in), ordinary):
                _search(searched, drawn, count - count // 2, method, declared)
        plain = Case(method, ordinary_layer(0), True, 0, declared)
        for name, promise in OF_ONE_LAYER.items():
            if name in chosen:
                _keep(name, promise, plain)
        for name, promise in OF_TRAINING.items():
            if name in chosen:
                _keep(name, promise, method)
    except BrokenPromiseError as error:
        found = _report(method, error)
    else:
        return
    raise found


def _observed(method: TopologyMethod, declared: Declarations) -> Declarations:
    """What is declared, and what the method does not work without."""
    plain = Case(method, ordinary_layer(0), True, 0, declared)
    return replace(declared, needs_rng=not plain.works(rng=None), needs_budget=not plain.works(budget=None))


def _search(
    promises: dict[str, Promise],
    drawn: st.SearchStrategy[Layer],
    max_examples: int,
    method: TopologyMethod,
    declared: Declarations,
) -> None:
    """Look for a layer that breaks a promise, and shrink it."""
    broken: str | None = None

    def try_all(layer: Layer, ablate: bool, seed: int) -> None:
        nonlocal broken
        case = Case(method, layer, ablate, seed, declared)
        for name, promise in promises.items():
            # Once a promise is seen to be broken it alone is asked for, so that shrinking does not end with
            # another one.
            if broken in (None, name):
                try:
                    _keep(name, promise, case)
                except BrokenPromiseError:
                    broken = name
                    raise

    search = settings(
        settings(),
        max_examples=max_examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow],
        verbosity=Verbosity.quiet,
        print_blob=False,
    )
    try:
        search(given(drawn, st.booleans(), st.integers(0, 2**32 - 1))(try_all))()
    except Flaky as error:
        raise _named("repeatable", BrokenPromiseError(
            "the same arguments and random state must give the same update, but a failure could not be repeated"
        )) from error  # fmt: skip


def _keep(name: str, promise: Callable, subject: object) -> None:
    """Ask for a promise; if it is broken, note which, and the example."""
    try:
        promise(subject)
    except BrokenPromiseError as error:
        _named(name, error, subject)
        raise


def _named(name: str, error: BrokenPromiseError, subject: object = None) -> BrokenPromiseError:
    error.promise = name
    if isinstance(subject, Case) and not error.example:
        error.example = str(subject)
    return error


def _report(method: TopologyMethod, error: BrokenPromiseError) -> BrokenPromiseError:
    """The error that the user sees: without the traceback of the search."""
    text = f"{method!r} breaks the promise {error.promise!r}: {error}"
    if error.example:
        text += f"\n\nThe smallest layer found:\n\n{error.example}"
    found = BrokenPromiseError(text)
    found.promise, found.example = error.promise, error.example
    found.__cause__ = error.__cause__
    return found
