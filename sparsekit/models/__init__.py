"""Networks, built layer by layer with stored-sparse weights."""

from sparsekit.models.building import (
    DISTRIBUTIONS,
    STORAGES,
    layer_densities,
    sparse_layers,
    sparsify,
    weight_layers,
)
from sparsekit.models.cnn import cnn, mnist_cnn
from sparsekit.models.mlp import ACTIVATIONS, mlp
from sparsekit.models.resnet import resnet18, wide_resnet22

__all__ = [
    "ACTIVATIONS",
    "DISTRIBUTIONS",
    "STORAGES",
    "cnn",
    "layer_densities",
    "mlp",
    "mnist_cnn",
    "resnet18",
    "sparse_layers",
    "sparsify",
    "weight_layers",
    "wide_resnet22",
]
