"""Timers of LiteRT files, on this machine or, through a command, on another device."""

import contextlib
import math
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from elrt_keras.checks import int_in, number_in
from elrt_keras.litert.interpreter import Runner, require_runtime
from elrt_keras.litert.readings import Reading, read_result_file, read_text
from elrt_keras.litert.timing import machine_key, time_interleaved

_SECONDS = 1.0  # seconds to measure per call on this machine
_ROUNDS = (5, 40)  # minimum and maximum number of rounds
_TURN = 8  # number of files between two measurements of the first file
_FAR_SIDE = pathlib.Path(__file__).with_name("far_side.py")
_DEVICE_FOLDER = "/data/local/tmp"


class Timer:
    """Base class of timers, which measure LiteRT files. Subclasses define the device.

    Example:

    >>> elrt_keras.litert.LocalTimer().device(threads=1).split(",")[0].split()[0]
    'ai-edge-litert'
    """

    def device(self, threads: int) -> str:
        """Returns text that identifies the device: runtime, processor, threads. Each device has its table of times."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises an `ImportError` or `ValueError` if the timer cannot measure. It is called before any other work."""

    def measure(self, contents: Sequence[bytes], threads: int) -> np.ndarray:
        """Returns the three quartiles of the seconds of one inference of each model, an array `(3, models)`.

        Args:
            contents: LiteRT models. The first one is the reference for the others.
            threads: CPU threads.
        """
        raise NotImplementedError


class LocalTimer(Timer):
    """Measures with the LiteRT interpreter of this process, one inference of each model in every round."""

    def device(self, threads: int) -> str:
        require_runtime()  # raises an error with a clear message
        return machine_key(threads)

    def check(self) -> None:
        require_runtime()

    def measure(self, contents: Sequence[bytes], threads: int) -> np.ndarray:
        runners = [Runner(content, threads) for content in contents]
        one_round = float(time_interleaved(runners, runs=1, warmup=1).sum())
        rounds = int(np.clip(math.ceil(_SECONDS / one_round), *_ROUNDS))
        return np.quantile(time_interleaved(runners, rounds, warmup=1), (0.25, 0.5, 0.75), axis=1)


