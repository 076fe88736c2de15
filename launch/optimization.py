"""Optimizers, learning-rate schedules and weight decay of a training run."""

import keras

from elrt_keras.graph.paths import iterate_layers

# One-cycle: share of the run spent rising, and the divisors of the peak at the start and the end.
_RISE, _START_DIVISOR, _END_DIVISOR = 0.3, 25, 1e4


@keras.saving.register_keras_serializable("elrt_keras")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly to the first value of `schedule` over `steps` steps, then follows it from its own step 0."""

    def __init__(self, schedule, steps):
        super().__init__()
        self.schedule = keras.saving.deserialize_keras_object(schedule) if isinstance(schedule, dict) else schedule
        self.steps = steps

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        after = self.schedule(keras.ops.maximum(step - self.steps, 0.0))
        return after * keras.ops.minimum((step + 1) / self.steps, 1.0)

    def get_config(self):
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), "steps": self.steps}


def learning_rate(config, steps_per_epoch):
    """Returns the learning rate over all steps as a Keras schedule (a float for `constant` without warm-up)."""
    schedules = keras.optimizers.schedules
    total = config.epochs * steps_per_epoch
    warmup = round(config.lr_warmup_epochs * steps_per_epoch)
    peak = config.learning_rate
    if config.lr_schedule == "one_cycle":
        rise = max(1, round(_RISE * total))
        return schedules.CosineDecay(
            peak / _START_DIVISOR,
            max(1, total - rise),
            alpha=1 / _END_DIVISOR,
            warmup_target=peak,
            warmup_steps=rise,
        )
    if config.lr_schedule == "cosine":
        rate = schedules.CosineDecay(peak, max(1, total - warmup))
    elif config.lr_schedule == "step":
        ends = [
            epoch * steps_per_epoch - warmup
            for epoch in range(config.lr_step_epochs, config.epochs, config.lr_step_epochs)
        ]
        ends = [end for end in ends if end > 0]
        values = [peak * config.lr_step_factor**count for count in range(len(ends) + 1)]
        rate = schedules.PiecewiseConstantDecay(ends, values) if ends else peak
    else:
        rate = peak
    if not warmup:
        return rate
    if isinstance(rate, float):
        # `WarmUp` needs a schedule, so write the constant as one.
        rate = schedules.PiecewiseConstantDecay([total], [rate, rate])
    return WarmUp(rate, warmup)


class _RunOptimizer:
    """Adds gradient norms, selective weight decay and late averaging to an optimizer.

    `gradient_norms` holds ‖gradient‖ of each variable at the last step where all were finite. Decoupled weight decay
    skips variables with one axis: biases and batch-norm. Averaged weights (`use_ema`) replace the weights only in
    `use_averages`. Keras would replace them after each `fit`, and a resumed run calls `fit` twice. A class keeps all
    this in a saved model, where a setting of the optimizer could get lost.
    """

    def build(self, variables):
        self.exclude_from_weight_decay([variable for variable in variables if len(variable.shape) < 2])
        super().build(variables)
        self.gradient_norms = self.add_variable(
            (len(variables),), "zeros", "float32", aggregation="mean", name="gradient_norms"
        )

    def add_optimizer_variables(self, trainable_variables, name, initializer="zeros"):
        added = super().add_optimizer_variables(trainable_variables, name, initializer)
        if name == "average":
            # Keras starts the averages in step 0. Low-rank training after full-rank warm-up starts in a later step.
            for average, variable in zip(added, trainable_variables):
                average.assign(keras.ops.copy(variable))  # without a copy, JAX would delete the shared buffer
        return added

    def finalize_variable_values(self, var_list):
        """Does nothing: `use_averages` replaces the weights."""

    def use_averages(self, variables):
        """Replaces the weights by their averages, if the run has averages."""
        super().finalize_variable_values(variables)

    def apply(self, grads, trainable_variables=None):
        grads = list(grads)
        super().apply(grads, trainable_variables)
        norms = keras.ops.stack([_norm(grad) for grad in grads])
        finite = keras.ops.all(keras.ops.isfinite(norms))
        if len(grads) < self.gradient_norms.shape[0]:  # some factors are frozen
            places = [[index] for index in self._trainable_variables_indices.values()]
            norms = keras.ops.scatter_update(self.gradient_norms.value, places, norms)
        self.gradient_norms.assign(keras.ops.where(finite, norms, self.gradient_norms.value))


def _norm(gradient):
    if gradient is None:
        return keras.ops.zeros((), "float32")
    return keras.ops.sqrt(keras.ops.sum(keras.ops.square(keras.ops.cast(gradient, "float32"))))


@keras.saving.register_keras_serializable("elrt_keras")
class NotingSGD(_RunOptimizer, keras.optimizers.SGD):
    """`keras.optimizers.SGD` that records gradient norms and does not decay biases and batch-norm."""


@keras.saving.register_keras_serializable("elrt_keras")
class NotingAdamW(_RunOptimizer, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` that records gradient norms and does not decay biases and batch-norm."""


@keras.saving.register_keras_serializable("elrt_keras")
class LossScaling(keras.optimizers.LossScaleOptimizer):
    """`keras.optimizers.LossScaleOptimizer` whose replicas skip the same steps.

    Keras checks gradients on the first replica only, or on each replica separately. Then an overflow on another replica
    would get into the weights of all.
    """

    def check_finite(self, grads):
        finite = super().check_finite(grads)
        if keras.backend.backend() != "tensorflow":
            return finite
        import tensorflow as tf

        if tf.distribute.get_strategy().num_replicas_in_sync == 1:
            return finite
        overflows = tf.distribute.get_replica_context().all_reduce("SUM", keras.ops.cast(~finite, "float32"))
        return keras.ops.equal(overflows, 0)


def make_optimizer(config, steps_per_epoch):
    """Returns the optimizer of a run. Decoupled decay skips biases and batch-norm (all variables with one axis)."""
    decay = config.weight_decay if config.weight_decay_kind == "decoupled" and config.weight_decay else None
    rate = learning_rate(config, steps_per_epoch)
    averages = {} if config.ema is None else {"use_ema": True, "ema_momentum": config.ema}
    if config.optimizer == "sgd":
        nesterov = config.momentum > 0
        optimizer = NotingSGD(rate, momentum=config.momentum, nesterov=nesterov, weight_decay=decay, **averages)
    else:
        optimizer = NotingAdamW(rate, weight_decay=decay or 0.0, **averages)
    return LossScaling(optimizer) if config.precision == "mixed_float16" else optimizer


def frobenius_decay(config):
    """Returns the regularizer `(λ/2)·‖W‖_F²` of Frobenius decay, or `None` for another kind of decay."""
    if config.weight_decay_kind != "frobenius" or not config.weight_decay:
        return None
    return keras.regularizers.L2(config.weight_decay / 2)


def add_kernel_regularizer(model, regularizer):
    """Gives every stock convolution and dense layer of a built model a kernel regularizer."""
    for _, layer in iterate_layers(model):
        kernel = getattr(layer, "kernel", None)
        if isinstance(kernel, keras.Variable):
            # Set the attribute that the layer's configuration stores; a saved model would lose another one.
            depthwise = hasattr(layer, "depthwise_regularizer")
            setattr(layer, "depthwise_regularizer" if depthwise else "kernel_regularizer", regularizer)
            kernel.regularizer = regularizer
