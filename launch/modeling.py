"""The model of a run: the dense one, its rank plan, its low-rank twin, compiled."""

import contextlib
import dataclasses

import keras
from absl import logging

import elrt_keras as elrt
from elrt_keras import RankPlan
from elrt_keras.graph.paths import iterate_layers
from elrt_keras.launch import rundir
from elrt_keras.launch.optimization import add_kernel_regularizer, frobenius_decay, learning_rate, make_optimizer


def new_model(config, data, steps):
    """The compiled model that a run without full-rank warm-up starts with."""
    dense = dense_model(config, data)
    model = build_model(config, dense, rank_plan(config, dense))
    compile_model(model, config, steps)
    return model


def build_model(config, dense, plan):
    """The model of a run: `dense` itself, or its low-rank twin under `plan`, with the run's regularizers."""
    decay = frobenius_decay(config)
    if not plan.factorized():
        model = dense
    else:
        model = elrt.factorize(
            dense,
            plan,
            factor_initializer=_seeded(config),
            factor_regularizer=_orthogonality(config),
            factor_constraint=elrt.constraints.Stiefel() if config.orthogonality == "stiefel" else None,
            kernel_regularizer=decay,
            recompute=config.recompute,
        )
    if decay is not None:
        add_kernel_regularizer(model, decay)
    return model


def dense_model(config, data):
    """The dense model of a run, with the weights of `--initial_model` where one is given."""
    dense = elrt.models.build(
        config.model,
        data.image_shape,
        len(data.class_names),
        normalization=data.pixel_statistics(),
        width=config.width,
    )
    if config.initial_model is not None:
        trained = rundir.load_model(config.initial_model)
        shapes = [[tuple(w.shape) for w in model.weights] for model in (dense, trained)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"Expected a dense {config.model} for {len(data.class_names)} classes. "
                f"Received: initial_model={config.initial_model!r} with other weights"
            )
        dense.set_weights(trained.get_weights())
    return dense


def rank_plan(config, dense):
    """The `RankPlan` of a run: all dense, read from a file, or planned under the budget."""
    if config.format == "dense":
        return RankPlan({row.name: None for row in elrt.count_costs(dense).layers if row.macs})
    if config.rank_plan is not None:
        plan = RankPlan.load(config.rank_plan)
        # The default may not have been asked for.
        if config.format not in (*plan_format(plan).split("+"), type(config).format):
            raise ValueError(
                f"Expected the format of the rank plan, {plan_format(plan)!r}. Received: format={config.format!r}"
            )
        others = [name for name in elrt.plan_ranks(dense, fraction=0.5) if name not in plan]
        if others:  # as where the plan was made for a smaller network of the same family
            logging.warning(
                "%d layers stay dense, since the plan does not name them: %s", len(others), ", ".join(others)
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
    )


def plan_format(plan):
    """What the formats of a plan are called together, such as `"svd+tucker2"`."""
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
    """Compiles a model with the run's optimizer and loss; `steps` to an epoch."""
    elrt.fuse_batch_norm(model)
    model.compile(
        make_optimizer(config, steps),
        keras.losses.CategoricalCrossentropy(label_smoothing=config.label_smoothing),
        metrics=[accuracy(), *_cross_entropy(config)],
        jit_compile=jit_compile(),
    )


def accuracy():
    """Top-1 accuracy as an object: a name gets its variables in the first step, which TensorFlow then traces again."""
    return keras.metrics.CategoricalAccuracy(name="accuracy")


def _cross_entropy(config):
    """The loss without penalties as a metric, for the runs whose loss has some."""
    if frobenius_decay(config) is None and _orthogonality(config) is None:
        return []
    # By the configuration, not by the model: full-rank warm-up has the columns of the low-rank epochs.
    return [keras.metrics.CategoricalCrossentropy(name="cross_entropy", label_smoothing=config.label_smoothing)]


def slow_down(model, config, steps, rollbacks):
    """Halves the learning rate of a compiled model, over the whole schedule, once per rollback."""
    slower = dataclasses.replace(config, learning_rate=config.learning_rate * 0.5**rollbacks)
    model.optimizer.learning_rate = learning_rate(slower, steps)


@contextlib.contextmanager
def precision(config):
    """Within it layers are made with the dtype policy of the run."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def synchronize_batch_norm(model, wanted):
    """Has batch-norm take its statistics over the batches of all replicas, or of each replica alone."""
    for _, layer in iterate_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = wanted


def ready_for_use(model):
    """A trained model without what only training needed: optimizer, replicas, mixed precision. `model` is used up."""
    synchronize_batch_norm(model, False)
    for _, layer in iterate_layers(model):
        layer.dtype_policy = "float32"
    # What is compiled is saved too, so the configuration is taken without it.
    fresh = type(model).from_config(model.get_config())
    fresh.set_weights(model.get_weights())
    return fresh


def jit_compile():
    """What `compile` is told about XLA."""
    # On a CPU TensorFlow's XLA makes a ResNet step slower; JAX always compiles.
    if keras.backend.backend() != "tensorflow":
        return "auto"
    import tensorflow as tf

    return "auto" if tf.config.list_physical_devices("GPU") else False
