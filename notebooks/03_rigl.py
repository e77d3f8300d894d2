# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. RigL: a mask that learns where it should be
#
# A sparse network with a random mask is a lottery: its weights sit where chance has put them. RigL does not
# accept that. Every hundred steps it takes away weights that have stayed small and spends them where the
# gradient says that a weight is missing. The rule fits in a few lines. You write them, check them against the
# package, watch the mask move, and then look closely at what it really does. Not all of it is what one would
# expect.
#
# **You will learn**
#
# - one update of RigL with every number in sight, and what becomes of weights that come back,
# - how many weights move, and when: the cosine schedule,
# - what RigL does in training: where its weights go, which stay, and how unequal its neurons become,
# - how static masks, SET and RigL compare, and what one run of each does not show.
#
# **You need** [lesson 1](01_why_sparse.ipynb) (masks, fan-in, budget) and
# [lesson 2](02_backward_by_hand.ipynb) (the dense gradient of a linear layer). It takes about 20 minutes.

# %% tags=["hide-input"]
import csv

import matplotlib.pyplot as plt
import numpy as np
from classroom import (
    COLOURS,
    animate,
    explore,
    load_images,
    mask_steps,
    matrix,
    method_colour,
    start,
    try_it,
    unless_fast,
    verify,
)

import sparsekit
from sparsekit import CSRMatrix, masks
from sparsekit.kernels.threads import thread_limit
from sparsekit.models import mlp
from sparsekit.nn import Linear, ReLU
from sparsekit.topology import SET, RigL, Static, UpdateSchedule
from sparsekit.training import Callback, MaskEvolution

start()

# %% [markdown]
# ## The gradient where no weight is
#
# A linear layer computes $Y = W X$, one column for each sample of the batch. [Lesson
# 2](02_backward_by_hand.ipynb) found how the loss $L$ depends on its weights,
#
# $$\frac{\partial L}{\partial W} = \frac{\partial L}{\partial Y} \, X^T.$$
#
# The code calls $\partial L / \partial Y$ `grad_output`. There is no mask on the right side, so the formula
# gives a number for every position, whether or not a weight is there. This is the **dense gradient**. At an
# empty position it is the slope of the loss if you move the missing weight away from zero.
#
# Here is a layer of 4 neurons and 6 inputs with 8 weights, and a batch of 5. Its loss is half the squared
# distance to some target, so `grad_output` is `y - target`.

# %%
rng = np.random.default_rng(2)
mask = masks.random_per_layer((4, 6), 8, rng)
weight = np.where(mask, rng.normal(size=mask.shape), 0)
x, target = rng.normal(size=(6, 5)), rng.normal(size=(4, 5))

layer = Linear(CSRMatrix.from_dense(weight, mask), bias=False)
layer.keep_dense_gradient = True  # asks the layer to remember its input and grad_output
y = layer.forward(x, training=True)
layer.backward(y - target)
dense_gradient = layer.dense_gradient()

assert np.allclose(dense_gradient, (y - target) @ x.T)
assert np.allclose(dense_gradient[mask], layer.weight.grad)  # what the optimizer gets: stored positions only

fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.3))
matrix(left, weight, "the weights", mask=mask, decimals=2)
matrix(right, dense_gradient, "the dense gradient; framed where a weight is", frame=mask, decimals=2)
plt.show()

# %% [markdown]
# A large $|\partial L / \partial W_{ij}|$ at an empty position says: with a weight here, the next steps would
# lower the loss quickly. It does not say for how long. And it is not free: the whole product costs as much as
# in a dense layer. So RigL asks for it only at its updates, once in `delta_t` steps.
#
# ## One update
#
# RigL is given the weights of a layer, their mask, the dense gradient and a **drop fraction** $f$. In a layer
# of $n$ weights it does three things:
#
# 1. **Drop**: $K = \lfloor f \, n \rfloor$ weights are to be moved, those of smallest magnitude in the whole
#    layer. The other $n - K$ are **kept**.
# 2. **Grow** $K$ weights at the positions of largest $|\partial L / \partial W_{ij}|$, among *all* positions
#    that were not kept.
# 3. A grown weight starts at zero, and so does the optimizer's memory of it.
#
# The package's update is a pure function: arrays go in, an object with every intermediate result comes out.

