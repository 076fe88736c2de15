"""What the commands share: quiet logs, one-line errors, tables."""

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
    """Keeps the notes that TensorFlow logs while it saves a model off the terminal; warnings stay."""
    logging.set_verbosity(logging.WARNING)


def refuse_arguments(argv):
    """Raises for arguments that are no flags."""
    if len(argv) > 1:
        raise ValueError(f"Expected flags only, such as --run_dir=DIR. Received: {argv[1:]}")


class _SuggestingParser(flags.EnumParser):
    """An enum flag's parser that suggests the value that was probably meant."""

    def parse(self, argument):
        try:
            return super().parse(argument)
        except ValueError as error:
            raise ValueError(f"{error}{suggestion(argument, self.enum_values)}") from error


def with_one_line_errors(program, function, interrupted="interrupted"):
    """Wraps a command: an error that tells the user what to mend becomes one line and exit status 2.

    Such errors are a `ValueError`, an `ImportError` (an extra that is not installed), and an `OSError` (a full disk).
    `interrupted` is what is told after Ctrl-C.
    """
    # absl has a flag of its own that writes a file anywhere, and a flag file may come from somebody else.
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
            told, status = f"error: {error}", 2
        except KeyboardInterrupt:
            told, status = interrupted, 130
        # The error is gone by now, and with it goes what it held: an iterator over data whose threads call Python would
        # wait for them for ever once Python is ending.
        gc.collect()
        _end(program, told, status)

    return wrapped


def start(program, function, argv, **options):
    """Runs a command: flags, then the function, with errors as one line and exit status 2, --help with 0."""
    # absl ends --help and flags that it refuses alike, with 1.
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

    # The user has no use for the source line that warns.
    warnings.formatwarning = lambda message, *_, **__: f"{program}: warning: {message}\n"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a table's lines are in few encodings but UTF-8
    app.run(with_one_line_errors(program, function, **options), argv=argv, flags_parser=parsed)


def _print_no_more():
    """Sends the rest of the output nowhere: `| head` has what it wanted, and Python would fail again as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain_by_help(function):
    """Has --help print the text of the command's module and its flags, also where a console script started it."""
    main = sys.modules["__main__"]
    main.__doc__ = main.__doc__ or sys.modules[function.__module__].__doc__
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        for flag in defined if module.startswith("elrt_keras.") else ():
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def fail(program, error):
    """Ends the command with one line and exit status 2."""
    _end(program, f"error: {error}", 2)


def _end(program, told, status):
    print(f"{program}: {told}", file=sys.stderr)
    sys.exit(status)


def summary_table(summaries):
    """A table of runs: accuracy, parameters, MACs, seconds per epoch."""
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
    """One line: the costs of a whole model (`ModelCosts`), dense and under a plan."""
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
