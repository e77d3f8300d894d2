# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6. How much does a layer's output vary?
#
# Before the first training step every weight is a throw of dice, and so is the mask of a sparse layer. SRigL
# gives every neuron the same number of inputs because computers like rectangles. The paper ([arXiv
# 2305.02299](https://arxiv.org/abs/2305.02299)) adds a second reason: of three ways to place the same number
# of weights at random, constant fan-in makes the size of the layer's output vary least. You will work out
# with a pen when that is true, count it out case by case for tiny layers, and simulate it for large ones.
# Then you will look at what it does not say.
#
# **You will learn**
#
# - what the variance of the output norm is, and why one wants it small,
# - how to derive it for three kinds of random masks from one small table,
# - how to check a formula twice: exactly, in fractions, and by simulation with error bars,
# - where the claim ends, and what it does not explain.
#
# **You need** [lesson 4](04_srigl.ipynb) for what constant fan-in and ablation are; expectation, variance and
# independence of random variables; the normal distribution. About 20 minutes.

# %%
from fractions import Fraction
from itertools import combinations, product

import matplotlib.pyplot as plt
import numpy as np
from classroom import COLOURS, explore, mask_heat_map, matrix, start, try_it, unless_fast, verify
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from scipy import stats

import sparsekit
from sparsekit.masks import random_bernoulli, random_constant_fan_in, random_per_layer

start()

# The folder `analysis` stands beside `notebooks`; `start` has told Python so.
from analysis import theory
from analysis.chance import judge
from analysis.monte_carlo import simulate_depth, simulate_layer
from analysis.theory_depth import depth_variances
from analysis.theory_fixed_mask import fixed_mask_variance
from analysis.variance import simulate
from analysis.variance_points import simulated_points

KINDS = {
    "bernoulli": "Bernoulli",
    "per_layer": "constant per layer",
    "constant_fan_in": "constant fan-in",
}
COLOUR_NAMES = {"bernoulli": "blue", "per_layer": "vermilion", "constant_fan_in": "green"}
COLOUR = {kind: COLOURS[name] for kind, name in COLOUR_NAMES.items()}

# %% [markdown]
# ## The question
#
# A layer turns an input into an output $z$. If $|z|^2$, the *output norm* of this lesson, comes out far
# larger or smaller than it should, the next layer starts from a signal that is too loud or too faint. He's
# initialisation ([arXiv 1502.01852](https://arxiv.org/abs/1502.01852)) scales the weights so that $|z|^2$ is
# right *on average*. But a network is initialised once, and gets one throw of the dice. How far a single
# throw lands from the mean is measured by the variance. For deep ReLU networks Hanin and Rolnick ([arXiv
# 1803.01719](https://arxiv.org/abs/1803.01719)) show that both matter: where the variance of the lengths
# grows too fast with depth, training does not start.
#
# So: what is $\mathrm{Var}\,|z|^2$ for a sparse layer, and does it depend on how the weights are placed?
#
# ## The model
#
# The layer has $n$ inputs and $m$ neurons, and neuron $i$ computes
#
# $$z_i \;=\; \sqrt{\frac{1}{p\,k}}\;\sum_{j=1}^{n} I_{ij}\,W_{ij}\,\xi_j\,u_j .$$
#
# | symbol | what it is | how it is drawn |
# | --- | --- | --- |
# | $u$ | direction of the input, $\lvert u\rvert = 1$ | uniform on the unit sphere of $\mathbb{R}^n$ |
# | $\xi_j$ | gate: did the ReLU in front let input $j$ through? | 1 with probability $p$, else 0 |
# | $W_{ij}$ | weight, before scaling | standard normal |
# | $I_{ij}$ | mask: 1 where a weight is stored, else 0 | in one of three ways, see below |
# | $k$ | fan-in: inputs of a neuron, on average where it varies | given |
# | $\sqrt{1/(pk)}$ | scale of the weights | He's choice; with $p = 1/2$ it is $\sqrt{2/k}$ |
#
# All of them are independent of each other, and the gates are the same for all neurons. The paper has $p =
# 1/2$ and square layers, $m = n$. The general case is no harder, and shows more.
#
# The three kinds of mask, all with $k$ inputs a neuron on average:
#
# - **Bernoulli**: every position is active with probability $k/n$, independently of all others.
# - **Constant per layer**: exactly $mk$ positions of the whole layer, all choices equally likely.
# - **Constant fan-in**: every neuron has exactly $k$ inputs, all choices equally likely.

# %%
rng, size, fan_in = np.random.default_rng(0), 12, 3
examples = {
    "bernoulli": random_bernoulli((size, size), fan_in / size, rng),
    "per_layer": random_per_layer((size, size), fan_in * size, rng),
    "constant_fan_in": random_constant_fan_in((size, size), fan_in, rng),
}
figure, axes = plt.subplots(1, 3, figsize=(7.6, 2.5))
for axis, (kind, mask) in zip(axes, examples.items(), strict=True):
    counts = mask.sum(axis=1)
    spread = " to ".join(str(count) for count in sorted({counts.min(), counts.max()}))
    text = f"{KINDS[kind]}: {mask.sum()} weights,\nfan-in {spread}"
    mask_heat_map(axis, mask, text, colour=COLOUR_NAMES[kind])
    axis.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# From left to right less is left to chance.
#
# ## See it first
#
# The definition is short enough to simulate as it stands. To draw thousands of masks at once, the next cell
# stacks their rows. And a mask with exactly $mk$ weights in the whole layer is drawn like a single neuron
# with $mn$ inputs and fan-in $mk$.


# %%
def draw_masks(kind, samples, m, n, k, rng):
    """Random masks of one kind, (samples, m, n)."""
    if kind == "bernoulli":
        masks = random_bernoulli((samples * m, n), k / n, rng)
    elif kind == "per_layer":
        masks = random_constant_fan_in((samples, m * n), m * k, rng)
    else:
        masks = random_constant_fan_in((samples * m, n), k, rng)
    return masks.reshape(samples, m, n)


def output_norms(masks, k, p, rng):
    """|z|^2 for each mask, with new weights, gates and input: the definition, line by line."""
    samples, m, n = masks.shape
    u = rng.standard_normal((samples, n))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    gates = rng.random((samples, n)) < p
    weights = rng.standard_normal((samples, m, n))
    z = np.sqrt(1 / (p * k)) * np.einsum("sij,sj->si", masks * weights, gates * u)
    return (z**2).sum(axis=1)


def variance_with_error(norms):
    """Variance, and its standard error: it is a mean too, that of the squared deviations."""
    squares = (norms - norms.mean()) ** 2
    return squares.mean(), squares.std() / np.sqrt(len(norms))


# %%
rng, samples = np.random.default_rng(2), unless_fast(20_000, 3_000)
norms = {}
for kind in KINDS:
    norms[kind] = output_norms(draw_masks(kind, samples, 16, 16, 2, rng), 2, 0.5, rng)

