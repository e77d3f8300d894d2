# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Why make a network sparse?
#
# Train a network, throw away most of its weights, and it still works. So why did we store, multiply and train
# all of them? These lessons are about networks that never do. They are sparse from the first step to the
# last, and while they learn they find out which weights to have. This first lesson gives you the words, the
# pictures and the arithmetic.
#
# **You will learn**
#
# - what a mask, sparsity, density and fan-in are,
# - two ways of placing weights, unstructured and with constant fan-in, and how they are stored,
# - how a budget of weights is shared between layers: uniform, Erdos-Renyi and ERK,
# - what is saved, in multiply-adds and in bytes, and from which sparsity on,
# - how to tell a network that is stored sparse from one that is only masked.
#
# **You need** NumPy and a rough idea of how a neural network is trained. It takes about 20 minutes. You can
# read it as it is, or run the cells and change them. The first one only imports what the others use.

# %% tags=["hide-input"]
import csv
import math
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from classroom import (
    COLOURS,
    animate,
    bipartite_graph,
    explore,
    load_images,
    mask_heat_map,
    matrix,
    method_colour,
    start,
    try_it,
    unless_fast,
    verify,
)

import sparsekit
from sparsekit import CondensedMatrix, CSRMatrix, DenseMatrix, counting, distributions, masks
from sparsekit.kernels.threads import thread_limit
from sparsekit.models import mlp, resnet18, weight_layers
from sparsekit.topology import RigL, SRigL, Static

start()

# %% [markdown]
# ## Most weights of a trained network can go
#
# We begin with an ordinary *dense* network: every neuron of a layer is connected to every one of the layer
# before. It has two hidden layers of 512 neurons and sorts small pictures into ten classes. One function
# trains every network of this lesson, so that they all take about the same number of steps. (Its `topology`
# is for later. It says whether and how connections change.)

# %%
data = load_images()
n_steps = unless_fast(1900, 400)  # 400 when the notebook is only tested


def train(model, dataset, topology=None):
    """Train for about n_steps steps of 128 samples; return the trained classifier."""
    epochs = round(n_steps / (len(dataset.x_train) // 128))
    trainer = sparsekit.Trainer(model, topology=topology, epochs=max(1, epochs), progress=False)
    with thread_limit(1):  # enough for networks this small
        trainer.fit(dataset)
    return trainer.classifier


def test_accuracy(classifier, dataset):
    with thread_limit(1):
        return classifier.evaluate(dataset.x_test, dataset.y_test)[1]


sizes = (data.n_features, 512, 512, 10)
dense_model = mlp(sizes, storage="dense", rng=0)
dense = train(dense_model, data)
dense_accuracy = test_accuracy(dense, data)
n_weights = sum(layer.matrix.nnz for layer in weight_layers(dense_model).values())  # nnz: stored weights
print(f"{n_weights:,} weights, test accuracy on {data.name}: {dense_accuracy:.1%}")

# %% [markdown]
# Now we set weights to zero, without any more training: in every layer the given share of them, once those of
# smallest magnitude (absolute value), once random ones.

# %%
trained = {name: layer.weight.values.copy() for name, layer in weight_layers(dense_model).items()}


def accuracy_without(share, score):
    """Test accuracy with this share of each layer's weights set to zero, those of the lowest score."""
    for name, layer in weight_layers(dense_model).items():
        scores = score(trained[name])
        layer.weight.values[...] = np.where(scores < np.quantile(scores, share), 0, trained[name])
    return test_accuracy(dense, data)


rng = np.random.default_rng(0)
shares = [0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]
smallest = [accuracy_without(share, np.abs) for share in shares]
at_random = [accuracy_without(share, lambda weight: rng.random(weight.shape)) for share in shares]
accuracy_without(0, np.abs)  # puts all weights back

for share in (0.6, 0.8, 0.9, 0.95):
    print(f"without the smallest {share:.0%} of the weights: {smallest[shares.index(share)]:.1%}")

# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(5.5, 2.6))
axes.plot(shares, smallest, "o-", color=COLOURS["blue"], label="the smallest weights set to zero")
axes.plot(shares, at_random, "o-", color=COLOURS["grey"], label="random weights set to zero")
axes.set(xlabel="share of the weights set to zero", ylabel="test accuracy", ylim=(0, 1))
axes.set_title("A trained network loses weights")
axes.legend(loc="lower left")
plt.show()

# %% [markdown]
# The blue line stays almost flat for a long way, and random weights are missed much earlier. So the small ones
# do little. Setting them to zero is called *pruning*. With some training after it, it goes further still (Han
# et al., [arXiv 1506.02626](https://arxiv.org/abs/1506.02626)).
#
# But pruning begins with a dense network. Training costs the memory and time of a dense one, and only the
# prediction becomes cheaper. *Sparse training* has few weights from the start. But which ones? Nobody knows
# before the training. There are two answers:
#
# - **static**: choose them at random, and stay with them;
# - **dynamic**: begin at random, and every hundred steps or so drop some weights that do little and grow
#   others elsewhere. SET ([arXiv 1707.04780](https://arxiv.org/abs/1707.04780)), RigL
#   ([arXiv 1911.11134](https://arxiv.org/abs/1911.11134)) and SRigL
#   ([arXiv 2305.02299](https://arxiv.org/abs/2305.02299)) are three rules for this. Later lessons take them
#   apart. Here you only need to know that they exist.
#
# ## A mask says where weights are
#
# A linear layer of $n_{out}$ neurons with $n_{in}$ inputs computes $y = W x$. Row $i$ of $W$ holds the
# weights of neuron $i$. Its **mask** is an array of the same shape, true where a weight is stored. Such a
# position is *active*.

# %%
rng = np.random.default_rng(4)
mask = masks.random_per_layer((6, 10), 18, rng)
weight = np.where(mask, rng.integers(-20, 20, size=mask.shape) / 10, 0)

fig, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.2))
mask_heat_map(left, mask, "the mask")
matrix(right, weight, "the weights", mask=mask)
plt.show()

