"""`run`: trains one model in one directory, from a `TrainConfig` to a saved and evaluated model; resumes by itself."""

import contextlib
import dataclasses
import os

import keras

import elrt_keras as elrt
from elrt_keras import RankPlan
from elrt_keras.distillation import student_of
from elrt_keras.graph.paths import iterate_layers
from elrt_keras.launch import checkpoints, faults, modeling, rundir
from elrt_keras.launch import data as data_module
from elrt_keras.launch.checkpoints import Progress
from elrt_keras.launch.config import TrainConfig, parse_schedule
from elrt_keras.launch.logs import EpochNotes, TensorBoard
from elrt_keras.launch.strategies import SINGLE, Distribution
from elrt_keras.ranks.survey import AUTO

_MOST_ROLLBACKS = 3


@dataclasses.dataclass(frozen=True)
class _Job:
    """Shared state of the functions in this module."""

    config: TrainConfig
    run_dir: str
    data: data_module.Images
    steps: int
    dense: keras.Model
    distribution: Distribution
    request: faults.StopRequest
    divergence: faults.DivergenceWarning  # one for all calls of `fit`


def run(config, run_dir, distribution=SINGLE):
    """Trains the run of `config` in `run_dir`; resumes an interrupted run.

    Args:
        config: a `TrainConfig`.
        run_dir: directory of the run; made if missing. At the end it holds `flags.txt`, `rank_plan.json`,
            `rank_plan.png` (low-rank runs), `training_ways.json` (tuned runs), `model.keras`, `history.csv`,
            `summary.json`, `curves.png` and `tensorboard/`. During training it also holds `checkpoints/`.
        distribution: the `Distribution` from `strategies.start`. All workers must share the directory.

    Returns:
        The summary, a dict.

    Raises:
        ValueError: before any work, for a directory of another run, a locked or read-only directory, missing data, or a
            budget that cannot be met; later, for a full disk, a NaN loss (`faults.NonFinite`) or a lost worker
            (`faults.WorkerLost`). The later messages name the last good checkpoint.
        faults.Stopped: after SIGTERM, once a checkpoint is saved; at once while ranks are chosen or kernels decomposed.
    """
    finished = _finished(config, run_dir)
    if finished is not None:
        return finished
    distribution.check_batch(config.batch_size)
    data = load_data(config, download=config.download)
    steps = data_module.steps_per_epoch(data, config)
    with modeling.precision(config), faults.noting_sigterm() as request, faults.plain_errors(run_dir, distribution):
        keras.utils.set_random_seed(config.seed)
        dense = modeling.dense_model(config, data)
        divergence = faults.DivergenceWarning(config, len(data.class_names))
        job = _Job(config, run_dir, data, steps, dense, distribution, request, divergence)
        with rundir.held(run_dir) if distribution.is_chief else contextlib.nullcontext():
            finished = _finished(config, run_dir) if distribution.workers == 1 else None
            if finished is not None:  # another process finished the run while this one loaded its data
                return finished
            if distribution.is_chief:
                with request.at_once():
                    _make_first_checkpoint(job)
            distribution.wait_for_all()
            _train(job)
            if distribution.is_chief:
                _publish(job)
            distribution.wait_for_all()
    return rundir.read_summary(run_dir)


def _finished(config, run_dir):
    """Returns the summary of a finished run, or `None`; refuses an unsuitable directory."""
    rundir.check(config, run_dir)
    summary = rundir.read_summary(run_dir)
    if summary is not None:
        print(f"Already finished: {run_dir}")
    return summary


