"""How long the convolutions of a model take on LiteRT, dense and at a grid of ranks: measured once, kept on disk.

In float32, or quantised as the model is going to be: what a rank saves differs between the two.

The time of a model under a plan is predicted as what it takes dense, less the times of its dense layers, plus those of
the chains that replace them. Each time is the lower quartile of single inferences of that layer alone, all ranks of a
layer taking turns, so that other load on the machine hits them alike.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from elrt_keras import litert
from elrt_keras.atomic import write_bytes
from elrt_keras.checks import int_in, one_of
from elrt_keras.formats.chain import Stage, chain_costs
from elrt_keras.litert.convert import Quantization
from elrt_keras.ranks import energy
from elrt_keras.ranks.budget import Budget, on_grid
from elrt_keras.ranks.candidate import Candidate, MixedCandidate
from elrt_keras.ranks.methods import Problem, Solution, method
from elrt_keras.terminal.progress import progress_bar

# Ranks that are measured: these fractions of the largest, by the number of ranks of a format.
_FRACTIONS = {
    1: tuple(i / 16 for i in range(1, 16)),
    2: tuple(i / 8 for i in range(1, 9)),
}
_MORE_RANKS = (0.125, 0.25, 0.375, 0.5, 0.75)
# Fewer of them for the largest layers (VGG's first dense layer has 103 million weights): converting those takes long.
_LARGE, _FEW_FRACTIONS = 2**24, (0.0625, 0.125, 0.25, 0.5)
_SECONDS = 1.0  # of measuring per layer, within these numbers of rounds
_ROUNDS = (5, 40)
# Interquartile range of single runs over their median, summed over layers. It reaches this with several busy programs
# to each core; the lower quartiles, which are kept, still agree where it is smaller.
_SCATTER = 0.25
_ENOUGH_TO_FIT = 12  # ranks of a layer, from which on their times are smoothed
_MEMORY = 2**30  # bytes of the models that take turns


@dataclasses.dataclass(frozen=True)
class TimedCandidate(Candidate):
    """A candidate whose costs include `"latency"`, in seconds, at the ranks that were measured.

    `times` maps ranks, and `None` for the dense layer, to seconds per example.
    """

    times: dict[tuple[int, ...] | None, float] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def dense_costs(self) -> dict[str, float]:
        return {**super().dense_costs(), "latency": self.times[None]}

    def costs(self, ranks: tuple[int, ...] | None) -> dict[str, float]:
        return {**super().costs(ranks), "latency": self.times[ranks]}


class TimeTable:
    """Measured seconds by what was measured, in a JSON file per runtime, processor, threads and quantisation.

    Args:
        threads: int, CPU threads of the interpreter.
        quantization: one of `litert.QUANTIZATIONS`: what the files are that are timed.
        folder: where the file lies; `None` for `$ELRT_CACHE_DIR`, or else `~/.cache/elrt_keras`.
    """

    def __init__(self, threads: int, quantization: Quantization | None = None, folder: str | None = None):
        folder = folder or os.environ.get("ELRT_CACHE_DIR") or os.path.join(_user_cache(), "elrt_keras")
        self.threads: int
        self.quantization: Quantization | None
        self.path: str
        self.threads, self.quantization, self._machine = threads, quantization, litert.machine_key(threads)
        if quantization is not None:
            self._machine += f", {quantization}"
        name = hashlib.sha256(self._machine.encode()).hexdigest()[:16]
        self.path = os.path.join(folder, f"latency_{name}.json")
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"Cannot keep measured times; $ELRT_CACHE_DIR says where. Received: {folder!r}: {error}"
            ) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(
                f"Expected a folder for measured times that can be written; $ELRT_CACHE_DIR says which. "
                f"Received: {folder!r}"
            )
        self._seconds = self._read()
        self._ranges, self._medians = 0.0, 0.0

    @property
    def scatter(self) -> float:
        """The interquartile range of what has been measured since the table was opened, as a part of the median."""
        return self._ranges / self._medians if self._medians else 0.0

    def note(self, quartiles: np.ndarray) -> None:
        """Takes down how far the single runs of a measurement lie apart; `quartiles` as `measure` returns them."""
        low, middle, high = quartiles.sum(axis=1)
        self._ranges, self._medians = self._ranges + float(high - low), self._medians + float(middle)

    def get(self, key: str) -> float | None:
        """The seconds of a key, or `None`."""
        return self._seconds.get(key)

    def add(self, measured: Mapping[str, float]) -> None:
        """Takes in a dict of seconds and writes the file.

        What another process has written stays, but for what both write in the same moment: that is measured again.
        """
        self._seconds = {**self._read(), **self._seconds, **measured}
        document = {"machine": self._machine, "seconds": self._seconds}
        try:
            write_bytes(self.path, json.dumps(document, indent=1, sort_keys=True).encode())
        except OSError as error:
            raise ValueError(f"Cannot keep measured times. Received: {self.path!r}: {error}") from error

    def _read(self):
        try:
            with open(self.path, encoding="utf-8") as file:
                seconds = {key: float(value) for key, value in json.load(file)["seconds"].items()}
            return {key: value for key, value in seconds.items() if 0 < value < math.inf}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # none yet, or damaged: it is measured anew


def _user_cache():
    return os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")


def time_candidates(
    candidates: Sequence[Candidate], multiple_of: int, table: TimeTable, track: Callable[..., Any] = iter
) -> list[Any]:
    """The candidates as `TimedCandidate`s: every rank of a coarse grid that saves MACs, measured or read from `table`.

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
        # Only what was measured as faster than the dense layer is ever on offer.
        choices = tuple(rank for rank in ranks if times[rank] < times[None])
        times = smoothed(times, {rank: candidate.stages(rank) for rank in ranks})
        fields = {field.name: getattr(candidate, field.name) for field in dataclasses.fields(candidate)}
        timed.append(TimedCandidate(**{**fields, "choices": choices}, times=times))
    return timed


