"""The methods that choose ranks, by name: one function each, in a file of its own in this room.

A method takes a `Problem` and returns a `Solution`. Importing `elrt_keras.ranks` registers all of them: a further file
is picked up.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras

from elrt_keras.atomic import Path
from elrt_keras.checks import one_of
from elrt_keras.litert.convert import Quantization
from elrt_keras.litert.timers import Timer
from elrt_keras.ranks.budget import Budget, Chosen
from elrt_keras.ranks.candidate import Candidate

_METHODS: dict[str, "Method"] = {}


@dataclasses.dataclass(frozen=True)
class Problem:
    """Layers of a model whose ranks are to be chosen.

    Attributes:
        model: the dense Keras model.
        candidates: its layers that can be factorised.
        budget: what the model may cost in MACs and parameters.
        fractions: the budgets that were given, `"latency"` too, as parts of the dense model's totals in (0, 1].
        fraction: the fraction of the full ranks that was asked for instead of a budget, or `None`.
        multiple_of: step of the rank grid.
        break_even: whether layers that would not get cheaper stay dense.
        input_shape: shape of one example, for a model that leaves sizes open, or `None`.
        threads: CPU threads for measured times.
        quantization: kind of the timed files, or `None` for float32.
        timer: what measures times, or `None` for the interpreter of this process.
        times: path of times that were measured before, or `None`.
    """

    model: keras.Model
    candidates: Sequence[Any]
    budget: Budget
    fractions: Mapping[str, float]
    fraction: float | None
    multiple_of: int
    break_even: bool
    input_shape: Sequence[int] | None = None
    threads: int = 1
    quantization: Quantization | None = None
    timer: Timer | None = None
    times: Path | None = None

    @property
    def judged_by(self) -> list[str]:
        """The resources that decide whether ranks save anything."""
        return list(self.fractions) or ["macs"]


@dataclasses.dataclass(frozen=True)
class Solution:
    """Chosen ranks.

    Attributes:
        chosen: ranks of each layer by its name; `None` where it stays dense.
        candidates: the layers, with the costs by which they were judged.
        latency: `{"dense", "planned"}` in seconds where time was measured.
        beside: for each low-rank layer its speed-up in other kinds of files, by the name of the kind, as far as known.
    """

    chosen: Chosen
    candidates: Sequence[Candidate]
    latency: dict[str, float] | None = None
    beside: Mapping[str, dict[str, float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Method:
    """A method that is registered.

    Attributes:
        name: str, by which `get` finds it.
        solve: the function.
        reads_weights: whether it needs trained weights.
        needs_budget: whether it cannot do without a budget or a fraction.
        takes_fraction: whether it takes a fraction of the full ranks in the place of a budget.
        measures_time: whether it is the one for `max_latency`.
        weighs_kernels: whether it weighs ranks by what decompositions keep of the kernels: layers may then choose among
            several formats, and calibration data count.
        kept_dense: reason given for a layer that it leaves dense.
    """

    name: str
    solve: Callable[[Problem], Solution]
    reads_weights: bool = False
    needs_budget: bool = True
    takes_fraction: bool = False
    measures_time: bool = False
    weighs_kernels: bool = False
    kept_dense: str = "would not get cheaper"


_Solve: TypeAlias = Callable[[Problem], Solution]


def method(name: str, **properties: Any) -> Callable[[_Solve], _Solve]:
    """Function decorator: registers a method of choosing ranks.

    Args:
        name: str, by which `plan_ranks(method=…)` finds it.
        **properties: fields of `Method`, such as `reads_weights=True`.

    Example:

    >>> get = elrt_keras.ranks.methods.get
    >>> get("vbmf").reads_weights, get("uniform").takes_fraction
    (True, True)
    """

    def register(solve: _Solve) -> _Solve:
        _METHODS[name] = Method(name, solve, **properties)
        return solve

    return register


def names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_METHODS)


def reading_weights() -> list[str]:
    """The names of the methods for trained weights, sorted."""
    return [name for name in names() if _METHODS[name].reads_weights]


def get(name: str) -> Method:
    """The method called `name`.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    return _METHODS[one_of(name, names(), "method")]


def chosen_name(name: str | None, max_latency: float | None, mixes: bool = False) -> str:
    """The name of the method that plans: `name`, or where it is `None` the one that the arguments ask for.

    Args:
        name: name of a method, or `None`.
        max_latency: the budget of time, or `None`.
        mixes: whether layers may choose among several formats.

    Raises:
        ValueError: for an unknown name, a measured method without `max_latency`, another one with it, or one that
            knows one format for each layer alone where there are several.
    """
    if name is None:
        return "latency" if max_latency is not None else "energy" if mixes else "uniform"
    if get(name).measures_time != (max_latency is not None):
        raise ValueError(
            f"`max_latency` and method='latency' belong together. Received: max_latency={max_latency}, method={name!r}"
        )
    if mixes and not get(name).weighs_kernels:
        able = [one for one in names() if _METHODS[one].weighs_kernels]
        raise ValueError(f"Expected one of the methods {able} with format='auto'. Received: method={name!r}")
    return name
