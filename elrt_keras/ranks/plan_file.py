"""File of a rank plan: plain JSON. It is written atomically, and every entry is checked when it is read.

{"kind": "elrt_keras.RankPlan", "version": 1,
 "layers":  {LAYER: "dense" or {"format": FORMAT, "ranks": [RANK, …]}, …},
 "reasons": {LAYER: TEXT, …},                                                    optional
 "costs":   {LAYER: {"of": as in layers, "kernel_shape": [INT, …], "groups": INT,
                     "macs": NUMBER, …, "kept": NUMBER, "rivals": {FORMAT: NUMBER, …},
                     "beside": {KIND: NUMBER, …}}, …},                          optional
 "latency": {"dense": SECONDS, "planned": SECONDS}}                              optional

`layers` may be edited by hand. `of` is the entry that the costs of a layer belong to. If a layer was edited, its costs
and the latency of the whole model are dropped when the file is read.
"""

import json
import sys
from typing import Any

from elrt_keras.atomic import Path, write_bytes

_HEAD = {"kind": "elrt_keras.RankPlan", "version": 1}
_NUMBERS = ("macs", "params", "planned_macs", "planned_params", "latency", "planned_latency", "kept")


def write(path: Path, document: dict[str, Any]) -> None:
    """Writes the parts of a plan (`layers`, `reasons`, `costs`, `latency`) atomically."""
    layers = document["layers"]
    costs = {name: {"of": layers[name], **costs} for name, costs in document["costs"].items() if name in layers}
    document = {**document, "costs": costs}
    write_bytes(path, (json.dumps({**_HEAD, **document}, indent=2) + "\n").encode())


def read(path: Path) -> dict[str, Any]:
    """Reads the parts of a plan as a dict. `RankPlan` checks formats and ranks.

    Raises:
        ValueError: if the file is missing, is no JSON, or is no rank plan; the message names the file.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:  # some editors write a byte order mark
            document = json.load(file, object_pairs_hook=_without_repetition)
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, no JSON, too many digits, too deep
        raise ValueError(f"Expected a rank plan in JSON at {str(path)!r}. Received: {error}") from error
    if not isinstance(document, dict) or any(document.get(name) != value for name, value in _HEAD.items()):
        raise ValueError(
            f"Expected a rank plan: an object with kind {_HEAD['kind']!r} and version {_HEAD['version']} at "
            f"{str(path)!r}. Received: {str(document)[:80]}"
        )
    layers = document.get("layers")
    if isinstance(layers, dict):
        layers = {name: "dense" if entry is None else entry for name, entry in layers.items()}  # null is Python's None
    _check_object(path, "layers", layers, _is_entry, '"dense" or an object with "format" and "ranks"')
    optional = {name: document.get(name) or {} for name in ("reasons", "costs", "latency")}
    _check_object(path, "reasons", optional["reasons"], lambda value: isinstance(value, str), "a text")
    _check_object(
        path,
        "costs",
        optional["costs"],
        _is_costs,
        f"kernel_shape, groups, rivals, beside and numbers of {list(_NUMBERS)}",
    )
    _check_object(path, "latency", optional["latency"], _is_number, "seconds")
    if optional["latency"] and set(optional["latency"]) != {"dense", "planned"}:
        raise ValueError(f"Expected 'dense' and 'planned' in 'latency' of {str(path)!r}. Received: {optional}")
    return _without_stale({"layers": layers, **optional})


def _without_repetition(pairs):
    """Makes the dict of a JSON object. Refuses repeated names, because JSON readers keep only the last."""
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} twice in one object")
    return document


def _without_stale(document):
    """Returns the document without the costs and reasons of edited layers."""
    layers, costs = document["layers"], document["costs"]
    # Older files have no `of`. Their layers count as not edited.
    edited = {name for name, row in costs.items() if name not in layers or row.get("of", layers[name]) != layers[name]}
    kept = {
        name: {key: value for key, value in row.items() if key != "of"}
        for name, row in costs.items()
        if name not in edited
    }
    reasons = {n: text for n, text in document["reasons"].items() if n not in edited and layers.get(n) == "dense"}
    return {**document, "costs": kept, "reasons": reasons, "latency": {} if edited else document["latency"]}


def _check_object(path, name, received, is_valid, expected):
    if not isinstance(received, dict):
        raise ValueError(f"Expected an object '{name}' in {str(path)!r}. Received: {name}={str(received)[:80]}")
    for key, value in received.items():
        if not is_valid(value):
            raise ValueError(
                f"Expected {expected} for {key!r} of '{name}' in {str(path)!r}. Received: {str(value)[:80]}"
            )


def _is_entry(value):
    if isinstance(value, dict):
        return set(value) == {"format", "ranks"} and isinstance(value["format"], str)
    return value == "dense"


def _is_costs(value):
    if not isinstance(value, dict) or not set(value) <= {"of", "kernel_shape", "groups", "rivals", "beside", *_NUMBERS}:
        return False
    groups = value.get("groups", 1)
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        return False
    shape = value.get("kernel_shape", [])
    by_name = [value.get(name, {}) for name in ("rivals", "beside")]
    if not all(isinstance(one, dict) for one in by_name):
        return False
    numbers = [
        *(value[name] for name in _NUMBERS if name in value),
        *(number for one in by_name for number in one.values()),
    ]
    return _is_entry(value.get("of", "dense")) and isinstance(shape, list) and all(map(_is_number, [*shape, *numbers]))


def _is_number(value):
    # Excludes infinity and ints larger than any float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max
