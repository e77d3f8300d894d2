"""Training: the loop, what it records, and what it leaves on disk."""

from sparsekit.training.callbacks import Callback, ProgressBar
from sparsekit.training.checkpoint import load_checkpoint, save_checkpoint
from sparsekit.training.classifier import Classifier
from sparsekit.training.evolution import MaskEvolution
from sparsekit.training.history import History
from sparsekit.training.trainer import Trainer

__all__ = [
    "Callback",
    "Classifier",
    "History",
    "MaskEvolution",
    "ProgressBar",
    "Trainer",
    "load_checkpoint",
    "save_checkpoint",
]
