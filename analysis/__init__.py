"""Experiments on dynamic sparse training: the variance theory, accuracy, ablation, timings, and sweeps that scale.

Run from a checkout as `python -m analysis.NAME`; needs ``pip install 'sparsekit[analysis]'``.
"""
