"""Tables of LiteRT files and of the input pipeline."""

import statistics
from functools import partial

from benchmarks.pages.measured import of_networks, one, ratios, read
from benchmarks.pages.tables import cells, label, medians, section, spread
from elrt_keras.launch import latency as files

_UNLIKE = 1.5  # least ratio of times of one network that shows different machines


def inference(start=""):
    """Makes the table of speed-ups of one image, from the results whose file names begin with `start`."""

    def rows(result):
        for row in result["rows"]:
            faster, told = ratios(row["seconds"], "dense"), []
            for variant in [name for name in faster if name != "dense"]:
                reduction, times = result["macs"]["dense"] / result["macs"][variant], faster[variant][0]
                told.append(f"{times:.2f}× of {reduction:.2f}× ({times / reduction:.2f})")
            dense = f"{1e3 * medians(row['seconds'])['dense']:.2f}"
            yield cells(result["model"], row["quantization"], row["threads"], dense, *told)

    results = of_networks("inference", start)
    variants = [label(name) for result in results[:1] for name in result["rows"][0]["seconds"] if name != "dense"]
    return section(results, cells("model", "type", "threads", "dense, ms", *variants), rows)


def latency():
    """Makes the table of predicted and measured speed-ups; `unlike` names networks whose dense times differ."""

    def place(result):
        return _kind(result), result["model"], result["threads"], -result["max_latency"]

    results = sorted(read("latency").values(), key=place)
    header = "model | type | max_latency | threads | dense, ms | low-rank, ms | speed-up, predicted | measured"
    header += " | uniform ranks | MACs reduction | measured / MACs | planning, s"
    return section(results, header, _latency_row, unlike=unlike(results))


def _kind(result):
    return result.get("quantization", "float32")  # the first results have no such key


def _latency_row(result):
    reduction, faster = result["macs_reduction"], result["measured_speedup"]
    times = f"{spread(result['dense_ms'], 2)} | {spread(result['low_rank_ms'], 2)}"
    speedups = f"{result['predicted_speedup']:.2f}× | {spread(faster, 2)}×"
    uniform = f"{spread(result['uniform_speedup'], 2)}×" if "uniform_speedup" in result else ""
    rest = f"{reduction:.2f}× | {statistics.median(faster) / reduction:.2f} | {result['planning_seconds']:.0f}"
    place = (result["model"], _kind(result), result["max_latency"], result["threads"])
    return [cells(*place, times, speedups, uniform, rest)]


def unlike(results):
    """Lists dense times of one network that differ so much that the processors must have been different."""
    times = {}
    for result in results:
        place = f"{result['model']}, {_kind(result)}, {result['threads']}"
        times.setdefault(place, []).append(statistics.median(result["dense_ms"]))
    found = {place: values for place, values in times.items() if max(values) > _UNLIKE * min(values)}
    return [
        f"{place.rpartition(', ')[0]}: {' and '.join(f'{value:.2f}' for value in values)} ms"
        for place, values in found.items()
    ]


def quantization():
    """Makes the table of accuracy, latency and size of every kind of LiteRT file."""

    def rows(result):
        found = result["rows"]
        for name, row in zip(files.short_names([row["path"] for row in found]), found):
            times = f"{row['median_ms']:.3f} ({row['low_ms']:.3f}–{row['high_ms']:.3f})"
            faster = f"{found[0]['median_ms'] / row['median_ms']:.2f}×"
            memory = f"{row['size_bytes']:,} | {row['peak_memory_bytes'] / 2**20:.1f} MiB"
            yield cells(name, f"{row['accuracy']:.2%}", times, faster, memory)

    results = [{**result, "command": "\n".join(result["commands"])} for result in one("quantization", "cifar10")]
    header = "file | test accuracy | median ms (10–90 %) | speed-up | bytes | peak memory"
    return section(results, header, rows, picture=results and partial(files.plot, results[0]["rows"]))


def throughput():
    """Makes the table of images per second of input pipelines and of training steps."""

    def row(result):
        shape = "×".join(map(str, result["image_shape"][:2]))
        step = f"{result['model']} {result['format']}, {shape}, batch {result['batch_size']} | {spread(result['step'])}"
        pipeline = (result["note"], result["augmentation"], spread(result["pipeline"]))
        return [cells(*pipeline, step, f"{result['ratio']:.1f}×")]

    header = "data | augmentation | pipeline, images/s | training step | step, images/s | ratio"
    return section(list(read("throughput").values()), header, row)