def _make_first_checkpoint(job):
    """Writes flags, rank plan and a first checkpoint with the new model. Training always starts from a checkpoint."""
    config, run_dir = job.config, job.run_dir
    checkpoints.remove_remains(run_dir)
    if checkpoints.paths(run_dir):
        # Keep the plan: times measured again would give a slightly different one.
        rundir.prepare(config, run_dir, None)
        return
    teacher = modeling.load_teacher(config, job.dense, job.data)  # fails before long work
    if config.max_latency is not None and not config.warms_up:
        _tell(job, "timing layers on LiteRT for --max_latency")
    model, plan = modeling.starting_model(config, job.dense, job.data)
    trained = modeling.with_teacher(config, model, teacher)
    job = dataclasses.replace(job, config=modeling.with_epochs(config, trained, job.dense))
    rundir.prepare(config, run_dir, None if config.warms_up else plan)
    _save_compiled(job, trained, Progress())


def _save_compiled(job, model, progress, iterations=0):
    modeling.compile_model(model, job.config, job.steps)
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(iterations)
    checkpoints.save(model, job.run_dir, progress)


def _train(job):
    """Trains from the newest checkpoint to the end; rolls back after a NaN loss if `--on_nan` says so."""
    rollbacks = 0
    while True:
        try:
            return _train_from_checkpoint(job, rollbacks)
        except faults.NonFinite as error:
            rollbacks = max(rollbacks, checkpoints.newest(job.run_dir)[1].rollbacks) + 1
            if job.config.on_nan != "rollback":
                raise faults.NonFinite(f"{error}, or --on_nan=rollback") from error
            if rollbacks > _MOST_ROLLBACKS:
                raise
            _tell(job, f"{error}\nBack to that checkpoint with half the learning rate ({rollbacks}/{_MOST_ROLLBACKS})")


def _train_from_checkpoint(job, rollbacks):
    job, model, progress = _load(job, rollbacks)
    if job.distribution.is_chief:
        rundir.truncate_history(job.run_dir, progress.epoch)
    _tell(job, _headline(job, model, f"resuming at epoch {progress.epoch + 1}" if progress.epoch else ""))
    if job.config.warms_up and not _is_low_rank(model):
        if not progress.settled:
            progress = _fit(job, model, progress, job.config.longest_warmup, warms_up=True)
        if job.distribution.is_chief:
            with job.request.at_once():
                _switch(job, model, progress)
        job.distribution.wait_for_all()
        job, model, progress = _load(job, rollbacks)
        _tell(job, _headline(job, model, f"low-rank from epoch {progress.epoch + 1}"))
    _fit(job, model, progress, job.config.epochs)


def _load(job, rollbacks):
    """Loads the newest checkpoint; returns the job with its number of epochs, the compiled model and `Progress`."""
    with job.distribution.scope():
        model, progress = checkpoints.newest(job.run_dir)
    job = dataclasses.replace(job, config=modeling.with_epochs(job.config, model, job.dense))
    progress = dataclasses.replace(progress, rollbacks=max(rollbacks, progress.rollbacks))
    elrt.fuse_batch_norm(model)  # a `.keras` file does not store this setting
    if _is_low_rank(model) and modeling.is_tuned(job.config):
        _tune(job, model)
    if progress.rollbacks:
        modeling.slow_down(model, job.config, job.steps, progress.rollbacks)
    if job.distribution.strategy is not None:
        modeling.synchronize_batch_norm(model, job.config.sync_batch_norm)
    return job, model, progress


def _tune(job, model):
    """Sets the run's ways to train on the low-rank layers; the first start of a run measures the ways."""
    path, examples = rundir.tuning_path(job.run_dir), job.config.batch_size // job.distribution.replicas
    if job.distribution.is_chief and not os.path.exists(path):
        _tell(job, "timing the ways to train each low-rank layer")
        with job.request.at_once():
            report = elrt.tune_training(model, examples, prefer=job.config.tune_for)
        report.save(path)
        _tell(job, str(report))
    job.distribution.wait_for_all()
    elrt.TrainingReport.load(path).apply(model)


