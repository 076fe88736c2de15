"""Names of the compared networks, and timing of functions and files in turns. Does not load Keras."""

import statistics
import time

import numpy as np

from benchmarks.measure.runner import Flag

# Measured builders, and the batch size for the training of each.
BATCHES = {"resnet20": 128, "resnet56": 128, "vgg16_cifar": 128, "resnet18": 16, "resnet50": 16}
BUDGETS = (0.5, 0.4, 0.25)
_LOW_RANK = tuple(f"low_rank_{budget}" for budget in BUDGETS)
_OTHERS = tuple(f"{kind}_0.4" for kind in ("without_penalty", "stock_layers", "recomputed"))
_THIN = tuple(f"thin_{budget}" for budget in BUDGETS)
NAMES = ("dense", *_LOW_RANK, *_OTHERS, "unfused_1.0", "unfused_0.4", *_THIN)
# Compared formats, with `auto`, and the part of the dense MACs that all of them have on each network.
FORMATS = ("tucker2", "spatial_svd", "cp", "svd", "tensor_train", "auto")
_BUDGETS_OF_FORMATS = {"resnet20": 0.28, "resnet56": 0.38, "vgg16_cifar": 0.14, "resnet18": 0.4, "resnet50": 0.4}
# Formats that are measured with tuned training too, and the goals of tuning.
_TUNED = ("tucker2", "spatial_svd", "cp")
TUNINGS = {"tuned": "time", "frugal": "memory"}
_TOLD_EVERY_S = 10


def variants_flag(*default):
    """Makes the flag `--variants` with these defaults."""
    return Flag(
        default,
        "Variants that take turns, the base of the comparison first. `formats`: every format at equal MACs; `tuned`: "
        "some formats, each also tuned for time.",
    )


def variants_of(settings):
    """Returns the variants that a measurement's flag names for its model."""
    part, names = _BUDGETS_OF_FORMATS[settings.model], []
    for variant in settings.variants:
        if variant == "formats":
            names += ["dense", *(f"{name}_{part}" for name in FORMATS)]
        elif variant == "tuned":
            names += ["dense", *(f"{kind}{name}_{part}" for name in _TUNED for kind in ("", "tuned_"))]
        else:
            names.append(variant)
    return tuple(dict.fromkeys(names))


def tuning_of(variant):
    """Returns the goal of a variant's tuning and the variant without it: `(None, variant)` for most."""
    kind, _, rest = variant.partition("_")
    if kind not in TUNINGS:
        return None, variant
    return TUNINGS[kind], rest if "_" in rest else f"low_rank_{rest}"


def builders(*default):
    """Makes the flag `--models` of networks in `BATCHES`; by default all."""
    return Flag(default or tuple(BATCHES), "Networks, each in a separate process.", choices=tuple(BATCHES))


def in_order(results):
    """Returns the results `{builder: result}` of the measured models as a list, in the order of `BATCHES`."""
    return [results[name] for name in BATCHES if name in results]


def interleaved(functions, rounds, title, per=1):
    """Times functions in turns, in another order each round: `{name: [seconds / per, for each round]}`.

    Prints `title` and the progress, then the speed-up of the others against the first.
    """
    names, order, last_printed = list(functions), np.random.default_rng(0), time.monotonic()
    seconds = {name: [] for name in names}
    for number in range(1, rounds + 1):
        for name in (names[index] for index in order.permutation(len(names))):
            start = time.perf_counter()
            functions[name]()
            seconds[name].append(round((time.perf_counter() - start) / per, 7))
        if time.monotonic() - last_printed > _TOLD_EVERY_S:
            last_printed = time.monotonic()
            print(f"{title}: round {number}/{rounds}", flush=True)
    _tell(title, seconds)
    return seconds


def litert_seconds(contents, threads, runs, title):
    """Times inference of LiteRT files in turns: `{name: [seconds of each run]}`; `contents`: bytes by name."""
    from elrt_keras import litert

    times = litert.time_interleaved([litert.Runner(content, threads) for content in contents.values()], runs)
    seconds = {name: np.round(row, 7).tolist() for name, row in zip(contents, times)}
    _tell(title, seconds)
    return seconds


def _tell(title, seconds):
    base, *others = seconds
    told = [f"{base} {1e3 * statistics.median(seconds[base]):.3f} ms"]
    for name in others:
        told.append(f"{name} {statistics.median(a / b for a, b in zip(seconds[base], seconds[name])):.2f}x")
    print(f"{title}: {', '.join(told)}", flush=True)


def ratios(seconds, base):
    """Returns `{name: (median, lower quartile, upper quartile)}` of the speed-ups against `base`, round by round."""
    quartiles = {n: np.array(seconds[base]) / np.array(values) for n, values in seconds.items()}
    quartiles = {name: statistics.quantiles(values, n=4) for name, values in quartiles.items()}
    return {name: (middle, low, high) for name, (low, middle, high) in quartiles.items()}
