"""LiteRT (TFLite) models as bytes: made from Keras models, run, timed. TensorFlow is loaded when it is needed."""

from elrt_keras.litert.convert import (
    QUANTIZATIONS,
    chain_to_litert,
    for_inference,
    input_dtype,
    model_to_litert,
    only_output,
)
from elrt_keras.litert.interpreter import Runner, operators, require_runtime
from elrt_keras.litert.timing import machine_key, time_interleaved

__all__ = [
    "QUANTIZATIONS",
    "Runner",
    "chain_to_litert",
    "for_inference",
    "input_dtype",
    "machine_key",
    "model_to_litert",
    "only_output",
    "operators",
    "require_runtime",
    "time_interleaved",
]
