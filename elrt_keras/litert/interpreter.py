"""Running LiteRT models."""

import collections
import importlib

import numpy as np

from elrt_keras.atomic import Path


class Runner:
    """A LiteRT model ready to run: arrays of numbers in, floats out, whatever the types in the file.

    Args:
        model: the bytes of a model, or the path of a file.
        threads: int, CPU threads of the interpreter.

    Raises:
        ValueError: for a file that cannot be read or holds no model with one input and one output.
        ImportError: without the `litert` extra.
    """

    def __init__(self, model: bytes | Path, threads: int = 1):
        interpreter = _interpreter(model, threads)
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        if len(inputs) != 1 or len(outputs) != 1:
            raise ValueError(
                f"Expected a LiteRT model with one input and one output. Received: {len(inputs)} and {len(outputs)}"
            )
        self._interpreter, self._input, self._output = interpreter, inputs[0], outputs[0]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example: `(height, width, channels)` for images."""
        return tuple(int(size) for size in self._input["shape"][1:])

    @property
    def input_dtype(self) -> str:
        """Type of the input in the file, such as `"float32"` or `"int8"`."""
        return np.dtype(self._input["dtype"]).name

    def __call__(self, examples: np.ndarray) -> np.ndarray:
        """Outputs `(N, …)` as float32 of examples `(N, …)`, computed one by one."""
        return np.concatenate([self._one(example[None]) for example in np.asarray(examples)])

    def set_random_input(self, seed: int = 0) -> None:
        """Puts a random example in place, for `invoke`: from 0 to 1, so that as the index of a word it is the first."""
        example = np.random.default_rng(seed).uniform(0, 1, self._input["shape"])
        self._set(example.astype("float32"))

    def invoke(self) -> None:
        """Computes the outputs of the example in place."""
        self._interpreter.invoke()

    def _one(self, example):
        self._set(example)
        self.invoke()
        output = self._interpreter.get_tensor(self._output["index"])
        scale, zero = self._output["quantization"]
        return (output.astype("float32") - zero) * scale if scale else output.astype("float32")

    def _set(self, example):
        dtype, (scale, zero) = self._input["dtype"], self._input["quantization"]
        if scale:
            limits = np.iinfo(dtype)
            example = np.clip(np.rint(example / scale + zero), limits.min, limits.max)
        self._interpreter.set_tensor(self._input["index"], example.astype(dtype))


def _interpreter(model, threads):
    require_runtime()
    from ai_edge_litert.interpreter import Interpreter

    source = {"model_content": model} if isinstance(model, bytes) else {"model_path": str(model)}
    try:
        interpreter = Interpreter(num_threads=threads, **source)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        what = f"{len(model)} bytes" if isinstance(model, bytes) else str(model)
        raise ValueError(f"Expected a LiteRT model. Received: {what}: {error}") from error
    return interpreter


def require_runtime() -> None:
    """Raises an `ImportError` that says what to install where there is no LiteRT runtime."""
    try:
        importlib.import_module("ai_edge_litert")
    except ImportError as error:
        raise ImportError(
            "LiteRT needs `pip install ai-edge-litert`, the `litert` extra. Received: no such package"
        ) from error


def operators(content: bytes) -> collections.Counter[str]:
    """How often each operator occurs in a model's bytes: `Counter({"CONV_2D": 20, …})`."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    codes = [operator.opcodeIndex for graph in model.subgraphs for operator in graph.operators]
    return collections.Counter(flatbuffer_utils.opcode_to_name(model, code) for code in codes)
