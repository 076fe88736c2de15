"""Checkpoints of a run. Each file is complete, the last two are kept, and each is checked before it is used.

A checkpoint is a `.keras` file of model and optimizer with one extra member, `progress.json`. That member holds the
place in the run and the state that Keras leaves out of `.keras` files (random generators, running metrics). So a run
continues from a checkpoint exactly.
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
    """Place in a run, and state that Keras does not store.

    Attributes:
        epoch: number of finished epochs.
        step: number of finished steps in the next epoch.
        rollbacks: how often the learning rate was halved, see `--on_nan=rollback`.
        settled: 1 if full-rank warm-up has ended by itself, else 0.
        metrics: values of the running metrics in the middle of an epoch, see `metrics_of`.
        random_state: states of the random generators. `save` fills them in; if empty, `restore` leaves the generators
            as they are.
    """

    epoch: int = 0
    step: int = 0
    rollbacks: int = 0
    settled: int = 0
    metrics: tuple = ()
    random_state: tuple = ()


def save(model, run_dir, progress):
    """Writes a checkpoint atomically, removes all but the last two, and returns the path of the new one.

    Raises:
        OSError: if the checkpoint cannot be written; older checkpoints stay.
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
    """Returns the paths of a run's checkpoints, the newest first."""
    folder = os.path.join(run_dir, FOLDER)
    names = os.listdir(folder) if os.path.isdir(folder) else ()
    matches = [match for match in map(_NAME.fullmatch, names) if match]
    matches.sort(key=lambda match: (int(match[1]), int(match[2])), reverse=True)
    return [os.path.join(folder, match[0]) for match in matches]


def newest(run_dir):
    """Returns `(model, progress)` of the newest undamaged checkpoint, or `None` if the run has no checkpoint yet.

    A warning names each damaged checkpoint; the one before it is used instead.

    Raises:
        ValueError: if all checkpoints are damaged.
    """
    checkpoint_paths = paths(run_dir)
    for path in checkpoint_paths:
        try:
            return _load(path)
        except Exception as error:  # zip, JSON, HDF5 and Keras raise different errors for damaged bytes
            reason = next(iter(str(error).strip().splitlines()), repr(error))
            logging.warning("checkpoint %s is damaged and left out: %s", path, reason)
    if checkpoint_paths:
        folder = os.path.dirname(checkpoint_paths[0])
        raise ValueError(
            f"Expected a checkpoint that can be read; to start the run over, remove {folder!r}. "
            f"Received: {[os.path.basename(path) for path in checkpoint_paths]}, all damaged"
        )
    return None


def metrics_of(model):
    """Returns the values of the running metrics. All workers of a run have to call this together."""
    return [keras.ops.convert_to_numpy(variable).tolist() for variable in model.metrics_variables]


def restore(model, progress):
    """Restores the running metrics and random generators, which `.keras` files leave out.

    Call this after `fit` has begun: `fit` first draws random numbers to build the model (on PyTorch) and resets the
    metrics.
    """
    if progress.random_state:
        _restore_random_state(model, progress.random_state)
    if not progress.metrics:
        return
    if len(progress.metrics) != len(model.metrics_variables):
        # On TensorFlow the first step builds the metrics. A call with any values builds them too.
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
    """Removes the unfinished files that a killed run left."""
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
    """Returns the states of the random generators (dropout has one) as lists of numbers."""
    states = [keras.ops.convert_to_numpy(variable).tolist() for variable in _generator_states(model)]
    if keras.backend.backend() != "torch":
        return states
    import torch

    # On PyTorch, dropout uses PyTorch's single global generator.
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
        raise ValueError(f"Expected the values of {len(variables)} variables. Received: {len(values)}")
    for variable, value in zip(variables, values):
        variable.assign(np.asarray(value, dtype=variable.dtype))