figure, axes = plt.subplots(figsize=(5, 2.5))
for kind, values in norms.items():
    look = {"histtype": "step", "density": True, "color": COLOUR[kind], "label": KINDS[kind]}
    axes.hist(values, np.linspace(0, 5, 41), linewidth=1.4, **look)
axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
axes.set(title="16 inputs, 16 neurons, fan-in 2", xlabel="$|z|^2$", ylabel="density")
axes.legend()
plt.show()

# %% [markdown]
# The three histograms all but coincide. All have their mean at 1 (dotted) and a long tail to the right. If
# one of the masks is better, it is not by much. Numbers with their standard errors, from this little
# simulation and from the package's (`analysis/monte_carlo.py`, with random numbers of its own):

# %%
for kind, values in norms.items():
    variance, error = variance_with_error(values)
    package = simulate_layer(kind, 16, 16, 2, samples=10 * samples, seed=0)
    print(
        f"{KINDS[kind]:18}  mean {values.mean():.3f}   variance {variance:.3f} ± {error:.3f}"
        f"   package: {package.variance:.3f} ± {package.variance_error:.3f}"
    )
    assert abs(variance - package.variance) < 5 * np.hypot(error, package.variance_error)

# %% [markdown]
# The two simulations agree. The differences between the masks are some per cent of the variance, of the same
# order as the errors of the small simulation. To be certain we need a formula.
#
# ## Derive it
#
# As $\mathrm{Var}\,|z|^2 = \mathrm{E}|z|^4 - (\mathrm{E}|z|^2)^2$, two expectations are wanted.
#
# **Step 1: the weights bring threes and ones.** Hold mask, gates and $u$ fixed; only the weights are random.
# Then $z_i$ is a sum of independent normal variables, so it is normal itself, with mean 0 and variance $s^2
# v_i$, where $s^2 = 1/(pk)$ and
#
# $$v_i \;=\; \sum_j I_{ij}\,\xi_j\,u_j^2 .$$
#
# Different neurons have different weights, so the $z_i$ are independent. A normal variable of variance
# $\sigma^2$ has $\mathrm{E}z^2 = \sigma^2$ and $\mathrm{E}z^4 = 3\sigma^4$. Hence
#
# $$\mathrm{E}\,|z|^2 = s^2\sum_i v_i, \qquad \mathrm{E}\,|z|^4 =
# \sum_{i,l}\mathrm{E}\,z_i^2 z_l^2 = s^4\sum_{i,l} c_{il}\,v_i v_l, \qquad
# c_{il} = \begin{cases}3 & i = l\\ 1 & i \ne l\end{cases}$$
#
# **Step 2: so does the sphere.** Let $g$ be a vector of $n$ standard normal numbers. Its direction $u =
# g/|g|$ is uniform on the sphere and independent of its length. So $\mathrm{E}\,g_j^2 g_h^2 =
# \mathrm{E}|g|^4\;\mathrm{E}\,u_j^2u_h^2$. The left side is 3 if $j = h$ and 1 if not. Summed over all $j$
# and $h$ it is $\mathrm{E}|g|^4 = 3n + n(n-1) = n(n+2)$. Therefore
#
# $$\mathrm{E}\,u_j^2 = \frac1n, \qquad \mathrm{E}\,u_j^2u_h^2 = \frac{c_{jh}}{n(n+2)}
# \quad\text{with the same threes and ones.}$$
#
# Both kinds of threes and ones, measured for five neurons and five inputs:

# %%
rng, draws = np.random.default_rng(3), unless_fast(400_000, 50_000)
mask = random_constant_fan_in((5, 5), 4, rng)
x = np.array([1, 1, 0, 1, 1]) * np.array([5, 3, 1, 4, 2]) / 55**0.5  # gates times a unit vector
z = np.einsum("sij,j->si", rng.standard_normal((draws, 5, 5)) * mask, x)
v = mask @ x**2
g = rng.standard_normal((draws, 5))
u = g / np.linalg.norm(g, axis=1, keepdims=True)

figure, axes = plt.subplots(1, 2, figsize=(5.6, 2.2))
products = (z**2).T @ z**2 / draws
matrix(axes[0], products / np.outer(v, v), "weights: mean of $z_i^2 z_l^2\\,/\\,(v_i v_l)$")
axes[0].set(xlabel="neuron $l$", ylabel="neuron $i$")
matrix(axes[1], 5 * 7 * (u**2).T @ u**2 / draws, "sphere: mean of $n(n+2)\\,u_j^2 u_h^2$")
axes[1].set(xlabel="coordinate $h$", ylabel="coordinate $j$")
plt.show()

# %% [markdown]
# **Step 3: only pairs of positions are left.** Write the two sums in $v_i v_l$ out:
#
# $$\mathrm{E}\,|z|^4 \;=\; \frac{s^4}{n(n+2)}\;\sum_{(i,j)}\;\sum_{(l,h)}\;
# \underbrace{c_{il}}_{\text{weights}}\;\underbrace{c_{jh}}_{\text{sphere}}\;
# \underbrace{\mathrm{E}\,\xi_j\xi_h}_{\text{gates}}\;\underbrace{\mathrm{E}\,I_{ij}I_{lh}}_{\text{mask}} .$$
#
# The sum runs over all pairs of positions of the layer. The gates give $p$ if the two positions are in the
# same column, because $\xi_j^2 = \xi_j$, and $p^2$ if not. The mask gives the probability that both positions
# are active. There are only four kinds of pairs; here are all pairs of a small layer.

# %% tags=["hide-input"]
m, n = 3, 4
row, column = np.divmod(np.arange(m * n), n)
same_row, same_column = row[:, None] == row, column[:, None] == column
kind_of_pair = 2 * ~same_row + ~same_column
labels = ["same position", "same row", "same column", "neither"]
figure, axes = plt.subplots(figsize=(5, 3))
shades = [COLOURS[name] for name in ("black", "green", "orange", "pale")]
axes.imshow(kind_of_pair, cmap=ListedColormap(shades))
names = [f"{i},{j}" for i, j in zip(row, column, strict=True)]
axes.set_xticks(range(m * n), names, fontsize=7)
axes.set_yticks(range(m * n), names, fontsize=7)
axes.set(xlabel="position $l,h$", ylabel="position $i,j$")
axes.set_title("All pairs of positions, 3 neurons and 4 inputs")
axes.grid(False)
counts = [f"{label}: {(kind_of_pair == number).sum()}" for number, label in enumerate(labels)]
axes.legend([Patch(facecolor=c, edgecolor="0.6") for c in shades], counts, loc=(1.05, 0.35))
plt.show()
expected = [m * n, m * n * (n - 1), m * (m - 1) * n, m * (m - 1) * n * (n - 1)]
assert [(kind_of_pair == number).sum() for number in range(4)] == expected

