"""Layers with forward and backward passes written by hand. Arrays are feature-major: (features, batch)."""

from sparsekit.nn.activation import GELU, ReLU
from sparsekit.nn.composite import Flatten, Residual, Sequential
from sparsekit.nn.conv import Conv2d
from sparsekit.nn.dropout import Dropout
from sparsekit.nn.initializers import fan_in_uniform, he_normal
from sparsekit.nn.linear import Linear
from sparsekit.nn.losses import softmax_cross_entropy
from sparsekit.nn.module import Module
from sparsekit.nn.normalization import BatchNorm, BatchNorm2d
from sparsekit.nn.parameter import Parameter
from sparsekit.nn.pooling import AvgPool2d, GlobalAvgPool, MaxPool2d
from sparsekit.nn.weighted import WeightLayer

__all__ = [
    "GELU",
    "AvgPool2d",
    "BatchNorm",
    "BatchNorm2d",
    "Conv2d",
    "Dropout",
    "Flatten",
    "GlobalAvgPool",
    "Linear",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "Residual",
    "Sequential",
    "WeightLayer",
    "fan_in_uniform",
    "he_normal",
    "softmax_cross_entropy",
]
