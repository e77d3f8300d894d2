# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 8. Property tests: let the machine find your mistakes
#
# A wrong topology update does not crash. It returns a mask, the network trains, the accuracy looks plausible,
# and the mistake lives on in every number that is published with it. [Lesson 4](04_srigl.ipynb) showed an
# algorithm of seven steps; how would you know that a program carries out all seven? Examples by hand cover
# what you thought of. Here you write down what must hold for *every* layer and let Hypothesis, a library for
# property tests, search for a layer that breaks it. What it finds it makes as small as it can, and a small
# counterexample explains an algorithm better than a page of text. At the end you turn the same tool on the
# way the authors' published code does it.
#
# **You will learn**
#
# - what never changes in a topology update, and how to write it as a property,
# - why test layers take their scores from three values, and what shrinking does,
# - which property catches which mistake, by making the mistakes on purpose,
# - oracles, metamorphic properties and state machines, each in a few lines,
# - where the published code of SRigL differs from the algorithm, on the smallest layers possible, and how
#   often.
#
# **You need** [lesson 4](04_srigl.ipynb) and Python; no knowledge of Hypothesis. About 20 minutes.

# %%
from classroom import start

start("hypothesis")

# %%
import inspect
import math
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
from classroom import (
    COLOURS,
    animate,
    explore,
    mask_heat_map,
    mask_steps,
    matrix,
    try_it,
    unless_fast,
    verify,
)
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import sparsekit
from sparsekit.testing import BrokenPromiseError, Layer, check_topology_method
from sparsekit.topology import RigL, SRigL

# %% [markdown]
# Hypothesis draws examples at random. For a lesson we want the same ones every time: this profile derives
# them from the text of the test, stores no examples and sets no time limits. In a project of your own leave
# `derandomize` out, so that every run looks at new examples.

# %%
settings.register_profile(
    "lesson",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=False,
    max_examples=unless_fast(200, 50),
    phases=[Phase.generate, Phase.shrink],
)
settings.load_profile("lesson")

# %% [markdown]
# ## Break it on purpose
#
# To see whether tests find mistakes we need mistakes. The update of SRigL is one short function
# (`sparsekit/topology/srigl.py`). We take its source, replace one piece, and get a *mutant*: an SRigL with
# one mistake of the kind that people make. (You need not read the replacements in `FAULTS`; the list below the
# cell says what each one does.)

# %%
FAULTS = {
    "one weight too many is dropped": (
        "budget = require",
        "n_prune, n_keep = n_prune + 1, max(0, n_keep - 1)\n        budget = require",
    ),
    "first weights stay, not the largest": (
        "kept[full] = largest_per_row(np.where(kept[full], magnitude[full], -np.inf), fan_in)",
        "kept[full] &= kept[full].cumsum(axis=1) <= fan_in",
    ),
    "n_keep not counted again": (
        "kept = largest(magnitude, mask & active, n_keep)",
        "kept = largest(magnitude, np.ones_like(mask) & active, n_keep)",
    ),
    "threshold of the present fan-in": (
        "ablation_threshold(self.gamma_sal, budget, n_out)",
        "ablation_threshold(self.gamma_sal, int(mask.sum(axis=1).max()) * n_out, n_out)",
    ),
    "the output layer is ablated": ("budget, n_out) if ablate else 0", "budget, n_out)"),
    "just-dropped weights cannot return": (
        "np.where(kept, np.inf, gradient)",
        "np.where(kept, np.inf, np.where(mask, -1.0, gradient))",
    ),
    "the ablated neurons' weights are lost": ("budget // int(np.count_nonzero(~ablated))", "budget // n_out"),
    "gradients of all weights count": ('if self.saliency_gradient == "all" else', "if True else"),
}


def mutant(fault):
    """The class SRigL with one piece of its source replaced."""
    module = inspect.getmodule(SRigL)
    source, (old, new) = inspect.getsource(module), FAULTS[fault]
    assert source.count(old) == 1, "the piece must be there, once"
    space = {"__name__": module.__name__}
    exec(source.replace(old, new), space)
    return space["SRigL"]


MUTANTS = {fault: mutant(fault)(gamma_sal=0.9) for fault in FAULTS}
CORRECT = SRigL(gamma_sal=0.9)

# %% [markdown]
# What the mistakes are, in the steps of lesson 4. As there, $f$ is the drop fraction, $nnz$ the number of
# weights stored before the update, $K = \lfloor f \cdot nnz \rfloor$ the number to drop and
# $n_{keep} = nnz - K$ the number to keep:
#
# - *one weight too many is dropped*: step 1 drops $K + 1$ weights instead of $K$;
# - *first weights stay*: step 6 must bring a neuron with too many kept weights down to the fan-in by
#   magnitude, the mutant takes those of lowest index;
# - *n_keep not counted again*: after ablation fewer than $n_{keep}$ weights may be left; the mutant fills the
#   number up with places that store none;
# - *threshold of the present fan-in*: step 4 needs $\gamma_{sal} k_0$ salient weights, with the fan-in $k_0$
#   before any ablation; the mutant takes the fan-in of now, which is larger once neurons are gone;
# - *the output layer is ablated*, although it must keep a neuron for every class;
# - *just-dropped weights cannot return* in step 7, where all places that were not kept should compete;
# - *the ablated neurons' weights are lost*: step 5 does not share them out among the others;
# - *gradients of all weights count*: in step 2 only places without a weight should compete by gradient.
#
# Would you notice? Train a small network on digits with the right algorithm and with each mutant.

# %%
digits = sparsekit.load_dataset("digits")
SEEDS = range(unless_fast(3, 1))


def accuracy(method, seed):
    """Test accuracy after a few epochs with many topology updates."""
    model = sparsekit.models.mlp((64, 64, 64, 10), storage="condensed", sparsity=0.9, rng=seed)
    trainer = sparsekit.Trainer(
        model, topology=method, epochs=unless_fast(10, 2), batch_size=32, delta_t=20, seed=seed, progress=False
    )
    trainer.fit(digits)
    return trainer.classifier.evaluate(digits.x_test, digits.y_test)[1]