# %%
density = mask.sum() / mask.size
print(f"{mask.sum()} of {mask.size} positions are active: density {density:.0%}, sparsity {1 - density:.0%}")
print("fan-in of the neurons:", masks.fan_in(mask))

# %% [markdown]
# **Density** is the share of positions that are active, **sparsity** is the rest: density + sparsity = 1. The
# **fan-in** of a neuron is how many inputs it looks at, the sum of its row of the mask.
#
# Only the mask says where weights are. It is tempting to ask `weight != 0` instead, and wrong: a weight may be
# zero and be there all the same. One that has just been added usually begins at zero.

# %%
weight[mask] = [0, *weight[mask][1:]]  # the first stored weight happens to be zero
print(f"{mask.sum()} weights are stored, {np.count_nonzero(weight)} of them are not zero")
assert np.count_nonzero(weight) == mask.sum() - 1

# %% [markdown]
# ## Two ways of placing the same number of weights
#
# An **unstructured** mask may have its weights anywhere. A mask of **constant fan-in** gives every neuron the
# same number of inputs, and leaves free which. Below, both have 18 weights. In the lower pictures a line is a
# weight, and the lines of neuron 0 are red.

# %%
rng = np.random.default_rng(1)
small = {
    "unstructured": masks.random_per_layer((6, 10), 18, rng),
    "constant fan-in": masks.random_constant_fan_in((6, 10), 3, rng),
}
fig, axes = plt.subplots(2, 2, figsize=(6.6, 3.3), height_ratios=(1, 0.9))
for column, (kind, mask) in zip(axes.T, small.items(), strict=True):
    mask_heat_map(column[0], mask, f"{kind}: fan-in {', '.join(map(str, masks.fan_in(mask)))}")
    bipartite_graph(column[1], mask, highlight=[0])
plt.show()

assert masks.has_constant_fan_in(small["constant fan-in"])
assert small["unstructured"].sum() == small["constant fan-in"].sum() == 18

# %% [markdown]
# In layers of real size the difference shows as a histogram. The slider goes through sparsities. Left and
# middle: a corner of the two masks of a layer of 512 neurons with 784 inputs. Right: how many neurons have
# which fan-in. The blue line marks the fan-in that all neurons of the blue mask have. Watch how wide the red
# bars spread, compared to where the line is.


# %%
def both_masks(sparsity, shape=(512, 784)):
    rng = np.random.default_rng(0)
    k = distributions.initial_fan_in(shape, 1 - sparsity)
    return masks.random_per_layer(shape, k * shape[0], rng), masks.random_constant_fan_in(shape, k, rng)


# %% tags=["hide-input"]
def draw_masks(sparsity):
    """An unstructured mask, one of constant fan-in, and how many neurons have each fan-in."""
    unstructured, constant = both_masks(sparsity)
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(7.2, 2.2), width_ratios=(1, 1, 1.3))
    mask_heat_map(left, unstructured[:32, :64], "unstructured", colour="vermilion")
    mask_heat_map(middle, constant[:32, :64], "constant fan-in")
    fan_ins, k = masks.fan_in(unstructured), masks.fan_in(constant)[0]
    bins = np.arange(-0.5, fan_ins.max() + 1.5)
    counts, _, _ = right.hist(
        fan_ins, bins, color=COLOURS["vermilion"], label=f"{fan_ins.min()} to {fan_ins.max()}"
    )
    right.axvline(k, ymax=0.8, color=COLOURS["blue"], label=f"all {k}")
    right.set(
        title="fan-in of 512 neurons", xlabel="fan-in", ylabel="neurons", xlim=-1, ylim=(0, 1.3 * counts.max())
    )
    right.legend(loc="upper center", ncols=2)
    return fig


