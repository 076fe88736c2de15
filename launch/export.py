"""Exports a trained model, compares the result with Keras on the test images, and prints a table.

  elrt-export runs/r20                                                   # LiteRT, float32
  elrt-export runs/r20 --quantization=float32,float16,dynamic_int8,int8  # four files
  elrt-export runs/r20 --merge                                           # its dense architecture
  elrt-export runs/r20 --format=onnx                                     # or saved_model
  elrt-export model.keras --quantization=int8 --dataset=folder:photos --output=model.tflite

The files of a run go to RUN_DIR/export, each with a JSON file of what was measured. int8 takes its ranges from training
images without augmentation. A file whose outputs or accuracy are too far from Keras' is not written.
"""

import contextlib
import dataclasses
import json
import os
import sys

from absl import app
from absl import flags as absl_flags

from elrt_keras.launch import cli

_KINDS = ("float32", "float16", "dynamic_int8", "int8")
_SUFFIXES = {"litert": ".tflite", "onnx": ".onnx", "saved_model": ""}


def define():
    """Defines the flags of `elrt-export`."""
    from elrt_keras.launch import flags

    absl_flags.DEFINE_enum("format", "litert", list(_SUFFIXES), "What to write.")
    absl_flags.DEFINE_list("quantization", ["float32"], f"One or more of {', '.join(_KINDS)}; for LiteRT.")
    absl_flags.DEFINE_boolean("merge", False, "Export the dense architecture, every low-rank layer composed.")
    absl_flags.DEFINE_enum("io_dtype", "float32", ["float32", "int8", "uint8"], "Input and output type of int8 files.")
    absl_flags.DEFINE_string("output", None, "Where to write, for one file.")
    absl_flags.DEFINE_integer("evaluation_examples", 10_000, "Test images of the check at most.", lower_bound=1)
    absl_flags.DEFINE_float("max_accuracy_drop", 0.05, "Largest accepted drop of the accuracy below Keras'.")
    flags.define_fields(("dataset", "data_dir", "image_size"), dataset=None)


def run(argv):
    """Exports what `argv` names."""
    if len(argv) != 2:
        raise ValueError(f"Expected one run directory or .keras file. Received: {argv[1:]}")
    values = absl_flags.FLAGS
    source, kinds = argv[1], values.quantization if values.format == "litert" else ["float32"]
    if not kinds or set(kinds) - set(_KINDS) or (values.output is not None and len(kinds) > 1):
        raise ValueError(f"Expected some of {_KINDS}, one with --output. Received: quantization={kinds}")
    model, title, config = _source(source, values)
    data, given = _data(config, values)
    if values.merge:
        import elrt_keras as elrt

        model, title = elrt.merge(model), "merged"
    reports = []
    for kind in kinds:
        path = values.output or _path(source, f"{title}_{kind}{_SUFFIXES[values.format]}")
        reports.append(_exported(model, path, kind, values, data, given))
        _write_report(path, reports[-1], title)
    print(_table(reports))


def _source(source, values):
    """`(model, what it is, TrainConfig or None)` of a run directory or a model file."""
    from elrt_keras.launch import rundir
    from elrt_keras.launch.config import TrainConfig
    from elrt_keras.launch.data import is_streamed

    if os.path.isdir(source):
        config = rundir.read_config(source)
        if values.dataset is not None:
            raise ValueError(f"A run has its own data set. Received: dataset={values.dataset!r}")
        title = "dense" if config.format == "dense" else "low_rank"
        return rundir.load_model(rundir.model_path(source)), title, config
    model = rundir.load_model(source)
    if values.dataset is None:
        return model, "model", None
    streamed = is_streamed(values.dataset)
    size = {"image_size": values.image_size or model.inputs[0].shape[1]} if streamed else {}
    return model, "model", TrainConfig(dataset=values.dataset, data_dir=values.data_dir, **size)


def _data(config, values):
    """The data set, and the arguments of the export that come from it."""
    if config is None:
        return None, {}
    from elrt_keras.launch import training

    data = training.load_data(config, values.data_dir)
    plain = dataclasses.replace(config, augmentation="none", batch_size=min(config.batch_size, data.train_count))
    return data, {
        "representative_data": lambda: data.train_batches(plain),
        "evaluation_data": data.test_batches(config),
        "class_names": list(data.class_names),
    }


def _path(source, name):
    folder = os.path.join(source, "export") if os.path.isdir(source) else os.path.dirname(os.path.abspath(source))
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ValueError(f"Cannot make the folder of exports. Received: {folder!r}: {error}") from error
    return os.path.join(folder, name)


def _exported(model, path, kind, values, data, given):
    from elrt_keras import export
    from elrt_keras.launch.data import plain_errors

    print(f"{path}: exporting and comparing with Keras", flush=True)
    options = {"max_accuracy_drop": values.max_accuracy_drop, "max_examples": values.evaluation_examples}
    with contextlib.nullcontext() if data is None else plain_errors(data):
        if values.format == "litert":
            quantization = None if kind == "float32" else kind
            io_dtype = values.io_dtype if kind == "int8" else "float32"
            return export.to_litert(model, path, quantization, io_dtype=io_dtype, **given, **options)
        function = export.to_onnx if values.format == "onnx" else export.to_saved_model
        return function(model, path, evaluation_data=given.get("evaluation_data"), **options)


def _write_report(path, report, title):
    from elrt_keras.export.files import write_file

    text = json.dumps({"title": title, **dataclasses.asdict(report)}, indent=2) + "\n"
    write_file(os.path.splitext(path)[0] + ".json", text.encode())


def _table(reports):
    from elrt_keras.tables import render_table

    def percent(part):
        return "" if part is None else f"{part:.2%}"

    rows = [
        (
            os.path.basename(report.path),
            f"{report.size_bytes:,}",
            f"{report.macs:,}",
            percent(report.accuracy),
            percent(report.keras_accuracy),
            percent(report.agreement),
            f"{report.max_difference:.1e}",
        )
        for report in reports
    ]
    return render_table(["file", "bytes", "MACs", "accuracy", "Keras", "agreement", "largest difference"], rows)


def main():
    """Entry point of `elrt-export`."""
    define()
    app.run(cli.with_one_line_errors("elrt-export", run), argv=[os.path.basename(sys.argv[0]), *sys.argv[1:]])


if __name__ == "__main__":
    main()
