"""Checks of named values, whose messages suggest the choice that was probably meant."""

import difflib
from collections.abc import Iterable
from typing import Any

_CLOSE = 0.6  # difflib's own limit: 'sdg' is close to 'sgd', 'adam' is not


def one_of(value: Any, choices: Iterable[Any], name: str) -> Any:
    """Returns a value that is among the choices.

    Args:
        value: the user's value.
        choices: the values that are allowed.
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


def suggestion(value: Any, choices: Iterable[Any]) -> str:
    """The end of a message about a value that is not among the choices: a question, or nothing.

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