# %%
rng = np.random.default_rng(364)
mask = masks.random_per_layer((5, 8), 14, rng)
weight = np.where(mask, rng.normal(size=mask.shape).round(1), 0)
grad = rng.normal(size=mask.shape).round(1)

update = RigL().update(weight, mask, grad, drop_fraction=0.3)
to_drop = mask & ~update.kept
to_grow = update.mask & ~update.kept
print(f"{mask.sum()} weights, drop fraction 0.3: K = {int(0.3 * mask.sum())}")

# %% tags=["hide-input"]
fig, axes = plt.subplots(3, 1, figsize=(5.4, 6.4))
matrix(axes[0], np.abs(weight), "1. |weight|: the 4 smallest are dropped (framed)", mask=mask, frame=to_drop)
matrix(
    axes[1],
    np.abs(grad),
    "2. |gradient| where nothing was kept: the 4 largest grow (framed)",
    mask=~update.kept,
    frame=to_grow,
)
mask_steps(
    axes[2],
    {"kept": update.kept, "dropped": update.dropped, "regrown": update.regrown, "grown": update.grown},
    "3. what happened",
)
plt.show()

# %% [markdown]
# Go through it once with your finger. In the first picture the framed cells are the smallest numbers of the
# whole layer, not of a row: neuron 0 loses two, neurons 3 and 4 lose none. In the second, the four framed
# cells are the largest. One cell is framed in both pictures, and orange in the third. It was dropped as too
# small and grown again at once, because its gradient is large: it is **regrown**. Such a weight was never
# away. It keeps its value.

# %%
assert update.mask.sum() == mask.sum()  # as many as before
assert (update.mask == (update.kept | update.regrown | update.grown)).all()

layer = Linear(CSRMatrix.from_dense(weight, mask))
layer.weight.state["momentum"] = np.ones(layer.matrix.nnz)  # what an optimizer may remember of each weight
layer.rewire(update.mask)
after = layer.matrix.to_dense()
momentum = np.zeros(mask.shape)
momentum[update.mask] = layer.weight.state["momentum"]

came_back, new = update.regrown, update.grown
print("regrown: value", weight[came_back], "->", after[came_back], " momentum", momentum[came_back])
print("grown:   value", after[new], " momentum", momentum[new])
assert (after[came_back] == weight[came_back]).all()
assert not after[new].any()
assert not momentum[new].any()

# %% [markdown]
# Because grown weights start at zero, an update changes what the network computes only by the small weights
# that it drops. And this is why lesson 1 said to ask the mask and never `weight != 0`: right after an update
# that would miss every grown weight.
#
# ## SET beside it
#
# **SET** ([arXiv 1707.04780](https://arxiv.org/abs/1707.04780)) drops small weights too, and grows at random.
# It needs no dense gradient. (Its paper ranks positive and negative weights apart; here, as in RigL's paper,
# there is one ranking by magnitude.) The same layer with both:

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 2.9))
for side, method in zip(axes, (RigL(), SET()), strict=True):
    update = method.update(weight, mask, grad, 0.3, rng=np.random.default_rng(1))
    steps = {name: getattr(update, name) for name in ("kept", "dropped", "regrown", "grown")}
    new = np.abs(grad[update.mask & ~update.kept])
    mask_steps(side, steps, f"{type(method).__name__}: mean |gradient| of new weights {new.mean():.1f}")
plt.show()

# %% [markdown]
# Blue is the same on both sides. SET spends its weights anywhere, RigL where the loss would fall fastest.
# Which is better? Hold your answer until the end.
#
# ## Write it yourself
#
# Now without the package. Where two magnitudes or gradients are equal, somebody must decide: the position that
# comes first, row by row, wins. A stable sort of the negative numbers does just that.


