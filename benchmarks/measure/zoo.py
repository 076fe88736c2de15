"""Takes every CNN of keras.applications (and models of keras-hub) low-rank and back, and writes down what came out.

  python -m benchmarks.zoo                      # all that are not done yet; one process per model
  python -m benchmarks.zoo --models=ResNet50,VGG16

For each model, with random weights, at its default input size: the part of the MACs that is left at the smallest ranks
and at a budget of one half; planning times; then the model at half the MACs (or the smallest ranks) is run, saved,
reloaded, expanded and merged, and the largest relative difference of the outputs is kept. One JSON per model in
`benchmarks/results/zoo/`.
"""

import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from benchmarks.measure import machine

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "zoo"
_TIMEOUT_S = 1800

FLAGS = flags.FLAGS


def applications():
    """The builders of keras.applications by name."""
    import keras

    return {name: build for name, build in vars(keras.applications).items() if inspect.isfunction(build)}


def hub_backbones():
    """Backbones of keras-hub from public configurations, by name; empty where keras-hub is not installed."""
    try:
        import keras_hub.models as hub
    except ImportError:
        return {}
    shape = (224, 224, 3)

    def resnet(blocks, kind, filters=(64, 128, 256, 512), **kwargs):
        return lambda: hub.ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[7],
            stackwise_num_filters=list(filters),
            stackwise_num_blocks=list(blocks),
            stackwise_num_strides=[1, 2, 2, 2],
            block_type=kind,
            image_shape=shape,
            **kwargs,
        )

    def vgg(repeats):
        return lambda: hub.VGGBackbone(
            stackwise_num_repeats=list(repeats), stackwise_num_filters=[64, 128, 256, 512, 512], image_shape=shape
        )

    def mobilenet():
        # MobileNetV3-Small's stages, as in the class's own example.
        return hub.MobileNetBackbone(
            stackwise_expansion=[[40, 56], [64, 144, 144], [72, 72], [144, 288, 288]],
            stackwise_num_blocks=[2, 3, 2, 3],
            stackwise_num_filters=[[16, 16], [24, 24, 24], [24, 24], [48, 48, 48]],
            stackwise_kernel_size=[[3, 3], [5, 5, 5], [5, 5], [5, 5, 5]],
            stackwise_num_strides=[[2, 1], [2, 1, 1], [1, 1], [2, 1, 1]],
            stackwise_se_ratio=[[None, None], [0.25, 0.25, 0.25], [0.3, 0.3], [0.3, 0.25, 0.25]],
            stackwise_activation=[["relu"] * 2, ["hard_swish"] * 3, ["hard_swish"] * 2, ["hard_swish"] * 3],
            stackwise_padding=[[1, 1], [2, 2, 2], [2, 2], [2, 2, 2]],
            output_num_filters=288,
            depthwise_filters=8,
            depthwise_stride=2,
            depthwise_residual=False,
            last_layer_filter=576,
            squeeze_and_excite=0.5,
            image_shape=shape,
        )

    return {
        "hub/ResNet18": resnet((2, 2, 2, 2), "basic_block"),
        "hub/ResNet50": resnet((3, 4, 6, 3), "bottleneck_block"),
        "hub/ResNet50V2": resnet((3, 4, 6, 3), "bottleneck_block", use_pre_activation=True),
        "hub/VGG16": vgg((2, 2, 3, 3, 3)),
        "hub/VGG19": vgg((2, 2, 4, 4, 4)),
        "hub/MobileNet": mobilenet,
    }


def hub_tasks():
    """Tasks of keras-hub on small inputs, by name; empty where keras-hub is not installed."""
    try:
        import keras_hub.models as hub
    except ImportError:
        return {}
    shape = (256, 256, 3)

    def resnet():
        return hub.ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[7],
            stackwise_num_filters=[64, 128, 256, 512],
            stackwise_num_blocks=[3, 4, 6, 3],
            stackwise_num_strides=[1, 2, 2, 2],
            block_type="bottleneck_block",
            image_shape=shape,
        )

    def classifier():
        return hub.ImageClassifier(resnet(), num_classes=1000)

    def deeplab():
        backbone = hub.DeepLabV3Backbone(
            image_encoder=resnet(),
            spatial_pyramid_pooling_key="P5",
            low_level_feature_key="P2",
            upsampling_size=8,
            dilation_rates=[6, 12, 18],
            image_shape=shape,
        )
        return hub.DeepLabV3ImageSegmenter(backbone, num_classes=21)

    def segformer():
        encoder = hub.MiTBackbone(  # MiT-B0
            layerwise_depths=[2, 2, 2, 2],
            num_layers=4,
            layerwise_num_heads=[1, 2, 5, 8],
            layerwise_sr_ratios=[8, 4, 2, 1],
            max_drop_path_rate=0.1,
            layerwise_patch_sizes=[7, 3, 3, 3],
            layerwise_strides=[4, 2, 2, 2],
            image_shape=shape,
            hidden_dims=[32, 64, 160, 256],
        )
        backbone = hub.SegFormerBackbone(image_encoder=encoder, projection_filters=256)
        return hub.SegFormerImageSegmenter(backbone, num_classes=150)

    def retinanet():
        backbone = hub.RetinaNetBackbone(
            image_encoder=resnet(), min_level=3, max_level=7, use_p5=False, image_shape=shape
        )
        return hub.RetinaNetObjectDetector(backbone, num_classes=80, bounding_box_format="xyxy")

    return {
        "hub/ImageClassifier(ResNet50)": classifier,
        "hub/DeepLabV3(ResNet50)": deeplab,
        "hub/SegFormer(MiT-B0)": segformer,
        "hub/RetinaNet(ResNet50)": retinanet,
    }


