"""Checkpoints of a run: whole files only, the last two kept, and each is checked before it is used.

A checkpoint is a `.keras` file of model and optimizer with one member more, `progress.json`: where the run was, and the
state that Keras leaves out of such files (random generators, running metrics). So a run goes on from it exactly.
"""

import dataclasses
import json
import os
import re
import zipfile

import keras
import numpy as np
from absl import logging

from elrt_keras.atomic import TEMPORARY, replacing
from elrt_keras.distillation import student_of
from elrt_keras.launch import (
    optimization,  # noqa: F401, whose optimizers the files name
    skip_sets,
)

FOLDER = "checkpoints"
_KEPT = 2
_MEMBER = "progress.json"
_NAME = re.compile(r"epoch(\d+)_step(\d+)\.keras")


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        epoch: epochs that are over.
        step: steps of the next epoch that are over.
        rollbacks: times that the learning rate was halved, see `--on_nan=rollback`.
        settled: 1 where full-rank warm-up has ended by itself, else 0.
        metrics: values of the running metrics in the middle of an epoch, see `metrics_of`.
        random_state: states of the random generators, filled in by `save`; empty for those that are.
    """

    epoch: int = 0
    step: int = 0
    rollbacks: int = 0
    settled: int = 0
    metrics: tuple = ()
    random_state: tuple = ()


def save(model, run_dir, progress):
    """Writes a checkpoint, all of it or nothing, and removes all but the last two. Returns its path.

    Raises:
        OSError: where it cannot be written; those before it stay.
    """
    folder = os.path.join(run_dir, FOLDER)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"epoch{progress.epoch:04d}_step{progress.step:06d}.keras")
    described = {**dataclasses.asdict(progress), "random_state": _random_state(model)}
    skip_sets.keep()
    with replacing(path, ".keras") as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(_MEMBER, json.dumps(described))
    for old in paths(run_dir)[_KEPT:]:
        os.remove(old)
    return path


def paths(run_dir):
    """The checkpoints of a run, the newest first."""
    folder = os.path.join(run_dir, FOLDER)
    names = os.listdir(folder) if os.path.isdir(folder) else ()
    found = [match for match in map(_NAME.fullmatch, names) if match]
    found.sort(key=lambda match: (int(match[1]), int(match[2])), reverse=True)
    return [os.path.join(folder, match[0]) for match in found]


def newest(run_dir):
    """`(model, progress)` of the newest checkpoint that is whole, or `None` for a run that has none yet.

    A damaged one is named in a warning, and the one before it is taken.

    Raises:
        ValueError: when there are checkpoints and none is whole.
    """
    found = paths(run_dir)
    for path in found:
        try:
            return _load(path)
        except Exception as error:  # whatever zip, JSON, HDF5 or Keras makes of damaged bytes
            reason = next(iter(str(error).strip().splitlines()), repr(error))
            logging.warning("checkpoint %s is damaged and left out: %s", path, reason)
    if found:
        raise ValueError(
            f"Expected a checkpoint that can be read; to start the run over, remove {os.path.dirname(found[0])!r}. "
            f"Received: {[os.path.basename(path) for path in found]}, all damaged"
        )
    return None


def metrics_of(model):
    """The values of the running metrics. Where several workers train, all of them have to read them together."""
    return [keras.ops.convert_to_numpy(variable).tolist() for variable in model.metrics_variables]


def restore(model, progress):
    """Sets what `.keras` files leave out: running metrics and random generators. Comes when `fit` has begun.

    Before, on PyTorch, Keras draws random numbers to build a model, and after, it resets the metrics.
    """
    if progress.random_state:
        _restore_random_state(model, progress.random_state)
    if not progress.metrics:
        return
    if len(progress.metrics) != len(model.metrics_variables):
        # On TensorFlow they are built by the first step. One of any values builds them too.
        outputs = keras.ops.ones((1, *student_of(model).output_shape[1:]))
        model.compute_metrics(None, outputs, outputs)
    _assign(model.metrics_variables, progress.metrics)


def clear(run_dir):
    """Removes the checkpoints of a run."""
    folder = os.path.join(run_dir, FOLDER)
    if os.path.isdir(folder):
        for name in os.listdir(folder):
            if name.endswith(".keras"):
                os.remove(os.path.join(folder, name))
        os.rmdir(folder)


def remove_remains(run_dir):
    """Removes files that a start that was killed left half written."""
    folder = os.path.join(run_dir, FOLDER)
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        if name.endswith(f"{TEMPORARY}.keras"):
            os.remove(os.path.join(folder, name))


def _load(path):
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
        values = {} if damaged else json.loads(archive.read(_MEMBER))
    if damaged:
        raise ValueError(f"the checksum of {damaged} is wrong")
    skip_sets.keep()
    return keras.models.load_model(path), Progress(**values)


def _random_state(model):
    """The states of random generators, those of dropout for one, as lists of numbers."""
    states = [keras.ops.convert_to_numpy(variable).tolist() for variable in _generator_states(model)]
    if keras.backend.backend() != "torch":
        return states
    import torch

    # Keras leaves dropout to PyTorch there, which has one generator for all.
    return [*states, torch.get_rng_state().tolist()]


def _restore_random_state(model, states):
    if keras.backend.backend() == "torch":
        import torch

        *states, of_torch = states
        torch.set_rng_state(torch.tensor(of_torch, dtype=torch.uint8))
    _assign(_generator_states(model), states)


def _generator_states(model):
    return [variable for variable in model.variables if variable.name == "seed_generator_state"]


def _assign(variables, values):
    if len(variables) != len(values):
        raise ValueError(f"expected the values of {len(variables)} variables, found {len(values)}")
    for variable, value in zip(variables, values):
        variable.assign(np.asarray(value, dtype=variable.dtype))
