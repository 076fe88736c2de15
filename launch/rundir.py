"""Files of a run directory: checks its owner, and reads and writes each file atomically."""

import contextlib
import csv
import json
import os
import zipfile

import keras
from absl import logging

from elrt_keras import plot
from elrt_keras.atomic import TEMPORARY, replacing, write_bytes
from elrt_keras.launch import checkpoints, flags
from elrt_keras.launch.plots import plot_curves

# Keys of a summary that the commands print.
_SUMMARIZED = ("model", "format", "dataset", "test_accuracy", "params", "macs", "macs_fraction", "seconds_per_epoch")


def flags_path(run_dir):
    return os.path.join(run_dir, "flags.txt")


def history_path(run_dir):
    return os.path.join(run_dir, "history.csv")


def model_path(run_dir):
    return os.path.join(run_dir, "model.keras")


def plan_path(run_dir):
    return os.path.join(run_dir, "rank_plan.json")


def tuning_path(run_dir):
    return os.path.join(run_dir, "training_ways.json")


def summary_path(run_dir):
    return os.path.join(run_dir, "summary.json")


def check(config, run_dir):
    """Refuses a directory of another run, with other files, or without write access. Changes nothing.

    Raises:
        ValueError: with the reason.
    """
    for name in ("initial_model", "teacher"):
        path = getattr(config, name)
        if path is not None and os.path.realpath(path) in map(os.path.realpath, (run_dir, model_path(run_dir))):
            raise ValueError(f"Expected the model of another run. Received: {name}={path!r}, run_dir={run_dir!r}")
    if not os.path.lexists(run_dir):
        _check_creatable(run_dir)
        return
    if not os.path.isdir(run_dir):
        kind = "a file" if os.path.exists(run_dir) else "a link to nothing"
        raise ValueError(f"Expected a directory for the run. Received: run_dir={run_dir!r}, which is {kind}")
    if not os.access(run_dir, os.W_OK | os.X_OK):
        raise ValueError(f"Expected a directory with write access. Received: run_dir={run_dir!r}")
    if not os.path.exists(flags_path(run_dir)):
        # A run that was killed at its start may have left a part of flags.txt.
        others = sorted(name for name in os.listdir(run_dir) if not name.endswith(TEMPORARY))
        if others:
            raise ValueError(
                f"Expected a new or empty directory, or one of a run. Received: run_dir={run_dir!r}, which holds "
                f"{others[:5]} and no flags.txt"
            )
        return
    if os.path.exists(model_path(run_dir)) and not (
        os.path.exists(summary_path(run_dir)) or checkpoints.paths(run_dir)
    ):
        raise ValueError(
            "Expected summary.json beside the model of a finished run; put it back, or remove model.keras to train "
            f"anew. Received: run_dir={run_dir!r}"
        )
    differences = read_config(run_dir).differences(config)
    if differences:
        text = ", ".join(f"--{name}: there {there!r}, now {now!r}" for name, (there, now) in differences.items())
        raise ValueError(
            f"Expected the flags of the run in {run_dir!r}; use another --run_dir for another configuration. "
            f"Received: {text}"
        )


def _check_creatable(run_dir):
    parent = os.path.dirname(os.path.abspath(run_dir))
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"Expected a run directory that can be made in {parent!r}. Received: run_dir={run_dir!r}")


@contextlib.contextmanager
def held(run_dir):
    """Context that locks a directory against training in other processes; makes the directory if it is missing.

    Raises:
        ValueError: if another process holds the lock.
    """
    if os.name == "nt":  # Windows has no locks of this kind
        yield
        return
    import fcntl

    is_new = not os.path.isdir(run_dir)
    try:
        os.makedirs(run_dir, exist_ok=True)
        directory = os.open(run_dir, os.O_RDONLY)
    except OSError as error:
        raise ValueError(f"Expected a writable run directory. Received: run_dir={run_dir!r}: {error}") from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(directory)
        raise ValueError(
            f"Expected a run directory that no other process trains in; wait for it. Received: run_dir={run_dir!r}"
        ) from error
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(directory)
        if is_new and not os.listdir(run_dir):
            os.rmdir(run_dir)  # the run ended before it wrote a file


def prepare(config, run_dir, plan):
    """Makes the directory and writes the flags and the rank plan (`None` before warm-up is over).

    Raises:
        ValueError: if they cannot be written.
    """
    try:
        os.makedirs(run_dir, exist_ok=True)
        write_text(flags_path(run_dir), flags.to_flagfile(config))
        if plan is not None:
            plan.save(plan_path(run_dir))
            if plan.factorized():
                _draw(plot.rank_plan, plan, path=os.path.join(run_dir, "rank_plan.png"))
    except OSError as error:
        raise ValueError(f"Expected a writable run directory. Received: run_dir={run_dir!r}: {error}") from error


