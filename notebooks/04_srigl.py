# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4. SRigL: as many inputs for every neuron
#
# RigL finds good places for its weights, but it leaves rows of all lengths, and hardware dislikes that.
# SRigL (Lasby et al., [arXiv 2305.02299](https://arxiv.org/abs/2305.02299)) adds one rule and one liberty.
# The rule: every neuron has the same number of inputs. The liberty: a neuron that has become useless may be
# taken out, and its weights go to the others. One update takes seven steps. Here you take each of them by
# hand, on a layer of 48 positions, and then watch them in a real training.
#
# **You will learn**
#
# - why rows of different lengths are awkward, and what constant fan-in makes of a sparse matrix;
# - the seven steps of an update, each with its formula, its picture and its numbers;
# - to write SRigL in plain Python, and to check it against the package;
# - what the threshold `gamma_sal` asks of a neuron, and why 0.3 ablates hardly any neuron of an MLP while
#   0.95 ablates many of them in the very first update.
#
# **You need** [lesson 3](03_rigl.ipynb): drop by magnitude, grow by gradient, the drop fraction. About 20
# minutes, exercises apart.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
from classroom import (
    COLOURS,
    animate,
    explore,
    load_images,
    mask_heat_map,
    mask_steps,
    matrix,
    start,
    try_it,
    unless_fast,
    verify,
)

from sparsekit import CondensedMatrix, InputError, Trainer, distributions, masks, models
from sparsekit.topology import RigL, SRigL
from sparsekit.training import Callback

start()

# %% [markdown]
# ## A layer small enough to see every number
#
# Six neurons, eight inputs, in the middle of a training. Neurons 1 and 4 lost all their weights in an earlier
# update: they are *ablated*. The other four have six inputs each. The numbers are made up, so that every step
# below has something to do. To make ranks easy to read, the magnitudes of the 24 weights are 0.1, 0.2, ... 2.4
# in some order, and those of the 48 gradients 0.1, 0.2, ... 4.8. No two are equal.

# %%
weight = np.array(
    [
        [0.0, -1.6, -0.6, -1.3, 2.3, 1.7, 0.0, -0.8],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [-1.8, 2.0, 0.0, -1.9, -1.5, 0.0, 2.2, 2.4],
        [-0.1, -1.0, 2.1, -0.9, 0.0, 0.0, -0.3, -0.5],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, -0.2, 1.4, 1.2, -0.4, 0.0, 0.7, 1.1],
    ]
)
grad = np.array(
    [
        [1.5, -2.1, 3.9, -4.1, -3.5, -1.3, 3.3, 1.2],
        [-4.5, 3.7, 2.9, 0.9, 4.6, 3.6, 2.7, -0.5],
        [0.4, 2.3, 4.7, -1.4, -2.8, 2.4, -3.1, 0.2],
        [-0.1, -4.3, -3.0, 1.7, -1.8, -1.6, -1.0, 2.0],
        [-1.1, -0.7, 3.4, -4.8, 2.5, 0.8, -0.3, -2.6],
        [-3.8, 4.4, -1.9, -4.0, 0.6, -4.2, 3.2, -2.2],
    ]
)

# %% [markdown]
# The *mask* says where weights are stored. Here, and only here, it can be read off the values. In a training it
# is kept apart, because a weight that has just grown is stored although its value is exactly zero.
#
# The gradient is the *dense* one of lesson 3: it has a number at every position, also where no weight is
# stored, and says how the loss would change if there were one.

# %%
mask = weight != 0
n_out, n_in = mask.shape
assert np.allclose(sorted(abs(weight[mask])), np.arange(1, 25) / 10)
assert np.allclose(sorted(abs(grad.ravel())), np.arange(1, 49) / 10)

figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.3), sharey=True)
matrix(left, weight, "weights; pale: not stored", mask=mask)
matrix(right, grad, "dense gradient")
plt.show()

# %% [markdown]
# Red is above zero, blue below. SRigL looks at magnitudes only: forget the signs from here on.
#
# ## Why RigL's rows are awkward
#
# RigL would drop half of these 24 weights by magnitude, and grow as many wherever in the layer the gradients
# are largest. Nothing keeps the rows alike:

# %%
after_rigl = RigL().update(weight, mask, grad, 0.5).mask
print("inputs of each neuron before:", masks.fan_in(mask))
print("              after one RigL:", masks.fan_in(after_rigl))
try:
    CondensedMatrix.from_mask(after_rigl)
except InputError as error:
    print("InputError:", error)

# %% [markdown]
# Rows of different lengths have to be stored one behind the other, with a third array that says where each
# begins. Every loop over a row has a length of its own, and a processor with many lanes or threads waits for
# the longest. The package refuses to store such a mask in its `CondensedMatrix`.
#
# If every neuron that has any inputs has the same number of them, its *fan-in*, a sparse matrix is two small
# rectangles: the values, and the input that each value belongs to.

# %%
condensed = CondensedMatrix.from_dense(weight, mask)


# %% tags=["hide-input"]
def show_condensed(condensed, mask):
    """The mask of a layer, and the two rectangles that store it."""
    _, axes = plt.subplots(1, 3, figsize=(7.5, 2), width_ratios=(8, 6, 6))
    mask_heat_map(axes[0], mask, "mask")
    matrix(axes[1], condensed.values, "values")
    matrix(axes[2], condensed.indices.astype(float), "indices: which input", decimals=0)
    axes[2].images[0].set_visible(False)  # the size of an index means nothing: no colours
    for panel in axes[1:]:
        panel.set_yticks(range(len(condensed.rows)), condensed.rows)
        panel.set(xlabel="place in the row", ylabel="")
    plt.show()


show_condensed(condensed, mask)

# %% [markdown]
# Read a row: the first value of neuron 0, -1.6, belongs to input 1, the second, -0.6, to input 2. The product
# $y = Wx$ is then one loop of fixed length for all neurons,
# $y_i = \sum_{s=1}^{k} \text{values}_{is}\, x_{\text{indices}_{is}}$, and in NumPy one line:

# %%
x = np.arange(1.0, 9.0)
y = np.zeros(n_out)
y[condensed.rows] = (condensed.values * x[condensed.indices]).sum(axis=1)

assert np.allclose(y, weight @ x)
print(condensed)

# %% [markdown]
# Ablated neurons are not stored at all. What is this worth? The authors report 3.4 times the speed of a dense
# layer, for one sample on a CPU, at 90 % sparsity (arXiv 2305.02299); [lesson 5](05_condensed_format.ipynb)
# measures it here.
#
# So the task is: move the weights as RigL does, and end with a rectangle.
#
# ## One update, to be opened
#
# SRigL needs three numbers besides the arrays.
#
# - The **drop fraction** $f$, as in RigL. We take 0.5, more than the usual 0.3, so that much happens.
# - The **budget** $B$: how many weights this layer may store, for the whole training. It is the density times
#   the number of positions, and whatever SRigL does, it never stores more.
# - The **saliency threshold** $\gamma_{\text{sal}}$, `gamma_sal`, between 0 and 1: how much a neuron must have
#   to say, or it is ablated. The paper takes 0.3 for convolutional networks and 0.95 for vision transformers.
#
# The budget is shared out at the start: every neuron gets $k_0 = \lfloor B / n_{\text{out}} \rfloor$ inputs.

