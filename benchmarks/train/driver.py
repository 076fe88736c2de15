"""Trains a grid of runs and writes one JSON file per run to `benchmarks/results/<grid>/`; skips finished runs.

An unfinished run saves its state every two minutes and resumes from it.

  python -m benchmarks.train --grid=benchmarks/grids/resnet20.json --data=TFDS_DIR
  KERAS_BACKEND=jax python -m benchmarks.train --grid=… --data=… --parallel=8 --time_limit_s=560

A grid file holds `data` (name of the data in tables), `defaults` (fields of TrainConfig) and `runs`. Each run has a
`name` and further fields; a list as a value makes one run per element. `benchmarks/train/runs.py` documents the extra
fields of a run. `short`, in the grid or in a run, holds fields for `--short`: the same runs on a schedule for machines
without a GPU, in `benchmarks/results/<grid>_short/`. JAX and PyTorch need neither TensorFlow nor TFDS. Without
TensorFlow, runs have no int8 accuracy; kept states allow to add it later:

  KERAS_BACKEND=jax python -m benchmarks.train --grid=… --data=… --keep_states
  KERAS_BACKEND=tensorflow python -m benchmarks.train --grid=… --data=… --int8

A run takes model, plan, optimizer, schedules and penalties from `elrt_keras.launch.modeling`, like `elrt-train`. It has
its own training loops: those of `elrt-train` read tf.data, which needs TensorFlow and leaves a GPU idle at times.
"""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import time

from absl import flags

from benchmarks.measure import evidence

FLAGS = flags.FLAGS
_STOP_AT = "ELRT_STOP_AT"  # variable with the time at which the processes of runs stop


def expanded(grid, short=False):
    """Returns `{name: fields}` of all runs of a grid: one run per combination of the values that are lists.

    Raises:
        ValueError: if two runs have the same name, or `short` is true and the grid has no short schedule.
    """
    if short and "short" not in grid:
        raise ValueError(f"Expected a grid with `short` fields. Received: {sorted(grid)}")
    runs = {}
    for entry in grid["runs"]:
        fields = {**grid.get("defaults", {}), **entry}
        name, own_schedule = fields.pop("name"), fields.pop("short", {})
        if short:
            fields |= {**grid["short"], **own_schedule}
        lists = {field: values for field, values in fields.items() if isinstance(values, list)}
        for values in itertools.product(*lists.values()):
            chosen = dict(zip(lists, values))
            full = "_".join([name, *(f"{field}{value}" for field, value in chosen.items())])
            if full in runs:
                raise ValueError(f"Expected a name for each run. Received: {full!r} twice")
            runs[full] = {**fields, **chosen}
    return runs


def define():
    """Defines the flags."""
    flags.DEFINE_string("grid", None, "Grid file (JSON).", required=True)
    flags.DEFINE_string("data", None, "Folder with the TFRecord files of CIFAR-10, at any depth.", required=True)
    flags.DEFINE_string("results", None, "Folder of the results. Default: benchmarks/results/<name of the grid>.")
    flags.DEFINE_bool("short", False, "Use the short schedule of the grid.")
    flags.DEFINE_string("state", ".cache/accuracy", "Folder for the states of unfinished runs.")
    flags.DEFINE_bool("keep_states", False, "Keep the states of finished runs too.")
    flags.DEFINE_bool("int8", False, "Add int8 accuracies to finished runs, from kept states; needs TensorFlow.")
    flags.DEFINE_integer("parallel", 1, "Number of runs at the same time.")
    flags.DEFINE_float("time_limit_s", None, "Stop at the first end of an epoch after this many seconds.")
    flags.DEFINE_list("only", None, "Train only these runs.")
    flags.DEFINE_string("one", None, "Train this run alone, in this process.")


def main(argv):
    """Trains the missing runs of the grid, several at the same time."""
    del argv
    grid = json.loads(pathlib.Path(FLAGS.grid).read_text(encoding="utf-8"))
    runs = expanded(grid, FLAGS.short)
    experiment = f"{pathlib.Path(FLAGS.grid).stem}{'_short' if FLAGS.short else ''}"
    folder = pathlib.Path(FLAGS.results or evidence.RESULTS / experiment)
    unknown = set(FLAGS.only or ()) - set(runs)
    if unknown:
        sys.exit(f"Expected runs of the grid: {', '.join(runs)}. Received: --only={','.join(sorted(unknown))}")
    if FLAGS.one:
        _train(FLAGS.one, runs[FLAGS.one], grid["data"], folder)
    elif FLAGS.int8:
        for name in FLAGS.only or [name for name in runs if (folder / f"{name}.json").exists()]:
            _add_int8(name, runs[name], folder)
    else:
        names = [name for name in (FLAGS.only or runs) if not (folder / f"{name}.json").exists()]
        print(f"{len(names)} of {len(FLAGS.only or runs)} runs are missing", flush=True)
        _train_each(names, folder)


def _train_each(names, folder):
    """Trains each run in a separate process until the time is up."""
    end = time.time() + FLAGS.time_limit_s if FLAGS.time_limit_s else float("inf")
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", _STOP_AT: str(end)}
    shared = [f"--{flag}={getattr(FLAGS, flag)}" for flag in ("grid", "data", "state", "short", "keep_states")]
    running, failed = {}, []
    while running or (names and time.time() <= end):
        while names and len(running) < FLAGS.parallel and time.time() <= end:
            name = names.pop(0)
            command = [sys.executable, "-m", "benchmarks.train", *shared, f"--results={folder}", f"--one={name}"]
            running[name] = subprocess.Popen(command, env=environment)
        for name in [name for name, process in running.items() if process.poll() is not None]:
            failed += [name] if running.pop(name).returncode else []
        time.sleep(0.2)
    if names:
        print(f"time is up; {len(names)} runs were not started", flush=True)
    if failed:
        sys.exit(f"failed: {failed}")


def _run(name, fields, folder):
    """Makes the `Run` with its data and the path of its state."""
    from benchmarks.train.in_memory import load_cifar10
    from benchmarks.train.runs import Run

    return Run(name, fields, load_cifar10(FLAGS.data), pathlib.Path(FLAGS.state) / folder.name / f"{name}.npz")


def _train(name, fields, data, folder):
    """Trains one run in this process and writes its JSON."""
    run = _run(name, fields, folder)
    result = run.train(float(os.environ.get(_STOP_AT, "inf")))
    if result is None:
        print(f"{name}: time is up; kept in {FLAGS.state}", flush=True)
        return
    short = " --short" if FLAGS.short else ""
    command = f"python -m benchmarks.train --grid={FLAGS.grid}{short} --only={name}"
    evidence.write_json(folder / f"{name}.json", {**result, "data": data, "command": command}, 1)
    if not FLAGS.keep_states:
        run.forget()


def _add_int8(name, fields, folder):
    """Adds the int8 accuracy to the JSON file of a finished run, from its kept state."""
    path = folder / f"{name}.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    if result["int8_accuracy"] is not None or not (pathlib.Path(FLAGS.state) / folder.name / f"{name}.npz").exists():
        return
    again = _run(name, fields, folder).train()  # the state is at its end: no further training
    print(f"{name}: {result['summary']['test_accuracy']:.4f}, int8 {again['int8_accuracy']:.4f}", flush=True)
    result |= {"int8_accuracy": again["int8_accuracy"], "int8_machine": again["machine"]}
    evidence.write_json(path, result, 1)