def read_config(run_dir):
    """Reads the `TrainConfig` of a run directory.

    Raises:
        ValueError: if there is no run, or its flags are damaged.
    """
    try:
        with open(flags_path(run_dir), encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise ValueError(f"Expected a run directory with flags.txt. Received: {str(run_dir)!r}: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"Expected flags as text. Received: {flags_path(run_dir)!r}: {error}") from error
    if not text.strip():
        raise ValueError(f"Expected the flags of a run. Received: {flags_path(run_dir)!r}, which is empty")
    try:
        return flags.from_flagfile(text)
    except ValueError as error:
        raise ValueError(f"In {flags_path(run_dir)!r}: {error}") from error


def check_classes(run_dir, data):
    """Refuses data with other classes than those of a finished run.

    Raises:
        ValueError: with the classes that differ.
    """
    trained, names = (read_summary(run_dir) or {}).get("class_names"), list(data.class_names)
    if trained is not None and names != trained:
        missing, others = (
            [name for name in these if name not in those][:5] for these, those in ((trained, names), (names, trained))
        )
        raise ValueError(
            f"Expected the {len(trained)} classes that {run_dir!r} was trained on. Received: {len(names)} classes, "
            f"without {missing}, with {others}"
        )


def read_summary(run_dir, needed=_SUMMARIZED):
    """Reads the summary of a finished run; returns `None` for an unfinished one. `needed`: the required keys.

    Raises:
        ValueError: if the file is damaged.
    """
    path = summary_path(run_dir)
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            summary = json.load(file)
    except ValueError as error:  # not text, or not JSON
        raise ValueError(f"Expected the summary of a run in JSON. Received: {path!r}: {error}") from error
    missing = [key for key in needed if key not in summary] if isinstance(summary, dict) else needed
    if missing:
        raise ValueError(f"Expected the summary of a run with {', '.join(missing)}. Received: {path!r} without")
    return summary


def read_history(run_dir):
    """Reads the rows of `history.csv`, a dict of texts for each epoch; returns `[]` for a run without training."""
    path = history_path(run_dir)
    if not os.path.exists(path):
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def truncate_history(run_dir, epochs):
    """Drops the rows of `history.csv` from epoch `epochs` on; a run killed before its checkpoint repeats an epoch."""
    path = history_path(run_dir)
    if not os.path.exists(path):
        return
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        kept = [row for index, row in enumerate(rows) if index == 0 or (row and int(row[0]) < epochs)]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"Expected rows that begin with their epoch. Received: {path!r}: {error}") from error
    if len(kept) <= 1:
        os.remove(path)
    elif kept != rows:
        write_text(path, "".join(",".join(row) + "\n" for row in kept))


def save_model(model, path):
    """Saves a model atomically: `path` holds the old file or the new one, never a part.

    Raises:
        OSError: if the file cannot be written; no temporary file stays.
    """
    with replacing(path, ".keras") as temporary:
        model.save(temporary)


def load_model(path):
    """Loads a model from a `.keras` file or the directory of a finished run, not compiled.

    Raises:
        ValueError: if there is no such file or it holds no model; the message names the path.
    """
    file = model_path(path) if os.path.isdir(path) else str(path)
    if not os.path.isfile(file):
        missing = "which holds no model.keras" if os.path.isdir(path) else "which does not exist"
        raise ValueError(f"Expected a .keras file or a finished run. Received: {str(path)!r}, {missing}")
    if not zipfile.is_zipfile(file) and not file.endswith((".h5", ".hdf5")):
        raise ValueError(
            f"Expected a Keras model in a .keras file. Received: {str(path)!r}, which is damaged or of another kind"
        )
    try:
        return keras.models.load_model(file, compile=False)
    except Exception as error:  # Keras raises errors of zip, JSON and HDF5, and its own
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise ValueError(f"Expected a Keras model in a .keras file. Received: {str(path)!r}: {reason}") from error


def finish(config, run_dir, summary):
    """Writes the summary and the plot, removes the checkpoints, and returns the summary."""
    write_text(summary_path(run_dir), json.dumps(summary, indent=2) + "\n")
    title = f"{config.model}, {config.dataset}"
    if read_history(run_dir):
        _draw(plot_curves, history_path(run_dir), path=os.path.join(run_dir, "curves.png"), title=title)
    checkpoints.clear(run_dir)
    return summary


def _draw(draw, content, path, **options):
    """Draws a picture; a failure is only a warning, because the run's result matters more."""
    try:
        draw(content, path=path, **options)
    except Exception as error:
        logging.warning("%s could not be drawn: %s: %s", path, type(error).__name__, error)


def write_text(path, text):
    """Writes a text file atomically."""
    write_bytes(path, text.encode())
