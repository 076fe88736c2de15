"""Measures the accuracy of a finished run's saved model again and compares it with the reported one.

elrt-evaluate runs/digits
elrt-evaluate runs/photos --data_dir=/mnt/photos     # trained on folder:PATH, which has moved
"""

import os
import sys

from absl import flags as absl_flags

from elrt_keras.launch import cli


def run(argv):
    """Evaluates the model of the run directory in `argv` and compares the accuracy with its summary."""
    if len(argv) != 2:
        raise ValueError(f"Expected one run directory: elrt-evaluate RUN_DIR. Received: {argv[1:]}")
    run_dir = argv[1]
    from elrt_keras.launch import rundir, training

    config, summary = rundir.read_config(run_dir), rundir.read_summary(run_dir)
    if summary is None or not os.path.exists(rundir.model_path(run_dir)):
        raise ValueError(f"Expected a finished run with model.keras and summary.json. Received: {run_dir!r}")
    model = rundir.load_model(rundir.model_path(run_dir))
    data = training.load_data(config, absl_flags.FLAGS.data_dir)
    rundir.check_classes(run_dir, data)
    results = training.evaluate(model, data, config)
    print(
        f"test accuracy {results['accuracy']:.4f}, reported {summary['test_accuracy']:.4f}; loss {results['loss']:.4f}"
    )
    # Another machine may round a borderline image differently. More than one image in a thousand is a real difference.
    if abs(results["accuracy"] - summary["test_accuracy"]) > 1e-3:
        raise ValueError(f"Expected accuracy {summary['test_accuracy']:.4f}. Received: {results['accuracy']:.4f}")


def main():
    """Entry point of `elrt-evaluate`."""
    absl_flags.DEFINE_string("data_dir", None, "New place of the data: TFDS directory, or folder of the classes.")
    cli.start("elrt-evaluate", run, sys.argv)


if __name__ == "__main__":
    main()
