"""Shrinks a finished low-rank run to smaller budgets: one run directory for each, a table and a plot.

  elrt-shrink runs/r20 --max_macs=0.4,0.28,0.2
  elrt-shrink runs/r20 --max_macs=0.28 --epochs=2 --teacher=parent
  elrt-export runs/r20/shrunk/0.28 --quantization=int8

The command lowers the ranks and fits kernels and batch-norm statistics to training images. --epochs adds fine-tuning
with the penalties of the run. --teacher=parent makes the original run the teacher. Budgets are parts of the dense
model's MACs. A second start resumes the first one.
"""

import dataclasses
import os
import sys

from absl import flags as absl_flags

from elrt_keras.launch import cli


def define():
    """Defines the flags of `elrt-shrink`."""
    from elrt_keras.launch import shrinking

    default = shrinking.Recovery()
    absl_flags.DEFINE_list("max_macs", None, "Budgets: falling parts of the dense MACs, such as 0.4,0.28,0.2.")
    absl_flags.DEFINE_integer("epochs", default.epochs, "Epochs of fine-tuning at each budget.", lower_bound=0)
    absl_flags.DEFINE_float("learning_rate", default.learning_rate, "First learning rate of the fine-tuning.")
    absl_flags.DEFINE_string(
        "teacher", None, "Teacher of the fine-tuning: 'parent' (the original run), a .keras file or another run."
    )
    absl_flags.DEFINE_integer(
        "calibration_examples",
        default.calibration_examples,
        "Number of augmented training images to fit kernels and batch-norm statistics to; 0 skips the fit.",
        lower_bound=0,
    )
    absl_flags.DEFINE_string("output", None, "Folder of the new runs. Default: RUN_DIR/shrunk.")
    absl_flags.DEFINE_string(
        "data_dir", None, "New place of the data: the TFDS directory, or the folder of the classes."
    )


def run(argv):
    """Makes the smaller runs and prints their table."""
    if len(argv) != 2:
        raise ValueError(f"Expected one run directory: elrt-shrink RUN_DIR --max_macs=… Received: {argv[1:]}")
    from elrt_keras.launch import faults, shrinking

    values = absl_flags.FLAGS
    if not values.max_macs:
        raise ValueError("Expected budgets, such as --max_macs=0.4,0.28. Received: no --max_macs")
    if values.teacher is not None and not values.epochs:
        raise ValueError(f"Expected --epochs with a teacher. Received: --teacher={values.teacher} with --epochs=0")
    fields = [field.name for field in dataclasses.fields(shrinking.Recovery)]
    recovery = shrinking.Recovery(**{name: getattr(values, name) for name in fields})
    folder = values.output or os.path.join(argv[1], shrinking.FOLDER)
    try:
        summaries = shrinking.shrink_run(argv[1], _numbers(values.max_macs), recovery, folder, values.data_dir)
    except faults.Stopped as stopped:
        print(f"elrt-shrink: {stopped}")
        return
    print(cli.summary_table(summaries))
    picture = os.path.join(folder, "accuracy.png")
    shrinking.plot_summaries(summaries, picture)
    print(picture)


def _numbers(texts):
    try:
        return [float(text) for text in texts]
    except ValueError as error:
        raise ValueError(f"Expected numbers, such as --max_macs=0.4,0.28. Received: {texts}") from error


def main():
    """Entry point of `elrt-shrink`."""
    define()
    resumes = "interrupted; start it again with the same flags to go on"
    cli.start("elrt-shrink", run, sys.argv, interrupted=resumes)


if __name__ == "__main__":
    main()
