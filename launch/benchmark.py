"""Measures speed.

  elrt-benchmark data --dataset=cifar10 --data_dir=DIR     # input pipeline against the training step of ResNet-20
  elrt-benchmark data --dataset=folder:photos --model=resnet18 --output=throughput.json

`data` prints how many images a second the input pipeline delivers by itself and how many the training step of the model
consumes on the same machine. A ratio well above 1 means that training does not wait for data.
"""

import json
import os
import statistics
import sys

from absl import app
from absl import flags as absl_flags

from elrt_keras.launch import cli
from elrt_keras.tables import render_table

_FIELDS = ("model", "dataset", "data_dir", "download", "image_size", "augmentation", "batch_size", "format", "max_macs")


def define():
    """Defines the flags of `elrt-benchmark`."""
    from elrt_keras.launch import flags

    flags.define_fields(_FIELDS, format="dense")
    absl_flags.DEFINE_float("seconds", 5.0, "How long each measurement lasts at least.", lower_bound=0.01)
    absl_flags.DEFINE_integer("rounds", 3, "How often each measurement is made.", lower_bound=1)
    absl_flags.DEFINE_string("output", None, "Where to write the result (JSON).")


def run(argv):
    """Measures what `argv` names."""
    if argv[1:] != ["data"]:
        raise ValueError(f"Expected what to measure: elrt-benchmark data. Received: {argv[1:]}")
    from elrt_keras.launch import throughput
    from elrt_keras.launch.config import TrainConfig

    values = absl_flags.FLAGS
    if values.output is not None:
        cli.check_writable(values.output)
    config = TrainConfig(**{name: getattr(values, name) for name in _FIELDS})
    result = throughput.measure(config, values.seconds, values.rounds)
    print(_table(result))
    if values.output is not None:
        with open(values.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)
            file.write("\n")
        print(f"Wrote {values.output}")


def _table(result):
    rows = [
        (title, f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f}", f"{max(rates):,.0f}")
        for title, rates in (
            (f"pipeline: {result['dataset']}, {result['augmentation']}", result["pipeline"]),
            (f"training step: {result['model']} {result['format']}", result["step"]),
        )
    ]
    table = render_table(["images per second", "median", "lowest", "highest"], rows)
    return f"{table}\nThe pipeline delivers {result['ratio']:.2f}× what the step consumes."


def main():
    """Entry point of `elrt-benchmark`."""
    define()
    app.run(cli.with_one_line_errors("elrt-benchmark", run), argv=[os.path.basename(sys.argv[0]), *sys.argv[1:]])


if __name__ == "__main__":
    main()