def smoothed(
    times: Mapping[tuple[int, ...] | None, float], chains: Mapping[tuple[int, ...], Sequence[Stage]]
) -> dict[tuple[int, ...] | None, float]:
    """Times with about half of their scatter: the geometric means of the measured and of fitted times.

    The fit is `c_0 + Σ_i c_i · weights of stage i` with c ≥ 0, by least squares of relative errors over all ranks of
    the layer. A time that really stands out, such as that of a rank between two vectors, keeps half of its distance.

    Args:
        times: seconds by ranks, and of the dense layer (`None`), which stays as it is.
        chains: the stages at each of the ranks.
    """
    if len(chains) < _ENOUGH_TO_FIT:
        return dict(times)
    from scipy import optimize  # late: importing the package shall stay quick

    measured = np.array([times[ranks] for ranks in chains])
    work = np.array([[1.0, *(stage.weights for stage in chain)] for chain in chains.values()])
    scales = work.max(axis=0)
    factors, _ = optimize.nnls(work / scales / measured[:, None], np.ones(len(measured)))
    fitted = work / scales @ factors
    return {**times, **dict(zip(chains, map(float, np.sqrt(measured * fitted))))}


def measured_ranks(candidate: Candidate, multiple_of: int) -> list[tuple[int, ...]]:
    """The ranks of a coarse grid at which the chain has fewer MACs than the dense layer."""
    dense = candidate.dense_costs()
    fractions = _FEW_FRACTIONS if dense["params"] > _LARGE else _FRACTIONS.get(len(candidate.limits), _MORE_RANKS)
    steps = zip(candidate.limits, candidate.steps(multiple_of))
    axes = [sorted({on_grid(f * limit, limit, step) for f in fractions}) for limit, step in steps]
    usable = [ranks for ranks in itertools.product(*axes) if candidate.usable(ranks, multiple_of) == ranks]
    return [ranks for ranks in usable if candidate.costs(ranks)["macs"] < dense["macs"]]


def _times(candidate, choices, size, table):
    chains = {ranks: candidate.stages(ranks) for ranks in choices}
    keys = {ranks: _key(chain, size, candidate.padding) for ranks, chain in chains.items()}
    missing = [ranks for ranks in choices if table.get(keys[ranks]) is None]
    if missing:
        shape = size, candidate.padding, table.quantization
        dense = litert.chain_to_litert(chains[None], *shape)
        for part in _parts([ranks for ranks in missing if ranks is not None], candidate, size):
            contents = [litert.chain_to_litert(chains[ranks], *shape) for ranks in part]
            # The dense layer takes part each time: it is what the others are compared with.
            seconds, *_ = quartiles = measure([dense, *contents], table.threads)
            table.note(quartiles)
            scale = (table.get(keys[None]) or seconds[0]) / seconds[0]
            measured = zip([None, *part], seconds)
            table.add({keys[ranks]: float(scale * value) for ranks, value in measured})
    return {ranks: table.get(keys[ranks]) for ranks in choices}


def _parts(choices, candidate, size):
    """The choices in parts whose weights and activations fit into memory together; one empty part for none."""
    parts, room = [[]], _MEMORY
    for ranks in choices:
        costs = chain_costs(candidate.stages(ranks), size, candidate.padding)
        needed = 8 * (costs.params + costs.activations)  # float32, in the file and as the runtime packs it
        if needed > room and parts[-1]:
            parts, room = [*parts, []], _MEMORY
        parts[-1].append(ranks)
        room -= needed
    return parts


def _key(stages, size, padding):
    """What decides the time of a chain, as text."""
    fields = [dataclasses.astuple(stage) for stage in stages]
    # Without the number of groups where it is one, as in tables from before there were any.
    return json.dumps([list(size), padding, [one[:-1] if one[-1] == 1 else one for one in fields]])


