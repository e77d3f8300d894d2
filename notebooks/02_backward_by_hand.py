# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. Backward passes by hand, dense and sparse
#
# Training asks every weight the same question: if you were a little larger, would the loss rise or fall? A
# backward pass answers it for all weights at once, for at most about twice the price of a prediction. Here
# you write one in a few lines of NumPy, learn to check it so that you need not trust anybody, and then ask
# what changes when most weights are not stored at all. The answer is the reason why sparse training can be
# cheap, and it holds one surprise: a weight that does not exist has a gradient too.
#
# **You will learn**
#
# - to derive the three products of a linear layer index by index: $Y = WX + b$, $dX = W^\top dY$,
#   $dW = dY\,X^\top$,
# - to pass gradients through ReLU and softmax cross-entropy, and to chain layers,
# - to check a gradient by central differences: which step size, and what goes wrong at the kink of ReLU,
# - which gradients a sparse layer needs, and which one only RigL and SRigL look at,
# - what all this costs in multiply-adds.
#
# **You need** NumPy, the chain rule, and [lesson 1](01_why_sparse.ipynb) for what a mask is. About 20
# minutes.

# %%
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from classroom import COLOURS, explore, matrix, start, try_it, unless_fast, verify

import sparsekit
from sparsekit import nn
from sparsekit.data import BatchLoader, Standardization

start()

# %% [markdown]
# ## Features first
#
# A batch of inputs is a matrix $X$ with one row for each feature and **one column for each sample**, shape
# (n_in, batch). A layer of n_out neurons has a weight matrix $W$ of shape (n_out, n_in) and one bias for each
# neuron. Its output is
#
# $$Y = W X + b, \qquad Y_{os} = \sum_i W_{oi}\, X_{is} + b_o .$$
#
# Throughout, $o$ counts neurons (outputs), $i$ inputs, and the last index, $s$, samples of the batch. The
# picture shows one entry of the output and what it is made of: a row of $W$ and a column of $X$.

# %%
rng = np.random.default_rng(0)
W = rng.integers(-3, 4, (3, 4)).astype(float)  # 3 neurons, 4 inputs
b = np.array([[1.0], [0.0], [-2.0]])
X = rng.integers(-2, 3, (4, 5)).astype(float)  # 4 inputs, 5 samples
Y = W @ X + b


# %% tags=["hide-input"]
def product_picture(left, right, result, row, column):
    """Draw left, right and result, each as (name, array, y label, x label), and frame what makes one entry."""
    factors = [left, right, result]
    widths = [array.shape[1] + 1.5 for _, array, _, _ in factors]
    figure, panels = plt.subplots(1, 3, figsize=(6.2, 1.8), width_ratios=widths)
    for number, (axes, (name, array, rows, columns)) in enumerate(zip(panels, factors, strict=True)):
        frame = np.zeros(array.shape, dtype=bool)
        frame[row if number != 1 else slice(None), column if number != 0 else slice(None)] = True
        matrix(axes, array, name, frame=frame, decimals=0)
        axes.set(ylabel=rows, xlabel=columns)
    return figure


product_picture(
    ("$W$", W, "neuron", "input"),
    ("$X$", X, "input", "sample"),
    ("$Y$ (bias added)", Y, "neuron", "sample"),
    row=1,
    column=3,
)
plt.show()

# %% [markdown]
# Most libraries put samples first and write $Y = X W^\top$. Features first has two advantages for us: the
# formulas look as on paper, and a weight always meets a whole contiguous row of $X$, which is what makes the
# sparse kernels of [lesson 5](05_condensed_format.ipynb) fast.

# %% [markdown]
# ## The linear layer, index by index
#
# Let $L$ be the loss, one number. For any array $A$ we write $dA$ for the array of the same shape with
# entries $\partial L / \partial A$. Somebody behind us hands in $dY$. We want $dW$, $db$ and $dX$.
#
# **The weight.** $W_{oi}$ occurs in row $o$ of $Y$ and in no other, once for each sample:
# $\partial Y_{os} / \partial W_{oi} = X_{is}$. The chain rule sums over everything that the weight touches:
#
# $$dW_{oi} = \sum_s dY_{os}\, X_{is} \qquad\text{that is}\qquad dW = dY\, X^\top .$$
#
# **The bias** is a weight whose input is always 1: $db_o = \sum_s dY_{os}$.
#
# **The input.** $X_{is}$ occurs in column $s$ of $Y$ and in no other, once for each neuron:
# $\partial Y_{os} / \partial X_{is} = W_{oi}$, so
#
# $$dX_{is} = \sum_o W_{oi}\, dY_{os} \qquad\text{that is}\qquad dX = W^\top dY .$$
#
# There is a check that costs nothing: $dW$ must have the shape of $W$, and with three different sizes
# (neurons, inputs, samples) there is only one way to multiply $dY$ and $X$ that gives it.


# %%
def linear_backward(W, X, dY):
    """Gradients of weight, bias and input, from the gradient of the output."""
    return dY @ X.T, dY.sum(axis=1, keepdims=True), W.T @ dY


dY = rng.integers(-2, 3, Y.shape).astype(float)
dW, db, dX = linear_backward(W, X, dY)

by_index = np.zeros_like(W)
for o in range(3):
    for i in range(4):
        for sample in range(5):
            by_index[o, i] += dY[o, sample] * X[i, sample]