# %%
drop_fraction, gamma_sal = 0.5, 0.6
budget = distributions.budget((n_out, n_in), 0.5)
k0 = distributions.initial_fan_in((n_out, n_in), 0.5)
nnz = mask.sum()

update = SRigL(gamma_sal=gamma_sal).update(weight, mask, grad, drop_fraction, budget=budget)
print(f"budget {budget}, k0 = {k0}; stored now: {nnz} weights, {nnz // 4} in each of 4 neurons")
print("fields of the update:", ", ".join(vars(update)))

# %% [markdown]
# `update` is a pure function: it changes nothing and returns every intermediate result. We take the fields one
# by one, and compute each again by hand. All pictures have the layer on the left, and on the right a bar for
# every neuron. A coloured cell is chosen in this step, a number on pale ground took part and was not, and an
# empty cell took no part.


# %% tags=["hide-input"]
def picture(title, parts, bars, numbers=None, shown=None, line=None, notes=(), crossed=(), legend=False):
    """Draw a step.

    parts: which cells get which colour; numbers: written into the cells that are `shown`; bars: label to
    (number in each neuron, colour); line: (label, place); notes: text at the end of the bars;
    crossed: neurons that are struck out; legend: whether to list the colours of the cells
    """
    grid = {"left": 0.06, "right": 0.99, "bottom": 0.29, "top": 0.88, "wspace": 0.06}
    figure, (layer, side) = plt.subplots(
        1, 2, figsize=(7.2, 2.25), layout="none", width_ratios=(1.5, 1), sharey=True, gridspec_kw=grid
    )
    mask_steps(layer, parts, legend=legend)
    layer.set_title(title, loc="left")
    chosen = np.any(list(parts.values()), axis=0)
    for i, j in np.argwhere(shown) if shown is not None else ():
        dark = not chosen[i, j] or parts.get("regrown", ~chosen)[i, j]
        style = {"color": "black" if dark else "white", "weight": "bold" if chosen[i, j] else "normal"}
        layer.text(j, i, f"{numbers[i, j]:.1f}", ha="center", va="center_baseline", fontsize=8.5, **style)
    begin, box = np.zeros(n_out, dtype=int), {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    for label, (count, colour) in bars.items():
        side.barh(range(n_out), count, left=begin, height=0.75, color=COLOURS[colour], label=label)
        for i in np.flatnonzero(count):
            dark = "black" if colour == "orange" else "white"
            side.text(begin[i] + 0.5, i, count[i], ha="center", va="center_baseline", color=dark, fontsize=8)
        begin = begin + count
    for i, note in enumerate(notes):
        side.text(begin[i] + 0.2, i, note, va="center_baseline", fontsize=8.5, bbox=box)
    for i in crossed:
        layer.axhline(i, color=COLOURS["vermilion"], linewidth=1.8)
    if line is not None:
        side.axvline(line[1], color="black", linewidth=1.2, linestyle="--", label=f"{line[0]} {line[1]}")
    side.set(xlim=(0, 10), xticks=range(0, 9, 2))
    side.set_title("how many in each neuron", loc="left")
    side.tick_params(left=False, which="both")
    side.legend(loc="upper left", bbox_to_anchor=(-0.04, -0.12), ncols=4, handlelength=1, columnspacing=0.7)
    return figure


# %% [markdown]
# ## Step 1: what would be kept
#
# $K = \lfloor f \cdot \text{nnz} \rfloor$ weights are to be replaced, where nnz is the number stored now. The
# candidates to keep are the $\text{nnz} - K$ stored weights of largest magnitude, **over the whole layer**, as
# in RigL. (Some accounts say "per neuron". Exercise 4 shows what that would change.)

# %%
K = int(drop_fraction * nnz)
smallest_kept = sorted(abs(weight[mask]))[K]
keep_candidates = mask & (abs(weight) >= smallest_kept)

assert (keep_candidates == update.keep_candidates).all()
print(f"K = int({drop_fraction} * {nnz}) = {K}")
print(f"the {nnz} - {K} = {nnz - K} weights to keep have magnitudes from {smallest_kept} up")


# %% tags=["hide-input"]
picture(
    "Step 1: candidates to keep (numbers: weights)",
    {"kept": keep_candidates},
    {"to keep": (keep_candidates.sum(axis=1), "blue")},
    weight,
    mask,
)
plt.show()

# %% [markdown]
# Everything from 1.3 up is blue. All weights of neuron 2 are that large, but only one each of neurons 3 and 5.
#
# ## Step 2: what would grow
#
# The candidates to grow are the $K$ largest gradients, again over the whole layer, **among the positions where
# no weight is stored**. An ablated neuron takes part: all its positions are free.

# %%
smallest_grown = sorted(abs(grad[~mask]))[-K]
grow_candidates = ~mask & (abs(grad) >= smallest_grown)

assert (grow_candidates == update.grow_candidates).all()
print(f"the {K} largest gradients at {(~mask).sum()} free places have magnitudes from {smallest_grown} up")


# %% tags=["hide-input"]
picture(
    "Step 2: candidates to grow (numbers: gradients)",
    {"grown": grow_candidates},
    {"to grow": (grow_candidates.sum(axis=1), "green")},
    grad,
    ~mask,
)
plt.show()

# %% [markdown]
# Neuron 1 has six candidates, although it is ablated: the loss would fall quickly if it had weights there.
# Neuron 3 has none.
#
# ## Step 3: salient weights
#
# A position is *salient* if it is a candidate of either kind. SRigL counts them for every neuron.

# %%
salient = keep_candidates | grow_candidates
counts = salient.sum(axis=1)

assert (salient == update.salient).all()
assert (counts == update.salient_counts).all()
assert counts.sum() == nnz
print("by magnitude:", keep_candidates.sum(axis=1), "together", keep_candidates.sum())
print("by gradient: ", grow_candidates.sum(axis=1), "together", grow_candidates.sum())
print("salient:     ", counts, "together", counts.sum())


# %% tags=["hide-input"]
parts = {"kept": keep_candidates, "grown": grow_candidates}
both = {
    "magnitude": (keep_candidates.sum(axis=1), "blue"),
    "gradient": (grow_candidates.sum(axis=1), "green"),
}
scores = np.where(mask, weight, grad)
title = "Step 3: salient (blue: weights, green: gradients)"
picture(title, parts, both, scores, salient, notes=[f"= {count}" for count in counts])
plt.show()

# %% [markdown]
# Note the sum. The two kinds lie on different positions, there are $\text{nnz} - K$ of one and $K$ of the other,
# so there are always nnz salient weights in all (as long as $K$ positions are free). Salience is a cake of
# fixed size: a neuron that gets more takes it from another.
#
# ## Step 4: who is ablated
#
# A neuron needs at least
#
# $$ \max(1, \lfloor \gamma_{\text{sal}} \, k_0 \rfloor) $$
#
# salient weights, or it is ablated (with $\gamma_{\text{sal}} = 0$ nobody is). With one exception, the *floor*:
# the $\lceil B / n_{\text{in}} \rceil$ neurons with the highest counts stay whatever their counts are.
# Otherwise so few might be left that they could not hold the budget, even with every input. Among equal counts
# the neuron with the lower number stays.

# %%
threshold = max(1, int(gamma_sal * k0))
floor = math.ceil(budget / n_in)
ablated = counts < threshold
ablated[np.argsort(-counts, kind="stable")[:floor]] = False

assert threshold == update.ablation_threshold
assert (ablated == update.ablated).all()
revived = ~ablated & ~mask.any(axis=1)
print(f"threshold: int({gamma_sal} * {k0}) = {threshold}")
print(f"floor: ceil({budget} / {n_in}) = {floor} neurons stay in any case")
print(f"ablated: neuron {np.flatnonzero(ablated)}; revived: neurons {np.flatnonzero(revived)}")


# %% tags=["hide-input"]
verdicts = [f"{count} < {threshold}: ablated" if count < threshold else f"{count} is enough" for count in counts]
picture(
    "Step 4: ablate whoever is below the threshold",
    parts,
    both,
    scores,
    salient,
    ("threshold", threshold),
    verdicts,
    np.flatnonzero(ablated),
)
plt.show()

# %% [markdown]
# Neuron 3 has six weights, one of them, 2.1, among the largest of the layer, and still it goes. Neurons 1 and 4
# have no weights, yet enough positions with large gradients: they are *revived*. Neuron 4 just made it, with two.
#
# ## Step 5: the new fan-in
#
# Whoever is left shares the budget equally:
#
# $$ k = \min\!\left(n_{\text{in}}, \left\lfloor B / n_{\text{active}} \right\rfloor\right) $$

# %%
n_active = np.count_nonzero(~ablated)
fan_in = min(n_in, budget // n_active)
there = mask & ~ablated[:, None]  # the weights of the neurons that are left

assert fan_in == update.fan_in
unused = budget - n_active * fan_in
print(f"{n_active} neurons share {budget} weights: {budget} // {n_active} = {fan_in} each")
print(f"{budget} - {n_active} * {fan_in} = {unused} of the budget are not used for now")


# %% tags=["hide-input"]
to_go = fan_in - there.sum(axis=1)
picture(
    "Step 5: the new fan-in (numbers: weights)",
    {"kept": there},
    {"stored so far": (there.sum(axis=1), "blue")},
    weight,
    there,
    ("fan-in", fan_in),
    [
        "ablated" if gone else f"needs {n}" if n > 0 else f"{-n} too many"
        for gone, n in zip(ablated, to_go, strict=True)
    ],
    np.flatnonzero(ablated),
)
plt.show()

# %% [markdown]
# Four neurons had six inputs each, now five are to have four. The division is rounded down, so a few weights
# of the budget may lie idle until the next update. If more neurons are ablated than revived, the fan-in of the
# others *grows*.
#
# ## Step 6: prune
#
# Only now are weights dropped, in two rankings:
#
# - **Over the layer.** Of the weights that the remaining neurons store, the $\text{nnz} - K$ largest are kept
#   (all, if there are fewer). This is step 1 again, without the ablated neurons, so the place that neuron 3 held
#   goes to another.
# - **Within a neuron.** One that still has more than $k$ keeps its $k$ largest.

# %%
n_keep = min(nnz - K, there.sum())
smallest = sorted(abs(weight[there]))[-n_keep]
over_the_layer = there & (abs(weight) >= smallest)

kept = over_the_layer.copy()
for i in np.flatnonzero(kept.sum(axis=1) > fan_in):
    kept[i] &= abs(weight[i]) >= sorted(abs(weight[i, kept[i]]))[-fan_in]

assert (kept == update.kept).all()
print(f"the {n_keep} largest of {there.sum()} weights have magnitudes from {smallest} up")
print(f"of these {n_keep}, {kept.sum()} are within the fan-in of their neurons")


# %% tags=["hide-input"]
too_many = over_the_layer & ~kept
missing = fan_in - kept.sum(axis=1)
picture(
    "Step 6: prune (numbers: weights)",
    {"kept": kept, "dropped": too_many},
    {"kept": (kept.sum(axis=1), "blue"), "above the fan-in": (too_many.sum(axis=1), "vermilion")},
    weight,
    there,
    ("fan-in", fan_in),
    ["ablated" if gone else f"needs {n}" if n else "full" for gone, n in zip(ablated, missing, strict=True)],
    np.flatnonzero(ablated),
)
plt.show()

# %% [markdown]
# Everything from 1.2 up passes the first ranking. Neuron 0 has four of these and keeps them. Neuron 2 has six and
# loses the two smallest, 1.8 and 1.5, although both are larger than the 1.2 that neuron 5 keeps.
#
# ## Step 7: grow
#
# Every remaining neuron takes, from **all positions not kept**, those of largest gradient until it has $k$. Now
# each neuron chooses for itself, and that makes the rectangle.

# %%
new = kept.copy()
for neuron in np.flatnonzero(~ablated):
    free = [j for j in np.argsort(-abs(grad[neuron])) if not kept[neuron, j]]
    new[neuron, free[: fan_in - kept[neuron].sum()]] = True

assert (new == update.mask).all()
assert (update.grown == (new & ~mask)).all()
assert (update.dropped == (mask & ~new)).all()
assert (update.regrown == (mask & ~kept & new)).all()
n_kept, n_regrown, n_grown = kept.sum(), update.regrown.sum(), update.grown.sum()
print(f"of {nnz} weights {n_kept} kept, {n_regrown} regrown, {update.dropped.sum()} dropped; {n_grown} grown")
print(f"stored now: {n_kept} + {n_regrown} + {n_grown} = {new.sum()} = {n_active} * {fan_in}")


# %% tags=["hide-input"]
last = {"kept": kept, "regrown": update.regrown, "grown": update.grown}
colours = {"kept": "blue", "dropped": "vermilion", "regrown": "orange", "grown": "green"}
step_7 = {name: (where.sum(axis=1), colours[name]) for name, where in last.items()}
picture(
    "Step 7: grow (blue: weights, all others: gradients)",
    last,
    step_7,
    np.where(kept, weight, grad),
    np.repeat(~ablated[:, None], n_in, axis=1),
    ("fan-in", fan_in),
    crossed=np.flatnonzero(ablated),
)
plt.show()

# %% [markdown]
# All bars end at the same line. Look at three details:
#
# - Neuron 5 needs two. Its largest gradients are 4.4 and 4.2. At input 1, where 4.4 stands, step 6 has just
#   dropped the weight -0.2: it is *regrown*, with its old value.
# - Neuron 1 had six candidates in step 2 and gets four. Neuron 4 had two and gets four as well.
# - Neuron 0 had a candidate to grow, 3.3, but no room. So a candidate of step 2 is not a promise: it only speaks
#   for its neuron when salient weights are counted.
#
# What does the layer store now? Weights that were active before and are active after keep their values, and the
# optimizer its memory of them; that includes the regrown one. Weights that have grown start at zero.

# %%
values_after = np.where(update.mask & mask, weight, 0.0)
condensed_after = CondensedMatrix.from_dense(values_after, update.mask)
show_condensed(condensed_after, update.mask)

# %% [markdown]
# A rectangle again, of another shape.
#
# ## The film
#
# The seven steps in a row. Watch the bars: they begin at equal length, and they end at equal length.

# %% tags=["hide-input"]
stays = ~ablated[:, None]
keep, grow = keep_candidates, grow_candidates
at_threshold, at_fan_in = ("threshold", threshold), ("fan-in", fan_in)
film = [
    ("Before", {"kept": mask}, ["stored"], None),
    ("1. What would be kept", {"kept": keep, "dropped": mask & ~keep}, ["to keep", "the others"], None),
    ("2. What would grow", {"grown": grow}, ["to grow"], None),
    ("3. Salient: both kinds", {"kept": keep, "grown": grow}, ["to keep", "to grow"], None),
    ("4. Ablate neuron 3", {"kept": keep & stays, "grown": grow & stays}, ["to keep", "to grow"], at_threshold),
    ("5. The others share the budget", {"kept": there}, ["stored"], at_fan_in),
    ("6. Prune", {"kept": kept, "dropped": there & ~kept}, ["kept", "dropped"], at_fan_in),
    ("7. Grow", last, list(last), at_fan_in),
    ("Afterwards", {"kept": update.mask}, ["stored"], at_fan_in),
]
plain_text = {"text.antialiased": False, "text.hinting": "force_autohint"}  # makes moving pictures smaller


def scene(title, parts, labels, line):
    lengths = [(where.sum(axis=1), colours[name]) for name, where in parts.items()]
    return picture(title, parts, dict(zip(labels, lengths, strict=True)), line=line)


with plt.rc_context(plain_text):
    movie = animate([scene(*one) for one in film], 2.0, alt="The seven steps of an SRigL update of six neurons")
movie

# %% [markdown]
# ## Write it yourself
#
# Here it is once more, without NumPy: lists, sorting and sets of places. Ties go to the place that comes first
# when you read the layer row by row, as everywhere in this package, so that a seed gives the same network on
# every machine.


# %%
def largest(score, places, count):
    """The `count` places of largest magnitude; among equals those that come first, row by row."""
    return set(sorted(places, key=lambda place: (-abs(score[place[0]][place[1]]), place))[:count])


def my_srigl(weight, mask, grad, drop_fraction, budget, gamma_sal):
    """The places (neuron, input) with a weight after one update; arguments are lists or numbers."""
    n_out, n_in = len(mask), len(mask[0])
    places = [(i, j) for i in range(n_out) for j in range(n_in)]
    active = [(i, j) for i, j in places if mask[i][j]]
    # 1 and 2: candidates
    K = int(drop_fraction * len(active))
    n_keep = len(active) - K
    keep = largest(weight, active, n_keep)
    grow = largest(grad, [(i, j) for i, j in places if not mask[i][j]], K)
    # 3: salient weights of each neuron
    salient = [i for i, j in keep | grow]
    counts = [salient.count(i) for i in range(n_out)]
    # 4: who stays
    threshold = max(1, int(gamma_sal * (budget // n_out))) if gamma_sal > 0 else 0
    by_count = sorted(range(n_out), key=lambda i: (-counts[i], i))
    floor = by_count[: math.ceil(budget / n_in)]
    left = [i for i in range(n_out) if counts[i] >= threshold or i in floor]
    # 5: the new fan-in
    fan_in = min(n_in, budget // len(left))
    # 6: prune over the layer, then within the neurons
    over_the_layer = largest(weight, [(i, j) for i, j in active if i in left], n_keep)
    new = set()
    for neuron in left:
        kept = largest(weight, [(i, j) for i, j in over_the_layer if i == neuron], fan_in)
        # 7: grow
        free = [(neuron, j) for j in range(n_in) if (neuron, j) not in kept]
        new |= kept | largest(grad, free, fan_in - len(kept))
    return new


# %% [markdown]
# Is it right? A few hundred random layers tell, if they are difficult enough: shapes up to 6 x 8; weights and
# gradients that are small whole numbers, so that most ranks are ties; neurons that are ablated beforehand;
# random drop fractions and budgets.


# %%
def random_layer(rng):
    """Arguments of an update, with ties and with neurons that are ablated already."""
    n_out, n_in = int(rng.integers(1, 7)), int(rng.integers(1, 9))
    mask = masks.random_constant_fan_in((n_out, n_in), int(rng.integers(1, n_in + 1)), rng)
    mask[rng.random(n_out) < 0.25] = False
    weight = np.where(mask, rng.integers(-3, 4, mask.shape), 0).astype(float)
    grad = rng.integers(-3, 4, mask.shape).astype(float)
    budget = int(rng.integers(max(n_out, mask.sum()), n_out * n_in + 1))
    return weight, mask, grad, float(rng.random()), budget, float(rng.choice([0, 0.3, 0.6, 0.95]))


rng = np.random.default_rng(4)
n_layers, n_ablated, n_regrown = unless_fast(500, 200), 0, 0
for _ in range(n_layers):
    w, m, g, f, b, gamma = random_layer(rng)
    theirs = SRigL(gamma_sal=gamma).update(w, m, g, f, budget=b)
    mine = my_srigl(w.tolist(), m.tolist(), g.tolist(), f, b, gamma)
    assert mine == {(i, j) for i, j in np.argwhere(theirs.mask).tolist()}
    assert masks.has_constant_fan_in(theirs.mask)
    assert theirs.mask.sum() <= b
    n_ablated += theirs.ablated.any()
    n_regrown += theirs.regrown.any()
print(f"{n_layers} layers: the same masks; {n_ablated} with ablated neurons, {n_regrown} with regrown weights")

# %% [markdown]
# [Lesson 8](08_property_tests.ipynb) goes on from here: random layers that a program shrinks to the smallest
# one on which two versions differ.
#
# ## Turn the knobs
#
# The small layer again; left the result of the update, right the salient weights. The slider of `gamma_sal`
# moves the threshold, the one of the drop fraction moves the cake of salient weights from magnitudes (0) to
# gradients (1).


# %% tags=["hide-input"]
def knobs(gamma_sal, drop_fraction):
    """What an update of the small layer does with these settings."""
    u = SRigL(gamma_sal=gamma_sal).update(weight, mask, grad, drop_fraction, budget=budget)
    parts = {"kept": u.kept, "dropped": u.dropped, "regrown": u.regrown, "grown": u.grown}
    by_magnitude, by_gradient = u.keep_candidates.sum(axis=1), u.grow_candidates.sum(axis=1)
    bars = {"magnitude": (by_magnitude, "blue"), "gradient": (by_gradient, "green")}
    low = u.salient_counts < u.ablation_threshold
    notes = np.select([u.ablated, low], ["ablated", "floor"], "")
    title = f"{np.count_nonzero(~u.ablated)} active, fan-in {u.fan_in}: {u.mask.sum()} of {budget} weights"
    return picture(title, parts, bars, line=("threshold", u.ablation_threshold), notes=notes, legend=True)


with plt.rc_context(plain_text):
    explore(knobs, gamma_sal=[0.0, 0.3, 0.6, 0.8], drop_fraction=[0.0, 0.5, 1.0])

# %% [markdown]
# Things to look for:
#
# - `gamma_sal` 0 ablates nobody and revives everybody: all six neurons share the budget, four inputs each, even
#   with $f = 0$, where nothing is to be dropped. Every update restores the fan-in.
# - 0.3 asks for $\max(1, \lfloor 0.3 \cdot 4 \rfloor) = 1$ salient weight. Here that matters with $f = 0$ only: no
#   gradient counts then, so neurons 1 and 4 have nothing to show.
# - With 0.8 the threshold is 3, and at $f = 0.5$ two neurons go. Four share 24 weights: six each.
# - $f = 1$ with 0.8 would ablate four neurons. But the best three are the floor: they get all eight inputs, and
#   the layer has become a dense one with three neurons.
#
# ## A real layer
#
# Now a training. The network has two hidden layers of 256 neurons, `fc1` and `fc2`, and an output layer, `fc3`.
# `gamma_sal` is 0.95 as in the paper's vision transformer, and there are 25 updates. A callback keeps every one
# and checks two promises each time: the layer stays within its budget, and its fan-in is constant.

# %%
data = load_images()
fashion = len(data.x_train) > 10_000  # else digits
sparsity, batch_size = (0.98, 128) if fashion else (0.95, 32)
epochs = unless_fast(4, 1) if fashion else 20
n_steps = epochs * (len(data.x_train) // batch_size)
delta_t = int(0.75 * n_steps) // 25


class Recorder(Callback):
    """Keeps all updates by layer."""

    def __init__(self):
        self.updates = {}

    def on_topology_update(self, trainer, layer, update):
        assert update.mask.sum() <= trainer.layers[layer].budget
        assert masks.has_constant_fan_in(update.mask)
        self.updates.setdefault(layer, []).append(update)


# %%
def train(method, seed=0):
    """Train a fresh network; return the trainer and all updates by layer."""
    sizes = (data.n_features, 256, 256, data.n_classes)
    model = models.mlp(sizes, storage="condensed", sparsity=sparsity, rng=seed)
    recorder = Recorder()
    trainer = Trainer(
        model,
        topology=method,
        epochs=epochs,
        batch_size=batch_size,
        delta_t=delta_t,
        seed=seed,
        callbacks=[recorder],
        progress=False,
    )
    trainer.fit(data)
    return trainer, recorder.updates


trainer, updates = train(SRigL(gamma_sal=0.95))
times = delta_t * np.arange(1, len(updates["fc1"]) + 1)
print(f"{n_steps} steps, an update every {delta_t}: {len(times)} updates, the last at step {times[-1]}")
for name, layer in trainer.layers.items():
    print(f"{name}: budget {layer.budget}, k0 = {layer.budget // layer.matrix.shape[0]}, now {layer.matrix}")

# %% [markdown]
# No assertion failed: in every layer, at every update, the weights fit the budget and the fan-in was constant.
# Of the hidden layers a good part of the neurons is gone, and the others have more inputs than $k_0$.
#
# ### Through the updates
#
# The slider goes through the updates of `fc2`. Left, what happens to the positions (of the 256 inputs the first
# 128 are drawn); middle, the salient weights of the same neurons, with the threshold as a dashed line; right,
# all of it counted, with the new fan-in. The neurons are sorted: those revived, those that stay, those ablated
# now, those that stay ablated, and within each group by salient weights. Go slowly from 1 to 5, then fast.


# %%
def was_active(update):
    """Bool (n_out,): which neurons had weights before the update."""
    return (update.mask & ~update.grown | update.dropped).any(axis=1)


# %% tags=["hide-input"]
def show_update(update):
    """One update of fc2: its mask, its salient counts, and which neurons were ablated and revived."""
    u = updates["fc2"][update - 1]
    before, now = was_active(u), ~u.ablated
    groups = [("revived", "green", now & ~before), ("stay", "blue", now & before)]
    groups += [("ablated now", "vermilion", ~now & before), ("stay ablated", "grey", ~now & ~before)]
    order = np.concatenate([np.flatnonzero(who)[np.argsort(-u.salient_counts[who])] for _, _, who in groups])
    figure = plt.figure(figsize=(5.8, 3.0), layout="none")
    width, height = figure.get_size_inches() * 110  # in pixels: 256 of them for 256 rows, so that none is lost
    left = figure.add_axes((56 / width, 48 / height, 256 / width, 256 / height))
    middle = figure.add_axes((324 / width, 48 / height, 160 / width, 256 / height), sharey=left)
    parts = {"kept": u.kept, "dropped": u.dropped, "regrown": u.regrown, "grown": u.grown}
    mask_steps(left, {name: where[order, :128] for name, where in parts.items()}, legend=False)
    left.set(xlabel="input", ylabel="neurons, sorted", xticks=(0, 50, 100), yticks=(0, 100, 200))
    left.set_title(f"step {times[update - 1]}: weights", loc="left")
    top = 0
    for _, colour, who in groups:
        edges, top = np.arange(top, top + who.sum() + 1) - 0.5, top + who.sum()
        length = -np.sort(-u.salient_counts[who])
        middle.stairs(length, edges, orientation="horizontal", fill=True, color=COLOURS[colour])
    middle.axvline(u.ablation_threshold, color="black", linestyle="--", linewidth=1)
    middle.tick_params(labelleft=False)
    middle.set(xlim=(0, 5 * u.ablation_threshold), xticks=(0, u.ablation_threshold), xlabel="threshold")
    middle.set_title("salient weights", loc="left")
    middle.grid(False)
    neurons = [(label, colour, who.sum()) for label, colour, who in groups]
    weights = [(name, colours[name], where.sum()) for name, where in parts.items()]
    for place, title, rows in ((0.93, "neurons", neurons), (0.5, f"weights, fan-in {u.fan_in}", weights)):
        rows = [row for row in rows if row[2]]
        handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[colour]) for _, colour, _ in rows]
        labels = [f"{number} {label}" for label, _, number in rows]
        style = {"loc": "upper left", "bbox_to_anchor": (0.77, place), "handlelength": 1}
        figure.legend(handles, labels, title=title, alignment="left", **style)
    return figure


with plt.rc_context(plain_text):
    explore(show_update, update=unless_fast(list(range(1, len(times) + 1)), [1, 2, len(times)]))

# %% [markdown]
# The first update cuts deep. From the second on, some neurons come back and a few more go, and towards the end
# hardly anything moves, because the drop fraction goes to zero. (The coloured cells at the left margin of the
# mask are no accident. We come back to them.) The same over all 25 updates:


# %%
def history(name):
    """Of every update of a layer: active neurons, fan-in, neurons revived and ablated, weights that moved."""
    rows = []
    for u in updates[name]:
        revived, died = np.sum(~was_active(u) & ~u.ablated), np.sum(was_active(u) & u.ablated)
        moved = (u.grown.sum(), u.dropped.sum(), u.regrown.sum())
        rows.append((np.sum(~u.ablated), u.fan_in, revived, died, *moved))
    return np.transpose(rows)


# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 4, figsize=(9, 2.1))
for name, colour in (("fc1", COLOURS["sky"]), ("fc2", COLOURS["blue"])):
    active, fan_ins, revived, died, *moved = history(name)
    axes[0].plot(times, active, color=colour, label=name)
    axes[1].plot(times, fan_ins, color=colour, label=name)
    print(f"{name}: {died[0]} ablated in the first update, {died[1:].sum()} later; {revived.sum()} revived in all")
axes[2].bar(times, revived, 0.8 * delta_t, color=COLOURS["green"], label="revived")
axes[2].bar(times, -died, 0.8 * delta_t, color=COLOURS["vermilion"], label="ablated")
for count, label in zip(moved, ("grown", "dropped", "regrown"), strict=True):
    axes[3].plot(times, count, color=COLOURS[colours[label]], label=label)
titles = ("active neurons", "fan-in", "fc2: neurons", "fc2: weights")
for panel, title in zip(axes, titles, strict=True):
    panel.set(title=title, xlabel="step", ylim=(-20, 20) if panel is axes[2] else (0, None))
    panel.legend()
plt.show()

# %% [markdown]
# In the third panel the first bar goes far beyond the picture; the printed lines say how far.
#
# ## What gamma_sal asks for
#
# Why so many neurons in the *first* update? Step 3 has the answer. All counts together are nnz, so the mean over
# the neurons is $\text{nnz} / n_{\text{out}}$, and that is $k_0$ at the first update. So `gamma_sal` compares a
# neuron with the average: it is ablated if it has less than the fraction $\gamma_{\text{sal}}$ of what all would
# have if they were equal.
#
# Of these $k_0$, a share of $1 - f$ comes from magnitudes, and $f$, about 0.3 at the start, from gradients. This
# is how the two are spread in the first update of `fc1`:

# %%
first = updates["fc1"][0]
k0_fc1 = trainer.layers["fc1"].budget // 256
by_magnitude, by_gradient = first.keep_candidates.sum(axis=1), first.grow_candidates.sum(axis=1)
assert first.salient_counts.sum() == 256 * k0_fc1
without = np.mean(by_gradient == 0)
print(f"k0 = {k0_fc1}, and each neuron has {first.salient_counts.mean():g} salient weights on average")
print(f"{without:.0%} of the neurons have no candidate to grow, and one has {by_gradient.max()} of them")

# %% tags=["hide-input"]
order = np.argsort(-first.salient_counts, kind="stable")
figure, axes = plt.subplots(figsize=(6, 2.2))
axes.stairs(first.salient_counts[order], fill=True, color=COLOURS["green"], label="by gradient")
axes.stairs(by_magnitude[order], fill=True, color=COLOURS["blue"], label="by magnitude")
for gamma in (0.3, 0.95):
    height = max(1, int(gamma * k0_fc1))
    axes.hlines(height, 0, 256, color="black", linestyle="--", linewidth=1)
    axes.text(259, height, f"gamma_sal {gamma}", va="center")
axes.set(
    xlim=(-4, 310), ylim=(0, 2.5 * k0_fc1), title="salient weights in the first update of fc1, and thresholds"
)
axes.set(xlabel="neurons, sorted", ylabel="salient weights")
axes.legend()
plt.show()

# %% [markdown]
# The first bars reach beyond the picture. Magnitudes are spread rather evenly, as they are little more than their
# random first values. Gradients are not: a few neurons have almost all large ones. A neuron without any has
# about $(1 - f)\,k_0 = 0.7\,k_0$ salient weights, some luck more or less. So
#
# - a `gamma_sal` **well below 0.7** ablates only those with the worst luck, and the paper's 0.3 hardly anybody;
# - a `gamma_sal` **above 0.7** demands large gradients of the average neuron, and few have any.
#
# How many neurons are below the threshold, for every `gamma_sal`?

# %%
figure, axes = plt.subplots(figsize=(5, 2.1))
gammas = np.linspace(0.01, 0.99, 99)
for name, colour in (("fc1", COLOURS["sky"]), ("fc2", COLOURS["blue"])):
    k, n = trainer.layers[name].budget // 256, updates[name][0].salient_counts
    below = [100 * np.mean(n < max(1, int(gamma * k))) for gamma in gammas]
    axes.plot(gammas, below, color=colour, label=name)
axes.axvline(0.7, color="black", linewidth=1, linestyle=":", label="1 - f")
axes.set(title="neurons below the threshold in the first update", xlabel="gamma_sal", ylabel="% of the neurons")
axes.legend()
plt.show()

# %% [markdown]
# The curves have steps because thresholds are whole numbers. And why is there calm afterwards? The threshold
# stays what it was, while those that are left now have more than $k_0$ inputs each, and so more salient weights.
#
# So the shape of the network is decided in the first update, when the weights have hardly been trained.
# Exercise 5 asks whether that should wait.
#
# ### Does ablation help?
#
# The same training with other values:

# %%
runs = {0.95: (trainer, updates)}
for gamma in (0.0, 0.3):
    runs[gamma] = train(SRigL(gamma_sal=gamma))
    assert (runs[gamma][1]["fc1"][0].salient_counts == first.salient_counts).all()
report = []
for gamma in sorted(runs):
    accuracy = runs[gamma][0].classifier.evaluate(data.x_test, data.y_test)[1]
    layers = runs[gamma][0].layers.values()
    active = " / ".join(str(len(layer.matrix.rows)) for layer in layers)
    stored = sum(layer.matrix.nnz for layer in layers)
    report.append(f"gamma_sal {gamma:<4}: accuracy {accuracy:.2%}, active neurons {active}, {stored} weights")
print(*report, sep="\n")

# %% [markdown]
# One seed, one small network, a short training: this does not show which value is best. The repository has a
# sweep of a larger MLP (784-512-512-10) on Fashion-MNIST, five seeds for every value. We read its table.

# %% tags=["hide-input"]
table = "../results/sweeps/fashion-mnist-mlp/gamma-sal.csv"
sweep = np.genfromtxt(table, delimiter=",", names=True, encoding="utf-8")
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.1))
for level, colour in ((0.9, "sky"), (0.98, "blue"), (0.99, "black")):
    part = sweep[sweep["sparsity"] == level]
    style = {"color": COLOURS[colour], "marker": "o", "label": f"{100 * level:.0f} % sparse"}
    left.errorbar(part["gamma_sal"], part["accuracy"], part["accuracy_half_width"], **style)
    right.errorbar(part["gamma_sal"], part["active"], part["active_half_width"], **style)
left.set(title="accuracy, with 95 % intervals", xlabel="gamma_sal", ylabel="% of the test images")
right.set(title="active neurons", xlabel="gamma_sal", ylabel="% of the hidden neurons", ylim=(0, 105))
right.legend(loc="lower left")
plt.show()

for level in (0.9, 0.98):
    at = {row["gamma_sal"]: row for row in sweep[sweep["sparsity"] == level]}
    gain = {gamma: at[gamma]["accuracy"] - at[0.0]["accuracy"] for gamma in (0.3, 0.95)}
    print(
        f"{100 * level:.0f} %: 0.3 leaves {at[0.3]['active']:.1f} % of the neurons, gain {gain[0.3]:+.2f} points;"
    )
    print(f"      0.95 leaves {at[0.95]['active']:.1f} %, gain {gain[0.95]:+.2f}")

# %% [markdown]
# Most neurons go where our curves say they should, between 0.5 and 0.9. The paper's 0.3, chosen for convolutional
# networks, ablates almost nothing in this MLP. With 0.95 and 98 % sparsity the accuracy gains 0.69 points on
# average; paired by seed, the 95 % interval is plus or minus 0.36
# (`results/sweeps/fashion-mnist-mlp/comparisons.csv`). At 90 % the same value gains nothing.
#
# A part of the gain may be rounding, not ablation. $B$ divided by *all* neurons and rounded down leaves more of
# the budget idle than $B$ divided by few:

# %%
for gamma in (0.0, 0.95):
    layer = runs[gamma][0].layers["fc2"]
    print(f"fc2, gamma_sal {gamma:<4}: {layer.matrix.nnz} of {layer.budget} weights")

# %% [markdown]
# ## Questions of a careful reader
#
# **May a weight that was just dropped return?** Yes, in RigL and in SRigL: what grows is chosen from all
# positions *not kept*. It then keeps its value, as if it had never been dropped. In our training that was not
# rare:

# %%
for name, seen in updates.items():
    regrown, pruned = sum(u.regrown.sum() for u in seen), sum((u.regrown | u.dropped).sum() for u in seen)
    print(f"{name}: {regrown} of {pruned} pruned weights came back at once ({regrown / pruned:.0%})")

# %% [markdown]
# **May an ablated neuron return?** Yes; neurons 1 and 4 did. All it takes is enough large gradients in step 2.
# The authors' code does the same. With `revive=False` they stay dead, and the rest shares the budget:

# %%
dead = SRigL(gamma_sal=gamma_sal, revive=False).update(weight, mask, grad, drop_fraction, budget=budget)
print("revive=False: inputs", masks.fan_in(dead.mask), "instead of", masks.fan_in(update.mask))
assert not dead.mask[[1, 4]].any()

# %% [markdown]
# **Is the output layer ablated?** No: a class whose neuron has no inputs would get the same score for every image.
# The trainer passes `ablate=False` for the last layer; its weights move all the same.

# %%
print({name: layer.ablate for name, layer in trainer.layers.items()})
assert all(not u.ablated.any() for u in updates["fc3"])
print(f"fc3: {sum(u.grown.sum() for u in updates['fc3'])} weights grown, no neuron ablated")

# %% [markdown]
# **Who reads an ablated neuron?** Its bias stays, so neuron $i$ still sends on a number, the constant
# $\max(0, b_i)$. And SRigL updates layer by layer: nothing tells `fc2` that a neuron of `fc1` has gone.

# %%
lost = ~masks.active_neurons(trainer.layers["fc1"].matrix.mask())
readers = trainer.layers["fc2"].matrix.mask()[:, lost].sum()
stored = trainer.layers["fc2"].matrix.nnz
share = readers / stored
print(f"{readers} of {stored} weights of fc2 ({share:.0%}) read one of {lost.sum()} ablated neurons of fc1")

# %% [markdown]
# Those weights are spent on constants, which could as well be added to the biases of `fc2`. Their magnitudes
# protect them: where the constant is zero, so is the gradient of a weight that reads it, and only the weight
# decay makes it smaller.
#
# **Does ablation find the neurons that do nothing?** Not those whose ReLU never fires. Such a neuron has no
# gradient at all, so its weights stay as large as they are, and large means salient. Let us send training images
# through the network and count neurons of `fc2` that have weights, but whose output is zero for every image:

# %%
report = []
for gamma, (trained, _) in sorted(runs.items()):
    x = trained.classifier.standardization.transform(data.x_train[:5000], np.float32)
    for name, module in trained.model.children().items():
        x = module.forward(x)
        if name == "relu2":
            break
    with_weights = masks.active_neurons(trained.layers["fc2"].matrix.mask())
    n_silent = np.count_nonzero(with_weights & ~(x > 0).any(axis=1))
    report.append(f"gamma_sal {gamma:<4}: {n_silent} of {with_weights.sum()} active neurons are silent")
print(*report, sep="\n")

# %% [markdown]
# This also explains the coloured cells at the left margin of the masks above. If a silent neuron loses a weight,
# step 7 must fill its row, whatever there is. All its gradients are zero, that is, equal, and the tie goes to the
# first inputs. At the next update these weights, still zero, are the smallest; they are dropped and, with the
# same gradients, regrown at the same places. RigL, which ranks gradients over the whole layer, has no row that
# must be filled.

# %%
most = max(u.fan_in for u in updates["fc2"])
places = np.sum([u.regrown.sum(axis=0) for u in updates["fc2"]], axis=0)
share = places[:most].sum() / places.sum()
print(f"{share:.0%} of the weights regrown in fc2 lie at its first {most} inputs of 256")

# %% [markdown]
# **What does the authors' code do differently?** The package can play it, with `compat="official"`. Read
# `sparsekit/topology/srigl_official.py` for all five points. Three of them:
#
# - in step 2 gradients compete at all positions, those with weights included;
# - the number of weights to keep is not counted again after ablation, so that empty positions may be "kept";
# - in step 6 a neuron with too many keeps those of lowest index, not of largest magnitude.

# %%
theirs = SRigL(gamma_sal=gamma_sal, compat="official").update(weight, mask, grad, drop_fraction, budget=budget)
print("salient counts:", counts, "here and", theirs.salient_counts)

figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.3), sharey=True)
for panel, u, title in zip(axes, (update, theirs), ("this lesson", "the authors' code"), strict=True):
    mask_steps(panel, {"kept": u.kept, "dropped": u.dropped, "regrown": u.regrown, "grown": u.grown}, title)
plt.show()

# %% [markdown]
# Another neuron is ablated, and neuron 2 loses its largest weight, 2.4 at input 7, because it stands last.
# [Lesson 8](08_property_tests.ipynb) shows how such differences are found.
#
# ## Exercises
#
# **1. The fan-in afterwards.** Write the function that gives the fan-in of a layer, and how many weights of its
# budget are not used, when some of its neurons have been ablated.


# %%
def fan_in_and_rest(n_out, n_in, budget, n_ablated):
    """Return (fan-in, weights of the budget that are not used)."""
    ...


def check_fan_in(function):
    assert tuple(function(6, 8, 24, 1)) == (4, 4), (
        "in the small layer 5 neurons share 24 weights: 4 each, 4 unused"
    )
    assert tuple(function(512, 784, 5120, 0)) == (10, 0), "if nobody is ablated, 512 neurons share 5120 weights"
    assert tuple(function(6, 8, 30, 4)) == (8, 14), "a neuron cannot have more inputs than there are"


try_it(fan_in_and_rest, check_fan_in)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def fan_in_solution(n_out, n_in, budget, n_ablated):
    n_active = n_out - n_ablated
    fan_in = min(n_in, budget // n_active)
    return fan_in, budget - n_active * fan_in


verify(fan_in_solution, check_fan_in)

# %% [markdown]
# **2. How many different thresholds?** At 99 % sparsity the sweep gives the same accuracy, to the last digit,
# for `gamma_sal` 0.8, 0.9, 0.95 and 0.99. Which thresholds are possible at all, if $k_0$ is given and
# $0 < \gamma_{\text{sal}} < 1$?


# %%
def possible_thresholds(k0):
    """Return the ascending list of all thresholds that some gamma_sal between 0 and 1 gives."""
    ...


def check_thresholds(function):
    for k0 in (1, 2, 3, 5, 12):
        tried = sorted({max(1, int(gamma * k0)) for gamma in np.linspace(0.001, 0.999, 999)})
        assert list(function(k0)) == tried, f"for k0 = {k0} there are {len(tried)}, the largest is {tried[-1]}"


try_it(possible_thresholds, check_thresholds)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def thresholds_solution(k0):
    return list(range(1, max(2, k0)))  # gamma < 1, so k0 itself is never reached


verify(thresholds_solution, check_thresholds)
same = sweep[(sweep["sparsity"] == 0.99) & (sweep["gamma_sal"] >= 0.8)]
print("99 %:", {float(row["gamma_sal"]): round(float(row["accuracy"]), 3) for row in same})

# %% [markdown]
# **3. Save neuron 3.** Change one single number of `grad` so that nobody is ablated.

# %%
saving_grad = None  # a copy of grad with one other number


def check_saved(answer):
    changed = np.argwhere(answer != grad)
    assert len(changed) == 1, f"change one number, not {len(changed)} (and work on grad.copy())"
    row, column = changed[0]
    u = SRigL(gamma_sal=gamma_sal).update(weight, mask, answer, drop_fraction, budget=budget)
    assert not mask[row, column], "in step 2 only gradients count where no weight is stored"
    assert not u.ablated[3], (
        f"neuron 3 has {u.salient_counts[3]} salient weight, as before: see the bounds of step 2"
    )
    assert not u.ablated.any(), "another neuron has lost a candidate, and is ablated now"


try_it(saving_grad, check_saved)

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
solution = grad.copy()
solution[3, 4] = 5.0  # a free place; the candidate pushed out, 2.7, belongs to neuron 1, which has enough
verify(solution, check_saved)

# %% [markdown]
# **4. The misreading.** Write step 1 as some accounts have it: every neuron drops the fraction $f$ of *its own*
# weights, those of smallest magnitude. Then look at the counts, and say what becomes of ablation.


# %%
def keep_per_neuron(weight, mask, drop_fraction):
    """Return the mask of the weights kept: of n weights a neuron keeps its n - int(drop_fraction * n) largest."""
    ...


def check_per_neuron(function):
    result = function(weight, mask, 0.5)
    assert not (result & ~mask).any(), "only stored weights can be kept"
    assert (result.sum(axis=1) == [3, 0, 3, 3, 0, 3]).all(), "each neuron keeps three of its six"
    for i in (0, 2, 3, 5):
        kept, lost = abs(weight[i, result[i]]), abs(weight[i, mask[i] & ~result[i]])
        assert kept.min() > lost.max(), f"neuron {i} drops a weight that is larger than one it keeps"


try_it(keep_per_neuron, check_per_neuron)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def per_neuron_solution(weight, mask, drop_fraction):
    kept = np.zeros_like(mask)
    for i, row in enumerate(mask):
        stored = sorted(np.flatnonzero(row), key=lambda j: (-abs(weight[i, j]), j))
        kept[i, stored[: len(stored) - int(drop_fraction * len(stored))]] = True
    return kept


verify(per_neuron_solution, check_per_neuron)
print("per neuron:", per_neuron_solution(weight, mask, 0.5).sum(axis=1))
print("over the layer:", keep_candidates.sum(axis=1))
print("With a constant fan-in every active neuron keeps the same number: only gradients decide who is ablated.")

# %% [markdown]
# **5. Ablate later.** The first update ablates most, when weights have hardly been trained. Write an update that
# ablates only once the drop fraction has fallen below 0.15, half of its first value. Then train with it: does it
# help? (`train` takes a `seed`, and one seed is no answer. The solution trains once and only shows how.)


# %%
def late_update(weight, mask, grad, drop_fraction, budget):
    """Return the TopologyUpdate of SRigL with gamma_sal 0.95, without ablation while drop_fraction >= 0.15."""
    ...


def check_late(function):
    rng = np.random.default_rng(5)
    for f in (0.3, 0.15, 0.1):
        mask = masks.random_constant_fan_in((20, 30), 10, rng)
        weight, grad = np.where(mask, rng.normal(size=mask.shape), 0), rng.normal(size=mask.shape)
        expected = SRigL(gamma_sal=0.95).update(weight, mask, grad, f, budget=200, ablate=f < 0.15)
        assert (function(weight, mask, grad, f, 200).mask == expected.mask).all(), f"wrong for drop fraction {f}"


try_it(late_update, check_late)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
class LateSRigL(SRigL):
    """SRigL that ablates only in updates with a small drop fraction."""

    def update(self, weight, mask, grad, drop_fraction, *, budget=None, ablate=True, rng=None):
        late = ablate and drop_fraction < 0.15
        return super().update(weight, mask, grad, drop_fraction, budget=budget, ablate=late)


def late_solution(weight, mask, grad, drop_fraction, budget):
    return LateSRigL(gamma_sal=0.95).update(weight, mask, grad, drop_fraction, budget=budget)


verify(late_solution, check_late)
late, late_updates = train(LateSRigL(gamma_sal=0.95))
accuracy = late.classifier.evaluate(data.x_test, data.y_test)[1]
print(f"accuracy {accuracy:.2%}, active neurons {[len(layer.matrix.rows) for layer in late.layers.values()]}")

# %% [markdown]
# ## Where to go on
#
# - [Lesson 5](05_condensed_format.ipynb): what the rectangle is worth, in microseconds.
# - [Lesson 6](06_output_norm_variance.ipynb): why constant fan-in also makes outputs vary less at the start.
# - [Lesson 7](07_train_and_compare.ipynb): all methods side by side.
# - `sparsekit/topology/srigl.py`: the seven steps on one screen.
# - Lasby, Golubeva, Evci, Nica, Ioannou: Dynamic Sparse Training with Structured Sparsity,
#   [arXiv 2305.02299](https://arxiv.org/abs/2305.02299). Evci and others: Rigging the Lottery,
#   [arXiv 1911.11134](https://arxiv.org/abs/1911.11134).