explore(draw_masks, sparsity=unless_fast([0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995], [0.9, 0.995]))

# %% [markdown]
# The emptier the layer, the more unequal are the neurons of the unstructured mask, relative to their mean.
# Near the end of the slider some have no input at all. A neuron without inputs is called *ablated*.
#
# Why would one want constant fan-in? Because the weights fit a rectangle. The class `CondensedMatrix` stores
# two of them, the values and the indices of the inputs, and a list of the neurons (`rows`), in which ablated
# ones are left out. A *slot* is a column of the rectangles.

# %%
mask = small["constant fan-in"]
weight = np.where(mask, np.random.default_rng(0).integers(-20, 20, size=mask.shape) / 10, 0)
condensed = CondensedMatrix.from_dense(weight, mask)

fig, axes = plt.subplots(1, 3, figsize=(7.5, 2.2), width_ratios=(10, 3.6, 3.6))
matrix(axes[0], weight, "W", mask=mask)
matrix(axes[1], condensed.values, "values")
matrix(axes[2], condensed.indices.astype(float), "indices", decimals=0)
axes[2].images[0].set_visible(False)  # the colours mean nothing for indices
for rectangle in axes[1:]:
    rectangle.set(xlabel="slot", ylabel="")
plt.show()
print("rows:", condensed.rows)
assert condensed.values.shape == condensed.indices.shape == (6, 3)
assert (condensed.to_dense() == weight).all()

# %% [markdown]
# The rows of an unstructured matrix have different lengths. **CSR** (compressed sparse rows), the classic
# storage, puts them one after the other, and needs a third thing to tell where a row begins and ends: neuron
# $i$ owns the values and indices `indptr[i]` to `indptr[i + 1]`, the last one excluded.

# %%
mask = small["unstructured"]
csr = CSRMatrix.from_mask(mask)
print("indices:", csr.indices)
print("indptr: ", csr.indptr)
assert (np.diff(csr.indptr) == masks.fan_in(mask)).all()

# %% [markdown]
# In the rectangle nothing has to be looked up about lengths, and all neurons take the same time. That makes
# for simple and regular loops.
#
# ## A budget, and how layers share it
#
# A whole network is to be 90 % sparse. How sparse is each of its layers? The simplest answer is **uniform**:
# all alike. But then a small layer that everything must pass through, such as the last one, keeps very few
# weights.
#
# **Erdos-Renyi** (ER, used by SET) gives the layer with $n_{in}$ inputs and $n_{out}$ neurons the density
#
# $$d = \varepsilon \, \frac{n_{in} + n_{out}}{n_{in} \, n_{out}},$$
#
# where one $\varepsilon$ for the whole network makes the weights add up to the budget. Multiply by
# $n_{in} n_{out}$ to see what it means: the layer gets $\varepsilon (n_{in} + n_{out})$ weights, in
# proportion to the sum of the two numbers and not to their product. **ERK** (the K is for kernel, used by
# RigL) does the same for a convolution with $n_{in}$ and $n_{out}$ channels and a kernel of $k_h \times k_w$:
# $d = \varepsilon \, (n_{in} + n_{out} + k_h + k_w) \, / \, (n_{in} n_{out} k_h k_w)$.
#
# A density cannot exceed 1. If the formula asks for more, the layer becomes dense, and what it could not hold
# is shared among the others by a larger $\varepsilon$. That may push another layer over 1, so it goes in
# rounds.


# %%
def erk_rounds(shapes, density):
    """The densities of the layers after each round of ERK; those of the last round are the answer."""
    sizes = np.array([math.prod(shape) for shape in shapes])
    raw = np.array([sum(shape) / math.prod(shape) for shape in shapes])  # the density over epsilon
    budget = (sizes - np.floor(sizes * (1 - density))).sum()
    full = np.zeros(len(shapes), dtype=bool)  # the layers that have become dense
    rounds = []
    while True:
        epsilon = (budget - sizes[full].sum()) / (raw * sizes)[~full].sum()
        rounds.append(np.where(full, 1.0, epsilon * raw))
        if rounds[-1].max() <= 1:
            return rounds
        full[np.argmax(np.where(full, 0, raw))] = True


# %% [markdown]
# The package's function is `sparsekit.distributions.erdos_renyi_kernel`. Do they agree? We try many random
# networks of linear and convolutional layers.