assert np.array_equal(dW, by_index)
assert (dW.shape, db.shape, dX.shape) == (W.shape, b.shape, X.shape)

# %% [markdown]
# Move the sliders: the gradient of a weight takes the row of $dY$ that belongs to its neuron, and the row of
# $X$ that belongs to its input (a column of $X^\top$). In words: how much the neuron should change, times
# what the input showed, summed over samples. If input $i$ was always zero, no weight on it learns anything.


# %%
def weight_gradient(neuron, from_input):
    """One entry of dW and what it is made of."""
    return product_picture(
        ("$dY$", dY, "neuron", "sample"),
        ("$X^\\top$", X.T, "sample", "input"),
        ("$dW = dY\\,X^\\top$", dW, "neuron", "input"),
        neuron,
        from_input,
    )


explore(weight_gradient, neuron=range(3), from_input=range(4))

# %% [markdown]
# The gradient of the input goes the other way through the same connections. Input 2 of sample 3 collects from
# every neuron that reads it, weighted by the connection:

# %%
product_picture(
    ("$W^\\top$", W.T, "input", "neuron"),
    ("$dY$", dY, "neuron", "sample"),
    ("$dX = W^\\top dY$", dX, "input", "sample"),
    row=2,
    column=3,
)
plt.show()

# %% [markdown]
# ## ReLU and softmax cross-entropy
#
# **ReLU** acts on each number alone, $H = \max(A, 0)$. A number that was cut off does not matter to the loss,
# all others pass: $dH$ goes through where $A > 0$ and becomes 0 elsewhere. At exactly $A = 0$ there is no
# derivative; like most libraries we take 0. You can read off where $A > 0$ from the output, because $H > 0$
# in the same places.
#
# **Softmax cross-entropy.** The last layer gives a column of logits $z$ for each sample. They become
# probabilities $p_c = e^{z_c} / \sum_k e^{z_k}$, and the loss of a sample with label $y$ is
#
# $$-\log p_y = -z_y + \log \sum_k e^{z_k}, \qquad\text{so}\qquad
# \frac{\partial}{\partial z_c} = p_c - [c = y].$$
#
# Here $[c = y]$ is 1 for the label and 0 for every other class. In words: what the network believes, minus what
# is true. The loss of a batch is the mean over its samples,
# so everything is divided by the batch size.


# %%
def softmax_cross_entropy(logits, labels):
    """Mean loss of a batch of logits (n_classes, batch), and its gradient."""
    shifted = logits - logits.max(axis=0)  # changes nothing, and exp cannot overflow
    p = np.exp(shifted) / np.exp(shifted).sum(axis=0)
    samples = np.arange(labels.size)
    loss = -np.log(p[labels, samples]).mean()
    gradient = p.copy()
    gradient[labels, samples] -= 1
    return loss, gradient / labels.size


logits, label = rng.normal(0, 1.5, (10, 1)), np.array([3])
loss, gradient = softmax_cross_entropy(logits, label)
print(f"the gradient sums to {abs(gradient.sum()):.1f}: what the label gains, the other classes lose")

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 3, figsize=(7.5, 2))
shown = {"logits $z$": logits, "probabilities $p$": gradient + (np.arange(10) == 3)[:, None], "$dz$": gradient}
for axes, (name, values) in zip(panels, shown.items(), strict=True):
    colours = [COLOURS["vermilion" if c == 3 else "blue"] for c in range(10)]
    axes.bar(range(10), values[:, 0], color=colours)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set(title=name, xlabel="class (the label is 3)", xticks=range(10))
panels[0].set_ylabel("value")
plt.show()

# %% [markdown]
# The label's logit (vermilion) is pushed up, because a step goes against the gradient, and every other logit
# is pushed down in proportion to the probability it wrongly has.

# %% [markdown]
# ## Chain them
#
# A multi-layer perceptron is linear, ReLU, linear, ReLU, ..., linear. Forward, each layer keeps its input.
# Backward, each takes the gradient of its output, makes those of its weights, and hands on that of its input.

# %% tags=["hide-input"]
boxes = ["linear 1", "ReLU", "linear 2", "softmax\ncross-entropy"]
forward = ["$X$", "$A$", "$H$", "$Z$", "$L$"]
backward = ["", "$dA$", "$dH$", "$dZ$", "1"]
below = ["keeps $X$\nmakes $dW_1, db_1$", "keeps $H > 0$", "keeps $H$\nmakes $dW_2, db_2$", "keeps $p$, labels"]
figure, axes = plt.subplots(figsize=(7.5, 1.9))
box = {"boxstyle": "round,pad=0.5", "facecolor": COLOURS["pale"], "edgecolor": "0.6"}
for n, name in enumerate(boxes):
    axes.text(2 * n + 1, 0, name, ha="center", va="center", bbox=box)
    axes.text(2 * n + 1, -0.95, below[n], ha="center", va="center", fontsize=8, color="0.35")
for n, (there, back) in enumerate(zip(forward, backward, strict=True)):
    for text, y, colour, style in ((there, 0.18, "blue", "->"), (back, -0.18, "vermilion", "<-")):
        if text:
            ends = {"xy": (2 * n + 0.33, y), "xytext": (2 * n - 0.33, y)}
            axes.annotate("", **ends, arrowprops={"arrowstyle": style, "color": COLOURS[colour]})
            axes.text(2 * n, 2.3 * y, text, ha="center", va="center", color=COLOURS[colour])
