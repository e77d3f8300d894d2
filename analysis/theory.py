r"""How much the norm of a sparse layer's output varies at initialisation: mean and variance of |z|^2, derived.

The layer has `n_in` inputs and `n_out` neurons, of which `n_ablated` have lost all their weights. Write
n = n_in, m = n_out - n_ablated for the neurons that are left, k for their fan-in, p for the gate probability. ::

    z_i = s * sum_j I_ij W_ij xi_j u_j,        s^2 = 1 / (p k)

* u is uniform on the unit sphere of R^n: the direction of the input.
* xi_j is 1 with probability p, else 0, independently, and shared by all neurons: the ReLU before this layer
  lets input j through (p = 1/2) or not.
* W_ij is standard normal. With p = 1/2 the scale is He's initialisation, variance 2 / k.
* I is the mask. Its k active weights a neuron are placed in one of three ways:

  ===================  ==================================================================================
  ``bernoulli``        every position is active with probability k/n, independently; k is the mean fan-in
  ``per_layer``        K = m k positions of the whole layer, all choices equally likely; k is the mean fan-in
  ``constant_fan_in``  every neuron has exactly k inputs, all choices equally likely, neurons independent
  ===================  ==================================================================================

All of W, xi, u and I are independent. Ablated neurons give 0 and hold no positions.

Derivation
----------
**1. Gaussian weights.** Fix I, xi and u. Then the z_i are independent, and z_i ~ N(0, s^2 v_i) with
v_i = sum_j I_ij xi_j u_j^2. As a normal variable has E z^2 = s^2 v and E z^4 = 3 s^4 v^2, ::

    E |z|^2 = s^2 sum_i E v_i,     E |z|^4 = s^4 ( 3 sum_i E v_i^2 + sum_{i != l} E v_i v_l ).

**2. The sphere.** A standard normal vector is g = |g| u with |g| and u independent. From E |g|^2 = n, E g_j^4 = 3,
E g_j^2 g_l^2 = 1 and E |g|^4 = n E g_1^4 + n(n-1) E g_1^2 g_2^2 = n(n+2) follow ::

    E u_j^2 = 1/n,     E u_j^4 = 3 / (n(n+2)),     E u_j^2 u_l^2 = 1 / (n(n+2))   for j != l.

**3. The gates.** E xi_j^2 = p, and E xi_j xi_l = p^2 for j != l.

**4. The mask.** Each position is active with probability k/n. Let a be the probability that two given positions
of one row are both active, and b that two given positions in different rows are; in all three kinds of mask b is
the same whether the two share a column or not. With 2 and 3, by counting equal and unequal columns, ::

    E v_i              =  n * (k/n) * p * 1/n                 =  p k / n
    n(n+2) E v_i^2     =  3 p k  +  p^2 n(n-1) a
    n(n+2) E v_i v_l   =  (3 p n  +  p^2 n(n-1)) b                                      (i != l)

**5. Together.** E |z|^2 = m/n, and with s^4 = 1 / (p k)^2 ::

    n(n+2) E |z|^4  =  m [ 9/(p k)  +  3 n(n-1) a/k^2  +  (m-1) (3 n/p + n(n-1)) b/k^2 ],
    Var |z|^2  =  E |z|^4 - m^2/n^2.

**6. The three masks** differ in a and b alone:

===================  =====================  =======================
mask                 a (same row)           b (different rows)
===================  =====================  =======================
``bernoulli``        k^2 / n^2              k^2 / n^2
``per_layer``        C k^2 / n^2            C k^2 / n^2
``constant_fan_in``  k(k-1) / (n(n-1))      k^2 / n^2
===================  =====================  =======================

For ``per_layer`` the second of two positions is one of the K - 1 that remain among M - 1 = m n - 1, so
a = b = K(K-1) / (M(M-1)), which is k^2/n^2 times C = (K-1) M / (K (M-1)) <= 1. Insert, and let
T = (m+2)(n-1)/n + 3(m-1)/(p n): ::

    Var_bernoulli        =  m / (n(n+2)) * [ 9/(p k) + T ]                  -  m^2/n^2
    Var_per_layer        =  m / (n(n+2)) * [ 9/(p k) + C T ]                -  m^2/n^2
    Var_constant_fan_in  =  m / (n(n+2)) * [ 9/(p k) + T - 3(1/k - 1/n) ]   -  m^2/n^2

The square layer without ablation and with p = 1/2 (m = n) is the theory of the SRigL paper, arXiv 2305.02299:
(5n - 8 + 18 n/k) / (n(n+2)) for Bernoulli masks, ((n^2 + 7n - 8) C + 18 n/k - n^2 - 2n) / (n(n+2)) with
C = (n - 1/k) / (n - 1/n) for constant-per-layer masks, and Bernoulli minus 3(n-k) / (k n(n+2)) for constant
fan-in. Rectangular layers, other gate probabilities and ablation are this project's.

Corollary 1: which mask varies least
------------------------------------
Subtract the formulas of step 6; 1 - C = (n-k) / (k(M-1)): ::

    Var_bernoulli - Var_constant_fan_in  =  3 m (n-k) / (n^2 (n+2) k)                                >= 0
    Var_bernoulli - Var_per_layer        =  m (n-k) T / (n (n+2) k (M-1))                            >= 0
    Var_per_layer - Var_constant_fan_in  =  m (m-1) (n-k) (2n + 1 - 3/p) / (n^2 (n+2) k (M-1))

The last one has the sign of p(2n + 1) - 3: constant fan-in varies less than constant-per-layer exactly if
p(2 n_in + 1) > 3, whatever the fan-in and the number of neurons (as long as there are two, and k < n). With
p = 1/2 that means n_in >= 3, so for ReLU networks the paper's "consistently smaller" holds in every layer that
one would want to make sparse. With few and rarely open gates it fails.

Corollary 2: what ablation does
-------------------------------
Ablation keeps the number of weights K = m k: fewer neurons, each with a larger fan-in. Compare the variance with
the squared mean, CV^2 = Var |z|^2 * n^2/m^2, and insert k = K/m: ::

    CV^2_bernoulli        =  c  +  (2(n-1) - 3/p) / ((n+2) m)
    CV^2_constant_fan_in  =  c  +  (2n + 1 - 3/p) / ((n+2) m)
    CV^2_per_layer        =  c  +  c' * (m A + B) / (m n - 1),     A = n - 1 + 3/p,     B = 2(n-1) - 3/p

where c differs from line to line but, like c' = (1 - 1/K) n/(n+2), depends on n, p and K only: even 9/(p k), the
price of a small fan-in, becomes 9 n / ((n+2) p K), without m. The derivative of the last line by m has the sign
of -(A + n B) = -(n-1)(2n + 1 - 3/p). So ablation *raises* the relative variance if p(2 n_in + 1) > 3
(``per_layer``, ``constant_fan_in``) or p * 2(n_in - 1) > 3 (``bernoulli``), that is in ReLU networks with
n_in >= 5 for every mask. What ablation gains in training is not explained by the variance at initialisation.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from sparsekit.checks import require_choice, require_fraction, require_integer, require_number
from sparsekit.errors import InputError

MaskType = Literal["bernoulli", "per_layer", "constant_fan_in"]
MASK_TYPES: tuple[MaskType, ...] = get_args(MaskType)


@dataclass(frozen=True)
class SparseLayer:
    """A layer whose output norm is asked for; the arguments are those of :func:`output_norm_variance`, checked.

    Raises
    ------
    InputError
        For a value that is not allowed.
    """

    mask_type: MaskType
    n_in: int
    n_out: int
    fan_in: float
    gate_probability: float = 0.5
    n_ablated: int = 0

    def __post_init__(self) -> None:
        require_choice("mask_type", self.mask_type, MASK_TYPES)
        require_integer("n_in", self.n_in, 1)
        require_integer("n_out", self.n_out, 1)
        require_integer("n_ablated", self.n_ablated, 0, self.n_out - 1)
        require_fraction("gate_probability", self.gate_probability, low_open=True)
        require_number("fan_in", self.fan_in, low=0, low_open=True)
        if self.fan_in > self.n_in:
            raise InputError(f"fan_in must be at most n_in, {self.n_in}, not {self.fan_in!r}")
        if self.mask_type == "constant_fan_in":
            require_number("fan_in", self.fan_in, low=1)
        if self.mask_type == "per_layer":
            require_number("fan_in times the active neurons", self.nnz, low=1)

    @property
    def n_active(self) -> int:
        """Neurons that are left, m."""
        return self.n_out - self.n_ablated

    @property
    def nnz(self) -> float:
        """Active weights K = m k; for Bernoulli masks their mean."""
        return self.n_active * self.fan_in

    @property
    def density(self) -> float:
        """Probability k/n that a position of an active neuron holds a weight."""
        return self.fan_in / self.n_in


def pair_probabilities(layer: SparseLayer) -> tuple[float, float]:
    """Probability that two given positions are both active: in one row (a), in two rows (b).

    Step 6 of the derivation. Where a layer has no such two positions, the value is 0 and is multiplied by 0.
    """
    n, k, n_positions = layer.n_in, layer.fan_in, layer.n_active * layer.n_in
    independent = layer.density**2
    if layer.mask_type == "bernoulli":
        return independent, independent
    if layer.mask_type == "per_layer":
        together = layer.density * (layer.nnz - 1) / (n_positions - 1) if n_positions > 1 else 0.0
        return together, together
    return (k * (k - 1) / (n * (n - 1)) if n > 1 else 0.0), independent


def output_norm_mean(
    mask_type: MaskType,
    n_in: int,
    n_out: int,
    fan_in: float,
    gate_probability: float = 0.5,
    n_ablated: int = 0,
) -> float:
    """Mean of |z|^2, which is (n_out - n_ablated) / n_in for every mask, fan-in and gate probability.

    Arguments and errors as in :func:`output_norm_variance`, derivation in the text of the module.
    """
    layer = SparseLayer(mask_type, n_in, n_out, fan_in, gate_probability, n_ablated)
    return layer.n_active / layer.n_in


def output_norm_variance(
    mask_type: MaskType,
    n_in: int,
    n_out: int,
    fan_in: float,
    gate_probability: float = 0.5,
    n_ablated: int = 0,
) -> float:
    """Variance of |z|^2; definition and derivation in the text of the module.

    Parameters
    ----------
    mask_type : "bernoulli", "per_layer" or "constant_fan_in"
    n_in, n_out : inputs, and neurons including the ablated ones
    fan_in : inputs of each neuron that is left, the mean where the mask type lets it vary; in (0, n_in].
        Ablation does not change it by itself: pass `fan_in_after_ablation(...)` if the weights of the ablated
        neurons are redistributed. It may lie between integers: exact for Bernoulli masks, for ``per_layer`` if
        the layer has a whole number of weights; otherwise the formula interpolates, as the curves of the paper
        do with fan_in = density * n. ``constant_fan_in`` needs at least 1, ``per_layer`` one weight in all.
    gate_probability : probability in (0, 1] that an input is not zero
    n_ablated : neurons without weights, less than n_out

    Raises
    ------
    InputError
        For a value that is not allowed.
    """
    layer = SparseLayer(mask_type, n_in, n_out, fan_in, gate_probability, n_ablated)
    n, m, k, p = layer.n_in, layer.n_active, layer.fan_in, layer.gate_probability
    a, b = pair_probabilities(layer)
    same_row = 9 / (p * k) + 3 * n * (n - 1) * a / k**2
    other_rows = (m - 1) * (3 * n / p + n * (n - 1)) * b / k**2
    return m * (same_row + other_rows) / (n * (n + 2)) - (m / n) ** 2


def relative_variance(
    mask_type: MaskType,
    n_in: int,
    n_out: int,
    fan_in: float,
    gate_probability: float = 0.5,
    n_ablated: int = 0,
) -> float:
    """Squared coefficient of variation CV^2: the variance of |z|^2 over its squared mean.

    It does not depend on the scale of the weights, and so compares layers of different shapes.
    Arguments and errors as in :func:`output_norm_variance`.
    """
    arguments = mask_type, n_in, n_out, fan_in, gate_probability, n_ablated
    return output_norm_variance(*arguments) / output_norm_mean(*arguments) ** 2


def _other_positions(layer: SparseLayer) -> int:
    """M - 1; a layer of one position has no others, but then n = k and the difference is 0 over anything."""
    return max(layer.n_active * layer.n_in - 1, 1)


def bernoulli_minus_constant_fan_in(
    n_in: int, n_out: int, fan_in: float, gate_probability: float = 0.5, n_ablated: int = 0
) -> float:
    """Variance with a Bernoulli mask minus that with constant fan-in, never negative; see corollary 1.

    It does not depend on the gate probability. Arguments and errors as in :func:`output_norm_variance`.
    """
    layer = SparseLayer("constant_fan_in", n_in, n_out, fan_in, gate_probability, n_ablated)
    n, m, k = layer.n_in, layer.n_active, layer.fan_in
    return 3 * m * (n - k) / (n**2 * (n + 2) * k)


def bernoulli_minus_per_layer(
    n_in: int, n_out: int, fan_in: float, gate_probability: float = 0.5, n_ablated: int = 0
) -> float:
    """Variance with a Bernoulli mask minus that with a constant number of weights a layer, never negative.

    See corollary 1; arguments and errors as in :func:`output_norm_variance`.
    """
    layer = SparseLayer("per_layer", n_in, n_out, fan_in, gate_probability, n_ablated)
    n, m, k, p = layer.n_in, layer.n_active, layer.fan_in, layer.gate_probability
    T = (m + 2) * (n - 1) / n + 3 * (m - 1) / (p * n)
    return m * (n - k) * T / (n * (n + 2) * k * _other_positions(layer))


def per_layer_minus_constant_fan_in(
    n_in: int, n_out: int, fan_in: float, gate_probability: float = 0.5, n_ablated: int = 0
) -> float:
    """Variance with a constant number of weights a layer minus that with constant fan-in; see corollary 1.

    Its sign is that of p(2 n_in + 1) - 3, see :func:`fan_in_beats_per_layer`.
    Arguments and errors as in :func:`output_norm_variance`.
    """
    layer = SparseLayer("constant_fan_in", n_in, n_out, fan_in, gate_probability, n_ablated)
    n, m, k, p = layer.n_in, layer.n_active, layer.fan_in, layer.gate_probability
    return m * (m - 1) * (n - k) * (2 * n + 1 - 3 / p) / (n**2 * (n + 2) * k * _other_positions(layer))


def fan_in_beats_per_layer(n_in: int, gate_probability: float = 0.5) -> bool:
    """Whether |z|^2 varies less with constant fan-in than with a constant number of weights a layer.

    That is p(2 n_in + 1) > 3, for any fan-in below `n_in` and any two or more neurons; see corollary 1.

    Raises
    ------
    InputError
        For a value that is not allowed.
    """
    n_in = require_integer("n_in", n_in, 1)
    return require_fraction("gate_probability", gate_probability, low_open=True) * (2 * n_in + 1) > 3


def fan_in_after_ablation(n_in: int, n_out: int, fan_in: float, n_ablated: int) -> float:
    """Fan-in of the neurons that are left if they share the weights of all: fan_in * n_out / (n_out - n_ablated).

    Raises
    ------
    InputError
        For a value that is not allowed, and if the neurons left have too few inputs for all weights.
    """
    layer = SparseLayer("bernoulli", n_in, n_out, fan_in, n_ablated=n_ablated)
    shared = fan_in * n_out / layer.n_active
    if shared > n_in:
        raise InputError(
            f"n_ablated must leave neurons that can hold all weights: {n_ablated} ablated of {n_out} makes the "
            f"fan-in {shared:g}, above n_in, {n_in}"
        )
    return shared


def ablation_raises_relative_variance(mask_type: MaskType, n_in: int, gate_probability: float = 0.5) -> bool:
    """Whether ablating neurons, and giving their weights to the others, raises the relative variance of |z|^2.

    That is p(2 n_in + 1) > 3, and p * 2(n_in - 1) > 3 for Bernoulli masks, whatever the sizes; see corollary 2.
    A ``per_layer`` mask with a single weight, or with a single input, is not changed by ablation at all.

    Raises
    ------
    InputError
        For a value that is not allowed.
    """
    require_choice("mask_type", mask_type, MASK_TYPES)
    if mask_type != "bernoulli":
        return fan_in_beats_per_layer(n_in, gate_probability)
    n_in = require_integer("n_in", n_in, 1)
    return require_fraction("gate_probability", gate_probability, low_open=True) * 2 * (n_in - 1) > 3
