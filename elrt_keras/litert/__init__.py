"""LiteRT (TFLite) models as bytes: conversion from Keras, inference and timing. TensorFlow is loaded on first use."""

from elrt_keras.litert.convert import (
    QUANTIZATIONS,
    chain_to_litert,
    for_inference,
    model_to_litert,
)
from elrt_keras.litert.interface import INPUT, OUTPUT, Interface, interface, only_output, outputs_of
from elrt_keras.litert.interpreter import Runner, operators, require_runtime
from elrt_keras.litert.timers import CommandTimer, LocalTimer, Timer
from elrt_keras.litert.timing import machine_key, time_interleaved

__all__ = [
    "CommandTimer",
    "INPUT",
    "LocalTimer",
    "OUTPUT",
    "QUANTIZATIONS",
    "Interface",
    "Runner",
    "Timer",
    "chain_to_litert",
    "for_inference",
    "interface",
    "machine_key",
    "model_to_litert",
    "only_output",
    "operators",
    "outputs_of",
    "require_runtime",
    "time_interleaved",
]
