"""Models with their data, and exported files with their reports: the work of `elrt-export`."""

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
    """A model to export.

    Attributes:
        model: the Keras model.
        title: first part of the file names: `"low_rank"`, `"dense"`, or the name of the `.keras` file.
        folder: default folder of its exports.
        data: its data set, or `None`.
        examples: the arguments of `to_litert` that come from the data set.
    """

    model: object
    title: str
    folder: str
    data: object
    examples: dict


def open_source(path, dataset=None, data_dir=None, image_size=None):
    """Opens a run directory, or a `.keras` file with an optional data set, as a `Source`.

    Raises:
        ValueError: for any other path, a missing data set, a data set given for a run (a run has its own), or
            `data_dir` or `image_size` without a data set.
    """
    if os.path.isdir(path):
        config = rundir.read_config(path)
        if dataset is not None or image_size is not None:
            raise ValueError(
                "Expected no --dataset and no --image_size: a run has its own data set. "
                f"Received: dataset={dataset!r}, image_size={image_size}"
            )
        model, title = rundir.load_model(path), "dense" if config.format == "dense" else "low_rank"
        data, examples = _examples(config, data_dir)
        rundir.check_classes(path, data)
        return Source(model, title, os.path.join(path, "export"), data, examples)
    if not os.path.exists(path):
        raise ValueError(f"Expected a run directory or a .keras file. Received: {path!r}, which does not exist")
    if dataset is None and (data_dir is not None or image_size is not None):
        raise ValueError(
            f"Expected --dataset with --data_dir and --image_size. Received: data_dir={data_dir!r}, "
            f"image_size={image_size}"
        )
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
    """Returns the arguments of `to_litert` that come from a data set: plain training images, test images, names."""
    plain = dataclasses.replace(config, augmentation="none", batch_size=min(config.batch_size, data.train_count))
    return {
        "representative_data": lambda: data.train_batches(plain),
        "evaluation_data": data.test_batches(config),
        "class_names": list(data.class_names),
    }


def export_file(source, path, kind, file_format="litert", io_dtype="float32", **options):
    """Exports a model and writes the report beside the file.

    Args:
        source: a `Source`.
        path: path of the file; `None` for a default name in the folder of `source`.
        kind: `"float32"` or a quantisation.
        file_format: `"litert"`, `"onnx"` or `"saved_model"`.
        io_dtype: type of input and output of an int8 file.
        options: further arguments of the export function.

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
        raise ValueError(f"Expected a folder that can be made. Received: {folder!r}: {error}") from error
    return folder


def write_report(path, report, title):
    """Writes a report as JSON beside its file, where `elrt-benchmark` finds it."""
    text = json.dumps({"title": title, **dataclasses.asdict(report)}, indent=2) + "\n"
    # The suffix is kept and `.json` is added: the user may have a `plan.json` of another kind beside `plan.tflite`.
    write_file(f"{path}.json", text.encode())


def table(reports):
    """Returns a table of reports, one row for each."""

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
