"""Registry of the methods that choose ranks. Each method is a function in this package.

A method takes a `Problem` and returns a `Solution`. Importing `elrt_keras.ranks` registers the methods of every file in
the folder.
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
    """Input of a method: the layers whose ranks are chosen, and the budget.

    Attributes:
        model: the dense Keras model.
        candidates: its layers that can be factorised.
        budget: limits of MACs and parameters.
        fractions: all budgets of the user, `"latency"` included, as parts of the dense model's totals in (0, 1].
        fraction: fraction of the full ranks, if the user gave one instead of a budget, or `None`.
        multiple_of: step of the rank grid.
        break_even: whether layers that would not get cheaper stay dense.
        input_shape: shape of one example, for a model that leaves sizes open, or `None`.
        threads: CPU threads for measured times.
        quantization: type of the timed files, or `None` for float32.
        timer: the `Timer` that measures times, or `None` for the interpreter of this process.
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
    """Result of a method: the chosen ranks.

    Attributes:
        chosen: ranks by layer name; `None` for a layer that stays dense.
        candidates: the layers, with the costs that the method used.
        latency: `{"dense", "planned"}` in seconds if time was measured.
        beside: `{layer: {kind: speed-up}}` of low-rank layers in other kinds of files, if all times are known.
    """

    chosen: Chosen
    candidates: Sequence[Candidate]
    latency: dict[str, float] | None = None
    beside: Mapping[str, dict[str, float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: str; `get` finds the method by it.
        solve: the function.
        reads_weights: whether it needs trained weights.
        needs_budget: whether it needs a budget or a fraction.
        takes_fraction: whether it accepts a fraction of the full ranks instead of a budget.
        measures_time: whether it needs `max_latency`.
        weighs_kernels: whether it compares the parts of the kernels that decompositions keep. Such a method can choose
            among several formats and use calibration data.
        kept_dense: reason in the plan for a layer that the method leaves dense.
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
        name: str; `plan_ranks(method=…)` finds the method by it.
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
    """Lists the registered names, sorted."""
    return sorted(_METHODS)


def reading_weights() -> list[str]:
    """Lists the names of the methods for trained weights, sorted."""
    return [name for name in names() if _METHODS[name].reads_weights]


def get(name: str) -> Method:
    """Returns the method called `name`.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    return _METHODS[one_of(name, names(), "method")]


def chosen_name(name: str | None, max_latency: float | None, mixes: bool = False) -> str:
    """Returns `name`, or the name of the default method for the other arguments.

    Args:
        name: name of a method, or `None`.
        max_latency: the time budget, or `None`.
        mixes: whether layers may choose among several formats.

    Raises:
        ValueError: for an unknown name, for a method that measures time without `max_latency`, for another method with
            it, or if layers choose among several formats and the method cannot.
    """
    if name is None:
        return "latency" if max_latency is not None else "energy" if mixes else "uniform"
    if get(name).measures_time != (max_latency is not None):
        raise ValueError(
            f"Expected `max_latency` together with method='latency'. "
            f"Received: max_latency={max_latency}, method={name!r}"
        )
    if mixes and not get(name).weighs_kernels:
        able = [one for one in names() if _METHODS[one].weighs_kernels]
        raise ValueError(f"Expected one of the methods {able} with format='auto'. Received: method={name!r}")
    return name
