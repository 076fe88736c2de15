"""Models of a run: the dense model, its rank plan, and the compiled low-rank model."""

import contextlib
import dataclasses

import keras
from absl import logging

import elrt_keras as elrt
from elrt_keras import RankPlan
from elrt_keras.distillation import student_of
from elrt_keras.graph.configs import copy_arguments
from elrt_keras.graph.paths import iterate_layers
from elrt_keras.launch import rundir, timing
from elrt_keras.launch.optimization import add_kernel_regularizer, frobenius_decay, learning_rate, make_optimizer
from elrt_keras.layers import FactorizedLayer
from elrt_keras.ranks import methods
from elrt_keras.tuning.steps import has_accelerator


def new_model(config, data, steps):
    """Builds and compiles the first model of a run without full-rank warm-up."""
    dense = dense_model(config, data)
    model = build_model(config, dense, rank_plan(config, dense))
    compile_model(model, config, steps)
    return model


def starting_model(config, dense, data):
    """Builds the first model of a run and its `RankPlan`, from the dense model or by shrinking a low-rank one.

    Raises:
        ValueError: if a low-rank model has no budget, or cannot be shrunk to it.
    """
    examples = calibration_data(config, data)
    trained = initial_low_rank(config)
    if trained is None:
        plan = rank_plan(config, dense, examples)
        return build_model(config, dense, RankPlan() if config.warms_up else plan, examples), plan
    if config.max_macs is None and config.max_params is None:
        raise ValueError(
            "Expected max_macs or max_params for a low-rank model, which is shrunk to this budget. "
            f"Received: initial_model={config.initial_model!r} with neither"
        )
    budgets = {"max_macs": config.max_macs, "max_params": config.max_params}
    shrunk = elrt.shrink(trained, **budgets, multiple_of=config.multiple_of, calibration_data=examples)
    model = with_penalties(config, shrunk)
    layers = {path: layer for path, layer in iterate_layers(model) if isinstance(layer, FactorizedLayer)}
    return model, RankPlan({path: (layer.format_name, layer.ranks) for path, layer in layers.items()})