# %%
rng = np.random.default_rng(0)
for _ in range(unless_fast(500, 100)):
    shapes = [tuple(map(int, rng.integers(1, 60, size=rng.choice([2, 4])))) for _ in range(rng.integers(1, 9))]
    density = rng.uniform(0.01, 0.9)
    ours = erk_rounds(shapes, density)[-1]
    assert np.allclose(ours, distributions.erdos_renyi_kernel(shapes, density))
print("The same densities every time.")

# %% [markdown]
# Here are the rounds for ResNet-18, a widely used convolutional network, in its form for images of 32 x 32
# pixels and at 90 % sparsity. Red is what a layer is given beyond what it can hold. In every round the one
# that is furthest over becomes dense: light blue.

# %% tags=["hide-input"]
networks = {
    "MLP 784-512-512-10": [(512, 784), (512, 512), (10, 512)],
    "ResNet-18": [layer.weight_shape for layer in weight_layers(resnet18(storage="dense")).values()],
}


def density_bars(axes, densities):
    layers = np.arange(len(densities))
    axes.bar(layers, densities, color=COLOURS["vermilion"])
    colours = [COLOURS["sky" if density == 1 else "blue"] for density in densities]
    axes.bar(layers, np.minimum(densities, 1), color=colours)
    axes.set(yscale="log", xlabel="layer, in forward order", ylabel="density", xticks=layers)


def draw_round(number, rounds):
    fig, axes = plt.subplots(figsize=(6, 2.6))
    density_bars(axes, rounds[number])
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(ylim=(0.03, 40), title=f"ERK for ResNet-18 at 90 % sparsity, round {number + 1} of {len(rounds)}")
    return fig


rounds = erk_rounds(networks["ResNet-18"], 0.1)
animate(
    (draw_round(number, rounds) for number in range(len(rounds))),
    seconds=1.5,
    alt="Bars of 21 layer densities; round by round the tallest is cut off at 1 and the others grow a little.",
)

# %% [markdown]
# Layer 20 is the classifier, layer 0 sees the three colours, layers 7, 12 and 17 are 1 x 1 convolutions. They
# are small, and ERK wants them full or nearly so. The dark blue staircase is the 3 x 3 convolutions: the more
# channels, the emptier. The sliders show other sparsities, and an MLP (a network of linear layers like the one
# above). Compare the bars with the orange line, which is uniform sparsity: which layers are above it?


# %% tags=["hide-input"]
def draw_densities(network, sparsity):
    """The density of each layer by ERK, as bars beside the uniform one."""
    densities = distributions.erdos_renyi_kernel(networks[network], 1 - sparsity)
    fig, axes = plt.subplots(figsize=(5.6, 2.3))
    density_bars(axes, densities)
    axes.axhline(1 - sparsity, color=COLOURS["orange"])
    n_dense = sum(density == 1 for density in densities)
    title = f"{network}, {sparsity:.0%} sparse: {n_dense} of {len(densities)} layers dense (line: uniform)"
    axes.set(ylim=(0.001, 1.2), title=title)
    return fig


explore(
    draw_densities,
    network=list(networks)[::-1],
    sparsity=unless_fast([0.5, 0.7, 0.8, 0.9, 0.95, 0.99], [0.5, 0.9]),
)

# %% [markdown]
# A density becomes a whole number of weights, the layer's **budget**: density times size, rounded. Constant
# fan-in divides it by the number of neurons and drops the remainder. So at the same sparsity a network of
# constant fan-in has somewhat fewer weights than an unstructured one:

# %%
shapes = networks["MLP 784-512-512-10"]
for sparsity in (0.9, 0.98, 0.99):
    layers = list(zip(shapes, distributions.erdos_renyi(shapes, 1 - sparsity), strict=True))
    budgets = [distributions.budget(shape, density) for shape, density in layers]
    fan_ins = [distributions.initial_fan_in(shape, density) for shape, density in layers]
    stored = sum(k * n_out for k, (n_out, _) in zip(fan_ins, shapes, strict=True))
    print(f"{sparsity:.0%} sparse: budgets {budgets}, fan-ins {fan_ins}: ", end="")
    print(f"{1 - stored / sum(budgets):.1%} of the budget is not used")

# %% [markdown]
# The smaller the fan-ins, the more is lost by rounding down. Keep this in mind when you compare accuracies. A
# network of constant fan-in may be behind because of its structure, or just because it has fewer weights.
#
# ## What is saved: multiply-adds
#
# A stored weight costs one multiply-add each time it is used. A linear layer uses it once for every sample, a
# convolution once for every pixel of its output. So in a convolutional network it matters *which* layers are
# sparse.

# %%
flops = counting.inference_flops(resnet18(storage="dense"), (3, 32, 32), dense=True)
dense_flops = np.array(list(flops.values()))
sparsities = np.array([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99])
erk = [distributions.erdos_renyi_kernel(networks["ResNet-18"], 1 - sparsity) for sparsity in sparsities]
work = [float(np.sum(dense_flops * densities) / np.sum(dense_flops)) for densities in erk]

