"""The flags of `elrt-plan` on where times come from and where they go."""

from absl import flags

from elrt_keras.atomic import check_file
from elrt_keras.launch import parsing


def define():
    """Defines the flags."""
    flags.DEFINE_float("max_latency", None, "Take at most this part of the dense time, on LiteRT on this machine.")
    flags.DEFINE_integer("threads", 1, "CPU threads for measured times.", lower_bound=1)
    flags.DEFINE_enum(
        "quantization",
        None,
        ["float16", "dynamic_int8", "int8"],
        "What is timed for --max_latency, as of elrt-export; float32 if not given.",
    )
    flags.DEFINE_string(
        "timer",
        None,
        "Where --max_latency is measured: 'adb' or 'adb:SERIAL' (Android, with benchmark_model in /data/local/tmp), "
        "'ssh:HOST' (Python with ai-edge-litert there), or a command with {model} or {models}; this machine if not "
        "given.",
    )
    flags.DEFINE_string("device", None, "Name of the device of --timer, by which its times are kept.")
    flags.DEFINE_string("times", None, "Times to plan on: a file of --save_times, or a folder of --export_timing_set.")
    flags.DEFINE_string("save_times", None, "Where to write the times that were measured (JSON), for other machines.")
    flags.DEFINE_string(
        "export_timing_set",
        None,
        "Write the LiteRT files whose times --max_latency reads into this folder, to be timed by hand, and stop.",
    )


def timer(text, device=None):
    """The `litert.Timer` that a flag names: `None` for this machine.

    Args:
        text: `"adb"` or `"adb:SERIAL"`, `"ssh:HOST"`, or a command with `{model}` or `{models}`; `None` for this
            machine.
        device: name of the device, by which its times are kept; `None` for what it says itself, or the text.

    Raises:
        ValueError: for a command without either, or a device that does not answer.
    """
    if text is None:
        return None
    from elrt_keras import litert

    named = {} if device is None else {"device": device}
    kind, _, address = text.partition(":")
    if kind == "adb":
        return litert.CommandTimer.adb(address or None, **named)
    if kind == "ssh":
        return litert.CommandTimer.ssh(address, **named)
    return litert.CommandTimer(text, **named)


def check(values):
    """Refuses flags on times that nothing would read, and a file that cannot be written."""
    if values.max_latency is None and values.export_timing_set is None and values["threads"].present:
        raise ValueError(f"--threads is for times, which --max_latency asks for. Received: threads={values.threads}")
    if values.save_times is not None:
        check_file(values.save_times, "save_times")
    reads = values.max_latency is not None
    for name in ("timer", "times", "save_times"):
        if getattr(values, name) is not None and not reads:
            raise ValueError(f"Expected --max_latency with it. Received: --{name}={getattr(values, name)}")
    if values.device is not None and values.timer is None:
        raise ValueError(f"Expected --timer with it. Received: --device={values.device}")
    if values.times is not None and (values.timer is not None or values.save_times is not None):
        raise ValueError(f"Expected --times alone: nothing is measured. Received: --times={values.times} with others")


def save(values, timer):
    """Writes the times that were measured for other machines, if they are asked for."""
    if values.save_times is None:
        return
    from elrt_keras.ranks.times import TimeTable

    table = TimeTable(values.threads, values.quantization, timer=timer)
    table.save(values.save_times)
    print(f"Wrote {values.save_times}: times of {table.device}")


def export_set(model, values, shape):
    """Writes the files to be timed by hand, and says how to go on."""
    import elrt_keras as elrt

    paths = elrt.export_timing_set(
        model,
        values.export_timing_set,
        format=parsing.formats_by_layer(values.format),
        multiple_of=values.multiple_of,
        exclude=values.exclude,
        input_shape=shape,
        threads=values.threads,
        quantization=values.quantization,
    )
    print(
        f"Wrote {len(paths)} files to {values.export_timing_set}. Time each with {values.threads} threads, write what "
        "benchmark_model prints into times.txt there, and plan with --times="
        f"{values.export_timing_set}"
    )
