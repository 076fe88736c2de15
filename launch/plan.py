"""Chooses a format and ranks for each layer of a model, prints the table and writes the plan as JSON.

  elrt-plan --model=resnet20 --max_macs=0.4 --output=plan.json        # a builder, for training from scratch
  elrt-plan --model=trained.keras --max_macs=0.4 --method=energy      # any Keras model; ranks from its weights
  elrt-plan --model=runs/dense --method=vbmf                          # a run; ranks from the noise in its weights
  elrt-plan --model=vgg16 --max_latency=0.5                           # half the time, measured layer by layer on LiteRT
  elrt-plan --model=vgg16 --max_latency=0.5 --quantization=int8       # half the time of the int8 file
  elrt-plan --model=resnet18 --image_size=96 --classes=2 --max_latency=0.5 --output=plan.json
  elrt-plan --model=resnet18 --max_latency=0.5 --timer=adb --save_times=pixel8.json      # on the phone in your hand
  elrt-plan --model=resnet18 --max_latency=0.6 --times=pixel8.json                       # on times of that phone
  elrt-plan --model=resnet20 --format='stage1*:svd,*:tucker2' --max_params=0.3 --exclude='stem*,classifier'

The JSON can be edited by hand; elrt-train takes it by --rank_plan.
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
        "model", None, "A builder's name, see elrt_keras.models.list_models(), a .keras file, or a finished run."
    )
    flags.DEFINE_list(
        "input_shape",
        None,
        "Height, width, channels: of a builder's model (its own by default), or of a file's with open sizes.",
    )
    flags.DEFINE_integer("image_size", None, "Height, width of colour images; short for --input_shape.", lower_bound=1)
    flags.DEFINE_integer("classes", None, "Number of classes, for a builder; its own by default.")
    flags.DEFINE_string("format", "tucker2", "Low-rank format; 'auto': of each layer the best; or 'pattern:format,…'.")
    flags.DEFINE_float("fraction", None, "Fraction of the full ranks, instead of a budget.")
    flags.DEFINE_float("max_macs", None, "Keep at most this part of the dense MACs, in (0, 1].")
    flags.DEFINE_float("max_params", None, "Keep at most this part of the dense parameters, in (0, 1].")
    reading = ", ".join(methods.reading_weights())
    flags.DEFINE_enum(
        "method", None, methods.names(), f"How ranks are chosen; uniform by default, {reading} read weights."
    )
    flags.DEFINE_integer("multiple_of", None, "Ranks are multiples of this; 8 if not given, which SIMD units like.")
    flags.DEFINE_list("exclude", None, "Names or patterns to keep dense; default: first convolution and classifier.")
    flags.DEFINE_bool("break_even", True, "Keep layers dense that would not get cheaper.")
    flags.DEFINE_string("output", None, "Where to write the plan (JSON).")
    timing.define()
    flags.register_validator("model", lambda model: model is not None, "expected a builder's name, a file or a run")


def run(argv):
    """Plans as the flags say."""
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
                f"--method={values.method} reads trained weights, and a builder's are random. Expected a .keras file. "
                f"Received: model={values.model!r}"
            )
        return models.build(values.model, shape, values.classes)
    if not os.path.exists(values.model):
        raise ValueError(
            f"Expected one of {models.list_models()}, a .keras file or a finished run. "
            f"Received: model={values.model!r}{suggestion(values.model, models.list_models())}"
        )
    if values.classes is not None:
        raise ValueError(f"--classes is for builders; a saved model has its own. Received: classes={values.classes}")
    from elrt_keras.launch import rundir

    return rundir.load_model(values.model)


def main():
    """Entry point of `elrt-plan`."""
    define()
    cli.start("elrt-plan", run, sys.argv)


if __name__ == "__main__":
    main()