axes.set(xlim=(-0.7, 8.7), ylim=(-1.3, 0.8), title="forward (blue) and backward (vermilion)")
axes.axis("off")
plt.show()


# %%
def loss_and_gradients(parameters, X, labels):
    """Mean loss of an MLP with parameters [(W, b), ...], and the gradients in the same arrangement."""
    inputs = []  # of every linear layer
    for number, (W, b) in enumerate(parameters):
        inputs.append(X)
        X = W @ X + b
        if number < len(parameters) - 1:
            X = np.maximum(X, 0)
    loss, dY = softmax_cross_entropy(X, labels)

    gradients = []
    for (W, _), X in zip(reversed(parameters), reversed(inputs), strict=True):
        dW, db, dX = linear_backward(W, X, dY)
        gradients.insert(0, (dW, db))
        dY = dX * (X > 0)  # X is the output of the ReLU before this layer
    return loss, gradients


# %% [markdown]
# That is all of it. (For the first layer the last line computes something nobody needs: images are not
# trained. The package leaves it out.)
#
# ## Check it: central differences
#
# A gradient claims to predict what happens when a weight is moved. So move it:
#
# $$\frac{\partial L}{\partial w} \approx \frac{L(w + h) - L(w - h)}{2h}.$$
#
# Two evaluations for each weight are far too slow for training, but fine for a test. We take a small network
# and real data: 32 handwritten digits of 8 x 8 pixels.

# %%
digits = sparsekit.load_dataset("digits")
standard = Standardization.fit(digits.x_train)
x = standard.transform(digits.x_train[:32], np.float64).reshape(64, 32)
labels = digits.y_train[:32]


def random_network(sizes, rng):
    """He-normal weights; biases a little off zero."""
    return [
        (rng.normal(0, np.sqrt(2 / n_in), (n_out, n_in)), rng.normal(0, 0.1, (n_out, 1)))
        for n_in, n_out in pairwise(sizes)
    ]


def central_differences(loss, array, step):
    """d loss / d array; each entry is moved a step up and down, and put back."""
    result = np.zeros_like(array)
    for place in np.ndindex(array.shape):
        value = array[place]
        array[place] = value + step
        above = loss()
        array[place] = value - step
        result[place] = (above - loss()) / (2 * step)
        array[place] = value
    return result


network = random_network((64, 24, 10), np.random.default_rng(1))
loss, gradients = loss_and_gradients(network, x, labels)
for number, (pair, exact) in enumerate(zip(network, gradients, strict=True), start=1):
    for name, array, derived in zip(("W", "b"), pair, exact, strict=True):
        measured = central_differences(lambda: loss_and_gradients(network, x, labels)[0], array, 1e-6)
        error = np.abs(measured - derived).max() / np.abs(derived).max()
        print(f"d{name}{number} {derived.shape!s:9} largest error {error:.0e} of the largest entry")
        assert error < 1e-6

# %% [markdown]
# Every entry is right to many digits. If you now change a single sign in `linear_backward` and run this
# again, it fails at once.
#
# ### Which step?
#
# The step above was $10^{-6}$. Why not $10^{-12}$, which is nearer to the limit? Expand the loss around $w$
# (primes are derivatives with respect to $w$): the even powers of $h$ cancel in the difference, and
# what is left is
#
# $$\frac{L(w+h) - L(w-h)}{2h} = L' + \underbrace{\frac{h^2}{6} L'''}_{\text{truncation}}
# + \underbrace{O\!\left(\frac{\varepsilon\, |L|}{h}\right)}_{\text{rounding}} .$$
#
# The second error comes from the computer: two nearly equal losses, each rounded in its last digit (relative
# precision $\varepsilon \approx 10^{-16}$ in float64), are subtracted and divided by something small. One
# error falls with $h$, the other rises. We estimate $L'''$ for one weight of the output layer and draw both,
# beside what happens in fact.


# %%
def errors_over_steps(steps, dtype, forward=False):
    """Error of the difference quotient for one weight of the output layer, for each step."""
    moved = [(W.astype(dtype), b.astype(dtype)) for W, b in network]
    weight, place = moved[1][0], (3, 5)
    value = weight[place]

    def loss_at(change):
        weight[place] = value + dtype(change)
        return float(loss_and_gradients(moved, x.astype(dtype), labels)[0])

    low = (lambda h: 0.0) if forward else (lambda h: -h)
    exact = gradients[1][0][place]
    quotients = [(loss_at(h) - loss_at(low(h))) / (h - low(h)) for h in steps]
    third = (loss_at(0.02) - 2 * loss_at(0.01) + 2 * loss_at(-0.01) - loss_at(-0.02)) / (2 * 0.01**3)
    return np.abs(np.array(quotients) - exact), abs(third)


