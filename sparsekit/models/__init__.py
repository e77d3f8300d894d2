"""Networks, built layer by layer with stored-sparse weights."""

from sparsekit.models.building import (
    DISTRIBUTIONS,
    STORAGES,
    layer_densities,
    sparse_layers,
    sparsify,
    weight_layers,
)
from sparsekit.models.mlp import ACTIVATIONS, mlp

__all__ = [
    "ACTIVATIONS",
    "DISTRIBUTIONS",
    "STORAGES",
    "layer_densities",
    "mlp",
    "sparse_layers",
    "sparsify",
    "weight_layers",
]
