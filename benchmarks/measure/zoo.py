"""Check of all CNNs of keras.applications, and models of keras-hub: made low-rank and dense again."""

import functools
import inspect
import json
import os
import pathlib
import tempfile
import time

from benchmarks.measure.runner import measurement

_PERTURBATION = 1e-7  # about one unit in the last place of float32
# Classes and arguments of keras-hub models: public configurations, and tasks with small inputs.
_HUB = pathlib.Path(__file__).with_name("hub.json")


def _builders():
    """Returns `{name: function that builds the model}`, with random weights; keras-hub only if it is installed."""
    import keras

    stock = {name: build for name, build in vars(keras.applications).items() if inspect.isfunction(build)}
    builders_by_name = {name: functools.partial(_application, name, build) for name, build in stock.items()}
    try:
        import keras_hub.models as hub
    except ImportError:
        return builders_by_name
    specs = json.loads(_HUB.read_text(encoding="utf-8"))
    return builders_by_name | {name: functools.partial(_of_hub, hub, spec) for name, spec in specs.items()}


def _application(name, build):
    options = {"weights": None}
    if name.startswith("MobileNetV3"):  # its input size is variable by default
        options["input_shape"] = (224, 224, 3)
    if "classifier_activation" in inspect.signature(build).parameters:
        options["classifier_activation"] = None  # logits show small differences of outputs
    return build(**options)


def _of_hub(hub, spec):
    if not isinstance(spec, dict):
        return spec
    made = {key: _of_hub(hub, value) for key, value in spec.items() if key != "class"}
    return getattr(hub, spec["class"])(**made)


def _names():
    return tuple(_builders())


@measurement("zoo", models=_names, limit_s=1800)
def zoo(settings):
    """Makes every CNN of keras.applications, and models of keras-hub, low-rank and dense again.

      python -m benchmarks.measure zoo --missing
      python -m benchmarks.measure zoo --models=ResNet50,VGG16

    Each model has random weights and its default input size. Measures planning times and the remaining part of the MACs
    at the smallest ranks and at a budget of one half. Then runs, saves, reloads, expands and merges the model at half
    the MACs (or the smallest ranks), and records the largest relative difference of the outputs.
    """
    import keras
    import numpy as np

    import elrt_keras as elrt

    keras.utils.set_random_seed(0)
    model = _builders()[settings.model]()
    images = np.random.default_rng(0).uniform(0, 255, (1, *model.input_shape[1:])).astype("float32")

    def outputs(network, scale=1.0):
        flat = keras.tree.flatten(network(images * np.float32(scale), training=False))
        return np.concatenate([np.ravel(keras.ops.convert_to_numpy(tensor)) for tensor in flat])

    row, plan = _planned(model)
    low = elrt.factorize(model, plan)
    row["planned_macs"] = elrt.count_costs(low).macs / row["macs"]
    expected = outputs(low)
    scale = np.abs(expected).max()
    row["finite"] = bool(np.isfinite(expected).all() and scale > 0)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.keras")
        low.save(path)
        twins = {"reloaded": keras.models.load_model(path), "expanded": elrt.expand(low), "merged": elrt.merge(low)}
    for kind, twin in twins.items():
        row[f"{kind}_difference"] = float(np.abs(outputs(twin) - expected).max() / scale)
    # Measure the effect of rounding alone: with random weights, some deep models amplify the last bit of a pixel.
    row["perturbed_difference"] = float(np.abs(outputs(low, 1 + _PERTURBATION) - expected).max() / scale)
    return {"model": settings.model, **row}


def _planned(model):
    """Plans a model; returns the results with times, and the plan for half the MACs or the fewest possible."""
    import elrt_keras as elrt

    dense, smallest = elrt.count_costs(model), elrt.plan_ranks(model, fraction=1e-9)
    row = {"input": list(model.input_shape[1:]), "macs": dense.macs, "params": dense.params}
    row |= {"layers": len(smallest), "factorized_layers": len(smallest.factorized())}
    row["kept_dense"] = sorted(set(smallest.reasons.values()))
    for resource in ("macs", "params"):
        saved = sum(costs[resource] - costs[f"planned_{resource}"] for costs in smallest.costs.values())
        row[f"smallest_{resource}"] = 1 - saved / row[resource]
    budget = max(0.5, row["smallest_macs"] + 1e-6)
    plans = {}
    for method in ("uniform", "energy"):
        start = time.perf_counter()
        plans[method] = elrt.plan_ranks(model, max_macs=budget, method=method)
        row[f"{method}_seconds"] = time.perf_counter() - start
    return row, plans["uniform"]
