r"""How much the output norm of a sparse convolution varies at initialisation: the theory with shared weights.

An image u of C channels and Q = height * width positions is uniform on the unit sphere of R^N, N = C Q, and every
pixel of every channel has a gate xi. A filter f has k of the n = C r connections to the r = kh * kw taps of the
channels; its mask is a row of the mask matrix, and is shared by all positions of the image, as its weights are: ::

    z_fq = s sum_j I_fj W_fj x_{c(j), q + d(j)},      x = xi * u,      s^2 = 1 / (p k),

with c(j) and d(j) the channel and the shift of connection j. Beyond an edge the image continues on its other
side, so that all positions are alike; the stride is 1. |z|^2 is the sum over all F filters and Q positions. For
a 1 x 1 image and kernel this is the linear layer of :mod:`analysis.theory`, where the other letters are explained.

Derivation
----------
**1. One filter.** Let a_j be the image of channel c(j) shifted by d(j), a vector of length Q. Given mask and
image, the outputs of a filter are normal with the covariance matrix s^2 G, G = sum_{j in I} a_j a_j^T. A normal
vector with covariance G has E |z|^2 = tr G and E |z|^4 = (tr G)^2 + 2 tr G^2. Here tr G = sum_{j in I} e_c(j) with
the energy e_c = |a_j|^2 of channel c, the same for all its shifts, and tr G^2 = sum_{j, j' in I} <a_j, a_j'>^2.

**2. The image.** Write D = N(N+2). By the moments of sphere and gates, counting equal and unequal pixels, ::

    alpha = D E e_c^2      =  Q (3 p + (Q-1) p^2)
    beta  = D E e_c e_c'   =  Q^2 p^2                           (c != c')
    gamma = D E <a_j, a_j'>^2  =  Q p^2                         (j != j')

The last line: <a_j, a_j'>^2 is a sum over two positions q, q' of four pixels. Odd powers of a pixel have
expectation 0, so the pixels must be equal in pairs, which they are for q = q'. For other q they would only be if
twice the difference of the two shifts led around the image; images wider than 2(kw - 1) and higher than 2(kh - 1)
are large enough to exclude it.

**3. The mask** enters by a and b, the probabilities of two active positions in one row and in two rows, see
:mod:`analysis.theory`. A connection has r - 1 others in its own channel, and n - r in other channels: ::

    E (tr G_f)^2 * D          =  alpha (k + n (r-1) a) + beta n (n-r) a
    E tr G_f^2 * D            =  alpha k + gamma n (n-1) a
    E (tr G_f tr G_g) * D     =  alpha n r b + beta n (n-r) b                               (f != g)

**4. Together.** E |z|^2 = F/C, and ::

    Var |z|^2  =  s^4 { F [ E (tr G_f)^2 + 2 E tr G_f^2 ] + F(F-1) E tr G_f tr G_g }  -  F^2/C^2.

What shared weights change: in a linear layer every output has weights of its own, and a larger layer varies less.
Here a larger image does not help beyond a point. For Q to infinity and constant fan-in the variance tends to
2 F / (k C^2): the squared norm of each filter, a chi-square variable with k degrees of freedom, remains.
"""

from dataclasses import dataclass

from analysis.theory import MaskType, SparseLayer, pair_probabilities
from sparsekit.checks import Pair, require_integer, require_pair
from sparsekit.errors import InputError


@dataclass(frozen=True)
class SparseConvolution:
    """A convolution whose output norm is asked for.

    Attributes
    ----------
    mask_type, fan_in, gate_probability : as in :func:`analysis.theory.output_norm_variance`; a filter is a neuron
    channels, n_filters : of the image, and of the output
    kernel, image : (height, width) each; the image must be larger than twice the kernel less one, see step 2

    Raises
    ------
    InputError
        For a value that is not allowed.
    """

    mask_type: MaskType
    channels: int
    n_filters: int
    fan_in: float
    kernel: Pair = (3, 3)
    image: Pair = (8, 8)
    gate_probability: float = 0.5

    def __post_init__(self) -> None:
        require_integer("channels", self.channels, 1)
        for name in ("kernel", "image"):  # one number is as good as two equal ones
            object.__setattr__(self, name, require_pair(name, getattr(self, name), 1))
        for size, taps in zip(self.image, self.kernel, strict=True):
            if size <= 2 * (taps - 1):
                raise InputError(f"image must be larger than {2 * (taps - 1)} for {taps} taps, not {size}")
        _ = self.rows  # checks the rest

    @property
    def rows(self) -> SparseLayer:
        """The mask matrix as a linear layer: (n_filters, channels * kernel height * kernel width)."""
        n_in = self.channels * self.kernel[0] * self.kernel[1]
        return SparseLayer(self.mask_type, n_in, self.n_filters, self.fan_in, self.gate_probability)


def convolution_norm_mean(convolution: SparseConvolution) -> float:
    """Mean of |z|^2 over all filters and positions: filters over channels."""
    return convolution.n_filters / convolution.channels


def convolution_norm_variance(convolution: SparseConvolution) -> float:
    """Variance of |z|^2 over all filters and positions; definition and derivation in the text of the module."""
    rows = convolution.rows
    n, k, p, F = rows.n_in, rows.fan_in, rows.gate_probability, rows.n_out
    Q = convolution.image[0] * convolution.image[1]
    r = convolution.kernel[0] * convolution.kernel[1]
    N = convolution.channels * Q
    alpha, beta, gamma = Q * (3 * p + (Q - 1) * p**2), Q**2 * p**2, Q * p**2
    a, b = pair_probabilities(rows)
    trace_squared = alpha * (k + n * (r - 1) * a) + beta * n * (n - r) * a
    trace_of_square = alpha * k + gamma * n * (n - 1) * a
    two_filters = alpha * n * r * b + beta * n * (n - r) * b
    fourth = F * (trace_squared + 2 * trace_of_square) + F * (F - 1) * two_filters
    return fourth / ((p * k) ** 2 * N * (N + 2)) - convolution_norm_mean(convolution) ** 2