# %%
def rigl(weight, mask, grad, drop_fraction):
    """RigL's next mask."""
    n_prune = int(drop_fraction * mask.sum())
    active = np.flatnonzero(mask)
    by_magnitude = active[np.argsort(-np.abs(weight.flat[active]), kind="stable")]
    kept = np.zeros_like(mask)
    kept.flat[by_magnitude[: len(active) - n_prune]] = True

    free = np.flatnonzero(~kept)
    by_gradient = free[np.argsort(-np.abs(grad.flat[free]), kind="stable")]
    new = kept.copy()
    new.flat[by_gradient[:n_prune]] = True
    return new


# %% [markdown]
# Is it the same as `sparsekit.topology.RigL`, always? We try layers of all shapes and densities. Every other
# one has small whole numbers as its weights and gradients, so that ties are everywhere, and stored zeros too.

# %%
rng = np.random.default_rng(0)
n_layers, n_regrown = unless_fast(3000, 500), 0
for trial in range(n_layers):
    shape = tuple(rng.integers(1, 12, size=2))
    mask = masks.random_bernoulli(shape, rng.random(), rng)
    weight, grad = rng.normal(size=(2, *shape))
    if trial % 2:
        weight, grad = weight.round(), grad.round()
    weight = np.where(mask, weight, 0.0)
    fraction = rng.random()
    theirs = RigL().update(weight, mask, grad, fraction)
    assert (rigl(weight, mask, grad, fraction) == theirs.mask).all()
    n_regrown += theirs.regrown.any()
print(f"The same mask in all {n_layers} layers; {n_regrown} of them had regrown weights.")

# %% [markdown]
# ## How much, and when
#
# Updates come every `delta_t` steps, and their drop fraction falls along half a cosine,
#
# $$f(t) = \frac{\alpha}{2} \left(1 + \cos \frac{\pi t}{t_{end}}\right),$$
#
# where $t$ is the optimizer step, from $\alpha$ at the beginning to 0 at $t_{end}$. From there on the mask
# stays as it is. The usual values are $\alpha = 0.3$, `delta_t` = 100, and $t_{end}$ at three quarters of the
# training ([arXiv 1911.11134](https://arxiv.org/abs/1911.11134)). The package's `Trainer` has them too.

# %% tags=["hide-input"]
schedule = UpdateSchedule(delta_t=100, alpha=0.3, t_end=int(0.75 * 4680))
due = [step for step in range(1, 4681) if schedule.is_due(step)]
curve = np.arange(0, schedule.t_end + 1, 10)

fig, axes = plt.subplots(figsize=(6, 2.6))
axes.plot(curve, [schedule.drop_fraction(step) for step in curve], color=COLOURS["grey"])
axes.plot(due, [schedule.drop_fraction(step) for step in due], "o", color=method_colour("rigl"), label="updates")
axes.axvline(schedule.t_end, color="black", linewidth=0.8, linestyle=":", label="t_end")
axes.set(xlabel="optimizer step", ylabel="drop fraction", xlim=(0, 4680), title="A training of 4680 steps")
axes.legend()
plt.show()
total = sum(schedule.drop_fraction(step) for step in due)
print(f"{len(due)} updates; their drop fractions add up to {total:.2f}.")
print(f"All moves together would replace the whole layer {total:.1f} times.")

# %% [markdown]
# The mask gets `delta_t` normal steps before anyone judges it for the first time. And why an end before the
# end? A weight that grows at the last moment is a zero that no step is left to train.
#
# ## A real network
#
# Time to watch. A `Callback` of the trainer is told of every update. Ours keeps those of the first layer.
# `MaskEvolution`, which the package brings, counts what happens in all layers.

# %%
data = load_images()
n_steps, delta_t = unless_fast(4680, 400), unless_fast(100, 30)


class Recorder(Callback):
    """Keeps the masks and the updates of the first layer."""

    def on_fit_start(self, trainer):
        self.schedule = trainer.schedule
        self.steps, self.masks, self.updates = [0], [trainer.layers["fc1"].matrix.mask()], []

    def on_topology_update(self, trainer, layer, update):
        if layer == "fc1":
            self.steps.append(trainer.step)
            self.masks.append(update.mask)
            self.updates.append(update)


