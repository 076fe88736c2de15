"""Measures, and writes the result, the command and the machine into benchmarks/results/NAME/.

python -m benchmarks.measure NAME --flags
python -m benchmarks.measure NAME --help     # what NAME measures, and its flags
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
        default: its value; a tuple, or a function that returns one, makes it a list with commas between.
        help: text, for `--help`.
        type: of the value, or of each in a list; by default that of `default`.
        choices: the only values that are allowed.
    """

    default: Any
    help: str
    type: Callable | None = None
    choices: tuple = ()

    def parsed(self, key, text):
        """The value of a text from the command line, where the flag is called `key`."""
        convert = self.type or (type(self.default) if isinstance(self.default, int | float) else str)
        listed = isinstance(self.default, tuple) or callable(self.default)
        try:
            values = tuple(convert(part) for part in (text.split(",") if listed else [text]))
        except ValueError as error:
            raise ValueError(f"Expected {key} of type {convert.__name__}. Received: {key}={text!r}") from error
        for wrong in set(values) - set(self.choices) if self.choices else ():
            refuse(wrong, self.choices, key)
        return values if listed else values[0]


_HELP = {"rounds": "How often each is measured.", "models": "Models, each in a process of its own."}
_HELP["name"] = "First word of the names of the result files, ahead of the model's."
# What `measurement` registers.
Measurement = collections.namedtuple("Measurement", ("function", "flags", "environment", "limit_s"))


def measurement(name, /, *, environment=None, limit_s=None, **flags):
    """Registers a function as the measurement `name`, and leaves it as it is.

    The function takes `Settings` and returns the result, a dict, or yields results as `(name of the file, result)`.

    Args:
        name: also of the folder of results.
        environment: variables that its processes have, where the caller does not set them.
        limit_s: seconds after which a process is ended.
        **flags: each a `Flag`; `rounds`, `name` (which all have) and `models` may be defaults alone.
    """
    flags = {"name": "", **flags}
    flags = {key: flag if isinstance(flag, Flag) else Flag(flag, _HELP[key]) for key, flag in flags.items()}

    def registered(function):
        MEASUREMENTS[name] = Measurement(function, flags, environment or {}, limit_s)
        return function

    return registered


class Settings(argparse.Namespace):
    """Values of a measurement's flags, its name as `measured`, and the `model` of this process or `None`."""

    @property
    def file(self):
        """The name of the result file, without its ending."""
        return re.sub(r"[^A-Za-z0-9_.]+", "_", "_".join(filter(None, (self.name, self.model)))).strip("_")

    def command(self, **changed):
        """The command that measures the same model again."""
        chosen = MEASUREMENTS[self.measured]
        words = [*(f"{key}={value}" for key, value in chosen.environment.items()), "python -m benchmarks.measure"]
        words += [self.measured, *([f"--models={self.model}"] if self.model else [])]
        for key, flag in chosen.flags.items():
            value = changed.get(key, getattr(self, key))
            # Numbers always: they say how much was measured.
            if key != "models" and (value != flag.default or isinstance(value, int | float)):
                words.append(f"--{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}")
        return " ".join(words)


def main(argv):
    """Measures what `argv` names; returns the exit status, which is 1 after a failure and 2 after a wrong argument."""
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
    """Raises the ValueError that suggests the closest choice."""
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
        told = ",".join(map(str, flag.default)) if isinstance(flag.default, tuple) else flag.default
        told = f"{flag.help} By default {told}." if told and not callable(told) else flag.help
        parser.add_argument(f"--{key}", metavar="…", help=told.replace("%", "%%"))
    parser.add_argument("--results", metavar="DIR", default=evidence.RESULTS, help="Root folder of the results.")
    parser.add_argument("--missing", action="store_true", help="Only models that have no result yet.")
    values = vars(parser.parse_args(argv))
    for key, flag in flags.items():
        default = flag.default() if callable(flag.default) else flag.default
        values[key] = default if values[key] is None else flag.parsed(key, values[key])
    return Settings(**values, measured=name)


def _measure_each(settings):
    """Measures each model, or what has no models, in a process of its own; the exit status."""
    todo = [Settings(**vars(settings), model=model) for model in getattr(settings, "models", (None,))]
    if settings.missing:
        folder = pathlib.Path(settings.results) / settings.measured
        todo = [one for one in todo if not (folder / f"{one.file}.json").exists()]
    failed = []
    for number, one in enumerate(todo, 1):
        title = " ".join(filter(None, (one.measured, one.model)))
        print(f"[{number}/{len(todo)}] {title}", flush=True)
        status = _in_process(one)
        failed += [f"{title} with exit status {status}"] if status else []
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _in_process(settings):
    """Measures in a fresh process, where no other has left memory, threads or caches; its exit status."""
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
    """Measures one model and writes its files; pickled with `function`, this process loads the module that has it."""
    found = function(settings)
    for name, result in [(settings.file, found)] if isinstance(found, dict) else found:
        command = result.pop("command", None) or settings.command()
        print(evidence.write(settings.measured, name, result, command, settings.results), flush=True)
