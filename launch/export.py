"""Exports a trained model, compares the result with Keras on the test images, and prints a table.

  elrt-export runs/r20                                                   # LiteRT, float32
  elrt-export runs/r20 --quantization=float32,float16,dynamic_int8,int8  # four files
  elrt-export runs/r20 --merge                                           # the dense architecture
  elrt-export runs/r20 --format=onnx                                     # or saved_model
  elrt-export model.keras --quantization=int8 --dataset=folder:photos --output=model.tflite
  elrt-export model.keras --input_shape=224,224,3                        # a model without a fixed image size

The files of a run go to RUN_DIR/export. The files of a .keras file go to its folder, under its name. A JSON file beside
each export holds the measured results. int8 takes its value ranges from training images without augmentation. A file
whose outputs or accuracy differ too much from Keras is not written.
"""

import dataclasses
import os
import sys

from absl import flags as absl_flags

from elrt_keras.checks import one_of
from elrt_keras.launch import cli, parsing

_KINDS = ("float32", "float16", "dynamic_int8", "int8")


def define():
    """Defines the flags of `elrt-export`."""
    from elrt_keras.launch import flags

    absl_flags.DEFINE_enum("format", "litert", ["litert", "onnx", "saved_model"], "File format to write.")
    absl_flags.DEFINE_list("quantization", ["float32"], f"LiteRT only: list of {', '.join(_KINDS)}; one file for each.")
    absl_flags.DEFINE_boolean("merge", False, "Export the dense architecture: each low-rank layer becomes one layer.")
    absl_flags.DEFINE_enum("io_dtype", "float32", ["float32", "int8", "uint8"], "Input and output type of int8 files.")
    absl_flags.DEFINE_list("input_shape", None, "Height, width, channels, for a model without a fixed image size.")
    absl_flags.DEFINE_integer("opset", None, "ONNX operator version. Default: the choice of tf2onnx.", lower_bound=1)
    absl_flags.DEFINE_string("output", None, "Path of the exported file; for one file only.")
    absl_flags.DEFINE_integer("evaluation_examples", 10_000, "Largest number of test images to check.", lower_bound=1)
    absl_flags.DEFINE_float("max_accuracy_drop", 0.05, "Largest accepted loss of accuracy against Keras, 0 to 1.")
    absl_flags.DEFINE_string(
        "data_dir", None, "New place of the data: the TFDS directory, or the folder of the classes."
    )
    flags.define_fields(("dataset", "image_size"), dataset=None)


def _kinds(values):
    """Returns the requested kinds of files; refuses flags that would have no effect."""
    kinds = list(dict.fromkeys(values.quantization))
    for kind in kinds:
        one_of(kind, _KINDS, "quantization")
    if not kinds or (values.output is not None and len(kinds) > 1):
        raise ValueError(f"Expected some of {_KINDS}, one with --output. Received: quantization={kinds}")
    if values.format != "litert" and kinds != ["float32"]:
        raise ValueError(
            f"Expected --quantization with LiteRT only. Received: format={values.format!r}, quantization={kinds}"
        )
    if values.io_dtype != "float32" and "int8" not in kinds:
        raise ValueError(
            f"Expected --io_dtype with int8 only. Received: io_dtype={values.io_dtype!r}, quantization={kinds}"
        )
    if values.opset is not None and values.format != "onnx":
        raise ValueError(f"Expected --opset with ONNX only. Received: format={values.format!r}, opset={values.opset}")
    if not 0 <= values.max_accuracy_drop <= 1:
        raise ValueError(f"Expected a number in [0, 1]. Received: max_accuracy_drop={values.max_accuracy_drop}")
    return kinds


def run(argv):
    """Exports the run or `.keras` file that `argv` names."""
    if len(argv) != 2:
        raise ValueError(f"Expected one run directory or .keras file. Received: {argv[1:]}")
    values = absl_flags.FLAGS
    kinds, input_shape = _kinds(values), parsing.input_shape(values.input_shape, None)
    import elrt_keras as elrt
    from elrt_keras import litert
    from elrt_keras.launch import exporting

    suffix = os.path.splitext(values.output or "")[1]
    if suffix in exporting.SUFFIXES.values() and suffix not in ("", exporting.SUFFIXES[values.format]):
        raise ValueError(f"Expected a path for {values.format!r}. Received: output={values.output!r}")
    if values.format == "litert":
        litert.require_runtime()  # before data are read
    source = exporting.open_source(argv[1], values.dataset, values.data_dir, values.image_size)
    if values.merge:
        source = dataclasses.replace(source, model=elrt.merge(source.model), title="merged")
    options = {
        "input_shape": input_shape,
        "io_dtype": values.io_dtype,
        "max_accuracy_drop": values.max_accuracy_drop,
        "max_examples": values.evaluation_examples,
    }
    if values.opset is not None:
        options["opset"] = values.opset
    reports = [exporting.export_file(source, values.output, kind, values.format, **options) for kind in kinds]
    print(exporting.table(reports))


def main():
    """Entry point of `elrt-export`."""
    define()
    cli.start("elrt-export", run, [os.path.basename(sys.argv[0]), *sys.argv[1:]])


if __name__ == "__main__":
    main()
