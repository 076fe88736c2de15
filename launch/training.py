"""`run`: one training run in one directory, from a `TrainConfig` to a saved, measured model; resumes by itself."""

import csv
import math
import os
import time

import keras

import elrt_keras as elrt
from elrt_keras import RankPlan
from elrt_keras.launch import data as data_module
from elrt_keras.launch import modeling, rundir
from elrt_keras.launch.config import parse_schedule
from elrt_keras.traversal import iterate_layers


def run(config, run_dir):
    """Trains as `config` says, in `run_dir`; goes on where an earlier start of the same run stopped.

    Args:
        config: a `TrainConfig`.
        run_dir: directory of the run; made if missing. Afterwards it holds `flags.txt`, `rank_plan.json`,
            `model.keras`, `history.csv`, `summary.json`, `curves.png` and `tensorboard/`.

    Returns:
        The summary, a dict.

    Raises:
        ValueError: before any work, for a directory that belongs to another run or cannot be written, data that is
            missing, or a budget that cannot be met.
    """
    rundir.check(config, run_dir)
    finished = rundir.read_summary(run_dir)
    if finished is not None:
        print(f"Already finished: {run_dir}")
        return finished
    data = load_data(config)
    steps = data_module.steps_per_epoch(data, config)
    keras.utils.set_random_seed(config.seed)
    dense = modeling.dense_model(config, data)
    checkpoint = rundir.checkpoint_path(run_dir)
    if os.path.exists(checkpoint):
        # A plan that was measured once would come out a little different the next time.
        plan = rundir.read_plan(run_dir)
        model = keras.models.load_model(checkpoint)
    else:
        plan = modeling.rank_plan(config, dense)
        model = modeling.build_model(config, dense, RankPlan() if config.warms_up else plan)
        modeling.compile_model(model, config, steps)
    first_epoch = _epochs_done(model, steps)
    rundir.prepare(config, run_dir, None if config.warms_up else plan)
    rundir.truncate_history(run_dir, first_epoch)
    print(_headline(config, model, dense, first_epoch))
    if config.warms_up and not _is_low_rank(model):
        _fit(model, config, run_dir, data, epochs=config.longest_warmup, warms_up=True)
        model = _switched(model, config, run_dir, steps)
        print(_headline(config, model, dense, _epochs_done(model, steps), "low-rank from"))
    _fit(model, config, run_dir, data, epochs=config.epochs)
    rundir.publish_model(run_dir)
    return rundir.finish(config, run_dir, _summary(config, run_dir, data, dense))


def load_data(config, data_dir=None):
    """The data of a run; `data_dir` where it lies elsewhere now."""
    sizes = {} if config.image_size is None else {"image_size": config.image_size}
    directory = data_dir or config.data_dir
    return data_module.load(config.dataset, directory, config.download, bad_images=config.bad_images, **sizes)


def _fit(model, config, run_dir, data, epochs, warms_up=False):
    steps = data_module.steps_per_epoch(data, config)
    first_epoch = _epochs_done(model, steps)
    with data_module.plain_errors(data):
        model.fit(
            data.train_batches(config, first_epoch),
            steps_per_epoch=steps,
            initial_epoch=first_epoch,
            epochs=epochs,
            validation_data=data.test_batches(config),
            callbacks=_callbacks(config, run_dir, warms_up),
            shuffle=False,  # the pipeline shuffles
            verbose="auto" if os.isatty(1) else 2,
        )


def _epochs_done(model, steps):
    return int(model.optimizer.iterations) // steps


def _is_low_rank(model):
    return any(isinstance(layer, elrt.layers.FactorizedLayer) for _, layer in iterate_layers(model))


def _switched(dense, config, run_dir, steps):
    """The low-rank model that goes on where full-rank warm-up ends: its weights decomposed, the same step."""
    plan = modeling.rank_plan(config, dense)
    model = modeling.build_model(config, dense, plan)
    modeling.compile_model(model, config, steps)
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(dense.optimizer.iterations)
    rundir.prepare(config, run_dir, plan)
    rundir.save_model(model, rundir.checkpoint_path(run_dir))
    return model


