"""`RankPlan`: the format and ranks of each layer, as a mapping that can be printed, edited, saved and loaded."""

import collections.abc
import typing
from collections.abc import Iterable, Iterator, Mapping

from elrt_keras import formats
from elrt_keras.atomic import Path
from elrt_keras.formats.base import Ranks
from elrt_keras.graph.paths import matching
from elrt_keras.ranks import plan_file
from elrt_keras.terminal.tables import render_table

# Columns of the table by the keys of a layer's costs. Measured times are in seconds; the table shows milliseconds.
_COLUMNS = {
    "macs": "MACs",
    "planned_macs": "planned MACs",
    "params": "params",
    "planned_params": "planned params",
}
_MEASURED = {"latency": "ms", "planned_latency": "planned ms"}


class LayerPlan(typing.NamedTuple):
    """Entry of one layer: a format name and its ranks, or `("dense", None)`.

    Attributes:
        format: name of a format, or `"dense"`.
        ranks: tuple with one number per rank of the format: an int, or a float for a fraction of the full rank; `None`
            for a dense layer.

    Example:

    >>> elrt_keras.LayerPlan("tucker2", (8, 12)).is_dense
    False
    """

    format: str
    ranks: tuple[int | float, ...] | None

    @property
    def is_dense(self) -> bool:
        """Reports if the layer stays dense."""
        return self.format == "dense"


DENSE = LayerPlan("dense", None)

# Values that may be set as the entry of a layer.
Entry: typing.TypeAlias = LayerPlan | tuple[str, Ranks] | typing.Literal["dense"] | None


class RankPlan(collections.abc.MutableMapping[str, LayerPlan]):
    """Mapping from layer name to `LayerPlan(format, ranks)`, in the order of the model.

    A layer inside a nested model has the key `"nested_model/layer"`. Values may be set as a `LayerPlan`, a tuple
    `(format, ranks)`, or `None` / `"dense"`; they are checked when they are set. `print(plan)` shows a table.

    Args:
        entries: mapping of layer names to values as above.
        reasons: mapping of layer names to the reasons why the planner left these layers dense.
        costs: mapping of layer names to `{"kernel_shape", "macs", "params", "planned_macs", "planned_params"}`, filled
            by `plan_ranks` for the table. Optional keys: `"latency"` and `"planned_latency"`, measured seconds;
            `"groups"`, if there are several; `"kept"`, the part of the kernel's squared norm that the ranks keep;
            `"rivals"`, the parts that other formats would keep at no higher cost; `"beside"`, the layer's speed-up in
            other kinds of files, such as `{"int8": 1.4}`. An edited entry loses its costs, and the plan its `latency`.
        latency: `{"dense", "planned"}`, measured and predicted seconds of the whole model, or `None`.

    Raises:
        ValueError: for an entry with an unknown format or invalid ranks, also if it is set later.

    Example:

    >>> plan = elrt_keras.RankPlan({"conv1": ("tucker2", (8, 12)), "conv2": None})
    >>> plan["conv1"].ranks
    (8, 12)
    >>> plan["conv2"].is_dense
    True
    """

    def __init__(
        self,
        entries: Mapping[str, Entry] | Iterable[tuple[str, Entry]] = (),
        reasons: Mapping[str, str] | None = None,
        costs: Mapping[str, dict[str, typing.Any]] | None = None,
        latency: dict[str, float] | None = None,
    ):
        self._entries: dict[str, LayerPlan] = {}
        self.reasons: dict[str, str] = dict(reasons or {})
        self.costs: dict[str, dict[str, typing.Any]] = dict(costs or {})
        self.latency: dict[str, float] | None = latency
        try:
            named = None if isinstance(entries, str) else dict(entries)
        except (TypeError, ValueError):
            named = None
        if named is None:
            raise ValueError(
                "Expected a RankPlan or a mapping from layer names to entries; RankPlan.load reads files. "
                f"Received: entries={entries!r}"
            )
        for name, value in named.items():
            self._entries[name] = _validated(name, value)

    def __getitem__(self, name: str) -> LayerPlan:
        return self._entries[name]

    def __setitem__(self, name: str, value: Entry) -> None:
        self._entries[name] = _validated(name, value)
        self._forget(name)

    def __delitem__(self, name: str) -> None:
        del self._entries[name]
        self._forget(name)

    def _forget(self, name):
        self.reasons.pop(name, None)
        self.costs.pop(name, None)
        self.latency = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def copy(self) -> typing.Self:
        """Copies the plan with its entries, reasons and costs."""
        return type(self)(self._entries, self.reasons, self.costs, self.latency)

    __copy__ = copy

    def factorized(self) -> dict[str, LayerPlan]:
        """Returns the entries that are not dense, as a plain dict."""
        return {name: entry for name, entry in self.items() if not entry.is_dense}

    def matching(self, pattern: str) -> list[str]:
        """Lists the layer names that match a shell-style pattern. A name that is in the plan matches only itself."""
        return matching(self, pattern)

    def save(self, path: Path) -> None:
        """Writes the plan as JSON, atomically.

        Args:
            path: file path.

        Raises:
            OSError: if the file cannot be written; an old file stays.
        """
        # Entries that are not dense have ranks, but type checkers do not see that.
        entries = {
            name: "dense" if entry.is_dense else {"format": entry.format, "ranks": list(entry.ranks)}  # pyright: ignore
            for name, entry in self.items()
        }
        document = {"layers": entries, "reasons": self.reasons, "costs": self.costs}
        plan_file.write(path, document if self.latency is None else {**document, "latency": self.latency})

    @classmethod
    def load(cls, path: Path) -> typing.Self:
        """Reads a plan from JSON.

        Raises:
            ValueError: if the file is missing, is no JSON, or is no rank plan; the message names the file.
        """
        document = plan_file.read(path)
        entries = {
            name: None if value == "dense" else (value["format"], value["ranks"])
            for name, value in document["layers"].items()
        }
        try:
            return cls(entries, document["reasons"], document["costs"], document["latency"] or None)
        except ValueError as error:
            raise ValueError(f"Expected a rank plan at {str(path)!r}. Received: {error}") from error

    def __str__(self) -> str:
        rows = []
        timed = any("latency" in costs for costs in self.costs.values())
        columns = _COLUMNS | _MEASURED if timed else _COLUMNS
        for name, entry in self.items():
            costs = self.costs.get(name, {})
            kernel = "×".join(map(str, costs.get("kernel_shape", ())))
            kernel += f", {costs['groups']} groups" if "groups" in costs else ""
            ranks = self.reasons.get(name, "") if entry.is_dense else "×".join(map(str, entry.ranks))  # pyright: ignore
            rows.append((name, kernel, entry.format, ranks, *_before_after(costs, columns)))
        header = ["layer", "kernel", "format", "ranks", *columns.values()]
        if any("kept" in costs for costs in self.costs.values()):
            header.append("kept")
            rows = [(*row, _kept(self.costs.get(row[0], {}))) for row in rows]
        if self.costs:
            totals = {key: sum(costs.get(key, 0) for costs in self.costs.values()) for key in columns}
            total = ("total of these", "", "", "", *_before_after(totals, columns))
            rows.append((*total, *[""] * (len(header) - len(total))))
            if timed:
                header.append("faster, of fewer MACs")
                of = [self.costs.get(row[0], {}) for row in rows[:-1]]
                rows = [(*row, _gain(costs)) for row, costs in zip(rows, [*of, totals])]
                for kind in dict.fromkeys(kind for costs in of for kind in costs.get("beside", {})):
                    header.append(f"faster in {kind}")
                    cells = [costs.get("beside", {}).get(kind) for costs in of]
                    cells = ["" if value is None else f"{value:.2f}×" for value in (*cells, None)]
                    rows = [(*row, cell) for row, cell in zip(rows, cells)]
        return render_table(header, rows, last_is_total=bool(self.costs))

    def __repr__(self) -> str:
        return f"RankPlan({self._entries!r})"


