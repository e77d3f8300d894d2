"""From an architecture to a network with stored-sparse weights."""

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TypedDict

import numpy as np

from sparsekit import distributions, masks
from sparsekit.checks import require_choice, require_fraction, require_integer
from sparsekit.condensed import CondensedMatrix
from sparsekit.csr import CSRMatrix
from sparsekit.dense import DenseMatrix
from sparsekit.errors import InputError
from sparsekit.nn import Conv2d, Dropout, Linear, Module, Sequential, WeightLayer, fan_in_uniform, he_normal
from sparsekit.stored import StoredMatrix

STORAGES = ("dense", "csr", "condensed")
DISTRIBUTIONS: dict[str, Callable[[Sequence[tuple[int, ...]], float], list[float]]] = {
    "erk": distributions.erdos_renyi_kernel,
    "er": distributions.erdos_renyi,
    "uniform": partial(distributions.uniform, first_layer_dense=False),
}
INITIALIZERS: dict[str, Callable[[StoredMatrix, np.random.Generator], None]] = {
    "he_normal": he_normal,
    "fan_in_uniform": fan_in_uniform,
}


class Sparsification(TypedDict, total=False):
    """The options of :func:`sparsify`, which every network takes."""

    storage: str
    sparsity: float
    distribution: str
    first_layer_dense: bool | None
    dense_layers: Collection[str]
    no_ablation_layers: Collection[str] | None
    initializer: str
    backend: str


def sparsify(
    model: Module,
    rng: np.random.Generator,
    *,
    storage: str = "condensed",
    sparsity: float = 0.9,
    distribution: str = "erk",
    first_layer_dense: bool | None = None,
    dense_layers: Collection[str] = (),
    no_ablation_layers: Collection[str] | None = None,
    initializer: str = "he_normal",
    backend: str = "cpu",
) -> None:
    """Give every layer with weights its random mask and first weights, in forward order.

    Parameters
    ----------
    model : a network of dense layers; their values are drawn anew
    rng : random source of masks and weights
    storage : how the sparse weights are stored: "condensed" (constant fan-in), "csr" (unstructured), or
        "dense", which makes every layer dense whatever `sparsity` says
    sparsity : share of all weights that is not stored, in [0, 1)
    distribution : "erk", "er" or "uniform": how the stored weights are shared out among the layers
    first_layer_dense : whether the first layer stays dense; None: with "uniform" only, as in the RigL paper
    dense_layers : names of further layers to keep dense; `sparsity` then holds for the others
    no_ablation_layers : names of layers whose neurons are never ablated; by default the output layer
    initializer : "he_normal" or "fan_in_uniform", see :func:`he_normal` and :func:`fan_in_uniform`
    backend : kernels for the sparse products, see :data:`sparsekit.kernels.BACKENDS`

    Raises
    ------
    InputError
        For a sparsity outside [0, 1) or an unknown name.
    """
    require_choice("initializer", initializer, INITIALIZERS)
    layers = weight_layers(model)
    names = list(layers)
    for option, chosen in (("dense_layers", dense_layers), ("no_ablation_layers", no_ablation_layers or ())):
        for name in chosen:
            require_choice(option, name, names)
    unablated = names[-1:] if no_ablation_layers is None else no_ablation_layers
    if first_layer_dense is None:
        first_layer_dense = distribution == "uniform" and len(names) > 1
    dense = {*dense_layers, *(names[:1] if first_layer_dense else ())}
    shapes = {name: layer.weight_shape for name, layer in layers.items()}
    densities = layer_densities(shapes, storage, sparsity, distribution, dense)
    for name, layer in layers.items():
        layer.budget = distributions.budget(shapes[name], densities[name]) if densities[name] < 1 else None
        layer.ablate = name not in unablated
        layer.backend = backend
        if layer.budget is not None:
            layer.use(_random_matrix(layer.matrix, layer.budget, storage, rng))
        INITIALIZERS[initializer](layer.matrix, rng)