left_at_90 = work[list(sparsities).index(0.9)]
print(f"At 90 % sparsity ERK leaves {left_at_90:.0%} of the multiply-adds, uniform sparsity 10 %.")
assert left_at_90 > 0.1

# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(5.5, 2.6))
axes.plot(sparsities, work, "o-", color=COLOURS["blue"], label="ERK")
axes.plot(sparsities, 1 - sparsities, "o-", color=COLOURS["orange"], label="uniform")
axes.set(xlabel="sparsity of the network", ylabel="share of multiply-adds left", ylim=(0, 1))
axes.set_title("ResNet-18: what is left to compute")
axes.legend()
plt.show()

# %% [markdown]
# With uniform sparsity, 90 % sparse means 90 % less work. With ERK it does not: the layers with few channels
# stay the densest, and they are the ones with the most pixels. An MLP has no pixels to multiply by, so there
# both save the same.
#
# ## What is saved: bytes
#
# A stored weight of 4 bytes (float32) brings its index along, here 2 bytes, because a 16-bit number can count
# 65,536 inputs. CSR adds 8 bytes a neuron for `indptr`, condensed 4 for `rows`. The objects know their
# `nbytes`:


# %%
def bytes_of_storages(k, shape=(512, 784)):
    mask = masks.random_constant_fan_in(shape, k, np.random.default_rng(0))
    return {
        "dense": DenseMatrix(np.zeros(shape, dtype=np.float32)).nbytes,
        "CSR": CSRMatrix.from_mask(mask).nbytes,
        "condensed": CondensedMatrix.from_mask(mask).nbytes,
    }


# %% tags=["hide-input"]
fan_ins = np.array([8, 78, 235, 392, 549, 705, 784])
table = [bytes_of_storages(k) for k in fan_ins]
fig, axes = plt.subplots(figsize=(5.5, 2.6))
for name, colour, width in (("dense", "black", 1.5), ("CSR", "orange", 5), ("condensed", "blue", 2)):
    kilobytes = [row[name] / 1000 for row in table]
    axes.plot(1 - fan_ins / 784, kilobytes, linewidth=width, color=COLOURS[colour], label=name)
axes.set(xlabel="sparsity", ylabel="kilobytes", ylim=(0, None))
axes.set_title("A layer of 512 x 784 in three storages")
axes.legend()
plt.show()

# %%
most = max(k for k in range(784) if 6 * k + 4 < 4 * 784)  # bytes of a neuron: condensed and dense
assert bytes_of_storages(most)["condensed"] < bytes_of_storages(most)["dense"]
assert bytes_of_storages(most + 1)["condensed"] >= bytes_of_storages(most + 1)["dense"]
print(f"Condensed is smaller than dense up to a fan-in of {most} of 784: from {1 - most / 784:.1%} sparsity on.")
at_90 = bytes_of_storages(78)
print(f"At 90 % sparsity: condensed {at_90['condensed'] / at_90['dense']:.1%} of the dense bytes, not 10 %.")

# %% [markdown]
# So storing sparse pays from about a third sparsity on, and at 90 % it takes about 15 % of the bytes. Between
# CSR and condensed there is almost no difference in size. What the rectangle gains is its regularity. Could
# you force an unstructured mask into a rectangle too? Yes, if you fill up the shorter rows with zeros. That is
# what `counting.storage_bytes` counts as "condensed" for such a mask:

# %%
for sparsity in (0.9, 0.98, 0.995):
    unstructured, constant = (counting.storage_bytes(CSRMatrix.from_mask(mask)) for mask in both_masks(sparsity))
    padded = unstructured["condensed"] / constant["condensed"]
    print(f"{sparsity:.1%} sparse: an unstructured mask in a rectangle takes {padded:.2f} times the bytes")

# %% [markdown]
# The widest neuron sets the width for all.
#
# ## Is it really faster, or only masked?
#
# Users ask this again and again (issue 3 of google-research/rigl on GitHub, for one). There are two ways of
# having a sparse layer:
#
# - **masked**: a dense array, multiplied by a mask of zeros and ones. Every product is a dense product. The
#   published code of RigL and of SRigL's authors *simulates* sparsity in this way (google-research/rigl and
#   calgaryml/condensed-sparsity on GitHub). It tells you the accuracy that a sparse network would have;
# - **stored sparse**: only the active weights exist, and the product visits only them.
#
# Both give the same numbers, up to rounding:

# %%
rng = np.random.default_rng(0)
_, mask = both_masks(0.9)
weight = rng.normal(size=mask.shape).astype(np.float32)
x = rng.normal(size=(784, 64)).astype(np.float32)

