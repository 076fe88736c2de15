"""Trains a low-rank model (or its dense twin) from scratch.

  elrt-train --run_dir=runs/digits                                     # ResNet-20 on the embedded digits
  elrt-train --run_dir=runs/r20 --dataset=cifar10 --download --max_macs=0.28 --epochs=200
  elrt-train --run_dir=runs/dense --dataset=cifar10 --format=dense     # the dense twin
  elrt-train --run_dir=runs/photos --dataset=folder:photos --model=mobilenet_v2 --max_macs=0.7
  elrt-train --run_dir=runs/r56 --recipe=cifar10_resnet56_62.0         # a published reduction
  elrt-train --run_dir=runs/r20 --quantization_aware                   # fine-tunes a finished run for int8 LiteRT
  elrt-train --list                                                    # models, data sets, recipes

--flagfile=FILE reads flags from a file. A second start with the same --run_dir resumes the run.
"""

import sys

from absl import flags as absl_flags

from elrt_keras.launch import cli


def run(argv):
    """Trains the run that the flags describe and prints its summary."""
    cli.refuse_arguments(argv)
    from elrt_keras.launch import catalog, faults

    values = absl_flags.FLAGS
    if values.list:
        print(catalog.listing())
        return
    if values.recipe is not None:
        raise ValueError(f"Expected --recipe on the command line. Received: --recipe={values.recipe} in a flag file")
    if not values.run_dir:
        raise ValueError("Expected a directory for the run, such as --run_dir=runs/first. Received: no --run_dir")
    for name in ("quantization_aware_epochs", "quantization_aware_learning_rate"):
        if values[name].present and not values.quantization_aware:
            raise ValueError(f"Expected --quantization_aware with --{name}. Received: {getattr(values, name)}")
    try:
        summary = _trained(values)
    except faults.Stopped as stopped:
        print(f"elrt-train: {stopped}")
        return
    print(cli.summary_table([summary]))
    if values.quantization_aware:
        print(_quantized(values))


def _trained(values):
    """Trains the run and returns its summary; only reads the summary of a finished run that is to be fine-tuned."""
    from elrt_keras.launch import flags, rundir, strategies, training

    if values.quantization_aware and (finished := rundir.read_summary(values.run_dir)) is not None:
        flags.check_given(values, rundir.read_config(values.run_dir))
        return finished
    config = flags.to_config(values)
    rundir.check(config, values.run_dir)
    distribution = strategies.start(values.strategy, values.num_gpus, values.num_cpus, values.cluster)
    if values.quantization_aware and distribution.workers > 1:
        raise ValueError(
            "Expected one machine for --quantization_aware: start it there after the run of all workers has finished. "
            f"Received: {distribution.workers} workers"
        )
    return training.run(config, values.run_dir, distribution)


def _quantized(values):
    from elrt_keras.launch import quantized

    options = values.quantization_aware_epochs, values.quantization_aware_learning_rate
    summary = quantized.run(values.run_dir, *options, data_dir=values.data_dir)
    return (
        f"{summary['path']}: int8 accuracy {summary['accuracy']:.2%}, float {summary['float_accuracy']:.2%}, "
        f"{summary['size_bytes']:,} bytes"
    )


def expanded(arguments):
    """Replaces `--recipe=NAME` by the recipe's flag file and puts it first, so that other flags override it."""
    from elrt_keras.launch import catalog

    files, others = [], []
    remaining = iter(arguments)
    for argument in remaining:
        name, separator, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or name != "recipe":
            others.append(argument)
            continue
        files.append(f"--flagfile={catalog.recipe_path(value if separator else next(remaining, ''))}")
    return [*files, *others]


def main():
    """Entry point of `elrt-train`."""
    from elrt_keras.launch import flags

    flags.define()
    try:
        arguments = expanded(sys.argv[1:])
    except ValueError as error:
        cli.fail("elrt-train", error)
    resumes = "interrupted; start it again with the same flags to go on"
    cli.start("elrt-train", run, [sys.argv[0], *arguments], interrupted=resumes)


if __name__ == "__main__":
    main()