def _switch(job, dense, progress):
    """Ends full-rank warm-up: decomposes the weights and saves the low-rank model at the same step."""
    trained = modeling.dense_model(job.config, job.data)
    trained.set_weights(student_of(dense).get_weights())
    plan = modeling.rank_plan(job.config, trained)
    rundir.prepare(job.config, job.run_dir, plan)
    model = modeling.build_model(job.config, trained, plan)
    model = modeling.with_teacher(job.config, model, getattr(dense, "teacher", None))
    progress = Progress(progress.epoch, rollbacks=progress.rollbacks)
    _save_compiled(job, model, progress, keras.ops.convert_to_numpy(dense.optimizer.iterations))


def load_data(config, data_dir=None, download=False):
    """Loads the data of a run.

    Args:
        config: the `TrainConfig`; its field `download` is ignored, because `flags.txt` may come from somebody else.
        data_dir: new place of the data: the TFDS directory, or the folder itself for `folder:PATH`.
        download: whether TFDS may download missing data.
    """
    sizes = {} if config.image_size is None else {"image_size": config.image_size}
    name, directory = config.dataset, data_dir or config.data_dir
    if data_dir is not None and name.startswith(data_module.FOLDER):
        name = data_module.FOLDER + data_dir
    return data_module.load(name, directory, download, bad_images=config.bad_images, **sizes)


def _fit(job, model, progress, epochs, warms_up=False):
    """Trains up to epoch `epochs`; finishes an interrupted epoch first. Returns the new `Progress`."""
    if progress.step and progress.epoch < epochs:
        _fit_epochs(job, model, progress, progress.epoch + 1, job.steps - progress.step, warms_up)
        progress = dataclasses.replace(progress, epoch=progress.epoch + 1, step=0, metrics=(), random_state=())
        model.stop_training = False
    if progress.epoch < epochs:
        done = _fit_epochs(job, model, progress, epochs, job.steps, warms_up)
        progress = dataclasses.replace(progress, epoch=done)
    return progress


def _fit_epochs(job, model, progress, epochs, steps, warms_up):
    def batches_of(shard):
        return job.data.train_batches(job.config, progress.epoch, shard, progress.step)

    with data_module.plain_errors(job.data):
        history = model.fit(
            job.distribution.spread(batches_of, job.config.batch_size),
            steps_per_epoch=steps,
            initial_epoch=progress.epoch,
            epochs=epochs,
            validation_data=job.data.test_batches(job.config),
            callbacks=_callbacks(job, progress, warms_up),
            shuffle=False,  # the pipeline shuffles
            verbose=("auto" if os.isatty(1) else 2) if job.distribution.is_chief else 0,
        )
    return history.epoch[-1] + 1


def _tell(job, text):
    if job.distribution.is_chief:
        print(text, flush=True)


def _format(job):
    """Returns the name of the run's format: the formats of its rank plan if it has one."""
    config, path = job.config, rundir.plan_path(job.run_dir)
    if config.rank_plan is None and (config.format != AUTO or not os.path.exists(path)):
        return config.format
    return modeling.plan_format(RankPlan.load(path if os.path.exists(path) else config.rank_plan))


def _is_low_rank(model):
    return any(isinstance(layer, elrt.layers.FactorizedLayer) for _, layer in iterate_layers(student_of(model)))


def _callbacks(job, progress, warms_up):
    config, run_dir = job.config, job.run_dir
    callbacks = [
        faults.NonFiniteGuard(run_dir, progress),
        *([] if config.ema is None else [keras.callbacks.SwapEMAWeights()]),
        # Before the callbacks that add values to the logs for the CSV file and TensorBoard.
        keras.callbacks.ProgbarLogger(),
        elrt.callbacks.OrthogonalityLogger(),
        EpochNotes(config, warms_up),
    ]
    if config.freeze_factors and not warms_up:
        callbacks.append(elrt.callbacks.FactorFreezing())
    schedule = parse_schedule(config.orthogonality_schedule)
    if schedule is not None and not warms_up:
        callbacks.append(elrt.callbacks.RegularizationSchedule(schedule))
    if job.distribution.is_chief:
        callbacks += [keras.callbacks.CSVLogger(rundir.history_path(run_dir), append=True), job.divergence]
    stops_by_itself = warms_up and config.warmup_epochs == "auto"
    if stops_by_itself:
        # After the CSV logger: its columns have to be those of the low-rank epochs.
        format_name = type(config).format if config.format == AUTO else config.format
        callbacks.append(elrt.callbacks.StableRankStopping(format_name))
    if job.distribution.is_chief:
        callbacks.append(TensorBoard(os.path.join(run_dir, "tensorboard"), write_graph=False))
    # `StableRankStopping` compares the ends of epochs, so no checkpoint may divide an epoch.
    every_s = None if stops_by_itself or not config.checkpoint_minutes else 60 * config.checkpoint_minutes
    callbacks.append(faults.Checkpointing(run_dir, progress, job.distribution, job.request, every_s))
    return callbacks


