"""Faults in the middle of a run: a stop request, a NaN loss, a lost worker, a full disk."""

import contextlib
import math
import os
import signal
import threading
import time

import keras
import numpy as np
from absl import logging

from elrt_keras.launch import checkpoints
from elrt_keras.launch.checkpoints import Progress


class Stopped(BaseException):
    """Error of a process that was told to stop; the message names the checkpoint to resume from.

    It is not an `Exception`, like `KeyboardInterrupt`: it can be raised anywhere, and error handlers must not catch it.
    """


class WorkerLost(ValueError):
    """Error of a run that lost another worker; the message names the checkpoint to resume from."""


class NonFinite(ValueError):
    """Error of a NaN or infinite loss or weight; the message says where, and names the largest gradient before."""


class StopRequest:
    """Flag that is set when SIGTERM arrives."""

    def __init__(self):
        self.received = False
        self._at_once = False

    def note(self):
        """Records that SIGTERM has arrived; raises `Stopped` inside `at_once`."""
        self.received = True
        if self._at_once:
            raise Stopped("told to stop (SIGTERM) between checkpoints; start it again with the same flags")

    @contextlib.contextmanager
    def at_once(self):
        """Context in which SIGTERM raises `Stopped` at once: there is no step to finish and nothing to save."""
        self._at_once = True
        try:
            self._heed()
            yield
            self._heed()  # SIGTERM may have come where Python drops exceptions, such as in `__del__`
        finally:
            self._at_once = False

    def _heed(self):
        if self.received:
            self.note()


@contextlib.contextmanager
def noting_sigterm():
    """Context that yields a `StopRequest` and records SIGTERM there; the process ends at once only in `at_once`."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread can set a handler
        return

    before = signal.signal(signal.SIGTERM, lambda number, frame: request.note())
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def plain_errors(run_dir, distribution):
    """Context of a run: turns errors of a full disk or a lost worker into plain messages."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BrokenPipeError):
            raise ValueError(
                f"Nobody reads the output any more. {_last_good(run_dir)}; start it again with the same flags to go on"
            ) from error
        of_tensorflow = type(error).__module__.startswith("tensorflow")
        # TensorFlow writes TensorBoard's files and raises no `OSError`.
        if isinstance(error, OSError) or (of_tensorflow and os.path.join(run_dir, "tensorboard") in str(error)):
            reason = str(error).partition("\n")[0].rpartition("}} ")[2].partition(" [Op:")[0]
            raise ValueError(
                f"Cannot write or read the files of the run. {_last_good(run_dir)}; start it again with the same flags "
                f"to go on from there. Received: {reason}"
            ) from error
        if distribution.workers == 1 or not of_tensorflow:
            raise
        lines = str(error).strip().splitlines() or [repr(error)]
        reason = next((line.strip() for line in lines if "grpc" in line.lower() or "peer" in line.lower()), lines[0])
        raise WorkerLost(
            f"worker {distribution.worker + 1} of {distribution.workers} lost the others. {_last_good(run_dir)}; start "
            f"all workers again with the same flags to go on from there. Received: {reason}"
        ) from error


def _last_good(run_dir):
    paths = checkpoints.paths(run_dir)
    return f"The last good checkpoint is {paths[0] if paths else 'none'}"


class NonFiniteGuard(keras.callbacks.Callback):
    """Ends training with `NonFinite` when the loss is NaN or infinite. It must be the first callback."""

    def __init__(self, run_dir, start):
        super().__init__()
        self._run_dir, self._start = run_dir, start
        self._loss = None

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._offset = self._start.step if epoch == self._start.epoch else 0

    def on_train_batch_end(self, batch, logs=None):
        # Check one step late: the loss of the previous step is ready, so nothing waits for the device.
        self._check()
        self._loss = (self._offset + batch + 1, logs["loss"])

    def on_epoch_end(self, epoch, logs=None):
        self._check()
        check_weights(self.model, self._run_dir, epoch)

    def _check(self):
        if self._loss is None:
            return
        (step, loss), self._loss = self._loss, None
        if not math.isfinite(float(loss)):
            raise NonFinite(_diagnosis(f"The loss is {float(loss)}", self.model, self._run_dir, self._epoch, step))