results = {name: [accuracy(m, s) for s in SEEDS] for name, m in {"correct": CORRECT, **MUTANTS}.items()}

# %%
figure, axes = plt.subplots(figsize=(6.5, 2.6))
for place, (name, values) in enumerate(results.items()):
    axes.plot(values, [place] * len(values), "o", color=COLOURS["blue" if name == "correct" else "vermilion"])
axes.set_yticks(range(len(results)), results)
axes.invert_yaxis()
axes.set(xlabel="test accuracy, one point a seed", title="Which of these are wrong?")
plt.show()
means = {name: float(np.mean(values)) for name, values in results.items()}
worst = min(MUTANTS, key=means.get)
unseen = sum(means[name] > means["correct"] - 0.01 for name in MUTANTS)
print(f"the correct update reaches {means['correct']:.1%} on average")
print(f"{unseen} of {len(MUTANTS)} mutants stay within one percentage point of it, or do better")
print(f"the worst mutant ({worst}) reaches {means[worst]:.1%}")

# %% [markdown]
# A mutant that does as well as the correct update goes unnoticed. One that does worse still looks like a
# training: if you had never seen the correct number, you would publish the wrong one. (A few seeds of a small
# network do not show that a mistake is harmless. They show that accuracy is a poor detector.)

# %% [markdown]
# ## What must always hold
#
# A property is a statement about *all* layers. For a topology update of SRigL these come to mind:
#
# 1. the fan-in is constant and as large as the budget allows,
# 2. the report is consistent: what was kept was there before and is there after,
# 3. within a neuron no dropped weight is larger than a kept one, and no more are dropped than must be,
# 4. within a neuron no rejected gradient is larger than an accepted one,
# 5. only neurons with fewer salient weights than the threshold are ablated,
# 6. a layer that may not be ablated loses no neuron.
#
# As code: each takes a method and a layer, makes the update, and asserts. `Layer` is a small class of
# `sparsekit.testing` that holds what an update needs: weight, mask, grad, drop_fraction and budget (the weights
# that the layer may store). Its `arguments` are the first four.


# %%
def updated(method, layer, **changes):
    """One update of a layer."""
    return method.update(*layer.arguments, **({"budget": layer.budget} | changes))


