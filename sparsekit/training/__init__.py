"""Training: the loop, what it records, and what it leaves on disk."""

from sparsekit.training.callbacks import Callback, ProgressBar
from sparsekit.training.classifier import Classifier
from sparsekit.training.history import History
from sparsekit.training.trainer import Trainer

__all__ = ["Callback", "Classifier", "History", "ProgressBar", "Trainer"]