def train(topology, sparsity, delta_t=delta_t, n_steps=n_steps, seed=0):
    """Train 512-512-10 and return (test accuracy, what the recorder has, MaskEvolution)."""
    model = mlp((data.n_features, 512, 512, 10), storage="csr", sparsity=sparsity, rng=seed)
    recorder, evolution = Recorder(), MaskEvolution()
    trainer = sparsekit.Trainer(
        model,
        topology=topology,
        epochs=max(1, round(n_steps / (len(data.x_train) // 128))),
        delta_t=delta_t,
        seed=seed,
        callbacks=[recorder, evolution],
        progress=False,
    )
    with thread_limit(1):  # enough for networks this small
        trainer.fit(data)
    return trainer.classifier.evaluate(data.x_test, data.y_test)[1], recorder, evolution


accuracy, recorder, evolution = train(RigL(), sparsity=0.9)
print(f"{data.name}, RigL at 90 %: test accuracy {accuracy:.1%} after {len(recorder.updates)} updates")

# %% [markdown]
# ### Where the weights go
#
# The inputs of the first layer are pixels. For each pixel we count the neurons that look at it, the column
# sums of the mask. Left: all weights right after an update. Right: only those that were kept in it. Watch how
# fast each of the two changes.

# %% tags=["hide-input"]
side = data.sample_shape[-1]


def draw_pixels(number):
    kept = recorder.updates[number - 1].kept if number else recorder.masks[0]
    fig, axes = plt.subplots(1, 2, figsize=(5, 2.6))
    for axis, mask, what in zip(axes, (recorder.masks[number], kept), ("all", "kept"), strict=True):
        weights = mask.sum(axis=0) / mask.sum(axis=0).mean()
        picture = axis.imshow(weights.reshape(side, side), cmap=plt.get_cmap("viridis", 9), vmin=0.25, vmax=2)
        axis.set(title=what, xlabel="pixel column", ylabel="pixel row")
        axis.grid(False)
    fig.colorbar(picture, ax=axes, shrink=0.8, ticks=[0.25, 1, 2], label="count / average")
    fig.suptitle(f"weights at each pixel, step {recorder.steps[number]}")
    return fig


last = len(recorder.updates)
numbers = sorted({0, 1, 2, 3, *np.linspace(5, last, 6).astype(int)})
animate(
    map(draw_pixels, numbers),
    alt="Two pictures of weights at each pixel: new ones form changing shapes, kept ones slowly leave the border.",
)

# %% [markdown]
# Left: what has just grown forms shapes, and others at the next update. With Fashion-MNIST some look like
# garments. That is what the formula promises: the gradient is `grad_output` times input, so it draws the
# inputs of the samples that are wrong just now. Right: what *stays* moves slowly, away from pixels that tell
# little.

# %%
deviation = data.x_train.reshape(len(data.x_train), -1).std(axis=0)
dull = deviation <= np.quantile(deviation, 0.25)
at_dull = [mask[:, dull].sum() / mask.sum() for mask in recorder.masks]
print(f"The quarter of the pixels that vary least had {at_dull[0]:.1%} of the weights at the start")
print(f"and has {at_dull[-1]:.1%} after the last update.")

# %% [markdown]
# ### How many move, and how many stay
#
# Each update moves exactly as many weights as the schedule says. More interesting is what becomes of a weight
# that has been grown. Is it still there after the *next* update?

# %%
n_grown = np.array([update.grown.sum() for update in recorder.updates])
n_regrown = np.array([update.regrown.sum() for update in recorder.updates])
fractions = [recorder.schedule.drop_fraction(step) for step in recorder.steps[1:]]
assert list(n_grown + n_regrown) == [int(fraction * recorder.masks[0].sum()) for fraction in fractions]


def survival(recorder):
    """The share of the weights grown in an update that are in place after the next; one number for each."""
    pairs = zip(recorder.updates, recorder.masks[2:], strict=False)
    return np.array([update.grown[later].sum() / max(1, update.grown.sum()) for update, later in pairs])


survived = survival(recorder)

# %% tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 2.7))
left.bar(recorder.steps[1:], n_grown, width=0.8 * delta_t, color=COLOURS["green"], label="grown")
left.bar(recorder.steps[1:], n_regrown, 0.8 * delta_t, bottom=n_grown, color=COLOURS["orange"], label="regrown")
left.set(xlabel="optimizer step", ylabel="weights", title="weights moved in each update")
left.legend()
right.plot(recorder.steps[1:-1], survived, "o-", color=COLOURS["green"])
right.set(
    xlabel="optimizer step", ylabel="share", ylim=(0, 1.03), title="grown weights that outlive the next update"
)
plt.show()

# %%
print(f"Of the weights grown in the first update {survived[0]:.1%} were in place after the second,")
print(f"of those grown half-way through the updates {survived[len(survived) // 2]:.1%}.")

# %% [markdown]
# This is the surprise. In the early updates most of what RigL grows is dropped again by the next one. A grown
# weight starts at zero, and has `delta_t` steps to become larger than the smallest of the others. Most do not
# make it. Newcomers stay when the drop fraction has become small. So an early update is less a move than a
# try.
#
# ### How unequal neurons become
#
# Now the rows of the mask, the neurons. They begin with nearly the same number of inputs, as chance has it.
# The slider goes through the updates and shows the fan-in of all 512 neurons, sorted. Watch the right end.

# %% tags=["hide-input"]
widest = max(masks.fan_in(mask).max() for mask in recorder.masks)


def draw_fan_ins(update):
    """The fan-in of every neuron of the first layer, sorted."""
    fan_ins = np.sort(masks.fan_in(recorder.masks[update]))
    fig, axes = plt.subplots(figsize=(5, 2.3))
    axes.plot(fan_ins, color=method_colour("rigl"), label="RigL")
    axes.axhline(fan_ins.mean(), color=method_colour("srigl"), label="if all had the same")
    axes.set(xlabel="neurons, sorted by fan-in", ylabel="fan-in", ylim=(0, 1.03 * widest))
    axes.set_title(f"first layer, step {recorder.steps[update]}: fan-in {fan_ins[0]} to {fan_ins[-1]}")
    axes.legend(loc="upper left")
    return fig


explore(draw_fan_ins, update=[0, 1, 2, 3, 4, *np.linspace(5, last, unless_fast(6, 2)).astype(int)])

# %% [markdown]
# The first update already gives a few neurons many times what the others have. Why? Row $i$ of the dense
# gradient is `grad_output` of neuron $i$ times the inputs. Where `grad_output` is large, the whole row is
# large, and the ranking runs over the whole layer.

# %%
by_neuron = np.sort(recorder.updates[0].grown.sum(axis=1))[::-1]
half = np.searchsorted(by_neuron.cumsum(), by_neuron.sum() / 2) + 1
print(f"First update: half of the {by_neuron.sum()} grown weights went to {half} of {len(by_neuron)} neurons.")

spread = [masks.fan_in(mask).std() / masks.fan_in(mask).mean() for mask in recorder.masks]
print("Standard deviation of the fan-in over its mean:")
print(f"at the start {spread[0]:.2f}, after the first update {spread[1]:.2f}, at the end {spread[-1]:.2f}.")
fan_ins = masks.fan_in(recorder.masks[-1])
print(f"The last mask would fill {fan_ins.mean() / fan_ins.max():.0%} of a rectangle as wide as its widest row.")
assert spread[-1] > spread[0]

# %% [markdown]
# **RigL does not drift towards constant fan-in**, it drifts away from it. If you want the rectangle of lesson
# 1 with no empty places, it must be asked for. That is what SRigL does, in [lesson 4](04_srigl.ipynb).
#
# ## Three methods, one seed
#
# We make the layers emptier, 99 %, and train with a static mask, SET and RigL. All three begin with the same
# random mask and the same weights, and see the same batches.

# %%
methods = {"static": Static(constant_fan_in=False), "SET": SET(), "RigL": RigL()}
runs = {name: train(method, sparsity=0.99) for name, method in methods.items()}

first_masks = [run[1].masks[0] for run in runs.values()]
assert all((mask == first_masks[0]).all() for mask in first_masks)
for name, (accuracy, _, _) in runs.items():
    print(f"{name:7} test accuracy {accuracy:.1%}")

# %% [markdown]
# With so few weights, some neurons run empty. No rule tells RigL to do this: a neuron just loses its last
# weight, to a ranking in which it does not count as a whole. Some were empty from the start, because the mask
# is random.

# %%
for name, (_, _, evolution) in runs.items():
    for layer in ("fc1", "fc2"):
        rows = [row for row in evolution.rows if row["layer"] == layer]
        ablated, revived = sum(row["n_ablated"] for row in rows), sum(row["n_revived"] for row in rows)
        print(
            f"{name:7} {layer}: {512 - rows[0]['n_active']:3} neurons without inputs at the start, "
            f"{512 - rows[-1]['n_active']:3} at the end ({ablated} emptied, {revived} revived)"
        )

# %% [markdown]
# SET can give an empty neuron a weight by chance. RigL has a harder time. A neuron without inputs computes
# nothing but its bias, and where this is not positive, the ReLU behind it lets no gradient through. Its row
# of the dense gradient is zero, and zeros are not among the largest:

# %%
mask = np.array([[1, 1, 0], [0, 0, 0]], dtype=bool)  # neuron 1 is empty
layer, relu = Linear(CSRMatrix.from_dense(np.where(mask, 1.0, 0.0), mask)), ReLU()
layer.keep_dense_gradient = True
x = np.random.default_rng(0).random((3, 5))
relu.forward(layer.forward(x, training=True), training=True)
layer.backward(relu.backward(np.ones((2, 5))))
dense_gradient = layer.dense_gradient()
print(dense_gradient.round(2))
assert not dense_gradient[1].any()

# %% [markdown]
# The paper of SRigL reports that in large networks at high sparsity RigL leaves many neurons without any
# weight ([arXiv 2305.02299](https://arxiv.org/abs/2305.02299)). To let neurons go on purpose is the second
# idea behind SRigL.
#
# ### What one seed does not show
#
# Each method was trained once. Another seed gives another random mask, other weights, another order of the
# data, and another accuracy. The repository holds a sweep of this network on Fashion-MNIST with five seeds.
# A dot is a seed, the ring is seed 0, the bar is the mean.

# %% tags=["hide-input"]
with open("../results/sweeps/fashion-mnist-mlp/results.csv", newline="") as file:
    sweep = list(csv.DictReader(file))


def accuracies(method, sparsity):
    """Test accuracy in % by seed."""
    chosen = [row for row in sweep if row["method"] == method and float(row["sparsity"]) == sparsity]
    return np.array(
        [100 * float(row["test_accuracy"]) for row in sorted(chosen, key=lambda row: int(row["seed"]))]
    )


fig, axes = plt.subplots(1, 2, figsize=(8, 2.7))
for side, sparsity in zip(axes, (0.9, 0.99), strict=True):
    for place, method in enumerate(("static", "set", "rigl")):
        values = accuracies(method, sparsity)
        side.plot(values, np.full(5, place), "o", color=method_colour(method), alpha=0.7)
        side.plot(values[0], place, "o", markersize=9, markerfacecolor="none", markeredgecolor="black")
        side.plot(values.mean(), place, "|", markersize=22, color="black")
    side.set_yticks(range(3), ["static", "SET", "RigL"])
    side.set(xlabel="test accuracy, %", ylabel="method", ylim=(-0.6, 2.6))
    side.set_title(f"Fashion-MNIST, {sparsity:.0%} sparse")
plt.show()

# %%
gap = {sparsity: accuracies("rigl", sparsity) - accuracies("set", sparsity) for sparsity in (0.9, 0.99)}
for sparsity, gaps in gap.items():
    print(f"{sparsity:.0%} sparse: RigL - SET {gaps.mean():+.2f} points on average, {gaps[0]:+.2f} with seed 0")
assert gap[0.9][0] < 0 < gap[0.9].mean()
assert accuracies("static", 0.99).max() < min(accuracies("set", 0.99).min(), accuracies("rigl", 0.99).min())

# %% [markdown]
# At 90 % the seeds of SET and RigL lie among each other. Whoever ran seed 0 only would report that growing at
# random is better. At 99 % every run that moved its mask is ahead of every static one. (The static masks of
# the sweep have constant fan-in, which leaves 13 % of the budget unused, as you saw in lesson 1. Part of their
# distance may be that.) Five seeds are still few: [lesson 7](07_train_and_compare.ipynb) asks what they allow
# you to say.
#
# ## Exercises
#
# **1. How many weights move?** A layer has `nnz` weights. Over a whole training, how many are dropped,
# regrown ones included? Use the formulas of this lesson and mind the rounding. When is an update due?


# %%
def n_moved(nnz, alpha, delta_t, t_end):
    """Return the sum of K over all updates."""
    ...


def check_moved(n_moved):
    assert n_moved(100, 0.3, 10, 10) == 0, "no update at step 0, and none at t_end itself"
    assert n_moved(10_000, 0.3, 10, 11) == 60, "one update, at step 10, with a drop fraction of about 0.0061"
    schedule = UpdateSchedule(100, 0.3, 3510)
    expected = sum(int(schedule.drop_fraction(step) * 6099) for step in range(100, 3510, 100))
    assert abs(n_moved(6099, 0.3, 100, 3510) - expected) <= 1, "round down in every update, not the sum"


try_it(n_moved, check_moved)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def n_moved_solution(nnz, alpha, delta_t, t_end):
    steps = np.arange(delta_t, t_end, delta_t)
    return int(np.floor(alpha / 2 * (1 + np.cos(np.pi * steps / t_end)) * nnz).sum())


verify(n_moved_solution, check_moved)

# %% [markdown]
# **2. SET.** Turn the `rigl` of this lesson into SET: the same drop, growth at random among all positions
# that were not kept, without repeats.


# %%
def set_update(weight, mask, drop_fraction, rng):
    """Return SET's next mask."""
    ...


def check_set(set_update):
    rng = np.random.default_rng(0)
    mask = np.array([[1, 1, 1, 1, 0, 0, 0, 0]], dtype=bool)
    weight = np.array([[0.5, -2, 0.1, 3, 0, 0, 0, 0]])
    counts = sum(set_update(weight, mask, 0.5, rng).astype(int) for _ in range(3000))[0]
    assert counts.sum() == 4 * 3000, "an update does not change the number of weights"
    assert (counts[[1, 3]] == 3000).all(), "-2 and 3 have the largest magnitudes and are kept"
    assert counts[0] > 0, "a weight that was just dropped may be grown again"
    assert (np.abs(counts[[0, 2, 4, 5, 6, 7]] - 1000) < 150).all(), "all six free positions are equally likely"


try_it(set_update, check_set)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def set_solution(weight, mask, drop_fraction, rng):
    n_prune = int(drop_fraction * mask.sum())
    active = np.flatnonzero(mask)
    by_magnitude = active[np.argsort(-np.abs(weight.flat[active]), kind="stable")]
    new = np.zeros_like(mask)
    new.flat[by_magnitude[: len(active) - n_prune]] = True
    new.flat[rng.choice(np.flatnonzero(~new), n_prune, replace=False)] = True
    return new


verify(set_solution, check_set)

# %% [markdown]
# **3. Death and resurrection.** Find a layer of 3 neurons in which a single update of RigL takes all weights
# from one neuron and gives the first weights to one that had none. Write down the weights (zero where no
# weight is), the gradient and the drop fraction.

# %%
answer = None  # (weight, grad, drop_fraction), two arrays of shape (3, n_in) and a number


def check_life(answer):
    weight, grad, fraction = np.array(answer[0], dtype=float), np.array(answer[1], dtype=float), answer[2]
    mask = weight != 0  # allowed here only because the exercise says so
    update = RigL().update(weight, mask, grad, fraction)
    before, after = masks.active_neurons(mask), masks.active_neurons(update.mask)
    assert (before & ~after).sum() == 1, "no neuron (or more than one) lost its last weight"
    assert (after & ~before).sum() == 1, "no neuron without weights got one"


try_it(answer, check_life)

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
solution = (
    [[0.1, 0, 0], [2, 3, 0], [0, 0, 0]],  # neuron 0 has one small weight, neuron 2 has none
    [[0, 0, 0], [0, 0, 1], [0, 5, 0]],  # and neuron 2 has the largest gradient
    0.4,  # int(0.4 * 3) = 1 weight moves
)
verify(solution, check_life)

# %% [markdown]
# **4. No way back.** A variant: a weight that was just dropped may not be grown in the same update; growth is
# among the positions that were inactive before. Write it. Then look at the orange parts of the bars in "How
# many move": how often would it have made a difference there? What must a layer be like for it to matter?


# %%
def rigl_no_return(weight, mask, grad, drop_fraction):
    """Return the next mask; there are always enough inactive positions in the check."""
    ...


def check_no_return(rigl_no_return):
    rng = np.random.default_rng(0)
    for _ in range(200):
        mask = masks.random_per_layer((6, 9), 20, rng)
        weight, grad = np.where(mask, rng.normal(size=(6, 9)), 0), rng.normal(size=(6, 9))
        new = rigl_no_return(weight, mask, grad, 0.4)
        usual = RigL().update(weight, mask, grad, 0.4)
        assert new.sum() == 20, "an update does not change the number of weights"
        assert (new & mask == usual.kept).all(), "of the old weights exactly the kept ones stay"
        grown = new & ~mask
        assert np.abs(grad[grown]).min() > np.abs(grad[~mask & ~grown]).max(), "the largest gradients grow"


try_it(rigl_no_return, check_no_return)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def no_return_solution(weight, mask, grad, drop_fraction):
    n_prune = int(drop_fraction * mask.sum())
    active, inactive = np.flatnonzero(mask), np.flatnonzero(~mask)
    dropped = active[np.argsort(-np.abs(weight.flat[active]), kind="stable")][len(active) - n_prune :]
    grown = inactive[np.argsort(-np.abs(grad.flat[inactive]), kind="stable")][:n_prune]
    new = mask.copy()
    new.flat[dropped] = False
    new.flat[grown] = True
    return new


verify(no_return_solution, check_no_return)

# %% [markdown]
# **5. Give them time.** Most newcomers do not survive their first update. They have `delta_t` steps to grow.
# Train RigL at 99 % with other values of `delta_t` (the function `train` takes it) and return the survival in
# the first update, `survival(recorder)[0]`. What does a longer `delta_t` cost, and does the accuracy care?


# %%
def first_survival(delta_t):
    """Train RigL at 99 % with this delta_t; return the share of the first newcomers that survive an update."""
    ...


def check_time(first_survival):
    short, long = first_survival(n_steps // 100), first_survival(n_steps // 8)
    assert 0 <= short <= 1, "a share lies between 0 and 1"
    assert long > short, "with more steps more of them survive"


try_it(first_survival, check_time)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def first_survival_solution(delta_t):
    accuracy, recorder, _ = train(RigL(), sparsity=0.99, delta_t=delta_t, n_steps=n_steps // 2)
    share = survival(recorder)[0]
    print(f"delta_t {delta_t:4}: {share:.1%} survive, test accuracy {accuracy:.1%}")
    return share


verify(first_survival_solution, check_time)

# %% [markdown]
# ## Where to go on
#
# - [Lesson 4](04_srigl.ipynb): SRigL, which adds constant fan-in and ablation to what you know now.
# - [Lesson 7](07_train_and_compare.ipynb): comparing methods, with more than one seed.
# - In the package: `sparsekit/topology/rigl.py`, `set.py` and `schedule.py` beside it, `selection.py` (the
#   largest scores with their ties), `sparsekit/nn/parameter.py` (how values and optimizer state move to a new
#   mask), `sparsekit/training/evolution.py`. It also measures the ITOP rate, the share of positions that were
#   ever active ([arXiv 2102.02887](https://arxiv.org/abs/2102.02887)).
# - Papers: Evci et al., *Rigging the Lottery: Making All Tickets Winners*
#   ([arXiv 1911.11134](https://arxiv.org/abs/1911.11134)); Mocanu et al., SET
#   ([arXiv 1707.04780](https://arxiv.org/abs/1707.04780)).