# %% [markdown]
# | pair | how many | weights | sphere | gates | mask |
# | --- | --- | --- | --- | --- | --- |
# | same position | $mn$ | 3 | 3 | $p$ | $k/n$ |
# | same row (neuron), other column | $mn(n-1)$ | 3 | 1 | $p^2$ | $a$ |
# | same column (input), other row | $m(m-1)n$ | 1 | 3 | $p$ | $b$ |
# | neither | $m(m-1)n(n-1)$ | 1 | 1 | $p^2$ | $b$ |
#
# Here $a$ is the probability that two given positions of one row are both active, and $b$ the same for two
# positions of different rows. (For our three kinds of mask it does not matter for $b$ whether they share a
# column.) **The masks can differ in $a$ and $b$ only**: everything else in the table is the same for all.
#
# **Step 4: the two probabilities.** With Bernoulli masks positions are independent: $a = b = k^2/n^2$. With
# exactly $mk$ weights on $mn$ positions, the second position must be one of the $mk-1$ weights left, on one
# of the $mn-1$ positions left: $a = b = \frac{k}{n}\cdot\frac{mk-1}{mn-1}$. With constant fan-in the same
# holds within a row, $a = \frac kn\cdot\frac{k-1}{n-1}$, while different rows are independent, $b =
# k^2/n^2$. Compared with $k^2/n^2$ (subtract, and simplify), with $\delta = k(n-k)/n^2$:
#
# | mask | $a$ | $b$ |
# | --- | --- | --- |
# | Bernoulli | $k^2/n^2$ | $k^2/n^2$ |
# | constant per layer | $k^2/n^2 - \delta/(mn-1)$ | $k^2/n^2 - \delta/(mn-1)$ |
# | constant fan-in | $k^2/n^2 - \delta/(n-1)$ | $k^2/n^2$ |
#
# So constant fan-in lowers $a$: two inputs of one neuron get in each other's way. A constant number per layer
# lowers both, but each by less. You need not believe that. A small layer has few masks, so list them all.


# %%
def all_masks(kind, m, n, k):
    """Every mask of a kind as an array (masks, m, n), and the probability of each as an exact fraction."""
    positions = list(product(range(m), range(n)))
    if kind == "bernoulli":
        choices = [chosen for size in range(m * n + 1) for chosen in combinations(positions, size)]
        active = Fraction(k) / n
        chances = [active ** len(chosen) * (1 - active) ** (m * n - len(chosen)) for chosen in choices]
    elif kind == "per_layer":
        choices = list(combinations(positions, int(m * k)))
        chances = [Fraction(1, len(choices))] * len(choices)
    else:
        rows = list(combinations(range(n), k))
        choices = [[(i, j) for i in range(m) for j in chosen[i]] for chosen in product(rows, repeat=m)]
        chances = [Fraction(1, len(choices))] * len(choices)
    masks = np.zeros((len(choices), m, n), dtype=int)
    for mask, chosen in zip(masks, choices, strict=True):
        for position in chosen:
            mask[position] = 1
    return masks, chances


# %%
both_active = {}  # with the position in the corner: an array of fractions for each kind
for kind in KINDS:
    masks, chances = all_masks(kind, 3, 4, 2)
    cases = zip(masks.astype(object), chances, strict=True)
    both_active[kind] = sum((mask[0, 0] * mask) * chance for mask, chance in cases)
    a, b = theory.pair_probabilities(theory.SparseLayer(kind, n_in=4, n_out=3, fan_in=Fraction(2)))
    assert set(both_active[kind][0, 1:]) == {a}
    assert set(both_active[kind][1:].ravel()) == {b}
    print(f"{KINDS[kind]:18} {len(masks):5,} masks   a = {a!s:4}   b = {b!s:4}")

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 3, figsize=(7.2, 2))
for axis, (kind, both) in zip(axes, both_active.items(), strict=True):
    axis.imshow(both.astype(float), cmap="Blues", vmin=0.05, vmax=0.9, aspect="auto")
    for (i, j), probability in np.ndenumerate(both):
        axis.text(j, i, probability, ha="center", va="center")
    axis.set(title=KINDS[kind], xticks=[], yticks=[], xlabel="input")
    axis.grid(False)
axes[0].set_ylabel("neuron")
figure.suptitle("Probability that this position and the one in the corner are both active (fan-in 2)")
plt.show()

# %% [markdown]
# In the corner stands $k/n$, in the rest of the first row $a$, below it $b$. The assertions compare every
# fraction with the package's `pair_probabilities`.
#
# **Step 5: add up the table.** The same way, but simpler, $\mathrm{E}|z|^2 = s^2\cdot mn\cdot\frac kn\cdot
# p\cdot\frac1n = \frac mn$, for every mask. With $s^4 = 1/(pk)^2$ the four rows of the table of step 3 sum
# to
#
# $$\mathrm{Var}\,|z|^2 = \frac{m}{n(n+2)}\left[\frac{9}{pk} + \frac{3n(n-1)\,a}{k^2} +
# (m-1)\Big(\frac{3n}{p} + n(n-1)\Big)\frac{b}{k^2}\right] - \frac{m^2}{n^2}.$$
#
# In code it is the table itself. Fractions have no rounding:


# %%
def variance_from_pairs(m, n, k, p, same_row, same_column, neither):
    """Var |z|^2 from the probabilities that both positions of a pair are active, by the kind of pair."""
    pairs = (
        m * n * 9 * p * Fraction(k) / n
        + m * n * (n - 1) * 3 * p**2 * same_row
        + m * (m - 1) * n * 3 * p * same_column
        + m * (m - 1) * n * (n - 1) * p**2 * neither
    )
    return pairs / (p * k) ** 2 / (n * (n + 2)) - Fraction(m, n) ** 2


def variance_formula(kind, m, n, k, p):
    """Var |z|^2 for a kind of mask."""
    a, b = theory.pair_probabilities(theory.SparseLayer(kind, n, m, Fraction(k)))
    return variance_from_pairs(m, n, k, p, a, b, b)


half = Fraction(1, 2)
for kind in KINDS:
    value = variance_formula(kind, 16, 16, 2, half)
    package = theory.output_norm_variance(kind, n_in=16, n_out=16, fan_in=2)
    print(f"{KINDS[kind]:18}  16 inputs, 16 neurons, fan-in 2:  {value!s:>6} = {float(value):.5f}")
    assert np.isclose(float(value), package, rtol=1e-12)