masked = (weight * mask) @ x
stored = CondensedMatrix.from_dense(np.where(mask, weight, 0), mask)
assert np.allclose(masked, stored @ x, rtol=1e-4, atol=1e-4)

n_out, n_in = mask.shape
print(f"masked:        {n_out * n_in * 64:>10,} multiply-adds, {weight.nbytes + mask.nbytes:>9,} bytes")
print(f"stored sparse: {stored.nnz * 64:>10,} multiply-adds, {stored.nbytes:>9,} bytes")
assert stored.nnz * 64 < 0.1 * n_out * n_in * 64

# %% [markdown]
# A tenth of the multiply-adds is a promise, not a time. A dense product reads memory in order and keeps every
# part of the processor busy; a sparse one must read an index before it knows which input it wants. Look at
# what the authors of SRigL published of their own kernels (a layer with 3072 inputs and 768 neurons at 90 %
# sparsity, on 4 threads of their CPU):

# %% tags=["hide-input"]
with open("../analysis/published/cpu.csv", newline="") as file:
    published = [row for row in csv.DictReader(file) if row["sparsity"] == "90" and row["threads"] == "4"]
published.sort(key=lambda row: int(row["batch"]))
batches = [int(row["batch"]) for row in published]

fig, axes = plt.subplots(figsize=(5.5, 2.6))
for name, colour in (("CSR", "orange"), ("condensed", "blue")):
    times = [float(row[f"{name.lower()}_us"]) / float(row["dense_us"]) for row in published]
    axes.plot(batches, times, "o-", color=COLOURS[colour], label=name)
axes.axhline(1, color="black", linewidth=0.8, label="dense")
axes.axhline(0.1, color="black", linewidth=0.8, linestyle=":", label="a tenth")
axes.set(xscale="log", yscale="log", xlabel="samples in the batch", ylabel="time over that of dense")
axes.set_xticks(batches, batches)
axes.set_yticks([0.1, 0.3, 1, 3], ["0.1", "0.3", "1", "3"])
axes.set_title("Published times of a 90 % sparse layer")
axes.legend(loc=(0.7, 0.12))
plt.show()

# %% [markdown]
# No point is near the dotted line, the tenth that the multiply-adds promise. For large batches a sparse
# product is *slower* than the dense one that it should replace. [Lesson 5](05_condensed_format.ipynb) is about
# how the loops must look to do better, and measures them. Until then, do not take fewer multiply-adds for less
# time.
#
# ## A taste of what is to come
#
# Enough counted, now we train. The networks below have 98 % of their weights missing, or are dense and so
# narrow that they have about as many weights as the sparse ones. That is the comparison that counts: what do
# you get for a number of weights? "Static" and "SRigL" have constant fan-in here, "RigL" is unstructured.


# %%
def narrow_width(n_features, n_weights):
    """The largest h such that n_features-h-h-10 has no more than n_weights weights."""
    return max(h for h in range(1, 512) if n_features * h + h * h + 10 * h <= n_weights)


def contest(dataset):
    """Train each network; return its stored weights, accuracy and bytes by name."""
    wide = (dataset.n_features, 512, 512, 10)
    h = narrow_width(dataset.n_features, 0.02 * sum(a * b for a, b in pairwise(wide)))
    entries = {
        "narrow dense": (mlp((dataset.n_features, h, h, 10), storage="dense", rng=0), None),
        "static": (mlp(wide, storage="condensed", sparsity=0.98, rng=0), Static()),
        "RigL": (mlp(wide, storage="csr", sparsity=0.98, rng=0), RigL()),
        "SRigL": (mlp(wide, storage="condensed", sparsity=0.98, rng=0), SRigL()),
    }
    results = {}
    for name, (model, topology) in entries.items():
        classifier = train(model, dataset, topology)
        results[name] = report(name, classifier, dataset)
    return results


def report(name, classifier, dataset):
    accuracy = test_accuracy(classifier, dataset)
    layers = counting.layer_summary(classifier.model)
    n_stored, n_bytes = sum(row["nnz"] for row in layers), counting.weight_bytes(classifier.model)["total"]
    widths = "-".join(str(row["shape"][0]) for row in layers)
    print(f"{name:13} {widths:11} {n_stored:8,} weights {n_bytes / 1000:8,.0f} kB  accuracy {accuracy:.1%}")
    return {"weights": n_stored, "accuracy": accuracy, "bytes": n_bytes}


print(data.name)
results = contest(data)
results["wide dense"] = report("wide dense", dense, data)

# %% tags=["hide-input"]
fig, axes = plt.subplots(figsize=(6, 2.6))
for name, row in results.items():
    axes.plot(
        100 * row["accuracy"],
        f"{name}\n{row['weights']:,}",
        "o",
        markersize=9,
        color=method_colour(name.split()[-1].lower()),
    )
