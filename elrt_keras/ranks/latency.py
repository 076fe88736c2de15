"""Method `latency`: ranks for a time budget, from times of the layers on LiteRT, dense and at a grid of ranks.

Files are timed in float32, or quantised like the final model, because a rank saves a different time in each case.

The predicted time of a model under a plan is its dense time, minus the times of its dense layers, plus the times of the
chains that replace them. Each time is the lower quartile of single inferences of one layer alone. All ranks of a layer
are timed in turns, so other load on the machine affects them equally.
"""

import collections
import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from elrt_keras import litert
from elrt_keras.checks import int_in, one_of
from elrt_keras.formats.chain import Stage, chain_costs
from elrt_keras.graph.view import View
from elrt_keras.litert.convert import Quantization
from elrt_keras.ranks import energy
from elrt_keras.ranks.budget import Budget, on_grid
from elrt_keras.ranks.candidate import Candidate, MixedCandidate
from elrt_keras.ranks.methods import Problem, Solution, method
from elrt_keras.ranks.times import TimeTable, chain_key, open_table, whole_key
from elrt_keras.terminal.progress import progress_bar

# Measured ranks, as fractions of the largest ones, by the number of ranks of a format.
_FRACTIONS = {
    1: tuple(i / 16 for i in range(1, 16)),
    2: tuple(i / 8 for i in range(1, 9)),
}
_MORE_RANKS = (0.125, 0.25, 0.375, 0.5, 0.75)
# The largest layers are measured at fewer ranks, because their conversion takes long (VGG's first dense layer has 103
# million weights).
_LARGE, _FEW_FRACTIONS = 2**24, (0.0625, 0.125, 0.25, 0.5)
# Largest accepted interquartile range of single runs over their median, summed over layers. It is reached with several
# busy programs per core. Below it the lower quartiles, which are kept, still agree.
_SCATTER = 0.25
_ENOUGH_TO_FIT = 12  # with this number of ranks of a layer or more, their times are smoothed
_MEMORY = 2**30  # bytes of the models that are timed together


@dataclasses.dataclass(frozen=True)
class TimedCandidate(Candidate):
    """A candidate whose costs include `"latency"`, in seconds, at the measured ranks.

    `times` maps ranks, and `None` for the dense layer, to seconds per example.
    """

    times: dict[tuple[int, ...] | None, float] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def dense_costs(self) -> dict[str, float]:
        return {**super().dense_costs(), "latency": self.times[None]}

    def costs(self, ranks: tuple[int, ...] | None) -> dict[str, float]:
        return {**super().costs(ranks), "latency": self.times[ranks]}


def time_candidates(
    candidates: Sequence[Candidate], multiple_of: int, table: TimeTable, track: Callable[..., Any] = iter
) -> list[Any]:
    """Makes `TimedCandidate`s: adds times of all ranks of a coarse grid that save MACs, measured or from `table`.

    Args:
        candidates: list of `Candidate` and `MixedCandidate`.
        multiple_of: step of the rank grid.
        table: a `TimeTable`.
        track: wraps the list of candidates, to show progress.
    """
    timed = []
    for candidate in track(candidates):
        if isinstance(candidate, MixedCandidate):
            in_each = time_candidates(candidate.parts(), multiple_of, table)
            timed.append(MixedCandidate({one.format.name: one for one in in_each}))
            continue
        ranks = measured_ranks(candidate, multiple_of)
        times = dict.fromkeys([None, *ranks], 0.0)
        for size, count in candidate.sizes:
            seconds = _times(candidate, [None, *ranks], size, table)
            times = {rank: total + count * seconds[rank] for rank, total in times.items()}
        # Only ranks with a measured time below that of the dense layer can be chosen.
        choices = tuple(rank for rank in ranks if times[rank] < times[None])
        times = smoothed(times, {rank: candidate.stages(rank) for rank in ranks})
        fields = {field.name: getattr(candidate, field.name) for field in dataclasses.fields(candidate)}
        timed.append(TimedCandidate(**{**fields, "choices": choices}, times=times))
    return timed


