"""Accuracies of a trained model at lower budgets: truncated, recalibrated, fitted to data, with a short recovery."""

import dataclasses

import numpy as np

import elrt_keras as elrt
from benchmarks.train.in_memory import augmented_batches, epochs_of
from elrt_keras.launch import modeling

_CALIBRATION = 5120  # number of augmented training images
# Learning rate of the recovery: peak of a cosine over one epoch, as a part of the peak of the run.
_RATE = 0.2


def shrunk(model, budgets, config, data, recovers, name):
    """Measures accuracies over budgets: a list of `{"kind", "epochs", "taught", "macs_fraction", "accuracy"}`.

    Kinds are `plain` (truncated weights), `recalibrated` (the same with batch-norm statistics of the data), and
    `fitted` (`elrt_keras.shrink` with calibration data).

    Args:
        model: the trained low-rank model.
        budgets: parts of the dense MACs.
        config: the `TrainConfig` of its run.
        data: an `ImageData`.
        recovers: whether to measure also after an epoch of fine-tuning, without and with the model as a teacher.
        name: name of the run, for messages.
    """
    dense = elrt.count_costs(elrt.merge(model)).macs
    images = list(augmented_batches(data, config, _CALIBRATION))
    rows = [{"kind": "whole", "epochs": 0, "taught": False, "macs_fraction": elrt.count_costs(model).macs / dense}]
    rows[0]["accuracy"] = _accuracy(model, data)
    for budget in budgets:
        for kind, low_rank in _kinds(model, budget, config, images):
            row = {"kind": kind, "macs_fraction": elrt.count_costs(low_rank).macs / dense}
            rows.append({**row, "epochs": 0, "taught": False, "accuracy": _accuracy(low_rank, data)})
            start = low_rank.get_weights()
            for taught in (False, True) if recovers and kind != "recalibrated" else ():
                low_rank.set_weights(start)
                _recover(low_rank, model if taught else None, config, data)
                rows.append({**row, "epochs": 1, "taught": taught, "accuracy": _accuracy(low_rank, data)})
            for point in rows[-3 if recovers else -1 :]:
                print(f"{name}: {point}", flush=True)
    return rows


def _kinds(model, budget, config, images):
    options = {"max_macs": budget, "multiple_of": config.multiple_of}
    plain = elrt.shrink(model, **options)
    yield "plain", plain
    yield "recalibrated", elrt.recalibrate_batch_norm(elrt.shrink(model, **options), images)
    yield "fitted", elrt.shrink(model, **options, calibration_data=images)


def _recover(low_rank, teacher, config, data):
    """Trains one epoch, with the whole model as teacher or with labels only."""
    config = dataclasses.replace(
        config, epochs=1, learning_rate=_RATE * config.learning_rate, lr_schedule="cosine", lr_warmup_epochs=0.0
    )
    trained = low_rank if teacher is None else elrt.Taught(low_rank, teacher)
    modeling.compile_model(trained, config, data.train_count // config.batch_size)
    trained.optimizer.build(trained.trainable_variables)
    loop = epochs_of(trained, config, data)
    loop.train(0)
    loop.store()
    if teacher is not None:
        teacher.trainable = True  # the next budget shrinks it again


def _accuracy(model, data):
    images = data.test_images.astype("float32")
    predicted = np.argmax(model.predict(images, batch_size=500, verbose=0), axis=-1)
    return float(np.mean(predicted == data.test_labels))