# %% [markdown]
# These are the numbers that the simulations above estimate. For $m = n$ and $p = 1/2$, Bernoulli masks have
# the paper's $(5n - 8 + 18n/k)\,/\,(n(n+2))$.
#
# **Step 6: compare.** Only what lowers $a$ and $b$ is left of a difference. Constant fan-in lowers $a$ by
# $\delta/(n-1)$, and $a$ stands in the bracket with the factor $3n(n-1)/k^2$. So
#
# $$\mathrm{Var}_{\text{Bernoulli}} - \mathrm{Var}_{\text{fan-in}} =
# \frac{m}{n(n+2)}\cdot\frac{3n\,\delta}{k^2} = \frac{3\,m\,(n-k)}{n^2(n+2)\,k} \;\ge\; 0.$$
#
# Constant per layer lowers $a$ and $b$ by $\delta/(mn-1)$, so it never varies more than Bernoulli either.
# Its distance to constant fan-in is
#
# $$\mathrm{Var}_{\text{per layer}} - \mathrm{Var}_{\text{fan-in}} = \frac{m\,\delta}{n(n+2)\,k^2}
# \left[3n - \frac{3n(n-1) + (m-1)\big(3n/p + n(n-1)\big)}{mn-1}\right].$$
#
# Over the common denominator $mn-1$, the bracket has the numerator $3n(mn-1) - 3n(n-1) = 3n^2(m-1)$ minus
# $(m-1)(3n/p + n(n-1))$, which is $n(m-1)(2n+1-3/p)$. Hence
#
# $$\mathrm{Var}_{\text{per layer}} - \mathrm{Var}_{\text{fan-in}} =
# \frac{m(m-1)(n-k)}{n^2(n+2)\,k\,(mn-1)}\;\Big(2n+1-\frac3p\Big).$$
#
# The first difference is never negative. The second has the sign of $p(2n+1) - 3$, which for $p = 1/2$ is
# positive from three inputs on. So the paper is right for every ReLU layer that one would care to make
# sparse. The cell checks the table of step 4 and both differences for dozens of shapes, in fractions.

# %%
for m, n, k, p in product((2, 3, 7), (2, 4, 9), (1, 2), (Fraction(1, 5), half, Fraction(1))):
    bernoulli, per_layer, constant = (variance_formula(kind, m, n, k, p) for kind in KINDS)
    sparse_layers = [theory.SparseLayer(kind, n, m, Fraction(k)) for kind in KINDS]
    pairs = [theory.pair_probabilities(layer) for layer in sparse_layers]
    free, delta = Fraction(k, n) ** 2, Fraction(k * (n - k), n**2)
    fewer = free - delta / (m * n - 1)
    assert pairs == [(free, free), (fewer, fewer), (free - delta / (n - 1), free)]
    assert bernoulli - constant == Fraction(3 * m * (n - k), n**2 * (n + 2) * k)
    factor = Fraction(m * (m - 1) * (n - k), n**2 * (n + 2) * k * (m * n - 1))
    assert per_layer - constant == factor * (2 * n + 1 - 3 / p)
    assert bernoulli >= per_layer
assert variance_formula("bernoulli", 40, 40, 2, half) == Fraction(5 * 40 - 8 + 18 * 20, 40 * 42)
print("The table of step 4 and both differences hold, exactly.")

# %% [markdown]
# ## Turn the knob
#
# Move the slider from one input for each neuron to all 16: on the left simulated norms, on the right the
# three formulas, with dots where you are.


# %% tags=["hide-input"]
def norms_at(fan_in):
    """Histograms of |z|^2 for the three masks, and the variance by the formulas."""
    rng, samples = np.random.default_rng(4), unless_fast(4000, 500)
    figure, (left, right) = plt.subplots(1, 2, figsize=(5.6, 2.3))
    every = np.arange(1, 17)
    for kind in KINDS:
        values = output_norms(draw_masks(kind, samples, 16, 16, fan_in, rng), fan_in, 0.5, rng)
        left.hist(values, np.linspace(0, 4, 33), histtype="step", density=True, color=COLOUR[kind])
        curve = [theory.output_norm_variance(kind, 16, 16, k) for k in every]
        right.plot(every, curve, color=COLOUR[kind], label=KINDS[kind])
        right.plot(fan_in, curve[fan_in - 1], "o", color=COLOUR[kind])
    left.set(title=f"fan-in {fan_in} of 16", xlabel="$|z|^2$", ylabel="density", ylim=(0, 1.5))
    right.set(
        yscale="log",
        xlabel="fan-in $k$",
        xticks=(1, 4, 8, 12, 16),
        title="Var $|z|^2$",
        yticks=(0.3, 0.5, 1),
        yticklabels=("0.3", "0.5", "1"),
    )
    right.yaxis.set_minor_locator(plt.NullLocator())
    right.legend()
    return figure


explore(norms_at, fan_in=[1, 2, 3, 4, 5, 6, 8, 10, 12, 16])

# %% [markdown]
# With a small fan-in norms spread widely, and many are near 0: the layer is almost silent. The fan-in matters
# far more than the kind of mask. The three meet at $k = n$, where there is only one mask.
#
# ## Count every case
#
# The derivation can hide a slip. So forget steps 3 to 6 and compute $\mathrm{E}|z|^2$ and $\mathrm{E}|z|^4$
# of tiny layers the long way: go through every mask and every set of open gates, each with its probability.
# Only the threes and ones of the first two steps are used.


# %%
def exact_moments(masks, chances, k, p):
    """Mean and variance of |z|^2 over all the masks and all sets of open gates."""
    m, n = masks.shape[1:]
    weights, sphere = np.where(np.eye(m), 3, 1), np.where(np.eye(n), 3, 1)  # c_il and c_jh
    mean = square = Fraction(0)
    for gates in product((0, 1), repeat=n):
        gate_chance = p ** sum(gates) * (1 - p) ** (n - sum(gates))
        read = masks * np.array(gates)  # which neuron gets to see which input
        fourth = np.einsum("sij,slh,il,jh->s", read, read, weights, sphere, optimize=True).astype(int)
        for mask_chance, inputs, pairs in zip(chances, read.sum(axis=(1, 2)), fourth, strict=True):
            mean += gate_chance * mask_chance * int(inputs)
            square += gate_chance * mask_chance * int(pairs)
    mean, square = mean / (p * k * n), square / ((p * k) ** 2 * n * (n + 2))
    return mean, square - mean**2


fifth, three_tenths = Fraction(1, 5), Fraction(3, 10)
layers = [(2, 2, 1, half), (2, 3, 1, half), (2, 3, 2, fifth), (3, 3, 2, half)]
layers += [(2, 4, 2, three_tenths)]
for m, n, k, p in layers:
    print(f"{n} inputs, {m} neurons, fan-in {k}, p = {p}")
    counted = {}
    for kind in KINDS:
        masks, chances = all_masks(kind, m, n, k)
        mean, counted[kind] = exact_moments(masks, chances, k, p)
        assert mean == Fraction(m, n)
        assert counted[kind] == variance_formula(kind, m, n, k, p)
        exact = f"{counted[kind]!s:>7} = {float(counted[kind]):.12f}"
        package = theory.output_norm_variance(kind, n, m, k, float(p))
        assert np.isclose(package, float(counted[kind]), rtol=1e-12)
        print(f"   {KINDS[kind]:18} {len(masks):5} masks   {exact}   package {package:.12f}")
    wins = counted["constant_fan_in"] < counted["per_layer"]
    assert wins == theory.fan_in_beats_per_layer(n, float(p))

