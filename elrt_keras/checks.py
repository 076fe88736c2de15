"""Checks of named values. All messages have the form "Expected …. Received: …"."""

import difflib
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

# Identifier of an object, as Keras accepts it: a name, a config, or the object itself.
Identifier: TypeAlias = str | dict[str, Any] | Callable[..., Any]

_CLOSE = 0.6  # difflib's own limit: 'sdg' is close to 'sgd', 'adam' is not


def one_of(value: Any, choices: Iterable[Any], name: str) -> Any:
    """Checks that a value is among the choices, and returns it.

    Args:
        value: the user's value.
        choices: the allowed values.
        name: the argument's name, for the message.

    Raises:
        ValueError: for any other value; the message suggests the closest choice, if one is close.

    Example:

    >>> elrt_keras.checks.one_of("cp", ["cp", "svd"], "format")
    'cp'
    >>> elrt_keras.checks.one_of("sdv", ["cp", "svd"], "format")
    Traceback (most recent call last):
    ValueError: Expected one of ['cp', 'svd']. Received: format='sdv'. Did you mean 'svd'?
    """
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"Expected one of {choices}. Received: {name}={value!r}{suggestion(value, choices)}")
    return value


def by_name(
    identifier: Identifier | None, own: Mapping[str, Callable[[], Any]], stock: Callable[[Any], Any], name: str
) -> Any:
    """Returns the object of an identifier, from this package or from Keras.

    Args:
        identifier: the user's value.
        own: `{name: constructor}` of the package's own objects.
        stock: Keras' function for all other identifiers.
        name: the argument's name, for the message.

    Raises:
        ValueError: for an unknown identifier; the message suggests the closest name, if one is close.

    Example:

    >>> type(elrt_keras.checks.by_name("l2", {}, keras.regularizers.get, "regularizer")).__name__
    'L2'
    """
    if isinstance(identifier, str) and identifier in own:
        return own[identifier]()
    try:
        return stock(identifier)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"Expected {name} as one of {sorted(own)}, or as one that Keras knows. "
            f"Received: {name}={identifier!r}{suggestion(identifier, own)}"
        ) from error


def number_in(value: Any, interval: str, name: str) -> float:
    """Checks that a number lies in an interval, and returns it as a float.

    Args:
        value: the user's value.
        interval: text such as `"(0, 1]"` or `"[0, inf)"`; a round bracket excludes the end.
        name: the argument's name, for the message.

    Raises:
        ValueError: for any other value; NaN and booleans do not count as numbers.

    Example:

    >>> elrt_keras.checks.number_in(1, "(0, 1]", "max_macs")
    1.0
    >>> elrt_keras.checks.number_in(0, "(0, 1]", "max_macs")
    Traceback (most recent call last):
    ValueError: Expected max_macs as a number in (0, 1]. Received: max_macs=0
    """
    if not _is_a(numbers.Real, value) or not _inside(value, interval):
        raise ValueError(f"Expected {name} as a number {_range(interval)}. Received: {name}={value!r}")
    return float(value)


def int_in(value: Any, interval: str, name: str) -> int:
    """Checks that an integer lies in an interval, and returns it as an int. Arguments and errors as in `number_in`.

    Example:

    >>> elrt_keras.checks.int_in(np.int64(8), "[1, inf)", "multiple_of")
    8
    >>> elrt_keras.checks.int_in(8.0, "[1, inf)", "multiple_of")
    Traceback (most recent call last):
    ValueError: Expected multiple_of as an int of at least 1. Received: multiple_of=8.0
    """
    if not _is_a(numbers.Integral, value) or not _inside(value, interval):
        raise ValueError(f"Expected {name} as an int {_range(interval)}. Received: {name}={value!r}")
    return int(value)


def _is_a(kind, value):
    return isinstance(value, kind) and not isinstance(value, bool)


def _inside(value, interval):
    low, high = (float(end) for end in interval[1:-1].split(","))
    try:
        value = float(value)
    except OverflowError:  # an int larger than any float
        return False
    return low < value < high or (interval[0] == "[" and value == low) or (interval[-1] == "]" and value == high)


def _range(interval):
    low, high = interval[1:-1].split(", ")
    if high != "inf":
        return f"in {interval}"
    return f"of at least {low}" if interval[0] == "[" else f"above {low}"


def suggestion(value: Any, choices: Iterable[Any]) -> str:
    """Returns the end of a message about an unknown value: a question with the closest choice, or an empty string.

    Example:

    >>> elrt_keras.checks.suggestion("resnet21", ["resnet8", "resnet20", "vgg16"])
    ". Did you mean 'resnet20'?"
    >>> elrt_keras.checks.suggestion("inception", ["resnet8", "resnet20", "vgg16"])
    ''
    """

    def closeness(choice):
        return difflib.SequenceMatcher(None, choice.lower(), str(value).lower()).ratio()

    names = [choice for choice in choices if isinstance(choice, str)]
    closest = max(names, key=closeness, default=None)
    return "" if closest is None or closeness(closest) < _CLOSE else f". Did you mean {closest!r}?"
