"""`sparsekit.testing`: our methods keep every promise, and each planted fault breaks the one it is said to."""

import doctest
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import naive
import numpy as np
import pytest
from hypothesis import Phase, find, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from planted_faults import FAULTS, Fault, table
from strategies import examples, layers
from test_topology import assert_same_update

from sparsekit.errors import InputError
from sparsekit.masks import require_mask
from sparsekit.testing import BrokenPromiseError, check, check_topology_method
from sparsekit.topology import SET, RigL, SRigL, Static, TopologyUpdate
from sparsekit.topology.selection import largest_per_row
from sparsekit.topology.update import check_layer

RANKING = {"drops": "magnitude", "grows": "gradient"}
METHODS = [
    (RigL(), RANKING),
    (SRigL(), RANKING),
    (SRigL(gamma_sal=0.0), RANKING),
    (SRigL(gamma_sal=0.9), RANKING),
    (SRigL(gamma_sal=0.6, saliency_gradient="all"), RANKING),
    (SRigL(gamma_sal=0.9, revive=False), RANKING),
    (SET(), {"drops": "magnitude", "grows": "random"}),
    (Static(), {"drops": "nothing", "grows": "nothing"}),
    (Static(constant_fan_in=False), {"drops": "nothing", "grows": "nothing"}),
]


@pytest.mark.parametrize(("method", "declared"), METHODS, ids=str)
def test_our_methods_keep_their_promises(method, declared):
    check_topology_method(method, **declared)


def test_the_published_code_does_not_keep_them():
    """Its faults are rebuilt on purpose: weights at inactive positions are kept, for one."""
    official = SRigL(gamma_sal=0.9, compat="official")
    with pytest.raises(BrokenPromiseError, match="kept must hold weights that were there"):
        check_topology_method(official, promises=["consistent report"], max_examples=examples(400))
    with pytest.raises(BrokenPromiseError, match="'pruning'"):
        check_topology_method(official, drops="magnitude")


# --- Planted faults -----------------------------------------------------------------------------------------


def ids(fault: Fault) -> str:
    return fault.words


@pytest.mark.parametrize("fault", FAULTS, ids=ids)
def test_the_named_promise_catches_the_fault(fault):
    with fault.planted(), pytest.raises(BrokenPromiseError) as caught:
        # Enough for other examples to catch it as well, such as those of another version of Hypothesis.
        check_topology_method(fault.subject, **fault.declared, promises=[fault.check], max_examples=examples(500))
    assert caught.value.promise == fault.check


@pytest.mark.parametrize("fault", [FAULTS[0], FAULTS[-1]], ids=ids)
def test_the_whole_battery_catches_faults(fault):
    with fault.planted(), pytest.raises(BrokenPromiseError):
        check_topology_method(fault.subject, **fault.declared)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if "with their sign" in fault.words], ids=ids)
def test_signed_scores_are_seen_by_turning_the_sign(fault):
    with fault.planted(), pytest.raises(BrokenPromiseError, match="only the ranking of"):
        check_topology_method(fault.subject, **fault.declared, promises=["scale and sign"])


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.oracle], ids=ids)
def test_the_naive_versions_see_the_fault(fault):
    with fault.planted():
        assert differs_somewhere(fault.subject)


@pytest.mark.parametrize(
    "method", [RigL(), SRigL(), SRigL(gamma_sal=0.9), SRigL(gamma_sal=0.9, revive=False)], ids=str
)
def test_the_naive_versions_see_none_where_none_is_planted(method):
    assert not differs_somewhere(method)


def differs_somewhere(method) -> bool:
    """Whether an update of some layer is not that of the naive version, or fails."""

    def differs(drawn) -> bool:
        layer, ablate = drawn
        try:
            update = method.update(*layer.arguments, budget=layer.budget, ablate=ablate)
            assert_same_update(update, oracle(method, layer, ablate))
        except (AssertionError, ArithmeticError, ValueError):
            return True
        return False

    search = settings(max_examples=examples(150), phases=[Phase.generate], database=None, derandomize=True)
    try:
        find(st.tuples(layers(), st.booleans()), differs, settings=search)
    except NoSuchExample:
        return False
    return True


def oracle(method, layer, ablate):
    if isinstance(method, RigL):
        return naive.rigl(*layer.arguments)
    options = {name: getattr(method, name) for name in ("gamma_sal", "saliency_gradient", "revive")}
    return naive.srigl(*layer.arguments, layer.budget, ablate=ablate, **options)


def test_a_fault_whose_text_is_gone_is_no_fault():
    for old in ("this text is not there", "import"):  # not at all, and more than once
        with pytest.raises(AssertionError, match="is not planted"), replace(FAULTS[0], old=old).planted():
            pass