def _callbacks(config, run_dir, warms_up):
    callbacks = [elrt.callbacks.OrthogonalityLogger(), _EpochNotes(config, warms_up)]
    schedule = parse_schedule(config.orthogonality_schedule)
    if schedule is not None and not warms_up:
        callbacks.append(elrt.callbacks.RegularizationSchedule(schedule))
    callbacks.append(keras.callbacks.CSVLogger(rundir.history_path(run_dir), append=True))
    if warms_up and config.warmup_epochs == "auto":
        # After the CSV file, whose columns have to be those of the low-rank epochs.
        callbacks.append(elrt.callbacks.StableRankStopping(config.format))
    return [
        *callbacks,
        keras.callbacks.TensorBoard(os.path.join(run_dir, "tensorboard"), write_graph=False),
        _Checkpoint(run_dir),
    ]


class _EpochNotes(keras.callbacks.Callback):
    """Adds to the logs of each epoch its wall-clock seconds, evaluation included, and whether it trained low-rank."""

    def __init__(self, config, warms_up):
        super().__init__()
        self._low_rank = int(config.format != "dense" and not warms_up)
        # The CSV file has one set of columns, so full-rank epochs of a low-rank run get those of the low-rank ones.
        self._missing = ("orthogonality_error_mean", "orthogonality_error_max") if warms_up else ()

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        logs.update(seconds=time.perf_counter() - self._start, low_rank=self._low_rank)
        logs.update(dict.fromkeys(self._missing, math.nan))


class _Checkpoint(keras.callbacks.Callback):
    """Saves model and optimizer after each epoch; the newest replaces the one before atomically."""

    def __init__(self, run_dir):
        super().__init__()
        self._run_dir = run_dir

    def on_epoch_end(self, epoch, logs=None):
        rundir.save_model(self.model, rundir.checkpoint_path(self._run_dir))


def evaluate(model, data, config):
    """`{"accuracy", "loss"}` of a model on the test images (loss: cross-entropy alone)."""
    model.compile(loss="categorical_crossentropy", metrics=["accuracy"], jit_compile=modeling.jit_compile())
    with data_module.plain_errors(data):
        results = model.evaluate(data.test_batches(config), verbose=0, return_dict=True)
    return {"accuracy": float(results["accuracy"]), "loss": float(results["loss"])}


def _headline(config, model, dense, first_epoch, verb="resuming at"):
    costs, dense_costs = elrt.count_costs(model), elrt.count_costs(dense)
    resumed = f", {verb} epoch {first_epoch + 1}" if first_epoch else ""
    return (
        f"{config.model} on {config.dataset}, {config.format}{resumed}: "
        f"{costs.macs / 1e6:.2f} M MACs ({costs.macs / dense_costs.macs:.1%} of dense), "
        f"{costs.params:,} params ({costs.params / dense_costs.params:.1%})"
    )


def _summary(config, run_dir, data, dense):
    model = keras.models.load_model(rundir.model_path(run_dir), compile=False)
    results = evaluate(model, data, config)
    costs, dense_costs = elrt.count_costs(model), elrt.count_costs(dense)
    with open(rundir.history_path(run_dir), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    seconds = sorted(float(row["seconds"]) for row in rows if bool(int(row["low_rank"])) == (config.format != "dense"))
    return {
        "model": config.model,
        "dataset": config.dataset,
        "format": config.format,
        "epochs": config.epochs,
        "full_rank_epochs": sum(not int(row["low_rank"]) for row in rows),
        "seed": config.seed,
        "backend": keras.backend.backend(),
        "keras_version": keras.__version__,
        "test_accuracy": results["accuracy"],
        "test_loss": results["loss"],
        "params": costs.params,
        "dense_params": dense_costs.params,
        "params_fraction": costs.params / dense_costs.params,
        "macs": costs.macs,
        "dense_macs": dense_costs.macs,
        "macs_fraction": costs.macs / dense_costs.macs,
        "seconds_per_epoch": seconds[len(seconds) // 2],
        "bad_images": len(data.bad_images),
        "orthogonality_error": elrt.callbacks.factor_errors(model),
    }