def smoothed(
    times: Mapping[tuple[int, ...] | None, float], chains: Mapping[tuple[int, ...], Sequence[Stage]]
) -> dict[tuple[int, ...] | None, float]:
    """Halves the scatter of times: returns the geometric means of measured and fitted times.

    The fit is `c_0 + Σ_i c_i · weights of stage i` with c ≥ 0, by least squares of relative errors over all ranks of
    the layer. A time that is really different, such as that of a rank between two vectors, keeps half of its distance.

    Args:
        times: seconds by ranks. The time of the dense layer (`None`) stays unchanged.
        chains: the stages at each of the ranks.
    """
    if len(chains) < _ENOUGH_TO_FIT:
        return dict(times)
    from scipy import optimize  # imported here to keep the import of the package quick

    measured = np.array([times[ranks] for ranks in chains])
    work = np.array([[1.0, *(stage.weights for stage in chain)] for chain in chains.values()])
    scales = work.max(axis=0)
    factors, _ = optimize.nnls(work / scales / measured[:, None], np.ones(len(measured)))
    fitted = work / scales @ factors
    return {**times, **dict(zip(chains, map(float, np.sqrt(measured * fitted))))}


def measured_ranks(candidate: Candidate, multiple_of: int) -> list[tuple[int, ...]]:
    """Lists the ranks of a coarse grid at which the chain has fewer MACs than the dense layer."""
    dense = candidate.dense_costs()
    fractions = _FEW_FRACTIONS if dense["params"] > _LARGE else _FRACTIONS.get(len(candidate.limits), _MORE_RANKS)
    steps = zip(candidate.limits, candidate.steps(multiple_of))
    axes = [sorted({on_grid(f * limit, limit, step) for f in fractions}) for limit, step in steps]
    usable = [ranks for ranks in itertools.product(*axes) if candidate.usable(ranks, multiple_of) == ranks]
    return [ranks for ranks in usable if candidate.costs(ranks)["macs"] < dense["macs"]]


def _times(candidate, choices, size, table):
    chains = {ranks: candidate.stages(ranks) for ranks in choices}
    keys = {ranks: chain_key(chain, size, candidate.padding) for ranks, chain in chains.items()}
    missing = [ranks for ranks in choices if table.get(keys[ranks]) is None]
    if missing:
        shape = size, candidate.padding, table.quantization
        dense = litert.chain_to_litert(chains[None], *shape)
        for part in _parts([ranks for ranks in missing if ranks is not None], candidate, size):
            contents = [litert.chain_to_litert(chains[ranks], *shape) for ranks in part]
            # The dense layer is measured each time, as the reference for the others.
            seconds, *_ = table.measure([dense, *contents])
            scale = (table.get(keys[None]) or seconds[0]) / seconds[0]
            measured = zip([None, *part], seconds)
            table.add({keys[ranks]: float(scale * value) for ranks, value in measured})
    return {ranks: table.get(keys[ranks]) for ranks in choices}


def _parts(choices, candidate, size):
    """Splits the choices into parts whose weights and activations fit into memory. No choices give one empty part."""
    parts, room = [[]], _MEMORY
    for ranks in choices:
        costs = chain_costs(candidate.stages(ranks), size, candidate.padding)
        needed = 8 * (costs.params + costs.activations)  # float32, once in the file and once packed by the runtime
        if needed > room and parts[-1]:
            parts, room = [*parts, []], _MEMORY
        parts[-1].append(ranks)
        room -= needed
    return parts


