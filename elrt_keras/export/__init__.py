"""Taking trained models elsewhere. TensorFlow is imported when a function here is called, not before."""

from elrt_keras.export.litert import LiteRTReport, to_litert

__all__ = ["LiteRTReport", "to_litert"]
