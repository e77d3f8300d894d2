"""Layers with forward and backward passes written by hand. Arrays are feature-major: (features, batch)."""

from sparsekit.nn.activation import GELU, ReLU
from sparsekit.nn.composite import Flatten, Sequential
from sparsekit.nn.dropout import Dropout
from sparsekit.nn.initializers import he_normal
from sparsekit.nn.linear import Linear
from sparsekit.nn.losses import softmax_cross_entropy
from sparsekit.nn.module import Module
from sparsekit.nn.normalization import BatchNorm
from sparsekit.nn.parameter import Parameter
from sparsekit.nn.weighted import WeightLayer

__all__ = [
    "GELU",
    "BatchNorm",
    "Dropout",
    "Flatten",
    "Linear",
    "Module",
    "Parameter",
    "ReLU",
    "Sequential",
    "WeightLayer",
    "he_normal",
    "softmax_cross_entropy",
]
