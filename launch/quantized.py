"""Quantisation-aware training: fine-tunes a finished run with int8 rounding and exports an int8 LiteRT file."""

import dataclasses
import json
import math
import os

import keras

from elrt_keras import export
from elrt_keras.atomic import check_file, write_file
from elrt_keras.export.legacy import import_tf_keras
from elrt_keras.launch import data as data_module
from elrt_keras.launch import exporting, rundir, training

FOLDER = "quantization_aware"
_CHECK_EXAMPLES = 10_000


def run(run_dir, epochs, learning_rate, data_dir=None):
    """Fine-tunes the model of a run; an interrupted fine-tuning continues.

    Args:
        run_dir: directory of a finished run. Its subfolder `quantization_aware/` gets `model.tflite`, `history.csv` and
            `summary.json`.
        epochs: int, number of epochs.
        learning_rate: float, first learning rate; it falls to zero along a cosine. Momentum, batch size, augmentation
            and label smoothing are those of the run.
        data_dir: new place of the run's data; `None` if they have not moved.

    Returns:
        The summary, a dict.

    Raises:
        ValueError: for an unfinished run, a backend other than TensorFlow, or a folder with a fine-tuning of other
            settings.
        ImportError: without the `optimize` and `litert` extras.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"Expected the TensorFlow backend for quantisation-aware training. Received: {keras.backend.backend()!r}"
        )
    finished = rundir.read_summary(run_dir)
    if finished is None:
        raise ValueError(f"Expected a finished run. Received: {run_dir!r}")
    settings = {"epochs": epochs, "learning_rate": learning_rate}
    folder = os.path.join(run_dir, FOLDER)
    summary = _prepared(folder, settings)
    if summary is not None:
        print(f"Already finished: {folder}")
        return summary
    config = rundir.read_config(run_dir)
    data = training.load_data(config, data_dir)
    rundir.check_classes(run_dir, data)
    examples = exporting.examples_of(data, config)
    model, path = rundir.load_model(rundir.model_path(run_dir)), os.path.join(folder, "model.tflite")
    aware = export.quantization_aware(model, representative_data=examples.pop("representative_data"))
    with rundir.held(folder):
        _fit(aware, config, data, folder, finished["epochs"], **settings)
        report = export.to_litert(aware, path, "int8", max_examples=_CHECK_EXAMPLES, **examples)
        summary = {**settings, "float_accuracy": finished["test_accuracy"], **dataclasses.asdict(report)}
        exporting.write_report(path, report, FOLDER)
        _write(os.path.join(folder, "summary.json"), summary)
    return summary


def _prepared(folder, settings):
    """Makes the folder; returns the summary of a finished fine-tuning, or `None`. Refuses other settings in it."""
    path = os.path.join(folder, "settings.json")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ValueError(f"Expected a folder that can be made. Received: {folder!r}: {error}") from error
    check_file(path)
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            old_settings = json.load(file)
        if old_settings != settings:
            raise ValueError(
                f"Expected {old_settings}: {folder!r} holds a fine-tuning with them; remove it to start another one. "
                f"Received: {settings}"
            )
    _write(path, settings)
    return rundir.read_summary(folder, ("path", "accuracy", "float_accuracy", "size_bytes"))


def _fit(aware, config, data, folder, epochs_before, epochs, learning_rate):
    import tensorflow as tf

    tf_keras = import_tf_keras()
    steps = data_module.steps_per_epoch(data, config)
    rate = tf_keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps)
    aware.compile(
        tf_keras.optimizers.SGD(rate, momentum=config.momentum, nesterov=True),
        tf_keras.losses.CategoricalCrossentropy(label_smoothing=config.label_smoothing),
        metrics=["accuracy"],
    )
    aware.optimizer.build(aware.trainable_variables)
    done = tf.Variable(0, dtype=tf.int64)
    checkpoint = tf.train.Checkpoint(model=aware, optimizer=aware.optimizer, done=done)
    manager = tf.train.CheckpointManager(checkpoint, os.path.join(folder, "checkpoint"), max_to_keep=1)
    manager.restore_or_initialize()
    first_epoch = int(done)
    rundir.truncate_history(folder, first_epoch)

    def check(batch, logs):
        if not math.isfinite(logs["loss"]):
            raise ValueError(
                f"Expected a finite loss; remove {folder!r} and try a lower --quantization_aware_learning_rate. "
                f"Received: loss={logs['loss']} at step {batch + 1}, learning_rate={learning_rate}"
            )

    def save(epoch, logs):
        done.assign(epoch + 1)
        manager.save()

    with data_module.plain_errors(data):
        aware.fit(
            # Epoch numbers continue those of the run, so that the order of images differs from that of its start.
            data.train_batches(config, epochs_before + first_epoch),
            steps_per_epoch=steps,
            initial_epoch=first_epoch,
            epochs=epochs,
            validation_data=data.test_batches(config),
            callbacks=[
                tf_keras.callbacks.CSVLogger(rundir.history_path(folder), append=True),
                tf_keras.callbacks.LambdaCallback(on_batch_end=check, on_epoch_end=save),
            ],
            verbose="auto" if os.isatty(1) else 2,
        )


def _write(path, content):
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())