def evaluate(model, data, config):
    """Evaluates a model on the test images: `{"accuracy", "loss"}`, where the loss is the cross-entropy alone."""
    # The loss that Keras reports includes the penalties of the layers.
    metrics = [modeling.accuracy(), keras.metrics.CategoricalCrossentropy(name="cross_entropy")]
    model.compile(loss="categorical_crossentropy", metrics=metrics, jit_compile=modeling.jit_compile())
    with data_module.plain_errors(data):
        results = model.evaluate(data.test_batches(config), verbose=0, return_dict=True)
    return {"accuracy": float(results["accuracy"]), "loss": float(results["cross_entropy"])}


def _headline(job, model, note):
    config, costs, dense_costs = job.config, elrt.count_costs(student_of(model)), elrt.count_costs(job.dense)
    taught = "" if config.teacher is None else f", taught by {config.teacher}"
    return (
        f"{config.model} on {config.dataset}, {_format(job)}{note and f', {note}'}: "
        f"{costs.macs / 1e6:.2f} M MACs ({costs.macs / dense_costs.macs:.1%} of dense), "
        f"{costs.params:,} params ({costs.params / dense_costs.params:.1%}), {config.epochs} epochs{taught}"
    )


def _publish(job):
    """Writes `model.keras` without training state, evaluates it and finishes the run."""
    model, progress = checkpoints.newest(job.run_dir)
    getattr(model.optimizer, "inner_optimizer", model.optimizer).use_averages(model.trainable_variables)
    step_macs = modeling.training_macs(model)
    rundir.save_model(modeling.ready_for_use(student_of(model)), rundir.model_path(job.run_dir))
    rundir.finish(job.config, job.run_dir, {**_summary(job, step_macs), "rollbacks": progress.rollbacks})


def _summary(job, step_macs):
    """Returns results and costs of the finished run; `step_macs`: MACs of a training step for one image."""
    config, run_dir, dense_costs = job.config, job.run_dir, elrt.count_costs(job.dense)
    model = keras.models.load_model(rundir.model_path(run_dir), compile=False)
    results = evaluate(model, job.data, config)
    costs = elrt.count_costs(model)
    rows = rundir.read_history(run_dir)
    seconds = sorted(float(row["seconds"]) for row in rows if bool(int(row["low_rank"])) == (config.format != "dense"))
    full_rank_epochs = sum(not int(row["low_rank"]) for row in rows)
    of_full_rank = full_rank_epochs * 3 * (dense_costs.macs - costs.macs)  # extra MACs of the full-rank epochs
    return {
        "model": config.model,
        "dataset": config.dataset,
        "class_names": list(job.data.class_names),
        "format": _format(job),
        "epochs": len(rows),
        "full_rank_epochs": full_rank_epochs,
        "training_macs": job.steps * config.batch_size * (len(rows) * step_macs + of_full_rank),
        "seed": config.seed,
        "precision": config.precision,
        "replicas": job.distribution.replicas,
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
        "seconds_per_epoch": seconds[len(seconds) // 2] if seconds else 0.0,
        "bad_images": len(job.data.bad_images),
        "bad_image_names": list(job.data.bad_images),
        "orthogonality_error": elrt.callbacks.factor_errors(model),
    }