# %% [markdown]
# Counting and formula agree as fractions, and the package's floating-point numbers agree with both to
# rounding. Compare the masks: in the first, the third and the last layer constant fan-in is *not* the
# smallest. We return to that below.
#
# ## Roll the dice
#
# Layers of real size have too many masks to count, so the package samples them. Here are layers like those
# that the authors plot: 40 to 100 neurons, at 80, 90 and 95 % sparsity.

# %%
points = [point for point in simulated_points(full=False) if point.row["experiment"] == "size"]
rows = simulate(points, samples=unless_fast(30_000, 1_500), seed=5, progress=False)
print(f"{len(rows)} layers, {rows[0]['samples']:,} samples each")

# %% tags=["hide-input"]
sizes = np.arange(40, 101)
MARKERS = {"bernoulli": "o", "per_layer": "s", "constant_fan_in": "^"}


def theory_curve(kind, sparsity):
    """The formula for 40 to 100 neurons; the fan-in need not be whole between the points."""
    return np.array([theory.output_norm_variance(kind, n, n, (1 - sparsity) * n) for n in sizes])


def errorbars(axis, kind, sparsity, divide_by, shift=0, label=None):
    """The simulated points of one curve with their 95 % intervals."""
    mine = [row for row in rows if row["mask_type"] == kind and row["sparsity"] == sparsity]
    n, value, error = np.transpose([(row["n_in"], row["variance"], row["variance_error"]) for row in mine])
    unit = np.interp(n, sizes, divide_by)
    look = {"color": COLOUR[kind], "fmt": MARKERS[kind], "markersize": 3.5, "label": label}
    axis.errorbar(n + shift, value / unit, 1.96 * error / unit, **look)


# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 2.6))
for sparsity, kind in product((0.8, 0.9, 0.95), KINDS):
    left.plot(sizes, theory_curve(kind, sparsity), color=COLOUR[kind])
    errorbars(left, kind, sparsity, np.ones(61), label=KINDS[kind] if sparsity == 0.8 else None)
for sparsity in (0.8, 0.9, 0.95):
    left.text(102, theory_curve("per_layer", sparsity)[-1], f"{sparsity:.0%}", fontsize=7, va="center")
for shift, kind in zip((-1, 0, 1), KINDS, strict=True):
    bernoulli = theory_curve("bernoulli", 0.95)
    right.plot(sizes, theory_curve(kind, 0.95) / bernoulli, color=COLOUR[kind])
    errorbars(right, kind, 0.95, bernoulli, shift)
left.set(title="Theory (lines), simulation with 95 % intervals", yscale="log", xlim=(38, 109), ylim=(0.045, 0.4))
left.set(xlabel="neurons and inputs $n$", ylabel="Var $|z|^2$")
left.set_yticks((0.05, 0.1, 0.2, 0.3), ("0.05", "0.1", "0.2", "0.3"))
left.yaxis.set_minor_locator(plt.NullLocator())
left.legend()
right.set(title="95 % sparse, as a share of Bernoulli's variance", xlabel="neurons and inputs $n$")
plt.show()

# %% [markdown]
# On the left the variance itself, with the sparsity at the right end of each bundle of lines. On the right
# the same at 95 %, enlarged: each mask as a share of Bernoulli's variance. There the lines approach each
# other as layers grow, because at a fixed sparsity the fan-in grows with them.

# %%
# Two values read off the curves on the authors' poster, to four digits.
assert abs(theory.output_norm_variance("constant_fan_in", 40, 40, 2) - 0.2946) < 6e-5
assert abs(theory.output_norm_variance("per_layer", 40, 40, 4) - 0.2151) < 6e-5
for n in (40, 64, 1000):
    lead = theory.bernoulli_minus_constant_fan_in(n, n, n / 20) / theory.output_norm_variance(
        "bernoulli", n, n, n / 20
    )
    print(f"95 % sparse, n = {n:4}: constant fan-in varies {lead:.1%} less than Bernoulli masks")

# %% [markdown]
# ### How many intervals may miss?
#
# Do theory and simulation agree? Not every interval has to contain the truth: a right 95 % interval misses
# once in twenty times, and the number of misses among many points is binomial. More misses than chance
# allows would be suspicious, or a single one that is far too far away.

# %%
z_scores = np.array([row["variance_z"] for row in rows])
verdict = judge(list(z_scores))
print(f"expected outside by chance: {0.05 * len(rows):.1f}")
print(verdict)
assert verdict.agrees

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.2), width_ratios=(1.5, 1))
left.axhspan(-1.96, 1.96, color=COLOURS["pale"])
left.scatter(range(len(z_scores)), z_scores, s=18, color=[COLOUR[row["mask_type"]] for row in rows])
left.set(xlabel="point", ylabel="standard errors off", ylim=(-5, 5), title="Simulation minus theory; shaded: 95 %")
misses = np.arange(9)
chances = stats.binom.pmf(misses, len(rows), 0.05)
colours = [COLOURS["black" if count == verdict.outside else "grey"] for count in misses]
right.bar(misses, chances, color=colours)
right.set(xlabel="points outside", ylabel="probability", title="Outside by chance; black: seen")
plt.show()

# %% [markdown]
# On the left every point of the figure above, in the colour of its mask. What "chance allows" in the printed
# line is set so that a right theory fails once in ten thousand such comparisons (`analysis/chance.py`).
#
# ### Beware of heavy tails
#
# A variance is a mean of squared deviations, and here a few rare samples carry a large part of it. Take a
# hard case, 8 inputs with one weight a neuron on average, and repeat small experiments many times.

