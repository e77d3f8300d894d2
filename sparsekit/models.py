"""Networks, built layer by layer with stored-sparse weights."""

from collections.abc import Callable, Collection, Sequence

import numpy as np

from sparsekit import distributions, masks
from sparsekit.checks import require_choice, require_fraction, require_integer
from sparsekit.condensed import CondensedMatrix
from sparsekit.csr import CSRMatrix
from sparsekit.dense import DenseMatrix
from sparsekit.errors import InputError
from sparsekit.nn import GELU, BatchNorm, Dropout, Flatten, Linear, ReLU, Sequential, he_normal
from sparsekit.nn.module import Module
from sparsekit.stored import StoredMatrix

STORAGES = ("dense", "csr", "condensed")
DISTRIBUTIONS: dict[str, Callable[[Sequence[tuple[int, ...]], float], list[float]]] = {
    "erk": distributions.erdos_renyi_kernel,
    "er": distributions.erdos_renyi,
    "uniform": distributions.uniform,
}
ACTIVATIONS: dict[str, type[Module]] = {"relu": ReLU, "gelu": GELU}


def mlp(
    sizes: Sequence[int],
    *,
    storage: str = "condensed",
    sparsity: float = 0.9,
    distribution: str = "erk",
    dense_layers: Collection[str] = (),
    no_ablation_layers: Collection[str] | None = None,
    activation: str = "relu",
    batch_norm: bool = False,
    dropout: float = 0.0,
    backend: str = "cpu",
    dtype: np.dtype | type = np.float32,
    rng: np.random.Generator | int = 0,
) -> Sequential:
    """A multi-layer perceptron; its linear layers are named fc1, fc2, ... and the last one gives the logits.

    Parameters
    ----------
    sizes : (n_features, hidden..., n_classes), at least two sizes
    storage : how the sparse weights are stored: "condensed" (constant fan-in), "csr" (unstructured), or
        "dense", which makes every layer dense whatever `sparsity` says
    sparsity : share of all weights that is not stored, in [0, 1)
    distribution : "erk", "er" or "uniform": how the stored weights are shared out among the layers
    dense_layers : names of layers to keep dense; `sparsity` then holds for the others
    no_ablation_layers : names of layers whose neurons are never ablated; by default the output layer
    activation : "relu" or "gelu"
    batch_norm : whether to normalise the outputs of the hidden layers before the activation
    dropout : probability of zeroing a hidden unit in training
    backend : kernels for the sparse products, see :data:`sparsekit.kernels.BACKENDS`
    dtype : float32 or float64
    rng : random source of masks and weights, or a seed for one

    Raises
    ------
    InputError
        For a size that is not positive, a sparsity outside [0, 1), or an unknown name.
    """
    rng = np.random.default_rng(rng)
    sizes = _require_sizes(sizes)
    names = [f"fc{i + 1}" for i in range(len(sizes) - 1)]
    for option, chosen in (("dense_layers", dense_layers), ("no_ablation_layers", no_ablation_layers or ())):
        for name in chosen:
            require_choice(option, name, names)
    unablated = [names[-1]] if no_ablation_layers is None else no_ablation_layers
    require_choice("activation", activation, ACTIVATIONS)
    shapes = dict(zip(names, zip(sizes[1:], sizes[:-1], strict=True), strict=True))
    densities = layer_densities(shapes, storage, sparsity, distribution, dense_layers)
    layers: dict[str, Module] = {"flatten": Flatten()}
    for i, name in enumerate(names, start=1):
        layers[name] = _linear(shapes[name], densities[name], storage, name not in unablated, backend, dtype, rng)
        if name != names[-1]:
            if batch_norm:
                layers[f"bn{i}"] = BatchNorm(sizes[i], dtype)
            layers[f"{activation}{i}"] = ACTIVATIONS[activation]()
            if dropout:  # a stream of its own, apart from those that a trainer spawns of the same seed
                layers[f"dropout{i}"] = Dropout(dropout, np.random.default_rng(rng.integers(2**63)))
    model = Sequential(layers)
    linear_layers(model)["fc1"].needs_grad_input = False
    return model


def layer_densities(
    shapes: dict[str, tuple[int, ...]],
    storage: str,
    sparsity: float,
    distribution: str,
    dense_layers: Collection[str] = (),
) -> dict[str, float]:
    """Density of every layer by name, 1.0 where it is dense; arguments as in :func:`mlp`."""
    require_choice("storage", storage, STORAGES)
    require_choice("distribution", distribution, DISTRIBUTIONS)
    density = 1 - require_fraction("sparsity", sparsity, high_open=True)
    sparse = [name for name in shapes if name not in dense_layers]
    if storage == "dense" or density == 1 or not sparse:
        return dict.fromkeys(shapes, 1.0)
    given = DISTRIBUTIONS[distribution]([shapes[name] for name in sparse], density)
    return dict.fromkeys(shapes, 1.0) | dict(zip(sparse, given, strict=True))


def linear_layers(model: Module) -> dict[str, Linear]:
    """The linear layers of a network by dotted name, in forward order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}


def sparse_layers(model: Module) -> dict[str, Linear]:
    """The layers whose topology a method may change."""
    return {name: layer for name, layer in linear_layers(model).items() if layer.is_sparse}


def _linear(
    shape: tuple[int, int],
    density: float,
    storage: str,
    ablate: bool,
    backend: str,
    dtype: np.dtype | type,
    rng: np.random.Generator,
) -> Linear:
    """A linear layer with a random mask that keeps the budget, and He-normal weights."""
    matrix: StoredMatrix
    if density == 1:
        matrix, budget = DenseMatrix(np.zeros(shape, dtype)), None
    else:
        budget = distributions.budget(shape, density)
        if storage == "condensed":
            mask = masks.random_constant_fan_in(shape, budget // shape[0], rng)
            matrix = CondensedMatrix.from_mask(mask, dtype)
        else:
            matrix = CSRMatrix.from_mask(masks.random_per_layer(shape, budget, rng), dtype)
    he_normal(matrix, rng)
    return Linear(matrix, backend=backend, budget=budget, ablate=ablate)


def _require_sizes(sizes: Sequence[int]) -> list[int]:
    if len(sizes) < 2:
        raise InputError(f"sizes must be (n_features, hidden..., n_classes), not {tuple(sizes)}")
    return [require_integer(f"sizes[{i}]", size, 1) for i, size in enumerate(sizes)]