axes.set(xlabel="test accuracy, %", ylabel="network and its weights")
axes.set_title(f"What {data.name} gets for its weights")
axes.margins(x=0.1, y=0.12)
plt.show()

# %%
rigl, narrow, wide = (100 * results[name]["accuracy"] for name in ("RigL", "narrow dense", "wide dense"))
times = results["wide dense"]["weights"] / results["RigL"]["weights"]
print(f"RigL minus the dense network with about as many weights: {rigl - narrow:+.1f} points.")
print(f"RigL minus the dense network with {times:.0f} times as many: {rigl - wide:+.1f} points.")
less = 1 - results["SRigL"]["bytes"] / results["wide dense"]["bytes"]
print(f"Training SRigL holds {less:.0%} fewer bytes for its weights than training the wide dense network.")

# %% [markdown]
# The bytes are all that training holds for the weights: values, indices, gradients, and what the optimizer
# remembers (`counting.weight_bytes`). For one weight that is more in a sparse network than in a dense one. Each
# line is one run with one seed, so do not read anything into tenths of points.
#
# Nor is the result a law. The handwritten digits of scikit-learn have only 8 x 8 pixels. The same contest with
# them (you have just seen it if Fashion-MNIST was not at hand):

# %%
digits = sparsekit.load_dataset("digits")
print(digits.name)
easy = contest(digits)
best = max(("static", "RigL", "SRigL"), key=lambda name: easy[name]["accuracy"])
ahead = easy["narrow dense"]["accuracy"] - easy[best]["accuracy"]
print(f"The narrow dense network minus the best sparse one, {best}: {100 * ahead:+.1f} points.")

# %% [markdown]
# A wide sparse network has many neurons that see little each, a narrow dense one has few that see everything.
# Which is better depends on the task. Before you make a network sparse, try a smaller one.
#
# ## Exercises
#
# **1. The paper's layer.** The timings of the SRigL paper are for a layer with 3072 inputs and 768 neurons.
# At 90 % sparsity, what is its fan-in, and how many bytes does it take condensed, in float32 and with 2-byte
# indices?

# %%
answer = None  # (fan_in, n_bytes)


def check_layer(answer):
    fan_in, n_bytes = answer
    assert fan_in == distributions.initial_fan_in((768, 3072), 0.1), "fan-in: a tenth of the inputs, rounded down"
    mask = masks.random_constant_fan_in((768, 3072), fan_in, np.random.default_rng(0))
    assert n_bytes == CondensedMatrix.from_mask(mask).nbytes, "6 bytes a weight, and a 4-byte row number a neuron"


try_it(answer, check_layer)

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
verify((307, 768 * 307 * 6 + 768 * 4), check_layer)

# %% [markdown]
# **2. A random mask of constant fan-in.** Write it yourself. Every set of `k` inputs must be equally likely
# for every neuron. (`rng.choice` can draw without repeats. Can you do it without a loop over the neurons?)


# %%
def random_mask(n_out, n_in, k, rng):
    """Return a bool array (n_out, n_in) in which every row has k True."""
    ...


def check_mask(random_mask):
    mask = random_mask(2000, 6, 2, np.random.default_rng(0))
    assert (mask.shape, mask.dtype) == ((2000, 6), bool), "return a bool array of shape (n_out, n_in)"
    assert (masks.fan_in(mask) == 2).all(), "some neuron has not k inputs"
    kinds, counts = np.unique(mask, axis=0, return_counts=True)
    assert len(kinds) == 15, "there are 15 pairs of 6 inputs; some never occur"
    assert 90 < counts.min() <= counts.max() < 180, "some pairs of inputs are more likely than others"


try_it(random_mask, check_mask)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def random_mask_solution(n_out, n_in, k, rng):
    ranks = rng.random((n_out, n_in)).argsort(axis=1).argsort(axis=1)  # a random permutation in every row
    return ranks < k


verify(random_mask_solution, check_mask)

# %% [markdown]
# **3. How much freedom does constant fan-in take away?** There are $\binom{n_{out} n_{in}}{n_{out} k}$
# unstructured masks with $n_{out} k$ weights, and $\binom{n_{in}}{k}^{n_{out}}$ of constant fan-in. Return
# the logarithms to base 2 of both: the bits that it takes to write such a mask down. Then look at a layer of
# 512 x 784 with fan-in 78.


# %%
def mask_bits(n_out, n_in, k):
    """Return (bits of an unstructured mask, bits of a mask of constant fan-in)."""
    ...


