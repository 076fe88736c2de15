"""Times training steps: dense, low-rank, thinned, without the penalty, and written out in stock layers.

  python -m benchmarks.steps
  python -m benchmarks.steps --models=resnet20 --variants=low_rank_0.4,without_penalty_0.4 --rounds=60 --name=penalty
  KERAS_BACKEND=jax python -m benchmarks.steps --name=gpu --precision=mixed_bfloat16 --steps_per_call=10 \\
    --batch_size=1024 --models=resnet20,resnet56,vgg16_cifar

One process per model, in which all variants take turns. `--steps_per_call` is for accelerators: that many steps are
one compiled call. XLA then chooses kernels by their times, so the accelerator should have nothing else to do. Files in
`benchmarks/results/steps/`.
"""

from absl import app, flags

from benchmarks.measure import evidence
from benchmarks.measure.processes import run_each
from benchmarks.measure.variants import BATCHES, NAMES

_MODELS = flags.DEFINE_list("models", list(BATCHES), "Builders.")
_VARIANTS = flags.DEFINE_list("variants", list(NAMES), "What takes turns.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Measurements of each variant.")
_PER_CALL = flags.DEFINE_integer("steps_per_call", None, "Train so many steps in one compiled call; JAX alone.", 1)
_BATCH = flags.DEFINE_integer("batch_size", None, "Batch size; by default 128 of 32x32 or 16 of 224x224.")
_PRECISION = flags.DEFINE_string("precision", "float32", "Dtype policy.")
_NAME = flags.DEFINE_string("name", "cpu", "Start of the names of the result files.")
_ONE = flags.DEFINE_string("one", None, "The model of this process; the driver sets it.")


def measure(name):
    """Times all variants of one model and writes the file."""
    import keras

    import elrt_keras as elrt
    from benchmarks.measure.variants import interleaved, make, ratios, training_step

    keras.config.set_dtype_policy(_PRECISION.value)
    batch_size = _BATCH.value or BATCHES[name]
    if _PER_CALL.value:
        from benchmarks.measure.device_steps import compiled_steps
        from benchmarks.train.in_memory import on_host

        with on_host():
            models = {variant: make(name, variant) for variant in _VARIANTS.value}
        steps = compiled_steps(models, batch_size, _PER_CALL.value)
    else:
        models = {variant: make(name, variant) for variant in _VARIANTS.value}
        steps = {variant: training_step(model, batch_size) for variant, model in models.items()}
    seconds = interleaved(steps, _ROUNDS.value)
    if _PER_CALL.value:
        seconds = {variant: [round(s / _PER_CALL.value, 7) for s in values] for variant, values in seconds.items()}
    costs = {variant: elrt.count_costs(model) for variant, model in models.items()}
    result = {
        "model": name,
        "batch_size": batch_size,
        "precision": _PRECISION.value,
        "steps_per_call": _PER_CALL.value,
        "seconds": seconds,
        "macs": {variant: cost.macs for variant, cost in costs.items()},
        "params": {variant: cost.params for variant, cost in costs.items()},
    }
    command = f"python -m benchmarks.steps --models={name} --rounds={_ROUNDS.value} --name={_NAME.value}"
    for flag, value, default in (
        ("variants", ",".join(_VARIANTS.value), ",".join(NAMES)),
        ("batch_size", batch_size, BATCHES[name]),
        ("precision", _PRECISION.value, "float32"),
        ("steps_per_call", _PER_CALL.value, None),
    ):
        command += "" if value == default else f" --{flag}={value}"
    evidence.write("steps", f"{_NAME.value}_{name}", result, command)
    base = _VARIANTS.value[0]
    for variant, (middle, low, high) in ratios(seconds, base).items():
        reduction = costs[base].macs / costs[variant].macs
        print(f"{name} {variant}: {middle:.3f}x ({low:.3f}-{high:.3f}), MACs {reduction:.2f}x", flush=True)


def main(argv):
    """Measures the models asked for, each in a process of its own."""
    del argv
    if _ONE.value is not None:
        measure(_ONE.value)
        return
    run_each("benchmarks.measure.steps", _MODELS.value)


if __name__ == "__main__":
    app.run(main)