class CommandTimer(Timer):
    """Measures with a command, which may run the files anywhere: on a phone, on a board, in a device farm.

    The shell runs the command. These words in braces are filled in:

    - `{model}`: path of one file; the command runs once per file. Or `{models}`: paths of all files, separated by
      spaces; the command runs once for all files, and `{names}` are their names without folders;
    - `{threads}`, `{runs}`: CPU threads, and inferences per file;
    - `{result}`: with `{model}`, a path where the command may write the result file of `benchmark_model`.

    The times are read from the output of the command: the output of LiteRT's `benchmark_model`, or a line
    `{"model": NAME, "seconds": [SECONDS, …]}` for each file, in the order of the files. The first file is measured
    again between the others. Its times show how fast the device is at that moment, and correct the times of the other
    files. If the command fails or the times drift, the measurement is repeated once.

    Args:
        command: text of the command.
        device: name of the device, under which its times are kept; by default the command.
        runs: int, inferences per file.
        timeout_s: seconds after which a command is ended.
        max_drift: the largest accepted change of the first file's time between two of its measurements.

    Raises:
        ValueError: for a command with neither or both of `{model}` and `{models}`, or numbers out of range. Measuring
            raises it if the command fails twice or prints no times, or if the times drift.

    Example:

    >>> timer = elrt_keras.litert.CommandTimer("ssh board run_times {models}", device="board")
    >>> timer.device(threads=2)
    'board, 2 threads'
    """

    def __init__(
        self,
        command: str,
        device: str | None = None,
        runs: int = 30,
        timeout_s: float = 600.0,
        max_drift: float = 0.3,
    ):
        holders = [word for word in ("{model}", "{models}") if word in command]
        if len(holders) != 1:
            raise ValueError(f"Expected a command with {{model}} or {{models}}. Received: command={command!r}")
        self._command, self._name, self._is_single = command, device or command, holders == ["{model}"]
        self._runs = int_in(runs, "[1, inf)", "runs")
        self._timeout_s = number_in(timeout_s, "(0, inf)", "timeout_s")
        self._max_drift = number_in(max_drift, "(0, inf)", "max_drift")

    @classmethod
    def ssh(cls, host: str, python: str = "python3", **options: Any) -> "CommandTimer":
        """Makes a timer for a board that ssh reaches and that has Python with ai-edge-litert.

        One command sends the files with a small program, runs it and deletes everything from the board.

        Args:
            host: argument of `ssh`, such as `"pi@raspberrypi.local"`.
            python: Python on the board.
            **options: as for `CommandTimer`; `device` is the host by default.
        """
        run = f"{shlex.quote(python)} $d/far_side.py run $d {{threads}} {{runs}}"
        far = f"d=$(mktemp -d) && tar -x -C $d && {run}; s=$?; rm -r $d; exit $s"
        pack = f"{shlex.quote(sys.executable)} {shlex.quote(str(_FAR_SIDE))} pack {{models}}"
        return cls(
            f"{pack} | ssh -o BatchMode=yes {shlex.quote(host)} {shlex.quote(far)}", **{"device": host, **options}
        )

    @classmethod
    def adb(
        cls,
        serial: str | None = None,
        program: str = f"{_DEVICE_FOLDER}/benchmark_model",
        flags: str = "",
        **options: Any,
    ) -> "CommandTimer":
        """Makes a timer for an Android device with LiteRT's `benchmark_model` on it. It uses `adb`.

        Args:
            serial: serial number of the device, needed if there are several.
            program: path of `benchmark_model` on the device.
            flags: further flags of `benchmark_model`, such as `"--use_gpu=true"`; each set of flags has its own table
                of times.
            **options: as for `CommandTimer`; `device` is the model name that `adb` reports by default.
        """
        adb = "adb" if serial is None else f"adb -s {shlex.quote(serial)}"
        folder = f"{_DEVICE_FOLDER}/elrt_times"
        run = f"{program} --graph=$f --num_threads={{threads}} --num_runs={{runs}} --min_secs=0 {flags}".strip()
        loop = f"for f in {{names}}; do {run} || exit 1; done"
        command = (
            f"{adb} shell rm -rf {folder} && {adb} shell mkdir -p {folder} && {adb} push {{models}} {folder} >&2 && "
            f"{adb} shell {shlex.quote(f'cd {folder} && {loop}')}; s=$?; {adb} shell rm -rf {folder}; exit $s"
        )
        name = options.pop("device", None) or _android_name(adb)
        return cls(command, device=f"{name} {flags}".strip(), **options)

    def device(self, threads: int) -> str:
        return f"{self._name}, {threads} threads"

    def measure(self, contents: Sequence[bytes], threads: int) -> np.ndarray:
        with tempfile.TemporaryDirectory(prefix="elrt_times_") as folder:
            paths = [pathlib.Path(folder) / f"m{index:04d}.tflite" for index in range(len(contents))]
            for path, content in zip(paths, contents):
                path.write_bytes(content)
            try:
                return self._in_turns(paths, threads)
            except ValueError as error:
                print(f"timing again: {error}", file=sys.stderr)
                return self._in_turns(paths, threads)

    def _in_turns(self, paths, threads):
        """Quartiles of all files, corrected by the times of the first file before and after each turn."""
        others = range(1, len(paths))
        turns = [list(others[start : start + _TURN]) for start in range(0, len(others), _TURN)]
        order = [0, *(index for turn in turns for index in (*turn, 0))]
        readings = self._read([paths[index] for index in order], threads)
        quartiles = np.array([reading.quartiles for reading in readings]).T
        firsts = [place for place, index in enumerate(order) if index == 0]
        reference = quartiles[:, firsts]
        drift = reference[1].max() / reference[1].min() - 1
        if drift > self._max_drift:
            raise ValueError(
                f"Expected times that stay within {self._max_drift:.0%}; let the device cool down, and stop other "
                f"programs on it. Received: {1e3 * reference[1].min():.3g} to {1e3 * reference[1].max():.3g} ms for "
                "the same file"
            )
        corrected = np.empty((3, len(paths)))
        corrected[:, 0] = middle = np.median(reference, axis=1)
        for place, index in enumerate(order):
            if index:
                before, after = (quartiles[1, p] for p in _around(firsts, place))
                corrected[:, index] = quartiles[:, place] * middle[1] / ((before + after) / 2)
        return corrected

    def _read(self, paths, threads):
        """Measures the paths. Returns one `Reading` per path, in their order."""
        if self._is_single:
            return [self._one(path, threads) for path in paths]
        names = " ".join(path.name for path in paths)
        output = self._run(models=" ".join(shlex.quote(str(path)) for path in paths), names=names, threads=threads)
        return _checked(read_text(output), [path.name for path in paths], output)

    def _one(self, path, threads):
        result = path.with_suffix(".result")
        with contextlib.suppress(FileNotFoundError):
            result.unlink()
        output = self._run(model=shlex.quote(str(path)), result=shlex.quote(str(result)), threads=threads)
        if result.exists():
            return read_result_file(result)
        return _checked(read_text(output), [path.name], output)[0]

    def _run(self, **words):
        command = self._command
        for name, value in {**words, "runs": self._runs}.items():
            command = command.replace(f"{{{name}}}", str(value))
        status, output, errors = _shell(command, self._timeout_s)
        if status:
            last = (errors or output).strip().splitlines()[-1:] or ["no message"]
            raise ValueError(f"Expected a timing command that succeeds. Received: status {status}: {last[0][:300]}")
        return f"{output}\n{errors}"  # benchmark_model writes to either stream


