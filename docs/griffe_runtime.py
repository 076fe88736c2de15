"""Extension of griffe, the reader behind mkdocstrings, that reads this package for the API reference.

Griffe reads sources without running them. That is not enough for docstrings composed by code (the layers), functions
made by code (the model builders), and a package in a folder of another name (`models/`). The extension takes them from
the imported package. Examples (`>>> …`) and tables of `====` become code blocks.
"""

import importlib
import inspect
import re

import griffe

# An example is a prompt and all lines up to the next empty one. A table goes from its first rule to its last.
_BLOCK = re.compile(r"^(?P<example>>>> (?:.+\n?)+)|^(?P<table>={4,} .*\n(?:.+\n)+={4,}[ =]*)$", re.MULTILINE)


class RuntimeDocstrings(griffe.Extension):
    """Replaces docstrings and signatures by those that `help()` shows."""

    def on_package(self, *, pkg, **kwargs):
        """Adds `elrt_keras.models`, completes docstrings, and makes code blocks."""
        if pkg.path == "elrt_keras":
            pkg.set_member("models", _models())
            _complete(pkg)


def _models():
    """Makes griffe's module `elrt_keras.models` with its public functions, from the imported module."""
    running = importlib.import_module("elrt_keras.models")
    module = griffe.Module("models", docstring=griffe.Docstring(inspect.getdoc(running)))
    for name in running.__all__:
        function = getattr(running, name)
        parameters = griffe.Parameters(*map(_parameter, inspect.signature(function).parameters.values()))
        module.set_member(name, griffe.Function(name, parameters=parameters))
        module[name].docstring = griffe.Docstring(inspect.getdoc(function), parent=module[name])
    return module


def _parameter(parameter):
    default = None if parameter.default is parameter.empty else repr(parameter.default)
    kind = griffe.ParameterKind(parameter.kind.description)
    return griffe.Parameter(parameter.name, kind=kind, default=default)


def _complete(part):
    """Completes the docstrings of a module or class, and of everything in it, with code blocks."""
    if part.is_class and "__doc__" in part.members:
        running = getattr(importlib.import_module(part.parent.path), part.name)
        part.docstring = griffe.Docstring(inspect.getdoc(running), parent=part)
        part.del_member("__doc__")
    if part.docstring is not None:
        part.docstring.value = with_code_blocks(part.docstring.value)
    for member in part.members.values():
        if not member.is_alias:
            _complete(member)


def with_code_blocks(text):
    """Fences the examples and tables of a docstring.

    >>> with_code_blocks("Adds.\\n\\nExample:\\n\\n>>> 1 + 1\\n2")
    'Adds.\\n\\n**Example**\\n\\n```pycon\\n>>> 1 + 1\\n2\\n```'
    """

    def fenced(match):
        after = "\n" if match[0].endswith("\n") else ""
        return f"```{'pycon' if match['example'] else 'text'}\n{match[0].rstrip()}\n```{after}"

    return _BLOCK.sub(fenced, re.sub(r"^Example:$", "**Example**", text, flags=re.MULTILINE))