# %%
rng, total = np.random.default_rng(6), unless_fast(800_000, 80_000)
truth = theory.output_norm_variance("bernoulli", 8, 8, 1)
parts = [draw_masks("bernoulli", 20_000, 8, 8, 1, rng) for _ in range(total // 20_000)]
norms = np.concatenate([output_norms(masks, 1, 0.5, rng) for masks in parts])
squares = np.sort((norms - norms.mean()) ** 2)
share = squares[-total // 100 :].sum() / squares.sum()
print(f"The largest 1 % of the samples make up {share:.0%} of the variance.")
for size in (100, 400, 1600):
    found, errors = np.transpose([variance_with_error(values) for values in norms.reshape(-1, size)])
    hit = np.abs(found - truth) < 1.96 * errors
    print(
        f"simulations of {size:4} samples: {(found < truth).mean():.0%} find too little,"
        f" {hit.mean():.0%} of the 95 % intervals contain the truth"
    )

# %% tags=["hide-input"]
found, errors = np.transpose([variance_with_error(values) for values in norms.reshape(-1, 100)])
figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.4))
left.hist(found, np.linspace(0, 6, 49), color=COLOURS["grey"])
left.axvline(truth, color="black", linestyle="--", linewidth=1, label="truth")
left.set(title=f"{len(found):,} simulations of 100 samples", xlabel="variance found", ylabel="simulations")
left.legend()
right.scatter(found[:400], errors[:400], s=5, color=COLOURS["blue"])
right.axvline(truth, color="black", linestyle="--", linewidth=1)
right.set(title="400 of them, and how sure they are", xlabel="variance found", ylabel="its standard error")
right.set(xlim=(0, 6), ylim=(0, 3))
plt.show()

# %% [markdown]
# Most of the small simulations find too little, because they miss the rare large samples (left). And the same
# ones report the smallest errors (right), so their intervals contain the truth less often than they say. The
# remedy is more samples, until no single one matters. The package takes tens of thousands a point, and finds
# its errors by leaving out blocks of samples (the jackknife).
#
# ## Question it
#
# ### Where constant fan-in does not win
#
# Constant per layer has the smaller variance where $p(2n+1) < 3$: few inputs, seldom open.

# %% tags=["hide-input"]
line = np.linspace(1.5, 12.5, 100)
border = 3 / (2 * line + 1)
figure, axes = plt.subplots(figsize=(5, 2.4))
axes.fill_between(line, border, 1.02, color="#76C8B2")  # the colours of constant fan-in
axes.fill_between(line, 0, border, color="#E8A778")  # and of constant per layer, washed out
axes.grid(False)
axes.plot(line, border, color="black")
axes.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
for _, n, _, p in layers:
    axes.plot(n, float(p), "*", color="black", markersize=9)
axes.text(6.4, 0.65, "constant fan-in varies least")
axes.text(1.7, 0.06, "constant per layer varies least")
axes.set(xlabel="inputs $n$", ylabel="gate probability $p$", ylim=(0, 1.02), xlim=(1.5, 12.5))
axes.set_xticks(range(2, 13))
axes.set_title("The border is $p(2n+1) = 3$; dotted: ReLU; stars: the layers counted above")
plt.show()

# %% [markdown]
# The tables of steps 3 and 4 tell why. Constant per layer lowers $b$ a little, and with it the row "same
# column", which weighs $3p$ against $p^2$ in the row "neither". If gates are seldom open, the norm varies
# mostly because many neurons read the same open input, and it helps that an input with one reader is a little
# less likely to have a second. For ReLU this takes two inputs (with one there is nothing to choose).
#
# ### Does it explain ablation?
#
# SRigL ablates neurons and gives their weights to the others. Does that make the output vary less? Fewer
# neurons have a smaller norm anyway, so compare the variance with the squared mean, $\mathrm{CV}^2 =
# \mathrm{Var}|z|^2/(\mathrm{E}|z|^2)^2$. Take 384 weights on 64 neurons with 64 inputs, and then on fewer
# and fewer neurons.

# %%
ablated = np.arange(0, 57)
fan_ins = [theory.fan_in_after_ablation(64, 64, 6, int(a)) for a in ablated]
figure, axes = plt.subplots(figsize=(5, 2.2))
for kind in KINDS:
    pairs = zip(ablated, fan_ins, strict=True)
    curve = [theory.relative_variance(kind, 64, 64, k, 0.5, int(a)) for a, k in pairs]
    axes.plot(ablated / 64, curve, color=COLOUR[kind], label=KINDS[kind])
    assert np.all(np.diff(curve) > 0)
axes.set(xlabel="share of the neurons ablated", ylabel="Var $|z|^2$ / (E $|z|^2)^2$", ylim=(0, None))
axes.set_title(f"384 weights: fan-in 6 on the left, {fan_ins[-1]:.0f} on the right")
axes.legend()
plt.show()
assert all(theory.ablation_raises_relative_variance(kind, n) for kind in KINDS for n in range(5, 1000))

# %% [markdown]
# Ablation *raises* the relative variance, with all three masks. Divide the formula of step 5 by $m^2/n^2$ and
# put $k = K/m$, where $K$ is the number of weights: the price of a small fan-in, $9/(pk)$, becomes
# $9n/((n+2)\,p\,K)$. Each neuron gains from its larger fan-in, there are fewer of them to average over, and
# the two cancel. What is left of $\mathrm{CV}^2$ grows as neurons are lost, in every ReLU layer from five
# inputs on (corollary 2 in `analysis/theory.py`; the last line tries it). So if ablation helps training, as
# the paper reports, this theory is not the reason.
#
# ### Depth
#
# Put ReLU layers of 64 neurons with fan-in 8 behind each other: the signs of $z$ are fair coins, so ReLU is a
# gate with $p = 1/2$, and the sum over pairs becomes a recursion from layer to layer
# (`analysis/theory_depth.py`).

# %%
depths, width, k = np.arange(1, 9), 64, 8
curves = {kind: depth_variances(kind, [width] * 9, [k] * 8) for kind in KINDS}
dense = depth_variances("constant_fan_in", [width] * 9, [width] * 8)
for name, variances in {"dense": dense, **curves}.items():
    steps = np.diff(np.log1p(variances), prepend=0)
    grows = ", ".join(f"{step:.3f}" for step in steps)
    print(f"{KINDS.get(name, name):18} log(1 + Var) grows by {grows}")
assert np.allclose(np.log1p(dense), depths * np.log1p(5 / width))
lead = 1 - np.divide(curves["constant_fan_in"], curves["bernoulli"])
print(f"constant fan-in varies {lead[0]:.0%} less than Bernoulli after one layer,", end=" ")
print(f"{lead[-1]:.0%} less after eight")

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(5, 2.6))
for shift, (kind, curve) in zip((-0.1, 0, 0.1), curves.items(), strict=True):
    axes.plot(depths, curve, color=COLOUR[kind])
    for depth in (1, 2, 4):
        network = kind, [width] * (depth + 1), [k] * depth
        point = simulate_depth(*network, samples=unless_fast(20_000, 1_000), seed=[7, depth])
        look = {"color": COLOUR[kind], "fmt": MARKERS[kind], "label": KINDS[kind] if depth == 1 else None}
        axes.errorbar(depth + shift, point.variance, 1.96 * point.variance_error, **look)
axes.plot(depths, dense, color="black", label="dense")
axes.set(
    yscale="log", xlabel="layers", ylabel="Var $|z|^2$", title="Lines: theory; points: simulated with real ReLUs"
)
axes.set_yticks((0.1, 0.3, 1), ("0.1", "0.3", "1"))
axes.yaxis.set_minor_locator(plt.NullLocator())
axes.legend()
plt.show()

