r"""How much the output norm of a layer varies whose mask is known, for example that of a trained network.

Notation and definition as in :mod:`analysis.theory`, with two changes: the mask I is given, not random, and
every neuron is scaled by its own fan-in k_i, as sparsekit initialises layers: s_i^2 = 1 / (p k_i). Neurons
without inputs are ablated; m are left.

Derivation
----------
With weights, gates and inputs random, steps 1 to 3 hold as they are: ::

    E |z|^4 = 3 sum_i s_i^4 E v_i^2 + sum_{i != l} s_i^2 s_l^2 E v_i v_l.

Let o_il be the overlap of neurons i and l, the number of inputs that both read, with o_ii = k_i. Of the k_i k_l
pairs of an input of i and one of l, o_il are the same input twice, so ::

    n(n+2) E v_i v_l  =  3 p o_il + p^2 (k_i k_l - o_il),
    n(n+2) s_i^2 s_l^2 E v_i v_l  =  1 + (3/p - 1) o_il / (k_i k_l).

In the sum over all i and l, those with i = l count three times. They are m terms with o_ii / k_i^2 = 1/k_i, and
sum_il o_il / (k_i k_l) = sum_j r_j^2, where r_j = sum of 1/k_i over the neurons i that read input j: how much
input j is listened to. Therefore ::

    E |z|^2  =  m/n
    Var |z|^2  =  [ m^2 + 2 m + (3/p - 1) (2 sum_i 1/k_i + sum_j r_j^2) ] / (n(n+2))  -  m^2/n^2

Two things of a mask matter, and nothing else: small fan-ins (sum of 1/k_i), and how unevenly the neurons listen to
the inputs. As sum_j r_j = m, the second sum is smallest, m^2/n, if all inputs are listened to equally.

Averaged over masks with constant fan-in k this is the formula of :mod:`analysis.theory`: sum_i 1/k_i = m/k, and
k r_j is a binomial number with mean m k/n, so that E sum_j r_j^2 = m (1/k - 1/n) + m^2/n. (The mean of |z|^2 is
the same for each of these masks, so the variance is the mean of their variances.)
"""

import numpy as np

from sparsekit.checks import require_fraction
from sparsekit.errors import InputError
from sparsekit.masks import fan_in, require_mask


def fixed_mask_mean(mask: np.ndarray) -> float:
    """Mean of |z|^2: active neurons over inputs.

    Parameters
    ----------
    mask : bool array (n_out, n_in)

    Raises
    ------
    InputError
        For anything else, and for a mask without a weight.
    """
    return _active_fan_ins(mask).size / mask.shape[1]


def fixed_mask_variance(mask: np.ndarray, gate_probability: float = 0.5) -> float:
    """Variance of |z|^2; definition and derivation in the text of the module.

    Parameters
    ----------
    mask : bool array (n_out, n_in)
    gate_probability : probability in (0, 1] that an input is not zero

    Raises
    ------
    InputError
        For a value that is not allowed, and for a mask without a weight.
    """
    p = require_fraction("gate_probability", gate_probability, low_open=True)
    fan_ins = _active_fan_ins(mask)
    m, n = fan_ins.size, mask.shape[1]
    active = mask[mask.any(axis=1)]
    listened = active.T @ (1 / fan_ins)
    unevenness = 2 * (1 / fan_ins).sum() + (listened**2).sum()
    return float((m * m + 2 * m + (3 / p - 1) * unevenness) / (n * (n + 2)) - (m / n) ** 2)


def _active_fan_ins(mask: np.ndarray) -> np.ndarray:
    counts = fan_in(require_mask(mask))
    if not counts.any():
        raise InputError(f"mask must hold a weight, but none of its {mask.size} positions is active")
    return counts[counts > 0]