steps = np.logspace(-12, 0, 49)
central, third = errors_over_steps(steps, np.float64)
one_sided = errors_over_steps(steps, np.float64, forward=True)[0]
single = errors_over_steps(steps[16:], np.float32)[0]

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(7, 3.2))
axes.loglog(steps, central, "o", color=COLOURS["blue"], label="central, float64")
axes.loglog(steps, one_sided, "^", color=COLOURS["green"], label="forward, float64: (L(w+h) - L(w)) / h")
axes.loglog(steps[16:], single, "s", color=COLOURS["orange"], label="central, float32")
epsilon = np.finfo(np.float64).eps
axes.loglog(steps, steps**2 / 6 * third, "--", color="0.4", label="truncation, $h^2 |L'''| / 6$")
axes.loglog(steps, epsilon * loss / steps, ":", color="0.4", label=r"rounding, $\varepsilon |L| / h$")
axes.set(xlabel="step $h$", ylabel="error of the derivative", ylim=(1e-14, 1e5))
axes.set_title("Too large a step truncates, too small a step rounds")
axes.legend(loc="upper center", ncols=2)
plt.show()
best = (3 * epsilon * loss / third) ** (1 / 3)
print(
    f"the two errors together are smallest at h = {best:.0e}, says the theory; "
    f"the best of these steps was {steps[central.argmin()]:.0e}"
)
print(
    f"smallest error: central {central.min():.0e}, forward {one_sided.min():.0e}, "
    f"central in float32 {single.min():.0e}; epsilon ** (1/3) is {epsilon ** (1 / 3):.0e}"
)

# %% [markdown]
# The V is what every gradient check lives in. (Near its bottom the winner is a matter of luck, because
# rounding errors are.) Three things to remember:
#
# - the best step of a central difference is $\varepsilon^{1/3}$ times a factor that depends on the loss; in
#   float64 a step between $10^{-6}$ and $10^{-4}$ is a good first try;
# - forward differences (green) have only one power of $h$ in their truncation error and do not get as good;
# - in float32 (orange) even the best step leaves an error orders of magnitude larger. At the flat end the step
#   is so small that both losses are rounded to the same number, and the difference is 0. Train in any precision
#   you like, but check in float64.

# %% [markdown]
# ### What goes wrong at the kink
#
# The expansion needs a smooth loss. ReLU is not smooth at 0. If the step carries a number from one side of
# the kink to the other, the difference quotient sees a mixture of both slopes, and no step is small enough
# for a number that is exactly zero.

# %%
h = 0.01
W1, b1 = network[0]
A = W1 @ x + b1
measured = central_differences(lambda: loss_and_gradients(network, x, labels)[0], W1, h)
error = np.abs(measured - gradients[0][0]) / np.abs(gradients[0][0]).max()
# Weight [o, i] moves A[o, s] by h * x[i, s]: does that carry it over zero, in any sample?
crosses = (np.abs(A)[:, None, :] < h * np.abs(x)[None, :, :]).any(axis=2)
print(f"{crosses.sum()} of {W1.size} weights carry a ReLU over its kink")
print(f"largest error: {error[crosses].max():.0e} among these, {error[~crosses].max():.0e} among the others")
assert error[crosses].max() > 100 * error[~crosses].max()

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.5))
z = np.linspace(-1, 1, 401)
for step, colour in ((0.5, "orange"), (0.1, "vermilion")):
    quotient = (np.maximum(z + step, 0) - np.maximum(z - step, 0)) / (2 * step)
    left.plot(z, quotient, color=COLOURS[colour], label=f"h = {step}")
left.plot(z, z > 0, "--", color="black", label="backward")
left.set(title="The derivative of ReLU", xlabel="input", ylabel="derivative")
left.legend()
for chosen, colour, name in ((~crosses, "blue", "no"), (crosses, "vermilion", "yes")):
    right.hist(np.log10(error[chosen] + 1e-12), bins=np.arange(-11, -0.9, 0.25), color=COLOURS[colour], label=name)
right.set(title=f"Checking $dW_1$ with h = {h}", ylabel="weights")
right.set_xlabel("log10 of the error / largest gradient")
right.legend(title="a ReLU crosses 0", loc="upper right")
plt.show()

# %% [markdown]
# Left: the difference quotient of ReLU is a ramp of width $2h$ where backward has a jump. Right: the large errors
# belong to weights whose step carries some ReLU over 0.
#
# So a failed check is not always a wrong derivative. Use a smaller step, or data without numbers near zero,
# before you search your code. One case no step helps: exactly zero. It is not exotic in sparse training,
# where a neuron without any input and with a zero bias puts out exactly 0. There the difference quotient says
# 1/2, and backward says 0, by convention:

# %%
relu, zero = nn.ReLU(), np.zeros((1, 1))
relu.forward(zero, training=True)
print("difference quotient at 0:", (max(1e-5, 0) - max(-1e-5, 0)) / 2e-5)
print("backward at 0:", relu.backward(np.ones((1, 1))).item())

# %% [markdown]
# ## Same weights in, same gradients out
#
# The layers of `sparsekit.nn` do the same in `sparsekit/nn/linear.py`, `activation.py` and `losses.py`. There
# is no automatic differentiation in the package: `forward(x, training=True)` keeps what `backward` needs, and
# `backward` sets `grad` of every parameter. Take the weights of one of its networks and compare.

# %%
model = sparsekit.models.mlp((64, 64, 32, 10), storage="dense", dtype=np.float64, rng=2)
layers = sparsekit.models.weight_layers(model)
mine = [(layer.weight.values.copy(), layer.bias.values.copy()) for layer in layers.values()]

my_loss, my_gradients = loss_and_gradients(mine, x, labels)
its_loss, grad_logits = nn.softmax_cross_entropy(model.forward(x, training=True), labels)
model.backward(grad_logits)