# %% [markdown]
# In a dense network each layer multiplies $1 + \mathrm{Var}$ by exactly $1 + 5/n$. While the variances are
# small they add up, $5/n$ a layer: the sum of the reciprocals of the widths, which is what Hanin and Rolnick
# found to decide. Sparse layers pay more, and at first each pays more than the one before: a sparse layer
# leaves some outputs larger than others, and the next one reads only a few of them. Constant fan-in pays
# least in every layer, so its lead grows with depth. The distance to the dense network is far larger than
# that between masks.
#
# ### Masks that have been trained
#
# So far masks were random. For one given mask, with every neuron scaled by its own fan-in $k_i$ as sparsekit
# initialises layers, the sum over pairs can be done as well (`analysis/theory_fixed_mask.py`):
#
# $$\mathrm{Var}\,|z|^2 = \frac{m^2 + 2m + (3/p - 1)\big(2\sum_i 1/k_i + \sum_j r_j^2\big)}{n(n+2)} -
# \frac{m^2}{n^2}, \qquad r_j = \sum_{i \text{ reads } j} \frac1{k_i}.$$
#
# Only two things of a mask matter: how small the fan-ins are, and how unevenly the neurons listen to the
# inputs, measured by the $r_j$. Check it against a simulation of one mask, and against our formula, which
# must be the mean over all masks of constant fan-in.

# %%
rng, samples = np.random.default_rng(8), unless_fast(40_000, 5_000)
mask = random_per_layer((10, 12), 40, rng)
assert mask.any(axis=1).all()
copies = np.broadcast_to(mask, (samples, 10, 12))
found = output_norms(copies, mask.sum(axis=1), 0.5, rng)  # each neuron with its own fan-in
variance, error = variance_with_error(found)
print(f"one mask: formula {fixed_mask_variance(mask):.3f}, simulated {variance:.3f} ± {error:.3f}")
assert abs(variance - fixed_mask_variance(mask)) < 5 * error

masks, _ = all_masks("constant_fan_in", 3, 4, 2)
mean = np.mean([fixed_mask_variance(mask.astype(bool)) for mask in masks])
print(f"mean over all {len(masks)} masks of 3 neurons and 4 inputs, fan-in 2: {mean:.12f}")
assert np.isclose(mean, float(variance_formula("constant_fan_in", 3, 4, 2, half)), rtol=1e-12)

# %% [markdown]
# Now train a small network with SRigL on the digits, and compare its masks with random ones of the same
# fan-in.

# %%
digits = sparsekit.load_dataset("digits")
model = sparsekit.models.mlp((64, 128, 128, 10), storage="condensed", sparsity=0.9, rng=0)
fc1, fc2, _ = sparsekit.models.weight_layers(model).values()
before = fc1.matrix.mask(), fc2.matrix.mask()
srigl = sparsekit.topology.SRigL(gamma_sal=0.3)
settings = {"epochs": unless_fast(20, 5), "batch_size": 32, "delta_t": 20, "progress": False}
trainer = sparsekit.Trainer(model, topology=srigl, **settings)
trainer.fit(digits)
after = fc1.matrix.mask(), fc2.matrix.mask()
accuracy = trainer.classifier.evaluate(digits.x_test, digits.y_test)[1]
print(f"test accuracy {accuracy:.1%} with {1 - sparsekit.counting.sparsity(model):.1%} of the weights")

# %% tags=["hide-input"]
rng = np.random.default_rng(9)
figure, axes = plt.subplots(1, 3, figsize=(7.8, 2.3), width_ratios=(1.2, 1.2, 1))
for axis, name, first, last in zip(axes, ("fc1", "fc2"), before, after, strict=False):
    last = last[last.any(axis=1)]  # without ablated neurons, if there are any
    (m, n), k = last.shape, int(last[0].sum())
    random = np.array([fixed_mask_variance(random_constant_fan_in((m, n), k, rng)) for _ in range(500)])
    middle, trained = random.mean(), fixed_mask_variance(last)
    axis.hist(random / middle, 20, color=COLOURS["grey"], label="500 random masks")
    axis.axvline(fixed_mask_variance(first) / middle, color="black", linestyle=":", label="before training")
    axis.axvline(trained / middle, color=COLOURS["blue"], label="after training")
    axis.set(title=f"{name}: {m} neurons, fan-in {k} of {n}", yticks=[], xlabel="Var $|z|^2$ over random mean")
    print(f"{name}: {trained / middle - 1:+.0%}, larger than {(trained > random).sum()} of 500 random masks")
axes[1].legend(loc="upper center", fontsize=7)
listened = (after[0] / after[0].sum(axis=1, keepdims=True).clip(1)).sum(axis=0)
picture = axes[2].imshow(listened.reshape(8, 8), cmap="Blues", vmin=0)
axes[2].set(title="fc1: $r_j$ of the 64 pixels", xticks=[], yticks=[])
axes[2].grid(False)
figure.colorbar(picture, ax=axes[2], shrink=0.8)
plt.show()
by_spread = np.argsort(digits.x_train.reshape(-1, 64).std(axis=0))
quiet, lively = listened[by_spread[:16]].mean(), listened[by_spread[-16:]].mean()
print(f"mean r_j of the 16 pixels that vary least: {quiet:.1f}; of the 16 that vary most: {lively:.1f}")

# %% [markdown]
# The mask before training is a random one (dotted). The trained masks are not: their variance is larger, and
# as the fan-in is the same, all of the difference is in the $r_j$, shown on the right. The pixels that hardly
# vary from image to image are listened to less. The theory calls that worse, and training did it all the
# same. What is good for the first step need not be good for the last.
#
# That was one network and one seed. And mind what was computed: the norm for *fresh* weights and a random
# input on a trained mask. Pixels are no such inputs, and trained weights are no longer dice.
#
# ## Exercises
#
# **1. A dense layer.** Set $k = n$, $m = n$ and $p = 1/2$ in the formula of step 5. All masks are one mask
# then. What is left is short.


# %%
def dense_variance(n):
    """Var |z|^2 of a dense layer with n inputs, n neurons and p = 1/2."""
    ...


def check(answer):
    for n in (1, 2, 10, 64):
        expected = float(variance_formula("bernoulli", n, n, n, half))
        assert np.isclose(float(answer(n)), expected), (
            f"for n = {n} it is {expected:.4f}; put a = b = 1 and add up"
        )


try_it(dense_variance, check)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def dense_variance_solution(n):
    """The bracket of step 5 is 18/n + 3(n-1)/n + (n-1)(6 + n-1)/n; times 1/(n+2) and minus 1, that is 5/n."""
    return 5 / n


verify(dense_variance_solution, check)

# %% [markdown]
# **2. How many inputs?** Features that are mostly zero open far fewer gates than ReLU does. Write a function
# that returns the smallest number of inputs from which on constant fan-in varies less than constant per
# layer.


# %%
def inputs_needed(p):
    """Smallest n with p(2n + 1) > 3."""
    ...


