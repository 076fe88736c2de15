"""Chooses a format and ranks for each layer of a model, prints the table and writes the plan as JSON.

  elrt-plan --model=resnet20 --max_macs=0.4 --output=plan.json        # a builder, for training from scratch
  elrt-plan --model=trained.keras --max_macs=0.4 --method=energy      # any Keras model; ranks from its weights
  elrt-plan --model=runs/dense --method=vbmf                          # a run; ranks from the noise in its weights
  elrt-plan --model=vgg16 --max_latency=0.5                           # half the time, measured layer by layer on LiteRT
  elrt-plan --model=vgg16 --max_latency=0.5 --quantization=int8       # half the time of the int8 file
  elrt-plan --model=resnet18 --image_size=96 --classes=2 --max_latency=0.5 --output=plan.json
  elrt-plan --model=resnet18 --max_latency=0.5 --timer=adb --save_times=pixel8.json      # measured on a phone
  elrt-plan --model=resnet18 --max_latency=0.6 --times=pixel8.json                       # saved times of that phone
  elrt-plan --model=resnet20 --format='stage1*:svd,*:tucker2' --max_params=0.3 --exclude='stem*,classifier'

The JSON file can be edited by hand. elrt-train reads it with --rank_plan.
"""

import os
import sys

from absl import flags

from elrt_keras.atomic import check_file
from elrt_keras.checks import suggestion
from elrt_keras.launch import cli, parsing, timing
from elrt_keras.ranks import methods

_PASSED = ("fraction", "max_macs", "max_params", "max_latency", "multiple_of", "exclude", "threads", "quantization")


def define():
    """Defines the flags of `elrt-plan`."""
    flags.DEFINE_string(
        "model", None, "Model to plan: a name of elrt_keras.models.list_models(), a .keras file, or a finished run."
    )
    flags.DEFINE_list(
        "input_shape",
        None,
        "Height, width, channels of the input, for a built model or a file without a fixed size. Default: the model's.",
    )
    flags.DEFINE_integer("image_size", None, "Height and width of RGB images, short for --input_shape.", lower_bound=1)
    flags.DEFINE_integer("classes", None, "Number of classes of a built model. Default: the model's own.")
    flags.DEFINE_string("format", "tucker2", "Low-rank format, 'auto' (the best for each layer) or 'pattern:format,…'.")
    flags.DEFINE_float("fraction", None, "Part of the full ranks to keep in each layer, instead of a budget.")
    flags.DEFINE_float("max_macs", None, "Budget: largest part of the dense MACs to keep, in (0, 1].")
    flags.DEFINE_float("max_params", None, "Budget: largest part of the dense parameters to keep, in (0, 1].")
    reading = ", ".join(methods.reading_weights())
    flags.DEFINE_enum(
        "method", None, methods.names(), f"Method that chooses ranks. Default: uniform. {reading} read trained weights."
    )
    flags.DEFINE_integer("multiple_of", None, "Every rank is a multiple of this. Default: 8, which suits SIMD units.")
    flags.DEFINE_list("exclude", None, "Layers (or patterns) to keep dense. Default: first convolution and classifier.")
    flags.DEFINE_bool("break_even", True, "Keep a layer dense if low rank does not make it cheaper.")
    flags.DEFINE_string("output", None, "JSON file for the plan. Default: none is written.")
    timing.define()
    flags.register_validator("model", lambda model: model is not None, "expected a builder's name, a file or a run")


def run(argv):
    """Plans ranks as the flags say, and prints and saves the plan."""
    cli.refuse_arguments(argv)
    import elrt_keras as elrt

    values = flags.FLAGS
    if values.output is not None:
        check_file(values.output, "output")
    timing.check(values)
    shape = parsing.input_shape(values.input_shape, values.image_size)
    model = _model(values, shape)
    if values.export_timing_set is not None:
        return timing.export_set(model, values, shape)
    timer = timing.timer(values.timer, values.device)
    plan = elrt.plan_ranks(
        model,
        format=parsing.formats_by_layer(values.format),
        method=values.method,
        break_even=values.break_even,
        input_shape=shape,
        timer=timer,
        times=values.times,
        **{name: getattr(values, name) for name in _PASSED},
    )
    if values.output is not None:
        plan.save(values.output)
    timing.save(values, timer)
    print(plan)
    print(cli.plan_totals(elrt.count_costs(model, shape), plan))
    if values.output is not None:
        print(f"Wrote {values.output}")


def _model(values, shape):
    from elrt_keras import models

    if values.model in models.list_models():
        if values.method in methods.reading_weights():
            raise ValueError(
                f"Expected a .keras file or a finished run: --method={values.method} reads trained weights. "
                f"Received: model={values.model!r} with random weights"
            )
        return models.build(values.model, shape, values.classes)
    if not os.path.exists(values.model):
        raise ValueError(
            f"Expected one of {models.list_models()}, a .keras file or a finished run. "
            f"Received: model={values.model!r}{suggestion(values.model, models.list_models())}"
        )
    if values.classes is not None:
        raise ValueError(f"Expected --classes with a builder's name only. Received: classes={values.classes}")
    from elrt_keras.launch import rundir

    return rundir.load_model(values.model)


def main():
    """Entry point of `elrt-plan`."""
    define()
    cli.start("elrt-plan", run, sys.argv)


if __name__ == "__main__":
    main()