assert np.isclose(my_loss, its_loss)
for (name, layer), (dW, db) in zip(layers.items(), my_gradients, strict=True):
    np.testing.assert_allclose(layer.weight.grad, dW, atol=1e-14)
    np.testing.assert_allclose(layer.bias.grad, db, atol=1e-14)
    print(name, layer.weight.values.shape, "gradients agree")

# %% [markdown]
# ## Train it
#
# SGD with momentum keeps a velocity $v$ for every weight: $v \leftarrow \mu v + dW$, then
# $W \leftarrow W - \eta v$, with the momentum $\mu$ and the learning rate $\eta$. We train our
# network and the package's side by side, on the same batches in the same order.


# %%
def momentum_step(parameters, gradients, velocities, learning_rate, momentum=0.9):
    """Change all arrays in place."""
    for pair, grads, speeds in zip(parameters, gradients, velocities, strict=True):
        for array, gradient, velocity in zip(pair, grads, speeds, strict=True):
            velocity *= momentum
            velocity += gradient
            array -= learning_rate * velocity


velocities = [(np.zeros_like(W), np.zeros_like(b)) for W, b in mine]
optimizer = sparsekit.optim.SGD(momentum=0.9, nesterov=False)
batches = BatchLoader(
    digits.x_train, digits.y_train, 32, standard, dtype=np.float64, rng=np.random.default_rng(3), drop_last=True
)
my_losses, its_losses = [], []
for _ in range(unless_fast(12, 2)):
    for images, y in batches:
        loss, gradients = loss_and_gradients(mine, images.reshape(64, -1), y)
        momentum_step(mine, gradients, velocities, 0.02)
        my_losses.append(loss)

        loss, grad_logits = nn.softmax_cross_entropy(model.forward(images, training=True), y)
        model.backward(grad_logits)
        optimizer.step(model.named_parameters().values(), 0.02)
        its_losses.append(loss)

# %%
figure, axes = plt.subplots(figsize=(5.5, 2.3))
for losses, width, colour, name in ((its_losses, 4, "sky", "sparsekit.nn"), (my_losses, 1, "black", "by hand")):
    means = np.reshape(losses, (-1, 11)).mean(axis=1)  # an epoch has 44 batches
    axes.semilogy(np.arange(len(means)) / 4, means, color=COLOURS[colour], linewidth=width, label=name)
axes.set(title="Loss, mean over 11 batches", xlabel="epoch", ylabel="cross-entropy")
axes.legend()
plt.show()

test = standard.transform(digits.x_test, np.float64).reshape(64, -1)
hidden = test
for W, b in mine[:-1]:
    hidden = np.maximum(W @ hidden + b, 0)
W, b = mine[-1]
accuracy = ((W @ hidden + b).argmax(axis=0) == digits.y_test).mean()
print(f"test accuracy {accuracy:.1%} after {len(my_losses)} steps")
assert np.allclose(my_losses, its_losses, rtol=1e-9)
assert accuracy > 0.8

# %% [markdown]
# The two curves lie on top of each other; the assertion allows them nothing but rounding. You have written a
# complete training of a neural network.

# %% [markdown]
# ## The sparse twist: which gradients do we need?
#
# Now give the layer a mask, and store only the weights where the mask is True. Everything derived above stays
# true with $W \odot \text{mask}$ in place of $W$ ($\odot$ multiplies entry by entry). But look again at the
# three products and ask what is needed:
#
# | product | what it does | entries of $W$ or $dW$ it needs |
# | --- | --- | --- |
# | $Y = WX$ | forward | stored weights |
# | $dX = W^\top dY$ | passes the gradient on | stored weights |
# | $dW = dY\,X^\top$ | the step of the optimizer | only at **stored places**: elsewhere there is nothing to step |
#
# The third is called a *sampled dense-dense product*: two dense matrices are multiplied, but only chosen
# entries of the result are computed. `CondensedMatrix` stores a mask of constant fan-in as two small
# rectangles, values and indices, and has exactly these three products: `matmul`, `rmatmul` and
# `sampled_outer`.

# %%
rng = np.random.default_rng(4)
mask = sparsekit.masks.random_constant_fan_in((5, 8), 3, rng)
W = np.where(mask, rng.normal(size=mask.shape), 0)
stored = sparsekit.CondensedMatrix.from_dense(W, mask)
X, dY = rng.normal(size=(8, 6)), rng.normal(size=(5, 6))

np.testing.assert_allclose(stored.matmul(X), (W * mask) @ X)
np.testing.assert_allclose(stored.rmatmul(dY), (W * mask).T @ dY)
dense_gradient = dY @ X.T
at_stored_places = dense_gradient[stored.rows[:, None], stored.indices]
np.testing.assert_allclose(stored.sampled_outer(dY, X), at_stored_places)
print(stored)

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 4, figsize=(8, 2.1), width_ratios=(8, 3.5, 3.5, 8))
matrix(panels[0], W, "the weight", mask=mask)
matrix(panels[1], stored.indices.astype(float), "indices", decimals=0)
matrix(panels[2], stored.sampled_outer(dY, X), "sampled_outer")
matrix(panels[3], dense_gradient, "$dY\\,X^\\top$, framed where stored", frame=mask)
for axes in panels[1:3]:
    axes.set_xlabel("slot")
panels[1].images[0].set_visible(False)  # colours mean nothing for indices
plt.show()

