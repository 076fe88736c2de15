"""Shared parts of the commands: quiet logs, one-line errors, tables."""

import functools
import gc
import io
import os
import sys
import warnings

from absl import app, flags, logging

from elrt_keras.checks import suggestion
from elrt_keras.terminal.tables import render_table

_HELP = ("help", "helpshort", "helpfull", "h", "?")


def quiet_logging():
    """Hides the notes that TensorFlow logs while it saves a model; warnings stay."""
    logging.set_verbosity(logging.WARNING)


def refuse_arguments(argv):
    """Refuses arguments that are not flags."""
    if len(argv) > 1:
        raise ValueError(f"Expected flags only, such as --run_dir=DIR. Received: {argv[1:]}")


class _SuggestingParser(flags.EnumParser):
    """Parser of an enum flag; its error suggests the closest valid value."""

    def parse(self, argument):
        try:
            return super().parse(argument)
        except ValueError as error:
            raise ValueError(f"{error}{suggestion(argument, self.enum_values)}") from error


def with_one_line_errors(program, function, interrupted="interrupted"):
    """Wraps a command: errors that the user can repair are printed as one line, with exit status 2.

    These errors are `ValueError`, `ImportError` (an extra is not installed) and `OSError` (a full disk).
    `interrupted` is the text printed after Ctrl-C.
    """
    # absl's own flag --profile_file writes a file anywhere, and a flag file may come from somebody else.
    flags.register_validator("profile_file", lambda path: path is None, "use python -m cProfile -o FILE instead")
    _explain_by_help(function)
    for flag in map(flags.FLAGS.__getitem__, flags.FLAGS):
        if isinstance(flag.parser, flags.EnumParser):
            flag.parser = _SuggestingParser(flag.parser.enum_values, flag.parser.case_sensitive)

    @functools.wraps(function)
    def wrapped(argv):
        quiet_logging()
        try:
            function(argv)
            sys.stdout.flush()
            return
        except BrokenPipeError:
            _print_no_more()
            sys.exit(0)
        except (ValueError, ImportError, OSError) as error:
            if os.environ.get("ELRT_TRACEBACK"):
                raise
            text, status = f"error: {error}", 2
        except KeyboardInterrupt:
            text, status = interrupted, 130
        # Python has dropped the error here. Collecting garbage now also frees the objects that the error held. A data
        # iterator among them has threads that call Python; freed while Python shuts down, it would wait for ever.
        gc.collect()
        _end(program, text, status)

    return wrapped


def start(program, function, argv, **options):
    """Runs a command: parses flags and calls the function. Errors exit with status 2, --help with 0."""
    # absl exits with 1 both for --help and for flags that it refuses.
    helps = any(argument.lstrip("-").partition("=")[0] in _HELP for argument in argv[1:] if argument.startswith("-"))

    def parsed(arguments):
        try:
            return app.parse_flags_with_usage(arguments)
        except UnicodeDecodeError as error:
            fail(program, f"Expected flag files of text. Received: {error}")
        except SystemExit as ended:
            try:
                sys.stdout.flush()
            except BrokenPipeError:
                _print_no_more()
            sys.exit((0 if helps else 2) if ended.code == 1 else ended.code)
        except BrokenPipeError:
            _print_no_more()
            sys.exit(0)

    # Leave out the source line of a warning: it does not help the user.
    warnings.formatwarning = lambda message, *_, **__: f"{program}: warning: {message}\n"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # few encodings other than UTF-8 have the lines of tables
    app.run(with_one_line_errors(program, function, **options), argv=argv, flags_parser=parsed)


def _print_no_more():
    """Discards all further output. After `| head` has closed the pipe, Python would fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain_by_help(function):
    """Makes --help print the docstring of the command's module and its flags, also under a console script."""
    main = sys.modules["__main__"]
    main.__doc__ = main.__doc__ or sys.modules[function.__module__].__doc__
    for module, module_flags in flags.FLAGS.flags_by_module_dict().items():
        for flag in module_flags if module.startswith("elrt_keras.") else ():
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def fail(program, error):
    """Ends the command with one line and exit status 2."""
    _end(program, f"error: {error}", 2)


def _end(program, text, status):
    print(f"{program}: {text}", file=sys.stderr)
    sys.exit(status)


def summary_table(summaries):
    """Returns a table of runs: accuracy, parameters, MACs, seconds per epoch."""
    rows = [
        (
            f"{s['model']} {s['format']}",
            s["dataset"],
            f"{s['test_accuracy']:.2%}",
            f"{s['params']:,}",
            f"{s['macs'] / 1e6:.2f} M",
            f"{s['macs_fraction']:.1%}",
            f"{s['seconds_per_epoch']:.1f}",
        )
        for s in summaries
    ]
    return render_table(["model", "data", "test accuracy", "params", "MACs", "of dense", "s/epoch"], rows)


def plan_totals(dense, plan):
    """Returns one line with the costs of a whole model: dense (`ModelCosts`) and under a plan."""
    saved = {r: sum(c[r] - c[f"planned_{r}"] for c in plan.costs.values()) for r in ("macs", "params")}
    macs, params = dense.macs - saved["macs"], dense.params - saved["params"]
    text = (
        f"whole model: {dense.macs:,} → {macs:,} MACs ({macs / dense.macs:.1%}), "
        f"{dense.params:,} → {params:,} params ({params / dense.params:.1%})"
    )
    if plan.latency is None:
        return text
    before, after = 1e3 * plan.latency["dense"], 1e3 * plan.latency["planned"]
    return f"{text}, {before:.2f} → {after:.2f} ms predicted ({after / before:.1%})"
