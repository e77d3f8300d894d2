# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. The condensed format: how a sparse layer becomes fast
#
# A layer at 90 % sparsity has a tenth of the multiply-adds of a dense one. That does not make it fast.
# Written as Python loops it loses to the dense product by far; written with care it can win. What lies
# between are questions for pencil and paper: which numbers are read, in which order, how often, and from
# where? In this lesson you store a sparse matrix, write its products in several ways, and measure each.
#
# **You will learn**
#
# - how a constant fan-in turns a matrix into two small rectangles, and how many bytes that saves,
# - the three products that training needs, and what each of them reads and writes,
# - why the order of the axes decides about speed, and what registers, tiles and a plan add,
# - how to compare timings fairly, and how to read a roofline,
# - where the condensed format may not win, and what the constant fan-in itself contributes.
#
# **You need** [lesson 2](02_backward_by_hand.ipynb) for the three products of a layer and
# [lesson 4](04_srigl.ipynb) for constant fan-in and ablation. About 20 minutes.

# %%
import time

import matplotlib.pyplot as plt
import numba
import numpy as np
import scipy.sparse
from classroom import COLOURS, animate, explore, mask_heat_map, matrix, start, try_it, unless_fast, verify
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator

import sparsekit
from sparsekit.bench.arrays import aligned, normal, output, random_condensed
from sparsekit.bench.environment import environment
from sparsekit.bench.measure import Implementation, Problem, in_turn, measure
from sparsekit.kernels.compiled import FASTMATH
from sparsekit.kernels.threads import thread_limit

start()

# %% [markdown]
# ## From a mask to two rectangles
#
# Take a small layer with 10 inputs and 6 neurons, as SRigL produces it: each neuron has 3 inputs, except
# neuron 1, which is ablated, so its row of the mask is empty.

# %%
rng = np.random.default_rng(4)
mask = sparsekit.masks.random_constant_fan_in((6, 10), 3, rng)
mask[1] = False
weight = rng.choice([-1, 1], mask.shape) * rng.integers(1, 30, mask.shape) / 10 * mask
small = sparsekit.CondensedMatrix.from_dense(weight, mask)
print(small)

# %% [markdown]
# All active neurons have the same number of weights, so these fit into a rectangle `values` with one row for
# each active neuron. A second rectangle `indices` of the same shape says which input each weight belongs to,
# and a short array `rows` says which neuron each row is. That is the *condensed* format.

# %%
print("values\n", small.values)
print("indices\n", small.indices)
print("rows", small.rows)

# %% [markdown]
# Neuron 1 has no row in either rectangle. The picture shows how the dense matrix becomes the two: the stored
# weights move left and take the number of their column with them, then the gap of the ablated neuron closes.


# %% tags=["hide-input"]
def cell(axes, x, y, text, colour):
    axes.add_patch(Rectangle((x + 0.03, y + 0.03), 0.94, 0.94, color=light(COLOURS[colour])))
    axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=8)


def light(colour):
    return COLOURS["pale"] if colour == COLOURS["pale"] else 0.5 + 0.5 * np.array(to_rgb(colour))


# %% tags=["hide-input"]
def compression(slide, lift, part, title):
    """A moment of the way from dense to condensed; each of the three movements goes from 0 to 1."""
    figure, axes = plt.subplots(figsize=(5, 2.6))
    for i, j in np.ndindex(mask.shape):
        if slide < 1:
            cell(axes, j, i, "", "pale")
    for i, row in enumerate(small.rows):
        y = row + lift * (i - row)
        axes.text(-0.5, y + 0.5, row, ha="center", va="center", fontsize=8, color=COLOURS["green"])
        for k, j in enumerate(small.indices[i].tolist()):
            x = j + slide * (k - j)
            if part > 0:
                cell(axes, x + part * 4, y, j, "orange")
            cell(axes, x, y, small.values[i, k], "sky")
            if part == 0:
                axes.text(x + 0.93, y + 0.3, j, ha="right", fontsize=6.5, color=COLOURS["vermilion"])
    axes.text(-0.5, -0.2, "rows", ha="center", fontsize=8, color=COLOURS["green"])
    axes.set(xlim=(-1.2, 10.2), ylim=(6.1, -0.7), title=title)
    axes.axis("off")
    return figure


# %%
moves = [(0, 0, 0, "a dense matrix: coloured cells are stored; small: their column")] * 4
moves += [(step, 0, 0, "the stored weights move left") for step in (1 / 2, 1)]
moves += [(1, step, 0, "the ablated neuron leaves no gap") for step in (1 / 2, 1)]
moves += [(1, 1, step, "values (blue), indices (orange), rows (green)") for step in (3 / 4, 1)]
animate((compression(*move) for move in moves), 0.45, alt="the stored weights of a matrix move left")

# %% [markdown]
# In NumPy:


# %%
def condense(weight, mask):
    rows = np.flatnonzero(mask.any(axis=1))
    indices = np.nonzero(mask)[1].reshape(len(rows), -1)  # nonzero goes row by row, left to right
    return weight[mask].reshape(len(rows), -1), indices, rows


for mine, theirs in zip(condense(weight, mask), (small.values, small.indices, small.rows), strict=True):
    assert np.array_equal(mine, theirs)
assert np.array_equal(small.to_dense(), weight)
assert np.array_equal(small.mask(), mask)
print(f"indices are {small.indices.dtype}, rows are {small.rows.dtype}")

# %% [markdown]
# Note what `condense` looks at: the mask, never `weight != 0`. A freshly grown weight is exactly zero and
# stored all the same.
#
# ## Bytes
#
# Indices are `uint16` while the layer has no more than 65,536 inputs, so a float32 weight costs 4 + 2 bytes.
# A dense layer pays 4 bytes for each of its positions. CSR, the usual format for unstructured sparse
# matrices, has values and indices too, and a *row pointer* for each neuron that says where its weights begin;
# SciPy's indices have 4 bytes at least. The layer below is that of the paper's CPU timings, 3072 inputs and
# 768 neurons (arXiv 2305.02299; a quick run of this notebook takes a smaller one). The authors' program
# (repository calgaryml/condensed-sparsity) had 64-bit indices.

# %%
n_in, n_out = unless_fast((3072, 768), (512, 128))