def check_bits(mask_bits):
    assert np.allclose(mask_bits(2, 3, 1), (math.log2(15), math.log2(9))), (
        "2 neurons, 3 inputs, fan-in 1: the base-2 logarithms of 15 and 9"
    )
    unstructured, constant = mask_bits(512, 784, 78)
    assert 0.98 < constant / unstructured < 1, "for the large layer the two differ by about a per cent"


try_it(mask_bits, check_bits)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def mask_bits_solution(n_out, n_in, k):
    return math.log2(math.comb(n_out * n_in, n_out * k)), n_out * math.log2(math.comb(n_in, k))


verify(mask_bits_solution, check_bits)
unstructured, constant = mask_bits_solution(512, 784, 78)
print(f"unstructured {unstructured:,.0f} bits, constant fan-in {constant:,.0f} bits")
print(f"The constraint takes {1 - constant / unstructured:.2%} of them: each neuron still chooses its own inputs.")

# %% [markdown]
# **4. A bitmap.** Instead of indices one could store the mask itself, one bit for each position, active or
# not, and the values beside it. For float32 and 2-byte indices, from which sparsity on is condensed storage
# smaller than that? (Leave the 4 bytes a neuron for `rows` out of it.)

# %%
answer = None  # a sparsity between 0 and 1


def check_bitmap(sparsity):
    assert 0 <= sparsity <= 1, "a number between 0 and 1, not in per cent"
    density = 1 - sparsity
    bitmap, condensed = 4 * density + 1 / 8, 6 * density  # bytes a position
    assert bitmap >= condensed - 1e-9, "at this sparsity the bitmap is still smaller"
    assert bitmap <= condensed + 1e-9, "condensed storage is smaller before that, too"


try_it(answer, check_bitmap)

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
verify(1 - 1 / 16, check_bitmap)
print("At 90 % sparsity the bitmap is smaller. But to find the k-th weight of a row you would have to count bits.")

# %% [markdown]
# **5. A distribution of your own.** ERK is a rule of thumb. Here is another one: all neurons of the network
# get the same fan-in $k$, or all of their inputs if they have fewer. Return the densities of the layers such
# that the network keeps its budget. (The number of weights grows with $k$, so you can search for it. $k$ need
# not be whole.) Then think about which layers it favours compared to ERK.


# %%
def same_fan_in(shapes, density):
    """Return the density of every layer; shapes are (n_out, n_in) or (n_out, n_in, height, width)."""
    ...


def check_distribution(same_fan_in):
    for name, shapes in networks.items():
        sizes = np.array([math.prod(shape) for shape in shapes])
        inputs = np.array([math.prod(shape[1:]) for shape in shapes])
        for density in (0.5, 0.1, 0.01):
            densities = np.array(same_fan_in(shapes, density))
            assert ((densities > 0) & (densities <= 1)).all(), "densities lie between 0 and 1"
            assert abs((densities * sizes).sum() / sizes.sum() - density) < 1e-3, f"{name}: the budget is not kept"
            fan_ins = (densities * inputs)[densities < 1]
            assert np.allclose(fan_ins, fan_ins[0]), f"{name}: two sparse layers have different fan-ins"


try_it(same_fan_in, check_distribution)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def same_fan_in_solution(shapes, density):
    sizes = np.array([math.prod(shape) for shape in shapes])
    inputs = np.array([math.prod(shape[1:]) for shape in shapes])
    low, high = 0.0, float(inputs.max())
    for _ in range(60):  # bisection
        k = (low + high) / 2
        if (np.minimum(k / inputs, 1) * sizes).sum() < density * sizes.sum():
            low = k
        else:
            high = k
    return list(np.minimum(high / inputs, 1))


verify(same_fan_in_solution, check_distribution)

# %% [markdown]
# ## Where to go on
#
# - [Lesson 2](02_backward_by_hand.ipynb): the gradients of a sparse layer, by hand.
# - [Lesson 3](03_rigl.ipynb): RigL, which moves the weights while they are trained.
# - [Lesson 4](04_srigl.ipynb): SRigL, which does so with constant fan-in.
# - In the package: `sparsekit/masks.py` and `sparsekit/distributions.py` (all of this lesson's masks and
#   budgets), `sparsekit/condensed.py` and `sparsekit/csr.py` (the storages), `sparsekit/counting.py`.
# - Papers: Han et al., *Learning both Weights and Connections*
#   ([arXiv 1506.02626](https://arxiv.org/abs/1506.02626)); Mocanu et al., SET, where Erdos-Renyi comes from
#   ([arXiv 1707.04780](https://arxiv.org/abs/1707.04780)); Evci et al., *Rigging the Lottery*, RigL and ERK
#   ([arXiv 1911.11134](https://arxiv.org/abs/1911.11134)); Lasby et al., SRigL
#   ([arXiv 2305.02299](https://arxiv.org/abs/2305.02299)).
