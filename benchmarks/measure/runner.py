"""Runs a measurement and writes the result, the command and the machine into benchmarks/results/NAME/.

python -m benchmarks.measure NAME --flags
python -m benchmarks.measure NAME --help     # explanation of NAME and its flags
python -m benchmarks.measure --list
"""

import argparse
import collections
import dataclasses
import inspect
import multiprocessing
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.measure import evidence

MEASUREMENTS = {}


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of a measurement.

    Args:
        default: default value; a tuple, or a function that returns a tuple, makes the flag a comma-separated list.
        help: text for `--help`.
        type: type of the value, or of each value in a list; by default that of `default`.
        choices: the allowed values.
    """

    default: Any
    help: str
    type: Callable | None = None
    choices: tuple = ()

    def parsed(self, key, text):
        """Parses the text that the command line gives for the flag `--key`."""
        convert = self.type or (type(self.default) if isinstance(self.default, int | float) else str)
        listed = isinstance(self.default, tuple) or callable(self.default)
        try:
            values = tuple(convert(part) for part in (text.split(",") if listed else [text]))
        except ValueError as error:
            raise ValueError(f"Expected {key} of type {convert.__name__}. Received: {key}={text!r}") from error
        for wrong in set(values) - set(self.choices) if self.choices else ():
            refuse(wrong, self.choices, key)
        return values if listed else values[0]


_HELP = {"rounds": "Number of measurements of each.", "models": "Models, each in a separate process."}
_HELP["name"] = "First word of the names of the result files, before the model's name."
# Registry that `measurement` fills.
Measurement = collections.namedtuple("Measurement", ("function", "flags", "environment", "limit_s"))


def measurement(name, /, *, environment=None, limit_s=None, **flags):
    """Decorator that registers a function as the measurement `name`.

    The function takes `Settings` and returns the result, a dict, or yields results as `(name of the file, result)`.

    Args:
        name: name of the measurement and of its folder of results.
        environment: variables for its processes; variables that are already set win.
        limit_s: seconds after which a process is ended.
        **flags: each a `Flag`; for `rounds`, `name` (every measurement has both) and `models` a default is enough.
    """
    flags = {"name": "", **flags}
    flags = {key: flag if isinstance(flag, Flag) else Flag(flag, _HELP[key]) for key, flag in flags.items()}

    def registered(function):
        MEASUREMENTS[name] = Measurement(function, flags, environment or {}, limit_s)
        return function

    return registered


class Settings(argparse.Namespace):
    """Values of a measurement's flags, its name in `measured`, and the `model` of this process or `None`."""

    @property
    def file(self):
        """Name of the result file, without its suffix."""
        return re.sub(r"[^A-Za-z0-9_.]+", "_", "_".join(filter(None, (self.name, self.model)))).strip("_")

    def command(self, **changed):
        """Returns the command that repeats the measurement of this model."""
        chosen = MEASUREMENTS[self.measured]
        words = [*(f"{key}={value}" for key, value in chosen.environment.items()), "python -m benchmarks.measure"]
        words += [self.measured, *([f"--models={self.model}"] if self.model else [])]
        for key, flag in chosen.flags.items():
            value = changed.get(key, getattr(self, key))
            # Keep all numbers: they show the extent of the measurement.
            if key != "models" and (value != flag.default or isinstance(value, int | float)):
                words.append(f"--{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}")
        return " ".join(words)


def main(argv):
    """Runs the measurement in `argv`; returns the exit status: 1 after a failure, 2 after a wrong argument."""
    name, *others = argv or ["--help"]
    if name in ("--list", "--help", "-h"):
        width = max(map(len, MEASUREMENTS))
        lines = [f"{n:<{width}}  {inspect.getdoc(m.function).splitlines()[0]}" for n, m in MEASUREMENTS.items()]
        print("\n".join([*([] if name == "--list" else [__doc__]), *sorted(lines)]))
        return 0
    try:
        return _measure_each(_settings(name, others))
    except ValueError as error:
        print(f"benchmarks.measure: error: {error}", file=sys.stderr)
        return 2


def refuse(value, choices, name):
    """Refuses a value that is not among the choices; the message suggests the closest one."""
    from elrt_keras.checks import one_of  # which loads Keras

    one_of(value, choices, name)


def _settings(name, argv):
    if name not in MEASUREMENTS:
        refuse(name, sorted(MEASUREMENTS), "name")
    text, flags = inspect.getdoc(MEASUREMENTS[name].function), MEASUREMENTS[name].flags
    parser = argparse.ArgumentParser(
        f"python -m benchmarks.measure {name}", None, text, None, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for key, flag in flags.items():
        default = ",".join(map(str, flag.default)) if isinstance(flag.default, tuple) else flag.default
        help_text = f"{flag.help} By default {default}." if default and not callable(default) else flag.help
        parser.add_argument(f"--{key}", metavar="…", help=help_text.replace("%", "%%"))
    parser.add_argument("--results", metavar="DIR", default=evidence.RESULTS, help="Root folder of the results.")
    parser.add_argument("--missing", action="store_true", help="Measure only models that have no result yet.")
    values = vars(parser.parse_args(argv))
    for key, flag in flags.items():
        default = flag.default() if callable(flag.default) else flag.default
        values[key] = default if values[key] is None else flag.parsed(key, values[key])
    return Settings(**values, measured=name)


def _measure_each(settings):
    """Measures each model in a separate process (once, if there are no models); returns the exit status."""
    todo = [Settings(**vars(settings), model=model) for model in getattr(settings, "models", (None,))]
    if settings.missing:
        folder = pathlib.Path(settings.results) / settings.measured
        todo = [of_model for of_model in todo if not (folder / f"{of_model.file}.json").exists()]
    failed = []
    for number, of_model in enumerate(todo, 1):
        title = " ".join(filter(None, (of_model.measured, of_model.model)))
        print(f"[{number}/{len(todo)}] {title}", flush=True)
        status = _in_process(of_model)
        failed += [f"{title} with exit status {status}"] if status else []
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _in_process(settings):
    """Measures in a fresh process, without memory, threads or caches of others; returns its exit status."""
    chosen = MEASUREMENTS[settings.measured]
    for key, value in chosen.environment.items():
        os.environ.setdefault(key, value)
    process = multiprocessing.get_context("spawn").Process(target=_measure, args=(chosen.function, settings))
    process.start()
    process.join(chosen.limit_s)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode


def _measure(function, settings):
    """Measures one model and writes its files; unpickling `function` loads its module in the new process."""
    results = function(settings)
    for name, result in [(settings.file, results)] if isinstance(results, dict) else results:
        command = result.pop("command", None) or settings.command()
        print(evidence.write(settings.measured, name, result, command, settings.results), flush=True)