def layer_densities(
    shapes: dict[str, tuple[int, ...]],
    storage: str,
    sparsity: float,
    distribution: str,
    dense_layers: Collection[str] = (),
) -> dict[str, float]:
    """Density of every layer by name, 1.0 where it is dense; arguments as in :func:`sparsify`."""
    require_choice("storage", storage, STORAGES)
    require_choice("distribution", distribution, DISTRIBUTIONS)
    density = 1 - require_fraction("sparsity", sparsity, high_open=True)
    sparse = [name for name in shapes if name not in dense_layers]
    if storage == "dense" or density == 1 or not sparse:
        return dict.fromkeys(shapes, 1.0)
    given = DISTRIBUTIONS[distribution]([shapes[name] for name in sparse], density)
    return dict.fromkeys(shapes, 1.0) | dict(zip(sparse, given, strict=True))


def weight_layers(model: Module) -> dict[str, WeightLayer]:
    """The layers with weights of a network by dotted name, in forward order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, WeightLayer)}


def sparse_layers(model: Module) -> dict[str, WeightLayer]:
    """The layers whose topology a method may change."""
    return {name: layer for name, layer in weight_layers(model).items() if layer.is_sparse}


def linear_layer(n_out: int, n_in: int, dtype: np.dtype | type) -> Linear:
    """A linear layer of zeros, for :func:`sparsify` to fill."""
    return Linear(DenseMatrix(np.zeros((require_integer("n_classes", n_out, 1), n_in), dtype)))


def conv_layer(
    n_out: int,
    n_in: int,
    kernel_size: int,
    stride: int = 1,
    padding: int = 0,
    *,
    bias: bool = False,
    dtype: np.dtype | type,
) -> Conv2d:
    """A convolution of zeros, for :func:`sparsify` to fill."""
    matrix = DenseMatrix(np.zeros((n_out, n_in * kernel_size**2), dtype))
    return Conv2d(matrix, n_in, kernel_size, stride, padding, bias=bias)


def dropout_layer(p: float, rng: np.random.Generator) -> Dropout:
    """Dropout with a random stream of its own, apart from those that a trainer spawns of the same seed."""
    return Dropout(p, np.random.default_rng(rng.integers(2**63)))


def require_images(name: str, sample_shape: Sequence[int]) -> tuple[int, ...]:
    """`sample_shape` as a tuple if samples of this shape are images."""
    if len(sample_shape) != 3:
        raise InputError(
            f"model {name} must be given images (channels, height, width), not samples {tuple(sample_shape)}"
        )
    return tuple(require_integer("a size in sample_shape", size, 1) for size in sample_shape)


def image_features(name: str, layers: dict[str, Module], sample_shape: Sequence[int]) -> int:
    """Values that the layers make of an image.

    Raises
    ------
    InputError
        If the images are too small; it names the network and the layer.
    """
    shape = tuple(sample_shape)
    for layer_name, layer in layers.items():
        try:
            shape = layer.output_shape(shape)
        except InputError as error:
            size = " x ".join(map(str, sample_shape[1:]))
            raise InputError(f"images of {size} do not fit model {name}: in layer {layer_name} {error}") from None
    return math.prod(shape)


def sparsified(layers: dict[str, Module], rng: np.random.Generator | int, options: Sparsification) -> Sequential:
    """The layers as a network, its weights drawn, its first layer without a gradient for the input."""
    model = Sequential(layers)
    sparsify(model, np.random.default_rng(rng), **options)
    next(iter(weight_layers(model).values())).needs_grad_input = False
    return model


def _random_matrix(dense: StoredMatrix, budget: int, storage: str, rng: np.random.Generator) -> StoredMatrix:
    """Zeros at random positions that keep the budget."""
    n_out = dense.shape[0]
    if storage == "condensed":
        mask = masks.random_constant_fan_in(dense.shape, budget // n_out, rng)
        return CondensedMatrix.from_mask(mask, dense.dtype)
    return CSRMatrix.from_mask(masks.random_per_layer(dense.shape, budget, rng), dense.dtype)
