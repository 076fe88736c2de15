"""Export of trained models to other formats. TensorFlow is imported when a function here is called, not before."""

from elrt_keras.export.benchmark import LatencyResult, benchmark_litert
from elrt_keras.export.graphs import GraphReport, to_onnx, to_saved_model
from elrt_keras.export.legacy import to_tf_keras
from elrt_keras.export.litert import LiteRTReport, to_litert
from elrt_keras.export.tfmot import cluster, prune, quantization_aware, strip

__all__ = [
    "GraphReport",
    "LatencyResult",
    "LiteRTReport",
    "benchmark_litert",
    "cluster",
    "prune",
    "quantization_aware",
    "strip",
    "to_litert",
    "to_onnx",
    "to_saved_model",
    "to_tf_keras",
]
