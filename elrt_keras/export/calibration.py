"""Start values for the ranges of a quantisation-aware model, computed from data before training."""

from typing import TYPE_CHECKING

import numpy as np

from elrt_keras.export.legacy import import_tf_keras

if TYPE_CHECKING:
    import tf_keras

_KINDS = ("post_activation", "output", "pre_activation")


def calibrate(aware: "tf_keras.Model", model: "tf_keras.Model", inputs: np.ndarray) -> None:
    """Sets the ranges of a quantisation-aware model to the ranges of the float model on some inputs.

    tfmot starts every range at −6 to 6 and moves it by a thousandth per step. So larger activations would be cut off
    for a long time.

    Args:
        aware: tf_keras model of `quantization_aware`; its layers have the names of the float layers after `quant_`.
        model: the tf_keras model that it was made from.
        inputs: float32 array `(N, …)`.
    """
    for name, (low, high) in _ranges(aware, model, inputs).items():
        _variable(aware, f"{name}_min").assign(min(low, 0.0))
        _variable(aware, f"{name}_max").assign(max(high, 0.0))
    # One pass in training mode sets the ranges of the weights and of the input. All other weights are restored.
    kept = [weight for weight in aware.weights if not _is_range(weight)]
    values = [weight.numpy() for weight in kept]
    aware(inputs, training=True)
    for weight, value in zip(kept, values):
        weight.assign(value)


def _is_range(weight):
    return weight.name.split(":")[0].endswith(("_min", "_max"))


def _variable(aware, name):
    return next(weight for weight in aware.weights if weight.name == f"{name}:0")


def _ranges(aware, model, inputs):
    """`{"quant_layer/output": (low, high)}` for each range of an activation, from all calls of the float model."""
    tf_keras = import_tf_keras()
    tensors = {}
    for layer in aware.layers:
        for kind in _KINDS:
            name = f"quant_{layer.name.removeprefix('quant_')}/{kind}"
            if any(weight.name == f"{name}_min:0" for weight in layer.weights):
                source = model.get_layer(layer.name.removeprefix("quant_"))
                outputs = [node.outputs for node in source.inbound_nodes]
                tensors[name] = _before_activation(source) if kind == "pre_activation" else outputs
    outputs = tf_keras.Model(model.inputs, tensors)(inputs, training=False)
    return {
        name: (min(float(np.min(value)) for value in values), max(float(np.max(value)) for value in values))
        for name, values in outputs.items()
    }


def _before_activation(layer):
    """Outputs of the layer without its activation, on the same inputs."""
    twin = type(layer).from_config({**layer.get_config(), "activation": "linear", "name": f"{layer.name}_linear"})
    outputs = [twin(node.input_tensors) for node in layer.inbound_nodes]
    twin.set_weights(layer.get_weights())
    return outputs
