"""Tuning: choice of the fastest way to train a model on the present device. All ways give equal results."""

from elrt_keras.tuning.report import TrainingReport, TunedLayer
from elrt_keras.tuning.tune import tune_training

__all__ = ["TrainingReport", "TunedLayer", "tune_training"]
