"""What `elrt-export` works on: a model with its data, files with their reports."""

import contextlib
import dataclasses
import json
import os

from elrt_keras import export
from elrt_keras.atomic import write_file
from elrt_keras.launch import rundir, training
from elrt_keras.launch.config import TrainConfig
from elrt_keras.launch.data import is_streamed, plain_errors
from elrt_keras.terminal.tables import render_table

SUFFIXES = {"litert": ".tflite", "onnx": ".onnx", "saved_model": ""}
_FUNCTIONS = {"onnx": export.to_onnx, "saved_model": export.to_saved_model}


@dataclasses.dataclass(frozen=True)
class Source:
    """A model to be exported.

    Attributes:
        model: the Keras model.
        title: what it is, for file names: `"low_rank"`, `"dense"`, or the name of the `.keras` file.
        folder: where its exports go if nothing else is said.
        data: its data set, or `None`.
        examples: the arguments of `to_litert` that come from the data set.
    """

    model: object
    title: str
    folder: str
    data: object
    examples: dict


def open_source(path, dataset=None, data_dir=None, image_size=None):
    """The `Source` of a run directory, or of a `.keras` file with the data set that is named, if any.

    Raises:
        ValueError: for something else, a data set that is not there, one named for a run, which has its own, or what
            goes with a data set where none is named.
    """
    if os.path.isdir(path):
        config = rundir.read_config(path)
        if dataset is not None or image_size is not None:
            raise ValueError(f"A run has its own data set. Received: dataset={dataset!r}, image_size={image_size}")
        model, title = rundir.load_model(path), "dense" if config.format == "dense" else "low_rank"
        data, examples = _examples(config, data_dir)
        rundir.check_classes(path, data)
        return Source(model, title, os.path.join(path, "export"), data, examples)
    if not os.path.exists(path):
        raise ValueError(f"Expected a run directory or a .keras file. Received: {path!r}, which does not exist")
    if dataset is None and (data_dir is not None or image_size is not None):
        raise ValueError(f"Expected --dataset with these. Received: data_dir={data_dir!r}, image_size={image_size}")
    model, folder = rundir.load_model(path), os.path.dirname(os.path.abspath(path))
    title = os.path.splitext(os.path.basename(path))[0]
    if dataset is None:
        return Source(model, title, folder, None, {})
    if image_size is None and is_streamed(dataset):
        image_size = model.inputs[0].shape[1]
    config = TrainConfig(dataset=dataset, data_dir=data_dir, image_size=image_size)
    return Source(model, title, folder, *_examples(config))


def _examples(config, data_dir=None):
    data = training.load_data(config, data_dir)
    return data, examples_of(data, config)


def examples_of(data, config):
    """The arguments of `to_litert` that come from a data set: training images as they are, test images, class names."""
    plain = dataclasses.replace(config, augmentation="none", batch_size=min(config.batch_size, data.train_count))
    return {
        "representative_data": lambda: data.train_batches(plain),
        "evaluation_data": data.test_batches(config),
        "class_names": list(data.class_names),
    }


def export_file(source, path, kind, file_format="litert", io_dtype="float32", **options):
    """Exports a model to `path` (`None`: to its own folder) and writes the report beside it.

    Args:
        source: a `Source`.
        path: where to.
        kind: `"float32"` or a quantisation.
        file_format: `"litert"`, `"onnx"` or `"saved_model"`.
        io_dtype: type of input and output of an int8 file.
        options: further arguments of the export.

    Returns:
        The report.

    Raises:
        ValueError: as `to_litert`.
    """
    if path is None:
        path = os.path.join(_made(source.folder), f"{source.title}_{kind}{SUFFIXES[file_format]}")
    print(f"{path}: exporting and comparing with Keras", flush=True)
    with contextlib.nullcontext() if source.data is None else plain_errors(source.data):
        if file_format == "litert":
            options["io_dtype"] = io_dtype if kind == "int8" else "float32"
            quantization = None if kind == "float32" else kind
            report = export.to_litert(source.model, path, quantization, **source.examples, **options)
        else:
            evaluation = source.examples.get("evaluation_data")
            report = _FUNCTIONS[file_format](source.model, path, evaluation_data=evaluation, **options)
    write_report(path, report, source.title)
    return report


def _made(folder):
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ValueError(f"Cannot make the folder of exports. Received: {folder!r}: {error}") from error
    return folder


def write_report(path, report, title):
    """Writes a report as JSON beside the file it is about, where `elrt-benchmark` finds it."""
    text = json.dumps({"title": title, **dataclasses.asdict(report)}, indent=2) + "\n"
    # Not in the place of the suffix: `plan.json` may be somebody's.
    write_file(f"{path}.json", text.encode())


def table(reports):
    """Reports as text, one row each."""

    def percent(part):
        return "" if part is None else f"{part:.2%}"

    rows = [
        (
            os.path.basename(report.path),
            f"{report.size_bytes:,}",
            f"{report.macs:,}",
            *map(percent, (report.accuracy, report.keras_accuracy, report.agreement)),
            f"{report.max_difference:.1e}",
        )
        for report in reports
    ]
    return render_table(["file", "bytes", "MACs", "accuracy", "Keras", "agreement", "largest difference"], rows)
