"""Throughput of the input pipeline and of the training step, in images per second."""

import itertools
import os
import platform
import statistics
import sys
import time

import keras

from elrt_keras.launch import data as data_module
from elrt_keras.launch import modeling, training

_WARMUP_BATCHES = 4


def measure(config, seconds=5.0, rounds=3):
    """Times the pipeline and the training step separately and in turns, so that other load slows both equally.

    Args:
        config: a `TrainConfig`. The model is dense for format `"dense"`, else low-rank under the budget.
        seconds: float, shortest duration of each measurement.
        rounds: int, number of measurements of each.

    Returns:
        A dict: `pipeline` and `step`, lists of images per second; `ratio` of their medians; the settings.

    Raises:
        ValueError: for missing data, or fewer images than a batch.
    """
    data = training.load_data(config, download=config.download)
    steps = data_module.steps_per_epoch(data, config)
    keras.utils.set_random_seed(config.seed)
    model = modeling.new_model(config, data, steps)
    batch = next(iter(data.train_batches(config).take(1)))
    results = {"pipeline": [], "step": []}
    for number in range(1, rounds + 1):
        print(f"measuring, round {number} of {rounds}", file=sys.stderr, flush=True)
        results["pipeline"].append(_pipeline_rate(data, config, seconds))
        results["step"].append(_step_rate(model, batch, config.batch_size, seconds))
    medians = {name: statistics.median(values) for name, values in results.items()}
    return {
        **{name: [round(value, 1) for value in values] for name, values in results.items()},
        "ratio": round(medians["pipeline"] / medians["step"], 3),
        "model": config.model,
        "format": config.format,
        "dataset": config.dataset,
        "image_shape": list(data.image_shape),
        "augmentation": config.augmentation,
        "batch_size": config.batch_size,
        "machine": {
            "backend": keras.backend.backend(),
            "keras": keras.__version__,
            "python": platform.python_version(),
            "cores": _cores(),
        },
    }


def _pipeline_rate(data, config, seconds):
    """Measures images per second of a new iterator, after some warm-up batches."""
    batches = iter(data.train_batches(config))
    with data_module.plain_errors(data):
        for _ in range(_WARMUP_BATCHES):
            next(batches)
        start = time.perf_counter()
        for count in itertools.count(1):
            next(batches)
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                return count * config.batch_size / elapsed


def _step_rate(model, batch, batch_size, seconds):
    """Measures images per second of the training step on one batch in memory."""
    import tensorflow as tf

    repeated = tf.data.Dataset.from_tensors(batch).repeat().prefetch(2)

    def timed(steps):
        start = time.perf_counter()
        model.fit(repeated, steps_per_epoch=steps, epochs=1, verbose=0, shuffle=False)
        return time.perf_counter() - start

    timed(2)  # compiles
    steps = max(2, round(2 * seconds / timed(2)))
    return steps * batch_size / timed(steps)


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