# About one unit in the last place of float32.
_PERTURBATION = 1e-7


def build(name):
    """A model with random weights; a classifier gives logits, so that outputs can be told apart."""
    if name.startswith("hub/"):
        return {**hub_backbones(), **hub_tasks()}[name]()
    builder = applications()[name]
    options = {"weights": None}
    if name.startswith("MobileNetV3"):  # leaves its input size open otherwise
        options["input_shape"] = (224, 224, 3)
    if "classifier_activation" in inspect.signature(builder).parameters:
        options["classifier_activation"] = None
    return builder(**options)


def measure(name):
    """One model's row."""
    import keras
    import numpy as np

    import elrt_keras as elrt

    def outputs(network, scale=1.0):
        flat = keras.tree.flatten(network(images * np.float32(scale), training=False))
        return np.concatenate([np.ravel(keras.ops.convert_to_numpy(tensor)) for tensor in flat])

    def part(network):
        return elrt.count_costs(network).macs / dense.macs

    keras.utils.set_random_seed(0)
    model = build(name)
    dense = elrt.count_costs(model)
    images = np.random.default_rng(0).uniform(0, 255, (1, *model.input_shape[1:])).astype("float32")
    row = {"model": name, "input": list(model.input_shape[1:]), "macs": dense.macs, "params": dense.params}
    smallest = elrt.plan_ranks(model, fraction=1e-9)
    row["layers"] = len(smallest)
    row["factorized_layers"] = len(smallest.factorized())
    row["kept_dense"] = sorted(set(smallest.reasons.values()))
    saved = {r: sum(c[r] - c[f"planned_{r}"] for c in smallest.costs.values()) for r in ("macs", "params")}
    row["smallest_macs"] = 1 - saved["macs"] / dense.macs
    row["smallest_params"] = 1 - saved["params"] / dense.params
    budget = max(0.5, row["smallest_macs"] + 1e-6)
    start = time.perf_counter()
    plan = elrt.plan_ranks(model, max_macs=budget)
    row["uniform_seconds"] = time.perf_counter() - start
    start = time.perf_counter()
    elrt.plan_ranks(model, max_macs=budget, method="energy")
    row["energy_seconds"] = time.perf_counter() - start
    low = elrt.factorize(model, plan)
    row["planned_macs"] = part(low)
    expected = outputs(low)
    scale = np.abs(expected).max()
    row["finite"] = bool(np.isfinite(expected).all() and scale > 0)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.keras")
        low.save(path)
        twins = {"reloaded": keras.models.load_model(path), "expanded": elrt.expand(low), "merged": elrt.merge(low)}
    for kind, twin in twins.items():
        row[f"{kind}_difference"] = float(np.abs(outputs(twin) - expected).max() / scale)
    # How far rounding alone may carry: with random weights some deep models amplify the last bit of a pixel.
    row["perturbed_difference"] = float(np.abs(outputs(low, 1 + _PERTURBATION) - expected).max() / scale)
    return row


def _path(name):
    return RESULTS / f"{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')}.json"


def main(argv):
    """Measures the models asked for, each in a process of its own."""
    if FLAGS.one:
        command = f"python -m benchmarks.zoo --models={FLAGS.one}"
        row = {**measure(FLAGS.one), "machine": machine.describe(), "command": command}
        _path(FLAGS.one).write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    names = FLAGS.models or [
        name for name in (*applications(), *hub_backbones(), *hub_tasks()) if not _path(name).exists()
    ]
    failed = []
    for index, name in enumerate(names):
        print(f"[{index + 1}/{len(names)}] {name}", flush=True)
        command = [sys.executable, "-m", "benchmarks.measure.zoo", f"--one={name}"]
        try:
            subprocess.run(command, check=True, timeout=_TIMEOUT_S)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"  failed: {error}", flush=True)
            failed.append(name)
    if failed:
        sys.exit(f"failed: {failed}")


if __name__ == "__main__":
    flags.DEFINE_list("models", None, "Only these models; default: all without a result.")
    flags.DEFINE_string("one", None, "Measure one model in this process.")
    app.run(main)