# %% [markdown]
# The gradient that the optimizer gets (third panel) is as small as the weight itself; it holds the framed
# entries of the dense gradient (fourth panel), row by row. The other entries are never computed.
#
# "Sparse training" by masks, as in the published code of RigL and SRigL, computes the whole fourth panel with
# a dense product in every step and then multiplies it by the mask. The result is the same and nothing is
# saved.

# %% [markdown]
# ## A weight that does not exist has a gradient
#
# Look at the fourth panel again: the entries without a frame are not zero. They answer the old question for a
# connection that is not there: *if this weight were a little larger than its present zero, would the loss
# rise or fall?* That is exactly what you want to know before you grow a connection, and it is what RigL (Evci
# et al., arXiv 1911.11134) and SRigL (Lasby et al., arXiv 2305.02299) look at.
#
# We make sure that this is no trick of notation. Move single weights of a sparse network that it does not
# store, and watch the loss:

# %%
sparse = [(W.copy(), b.copy()) for W, b in random_network((64, 24, 10), np.random.default_rng(5))]
first_mask = sparsekit.masks.random_constant_fan_in((24, 64), 6, np.random.default_rng(6))
sparse[0][0][~first_mask] = 0
loss, gradients = loss_and_gradients(sparse, x, labels)
dense_gradient = gradients[0][0]
measured = central_differences(lambda: loss_and_gradients(sparse, x, labels)[0], sparse[0][0], 1e-6)
np.testing.assert_allclose(measured, dense_gradient, atol=1e-7)
assert np.abs(dense_gradient[~first_mask]).max() > 1e-3

largest = np.argsort(-np.abs(dense_gradient), axis=None)[: first_mask.sum()]
outside = 1 - first_mask.flat[largest].mean()
print(
    f"{first_mask.mean():.0%} of the places of this layer store a weight; of the {largest.size} places with the "
    f"largest gradients, {outside:.0%} store none"
)

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 4, figsize=(8, 2.5))
top = np.abs(dense_gradient).max()
busiest = np.argsort(-np.abs(dense_gradient).sum(axis=1))[:4]
for axes, neuron in zip(panels, busiest, strict=True):
    image = axes.imshow(dense_gradient[neuron].reshape(8, 8), cmap="RdBu_r", vmin=-top, vmax=top)
    rows, columns = np.nonzero(first_mask[neuron].reshape(8, 8))
    axes.plot(columns, rows, "s", markersize=11, markerfacecolor="none", markeredgecolor="black")
    axes.set(title=f"neuron {neuron}", xlabel="pixel column", xticks=(), yticks=())
    axes.grid(False)
panels[0].set_ylabel("pixel row")
figure.colorbar(image, ax=panels, label="dense gradient", shrink=0.8)
figure.suptitle("Gradient of the weights of four neurons; frames: weights that are stored")
plt.show()

# %% [markdown]
# Each picture is one neuron's row of $dW$, laid out as the image that it looks at. The six frames are the
# pixels that it is connected to; the step of the optimizer sees nothing else. A strong colour outside the frames
# is a place where a new weight would, at first, lower the loss faster than a change of the stored
# weights with paler colours (red: a negative new weight, blue: a positive one). The outer columns have one
# colour: those pixels are nearly always empty, a constant input, so they all say what the bias says.
#
# **This dense gradient is needed at update steps only**, once in `delta_t` steps (100 by default). In the
# package a layer has to be told before: `keep_dense_gradient = True` makes backward keep its input and the
# gradient of its output, and `dense_gradient()` multiplies them when asked, once.

# %%
model = sparsekit.models.mlp((64, 24, 10), storage="condensed", sparsity=0.8, dtype=np.float64, rng=7)
layer = sparsekit.models.weight_layers(model)["fc1"]

logits = model.forward(x, training=True)
model.backward(nn.softmax_cross_entropy(logits, labels)[1])
print("an ordinary step: values", layer.weight.values.shape, " gradient", layer.weight.grad.shape)

layer.keep_dense_gradient = True
logits = model.forward(x, training=True)
model.backward(nn.softmax_cross_entropy(logits, labels)[1])
dense_gradient = layer.dense_gradient()
print("an update step: dense gradient", dense_gradient.shape)
np.testing.assert_allclose(dense_gradient[layer.matrix.mask()].reshape(layer.weight.grad.shape), layer.weight.grad)

try:
    layer.dense_gradient()
except sparsekit.InputError as error:
    print("asked twice:", error)

# %% [markdown]
# It can be asked for once because the layer then forgets the two factors; so at any time only one layer's
# dense gradient exists. What RigL and SRigL make of it is the matter of [lesson 3](03_rigl.ipynb) and [lesson
# 4](04_srigl.ipynb).

# %% [markdown]
# ## What it costs
#
# Count multiply-adds for one sample. A stored weight is used once in the forward pass, once in $dX$ and once
# in $dW$ (the first layer needs no $dX$). A dense gradient uses every place once. In an MLP 784-512-512-10 at
# 90 % sparsity:


# %%
def multiply_adds(model, dense):
    """For one sample: forward, dX, dW, and the dense gradient."""
    weights = [
        layer.matrix.shape[0] * layer.matrix.shape[1] if dense else layer.matrix.nnz
        for layer in sparsekit.models.weight_layers(model).values()
    ]
    places = sum(np.prod(layer.matrix.shape) for layer in sparsekit.models.weight_layers(model).values())
    return {"forward": sum(weights), "dX": sum(weights[1:]), "dW": sum(weights), "dense gradient": places}


