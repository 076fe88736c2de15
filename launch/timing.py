"""Flags of `elrt-plan` for the source and the destination of measured times."""

from absl import flags

from elrt_keras.atomic import check_file
from elrt_keras.launch import parsing


def define():
    """Defines the flags."""
    flags.DEFINE_float("max_latency", None, "Budget: largest part of the dense LiteRT time to keep, in (0, 1].")
    flags.DEFINE_integer("threads", 1, "Number of CPU threads for --max_latency.", lower_bound=1)
    flags.DEFINE_enum(
        "quantization",
        None,
        ["float16", "dynamic_int8", "int8"],
        "Kind of LiteRT file that --max_latency times, as in elrt-export. Default: float32.",
    )
    flags.DEFINE_string(
        "timer",
        None,
        "Device to measure on for --max_latency: 'adb' or 'adb:SERIAL' (Android, with benchmark_model in "
        "/data/local/tmp), 'ssh:HOST' (a host with Python and ai-edge-litert), or a command with {model} or {models}. "
        "Default: this machine.",
    )
    flags.DEFINE_string("device", None, "Name of the device of --timer; its times are stored under this name.")
    flags.DEFINE_string("times", None, "Measured times: a file of --save_times, or a folder of --export_timing_set.")
    flags.DEFINE_string("save_times", None, "JSON file for the measured times, for use on other machines.")
    flags.DEFINE_string(
        "export_timing_set",
        None,
        "Folder for the LiteRT files that --max_latency would time. Write them, to be timed by hand, and exit.",
    )


def timer(text, device=None):
    """Returns the `litert.Timer` for the value of `--timer`; `None` for this machine.

    Args:
        text: `"adb"` or `"adb:SERIAL"`, `"ssh:HOST"`, or a command with `{model}` or `{models}`; `None` for this
            machine.
        device: name under which the times are stored; `None` for the name that the device reports, else the text.

    Raises:
        ValueError: for a command without `{model}` and `{models}`, or a device that does not answer.
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
    """Refuses timing flags without effect, and a file that cannot be written."""
    if values.max_latency is None and values.export_timing_set is None and values["threads"].present:
        raise ValueError(f"Expected --threads with --max_latency only. Received: threads={values.threads}")
    if values.save_times is not None:
        check_file(values.save_times, "save_times")
    reads = values.max_latency is not None
    for name in ("timer", "times", "save_times"):
        if getattr(values, name) is not None and not reads:
            raise ValueError(f"Expected --max_latency with --{name}. Received: --{name}={getattr(values, name)}")
    if values.device is not None and values.timer is None:
        raise ValueError(f"Expected --timer with --device. Received: --device={values.device}")
    if values.times is not None and (values.timer is not None or values.save_times is not None):
        raise ValueError(
            "Expected --times without --timer and --save_times: nothing is measured. "
            f"Received: --times={values.times} with others"
        )


def save(values, timer):
    """Writes the measured times to the file of `--save_times`, if that flag is set."""
    if values.save_times is None:
        return
    from elrt_keras.ranks.times import TimeTable

    table = TimeTable(values.threads, values.quantization, timer=timer)
    table.save(values.save_times)
    print(f"Wrote {values.save_times}: times of {table.device}")


def export_set(model, values, shape):
    """Writes the files to be timed by hand, and prints the next steps."""
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
        f"Wrote {len(paths)} files to {values.export_timing_set}. Time each with {values.threads} threads, write the "
        "output of benchmark_model into times.txt there, and plan with --times="
        f"{values.export_timing_set}"
    )