# %% tags=["hide-input"]
fan_ins = np.array([n_in // 100, n_in])  # the lines are straight
stored = fan_ins * n_out

figure, axes = plt.subplots(figsize=(5, 2.4))
axes.axhline(4 * n_in * n_out / 1e6, color=COLOURS["black"], label="dense: 4")
for name, per_weight, per_neuron, colour, width in (
    ("64-bit indices: 4 + 8", 12, 0, "grey", 1.5),
    ("SciPy's CSR: 4 + 4", 8, 4, "vermilion", 1.5),
    ("sparsekit's CSR: 4 + 2", 6, 8, "green", 5),
    ("condensed: 4 + 2", 6, 4, "blue", 1.5),
):
    megabytes = (per_weight * stored + per_neuron * n_out) / 1e6
    look = {"color": COLOURS[colour], "linewidth": width, "label": name}
    axes.plot(100 - 100 * fan_ins / n_in, megabytes, **look)
axes.set(xlabel="sparsity in %", ylabel="MB", ylim=(0, None), title=f"Bytes of a layer {n_in} -> {n_out}")
axes.legend(title="bytes a weight")
plt.show()

# %% [markdown]
# Each line crosses the dense one where the bytes of a stored weight, times the density, are 4: with uint16
# indices at a sparsity of one third, with 32-bit indices at one half, with 64-bit ones at two thirds. The two
# lines with uint16 indices all but coincide: the small index saves the bytes, and hardly the constant fan-in,
# which only does without the row pointers.
#
# ## Three products
#
# A layer with weight $W$ (neurons by inputs) multiplies a batch $X$ (inputs by samples). $X$ and $Y$ are
# *feature-major*: a row holds one input, or one output, of all samples. `dY` is what
# [lesson 2](02_backward_by_hand.ipynb) calls grad_output. With $v_{ik}$ for `values[i, k]`, $c_{ik}$ for
# `indices[i, k]` and $r_i$ for `rows[i]`, training needs
#
# $$Y_{r_i,b} = \sum_k v_{ik} \, X_{c_{ik},b} \qquad
# dX_{j,b} = \sum_{(i,k)\,:\;c_{ik}=j} v_{ik} \, dY_{r_i,b} \qquad
# dV_{ik} = \sum_b dY_{r_i,b} \, X_{c_{ik},b}$$
#
# The last one is the gradient of the *stored* weights only: a sampled product, with a result like `values`.
# Plain loops for all three are in `sparsekit/kernels/reference.py`.

# %%
X, grad_output = rng.normal(size=(10, 5)), rng.normal(size=(6, 5))
Y = small.matmul(X)
grad_input = small.rmatmul(grad_output)
grad_values = small.sampled_outer(grad_output, X)

np.testing.assert_allclose(Y, weight @ X, atol=1e-12)
np.testing.assert_allclose(grad_input, weight.T @ grad_output, atol=1e-12)
np.testing.assert_allclose(grad_values, (grad_output @ X.T)[mask].reshape(small.values.shape), atol=1e-12)
assert (Y[1] == 0).all()
print("All three agree with dense products; the ablated neuron's output is zero.")


# %% tags=["hide-input"]
def cells(axes, stored, used, colour, title, xlabel, ylabel):
    mask_heat_map(axes, stored, title, colour="grey")
    axes.imshow(np.ma.masked_equal(used, False), cmap=ListedColormap([COLOURS[colour]]), aspect="auto")
    axes.set(xlabel=xlabel, ylabel=ylabel, xticks=[], yticks=[0, len(stored) - 1])


def rows_of(shape, chosen):
    used = np.zeros(shape, dtype=bool)
    used[chosen] = True
    return used


def everywhere(shape):
    return np.zeros(shape, dtype=bool)


# %% tags=["hide-input"]
neuron, source = 4, 5
row = list(small.rows).index(neuron)  # of the rectangles
readers = np.flatnonzero(mask[:, source])
reads, column = rows_of(mask.shape, neuron) & mask, rows_of(mask.T.shape, source).T & mask
one_slot = everywhere(small.values.shape)
one_slot[row] = small.indices[row] == source
x_like, y_like = everywhere(X.shape), everywhere(Y.shape)

figure, axes = plt.subplots(3, 3, figsize=(6.6, 4.6))
cells(axes[0, 0], mask, reads, "blue", f"Y = W X: weights of neuron {neuron}", "input", "neuron")
cells(axes[0, 1], x_like, rows_of(X.shape, mask[neuron]), "blue", "... times rows of X", "sample", "input")
cells(axes[0, 2], y_like, rows_of(Y.shape, neuron), "vermilion", "... give a row of Y", "sample", "neuron")
cells(axes[1, 0], mask, column, "blue", f"dX = W$^T$ dY: weights of input {source}", "input", "neuron")
cells(axes[1, 1], y_like, rows_of(Y.shape, readers), "blue", "... times rows of dY", "sample", "neuron")
cells(axes[1, 2], x_like, rows_of(X.shape, source), "vermilion", "... give a row of dX", "sample", "input")
cells(axes[2, 0], y_like, rows_of(Y.shape, neuron), "blue", "dV: a row of dY", "sample", "neuron")
cells(axes[2, 1], x_like, rows_of(X.shape, source), "blue", "... times a row of X", "sample", "input")
cells(
    axes[2, 2], everywhere(small.values.shape), one_slot, "vermilion", "... gives one number of dV", "slot", "row"
)
plt.show()

# %% [markdown]
# Blue is read, vermilion is written, grey is stored but not needed now. Whole rows are read and written, and
# a row is contiguous in memory.
#
# Walk through $Y = W X$ one stored weight (blue) at a time. Each step reads one row of $X$ and adds to one row
# of $Y$. `rows` says to which: after neuron 0 comes neuron 2, since 1 is ablated.


# %% tags=["hide-input"]
def one_weight(step):
    """One stored weight, the row of X that it reads and the row of Y that it adds to."""
    i, k = divmod(step, small.fan_in)
    source, target = small.indices[i, k], small.rows[i]
    figure, axes = plt.subplots(figsize=(6, 2.7))
    for a, b in np.ndindex(small.values.shape):
        colour = "blue" if (a, b) == (i, k) else "pale"
        cell(axes, b, a, small.values[a, b], colour)
        cell(axes, b + 4, a, small.indices[a, b], colour)
    for j, b in np.ndindex(X.shape):
        cell(axes, b + 9, j, "", "blue" if j == source else "pale")
    for n, b in np.ndindex(Y.shape):
        done = n in small.rows[:i]
        cell(axes, b + 16, n, "", "vermilion" if n == target else "sky" if done else "pale")
    for x, name in ((0, "values"), (4, "indices"), (9, "X"), (16, "Y")):
        axes.text(x, -0.3, name, fontsize=8)
    for x, y in ((8.5, source), (15.5, target)):
        axes.text(x, y + 0.5, y, ha="center", va="center", fontsize=8)
    axes.set(xlim=(-0.3, 21.3), ylim=(10.2, -1), title=f"read row {source} of X, add it to row {target} of Y")
    axes.axis("off")
    return figure


explore(one_weight, step=range(5))

# %% [markdown]
# ## A fair race
#
# Now the real layer at 90 % sparsity, and two batches: one sample, as when a single user waits for an answer,
# and many, as in training. Some rules, without which timings mean little:
#
# - Results are compared before anything is timed.
# - All ways have the same number of threads. Here that is one, because SciPy's CSR has no more.
# - The ways take turns, each is warmed up first, and we report the median with its quartiles.
# - Two ways whose quartile ranges overlap are not called different.
# - Memory for the result is there beforehand, except for SciPy, which can be given none.
#
# `sparsekit.bench.measure` does the timing. The rival to beat is `np.matmul`, which calls BLAS, a library
# tuned over decades.

# %%
THREADS, SAMPLES = 1, unless_fast(21, 3)


def race(ways, layers=1, samples=SAMPLES):
    """A Timing (q1, median, q3 in seconds) for each function; they take turns."""
    entries = [Implementation(name, "ours", run) for name, run in ways.items()]
    with thread_limit(THREADS):
        return dict(zip(ways, measure(Problem(entries, [], 0, 0, layers), samples, THREADS), strict=True))


# %% [markdown]
# Two more helpers: one compares results, one says in words how two timings compare.


# %%
def assert_all_equal(ways, expected):
    for name, run in ways.items():
        np.testing.assert_allclose(run(), expected, rtol=0, atol=1e-4 * abs(expected).max(), err_msg=name)


def compare(timings, name, other):
    mine, theirs = timings[name], timings[other]
    ratio = theirs.median / mine.median
    overlap = mine.q1 <= theirs.q3 and theirs.q1 <= mine.q3
    if overlap or 0.95 < ratio < 1.05:
        return f"no clear difference between {name} and {other}"
    if ratio > 1:
        return f"{name} is {ratio:.1f} times as fast as {other}"
    return f"{name} takes {1 / ratio:.1f} times as long as {other}"


where = environment()
print(f"{where['cpu']}, BLAS: {where['blas']}, SciPy {where['scipy']}, Numba {where['numba']}, {THREADS} thread")

# %%
rng = np.random.default_rng(0)
SPARSITY = 0.9
BATCHES = (1, unless_fast(256, 32))
W = random_condensed((n_out, n_in), SPARSITY, rng)
dense = aligned(W.to_dense())
csr = scipy.sparse.csr_matrix(dense)
print(W)
for batch in BATCHES:
    macs = W.nnz * batch
    print(f"batch {batch}: {macs:,} multiply-adds of stored weights, {dense.size * batch:,} of all positions")

# %% [markdown]
# ## The first three steps: loops, NumPy, SciPy
#
# **Python loops** (`backend="reference"`) are the definition. They are so slow that we time a small piece and
# divide by its multiply-adds: each costs a loop the same.
#
# **NumPy** (`backend="vectorized"`) *gathers* first: `X[indices]` is an array of shape (neurons, fan-in,
# batch), a copy of a row of $X$ for every stored weight. Then `einsum` sums.

# %%
x, by_hand = normal((n_in, 2), rng), np.empty((n_out, 2), dtype=np.float32)
gathered = x[W.indices]
by_hand[W.rows] = np.einsum("nk,nkb->nb", W.values, gathered)
np.testing.assert_allclose(by_hand, W.matmul(x, "vectorized"), rtol=0, atol=1e-3)
print(f"x has {x.nbytes:,} bytes, what is gathered from it {gathered.nbytes:,}")

# %% [markdown]
# All of the copy is written to memory and read again, for one multiply-add a number.
#
# **SciPy's CSR** is compiled C++. Its product is the loop of the slider above.
#
# ## Write it yourself: a sparse dot product in Numba
#
# Numba compiles Python loops. Start with the layout that most people have, samples first: `x[b]` is a sample.
# One output is a dot product of a row of `values` with the inputs that `indices` picks from the sample.
# `FASTMATH` allows the compiler to sum in another order, which it needs to use vectors.


# %%
@numba.njit(fastmath=FASTMATH)
def dot_products(values, indices, x, out):
    for b in range(x.shape[0]):
        for i in range(values.shape[0]):
            total = np.float32(0)
            for k in range(values.shape[1]):
                total += values[i, k] * x[b, indices[i, k]]
            out[b, i] = total


# %% [markdown]
# At its first call a function is compiled for the types of its arguments; later calls with these types find
# that done. So a first call must never be in a timing.


# %%
def first_and_second(call):
    began = time.perf_counter()
    call()
    between = time.perf_counter()
    call()
    return between - began, time.perf_counter() - between


def say_calls(name, call):
    first, second = first_and_second(call)
    print(f"{name}: first call {1e3 * first:.0f} ms, second call {1e3 * second:.2f} ms")


samples_first = normal((1, n_in), rng)
say_calls("dot products", lambda: dot_products(W.values, W.indices, samples_first, output(1, n_out)))

# %% [markdown]
# ## Turn the axes
#
# What does the dot product read? A processor fetches memory in *cache lines* of 64 bytes, 16 numbers of 4
# bytes. In a sample, the inputs of a neuron lie scattered, so a line is fetched for a number or two. And a
# *vector register*, whose up to 16 numbers one instruction multiplies at a time, must be filled from 16
# places.
#
# Now turn $X$, as above: a row is one input of all samples, and a stored weight needs a *whole row*. The
# picture shows what the three inputs of one neuron cost for 8 samples. It pretends that a cache line holds 4
# numbers; black lines are the borders.


# %% tags=["hide-input"]
def fetched(used, line=4):
    touched = np.repeat(used.reshape(len(used), -1, line).any(axis=2), line, axis=1)
    return touched.astype(int) + used


inputs = [1, 5, 10]
by_sample, by_feature = np.zeros((8, 12), dtype=bool), np.zeros((12, 8), dtype=bool)
by_sample[:, inputs] = True
by_feature[inputs] = True
palette = [COLOURS["pale"], COLOURS["orange"], COLOURS["blue"]]

figure, axes = plt.subplots(1, 2, figsize=(7, 2.6))
both_layouts = ((by_sample, "input", "sample"), (by_feature, "sample", "input"))
for panel, (used, column, row) in zip(axes, both_layouts, strict=True):
    mask_heat_map(panel, used)
    panel.imshow(fetched(used), cmap=ListedColormap(palette), vmin=0, vmax=2, aspect="auto")
    panel.vlines(np.arange(4, used.shape[1], 4) - 0.5, -0.5, len(used) - 0.5, color="black", linewidth=1)
    panel.set(title=f"{row}s are rows: {column} after {column} in memory", xlabel=column, ylabel=row)
labels = ("not fetched", "fetched, not used", "used")
handles = [Patch(color=colour, label=label) for colour, label in zip(palette, labels, strict=True)]
figure.legend(handles=handles, loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# On the left a line is fetched for one number in it; on the right whatever is fetched is used. How bad is it
# in the real layer?

# %%
lines_read = np.mean([np.unique(row // 16).size for row in W.indices.astype(int)])
n_lines = n_in // 16
print(
    f"Samples first: a neuron uses {W.fan_in / n_in:.0%} of a sample's numbers, "
    f"and touches {lines_read / n_lines:.0%} of its cache lines."
)
print(f"Features first, 16 samples or more: it touches {W.fan_in / n_in:.0%} of the lines and uses them whole.")

# %% [markdown]
# With samples first, nine tenths of the weights are gone and most of the lines are still read. With features
# first the loop becomes $y \mathrel{+}= w\,x$ over the batch, which BLAS calls *axpy*: a plain loop over
# neighbours, which any compiler turns into vector instructions. Swap the loops and you have it:


# %%
@numba.njit(fastmath=FASTMATH)
def axpy(values, indices, x, out):
    for i in range(values.shape[0]):
        y = out[i]
        y[:] = 0
        for k in range(values.shape[1]):
            w, row = values[i, k], x[indices[i, k]]
            for b in range(x.shape[1]):
                y[b] += w * row[b]


# %% [markdown]
# For every vector of the batch, the innermost line loads a piece of `row`, loads a piece of `y`, multiplies
# and adds once, and stores the piece of `y`: three memory instructions for one multiply-add. The sums `y`
# need not travel so often. Take four weights in one pass:


# %%
@numba.njit(fastmath=FASTMATH)
def axpy_by_four(values, indices, x, out):
    whole = values.shape[1] // 4 * 4
    for i in range(values.shape[0]):
        y, v, c = out[i], values[i], indices[i]
        y[:] = 0
        for k in range(0, whole, 4):
            r0, r1, r2, r3 = x[c[k]], x[c[k + 1]], x[c[k + 2]], x[c[k + 3]]
            for b in range(x.shape[1]):
                y[b] += v[k] * r0[b] + v[k + 1] * r1[b] + v[k + 2] * r2[b] + v[k + 3] * r3[b]
        for k in range(whole, values.shape[1]):
            row = x[c[k]]
            for b in range(x.shape[1]):
                y[b] += v[k] * row[b]


x = normal((n_in, BATCHES[-1]), rng)
say_calls("axpy", lambda: axpy(W.values, W.indices, x, output(n_out, x.shape[1])))
say_calls("axpy, four weights a pass", lambda: axpy_by_four(W.values, W.indices, x, output(n_out, x.shape[1])))

# %% [markdown]
# ## The package's kernel: registers, tiles, a plan
#
# `backend="cpu"` follows this thought to its end, in three steps.
#
# 1. **Registers** (`sparsekit/kernels/simd.py`). A tile of the batch, up to 8 vectors wide, is summed in
#    registers over *all* weights of the row and stored once. Left is one load of $X$ for each multiply-add.
# 2. **Tiles** (`sparsekit/kernels/gather.py`). Between memory and registers lie caches: a small, fast first
#    level, larger and slower ones behind it. A wide batch $X$ does not fit the fast ones. So a tile of 256
#    bytes of the batch, for a block of inputs, is copied to a place that fits the first-level cache; all
#    neurons use it before the next tile comes. Where neurons have few weights in a block, a narrower strip of
#    all inputs goes to the second-level cache instead.
# 3. **A plan** (`sparsekit/kernels/plan.py`). That needs the weights in the order of the blocks. The order
#    depends on the mask only, so it is made once and used until the topology changes.

# %% tags=["hide-input"]
block = 5
order = small.plan.rows_in_blocks(block)  # runs of weights, each stored side by side
used = np.concatenate([start + np.arange(n) for start, n in zip(order.places, np.diff(order.indptr), strict=True)])
by_rows, by_blocks = np.zeros(mask.shape), np.zeros(mask.shape)
by_rows.flat[small.flat_positions()] = np.arange(small.nnz) + 1
by_blocks.flat[small.flat_positions()[used]] = np.arange(small.nnz) + 1

figure, axes = plt.subplots(1, 2, figsize=(6.6, 2.1))
matrix(axes[0], by_rows, "row by row", mask=mask, decimals=0)
matrix(axes[1], by_blocks, f"by blocks of {block} inputs", mask=mask, decimals=0)
axes[1].axvline(block - 0.5, color="black")
plt.show()

# %% [markdown]
# The numbers say when each stored weight is used. Block by block, a product stays left of the line until no
# neuron needs these inputs any more. Within a block, neurons with few weights there come first: loops of equal
# length one after the other are loops whose end the processor foresees.
#
# A layer that only predicts can go one step further. `W.frozen()` is a read-only copy whose values are put in
# the order of each product once, not at every call. It costs memory: `held_nbytes` counts it.

# %%
F = W.frozen()
say_calls("package", lambda: W.matmul(x))
say_calls("package, frozen", lambda: F.matmul(x))
say_calls("package, frozen, one sample", lambda: F.matmul(x[:, :1]))
print(f"stored: {W.nbytes:,} bytes; held for products: {W.held_nbytes:,}, frozen {F.held_nbytes:,}")

# %% [markdown]
# If a first call took no longer here, its kernel was already compiled for a product above.
#
# ## The staircase
#
# Here are all ways side by side, each as a function without arguments that returns $Y$.


# %%
def ways_for(batch):
    x = normal((n_in, batch), rng)
    rows, y, y_rows = aligned(x.T), output(n_out, batch), output(batch, n_out)
    vector = x[:, 0] if batch == 1 else x  # SciPy has a product of its own for a vector

    def mine(kernel, x, out):
        kernel(W.values, W.indices, x, out)
        return out

    return x, {
        "NumPy gather + einsum": lambda: W.matmul(x, "vectorized", out=y),
        "SciPy CSR": lambda: (csr @ vector).reshape(n_out, batch),
        "my dot products": lambda: mine(dot_products, rows, y_rows).T,
        "my axpy": lambda: mine(axpy, x, y),
        "my axpy, four weights a pass": lambda: mine(axpy_by_four, x, y),
        "package": lambda: W.matmul(x, out=y),
        "package, frozen": lambda: F.matmul(x, out=y),
        "dense BLAS": lambda: np.matmul(dense, x, out=y),
    }


# %%
piece = sparsekit.CondensedMatrix(W.values[:8], W.indices[:8], W.rows[:8], (8, n_in))
stairs, per_mac = {}, {}
for batch in BATCHES:
    x, ways = ways_for(batch)
    expected = dense.astype(float) @ x
    assert_all_equal(ways, expected)
    stairs[batch] = race(ways)
    per_mac[batch] = {name: (t.q1, t.median, t.q3) / np.array(W.nnz * batch) for name, t in stairs[batch].items()}
    few = x[:, :2].copy()
    loops = {"Python loops": lambda few=few: piece.matmul(few, "reference")}
    assert_all_equal(loops, expected[:8, :2])
    t = race(loops, samples=3)["Python loops"]
    loop_times = (t.q1, t.median, t.q3) / np.array(piece.nnz * few.shape[1])
    per_mac[batch] = {"Python loops": loop_times} | per_mac[batch]
print("All results agree with a float64 product; now the times:")


# %% tags=["hide-input"]
def colour_of(name):
    for start_of_name, colour in (("dense", "black"), ("SciPy", "vermilion"), ("package", "blue"), ("my", "sky")):
        if name.startswith(start_of_name):
            return COLOURS[colour]
    return COLOURS["grey"]


figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, sharex=True)
for panel, batch in zip(axes, BATCHES, strict=True):
    names = list(per_mac[batch])[::-1]
    q1, median, q3 = 1e9 * np.array([per_mac[batch][name] for name in names]).T
    panel.barh(names, median, color=[colour_of(name) for name in names], xerr=(median - q1, q3 - median))
    for y, value in enumerate(median):
        panel.text(1.4 * q3[y], y, f"{value:,.0f}" if value >= 100 else f"{value:.2g}", va="center", fontsize=8)
    panel.set(xscale="log", title=f"batch {batch}", xlabel="nanoseconds per stored weight and sample")
    panel.minorticks_off()
every = 1e9 * np.array([times for ways in per_mac.values() for times in ways.values()])
axes[1].set_xlim(every.min() / 3, 30 * every.max())
figure.suptitle(
    f"The staircase: {n_in} -> {n_out}, {SPARSITY:.0%} sparse, {THREADS} thread, medians and quartiles"
)
plt.show()

# %% [markdown]
# Each gridline is a factor of ten. Time is divided by the multiply-adds of *stored* weights for every bar,
# the dense one too, so a shorter bar is a faster layer. Dense BLAS does about ten times as many, and each of
# its multiply-adds is as much cheaper than its bar says.

# %%
for batch in BATCHES:
    timings = stairs[batch]
    factor = per_mac[batch]["Python loops"][1] / per_mac[batch]["package"][1]
    print(f"Batch {batch}:")
    print(f"  Python loops take {factor:,.0f} times as long as package for a stored weight and sample.")
    for name, other in (
        ("NumPy gather + einsum", "dense BLAS"),
        ("my axpy", "my dot products"),
        ("my axpy, four weights a pass", "my axpy"),
        ("package", "my axpy, four weights a pass"),
        ("package", "SciPy CSR"),
        ("package", "dense BLAS"),
        ("package, frozen", "package"),
    ):
        print(f"  {compare(timings, name, other)}.")

# %% [markdown]
# Compare the two panels. With one sample the innermost loop of axpy has length one, and the dot product is
# the natural loop; the package takes it there too. With many samples the loop of axpy is long. A kernel is
# good for a shape, not as such. Compare also NumPy's gather with the dense product, which wastes nine
# multiply-adds of ten: "vectorised" is a statement about Python, not about speed.
#
# ## When does it pay?
#
# Sparsity and batch decide together. The grid: dense BLAS, SciPy's CSR and the condensed matrix, frozen as
# for predictions.

# %%
GRID_SPARSITIES = unless_fast((0.5, 0.7, 0.8, 0.9, 0.95, 0.99), (0.5, 0.9))
GRID_BATCHES = unless_fast((1, 4, 16, 64, 256), (1, 16))
grid = {}


def three_ways(stored, batch):
    weights, theirs, ours = aligned(stored.to_dense()), scipy.sparse.csr_matrix(stored.to_dense()), stored.frozen()
    x, y = normal((n_in, batch), rng), output(n_out, batch)
    vector = x[:, 0] if batch == 1 else x
    ways = {
        "dense": lambda: np.matmul(weights, x, out=y),
        "CSR": lambda: (theirs @ vector).reshape(n_out, batch),
        "condensed": lambda: ours.matmul(x, out=y),
    }
    assert_all_equal(ways, weights.astype(float) @ x)
    return ways


for sparsity in GRID_SPARSITIES:
    stored = random_condensed((n_out, n_in), sparsity, rng)
    for batch in GRID_BATCHES:
        grid[sparsity, batch] = race(three_ways(stored, batch), samples=unless_fast(9, 3))

# %% tags=["hide-input"]
LINES = {"dense": "black", "CSR": "vermilion", "condensed": "blue"}


def times_at(batch):
    """Time of the product over sparsity, for each storage."""
    figure, axes = plt.subplots(figsize=(5.2, 2.6))
    for name, colour in LINES.items():
        timings = [grid[sparsity, batch][name] for sparsity in GRID_SPARSITIES]
        low, middle, high = 1e6 * np.array([(t.q1, t.median, t.q3) for t in timings]).T
        percent = 100 * np.array(GRID_SPARSITIES)
        axes.errorbar(
            percent, middle, (middle - low, high - middle), color=COLOURS[colour], marker="o", label=name
        )
    axes.set(
        yscale="log", xlabel="sparsity in %", ylabel="microseconds", title=f"{n_in} -> {n_out}, batch {batch}"
    )
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.minorticks_off()
    axes.legend(loc="lower left")
    return figure


explore(times_at, batch=GRID_BATCHES)

# %% [markdown]
# Move the slider: each picture is one batch, with quartiles as whiskers. A dense product has the same work at
# any sparsity, the others have less and less. Condensed pays where the blue line is below the black one. The
# same numbers as two maps, blue where condensed is faster, red where it is slower; the slider goes from dense
# BLAS to SciPy's CSR:


# %% tags=["hide-input"]
def gains_over(other):
    """How many times as fast condensed is, by sparsity and batch."""
    figure, axes = plt.subplots(figsize=(5.5, 2.7))
    gains = [
        [grid[s, b][other].median / grid[s, b]["condensed"].median for b in GRID_BATCHES] for s in GRID_SPARSITIES
    ]
    axes.imshow(np.log2(gains), cmap="RdBu", vmin=-4, vmax=4, aspect="auto")
    axes.grid(False)
    axes.set(title=f"condensed: times as fast as {other}", xlabel="batch", ylabel="sparsity")
    axes.set_xticks(range(len(GRID_BATCHES)), GRID_BATCHES)
    axes.set_yticks(range(len(GRID_SPARSITIES)), [f"{sparsity:.0%}" for sparsity in GRID_SPARSITIES])
    for (row, column), gain in np.ndenumerate(np.array(gains)):
        axes.text(column, row, f"{gain:.1f}", ha="center", va="center", color="white" if gain > 6 else "black")
    return figure


explore(gains_over, other=("dense", "CSR"))

# %%
won = lost = 0
for (sparsity, batch), timings in grid.items():
    best = min("dense", "CSR", key=lambda name: timings[name].q1)
    if timings["condensed"].q3 < timings[best].q1:
        won += 1
    else:
        lost += 1
        print(f"No clear win at {sparsity:.0%}, batch {batch}: {compare(timings, 'condensed', best)}.")
print(f"Condensed wins clearly (quartiles apart) over both others in {won} of {won + lost} cases.")

# %% [markdown]
# Two corners deserve a warning whatever this run says. **Low sparsity**: a dense product loads a number once
# and uses it many times from registers, a sparse one loads a number of $X$ for every multiply-add. At 50 % it
# has to make up for that with half of the work and three quarters of the bytes. **99 % and one sample**:
# there is so little work that the call itself can count. A product of next to nothing tells what it costs.

# %%
nothing = random_condensed((4, 8), 0.5, rng).frozen()
thin = random_condensed((n_out, n_in), 0.99, rng).frozen()
x_nothing, x_one = normal((8, 1), rng), normal((n_in, 1), rng)
out_nothing, out_one = output(4, 1), output(n_out, 1)
call = race(
    {"empty": lambda: nothing.matmul(x_nothing, out=out_nothing), "99 %": lambda: thin.matmul(x_one, out=out_one)}
)
print(f"A product of next to nothing: {1e6 * call['empty'].median:.1f} microseconds. ", end="")
print(f"One sample at 99 %: {1e6 * call['99 %'].median:.1f} microseconds.")

# %% [markdown]
# ## What does constant fan-in itself buy?
#
# A format and a program are two things. sparsekit runs its own CSR on the same kernels, so compare condensed
# with *that*: as many weights, scattered without any structure.

# %%
scattered_mask = sparsekit.masks.random_per_layer((n_out, n_in), W.nnz, rng)
scattered_weight = normal((n_out, n_in), rng) * scattered_mask
scattered = sparsekit.CSRMatrix.from_dense(scattered_weight, scattered_mask).frozen()
x = normal((n_in, BATCHES[-1]), rng)
np.testing.assert_allclose(scattered.matmul(x), scattered_weight @ x, rtol=0, atol=1e-3)


def two_formats(x):
    y = output(n_out, x.shape[1])
    return {"condensed": lambda: F.matmul(x, out=y), "unstructured CSR": lambda: scattered.matmul(x, out=y)}


for batch in BATCHES:
    timings = race(two_formats(normal((n_in, batch), rng)))
    print(
        f"Batch {batch}: {compare(timings, 'condensed', 'unstructured CSR')}. Quartiles in microseconds: ", end=""
    )
    print("; ".join(f"{name} {1e6 * t.q1:.0f} to {1e6 * t.q3:.0f}" for name, t in timings.items()))

# %% [markdown]
# Where there is no clear difference, the *speed* comes, on this machine and with these kernels, from
# feature-major data, registers and tiles, and not from the constant fan-in. (A difference counts if it is
# still there when you run the cell again.) What constant fan-in gives in any case is simplicity: no row
# pointers, every neuron takes equally long, and loops of a known length. That matters where work is dealt out
# in equal portions, as to the warps of a GPU, and in simple code: the paper's "condensed" on the CPU is a
# gather and a sum in PyTorch, compared with PyTorch's CSR (arXiv 2305.02299). When you read that one
# structure is so many times faster than another, ask which two *programs* were timed.
#
# ## The roofline
#
# How fast could it be? A machine can do so many multiply-adds a second, if its data are at hand, and fetch so
# many bytes a second. The *intensity* of a product is its number of multiply-adds for each byte that it must
# at least fetch or write: weights, indices, $X$ and $Y$, each once. At intensity $I$ no program can exceed
#
# $$\min(\text{multiply-adds a second}, \; I \cdot \text{bytes a second}).$$
#
# First the bytes. How fast one thread reads depends on where the numbers are, and that depends on how many
# there are. So sum arrays of growing size, over and over.


# %%
@numba.njit(fastmath=FASTMATH)
def sum_again(array, times, sums):
    for t in range(times):
        total = np.float32(0)
        for i in range(array.size):
            total += array[i]
        sums[t] = total


def read_rate(n_bytes):
    """Bytes a second that one thread reads from an array of this size."""
    array, total = aligned(np.ones(n_bytes // 4)), unless_fast(2**27, 2**22)
    times = max(1, total // n_bytes)
    sums = np.empty(times, dtype=np.float32)
    timing = race({"sum": lambda: sum_again(array, times, sums)}, samples=unless_fast(9, 3))["sum"]
    return times * n_bytes / timing.median


sizes = 2 ** np.arange(13, unless_fast(29, 22), unless_fast(1, 2))
rates = np.array([read_rate(int(size)) for size in sizes])

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(5.5, 2.3))
axes.plot(sizes, rates / 1e9, "o-", color=COLOURS["green"])
for name, n_bytes, colour in (("condensed", W.nbytes, "blue"), ("dense", dense.nbytes, "black")):
    axes.axvline(n_bytes, color=COLOURS[colour], linestyle="--", label=f"weights of the {name} layer")
axes.set(xscale="log", xlabel="bytes of the array", ylabel="GB a second", ylim=(0, None))
axes.set_title("How fast one thread reads, by the size of what it reads")
axes.legend(loc="upper right", frameon=True, edgecolor="white")
plt.show()

# %% [markdown]
# Where the curve falls and stays low, a cache has become too small; the largest arrays are read from memory.
# So the weights of a smaller layer are not only fewer bytes, they may also come from nearer. And one layer
# timed over and over flatters every format: in a network the other layers push its weights out of the cache.
# So we also time one sample through many layers in turn: *cold* weights.

# %%
LAYERS = unless_fast(16, 4)
x = normal((n_in, 1), rng)
y, one_sum = output(n_out, 1), output(1)
frozen_layers = [random_condensed((n_out, n_in), SPARSITY, rng).frozen() for _ in range(LAYERS)]
dense_layers = [aligned(layer.to_dense()) for layer in frozen_layers]
for layer, weights in zip(frozen_layers, dense_layers, strict=True):
    np.testing.assert_allclose(layer.matmul(x), weights @ x, rtol=0, atol=1e-3)
cold = race(
    {
        "condensed": in_turn([lambda layer=layer: layer.matmul(x, out=y) for layer in frozen_layers]),
        "dense": in_turn([lambda weights=weights: np.matmul(weights, x, out=y) for weights in dense_layers]),
        "only reading the dense weights": in_turn(
            [lambda weights=weights: sum_again(weights.ravel(), 1, one_sum) for weights in dense_layers]
        ),
    },
    layers=LAYERS,
)
print(f"One sample, cold weights: {compare(cold, 'condensed', 'dense')}.")
print(f"And {compare(cold, 'dense', 'only reading the dense weights')}.")
print(f"The dense layer has {dense.nbytes / W.nbytes:.1f} times as many bytes as the condensed one.")

# %% [markdown]
# A cold dense product has to read all its weights, so it should take about as long as only reading them,
# unless something else holds it up. Between dense and condensed the factor would be that of the bytes, if
# both came from the same place and nothing else took time.
#
# The rate of this reading is our rate of memory. For the multiply-adds a second, BLAS multiplies two square
# matrices; the best of this and of all dense products above counts. Roofs are what the machine can do when
# nobody disturbs it, so they are drawn from lower quartiles of the times, points from medians.

# %%
side = unless_fast(1536, 256)
a, b, ab = normal((side, side), rng), normal((side, side), rng), output(side, side)
squares = race({"BLAS": lambda: np.matmul(a, b, out=ab)}, samples=9)["BLAS"]
best = min(grid[s, b]["dense"].q1 / b for s, b in grid)  # seconds a sample
blas = max(side**3 / squares.q1, dense.size / best)
memory = dense.nbytes / cold["only reading the dense weights"].q1
print(f"BLAS: {blas / 1e9:.0f} G multiply-adds a second. Memory: {memory / 1e9:.1f} GB a second.")
print(f"From {blas / memory:.1f} multiply-adds a byte on, BLAS is the limit.")


# %%
def intensity_and_rate(matrix, nnz, batch, seconds):
    n_bytes = matrix.nbytes + 4 * (n_in + n_out) * batch
    return nnz * batch / n_bytes, nnz * batch / seconds


points = []  # name, batch, intensity, rate
for batch in GRID_BATCHES:
    timings = grid[SPARSITY, batch]
    points.append(("dense", batch, *intensity_and_rate(dense, dense.size, batch, timings["dense"].median)))
    points.append(("condensed", batch, *intensity_and_rate(W, W.nnz, batch, timings["condensed"].median)))
points.append(("dense", "cold", *intensity_and_rate(dense, dense.size, 1, cold["dense"].median)))
points.append(("condensed", "cold", *intensity_and_rate(W, W.nnz, 1, cold["condensed"].median)))

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(6, 3.1))
intensities = np.logspace(-1.2, 2, 200)
axes.loglog(
    intensities, np.minimum(blas, memory * intensities) / 1e9, color="0.3", label="roof: memory, then BLAS"
)

for name, batch, intensity, rate in points:
    fill = "none" if batch == "cold" else COLOURS[LINES[name]]
    axes.plot(intensity, rate / 1e9, "o", markersize=6, markeredgecolor=COLOURS[LINES[name]], markerfacecolor=fill)
    beside = (
        {"xytext": (7, -3)} if name == "dense" else {"xytext": (0, -13 if batch == "cold" else 6), "ha": "center"}
    )
    axes.annotate(batch, (intensity, rate / 1e9), textcoords="offset points", fontsize=7.5, **beside)
for name in ("dense", "condensed"):
    axes.plot([], [], "o", color=COLOURS[LINES[name]], label=f"{name}, with its batch (hollow: cold)")
axes.set(xlabel="multiply-adds per byte", ylabel="G multiply-adds a second", title="Roofline of one thread")
axes.legend(loc="lower right")
plt.show()

# %% [markdown]
# With one sample each weight is used once: about one multiply-add for 4 bytes dense, one for 6 bytes
# condensed, and with these formats no program can change that. Here the roof slopes: **one sample is bound by
# memory**, and fewer bytes are what a sparse layer can gain by. Points may lie above the slope, because the
# slope is the rate of memory: hot weights come from a cache, and so may cold ones where all layers fit into
# it together. A point far below waits for something else: loads of single inputs, instructions, Python, or
# other programs on the machine.
#
# With more samples the points move right, since a weight that was fetched serves them all, and arithmetic
# becomes the limit. A condensed layer is faster as long as its point lies lower than the dense one by less
# than the factor by which it has less to do.

# %%
for name, kind, intensity, rate in points:
    if kind in (1, "cold", GRID_BATCHES[-1]):
        label = "batch 1, cold" if kind == "cold" else f"batch {kind}"
        limit = min(blas, memory * intensity)
        print(
            f"{name:9} {label:13} {intensity:6.2f} multiply-adds a byte, {rate / 1e9:6.1f} G a second, "
            f"{rate / intensity / 1e9:5.1f} GB a second, {rate / limit:4.0%} of the roof"
        )

# %% [markdown]
# ## The two products of the backward pass
#
# The obvious loop for $W^T dY$ goes through the stored weights in their order and *scatters*: weight $(i,k)$
# adds to row $c_{ik}$ of $dX$.


# %%
@numba.njit(fastmath=FASTMATH)
def scatter(values, indices, rows, g, out):
    out[:] = 0
    for i in range(values.shape[0]):
        row = g[rows[i]]
        for k in range(values.shape[1]):
            w, y = values[i, k], out[indices[i, k]]
            for b in range(g.shape[1]):
                y[b] += w * row[b]


half = len(W.rows) // 2
both = np.intersect1d(W.indices[:half], W.indices[half:]).size
print(f"If two threads took half of the neurons each, both would add to {both} of the {n_in} rows of dX.")

# %% [markdown]
# Two threads that add to the same number lose updates. And even one thread must load and store the sums for
# every weight. So look at the matrix from the other side. The *transposed index* lists, input by input, which
# neurons read it and where the weight is stored; then $dX$ is a sum over the list, a gather like $Y$, and
# every row of $dX$ belongs to one thread. The index depends on the mask only and is kept in the plan.

# %%
index = small.plan.transposed
print("input:    ", *(f"{j:3}" for j in np.repeat(np.arange(10), np.diff(index.indptr))))
print("neuron:   ", *(f"{row:3}" for row in index.rows))
print("position: ", *(f"{position:3}" for position in index.positions))

by_gather = np.zeros(X.shape)
for j in range(10):
    mine = slice(index.indptr[j], index.indptr[j + 1])
    by_gather[j] = small.values.ravel()[index.positions[mine]] @ grad_output[index.rows[mine]]
np.testing.assert_allclose(by_gather, grad_input, atol=1e-12)

# %% [markdown]
# `position` counts the cells of `values` row by row. The loop above takes each input's column of the table.
#
# The sampled product needs no such care: for each stored weight a dot product of two contiguous rows. A dense
# layer, or a masked one, computes $dY\,X^T$ at all positions, though it needs only the stored ones. Here are
# all three products in a race, at a batch as in training.


# %%
@numba.njit(fastmath=FASTMATH)
def sampled_dots(indices, rows, g, x, out):
    for i in range(indices.shape[0]):
        left = g[rows[i]]
        for k in range(indices.shape[1]):
            right, total = x[indices[i, k]], np.float32(0)
            for b in range(x.shape[1]):
                total += left[b] * right[b]
            out[i, k] = total


batch = unless_fast(128, 32)
x, g = normal((n_in, batch), rng), normal((n_out, batch), rng)
y, gx, gv, gw = output(n_out, batch), output(n_in, batch), output(*W.values.shape), output(n_out, n_in)
PRODUCTS = {
    "W X": (
        lambda: (axpy(W.values, W.indices, x, y), y)[1],
        lambda: W.matmul(x, out=y),
        lambda: np.matmul(dense, x, out=y),
    ),
    "W$^T$ dY": (
        lambda: (scatter(W.values, W.indices, W.rows, g, gx), gx)[1],
        lambda: W.rmatmul(g, out=gx),
        lambda: np.matmul(dense.T, g, out=gx),
    ),
    "dY X$^T$, stored places": (
        lambda: (sampled_dots(W.indices, W.rows, g, x, gv), gv)[1],
        lambda: W.sampled_outer(g, x, out=gv),
        lambda: np.matmul(g, x.T, out=gw),
    ),
}

# %%
NAMES = {"my loops": "sky", "package": "blue", "dense BLAS": "black"}
wide = dense.astype(float)
answers = [wide @ x, wide.T @ g, (g.astype(float) @ x.T).flat[W.flat_positions()].reshape(W.values.shape)]
backward = {}
for (product, ways), answer in zip(PRODUCTS.items(), answers, strict=True):
    ways = dict(zip(NAMES, ways, strict=True))
    assert_all_equal({name: ways[name] for name in ("my loops", "package")}, answer)
    backward[product] = race(ways)

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(6, 2.3))
for k, (name, colour) in enumerate(NAMES.items()):
    q1, median, q3 = 1e3 * np.array([(t[name].q1, t[name].median, t[name].q3) for t in backward.values()]).T
    places = np.arange(3) + 0.26 * (k - 1)
    axes.bar(
        places, median, 0.24, yerr=(median - q1, q3 - median), color=COLOURS[colour], label=name, ecolor="0.5"
    )
axes.set_xticks(range(3), backward)
axes.set(ylabel="milliseconds", title=f"The three products of training, batch {batch}, {SPARSITY:.0%} sparse")
figure.legend(loc="outside right upper")
plt.show()

# %%
for product, timings in backward.items():
    print(f"{product.replace('$^T$', '^T')}: {compare(timings, 'package', 'dense BLAS')}, ", end="")
    print(f"{compare(timings, 'package', 'my loops')}.")
step = {name: sum(timings[name].median for timings in backward.values()) for name in NAMES}
times = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in step.items())
print(f"All three, sums of medians: {times}.")

# %% [markdown]
# Here stored sparse training differs from masked training. A program that multiplies dense tensors by masks
# pays the black bars whatever the sparsity; the work behind the blue ones shrinks with it. Only at the steps
# that change the topology does SRigL need the dense gradient, because it must see the weights that are not
# there; [lesson 3](03_rigl.ipynb) says how rarely.
#
# All this was one layer with random masks on one machine with one thread. Other processors and versions of
# BLAS give other numbers; `sparsekit bench` measures more of it on your machine.
#
# ## Exercises
#
# **1.** A condensed matrix with `value_bytes` for a weight and `index_bytes` for its index has as many bytes
# as a dense one at one sparsity. Which? Leave the array `rows` out.


# %%
def break_even_sparsity(value_bytes, index_bytes):
    """Sparsity at which condensed and dense storage take as many bytes."""
    ...


def check_break_even(function):
    assert abs(function(4, 4) - 0.5) < 1e-12, "with indices as large as values, at 50 % both have the same bytes"
    assert abs(function(4, 2) - 1 / 3) < 1e-12, "a stored weight costs 6 bytes, a dense position 4"
    assert abs(function(2, 2) - 0.5) < 1e-12, "half precision: the index costs relatively more"


try_it(break_even_sparsity, check_break_even)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def break_even_solution(value_bytes, index_bytes):
    # density * (value_bytes + index_bytes) = value_bytes
    return 1 - value_bytes / (value_bytes + index_bytes)


verify(break_even_solution, check_break_even)

# %% [markdown]
# **2.** Write the sampled product in NumPy without loops, as the "vectorized" backend does: gather, then
# `einsum`. Do not build the dense $dY\,X^T$.


# %%
def my_sampled_outer(indices, rows, g, x):
    """(n_active, fan_in): the product g x^T at the stored places."""
    ...


def check_sampled(function):
    result = np.asarray(function(small.indices, small.rows, grad_output, X))
    assert result.shape == small.values.shape, f"the shape must be {small.values.shape}, not {result.shape}"
    wrong = ~np.isclose(result, small.sampled_outer(grad_output, X))
    assert not wrong[0].any(), "row 0 is wrong: sum over the samples, rows of g times rows of x"
    assert not wrong.any(), "right up to the ablated neuron: which row of g belongs to which row of the rectangle?"


try_it(my_sampled_outer, check_sampled)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def sampled_solution(indices, rows, g, x):
    return np.einsum("nb,nkb->nk", g[rows], x[indices])


verify(sampled_solution, check_sampled)

# %% [markdown]
# **3.** Build the transposed index yourself: for the stored weights in the order of their *inputs* (and of
# neurons within an input), the neuron of each and its position in `values.ravel()`. Hint:
# `np.argsort(..., kind="stable")`.


# %%
def my_transposed_index(indices, rows):
    """Two arrays (nnz,): the neuron and the position of each stored weight, input by input."""
    ...


def check_transposed(function):
    for stored in (small, W):
        neurons, positions = function(stored.indices, stored.rows)
        index = stored.plan.transposed
        assert np.array_equal(stored.indices.ravel()[positions], np.sort(stored.indices, axis=None)), (
            "sort by input first: the inputs at your positions must ascend"
        )
        assert np.array_equal(positions, index.positions), "within an input, neurons ascend: is your sort stable?"
        assert np.array_equal(neurons, index.rows), "neurons are numbers from rows, not rows of the rectangle"


try_it(my_transposed_index, check_transposed)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def transposed_solution(indices, rows):
    positions = np.argsort(indices.ravel(), kind="stable")
    return np.repeat(rows, indices.shape[1])[positions], positions


verify(transposed_solution, check_transposed)

# %% [markdown]
# **4.** From which batch on is a condensed layer no longer bound by memory? Return the smallest batch whose
# intensity reaches `balance` multiply-adds per byte, or None if no batch does. Count float32 values with
# uint16 indices, and $X$ and $Y$ once each; leave `rows` out. Where does "None" come from?


# %%
def first_batch(n_in, n_out, fan_in, balance):
    """Smallest batch at which W X has at least `balance` multiply-adds per byte, or None."""
    ...


def check_first_batch(function):
    def intensity(n_in, n_out, fan_in, batch):
        return n_out * fan_in * batch / (6 * n_out * fan_in + 4 * (n_in + n_out) * batch)

    for case in ((3072, 768, 307, 1.0), (3072, 768, 307, 10.0), (512, 512, 51, 5.0), (512, 512, 512, 1.0)):
        batch = function(*case)
        assert batch is not None, f"{case} can be reached"
        assert intensity(*case[:3], batch) >= case[3] - 1e-9, f"{case}: batch {batch} is too small"
        assert batch == 1 or intensity(*case[:3], batch - 1) < case[3], (
            f"{case}: batch {batch} is not the smallest"
        )
    assert function(3072, 768, 30, 10.0) is None, "X and Y cost bytes too: no batch reaches 10 with a fan-in of 30"


try_it(first_batch, check_first_batch)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def first_batch_solution(n_in, n_out, fan_in, balance):
    # nnz * batch >= balance * (6 * nnz + 4 * (n_in + n_out) * batch), solved for the batch. With many samples
    # X and Y are all the bytes there are, and the intensity tends to nnz / (4 * (n_in + n_out)).
    nnz = n_out * fan_in
    gain = nnz - balance * 4 * (n_in + n_out)
    return max(1, int(np.ceil(balance * 6 * nnz / gain))) if gain > 0 else None


verify(first_batch_solution, check_first_batch)

# %% [markdown]
# **5.** (open) Make `axpy` use several threads: a kernel with `@numba.njit(parallel=True, fastmath=FASTMATH)`
# and `numba.prange` over neurons. Why may two neurons run at the same time here, when in `scatter` they may
# not? Why must the result have the same bits with one thread and with all? Then time it with a larger
# `THREADS`, and try `prange` over tiles of the batch instead.


# %%
def my_parallel_axpy(values, indices, x, out):
    """out = W x for a matrix without ablated neurons, on several threads."""
    ...


def check_parallel(function):
    x = normal((n_in, 16), rng)
    results = []
    for threads in (1, None):
        with thread_limit(threads):
            results.append(function(W.values, W.indices, x, output(n_out, 16)))
    assert results[0] is not None, "return out"
    np.testing.assert_allclose(results[0], dense @ x, rtol=0, atol=1e-3, err_msg="wrong sums")
    assert np.array_equal(results[0], results[1]), "the bits depend on the number of threads: who writes where?"


try_it(my_parallel_axpy, check_parallel)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
@numba.njit(parallel=True, fastmath=FASTMATH)
def parallel_axpy(values, indices, x, out):
    # Every iteration owns the row of out that it writes, and sums it in the same order whoever runs it.
    for i in numba.prange(values.shape[0]):
        y = out[i]
        y[:] = 0
        for k in range(values.shape[1]):
            w, row = values[i, k], x[indices[i, k]]
            for b in range(x.shape[1]):
                y[b] += w * row[b]
    return out


verify(parallel_axpy, check_parallel)

# %% [markdown]
# ## Where to go on
#
# - [Lesson 6](06_output_norm_variance.ipynb): what constant fan-in does to the output of a layer at
#   initialisation.
# - [Lesson 7](07_train_and_compare.ipynb): whole training runs on these kernels.
# - In the package: `reference.py` (the definition), `cpu.py`, `gather.py`, `simd.py`, `plan.py` and `conv.py` in
#   `sparsekit/kernels`; `sparsekit/condensed.py` for the format.
# - SRigL: arXiv 2305.02299; the timings of its authors are in the repository calgaryml/condensed-sparsity,
#   and beside ours in `results/timings`. The roofline: S. Williams, A. Waterman, D. Patterson, "Roofline: an
#   insightful visual performance model for multicore architectures", Communications of the ACM 52(4), 2009.