big = sparsekit.models.mlp((784, 512, 512, 10), storage="condensed", sparsity=0.9, rng=0)
counts = {"dense": multiply_adds(big, dense=True), "sparse, update step": multiply_adds(big, dense=False)}
counts["dense"]["dense gradient"] = 0  # its dW is the dense gradient
counts["sparse"] = counts["sparse, update step"] | {"dense gradient": 0}
assert 2 * counts["sparse"]["forward"] == sum(sparsekit.counting.inference_flops(big, (784,)).values())

dense, sparse_step = (sum(counts[name].values()) for name in ("dense", "sparse"))
places = counts["sparse, update step"]["dense gradient"]
print(
    f"sparse step: {sparse_step / dense:.1%} of a dense one; update step: {(sparse_step + places) / dense:.0%}; "
    f"on average with an update every 100 steps: {(sparse_step + places / 100) / dense:.1%}"
)

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6))
names, begin = ["dense", "sparse, update step", "sparse"], np.zeros(3)
for part, colour in zip(
    ("forward", "dX", "dW", "dense gradient"), ("blue", "sky", "green", "orange"), strict=True
):
    length = np.array([counts[name][part] for name in names]) / 1000
    left.barh(names, length, left=begin, color=COLOURS[colour], label=part)
    begin += length
left.set(xlabel="thousand multiply-adds for one sample", title="One training step")
left.legend()
every = np.arange(1, 201)
right.semilogx(every, (sparse_step + places / every) / dense, color=COLOURS["blue"], label="counted here")
by_paper = [
    sparsekit.counting.training_flops(counts["sparse"]["forward"], counts["dense"]["forward"], int(n))
    / (3 * counts["dense"]["forward"])
    for n in every
]
right.semilogx(every, by_paper, "--", color=COLOURS["vermilion"], label="formula of the RigL paper")
right.axhline(sparse_step / dense, color="0.6", linewidth=0.8)
right.set(
    xlabel="delta_t, steps between updates",
    ylabel="share of a dense step",
    ylim=(0, 0.55),
    title="Average over steps",
)
right.legend()
plt.show()

# %% [markdown]
# An update step costs about half of a dense step, and it hardly matters: once in a hundred steps, it adds a
# fraction of a percent. That is why methods that look at the dense gradient now and then are nearly as cheap
# as those that never do, and why a method that looks at it in every step would give away most of what
# sparsity saves. (The two curves differ for two reasons: the formula of arXiv 1911.11134 lets the update take
# the place of a step, and it counts $dX$ of the first layer.)
#
# Multiply-adds are not seconds. Whether a sparse product runs as fast as its count promises is a question of
# memory, and [lesson 5](05_condensed_format.ipynb) measures it.

# %% [markdown]
# ## Exercises
#
# ### 1. Samples first
#
# Write the backward pass of $Y = X W^\top + b$, where samples are rows: X is (batch, n_in), Y and dY are
# (batch, n_out), b is (n_out,).


# %%
def samples_first_backward(W, X, dY):
    """Return dW (n_out, n_in), db (n_out,) and dX (batch, n_in)."""
    ...


def check_samples_first(answer):
    """Compare with the features-first formulas."""
    rng = np.random.default_rng(8)
    W, X, dY = rng.normal(size=(3, 4)), rng.normal(size=(4, 5)), rng.normal(size=(3, 5))
    dW, db, dX = linear_backward(W, X, dY)
    for name, got, wanted in zip(("dW", "db", "dX"), answer(W, X.T, dY.T), (dW, db[:, 0], dX.T), strict=True):
        assert np.shape(got) == wanted.shape, f"{name} should have shape {wanted.shape}, not {np.shape(got)}"
        assert np.allclose(got, wanted), f"{name} has the right shape but wrong values"


try_it(samples_first_backward, check_samples_first)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def samples_first_solution(W, X, dY):
    """Transpose every formula."""
    return dY.T @ X, dY.sum(axis=0), dY @ W


verify(samples_first_solution, check_samples_first)

# %% [markdown]
# ### 2. Another activation
#
# SiLU is $h = a\,\sigma(a)$ with $\sigma(a) = 1 / (1 + e^{-a})$. Derive its backward pass. The check uses
# central differences, so you will know whether you are right, and you may use the same check for anything you
# ever derive.


# %%
def silu_backward(A, dH):
    """Return dA for H = A * sigmoid(A)."""
    ...


def check_silu(answer):
    """Central differences of sum(H * dH)."""
    rng = np.random.default_rng(9)
    A, dH = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    wanted = central_differences(lambda: (A / (1 + np.exp(-A)) * dH).sum(), A, 1e-5)
    got = answer(A, dH)
    assert np.shape(got) == A.shape, "dA has the shape of A"
    assert np.allclose(got, wanted, atol=1e-8), "the difference quotient disagrees: use the product rule"


try_it(silu_backward, check_silu)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def silu_solution(A, dH):
    """The product rule, with the derivative s (1 - s) of the sigmoid."""
    s = 1 / (1 + np.exp(-A))
    return dH * (s + A * s * (1 - s))


verify(silu_solution, check_silu)