def measure(contents: Sequence[bytes], threads: int) -> np.ndarray:
    """Seconds of one inference of each of several LiteRT models (bytes): the three quartiles of interleaved runs."""
    runners = [litert.Runner(content, threads) for content in contents]
    one_round = float(litert.time_interleaved(runners, runs=1, warmup=1).sum())
    rounds = int(np.clip(math.ceil(_SECONDS / one_round), *_ROUNDS))
    return np.quantile(litert.time_interleaved(runners, rounds, warmup=1), (0.25, 0.5, 0.75), axis=1)


def timed(
    model: keras.Model,
    budget: Budget,
    part: float,
    multiple_of: int,
    threads: int,
    input_shape: Sequence[int] | None = None,
    quantization: Quantization | None = None,
) -> tuple[list[Any], Budget]:
    """The candidates of a budget with their times, and the budget with a limit of the model's time.

    Args:
        model: the dense Keras model.
        budget: a `Budget` of counted resources.
        part: float, the part of the dense model's time that may be spent.
        multiple_of: step of the rank grid.
        threads: int, CPU threads of the interpreter.
        input_shape: shape of one example, for a model that leaves sizes open.
        quantization: one of `litert.QUANTIZATIONS`: what the files are that are timed.

    Returns:
        `(candidates, budget)`.

    Raises:
        ValueError: for another backend than TensorFlow, a model that LiteRT cannot take or that has several inputs or
            outputs, threads below 1, or an unknown quantisation.
        ImportError: without the `litert` extra.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"Latency is measured on LiteRT, which needs the TensorFlow backend. "
            f"Received: backend {keras.backend.backend()!r}"
        )
    int_in(threads, "[1, inf)", "threads")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "Times are measured of models with one input and one output. "
            f"Received: {model.name!r} with {len(model.inputs)} and {len(model.outputs)}"
        )
    one_of(quantization, litert.QUANTIZATIONS, "quantization")
    litert.require_runtime()
    ends = litert.interface(model, input_shape)
    # Times do not depend on them; whole numbers may be indices, which are from 0 on.
    examples = np.abs(np.random.default_rng(0).standard_normal((2, *ends.inputs[litert.INPUT]), "float32"))
    examples = examples.astype(ends.dtypes[litert.INPUT])
    # Ahead of the times of layers: whatever LiteRT cannot take is told before these minutes.
    content = litert.model_to_litert(model, quantization, examples, "float32", input_shape)
    table = TimeTable(int(threads), quantization)
    candidates = time_candidates(
        budget.candidates, multiple_of, table, functools.partial(progress_bar, told="timing layers")
    )
    if table.scatter > _SCATTER:
        warnings.warn(
            f"Single runs of the timed layers scatter by {table.scatter:.0%} of their median, so other ranks may be "
            f"faster: stop other programs, remove {table.path!r}, and plan again",
            stacklevel=4,  # the caller of `plan_ranks`
        )
    total = _total(content, candidates, table)
    dense = sum(candidate.dense.times[None] for candidate in candidates)
    if dense > total:
        # Alone, layers take a little longer than in the model; then all of them are shortened alike.
        candidates = [_scaled(candidate, total / dense) for candidate in candidates]
    totals, fractions = {**budget.totals, "latency": total}, {**budget.fractions, "latency": part}
    return candidates, Budget(candidates, totals, fractions)


def _scaled(candidate, factor):
    """The same with all times multiplied."""
    if isinstance(candidate, MixedCandidate):
        return MixedCandidate({name: _scaled(one, factor) for name, one in candidate.by_format.items()})
    return dataclasses.replace(candidate, times={ranks: factor * time for ranks, time in candidate.times.items()})


def _total(content, candidates, table):
    """Seconds of the whole dense model, on a machine as busy as when its layers were timed."""
    if not candidates:
        return float(measure([content], table.threads)[0, 0])
    slowest = max((candidate.dense for candidate in candidates), key=lambda candidate: candidate.times[None])
    (size, _), *_ = slowest.sizes
    stages = slowest.stages(None)
    layer = litert.chain_to_litert(stages, size, slowest.padding, table.quantization)
    # The times of layers may be old. The slowest of them takes turns with the model, and says what has changed.
    whole, now = measure([content, layer], table.threads)[0]
    return float(whole * table.get(_key(stages, size, slowest.padding)) / now)


@method(
    "latency",
    measures_time=True,
    weighs_kernels=True,
    kept_dense="faster dense, or the budget is better spent on it whole",
)
def plan_latency(problem: Problem) -> Solution:
    """As the method `energy`, with measured time in the place of MACs; only ranks that are faster than dense."""
    settings = problem.multiple_of, problem.threads, problem.input_shape, problem.quantization
    candidates, budget = timed(problem.model, problem.budget, problem.fractions["latency"], *settings)
    chosen = energy.solve(candidates, budget, problem.multiple_of, True, ["latency"])
    return Solution(chosen, candidates, {"dense": budget.totals["latency"], "planned": budget.spent(chosen)["latency"]})
