"""Callbacks that log each epoch of a run."""

import math
import time

import keras


class TensorBoard(keras.callbacks.TensorBoard):
    """Logs epochs only. Keras also makes a summary of each batch, never writes it, and keeps 2 KB of each."""

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch)


class EpochNotes(keras.callbacks.Callback):
    """Adds to the logs of each epoch its wall-clock seconds (with evaluation) and 1 or 0 for low-rank training."""

    def __init__(self, config, warms_up):
        super().__init__()
        self._low_rank = int(config.format != "dense" and not warms_up)
        # The CSV file has one set of columns, so full-rank epochs get the columns of the later low-rank epochs.
        self._missing = ("orthogonality_error_mean", "orthogonality_error_max") if warms_up else ()

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        logs.update(seconds=time.perf_counter() - self._start, low_rank=self._low_rank)
        logs.update(dict.fromkeys(self._missing, math.nan))
