"""Tuning: the fastest of equal ways to train a model on the device at hand."""

from elrt_keras.tuning.report import TrainingReport, TunedLayer
from elrt_keras.tuning.tune import tune_training

__all__ = ["TrainingReport", "TunedLayer", "tune_training"]
