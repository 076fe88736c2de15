"""Tables and plots of LiteRT latency, and the shell commands that measure it on an Android device."""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import warnings

from elrt_keras.plot import figures, tradeoff
from elrt_keras.ranks import RankPlan
from elrt_keras.terminal.tables import render_table, short_names

# Largest usual 10–90 % range, relative to the median. Other programs on the same cores make it larger.
_SCATTER = 0.25
_DEVICE_FOLDER = "/data/local/tmp"


def find_files(sources):
    """Returns the named `.tflite` files and those in the `export` folders of the named run directories.

    Raises:
        ValueError: if there is no file, or a source does not exist.
    """
    paths = []
    for source in sources:
        if not os.path.exists(source):
            raise ValueError(f"Expected .tflite files or run directories. Received: {source!r}, which does not exist")
        if not os.path.isdir(source):
            paths.append(source)
            continue
        folder = os.path.join(source, "export")
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        exported = [os.path.join(folder, name) for name in names if name.endswith(".tflite")]
        if not exported:
            raise ValueError(
                f"Expected LiteRT files in {folder!r}: run `elrt-export {source}` first. Received: {names}"
            )
        paths += exported
    if not paths:
        raise ValueError("Expected .tflite files or run directories: elrt-benchmark litert FILE_OR_RUN… Received: none")
    return paths


def measure(paths, threads, runs, timer=None):
    """Measures files by `benchmark_litert` or a timer; returns rows with the accuracy that `elrt-export` wrote."""
    from elrt_keras.export import benchmark_litert

    results = benchmark_litert(paths, threads, runs) if timer is None else _measured_by(timer, paths, threads, runs)
    names = zip(short_names(paths), results)
    scattered = [name for name, result in names if result.high_ms - result.low_ms > _SCATTER * result.median_ms]
    if scattered:
        warnings.warn(
            f"Single runs of {', '.join(scattered)} scatter by more than {_SCATTER:.0%} of the median: stop other "
            f"programs, and measure again with more runs than --runs={runs}",
            stacklevel=2,
        )
    return [{**dataclasses.asdict(result), **_exported(result.path)} for result in results]


def _measured_by(timer, paths, threads, runs):
    """Returns the results of files on another device; the spread is the range of the quartiles."""
    from elrt_keras.export.benchmark import LatencyResult

    contents = [pathlib.Path(path).read_bytes() for path in paths]
    return [
        LatencyResult(path, len(content), threads, runs, 1e3 * middle, 1e3 * low, 1e3 * high, None)
        for path, content, (low, middle, high) in zip(paths, contents, timer.measure(contents, threads).T)
    ]


def predictions(sources, rows):
    """Returns lines that compare predicted and measured time, for runs that were planned for a latency."""
    lines = []
    for source in sources:
        path = os.path.join(source, "rank_plan.json")
        plan = RankPlan.load(path) if os.path.isdir(source) and os.path.exists(path) else None
        if plan is None or plan.latency is None:
            continue
        dense, planned = (1e3 * plan.latency[name] for name in ("dense", "planned"))
        own = [row for row in rows if os.path.dirname(os.path.dirname(row["path"])) == os.path.normpath(source)]
        measured = [f"{os.path.basename(row['path'])} {row['median_ms']:.3f} ms" for row in own]
        lines.append(
            f"{source}: planned for {planned:.3f} ms, where the dense model takes {dense:.3f} ms "
            f"({dense / planned:.2f}×); measured: {', '.join(measured)}"
        )
    return lines


def _exported(path):
    """Reads `{"accuracy", "macs"}` from the JSON file beside an exported file; `None` for missing values."""
    sidecar = f"{path}.json"
    if not os.path.exists(sidecar):
        return {"accuracy": None, "macs": None}
    try:
        with open(sidecar, encoding="utf-8") as file:
            report = json.load(file)
        return {"accuracy": report.get("accuracy"), "macs": report.get("macs")}
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"Expected a report of elrt-export. Received: {sidecar!r}: {error}") from error


def table(rows):
    """Returns the results as text; the speed-up is relative to the first file."""
    cells = [
        (
            name,
            f"{row['median_ms']:.2f}",
            f"{row['low_ms']:.2f}–{row['high_ms']:.2f}",
            f"{rows[0]['median_ms'] / row['median_ms']:.2f}×",
            "" if row["macs"] is None else f"{row['macs'] / 1e6:.1f} M",
            f"{row['size_bytes']:,}",
            "" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 2**20:.1f} MiB",
            "" if row["accuracy"] is None else f"{row['accuracy']:.2%}",
        )
        for name, row in zip(short_names([row["path"] for row in rows]), rows)
    ]
    header = ["file", "median ms", "10–90 %", "speed-up", "MACs", "bytes", "peak memory", "accuracy"]
    return f"{rows[0]['runs']} runs, threads: {rows[0]['threads']}\n{render_table(header, cells)}"


def check_plot(paths, path):
    """Checks before the measurement that the plot can be drawn.

    Raises:
        ValueError: if no accuracy is known, or for a suffix that matplotlib does not know.
    """
    figures.check_path(path)
    if all(_exported(path)["accuracy"] is None for path in paths):
        raise ValueError("Expected files whose report of elrt-export has an accuracy. Received: none")


def plot(rows, path):
    """Draws accuracy over latency, one point for each file with a known accuracy; see `check_plot`."""
    tradeoff(rows, cost="latency", path=path)


def android_commands(paths, threads, runs):
    """Returns shell commands that measure the files on a device with LiteRT's own benchmark program."""
    program = f"{_DEVICE_FOLDER}/benchmark_model"
    lines = [
        "On an Android device, with LiteRT's benchmark_model for it in this folder and adb on the path:",
        f"  adb push benchmark_model {_DEVICE_FOLDER}/ && adb shell chmod +x {program}",
    ]
    for path, name in zip(paths, short_names(paths)):
        # The shell on the device reads the name too.
        target = f"{_DEVICE_FOLDER}/{re.sub(r'[^0-9A-Za-z._-]', '_', name.removesuffix('.tflite'))}.tflite"
        lines.append(
            f"  adb push {shlex.quote(path)} {target} && adb shell {program} --graph={target} --num_threads={threads} "
            f"--num_runs={runs} --warmup_runs=5 --report_peak_memory_footprint=true"
        )
    return "\n".join(lines)