def test_a_fault_is_gone_afterwards():
    before = RigL.update
    with FAULTS[0].planted():
        assert RigL.update is not before
    assert RigL.update is before


def test_contributing_lists_the_faults():
    """`python tests/planted_faults.py` prints the table."""
    text = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    title, *rows = table().splitlines()
    assert title in text
    assert (title + text.split(title)[1]).split("\n\n")[0].splitlines()[1:] == rows
    assert len({fault.words for fault in FAULTS}) == len(FAULTS)


def test_every_promise_about_ranking_and_training_has_a_fault():
    unplanted = {"every layer", "arrays", "repeatable", "gradient use", "memory layout", "order", "scale and sign"}
    assert {fault.check for fault in FAULTS} == set(check.PROMISES) - unplanted


# --- A method of one's own ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PerNeuron:
    """Every neuron replaces the same number of its own weights: a small method as a user may write it."""

    constant_fan_in = True
    needs_grad = True

    def update(self, weight, mask, grad, drop_fraction, *, budget=None, ablate=True, rng=None):
        check_layer(weight, mask, grad, drop_fraction, needs_grad=True)
        fan_in = int(mask.sum(axis=1).max(initial=0))
        alive = mask.any(axis=1)[:, None]
        n_keep = fan_in - int(drop_fraction * fan_in)
        kept = largest_per_row(np.where(mask, np.abs(weight), -np.inf), n_keep) & alive
        new = largest_per_row(np.where(kept, np.inf, np.abs(grad)), fan_in) & alive
        return TopologyUpdate.between(mask, kept, new)


def test_a_method_of_ones_own_passes_with_one_call():
    check_topology_method(PerNeuron())


def test_what_is_declared_is_checked():
    """It prunes neuron by neuron, not over the layer, and says so here."""
    with pytest.raises(BrokenPromiseError, match="kept must be the"):
        check_topology_method(PerNeuron(), drops="magnitude")


class Wrong(PerNeuron):
    """`PerNeuron`, handed to a function that spoils arguments or result."""

    def __init__(self, spoil, **attributes):
        self.__dict__.update(attributes, spoil=spoil)

    def update(self, *layer, **options):
        return self.spoil(super().update, *layer, **options)


def call(spoil, **attributes):
    check_topology_method(Wrong(spoil, **attributes), max_examples=60)


def another_field(**fields):
    """The right update, but for these fields, each a function of the update."""

    def spoil(update, *layer, **options):
        right = update(*layer, **options)
        return replace(right, **{name: change(right) for name, change in fields.items()})

    return spoil


CALLS = []


def forgetful(update, weight, mask, grad, drop_fraction, **options):
    CALLS.append(mask)
    return update(weight, mask, weight if grad is not None and len(CALLS) % 2 else grad, drop_fraction, **options)


def greedy(update, weight, mask, grad, drop_fraction, **options):
    if mask.any() and not mask.all():
        raise IndexError("no such neuron")
    return update(weight, mask, grad, drop_fraction, **options)


def dense(update, weight, mask, grad, drop_fraction, **options):
    update(weight, mask, grad, drop_fraction, **options)
    return TopologyUpdate.between(mask, mask.copy(), np.ones_like(mask))


def unequal(update, weight, mask, grad, drop_fraction, **options):
    update(weight, mask, grad, drop_fraction, **options)
    new = mask.copy()
    new[:1] = True
    return TopologyUpdate.between(mask, mask.copy(), new)


def ordered(update, weight, mask, grad, drop_fraction, **options):
    right = update(weight, mask, grad, drop_fraction, **options)
    new = largest_per_row(
        np.where(right.kept, np.inf, -np.arange(mask.shape[1])), int(right.mask.sum(axis=1).max())
    )
    return TopologyUpdate.between(mask, right.kept, new & right.mask.any(axis=1)[:, None])


def particular(update, weight, mask, grad, drop_fraction, **options):
    right = update(weight, mask, grad, drop_fraction, **options)
    return right if weight.flags.c_contiguous else TopologyUpdate.between(mask, mask.copy(), mask.copy())


def ungradual(update, weight, mask, grad, drop_fraction, **options):
    return update(weight, mask, np.ones_like(weight) if grad is None else grad, drop_fraction, **options)


def drawing(update, weight, mask, grad, drop_fraction, *, rng, **options):
    rng.random()
    return update(weight, mask, grad, drop_fraction, **options)


def unchecked(update, weight, mask, grad, drop_fraction, **options):
    return update(np.nan_to_num(weight), require_mask(mask), grad, drop_fraction, **options)


