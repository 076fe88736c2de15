"""Measures speed.

  elrt-benchmark litert runs/dense runs/r20 --plot=latency.png         # what elrt-export wrote there
  elrt-benchmark litert dense.tflite low_rank.tflite --threads=4 --output=latency.json
  elrt-benchmark litert runs/dense runs/r20 --timer=adb    # on an Android device
  elrt-benchmark data --dataset=cifar10 --data_dir=DIR     # input pipeline against the training step of ResNet-20
  elrt-benchmark data --dataset=folder:photos --model=resnet18 --output=throughput.json

`litert` times LiteRT files side by side: it runs one inference of each file in turn. It prints median, spread and peak
memory, and the accuracy of files that elrt-export wrote. Then it prints commands that measure the same files on an
Android device.

`data` prints how many images per second the input pipeline delivers, and how many the training step of the model
consumes. A ratio well above 1 means that training does not wait for data.
"""

import json
import math
import os
import statistics
import sys

from absl import flags as absl_flags

from elrt_keras.atomic import check_file, write_file
from elrt_keras.checks import suggestion
from elrt_keras.launch import cli, timing
from elrt_keras.terminal.tables import render_table

_OF_LITERT = ("threads", "runs", "plot", "timer", "device")
_FIELDS = ("model", "dataset", "data_dir", "download", "image_size", "augmentation", "batch_size", "format", "max_macs")
_OF_DATA = ("seconds", "rounds", *_FIELDS)


def define():
    """Defines the flags of `elrt-benchmark`."""
    from elrt_keras.launch import flags

    absl_flags.DEFINE_integer("threads", 1, "litert: number of CPU threads.", lower_bound=1)
    absl_flags.DEFINE_integer("runs", 50, "litert: number of timed inferences of each file.", lower_bound=1)
    absl_flags.DEFINE_string("timer", None, "litert: device to measure on, as for elrt-plan. Default: this machine.")
    absl_flags.DEFINE_string("device", None, "litert: name of the device that --timer measures on.")
    absl_flags.DEFINE_string("plot", None, "litert: picture file (PNG, SVG, PDF) for a plot of accuracy over latency.")
    absl_flags.DEFINE_float("seconds", 5.0, "data: shortest duration of each measurement.", lower_bound=0.01)
    absl_flags.register_validator("seconds", math.isfinite, "expected a finite number")
    absl_flags.DEFINE_integer("rounds", 3, "data: number of times that each measurement is repeated.", lower_bound=1)
    absl_flags.DEFINE_string("output", None, "JSON file for the result. Default: none is written.")
    flags.define_fields(_FIELDS, format="dense")


def run(argv):
    """Measures LiteRT files or an input pipeline, as `argv` says."""
    values = absl_flags.FLAGS
    if argv[1:2] != ["litert"] and argv[1:] != ["data"]:
        meant = suggestion("".join(argv[1:2]), ("litert", "data"))
        raise ValueError(f"Expected what to measure: elrt-benchmark litert FILE… or data. Received: {argv[1:]}{meant}")
    others = _OF_DATA if argv[1] == "litert" else _OF_LITERT
    idle = [f"--{name}" for name in others if values[name].present]
    if idle:
        raise ValueError(f"Expected flags of elrt-benchmark {argv[1]} alone; --help tells. Received: {', '.join(idle)}")
    for name in ("output", "plot"):
        if values[name].value is not None:
            check_file(values[name].value, name)
    result = _measure_litert(argv[2:], values) if argv[1] == "litert" else _measure_data(values)
    if values.output is not None:
        write_file(values.output, (json.dumps(result, indent=2) + "\n").encode())
        print(f"Wrote {values.output}")


def _measure_litert(sources, values):
    from elrt_keras.launch import latency

    paths = latency.find_files(sources)
    if values.plot is not None:
        latency.check_plot(paths, values.plot)
    rows = latency.measure(paths, values.threads, values.runs, timing.timer(values.timer, values.device))
    print(latency.table(rows))
    for line in latency.predictions(sources, rows):
        print(line)
    if values.plot is not None:
        latency.plot(rows, values.plot)
        print(f"Wrote {values.plot}")
    if values.timer is None:
        print(latency.android_commands(paths, values.threads, values.runs))
    return rows


def _measure_data(values):
    from elrt_keras.launch import throughput
    from elrt_keras.launch.config import TrainConfig

    fields = {name: getattr(values, name) for name in _FIELDS}
    if values.max_macs is not None and not values["format"].present:
        del fields["format"]  # a budget asks for a low-rank model
    config = TrainConfig(**fields)
    result = throughput.measure(config, values.seconds, values.rounds)
    rows = [
        (title, f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f}", f"{max(rates):,.0f}")
        for title, rates in (
            (f"pipeline: {result['dataset']}, {result['augmentation']}", result["pipeline"]),
            (f"training step: {result['model']} {result['format']}", result["step"]),
        )
    ]
    print(render_table(["images per second", "median", "lowest", "highest"], rows))
    print(f"The pipeline delivers {result['ratio']:.2f}× what the step consumes.")
    return result


def main():
    """Entry point of `elrt-benchmark`."""
    define()
    cli.start("elrt-benchmark", run, [os.path.basename(sys.argv[0]), *sys.argv[1:]])


if __name__ == "__main__":
    main()