def timed(
    model: keras.Model,
    budget: Budget,
    part: float,
    multiple_of: int,
    table: TimeTable,
    input_shape: Sequence[int] | None = None,
) -> tuple[list[Any], Budget]:
    """Adds times to the candidates of a budget, and a limit of the model's time to the budget.

    Args:
        model: the dense Keras model.
        budget: a `Budget` of counted resources.
        part: float, the part of the dense model's time that may be spent.
        multiple_of: step of the rank grid.
        table: the table of times; missing times are measured if the table can measure.
        input_shape: shape of one example, for a model that leaves sizes open.

    Returns:
        `(candidates, budget)`.

    Raises:
        ValueError: for a backend other than TensorFlow, a model that LiteRT cannot take or that has several inputs or
            outputs, or a table that lacks times and cannot measure.
        ImportError: without the `litert` extra.
    """
    view = View(model, input_shape)
    if table.can_measure:
        content = _content(model, table.quantization, input_shape)
        table.check()
    else:
        content = b""
        _refuse_missing(budget.candidates, multiple_of, table, whole_key(view))
    candidates = time_candidates(
        budget.candidates, multiple_of, table, functools.partial(progress_bar, told="timing layers")
    )
    if table.scatter > _SCATTER:
        warnings.warn(
            f"Single runs of the timed layers scatter by {table.scatter:.0%} of their median, so other ranks may be "
            f"faster: stop other programs, remove {table.path!r}, and plan again",
            stacklevel=4,  # the caller of `plan_ranks`
        )
    total = _total(content, candidates, table, whole_key(view))
    dense = sum(candidate.dense.times[None] for candidate in candidates)
    if dense > total:
        # Layers alone take a little longer than in the model. All times are then scaled down by the same factor.
        candidates = [_scaled(candidate, total / dense) for candidate in candidates]
    totals, fractions = {**budget.totals, "latency": total}, {**budget.fractions, "latency": part}
    return candidates, Budget(candidates, totals, fractions)


def _content(model, quantization, input_shape):
    """Converts the dense model to LiteRT bytes. A model that LiteRT cannot take fails here, before the timing."""
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"Expected the TensorFlow backend, which LiteRT needs to measure latency. "
            f"Received: backend {keras.backend.backend()!r}"
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "Expected a model with one input and one output, to measure times. "
            f"Received: {model.name!r} with {len(model.inputs)} and {len(model.outputs)}"
        )
    litert.require_runtime()
    ends = litert.interface(model, input_shape)
    # Times do not depend on the values. They are not negative, because integer inputs may be indices.
    examples = np.abs(np.random.default_rng(0).standard_normal((2, *ends.inputs[litert.INPUT]), "float32"))
    examples = examples.astype(ends.dtypes[litert.INPUT])
    return litert.model_to_litert(model, quantization, examples, "float32", input_shape)


def chains_to_time(
    candidates: Sequence[Candidate | MixedCandidate], multiple_of: int
) -> Iterator[tuple[str, str, Sequence[Stage], tuple[int, ...], str]]:
    """Yields `(layer, key, stages, input size, padding)` of all chains whose times a plan needs.

    The dense layer comes before its chains.
    """
    for candidate in [part for one in candidates for part in one.parts()]:
        for size, _ in candidate.sizes:
            for ranks in (None, *measured_ranks(candidate, multiple_of)):
                stages = candidate.stages(ranks)
                yield candidate.name, chain_key(stages, size, candidate.padding), stages, size, candidate.padding


def _refuse_missing(candidates, multiple_of, table, whole):
    """Raises a `ValueError` if a table that cannot measure lacks times."""
    lacking = collections.Counter(
        name for name, key, *_ in chains_to_time(candidates, multiple_of) if table.get(key) is None
    )
    layers = [f"{name!r} ({count} chains)" for name, count in lacking.items()]
    layers += [] if table.get(whole) is not None else ["the whole dense model"]
    if layers:
        raise ValueError(
            "Expected times of every layer; elrt-plan --export_timing_set=DIR writes the files to be timed. "
            f"Received: {table.path!r} without those of {', '.join(layers)}"
        )


