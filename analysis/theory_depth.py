r"""How much the norm varies after several sparse ReLU layers: an exact recursion along depth.

A network of L layers with widths n_0, n_1, ..., n_L: the input u is uniform on the unit sphere and half of its
coordinates are let through, and every layer multiplies with a fresh mask and fresh weights, scaled by
s_l^2 = 2 / k_l, after which ReLU follows: ::

    x_0 = xi * u,      z_l = s_l (I_l * W_l) x_{l-1},      x_l = max(z_l, 0).

One layer is that of :mod:`analysis.theory` with gate probability 1/2; there a, b and all other letters are
explained. Here nothing is assumed about gates: ReLU makes them.

Derivation
----------
**ReLU is a random gate.** Turn all signs of row i of W_l: this is as likely as before and turns the sign of
z_{l,i} alone. So, given all |z_l|, the signs are independent and fair, and x_{l,i} = xi_i |z_{l,i}| with gates
xi_i that are 1 with probability 1/2 (where z is 0, the gate does not matter).

**Two sums are enough.** Of the vector z_{l-1}, with x_{l-1} = xi * |z_{l-1}|, only ::

    A = sum_j E z_j^4      and      B = sum_{j != j'} E z_j^2 z_j'^2

enter: with v_i = sum_j I_ij xi_j z_j^2, and with q = k/n the probability of a position to be active, ::

    E v_i^2    =  p q A  +  p^2 a B
    E v_i v_l  =  p b A  +  p^2 b B                    (i != l)

whatever the distribution of z_{l-1} is, because a and b are the same for all pairs of columns. Given the v, the
outputs are independent and normal, so the same two sums of z_l are ::

    A'  =  3 s^4 n_l E v_i^2,      B'  =  s^4 n_l (n_l - 1) E v_i v_l,      E |z_l|^4 = A' + B'.

The input sphere has A = 3 / (n_0 + 2) and B = (n_0 - 1) / (n_0 + 2), and E |z_l|^2 = E |z_{l-1}|^2 n_l / n_{l-1}.

In a dense network the norms of the layers are independent factors, and 1 + CV^2 multiplies. Sparse layers do
not quite do this: a sparse layer leaves some outputs larger than others, and the next one notices.
"""

from collections.abc import Sequence

from analysis.theory import MaskType, SparseLayer, pair_probabilities
from sparsekit.errors import InputError


def layers_of(mask_type: MaskType, widths: Sequence[int], fan_ins: Sequence[float]) -> list[SparseLayer]:
    """The layers of a network, checked; arguments and errors as in :func:`depth_variances`."""
    if len(widths) < 2 or len(fan_ins) != len(widths) - 1:
        raise InputError(
            "widths must be two or more numbers, and fan_ins one number less, "
            f"not {len(widths)} widths and {len(fan_ins)} fan_ins"
        )
    return [
        SparseLayer(mask_type, n_in, n_out, fan_in)
        for n_in, n_out, fan_in in zip(widths[:-1], widths[1:], fan_ins, strict=True)
    ]


def depth_variances(mask_type: MaskType, widths: Sequence[int], fan_ins: Sequence[float]) -> list[float]:
    """Variance of |z_l|^2 after each layer l = 1, ..., L; definition and derivation in the text of the module.

    Parameters
    ----------
    mask_type : "bernoulli", "per_layer" or "constant_fan_in", of all layers
    widths : n_0, ..., n_L
    fan_ins : k_1, ..., k_L; see `fan_in` in :func:`analysis.theory.output_norm_variance`

    Raises
    ------
    InputError
        For a value that is not allowed.
    """
    layers = layers_of(mask_type, widths, fan_ins)
    n = layers[0].n_in
    A, B = 3 / (n + 2), (n - 1) / (n + 2)
    variances = []
    for layer in layers:
        A, B = _next_moments(layer, A, B)
        variances.append(A + B - depth_mean([widths[0], layer.n_out]) ** 2)
    return variances


def depth_mean(widths: Sequence[int]) -> float:
    """Mean of |z_L|^2, which is n_L / n_0: every layer keeps the mean square of a coordinate."""
    return widths[-1] / widths[0]


def _next_moments(layer: SparseLayer, A: float, B: float) -> tuple[float, float]:
    a, b = pair_probabilities(layer)
    m, p = layer.n_active, layer.gate_probability
    scale = 1 / (p * layer.fan_in) ** 2
    same = p * layer.density * A + p**2 * a * B
    different = b * (p * A + p**2 * B)
    return 3 * scale * m * same, scale * m * (m - 1) * different