WRONG = [
    ("every layer", "update raises IndexError: no such neuron", greedy, {}),
    ("every layer", "must return a TopologyUpdate, not NoneType", lambda *_, **__: None, {}),
    ("arrays", "dropped must be a bool array", another_field(dropped=lambda u: u.dropped.astype(int)), {}),
    ("arrays", "ablated must be a bool array", another_field(ablated=lambda u: u.ablated[:, None]), {}),
    ("arrays", "fan_in must be a plain int", another_field(fan_in=lambda u: u.mask.sum(axis=1).max()), {}),
    (
        "arrays",
        "salient_counts must be an integer",
        another_field(salient_counts=lambda u: u.kept.mean(axis=1)),
        {},
    ),
    ("repeatable", "differs the second time|could not be repeated", forgetful, {}),
    ("consistent report", "grown must be active now", another_field(grown=lambda u: u.mask), {}),
    ("consistent report", "ablated must be the neurons", another_field(ablated=lambda u: ~u.ablated), {}),
    ("constant fan-in", "the new mask has fan-ins", unequal, {}),
    ("budget", "more than the budget", dense, {}),
    ("order", "in the order", ordered, {}),
    ("memory layout", "must not matter, but with", particular, {}),
    ("gradient use", "needs_grad is True", ungradual, {}),
    ("gradient use", "needs_grad is False", ungradual, {"needs_grad": False}),
    ("refusals", "AttributeError instead of an InputError for rng=None", drawing, {}),
    ("refusals", "an InputError of one line for a weight that is NaN", unchecked, {}),
]


@pytest.mark.parametrize(
    ("promise", "sentence", "spoil", "attributes"),
    WRONG,
    ids=lambda value: getattr(value, "__name__", str(value))[:40],
)
def test_a_broken_promise_is_named_in_a_sentence(promise, sentence, spoil, attributes):
    with pytest.raises(BrokenPromiseError, match=f"breaks the promise '{promise}': .*({sentence})") as caught:
        call(spoil, **attributes)
    assert caught.value.promise == promise


def test_the_example_is_code_that_shows_it():
    """Here the smallest one: a layer of one weight, and all zero."""
    with pytest.raises(BrokenPromiseError, match="The smallest layer found") as caught:
        call(another_field(grown=lambda u: u.mask))
    assert "weight = np.array([[0.0]]" in caught.value.example
    assert caught.value.example in str(caught.value)
    method, seen = Wrong(another_field(grown=lambda u: u.mask)), {}
    code = caught.value.example.replace("method.update(", "update = method.update(")
    exec(code, {"method": method}, seen)
    assert (seen["update"].grown & seen["mask"]).any()


def test_an_example_of_scores_without_ties_shows_it_too():
    with pytest.raises(BrokenPromiseError) as caught:
        check_topology_method(Wrong(ordered), promises=["order"])
    seen = {}
    exec(caught.value.example, {"method": PerNeuron()}, seen)
    magnitudes = np.abs(seen["grad"]).ravel()
    assert len(set(magnitudes)) == magnitudes.size > 1


def test_a_method_may_say_that_the_order_matters():
    check_topology_method(Wrong(ordered), permutable=False, max_examples=examples(60))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drops": "weights"}, "drops must be one of"),
        ({"grows": "randomly"}, "grows must be one of .* (did you mean 'random'?)"),
        ({"max_examples": 0}, "max_examples must be an integer of at least 1"),
        ({"promises": ["prunning"]}, "promises must be one of .* (did you mean 'pruning'?)"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(").replace("?)", r"\?\)")):
        check_topology_method(RigL(), **options)


def test_what_is_no_method_is_refused():
    with pytest.raises(InputError, match="method must have constant_fan_in"):
        check_topology_method("rigl")


# --- The package --------------------------------------------------------------------------------------------


def test_the_documentation_lists_every_promise():
    text = " ".join(check_topology_method.__doc__.split())
    for name in check.PROMISES:
        assert f"* {name}: " in text, name


def test_the_example_in_the_documentation_runs():
    found = doctest.DocTestFinder().find(
        check_topology_method, "check", globs={"check_topology_method": check_topology_method}
    )
    results = [doctest.DocTestRunner().run(test) for test in found]
    assert sum(result.attempted for result in results) == 2
    assert sum(result.failed for result in results) == 0


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_without_hypothesis_one_line_says_how_to_get_it():
    done = run("import sys; sys.modules['hypothesis'] = None; import sparsekit.testing")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: sparsekit.testing needs Hypothesis: pip install 'sparsekit[dev]'")
    assert "pip install hypothesis" in last


def test_import_sparsekit_does_not_load_it():
    done = run(
        "import sys, sparsekit.topology, sparsekit.models; "
        "print(*('hypothesis' in sys.modules, 'sparsekit.testing' in sys.modules))"
    )
    assert done.stdout.split() == ["False", "False"]
