"""Whole models: dense to low-rank and back, to stock layers, and to lower ranks."""

from elrt_keras.conversion.dense import expand, merge
from elrt_keras.conversion.low_rank import factorize
from elrt_keras.conversion.truncation import ShrinkCurve, shrink, shrink_curve

__all__ = ["ShrinkCurve", "expand", "factorize", "merge", "shrink", "shrink_curve"]
