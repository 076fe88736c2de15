"""Conversion of whole models: dense to low-rank and back, to stock layers, and to lower ranks."""

from elrt_keras.conversion.factorize import factorize
from elrt_keras.conversion.merge import expand, merge
from elrt_keras.conversion.recalibrate import recalibrate_batch_norm
from elrt_keras.conversion.shrink import ShrinkCurve, shrink, shrink_curve

__all__ = ["ShrinkCurve", "expand", "factorize", "merge", "recalibrate_batch_norm", "shrink", "shrink_curve"]