def timing_set(
    view: View, candidates: Sequence[Candidate | MixedCandidate], multiple_of: int, quantization: Quantization | None
) -> dict[str, bytes]:
    """Returns the LiteRT models whose times a plan needs, by key: the whole dense model first, then single chains."""
    files = {whole_key(view): _content(view.model, quantization, view.input_shape)}
    for _, key, stages, size, padding in progress_bar(list(chains_to_time(candidates, multiple_of)), "converting"):
        if key not in files:
            files[key] = litert.chain_to_litert(stages, size, padding, quantization)
    return files


def _scaled(candidate, factor):
    """Returns the candidate with all times multiplied by `factor`."""
    if isinstance(candidate, MixedCandidate):
        return MixedCandidate({name: _scaled(one, factor) for name, one in candidate.by_format.items()})
    return dataclasses.replace(candidate, times={ranks: factor * time for ranks, time in candidate.times.items()})


def _total(content: bytes, candidates: Sequence[Any], table: TimeTable, key: str) -> Any:
    """Seconds of the whole dense model, corrected to the conditions under which its layers were timed."""
    if not table.can_measure:
        return table.get(key)
    if not candidates:
        total = float(table.measure([content])[0, 0])
    else:
        slowest = max((candidate.dense for candidate in candidates), key=lambda candidate: candidate.times[None])
        (size, _), *_ = slowest.sizes
        stages = slowest.stages(None)
        layer = litert.chain_to_litert(stages, size, slowest.padding, table.quantization)
        # The times of layers may be old. So the slowest layer is timed together with the model and shows the change.
        whole, now = table.measure([content, layer])[0]
        total = float(whole * table.get(chain_key(stages, size, slowest.padding)) / now)
    if table.get(key) is None:  # needed in saved tables for other machines
        table.add({key: total})
    return total


@method(
    "latency",
    measures_time=True,
    weighs_kernels=True,
    kept_dense="faster dense, or the budget is better spent on it whole",
)
def plan_latency(problem: Problem) -> Solution:
    """Chooses ranks like the method `energy`, with measured time instead of MACs, and only ranks faster than dense."""
    one_of(problem.quantization, litert.QUANTIZATIONS, "quantization")
    threads = int_in(problem.threads, "[1, inf)", "threads")
    table = open_table(threads, problem.quantization, problem.timer, problem.times)
    settings = problem.multiple_of, table, problem.input_shape
    candidates, budget = timed(problem.model, problem.budget, problem.fractions["latency"], *settings)
    chosen = energy.solve(candidates, budget, problem.multiple_of, True, ["latency"])
    latency = {"dense": budget.totals["latency"], "planned": budget.spent(chosen)["latency"]}
    return Solution(chosen, candidates, latency, _in_other_files(candidates, chosen, table))


def _in_other_files(candidates, chosen, table):
    """Speed-ups of the chosen chains in other kinds of files, by layer and kind, of which the device has all times."""
    others = {name or "float32": table.of_kind(name) for name in litert.QUANTIZATIONS if name != table.quantization}
    found: dict[str, dict[str, float]] = {}
    for candidate in candidates:
        choice = chosen[candidate.name]
        if choice is None:
            continue
        entry = candidate.entry(choice)
        part = next(one for one in candidate.parts() if one.format.name == entry.format)
        for name, other in others.items():
            dense, planned = (_kept_seconds(part, ranks, other) for ranks in (None, entry.ranks))
            if dense is not None and planned is not None:
                found.setdefault(candidate.name, {})[name] = dense / planned
    return found


def _kept_seconds(candidate, ranks, table):
    """Seconds of a layer's calls in a table; `None` where it lacks one."""
    stages = candidate.stages(ranks)
    seconds = [(table.get(chain_key(stages, size, candidate.padding)), count) for size, count in candidate.sizes]
    return None if any(time is None for time, _ in seconds) else sum(time * count for time, count in seconds)
