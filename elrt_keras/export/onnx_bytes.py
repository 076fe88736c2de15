"""Conversion of a Keras model to the bytes of an ONNX file, with tf2onnx."""

import keras
import numpy as np

from elrt_keras.litert import INPUT, Interface, outputs_of


def to_onnx_bytes(model: keras.Model, ends: Interface, opset: int | None = None) -> bytes:
    """Converts a model on the TensorFlow backend to ONNX, for any batch size.

    Args:
        model: a built Keras model.
        ends: its inputs and outputs, with their names in the file.
        opset: version of the ONNX operators; `None` for the default of tf2onnx.
    """
    import tensorflow as tf
    import tf2onnx

    specs = [tf.TensorSpec((None, *shape), ends.dtypes[name], name) for name, shape in ends.inputs.items()]

    @tf.function(input_signature=specs, autograph=False)
    def serve(*inputs):
        by_name = dict(zip(ends.inputs, inputs))
        batch = by_name if len(by_name) > 1 else by_name[INPUT]
        # Each output needs its own operation. Otherwise an output that is also an input, or occurs twice, gets no name.
        return {name: tf.identity(output) for name, output in zip(ends.outputs, outputs_of(model, batch))}

    handlers = {"Erfc": (_one_minus_erf, [])}
    proto, _ = tf2onnx.convert.from_function(serve, specs, opset=opset, custom_op_handlers=handlers)
    return proto.SerializeToString()


def _one_minus_erf(graph, node, name, _):
    """Replaces erfc(x) by 1 − erf(x). TensorFlow computes the exact GELU with erfc, which tf2onnx does not support."""
    from tf2onnx import utils

    dtype, shape = graph.get_dtype(node.output[0]), graph.get_shape(node.output[0])
    one = graph.make_const(utils.make_name("one"), np.array(1, utils.map_onnx_to_numpy_type(dtype)))
    graph.remove_node(node.name)
    erf = graph.make_node("Erf", node.input, dtypes=[dtype], shapes=[shape])
    inputs = [one.output[0], erf.output[0]]
    return graph.make_node("Sub", inputs, name=name, outputs=node.output, dtypes=[dtype], shapes=[shape])
