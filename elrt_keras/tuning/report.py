"""Report of tuning: the chosen way of each layer. It can be printed, saved, and applied to a copy of the model."""

import dataclasses
import json
import os
from collections.abc import Callable

import keras

from elrt_keras.atomic import Path, write_bytes
from elrt_keras.distillation import student_of
from elrt_keras.graph.paths import iterate_sublayers
from elrt_keras.layers import FactorizedLayer, TrainingWay
from elrt_keras.layers.batch_norm import fuse_batch_norm
from elrt_keras.terminal.tables import render_table

_HEAD = {"kind": "elrt_keras.TrainingReport", "version": 1}


@dataclasses.dataclass(frozen=True)
class TunedLayer:
    """Result of tuning one low-rank layer.

    Attributes:
        way: the chosen `TrainingWay`.
        default_way: the way without tuning.
        seconds, default_seconds: forward and backward pass of all calls of the layer in one step.
        kept_bytes, default_kept_bytes: memory that one batch needs for the gradient, beside inputs and outputs of the
            layer.
    """

    way: TrainingWay
    default_way: TrainingWay
    seconds: float
    default_seconds: float
    kept_bytes: int
    default_kept_bytes: int


class TrainingReport(dict[str, TunedLayer]):
    """A dict from layer paths to `TunedLayer`; `print()` shows a table.

    Args:
        layers: the dict.
        device: text that identifies the device of the times.
        batch_size: examples of a step.

    Example:

    >>> layer = elrt_keras.layers.Tucker2Conv2D(8, 3, ranks=4, name="conv")
    >>> report = elrt_keras.tune_training(keras.Sequential([keras.Input((8, 8, 8)), layer]), 4)
    >>> report["conv"].way == layer.training_way, report["conv"].seconds <= report["conv"].default_seconds
    (True, True)
    """

    def __init__(self, layers: dict[str, TunedLayer], device: str, batch_size: int):
        super().__init__(layers)
        self.device, self.batch_size = device, batch_size

    def __str__(self) -> str:
        if not self:
            return "No low-rank layers to tune."
        head = ["layer", "trains as", "ms", "ms untuned", "ratio", "MB kept", "MB untuned"]
        totals = (
            sum(getattr(row, name) for row in self.values())
            for name in ("seconds", "default_seconds", "kept_bytes", "default_kept_bytes")
        )
        rows = [
            (path, str(row.way), *_cells(row.seconds, row.default_seconds, row.kept_bytes, row.default_kept_bytes))
            for path, row in self.items()
        ]
        return render_table(head, [*rows, ("all", "", *_cells(*totals))], last_is_total=True)

    def save(self, path: Path) -> None:
        """Writes the report as JSON, for `load`."""
        layers = {
            name: {**dataclasses.asdict(row), "way": row.way.to_json(), "default_way": row.default_way.to_json()}
            for name, row in self.items()
        }
        document = {**_HEAD, "device": self.device, "batch_size": self.batch_size, "layers": layers}
        write_bytes(path, (json.dumps(document, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> "TrainingReport":
        """Reads a report that `save` wrote.

        Raises:
            ValueError: if the file is missing or is no report; the message names the file.
        """
        try:
            with open(path, encoding="utf-8") as file:
                document = json.load(file)
            if any(document.get(name) != value for name, value in _HEAD.items()):
                raise ValueError(f"kind {document.get('kind')!r}, version {document.get('version')!r}")
            layers = {name: _layer_of(fields) for name, fields in document["layers"].items()}
            return cls(layers, document["device"], document["batch_size"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"Expected a training report. Received: {os.fspath(path)!r}: {error}") from error

    def apply(self, model: keras.Model) -> None:
        """Sets the ways in another copy of the model and calls `fuse_batch_norm`, like `tune_training`.

        Raises:
            ValueError: for a model without these layers, or a way that does not fit its layer.
        """
        layers = dict(low_rank_layers(model))
        missing = sorted(set(self) - set(layers))
        if missing:
            raise ValueError(f"Expected a model with the layers {missing}. Received: model={model.name!r} without")
        fuse_batch_norm(model)
        for path, row in self.items():
            layers[path].training_way = row.way
        if model.compiled:
            model.make_train_function(force=True)


def low_rank_layers(model: keras.Model) -> list[tuple[str, FactorizedLayer]]:
    """Lists `(path, layer)` of all low-rank layers of a model, each once."""
    return [(p, layer) for p, layer in iterate_sublayers(student_of(model)) if isinstance(layer, FactorizedLayer)]


def _cells(seconds, default_seconds, kept, default_kept):
    ratio = f"{default_seconds / seconds:.2f}×" if seconds else ""
    return (
        f"{1e3 * seconds:.2f}",
        f"{1e3 * default_seconds:.2f}",
        ratio,
        *(f"{n / 1e6:.2f}" for n in (kept, default_kept)),
    )


def _layer_of(fields):
    convert: dict[str, Callable] = dict.fromkeys(("way", "default_way"), TrainingWay.from_json)
    convert |= dict.fromkeys(("kept_bytes", "default_kept_bytes"), int)
    return TunedLayer(**{name: convert.get(name, float)(value) for name, value in fields.items()})