# %% [markdown]
# ### 3. The sampled product
#
# Compute the gradient of the stored weights from `indices` (n_active, fan_in) and `rows` (n_active,) without
# ever making the dense gradient. One call of `np.einsum` is enough; two loops are fine too.


# %%
def my_sampled_outer(rows, indices, dY, X):
    """Entries of dY @ X.T at the stored places, shaped like indices."""
    ...


def check_sampled_outer(answer):
    """Compare with the package, on a layer with ablated neurons."""
    rng = np.random.default_rng(10)
    mask = sparsekit.masks.random_constant_fan_in((7, 12), 4, rng)
    mask[[0, 3]] = False
    stored = sparsekit.CondensedMatrix.from_mask(mask, np.float64)
    X, dY = rng.normal(size=(12, 5)), rng.normal(size=(7, 5))
    got = answer(stored.rows, stored.indices, dY, X)
    assert np.shape(got) == stored.indices.shape, f"the shape is that of indices, not {np.shape(got)}"
    hint = "slot k of row r belongs to neuron rows[r] and input indices[r, k]"
    assert np.allclose(got, stored.sampled_outer(dY, X)), hint


try_it(my_sampled_outer, check_sampled_outer)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def sampled_outer_solution(rows, indices, dY, X):
    """For neuron r, slot k: the sum over samples s."""
    return np.einsum("rs,rks->rk", dY[rows], X[indices])


verify(sampled_outer_solution, check_sampled_outer)

# %% [markdown]
# ### 4. Who can come back?
#
# A hidden neuron that stores no weight at all is *ablated*. Its output is $\max(b, 0)$ in every sample, with
# its bias $b$. SRigL may give it weights again if its dense gradient is large enough. Given the biases of
# ablated neurons followed by ReLU: whose row of the dense gradient can be different from zero?


# %%
def can_come_back(bias):
    """Bool array, for ablated neurons with these biases."""
    ...


def check_can_come_back(answer):
    """A network whose first layer has four ablated neurons."""
    rng = np.random.default_rng(11)
    (W1, b1), second = random_network((64, 24, 10), rng)
    W1[:4] = 0
    b1[:4, 0] = 0.3, 0.0, -0.3, 1e-9
    gradient = loss_and_gradients([(W1, b1), second], x, labels)[1][0][0][:4]
    wanted = np.abs(gradient).max(axis=1) > 0
    got = np.asarray(answer(b1[:4, 0]))
    for bias, mine, true in zip(b1[:4, 0], got, wanted, strict=True):
        assert mine == true, f"with bias {bias} the largest gradient is {'not ' if true else ''}zero: why?"


try_it(can_come_back, check_can_come_back)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def can_come_back_solution(bias):
    """The ReLU lets a gradient through only where its input, here the bias, is positive."""
    return bias > 0


verify(can_come_back_solution, check_can_come_back)

# %% [markdown]
# So without batch normalisation an ablated neuron has a dense gradient of exactly zero as long as its bias is
# not positive, whatever the method intends. The bias has no gradient then either: no sample can revive it.
#
# ### 5. Open: how much of the batch does growth need?
#
# RigL uses only the *ranking* of the dense gradient. Suppose it were computed from the first `n` of the 32
# samples. Write a function that returns which share of the `K` places of largest gradient (magnitude,
# unstored places of the first layer of `sparse` only) stays the same, and plot it over `n`. What would you
# recommend?


# %%
def overlap(n, K):
    """Share in [0, 1] of the K largest gradients that the first n samples already find."""
    ...


def check_overlap(answer):
    """All samples find everything; a few find something."""
    assert np.isclose(answer(32, 50), 1), "with the whole batch nothing changes"
    assert 0.05 < answer(4, 50) < 0.95, "four samples find some of the 50, not all"
    assert answer(16, 50) > answer(1, 50), "half of the batch should do better than one sample"


try_it(overlap, check_overlap)


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
def overlap_solution(n, K):
    """Two rankings of the unstored places, compared as sets."""

    def best(samples):
        gradient = loss_and_gradients(sparse, x[:, :samples], labels[:samples])[1][0][0]
        score = np.where(first_mask, -1, np.abs(gradient))
        return set(np.argsort(-score, axis=None)[:K].tolist())

    return len(best(n) & best(32)) / K


verify(overlap_solution, check_overlap)
figure, axes = plt.subplots(figsize=(6, 2.4))
for K, colour in ((20, "vermilion"), (100, "blue"), (300, "green")):
    axes.plot(
        range(1, 33), [overlap_solution(n, K) for n in range(1, 33)], color=COLOURS[colour], label=f"K = {K}"
    )
axes.set(xlabel="samples used", ylabel="share found", title="Growth candidates from a part of the batch")
axes.legend()
plt.show()
print(f"half of the batch finds {overlap_solution(16, 100):.0%} of the 100 largest gradients of the whole batch")

# %% [markdown]
# ## Where to go on
#
# - [Lesson 3](03_rigl.ipynb): what RigL does with magnitudes and dense gradients.
# - `sparsekit/nn/linear.py` is the linear layer in sixty lines; `sparsekit/kernels/reference.py` has the
#   three sparse products as plain loops; `tests/gradients.py` is the gradient check that all layers of the
#   package pass.
# - Evci et al., Rigging the Lottery, arXiv 1911.11134: growing by the dense gradient. Lasby et al., arXiv
#   2305.02299: the same under a constant fan-in.