def _kept(costs):
    """Text of the part of its kernel that a layer keeps, followed by that of the best other format."""
    if "kept" not in costs:
        return ""
    rivals = costs.get("rivals", {})
    best = max(rivals, key=rivals.get, default=None)
    return f"{costs['kept']:.0%}" + ("" if best is None else f" ({best} {rivals[best]:.0%})")


def _gain(costs):
    """Text of the speed-up and the reduction of the MACs, such as `"1.8× of 2.5×"`; empty without times."""
    if not costs.get("planned_latency") or not costs.get("planned_macs"):
        return ""
    faster, fewer = (costs[key] / costs[f"planned_{key}"] for key in ("latency", "macs"))
    return f"{faster:.2f}× of {fewer:.2f}×"


def _before_after(costs, columns):
    def cell(key):
        if key not in costs:
            return ""
        return f"{1e3 * costs[key]:.3f}" if key in _MEASURED else f"{costs[key]:,}"

    return tuple(map(cell, columns))


def _validated(name, value):
    if value is None or value == "dense" or value == DENSE:
        return DENSE
    if not (isinstance(value, (tuple, list)) and len(value) == 2):
        raise ValueError(
            f"Expected (format, ranks) as entry, or None for a dense layer. Received: plan[{name!r}]={value!r}"
        )
    try:
        layer_format = formats.get(value[0])
        ranks = layer_format.validate_ranks(value[1])
    except (ValueError, TypeError) as error:
        raise ValueError(f"Layer {name!r} of the plan: {error}") from error
    ranks = ranks if isinstance(ranks, tuple) else (ranks,) * len(layer_format.rank_names)
    return LayerPlan(layer_format.name, ranks)