def fan_in_fits_budget(method, layer):
    """1. Every active neuron has fan-in budget // active neurons."""
    fan_ins = updated(method, layer).mask.sum(axis=1)
    active = fan_ins[fan_ins > 0]
    assert (active == min(layer.mask.shape[1], layer.budget // active.size)).all(), f"fan-ins {fan_ins.tolist()}"


def report_is_consistent(method, layer):
    """2. Kept weights were there before and are there after."""
    update = updated(method, layer)
    assert not (update.kept & ~layer.mask).any(), "kept a weight that was not there"
    assert not (update.kept & ~update.mask).any(), "lost a weight that was kept"


# %%
def keeps_large_weights(method, layer):
    """3. By magnitude within each neuron, and not fewer than nnz - K without a reason."""
    update, magnitude = updated(method, layer), np.abs(layer.weight)
    for i in np.flatnonzero(~update.ablated):
        kept, dropped = magnitude[i, update.kept[i]], magnitude[i, layer.mask[i] & ~update.kept[i]]
        assert kept.min(initial=np.inf) >= dropped.max(initial=0), f"neuron {i} keeps {kept}, drops {dropped}"
    n_keep = layer.mask.sum() - int(layer.drop_fraction * layer.mask.sum())
    left = (layer.mask & ~update.ablated[:, None]).sum()
    full = (update.kept.sum(axis=1) == update.fan_in).any()  # then a neuron may have given up some more
    assert update.kept.sum() == min(n_keep, left) or full, f"{update.kept.sum()} kept of {n_keep}"


def grows_large_gradients(method, layer):
    """4. By gradient within each neuron, among all places not kept."""
    update, gradient = updated(method, layer), np.abs(layer.grad)
    for i in np.flatnonzero(~update.ablated):
        taken, rejected = gradient[i, update.mask[i] & ~update.kept[i]], gradient[i, ~update.mask[i]]
        assert taken.min(initial=np.inf) >= rejected.max(initial=0), (
            f"neuron {i} takes {taken}, rejects {rejected}"
        )


# %%
def ablates_the_weak(method, layer):
    """5. Threshold max(1, int(gamma_sal * k0)), k0 the fan-in before any ablation."""
    update = updated(method, layer)
    threshold = max(1, int(method.gamma_sal * (layer.budget // len(layer.mask))))
    assert (update.salient_counts[update.ablated] < threshold).all(), f"{threshold} salient weights are enough"


def spares_the_output_layer(method, layer):
    """6. With ablate=False every neuron has weights."""
    assert not updated(method, layer, ablate=False).ablated.any(), "a class has lost its neuron"


PROPERTIES = [
    fan_in_fits_budget,
    report_is_consistent,
    keeps_large_weights,
    grows_large_gradients,
    ablates_the_weak,
    spares_the_output_layer,
]

# %% [markdown]
# ## Layers to try
#
# Hypothesis needs to know how to draw a layer. A *strategy* says so: a function that draws its parts one
# after the other. Ours draws layers much like those that SRigL leaves behind: a budget, neurons that are
# strong, weak or ablated, all active ones with the same fan-in. Everything is small, and weights and
# gradients come from **three values** (halved in weak neurons).

# %%
THREE = (0.0, 2.0, -4.0)


@st.composite
def small_layers(draw, scores=THREE, most=(4, 6)):
    """A layer in the middle of a training."""

    def numbers(*shape):  # bytes are the fastest way to draw many numbers
        size = math.prod(shape)
        return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8).reshape(shape)

    n_out, n_in = draw(st.integers(1, most[0])), draw(st.integers(1, most[1]))
    k0 = draw(st.integers(1, max(1, n_in - 1)))
    budget = min(n_out * k0 + draw(st.integers(0, n_out - 1)), n_out * n_in)
    strength = np.array([1.0, 0.5, 0.0])[numbers(n_out, 1) % 3]  # strong, weak or ablated
    active = strength > 0
    fan_in = min(n_in, budget // max(1, active.sum()))
    mask = (numbers(n_out, n_in).argsort(axis=1, kind="stable") < fan_in) & active
    weight, grad = (np.take(scores, numbers(n_out, n_in) % len(scores)) for _ in range(2))
    weight, grad = np.where(mask, strength * weight, 0.0), np.where(active, strength, 1.0) * grad
    return Layer(weight, mask, grad, draw(st.sampled_from([0.5, 0.3, 0.2, 0.0, 1.0])), budget)


# %% [markdown]
# A test is then an ordinary function with an assert, under `@given`. Called, it runs for many layers. The
# package's SRigL passes; a mutant does not. When a test fails, Hypothesis looks for a simpler layer that
# fails too, and again, and reports the last one.


# %%
def hold_for_all_layers(method, most=(4, 6), examples=None):
    """Run all properties on random layers."""

    @settings(max_examples=examples or unless_fast(200, 30))
    @given(small_layers(most=most))
    def test(layer):
        for check in PROPERTIES:
            check(method, layer)

    test()


hold_for_all_layers(CORRECT)
print("the package: no counterexample")
try:
    hold_for_all_layers(MUTANTS["first weights stay, not the largest"], most=(2, 3), examples=2000)
except AssertionError as error:
    print("the mutant:", error)
    print(*error.__notes__, sep="\n")

# %% [markdown]
# Read the example. Neuron 0 stores two weights, 0 and 2; neuron 1 is ablated. The budget of 3 does not fit into
# one neuron of two inputs, so neuron 1 must come back, and each of the two gets a fan-in of 1. Neuron 0 has one
# weight too many, and the mutant keeps the one of lowest index, although a larger one stands behind it. Few
# people would have thought of this layer. (Here we asked for layers of at most 2 x 3, so that what is printed
# stays readable.)
#
# ## Watch it shrink
#
# `find` is the same search without a test: the simplest example for which a condition is true. The condition
# is that the same mutant breaks the third property, and we write down every layer that Hypothesis tries. To
# make the layers easy to read, weights and gradients are replaced by their ranks.


# %%
def distinct(layer):
    """The same layer with ranks 1, 2, 3, ... for weights and gradients, so that nothing ties."""

    def ranks(score):
        return score.argsort(axis=None, kind="stable").argsort().reshape(score.shape) + 1.0

    weight = ranks(np.where(layer.mask, np.abs(layer.weight), -1)) - (~layer.mask).sum()
    return replace(layer, weight=np.where(layer.mask, weight, 0.0), grad=ranks(np.abs(layer.grad)))


def fails(check, method, layer):
    """Whether a property does not hold."""
    try:
        check(method, layer)
    except AssertionError:
        return True
    return False


def smallest(condition):
    """The smallest layer without ties that Hypothesis finds, and all that it tried as (layer, found)."""
    tried = []

    def watched(layer):
        tried.append((layer, bool(condition(layer))))
        return tried[-1][1]

    layer = find(small_layers(most=(5, 8)).map(distinct), watched, settings=settings(max_examples=5000))
    return layer, tried


# %%
suspect = MUTANTS["first weights stay, not the largest"]
_, tried = smallest(lambda layer: fails(keeps_large_weights, suspect, layer))
broken, places = np.array([found for _, found in tried]), np.array([layer.mask.size for layer, _ in tried])
first, last = broken.argmax(), np.flatnonzero(broken)[-1]
print(f"layer number {first + 1} breaks it, with {places[first]} places")
print(f"the simplest that breaks it is number {last + 1}, with {places[last]} places")

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(7, 2.5))
for chosen, colour, name in ((~broken, "grey", "the property holds"), (broken, "vermilion", "it breaks")):
    axes.plot(np.flatnonzero(chosen), places[chosen], ".", color=COLOURS[colour], label=name)
axes.axvline(first, color="0.6", linewidth=0.8)
axes.set(xlabel="layers tried", ylabel="places in the layer", title="Search (left of the line), then shrinking")
axes.legend(loc="upper right")
plt.show()

# %% [markdown]
# Left of the line Hypothesis draws layers at random until one breaks the property (here very soon). Then it
# simplifies: fewer rows and columns, smaller numbers, earlier choices. A grey point there is a simplification
# that went too far. These are layers that still broke, one after the other. Watch how places, then the drop
# fraction and the budget, become smaller:


# %% tags=["hide-input"]
def layer_picture(layer, number):
    """Weight and gradient of a layer that breaks."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(6, 2.3))
    matrix(left, layer.weight, "weight", mask=layer.mask, decimals=0)
    matrix(right, layer.grad, "gradient", decimals=0)
    figure.suptitle(f"breaks, number {number}: drop fraction {layer.drop_fraction}, budget {layer.budget}")
    return figure


failing = [layer for layer, found in tried if found]
shown = sorted({round(i) for i in np.linspace(0, len(failing) - 1, unless_fast(9, 3))})
animate(
    (layer_picture(failing[i], i + 1) for i in shown),
    alt="Layers on which the mutant is wrong: they lose neurons and inputs, and their numbers come into order",
)

# %% [markdown]
# What is left in the end is as simple as single simplifications can make it. It need not be the smallest
# layer there is: for that one would have to try all of them.

# %% [markdown]
# ## Why three values?
#
# Float weights of a real network hardly ever tie. So why draw scores of which so many are equal? Because ties
# decide things in an algorithm that ranks, and a test should see every decision. Consider a subtle mutant:
# among equal scores it takes the *higher* index, where the package promises the lower one. (That promise is
# what makes two runs equal to the last bit.) How many layers notice?


# %%
def rigl_mask(layer, ties_to_higher_index=False):
    """The mask of RigL; turned by 180 degrees, lower indices become higher ones."""
    turn = (lambda array: array[::-1, ::-1]) if ties_to_higher_index else (lambda array: array)
    return turn(RigL().update(*map(turn, layer.arguments[:3]), layer.drop_fraction).mask)


def share_noticed(draw_scores, rng, samples):
    """Share of random 4 x 5 layers on which the two differ."""
    noticed = 0
    for _ in range(samples):
        mask = sparsekit.masks.random_constant_fan_in((4, 5), 2, rng)
        layer = Layer(np.where(mask, draw_scores(rng), 0.0), mask, draw_scores(rng), 0.5, 8)
        noticed += not np.array_equal(rigl_mask(layer), rigl_mask(layer, ties_to_higher_index=True))
    return noticed / samples


kinds = {
    f"{n} values": lambda rng, n=n: rng.integers(0, n, (4, 5)).astype(float) for n in (2, 3, 5, 10, 100, 1000)
}
kinds["normal\nfloats"] = lambda rng: rng.normal(size=(4, 5))
rng = np.random.default_rng(0)
shares = {name: share_noticed(draw, rng, unless_fast(1000, 200)) for name, draw in kinds.items()}

# %%
figure, axes = plt.subplots(figsize=(6.5, 2.3))
axes.bar(list(shares), list(shares.values()), color=COLOURS["blue"])
axes.set(ylabel="share of layers", title="Random layers that notice the wrong rule for ties")
plt.show()
assert shares["3 values"] > 0.5 > shares["1000 values"]
assert shares["normal\nfloats"] == 0

# %% [markdown]
# With normal floats no number of tests would be enough. With three values most layers show the mistake. The
# same holds for weights that are exactly zero (a freshly grown weight is), for empty rows and full rows: rare
# in random arrays, common in training, and decisive. `sparsekit.testing.layers()` is the package's own
# strategy, built on this thought.

# %% [markdown]
# ## Which property catches which mistake?
#
# Our mutants, our properties, and two stronger tests: a *metamorphic* one (more of them below) and an
# *oracle*. The oracle is the algorithm once more, written without NumPy's help, as naively as possible. It is
# slow, and it has no shortcuts that could share a mistake with the fast version.


# %%
def naive_srigl(layer, gamma_sal, ablate=True):
    """The new mask, by sorted lists of flat positions."""
    n_out, n_in = layer.mask.shape
    everywhere = range(n_out * n_in)
    rows = [range(i * n_in, (i + 1) * n_in) for i in range(n_out)]
    weight, grad = np.abs(layer.weight).ravel().tolist(), np.abs(layer.grad).ravel().tolist()
    old = [p for p in everywhere if layer.mask.flat[p]]

    def largest(score, places, count):
        return set(sorted(places, key=lambda p: (-score[p], p))[:count])

    n_drop = int(layer.drop_fraction * len(old))
    n_keep = len(old) - n_drop
    salient = largest(weight, old, n_keep) | largest(grad, set(everywhere) - set(old), n_drop)
    counts = [len(salient & set(row)) for row in rows]
    threshold = max(1, int(gamma_sal * (layer.budget // n_out))) if ablate and gamma_sal > 0 else 0
    floor = sorted(range(n_out), key=lambda i: (-counts[i], i))[: math.ceil(layer.budget / n_in)]
    alive = [i for i in range(n_out) if counts[i] >= threshold or i in floor]
    fan_in = min(n_in, layer.budget // len(alive))
    kept = largest(weight, [p for i in alive for p in rows[i] if p in old], n_keep)
    mask = np.zeros(n_out * n_in, dtype=bool)
    for i in alive:
        stay = largest(weight, kept & set(rows[i]), fan_in)
        mask[list(stay | largest(grad, set(rows[i]) - stay, fan_in - len(stay)))] = True
    return mask.reshape(n_out, n_in)


# %%
def agrees_with_oracle(method, layer):
    """Same mask, with and without ablation."""
    for ablate in (True, False):
        wanted = naive_srigl(layer, method.gamma_sal, ablate)
        assert np.array_equal(updated(method, layer, ablate=ablate).mask, wanted), "the oracle says otherwise"


@given(small_layers(), st.sampled_from([0.0, 0.3, 0.6, 0.9]))
def test_oracle(layer, gamma_sal):
    agrees_with_oracle(SRigL(gamma_sal), layer)


test_oracle()
print("package and oracle agree")

# %% [markdown]
# Now all against all, on the same layers. A green square: some layer was found on which the property in that
# column fails for the mutant in that row. The correct update is the last row; it must be empty.


# %%
def inputs_are_alike(method, layer):
    """Without ties, reversing the order of the inputs must reverse the mask."""
    layer = distinct(layer)
    turned = Layer(*(array[:, ::-1] for array in layer.arguments[:3]), layer.drop_fraction, layer.budget)
    assert np.array_equal(updated(method, turned).mask, updated(method, layer).mask[:, ::-1]), "order matters"


sample = []


@settings(max_examples=400)
@given(small_layers())
def collect(layer):
    """Keep the layers that Hypothesis draws."""
    sample.append(layer)


collect()

# %%
checks = [*PROPERTIES, inputs_are_alike, agrees_with_oracle]
subjects = {**MUTANTS, "correct": CORRECT}
caught = np.array(
    [[any(fails(c, method, layer) for layer in sample) for c in checks] for method in subjects.values()]
)
assert not caught[-1].any()
assert caught[:-1, -1].all()
assert not caught[list(FAULTS).index("gradients of all weights count"), :-1].any()

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(8, 3.8))
mask_heat_map(axes, caught, "Which property catches which mutant", colour="green")
axes.set_xticks(range(len(checks)), [c.__name__.replace("_", "\n") for c in checks], fontsize=7)
axes.set_yticks(range(len(subjects)), subjects)
axes.set(xlabel="", ylabel="")
plt.show()

# %% [markdown]
# Three lessons are in this picture. None of our properties alone is enough. Several of different kinds are
# nearly enough, and each takes a few lines. One mutant gets past all of them and only the oracle sees it:
# nothing that we wrote down says *which* places count as salient. (You will close this hole in exercise 3.)
#
# An oracle seems to make the rest superfluous. But somebody has to write it, it can share a misunderstanding
# with the program, and it says only *that* something is wrong. A property says *what*.

# %% [markdown]
# ## The smallest layer for each mistake
#
# Let Hypothesis find a small layer for each mutant on which its mask differs from the right one. To make the
# pictures easy to read we draw layers without ties: weights and gradients are 1, 2, 3, ... (`distinct`
# above). Move the slider: weights (grey: none stored), gradients (framed: where the two masks differ), and
# what both updates do.


# %%
def mistaken(fault, layer):
    """Whether a mutant gives another mask than the package."""
    ablate = fault != "the output layer is ablated"
    right, wrong = (updated(method, layer, ablate=ablate) for method in (CORRECT, MUTANTS[fault]))
    return not np.array_equal(right.mask, wrong.mask)


smallest_layers = {}
for fault in FAULTS:
    smallest_layers[fault], tried = smallest(lambda layer, fault=fault: mistaken(fault, layer))
    print(f"{fault}: found with layer number {[found for _, found in tried].index(True) + 1}")


# %% tags=["hide-input"]
def steps(update):
    """What mask_steps draws of an update."""
    names = ("kept", "dropped", "regrown", "grown")
    return {name: getattr(update, name) for name in names}


def side_by_side(layer, one, other, names, title):
    """Weight, gradient and two updates of a layer."""
    figure, panels = plt.subplots(1, 4, figsize=(7.5, 2.4))
    matrix(panels[0], layer.weight, "weight", mask=layer.mask, decimals=0)
    matrix(panels[1], layer.grad, "gradient", frame=one.mask != other.mask, decimals=0)
    mask_steps(panels[2], steps(one), names[0], legend=False)
    mask_steps(panels[3], steps(other), names[1], legend=False)
    for axes in panels[1:]:
        axes.set_ylabel("")
    colours = {"kept": "blue", "dropped": "vermilion", "regrown": "orange", "grown": "green"}
    occur = [name for name in colours if steps(one)[name].any() or steps(other)[name].any()]
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[colours[name]], label=name) for name in occur]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(occur))
    figure.suptitle(title)
    return figure


def picture_of(mistake):
    """The smallest layer for one mutant."""
    layer, ablate = smallest_layers[mistake], mistake != "the output layer is ablated"
    right, wrong = (updated(method, layer, ablate=ablate) for method in (CORRECT, MUTANTS[mistake]))
    title = f"{mistake} (drop fraction {layer.drop_fraction}, budget {layer.budget})"
    return side_by_side(layer, right, wrong, ("right", "wrong"), title)


explore(picture_of, mistake=list(FAULTS)[: unless_fast(8, 2)])

# %% [markdown]
# Take your time with each one; if you can explain all of them, you know SRigL. The numbers above the pictures
# say how long each search took. The stale n_keep needs a rare layer: the ablated neurons must hold more than
# $K$ weights, and what is filled in must not be what the gradients would have chosen. A
# property can only be broken by a layer that the strategy draws, so it is worth counting what a strategy
# draws. (For this reason `sparsekit.testing` also draws ordinary layers of unequal neurons, beside the edge
# cases.)

# %% [markdown]
# ## The whole battery in one call
#
# You need not write these properties for a method of your own. `check_topology_method` asks for everything
# that a topology method promises, on random layers and in the training of a tiny network, and turns what it
# finds into one sentence and a layer to paste.

# %%
for fault in list(FAULTS)[: unless_fast(8, 3)]:
    try:
        check_topology_method(
            MUTANTS[fault], drops="magnitude", grows="gradient", max_examples=unless_fast(100, 20)
        )
        print(f"{fault}: passes")
    except BrokenPromiseError as error:
        sentence = str(error).splitlines()[0].partition(": ")[2]
        print(f"{fault}\n    breaks the promise {error.promise!r}: {sentence}")

# %%
try:
    check_topology_method(MUTANTS["first weights stay, not the largest"], drops="magnitude", grows="gradient")
except BrokenPromiseError as error:
    print(error.example)

# %% [markdown]
# The package tests its tests in the same way: `tests/planted_faults.py` plants dozens of faults in the
# source, one at a time, and each must be caught by the promise that is named beside it.

# %% [markdown]
# ## Metamorphic properties
#
# A metamorphic property needs no oracle at all. Change the question in a way of which you know what it does
# to the answer. Four for SRigL:
#
# - gradients times a power of two: nothing changes, only the ranking counts (a power of two, because other
#   factors round, and two different numbers may then become equal),
# - `gamma_sal=0`: the same as a layer that may not be ablated,
# - a budget of all places: the result is dense,
# - permuted inputs or neurons: the update is permuted.


# %%
@given(small_layers(), st.integers(-20, 20), st.sampled_from([0.3, 0.9]))
def test_scale(layer, power, gamma_sal):
    scaled = replace(layer, grad=layer.grad * 2.0**power)
    assert np.array_equal(updated(SRigL(gamma_sal), scaled).mask, updated(SRigL(gamma_sal), layer).mask)


@given(small_layers())
def test_no_ablation(layer):
    without = updated(SRigL(gamma_sal=0), layer)
    assert np.array_equal(without.mask, updated(CORRECT, layer, ablate=False).mask)
    assert not without.ablated.any()


@given(small_layers())
def test_dense(layer):
    assert updated(CORRECT, layer, budget=layer.mask.size).mask.all()


test_scale(), test_no_ablation(), test_dense()
print("three properties hold")

# %% [markdown]
# The fourth is worth a second look. Ties are broken by position, so permuting makes sense only where no two
# scores are equal. We draw such layers, and permute the neurons.


# %%
@st.composite
def permuted_layers(draw):
    """A layer in which all scores differ, and an order of its neurons."""
    layer = distinct(draw(small_layers()))
    return layer, draw(st.permutations(range(len(layer.mask))))


def permutes(drawn, gamma_sal):
    """Whether permuted neurons give the permuted mask."""
    layer, order = drawn
    moved = Layer(*(array[order] for array in layer.arguments[:3]), layer.drop_fraction, layer.budget)
    method = SRigL(gamma_sal)
    return np.array_equal(updated(method, moved).mask, updated(method, layer).mask[order])


@given(permuted_layers())
def test_permuted(drawn):
    assert permutes(drawn, gamma_sal=0)


test_permuted()
print("without ablation: holds")
layer, order = find(permuted_layers(), lambda drawn: not permutes(drawn, gamma_sal=0.9))
update = updated(CORRECT, layer)
print(
    f"with ablation: does not hold for a layer of {layer.mask.shape[0]} neurons with "
    f"{update.salient_counts.tolist()} salient weights; {update.ablation_threshold} are needed"
)

# %% tags=["hide-input"]
moved = Layer(*(array[order] for array in layer.arguments[:3]), layer.drop_fraction, layer.budget)
back = np.argsort(order)
other = updated(CORRECT, moved)
other = replace(
    other, **{name: getattr(other, name)[back] for name in ("mask", "kept", "dropped", "regrown", "grown")}
)
title = f"Neurons in the order {list(order)}: another neuron survives (budget {layer.budget})"
side_by_side(layer, update, other, ("as drawn", "permuted, and back"), title)
plt.show()

# %% [markdown]
# Is that a bug? Look at the counts: neurons with the same number of salient weights, too few, would be
# ablated together, but the budget would not fit into the neurons that are left. A floor saves as many as are
# needed, and between equals the lower index is saved. That is a tie between *neurons*, although no two scores
# are equal. The program is right, and our property was wrong. This happens all the time, and the time is not
# lost: you have just learned a detail of the algorithm that you had not asked about (`_ablated` in
# `sparsekit/topology/srigl.py`).

# %% [markdown]
# ## A state machine: mistakes that need a history
#
# A single update of a single layer cannot show everything. What if the mask is right, but the *values* are
# carried along wrongly? Let anything happen, in any order, and compare with a model so simple that it is
# surely right: here a dense array that goes through the same steps as the stored layer. Hypothesis draws
# whole programs.


# %%
class Stored(RuleBasedStateMachine):
    """A sparse layer through steps and topology updates, beside a dense array."""

    def rewire(self, update):
        """What is tested."""
        self.layer.rewire(update.mask)

    @initialize(seed=st.integers(0, 100))
    def build(self, seed):
        mask = sparsekit.masks.random_per_layer((3, 4), 5, np.random.default_rng(seed))
        self.layer = sparsekit.nn.Linear(sparsekit.CSRMatrix.from_mask(mask, np.float64))
        self.dense = np.zeros((3, 4))

    @rule(change=st.integers(1, 9))
    def step(self, change):
        self.layer.weight.values += change
        self.dense[self.layer.matrix.mask()] += change

    @rule(
        method=st.sampled_from([RigL(), CORRECT]), fraction=st.sampled_from([0.3, 1.0]), seed=st.integers(0, 100)
    )
    def update(self, method, fraction, seed):
        grad = np.random.default_rng(seed).integers(-3, 4, (3, 4)).astype(float)
        matrix = self.layer.matrix
        update = method.update(matrix.to_dense(), matrix.mask(), grad, fraction, budget=5)
        self.rewire(update)
        self.dense[update.grown | update.dropped] = 0

    @invariant()
    def same_weights(self):
        if hasattr(self, "layer"):
            difference = np.abs(self.layer.matrix.to_dense() - self.dense).max()
            assert difference == 0, f"a weight is off by {difference}"


run_state_machine_as_test(Stored, settings=settings(max_examples=unless_fast(100, 30)))
print("the package: no program goes wrong")

# %% [markdown]
# Now the mistake: a weight that is dropped and taken again in the same update (*regrown*) must keep its
# value. It is natural to forget this and to clear everything that was not kept. The mask is right, so no
# property above can see it.


# %%
class Forgetful(Stored):
    """Regrown weights are reset."""

    def rewire(self, update):
        """Drop first, then grow."""
        self.layer.rewire(update.kept)
        self.layer.rewire(update.mask)


try:
    run_state_machine_as_test(Forgetful, settings=settings(max_examples=unless_fast(100, 30)))
except AssertionError as error:
    print(error)
    print(*error.__notes__, sep="\n")

# %% [markdown]
# The report is the shortest program that shows it: build a layer, make one step so that a weight is not zero,
# update. `tests/test_state_machine.py` is the grown-up version, with real training, checkpoints, conversions
# and threads.

# %% [markdown]
# ## The authors' code, on its smallest layers
#
# The published code of SRigL (calgaryml/condensed-sparsity) does some things differently from the text of the
# paper (arXiv 2305.02299). `SRigL(compat="official")` reproduces five differences that were found by reading
# that code; they are listed in `sparsekit/topology/srigl_official.py`. It is a re-implementation, not the
# original: where the original's choice among equal scores is arbitrary, the lower index wins here. Three of
# the differences deserve a picture, and Hypothesis draws it.
#
# **1. Truncation by a sort of booleans.** When a neuron has more kept weights than the new fan-in, the
# largest should stay. That code sorts the *mask of booleans* instead of the magnitudes, so which ones stay
# does not depend on their size. It is the mutant "first weights stay" from above.


# %%
def official(gamma_sal):
    """The update as in the published code."""
    return SRigL(gamma_sal=gamma_sal, compat="official")


def drops_a_larger_weight(layer, gamma_sal):
    """In some neuron the official update keeps a weight and drops a larger one."""
    update, magnitude = updated(official(gamma_sal), layer), np.abs(layer.weight)
    kept = np.where(update.kept & layer.mask, magnitude, np.inf).min(axis=1)
    dropped = np.where(layer.mask & ~update.kept & ~update.ablated[:, None], magnitude, 0).max(axis=1)
    return bool((kept < dropped).any())


layer, _ = smallest(lambda layer: drops_a_larger_weight(layer, 0.0))
pair = updated(SRigL(gamma_sal=0), layer), updated(official(0), layer)
title = f"Truncation (drop fraction {layer.drop_fraction}, budget {layer.budget}, gamma_sal 0)"
side_by_side(layer, *pair, ("SRigL", "official"), title)
plt.show()

# %% [markdown]
# **2. n_keep is not counted again after ablation.** Ablated neurons take kept weights with them. That code
# still keeps as many as before, and finds them among places of the other neurons that store nothing: they are
# "kept" by index, before any gradient is asked.


# %%
def keeps_what_was_not_there(layer, gamma_sal):
    """The official update keeps a place that stored no weight."""
    return bool((updated(official(gamma_sal), layer).kept & ~layer.mask).any())


def chosen_otherwise(layer):
    """That, and nothing but that, makes another mask."""
    ours, theirs = updated(CORRECT, layer), updated(official(0.9), layer)
    same = np.array_equal(ours.ablated, theirs.ablated)
    return same and keeps_what_was_not_there(layer, 0.9) and not np.array_equal(ours.mask, theirs.mask)


layer, _ = smallest(chosen_otherwise)
pair = updated(CORRECT, layer), updated(official(0.9), layer)
title = f"n_keep after ablation (drop fraction {layer.drop_fraction}, budget {layer.budget}, gamma_sal 0.9)"
side_by_side(layer, *pair, ("SRigL", "official"), title)
plt.show()
places = np.argwhere(pair[1].kept & ~layer.mask).tolist()
print(f"the official update 'keeps' {places}, where no weight was stored")

# %% [markdown]
# **3. Saliency by all gradients.** In the paper a weight is salient if it is among the largest magnitudes of
# active weights or the largest gradients of *inactive* ones. That code ranks the gradients of all weights,
# active ones too. Then other neurons are ablated. (`SRigL(saliency_gradient="all")` is this difference alone;
# it is also the last mutant from above.)


# %%
def ablates_others(layer, gamma_sal):
    """Whose gradients count decides who is ablated."""
    inactive, everywhere = (SRigL(gamma_sal, saliency_gradient=s) for s in ("inactive", "all"))
    return not np.array_equal(updated(inactive, layer).ablated, updated(everywhere, layer).ablated)


layer, _ = smallest(lambda layer: ablates_others(layer, 0.9))
pair = updated(CORRECT, layer), updated(SRigL(0.9, saliency_gradient="all"), layer)
title = f"Saliency (drop fraction {layer.drop_fraction}, budget {layer.budget}, gamma_sal 0.9)"
side_by_side(layer, *pair, ("inactive gradients", "all gradients"), title)
plt.show()
for name, update in zip(("inactive", "all"), pair, strict=True):
    print(
        f"gradients of {name} places: salient weights {update.salient_counts.tolist()}, "
        f"needed {update.ablation_threshold}, ablated {np.flatnonzero(update.ablated).tolist()}"
    )

# %% [markdown]
# ## How often?
#
# Smallest examples say what can happen, not how often. We draw layers of 32 neurons and 64 inputs with normal
# weights and gradients, some neurons stronger than others (log-normal factors), all active, fan-in 8, and
# count in how many the updates differ as gamma_sal grows; and the same after a fifth of the neurons has been
# ablated before.


# %%
def random_layer(rng, n_ablated):
    """Normal scores, neurons of unequal strength."""
    fan_in = 8 * 32 // (32 - n_ablated)
    mask = sparsekit.masks.random_constant_fan_in((32, 64), fan_in, rng)
    mask[rng.permutation(32)[:n_ablated]] = False
    weight, grad = (rng.lognormal(size=(32, 1)) * rng.normal(size=(32, 64)) for _ in range(2))
    return Layer(np.where(mask, weight, 0.0), mask, grad, 0.3, 8 * 32)


def differs(layer, gamma_sal):
    """Whether the new masks differ."""
    return not np.array_equal(updated(SRigL(gamma_sal), layer).mask, updated(official(gamma_sal), layer).mask)


questions = {
    "another mask": differs,
    "saliency: others ablated": ablates_others,
    "n_keep: kept what was not there": keeps_what_was_not_there,
    "truncation: a larger weight dropped": drops_a_larger_weight,
}
gammas = np.linspace(0, 0.95, unless_fast(20, 6))
shares = {}
for n_ablated in (0, 6):
    rng = np.random.default_rng(n_ablated)
    many = [random_layer(rng, n_ablated) for _ in range(unless_fast(60, 10))]
    for name, question in questions.items():
        shares[n_ablated, name] = [np.mean([question(layer, gamma) for layer in many]) for gamma in gammas]

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 2, figsize=(8.5, 3), sharey=True)
for axes, n_ablated in zip(panels, (0, 6), strict=True):
    for name, colour, style in zip(
        questions, ("black", "green", "vermilion", "blue"), ("-", "--", "-", "-"), strict=True
    ):
        axes.plot(gammas, shares[n_ablated, name], style, color=COLOURS[colour], label=name)
    axes.set(xlabel="gamma_sal", title=f"{n_ablated} of 32 neurons ablated before")
panels[0].set_ylabel("share of layers")
panels[0].legend()
plt.show()
near = int(np.abs(gammas - 0.3).argmin())
for n_ablated, place in ((0, near), (0, -1), (6, 0), (6, near), (6, -1)):
    print(f"{n_ablated} ablated before, gamma_sal {gammas[place]:.2f}:")
    print("   ", ", ".join(f"{name} {shares[n_ablated, name][place]:.0%}" for name in questions))

# %% [markdown]
# How to read it. The curves have steps because the threshold, `int(gamma_sal * 8)`, has. The black line
# counts a layer already if a single position differs; where it lies on one other line and the rest are at zero,
# that difference is the likely reason.
# The paper takes 0.3 for convolutional networks and 0.95 for vision transformers.
#
# - The saliency decides who is ablated, so it can matter wherever neurons are ablated at all.
# - The stale n_keep needs a high gamma_sal: the neurons ablated must hold more than the $K$ weights that were to
#   be dropped. It fills the first neurons with places beyond their fan-in, so there the truncation goes wrong
#   as well.
# - At gamma_sal = 0 on the right all neurons that were ablated come back, the fan-in falls from 9 to 8, and
#   strong neurons that would keep all nine weights must give one up: the truncation again. This is an
#   artificial case, since nobody ablates with one gamma_sal and goes on with another.
#
# Random layers are not layers in training, where weights and gradients have to do with each other. So the
# heights say little about a real run; they show which difference appears when. And a difference in the mask
# need not be one in accuracy, as the beginning of this lesson showed. Exercise 4 counts in a real training.

# %% [markdown]
# ## Exercises
#
# ### 1. Conservation
#
# RigL replaces weights one for one. Write the property, as a function that says True or False: as many
# weights after as before, nothing is both grown and dropped, and at most `int(f nnz)` weights are dropped.


# %%
def conserves(method, layer):
    """Whether the numbers are those that RigL promises."""
    ...


def check_conserves(answer):
    """RigL must pass, three cheats must not."""
    assert all(answer(RigL(), layer) for layer in sample), "RigL keeps its promise, but you say it does not"
    cheats = {
        "loses weights": lambda old, update: {"mask": update.kept},
        "drops all weights": lambda old, update: {"dropped": old, "grown": update.mask & ~old},
        "grows what it drops": lambda old, update: {"grown": update.dropped},
    }
    for words, change in cheats.items():

        def cheat(*arguments, change=change, **options):
            update = RigL().update(*arguments, **options)
            return replace(update, **change(arguments[1], update))

        fooled = all(answer(SimpleNamespace(update=cheat), layer) for layer in sample)
        assert not fooled, f"a method whose report {words} passes"


try_it(conserves, check_conserves)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def conserves_solution(method, layer):
    """Three conditions."""
    update, nnz = updated(method, layer), layer.mask.sum()
    same = update.mask.sum() == nnz
    return (
        same
        and not (update.grown & update.dropped).any()
        and update.dropped.sum() <= int(layer.drop_fraction * nnz)
    )


verify(conserves_solution, check_conserves)

# %% [markdown]
# ### 2. Be Hypothesis
#
# A mutant ablates neurons with `salient_counts <= threshold` instead of `<`. Find a layer by hand on which
# its mask is wrong, with at most six places. The floor of `budget / n_in` neurons, rounded up, is always saved:
# choose the budget so that this is not everybody.

# %%
answer = None  # Layer(weight, mask, grad, drop_fraction, budget) with arrays of shape (n_out, n_in)
FAULTS["at most instead of fewer than"] = ("salient_counts < threshold", "salient_counts <= threshold")
AT_MOST = mutant("at most instead of fewer than")(gamma_sal=0.9)


def check_by_hand(layer):
    """A small layer on which the two differ."""
    assert layer.mask.size <= 6, f"{layer.mask.size} places are more than six"
    right, wrong = updated(CORRECT, layer), updated(AT_MOST, layer)
    counts = f"(salient weights {right.salient_counts.tolist()}, threshold {right.ablation_threshold})"
    assert wrong.ablated.any() or right.ablated.any(), f"no neuron is ablated {counts}: is the budget too large?"
    assert not np.array_equal(right.mask, wrong.mask), f"both give {right.mask.astype(int).tolist()} {counts}"


try_it(answer, check_by_hand)

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
# Two neurons, one weight each, both kept: one salient weight each, and one is needed. The floor needs one neuron.
by_hand = Layer(np.eye(2), np.eye(2, dtype=bool), np.zeros((2, 2)), 0.0, 2)
verify(by_hand, check_by_hand)
found, _ = smallest(lambda layer: not np.array_equal(updated(CORRECT, layer).mask, updated(AT_MOST, layer).mask))
print("Hypothesis finds weights", found.weight.tolist(), "stored at", found.mask.astype(int).tolist())

# %% [markdown]
# ### 3. Catch the survivor
#
# "Gradients of all weights count" survived everything but the oracle. Write a property that catches it, again
# as a function that says True or False, from `keep_candidates`, `grow_candidates` and `salient` of the update
# (steps 1 to 3 of lesson 4).


# %%
def salient_is_right(method, layer):
    """Whether the salient weights can be right."""
    ...


def check_survivor(answer):
    """The package passes, the mutant does not."""
    assert all(answer(CORRECT, layer) for layer in sample), "it calls the correct update wrong"
    survivor = MUTANTS["gradients of all weights count"]
    assert not all(answer(survivor, layer) for layer in sample), "the mutant still survives"


try_it(salient_is_right, check_survivor)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def salient_solution(method, layer):
    """No active weight may be a candidate to grow."""
    update = updated(method, layer)
    return not (update.grow_candidates & layer.mask).any()


verify(salient_solution, check_survivor)

# %% [markdown]
# ### 4. Open: how often in a real training?
#
# Count the topology updates of a training on digits in which the official update would have given another
# mask. A topology is any object with `update`, so wrap one: let SRigL decide, ask the official update about
# the same layer, and compare. How does the count depend on gamma_sal? On the layer? On time?


# %%
def count_differences(gamma_sal):
    """Return (updates that differ, all updates) of one training."""
    ...


def check_count(answer):
    """Two numbers that make sense."""
    different, total = answer(0.95)
    assert total > 0, "no update was made: is delta_t small enough?"
    assert 0 <= different <= total, f"{different} of {total} updates cannot differ"


try_it(count_differences, check_count)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
class Compared:
    """Decides as SRigL, and counts where the official update differs."""

    constant_fan_in = needs_grad = True

    def __init__(self, gamma_sal):
        self.methods, self.differ = (SRigL(gamma_sal), official(gamma_sal)), []

    def update(self, *arguments, **options):
        ours, theirs = (method.update(*arguments, **options) for method in self.methods)
        self.differ.append(not np.array_equal(ours.mask, theirs.mask))
        return ours


def count_solution(gamma_sal):
    """One training; two sparse hidden layers and the output layer are updated in turn."""
    compared = Compared(gamma_sal)
    accuracy(compared, seed=0)
    return sum(compared.differ), len(compared.differ)


verify(count_solution, check_count)
for gamma_sal in (0, 0.3, 0.6, 0.95):
    different, total = count_solution(gamma_sal)
    print(f"gamma_sal {gamma_sal}: {different} of {total} updates differ")

# %% [markdown]
# ## Where to go on
#
# - `sparsekit/testing/` holds the battery; `CONTRIBUTING.md` says how a topology method of your own joins it,
#   and has the table of the planted faults. `tests/naive.py` has the oracles of the package,
#   `tests/test_metamorphic.py` more properties of this kind, for products and whole trainings too.
# - The documentation of Hypothesis, hypothesis.readthedocs.io.
# - Claessen and Hughes, QuickCheck (ICFP 2000), where property tests come from. Lasby et al., arXiv
#   2305.02299: SRigL.
# - Back to [lesson 1](01_why_sparse.ipynb), with other eyes.
