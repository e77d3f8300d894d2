"""Data sets, and the batches a network trains on.

Arrays are samples first here, ``(n, *sample_shape)``, as scikit-learn and PyTorch have them;
`Standardization.transform` and `BatchLoader` turn them to feature-major, ``(*sample_shape, batch)``, the
layout inside the network.
"""

from sparsekit.data.augmentation import CropAndFlip
from sparsekit.data.batches import BatchLoader, Standardization
from sparsekit.data.dataset import Dataset, as_samples
from sparsekit.data.idx import read_idx
from sparsekit.data.loading import DATASETS, load_dataset
from sparsekit.data.npz import read_npz
from sparsekit.data.splits import stratified_split

__all__ = [
    "DATASETS",
    "BatchLoader",
    "CropAndFlip",
    "Dataset",
    "Standardization",
    "as_samples",
    "load_dataset",
    "read_idx",
    "read_npz",
    "stratified_split",
]
