"""Images to train on: Fashion-MNIST where it is at hand, digits elsewhere."""

import os

from sparsekit import InputError, load_dataset
from sparsekit.data import Dataset
from sparsekit.data.sources import SOURCES, find_local


def load_images() -> Dataset:
    """Fashion-MNIST from the folder that SPARSEKIT_DATA names, else scikit-learn's digits and a sentence why."""
    try:
        missing = [file for file in SOURCES["fashion-mnist"].sha256 if find_local("fashion-mnist", file) is None]
        if not missing:
            return load_dataset("fashion-mnist")
        folder = os.environ.get("SPARSEKIT_DATA")
        reason = f"{folder} has no fashion-mnist/{missing[0]}" if folder else "SPARSEKIT_DATA names no folder"
    except InputError as error:
        reason = str(error)
    print(f"Digits (8 x 8) instead of Fashion-MNIST (28 x 28): {reason}. Everything below works with both.")
    return load_dataset("digits")
