"""Inference with LiteRT models."""

import collections
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from elrt_keras.atomic import Path


class Runner:
    """A LiteRT model ready to run: it takes arrays of numbers and returns floats, for all types in the file.

    Args:
        model: the bytes of a model, or the path of a file.
        threads: int, CPU threads of the interpreter.

    Raises:
        ValueError: for a file that cannot be read or holds no model.
        ImportError: without the `litert` extra.
    """

    def __init__(self, model: bytes | Path, threads: int = 1):
        self._interpreter = _interpreter(model, threads)
        self._inputs, self._outputs = _ends(self._interpreter)

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """`{input name: shape of one example}`: `(height, width, channels)` for images."""
        return {name: tuple(map(int, details["shape"][1:])) for name, details in self._inputs.items()}

    @property
    def input_dtypes(self) -> dict[str, str]:
        """`{input name: type in the file}`, such as `"float32"` or `"int8"`."""
        return {name: np.dtype(details["dtype"]).name for name, details in self._inputs.items()}

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs."""
        return list(self._outputs)

    def __call__(self, examples: np.ndarray | Mapping[str, np.ndarray]) -> Any:
        """Computes the outputs of examples, one example at a time.

        Args:
            examples: an array `(N, …)` for a single input, or `{input name: (N, …)}`.

        Returns:
            A single output as a float32 array `(N, …)`, or `{output name: (N, …)}`.
        """
        by_name = examples if isinstance(examples, Mapping) else dict.fromkeys(self._inputs, np.asarray(examples))
        count = len(next(iter(by_name.values())))
        rows = [self._one({name: by_name[name][number][None] for name in self._inputs}) for number in range(count)]
        outputs = {name: np.concatenate([row[name] for row in rows]) for name in self._outputs}
        return outputs if len(outputs) > 1 else outputs.popitem()[1]

    def set_random_input(self, seed: int = 0) -> None:
        """Sets a random example for `invoke`. Its values are from 0 to 1, so as an index they are valid."""
        random = np.random.default_rng(seed)
        for details in self._inputs.values():
            self._set(details, random.uniform(0, 1, details["shape"]).astype("float32"))

    def invoke(self) -> None:
        """Computes the outputs of the example that was set."""
        self._interpreter.invoke()

    def _one(self, example):
        for name, details in self._inputs.items():
            self._set(details, example[name])
        self.invoke()
        return {name: self._get(details) for name, details in self._outputs.items()}

    def _get(self, details):
        output = self._interpreter.get_tensor(details["index"])
        scale, zero = details["quantization"]
        return (output.astype("float32") - zero) * scale if scale else output.astype("float32")

    def _set(self, details, example):
        dtype, (scale, zero) = details["dtype"], details["quantization"]
        if scale:
            limits = np.iinfo(dtype)
            example = np.clip(np.rint(example / scale + zero), limits.min, limits.max)
        self._interpreter.set_tensor(details["index"], example.astype(dtype))


def _ends(interpreter):
    """`({name: details}, {name: details})` of inputs and outputs, named by the signature or else by the tensors."""
    if len(interpreter.get_signature_list()) == 1:
        runner = interpreter.get_signature_runner()
        return runner.get_input_details(), runner.get_output_details()
    lists = interpreter.get_input_details(), interpreter.get_output_details()
    return tuple({details["name"]: details for details in one} for one in lists)


def _interpreter(model, threads):
    require_runtime()
    from ai_edge_litert.interpreter import Interpreter

    source = {"model_content": model} if isinstance(model, bytes) else {"model_path": str(model)}
    try:
        interpreter = Interpreter(num_threads=threads, **source)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        source_text = f"{len(model)} bytes" if isinstance(model, bytes) else str(model)
        raise ValueError(f"Expected a LiteRT model. Received: {source_text}: {error}") from error
    return interpreter


def require_runtime() -> None:
    """Checks that the LiteRT runtime is installed.

    Raises:
        ImportError: if it is not; the message names the package.
    """
    try:
        importlib.import_module("ai_edge_litert")
    except ImportError as error:
        raise ImportError(
            "Expected LiteRT: `pip install ai-edge-litert`, the `litert` extra. Received: no such package"
        ) from error


def operators(content: bytes) -> collections.Counter[str]:
    """Counts the operators in a model's bytes: `Counter({"CONV_2D": 20, …})`."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    codes = [operator.opcodeIndex for graph in model.subgraphs for operator in graph.operators]
    return collections.Counter(flatbuffer_utils.opcode_to_name(model, code) for code in codes)
