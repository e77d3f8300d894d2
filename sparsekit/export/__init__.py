"""Trained networks for prediction alone: without the neurons they can do without, each in one file."""

from sparsekit.export.classifier import ExportedClassifier, load_exported
from sparsekit.export.exporting import export_classifier, export_run

__all__ = ["ExportedClassifier", "export_classifier", "export_run", "load_exported"]
