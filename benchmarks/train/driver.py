"""Accuracy over a grid of runs: one JSON per run in `benchmarks/results/<grid>/`; skips what is done, resumes the rest.

An unfinished run is written down every two minutes and goes on from there, however it ended.

  python -m benchmarks.train --grid=benchmarks/grids/resnet20.json --data=TFDS_DIR
  KERAS_BACKEND=jax python -m benchmarks.train --grid=… --data=… --parallel=8 --time_limit_s=560

A grid file holds `data` (how the data is called in tables), `defaults` (fields of TrainConfig) and `runs`: each a
`name` and further fields, of which a list stands for one run per value (`benchmarks/train/runs.py` has what a run may
hold beside those). `short`, in the grid or in a run, are fields for `--short`: the same runs on a schedule that a
machine without a GPU can do, kept in `benchmarks/results/<grid>_short/`. Neither TensorFlow nor TFDS is needed on JAX
and PyTorch; where TensorFlow is not, runs have no int8 accuracy, which can be had later from kept states:

  KERAS_BACKEND=jax python -m benchmarks.train --grid=… --data=… --keep_states
  KERAS_BACKEND=tensorflow python -m benchmarks.train --grid=… --data=… --int8

A run has model, plan, optimizer, schedules and penalties from `elrt_keras.launch.modeling`, as `elrt-train` does, but
loops of its own: those of `elrt-train` read tf.data, which needs TensorFlow and leaves a GPU idle between batches.
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
_STOP_AT = "ELRT_STOP_AT"  # the time at which the processes of runs stop


def expanded(grid, short=False):
    """`{name: fields}` of all runs of a grid: one per combination of the values that are lists.

    Raises:
        ValueError: if two runs have the same name, or the grid has no short schedule and one is asked for.
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
    flags.DEFINE_string("results", None, "Where the JSON files go; default: benchmarks/results/<name of the grid>.")
    flags.DEFINE_bool("short", False, "The short schedule of the grid.")
    flags.DEFINE_string("state", ".cache/accuracy", "Where unfinished runs are kept.")
    flags.DEFINE_bool("keep_states", False, "Keep the states of finished runs as well.")
    flags.DEFINE_bool("int8", False, "Add int8 accuracies to finished runs, from kept states; needs TensorFlow.")
    flags.DEFINE_integer("parallel", 1, "Runs side by side.")
    flags.DEFINE_float("time_limit_s", None, "Stop at the end of an epoch once this many seconds are over.")
    flags.DEFINE_list("only", None, "Only these runs.")
    flags.DEFINE_string("one", None, "Train one run in this process.")


def main(argv):
    """Runs what is missing of the grid, several runs side by side."""
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
    """Trains runs in processes of their own, as long as there is time."""
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
    """The run, with its data and where its state is kept."""
    from benchmarks.train.in_memory import load_cifar10
    from benchmarks.train.runs import Run

    return Run(name, fields, load_cifar10(FLAGS.data), pathlib.Path(FLAGS.state) / folder.name / f"{name}.npz")


def _train(name, fields, data, folder):
    """Trains one run in this process and writes its JSON."""
    run = _run(name, fields, folder)
    found = run.train(float(os.environ.get(_STOP_AT, "inf")))
    if found is None:
        print(f"{name}: time is up; kept in {FLAGS.state}", flush=True)
        return
    short = " --short" if FLAGS.short else ""
    command = f"python -m benchmarks.train --grid={FLAGS.grid}{short} --only={name}"
    evidence.write_json(folder / f"{name}.json", {**found, "data": data, "command": command}, 1)
    if not FLAGS.keep_states:
        run.forget()


def _add_int8(name, fields, folder):
    """Writes the int8 accuracy into the JSON of a finished run whose state was kept."""
    path = folder / f"{name}.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    if result["int8_accuracy"] is not None or not (pathlib.Path(FLAGS.state) / folder.name / f"{name}.npz").exists():
        return
    again = _run(name, fields, folder).train()  # resumed at its end: trains no more
    print(f"{name}: {result['summary']['test_accuracy']:.4f}, int8 {again['int8_accuracy']:.4f}", flush=True)
    result |= {"int8_accuracy": again["int8_accuracy"], "int8_machine": again["machine"]}
    evidence.write_json(path, result, 1)
