"""Inputs and outputs of a model in exported files: their names, shapes and types."""

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras

from elrt_keras.formats.arrays import Tensor
from elrt_keras.formats.chain import Shape
from elrt_keras.graph.calls import InputShape, filled_shape

if TYPE_CHECKING:
    import tf_keras

INPUT, OUTPUT = "image", "scores"


@dataclasses.dataclass(frozen=True)
class Interface:
    """Inputs and outputs with their names in exported files.

    Attributes:
        inputs: `{name: shape of one example}`; a single input is called `image`.
        dtypes: `{name: type}` of the inputs: the type of the model for integers, else float32.
        outputs: `{name: shape of one example's output}`; a single output is called `scores`.
    """

    inputs: dict[str, Shape]
    dtypes: dict[str, str]
    outputs: dict[str, Shape]

    @property
    def is_simple(self) -> bool:
        """Reports if there is one input and one output."""
        return len(self.inputs) == len(self.outputs) == 1


def interface(model: "keras.Model | tf_keras.Model", input_shape: InputShape | None = None) -> Interface:
    """Returns the inputs and outputs of a model.

    If there are several, inputs keep their names in the model. Outputs are named by the keys of a dict, or by their
    last layers.

    Args:
        model: a built model with known inputs.
        input_shape: shape of one example or `{input name: shape}`, for a model that leaves sizes open.

    Raises:
        ValueError: for sizes that stay open, a shape that the model does not take, or an unknown input name.
    """
    names = _input_names(model)
    shapes: dict[str, Any] = dict(zip(names, (tuple(tensor.shape[1:]) for tensor in model.inputs)))
    for name, shape in _shapes_by_name(input_shape, names).items():
        shapes[name] = filled_shape(name, shapes[name], shape)
    still_open = {name: shape for name, shape in shapes.items() if None in shape}
    if still_open:
        raise ValueError(f"Expected inputs of known shape; pass `input_shape`. Received: {still_open}")
    dtypes = {name: _dtype(tensor) for name, tensor in zip(names, model.inputs)}
    outputs = [tuple(tensor.shape[1:]) for tensor in model.outputs]
    return Interface(shapes, dtypes, dict(zip(_output_names(model), outputs)))


def _shapes_by_name(input_shape, names):
    if input_shape is None:
        return {}
    if isinstance(input_shape, Mapping):
        unknown = [name for name in input_shape if name not in names]
        if unknown:
            raise ValueError(f"Expected names of inputs among {names}. Received: input_shape={dict(input_shape)}")
        return input_shape
    if len(names) > 1:
        raise ValueError(f"Expected input_shape as {{name: shape}} of {names}. Received: input_shape={input_shape}")
    return {names[0]: input_shape}


def _dtype(tensor):
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return "float32" if "float" in dtype else dtype


def _output_names(model):
    if len(model.outputs) == 1:
        return [OUTPUT]
    structure = getattr(model, "output", None)
    if isinstance(structure, dict) and len(structure) == len(model.outputs):
        return _unique(keras.tree.flatten({key: str(key) for key in structure}))
    return _unique(model.output_names)


def _unique(names):
    """Makes names of letters, digits and underscores only. Repeated names get a number at the end."""
    plain, seen, unique = [re.sub(r"\W", "_", name) for name in names], collections.Counter(), []
    for name in plain:
        unique.append(f"{name}_{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return unique


def outputs_of(model: "keras.Model | tf_keras.Model", inputs: Any, training: bool = False) -> list[Tensor]:
    """Runs a model and returns its outputs as a flat list, in the order of its interface.

    Args:
        model: the model.
        inputs: a batch of a single input, or `{name: batch}`.
        training: whether layers run as in training.
    """
    if isinstance(inputs, Mapping):
        flat = [inputs[name] for name in _input_names(model)]
        structured = not isinstance(model, keras.Sequential)
        inputs = keras.tree.pack_sequence_as(model.input, flat) if structured else flat[0]
    return keras.tree.flatten(model(inputs, training=training))


def _input_names(model):
    return _unique([INPUT] if len(model.inputs) == 1 else [tensor.name for tensor in model.inputs])


def only_output(model: "keras.Model | tf_keras.Model", inputs: Tensor) -> Tensor:
    """Runs a model with one output in inference mode. Returns the output, also if it is in a list or a dict."""
    (output,) = outputs_of(model, inputs)
    return output