def calibration_data(config, data):
    """Returns batches of at least `calibration_examples` augmented training images; `None` for 0 of them."""
    if not config.calibration_examples:
        return None
    return data.train_batches(config).take(-(-config.calibration_examples // config.batch_size))


def initial_low_rank(config):
    """Returns the low-rank model in `--initial_model`, or `None`."""
    if config.initial_model is None:
        return None
    trained = rundir.load_model(config.initial_model)
    is_low_rank = any(isinstance(layer, FactorizedLayer) for _, layer in iterate_layers(trained))
    return trained if is_low_rank else None


def with_penalties(config, low_rank):
    """Copies a low-rank model; the run's regularizers replace those of the model."""
    decay = frobenius_decay(config)
    own = {
        "factor_regularizer": _orthogonality(config),
        "factor_constraint": _constraint(config),
        "kernel_regularizer": decay,
        "recompute": config.recompute,
    }

    def copied(layer):
        overrides = own if isinstance(layer, FactorizedLayer) else {}
        return type(layer).from_config({**copy_arguments(layer), **overrides})

    model = keras.models.clone_model(low_rank, clone_function=copied)
    model.set_weights(low_rank.get_weights())
    if decay is not None:
        add_kernel_regularizer(model, decay)
    return model


def _constraint(config):
    return elrt.constraints.Stiefel() if config.orthogonality == "stiefel" else None


def build_model(config, dense, plan, calibration_data=None):
    """Builds the model of a run with the run's regularizers: `dense` itself, or its low-rank twin under `plan`."""
    decay = frobenius_decay(config)
    if not plan.factorized():
        model = dense
    else:
        model = elrt.factorize(
            dense,
            plan,
            factor_initializer=_seeded(config),
            factor_regularizer=_orthogonality(config),
            factor_constraint=_constraint(config),
            kernel_regularizer=decay,
            recompute=config.recompute,
            calibration_data=calibration_data,
        )
    if decay is not None:
        add_kernel_regularizer(model, decay)
    return model


def dense_model(config, data):
    """Builds the dense model of a run, with the weights of `--initial_model` if there is one."""
    dense = elrt.models.build(
        config.model,
        data.image_shape,
        len(data.class_names),
        normalization=data.pixel_statistics(),
        width=config.width,
    )
    if config.initial_model is not None:
        trained = initial_low_rank(config)
        trained = rundir.load_model(config.initial_model) if trained is None else elrt.merge(trained)
        shapes = [[tuple(w.shape) for w in model.weights] for model in (dense, trained)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"Expected a {config.model} for {len(data.class_names)} classes. "
                f"Received: initial_model={config.initial_model!r} with other weights"
            )
        dense.set_weights(trained.get_weights())
    return dense


def load_teacher(config, dense, data):
    """Loads the teacher of a run; returns `None` for a run without a teacher.

    Raises:
        ValueError: for a missing teacher, or one with other classes or inputs than the run.
    """
    if config.teacher is None:
        return None
    teacher = rundir.load_model(config.teacher)
    rundir.check_classes(config.teacher, data)
    with_teacher(config, dense, teacher)
    return teacher


def with_teacher(config, model, teacher):
    """Returns the model to train: `model` itself, or a `Taught` model if there is a teacher."""
    if teacher is None:
        return model
    try:
        return elrt.Taught(model, teacher, config.teacher_weight, config.temperature)
    except ValueError as error:
        raise ValueError(f"In --teacher={config.teacher}: {error}") from error


def training_macs(model):
    """Counts the MACs of a training step for one image: three times those of inference, plus those of the teacher.

    The gradients of inputs and of weights each cost as much as the forward pass.
    """
    macs = 3 * elrt.count_costs(student_of(model)).macs
    return macs + elrt.count_costs(model.teacher).macs if isinstance(model, elrt.Taught) else macs


def with_epochs(config, model, dense):
    """Returns the configuration with the number of epochs that `training_macs_of_dense` pays for.

    Raises:
        ValueError: if it pays for no epoch.
    """
    if config.training_macs_of_dense is None:
        return config
    dense_epochs = training_macs(model) / training_macs(dense)
    epochs = int(config.training_macs_of_dense / dense_epochs)
    if not epochs:
        raise ValueError(
            f"Expected training MACs for an epoch, which costs {dense_epochs:.2f} epochs of the dense model. "
            f"Received: training_macs_of_dense={config.training_macs_of_dense}"
        )
    return dataclasses.replace(config, epochs=epochs, training_macs_of_dense=None)


def rank_plan(config, dense, calibration_data=None):
    """Returns the `RankPlan` of a run: all dense, read from a file, or planned under the budget."""
    if config.format == "dense":
        return RankPlan({row.name: None for row in elrt.count_costs(dense).layers if row.macs})
    if config.rank_plan is not None:
        plan = RankPlan.load(config.rank_plan)
        # A default format is no wish of the user, so it may differ from the plan.
        if config.format not in (*plan_format(plan).split("+"), type(config).format):
            raise ValueError(
                f"Expected the format of the rank plan, {plan_format(plan)!r}. Received: format={config.format!r}"
            )
        others = [name for name in elrt.plan_ranks(dense, fraction=0.5) if name not in plan]
        if others:  # for example, the plan was made for a smaller network of the same family
            logging.warning(
                "%d layers stay dense because the plan does not name them: %s", len(others), ", ".join(others)
            )
        return plan
    return elrt.plan_ranks(
        dense,
        format=config.format,
        max_macs=config.max_macs,
        max_params=config.max_params,
        max_latency=config.max_latency,
        method=config.rank_method,
        multiple_of=config.multiple_of,
        timer=timing.timer(config.timer),
        times=config.times,
        calibration_data=calibration_data if methods.get(config.rank_method).weighs_kernels else None,
    )


def plan_format(plan):
    """Returns the names of a plan's formats as one text, such as `"svd+tucker2"`."""
    return "+".join(sorted({entry.format for entry in plan.factorized().values()})) or "dense"


def _seeded(config):
    if config.factor_initializer == "decomposed":
        return "decomposed"
    initializer = elrt.initializers.get(config.factor_initializer)
    seeded = {**initializer.get_config(), "seed": config.seed}
    return type(initializer).from_config(seeded) if "seed" in initializer.get_config() else initializer


def _orthogonality(config):
    regularizer = elrt.regularizers.BY_NAME.get(config.orthogonality)
    return regularizer(config.orthogonality_strength) if regularizer else None


def compile_model(model, config, steps):
    """Compiles a model with the run's optimizer and loss; `steps`: number of steps in an epoch."""
    elrt.fuse_batch_norm(model)
    model.compile(
        make_optimizer(config, steps),
        keras.losses.CategoricalCrossentropy(label_smoothing=config.label_smoothing),
        metrics=[accuracy(), *_cross_entropy(config)],
        jit_compile=jit_compile(),
    )


def accuracy():
    """Returns the top-1 accuracy metric. The name `"accuracy"` would make TensorFlow trace the first step twice."""
    return keras.metrics.CategoricalAccuracy(name="accuracy")


def _cross_entropy(config):
    """Returns a metric of the loss over the labels alone, for runs whose loss has other terms."""
    if config.teacher is None and frobenius_decay(config) is None and _orthogonality(config) is None:
        return []
    # Decide by the configuration, not by the model: full-rank epochs get the columns of the low-rank epochs.
    return [keras.metrics.CategoricalCrossentropy(name="cross_entropy", label_smoothing=config.label_smoothing)]


def slow_down(model, config, steps, rollbacks):
    """Halves the learning rate of a compiled model, over the whole schedule, once per rollback."""
    slower = dataclasses.replace(config, learning_rate=config.learning_rate * 0.5**rollbacks)
    model.optimizer.learning_rate = learning_rate(slower, steps)


@contextlib.contextmanager
def precision(config):
    """Context in which new layers have the dtype policy of the run."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def synchronize_batch_norm(model, wanted):
    """Makes batch-norm compute statistics over the batches of all replicas, or of each replica alone."""
    for _, layer in iterate_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = wanted


def ready_for_use(model):
    """Returns a trained model without optimizer, replicas and mixed precision. Do not use `model` afterwards."""
    synchronize_batch_norm(model, False)
    for _, layer in iterate_layers(model):
        layer.dtype_policy = "float32"
    # Saving a compiled model saves the optimizer too, so build a fresh model from the configuration.
    fresh = type(model).from_config(model.get_config())
    fresh.set_weights(model.get_weights())
    return fresh


def is_tuned(config):
    """Reports if the ways to train are measured: as `--tune` says, by default if there is an accelerator."""
    if config.tune is not None:
        return config.tune
    return has_accelerator()


def jit_compile():
    """Returns the `jit_compile` argument of `compile`."""
    # On a CPU TensorFlow's XLA makes a ResNet step slower; JAX always compiles.
    if keras.backend.backend() != "tensorflow":
        return "auto"
    import tensorflow as tf

    return "auto" if tf.config.list_physical_devices("GPU") else False