def check(answer):
    for p in (0.05, 0.1, 0.3, 0.45, 0.5, 0.9):
        n = int(answer(p))
        assert theory.fan_in_beats_per_layer(n, p), f"for p = {p}, {n} inputs are not enough"
        assert n == 1 or not theory.fan_in_beats_per_layer(n - 1, p), f"for p = {p}, fewer inputs than {n} will do"


try_it(inputs_needed, check)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def inputs_needed_solution(p):
    """Count up: a closed form has to be careful where 3/p is odd."""
    n = 1
    while p * (2 * n + 1) <= 3:
        n += 1
    return n


verify(inputs_needed_solution, check)

# %% [markdown]
# **3. Constant fan-out.** Turn the idea around: every *input* is read by exactly $c$ neurons, all choices
# equally likely, and inputs choose independently. The mean fan-in is then $k = nc/m$. Find the probabilities
# of the three kinds of pairs and let `variance_from_pairs` do the rest. Here it does matter whether two
# positions in different rows share a column. The check counts all cases. When it passes, compare with
# constant fan-in in a square layer with $p = 1/2$: which of the two varies less?


# %%
def fan_out_pairs(m, n, c):
    """Probability that both positions are active: in the same row, in the same column, in neither; fractions."""
    ...


def check(answer):
    for m, n, c, p in ((2, 2, 1, half), (3, 2, 2, half), (3, 3, 1, fifth), (3, 3, 2, half)):
        turned, chances = all_masks("constant_fan_in", n, m, c)  # rows and columns change places
        k = Fraction(n * c, m)
        expected = exact_moments(turned.transpose(0, 2, 1), chances, k, p)[1]
        found = variance_from_pairs(m, n, k, p, *answer(m, n, c))
        assert np.isclose(float(found), float(expected)), (
            f"m = {m}, n = {n}, c = {c}: counting all cases gives {expected}, yours gives {found}; "
            "in this order: same row, same column, neither"
        )


try_it(fan_out_pairs, check)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def fan_out_pairs_solution(m, n, c):
    """Columns are independent; in a column the second position is one of c - 1 left among m - 1."""
    apart = Fraction(c, m) ** 2
    return apart, Fraction(c * (c - 1), m * (m - 1)), apart


verify(fan_out_pairs_solution, check)
for p in (fifth, half, Fraction(1)):
    fan_out = variance_from_pairs(64, 64, 8, p, *fan_out_pairs_solution(64, 64, 8))
    bernoulli, _, fan_in = (variance_formula(kind, 64, 64, 8, p) for kind in KINDS)
    saved = (bernoulli - fan_out) / (bernoulli - fan_in)
    print(
        f"64 x 64, 8 weights each, p = {p!s:>3}: constant fan-out saves {saved} times what constant fan-in saves"
    )
    assert saved == 1 / p

# %% [markdown]
# **4. Each neuron its own scale.** The model gives all neurons the same scale, that of the mean fan-in $k$.
# sparsekit, like the formula for a given mask, scales each neuron by its own. Take 64 inputs, 64 neurons and
# 384 weights. Does the lead of constant fan-in over constant per layer grow or shrink with that? Guess first.
# Then average `fixed_mask_variance` over random masks.

# %%
answer = None  # "grows" or "shrinks"


def own_scale_lead(rng, masks=400):
    """How much less constant fan-in varies than constant per layer, each neuron with a scale of its own."""
    draws = [random_per_layer((64, 64), 384, rng) for _ in range(masks)]
    variances, means = [fixed_mask_variance(mask) for mask in draws], [mask.any(axis=1).mean() for mask in draws]
    per_layer = (np.mean(variances) + np.var(means)) / np.mean(means) ** 2  # a neuron without inputs is silent
    return 1 - theory.relative_variance("constant_fan_in", 64, 64, 6) / per_layer


def check(answer):
    assert answer in ("grows", "shrinks"), 'answer "grows" or "shrinks"'
    variances = [theory.output_norm_variance(kind, 64, 64, 6) for kind in KINDS]
    grows = own_scale_lead(np.random.default_rng(10)) > 1 - variances[2] / variances[1]
    assert grows == (answer == "grows"), "the simulation says otherwise; which fan-ins make 1/k large?"


try_it(answer, check)

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
verify("grows", check)
variances = [theory.output_norm_variance(kind, 64, 64, 6) for kind in KINDS]
print(f"lead of constant fan-in with a common scale: {1 - variances[2] / variances[1]:.1%}")
print(f"with a scale for each neuron: {own_scale_lead(np.random.default_rng(10)):.1%}")
print("The mean of 1/k is larger than 1 over the mean of k: small fan-ins cost more than large ones save.")

# %% [markdown]
# **5. The best mask (open).** The formula for a given mask says what a good mask has: no small fan-ins, and
# every input listened to equally. Return a mask of 12 neurons, none of them ablated, and 12 inputs with 36
# weights, whose variance no other such mask can beat. Then think about how you would keep such a mask while
# training moves it. SRigL keeps the first of the two properties. What would the second one cost, in accuracy
# and in the kernels of [lesson 5](05_condensed_format.ipynb)?


# %%
def best_mask():
    """Bool array (12, 12) with 36 weights and the smallest possible variance."""
    ...


def check(answer):
    mask = answer()
    assert mask.shape == (12, 12), "12 neurons and 12 inputs"
    assert mask.dtype == bool, "a bool array: try .astype(bool)"
    assert mask.sum() == 36, "36 weights"
    assert mask.any(axis=1).all(), "every neuron needs a weight"
    bound = (12**2 + 2 * 12 + 5 * (2 * 12 / 3 + 12)) / (12 * 14) - 1  # all k_i = 3, all r_j = 1
    found = fixed_mask_variance(mask)
    assert np.isclose(found, bound), f"the variance can be {bound:.4f}, yours is {found:.4f}"


try_it(best_mask, check)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def best_mask_solution():
    """A band that wraps around: three inputs a neuron, and three neurons an input."""
    return sum(np.roll(np.eye(12, dtype=bool), shift, axis=1) for shift in range(3)).astype(bool)


verify(best_mask_solution, check)

# %% [markdown]
# ## Where to go on
#
# - [Lesson 7](07_train_and_compare.ipynb) trains networks and compares methods, where accuracy is what
#   counts, not norms.
# - `analysis/theory.py` has the derivation once more with every corollary; beside it `theory_depth.py`,
#   `theory_fixed_mask.py`, and `theory_convolution.py` for convolutions, where neurons share weights.
# - `python -m analysis.variance` checks all of it against simulation and draws the figures of the README;
#   `--full` takes 20 minutes instead of one.
# - The paper: Lasby, Golubeva, Evci, Nica and Ioannou, *Dynamic Sparse Training with Structured Sparsity*,
#   [arXiv 2305.02299](https://arxiv.org/abs/2305.02299).
