"""Trains a low-rank model (or its dense twin) from scratch.

  elrt-train --run_dir=runs/digits                                     # ResNet-20 on the embedded digits
  elrt-train --run_dir=runs/r20 --dataset=cifar10 --download --max_macs=0.28 --epochs=200
  elrt-train --run_dir=runs/dense --dataset=cifar10 --format=dense     # the dense twin

Flags can be read from a file: --flagfile=FILE. A second start with the same --run_dir resumes where the first stopped.
"""

import sys

from absl import app
from absl import flags as absl_flags

from elrt_keras.launch import cli


def run(argv):
    """Trains as the flags say and prints the summary."""
    cli.refuse_arguments(argv)
    from elrt_keras.launch import flags, training

    summary = training.run(flags.to_config(absl_flags.FLAGS), absl_flags.FLAGS.run_dir)
    print(cli.summary_table([summary]))


def main():
    """Entry point of `elrt-train`."""
    from elrt_keras.launch import flags

    flags.define()
    app.run(cli.with_one_line_errors("elrt-train", run), argv=[sys.argv[0], *sys.argv[1:]])


if __name__ == "__main__":
    main()