def _shell(command: str, timeout_s: float) -> tuple[int, str, str]:
    """Runs a command in the shell. Returns its exit status, output and errors.

    On a timeout or an interrupt, all processes that the command started are ended.

    Raises:
        ValueError: if the command takes longer than `timeout_s`.
    """
    process = subprocess.Popen(
        command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)  # ending only the shell would leave processes that hold the pipes
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise ValueError(f"Expected an end within {timeout_s:g} s. Received: none of {_short(command)}") from error
        raise
    return process.returncode, output, errors


def _around(firsts, place):
    """Nearest measurements of the first file before and after a place in the order."""
    after = next(first for first in firsts if first > place)
    return firsts[firsts.index(after) - 1], after


def _checked(readings: list[Reading], names: list[str], output: str) -> list[Reading]:
    """Checks that there is one reading per name, in the same order. Returns the readings.

    Raises:
        ValueError: for more, fewer or other readings.
    """
    if len(readings) != len(names):
        raise ValueError(
            f"Expected times of {len(names)} files, printed by benchmark_model or as lines of JSON. "
            f"Received: {len(readings)}, in {output.strip()[:200]!r}"
        )
    wrong = [(one.model, name) for one, name in zip(readings, names) if one.model not in (None, name)]
    if wrong:
        raise ValueError(f"Expected times in the order of the files. Received: {wrong[0][0]!r} for {wrong[0][1]!r}")
    return readings


def _short(command):
    return repr(command if len(command) <= 200 else f"{command[:200]}…")


def _android_name(adb):
    """Model and build that the device reports."""
    words = " ".join(f"$(getprop {name})" for name in ("ro.product.model", "ro.build.id", "ro.board.platform"))
    status, output, errors = _shell(f"{adb} shell {shlex.quote(f'echo {words}')}", 60)
    name = " ".join(output.split())
    if status or not name:
        raise ValueError(f"Expected an Android device. Received: {(errors or output).strip()[:300]}")
    return name