def check_weights(model, run_dir, epoch, step=None):
    """Raises `NonFinite` if a weight is NaN or infinite."""
    for variable in model.weights:
        if not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
            raise NonFinite(_diagnosis(f"{variable.path} is not finite", model, run_dir, epoch, step))


def _diagnosis(what, model, run_dir, epoch, step):
    place = f"epoch {epoch + 1}" if step is None else f"step {step} of epoch {epoch + 1}"
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    norms = keras.ops.convert_to_numpy(optimizer.gradient_norms)
    largest = int(np.argmax(norms))
    gradients = (
        "The largest gradient norm of the last step whose gradients were finite is "
        f"{norms[largest]:.4g}, that of {model.trainable_variables[largest].path}"
    )
    return (
        f"{what} at {place}. {gradients if norms[largest] else 'No step had gradients that were all finite'}. "
        f"{_last_good(run_dir)}. "
        "A lower --learning_rate or --orthogonality_strength or a longer --lr_warmup_epochs may help"
    )


class DivergenceWarning(keras.callbacks.Callback):
    """Warns once when the training loss is worse than guessing and clearly worse than its best value.

    Args:
        config: the `TrainConfig`.
        classes: number of classes.
    """

    def __init__(self, config, classes):
        super().__init__()
        self._config, self._classes = config, classes
        self._best, self._warned = math.inf, False

    def on_epoch_end(self, epoch, logs=None):
        loss = logs.get("cross_entropy", logs["loss"])  # without `cross_entropy`, the loss has no penalties
        self._best = min(self._best, loss)
        guessing = math.log(self._classes)
        if self._warned or loss <= max(2 * guessing, 1.5 * self._best):
            return
        self._warned = True
        logging.warning(
            "The training loss has risen from %.2f to %.2f by epoch %d; guessing among %d classes has %.2f. A lower "
            "--learning_rate than %g or a longer --lr_warmup_epochs may help",
            *(self._best, loss, epoch + 1, self._classes, guessing, self._config.learning_rate),
        )


class Checkpointing(keras.callbacks.Callback):
    """Saves a checkpoint after each epoch, at intervals within an epoch, and when the process is told to stop.

    Args:
        run_dir: directory of the run.
        start: the `Progress` that training starts from.
        distribution: the `Distribution`; its chief saves.
        request: the `StopRequest`; after SIGTERM, training finishes the step and raises `Stopped`.
        every_s: seconds between checkpoints within an epoch, or `None`.
    """

    def __init__(self, run_dir, start, distribution, request, every_s=None):
        super().__init__()
        self._run_dir, self._start, self._distribution, self._request = run_dir, start, distribution, request
        self._every_s = every_s
        self._saved = time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._offset = self._start.step if epoch == self._start.epoch else 0
        if epoch == self._start.epoch:
            checkpoints.restore(self.model, self._start)

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == self.params["steps"]:
            return  # `on_epoch_end` follows and saves
        due = self._every_s is not None and time.monotonic() - self._saved > self._every_s
        due, stop = self._distribution.any_worker(due, self._request.received)
        if due or stop:
            self._save(self._progress(self._epoch, self._offset + batch + 1))
        if stop:
            self._stop()

    def on_test_batch_end(self, batch, logs=None):
        # Several workers would have to ask each other at every batch, so only a single worker stops here.
        self.model.stop_evaluating = self._request.received and self._distribution.workers == 1

    def on_epoch_end(self, epoch, logs=None):
        self._save(self._progress(epoch + 1, 0, settled=int(self.model.stop_training)))
        (stop,) = self._distribution.any_worker(self._request.received)
        if stop:
            self._stop()

    def _progress(self, epoch, step, settled=0):
        metrics = checkpoints.metrics_of(self.model) if step else []
        return Progress(epoch, step, self._start.rollbacks, settled, metrics)

    def _save(self, progress):
        self._saved = time.monotonic()
        # Every worker checks, so that all workers stop or roll back together.
        check_weights(self.model, self._run_dir, self._epoch, progress.step or None)
        if self._distribution.is_chief:
            checkpoints.save(self.model, self._run_dir, progress)

    def _stop(self):
        self._distribution.wait_for_all()
        newest = checkpoints.paths(self._run_dir)[0]
        raise Stopped(f"told to stop (SIGTERM); saved {newest}; start it again with the same flags to go on")
