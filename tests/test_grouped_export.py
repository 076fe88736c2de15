"""Grouped convolutions in the exports that need TensorFlow: LiteRT, its measured times, and ONNX."""

import collections

import keras
import numpy as np
import pytest
from common import GROUPED_PLAN, grouped_model, model_of, random_array, to_numpy

import elrt_keras as elrt
from elrt_keras.layers.factorized_conv import FactorizedConv

layers = keras.layers
pytestmark = pytest.mark.tensorflow


@pytest.mark.thorough
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_export_of_grouped_layers(quantization, tmp_path):
    pytest.importorskip("ai_edge_litert")
    dense = grouped_model()
    for layer in dense.layers:  # of a size that int8 can hold
        layer.set_weights([0.1 * weight for weight in layer.get_weights()])
    low = elrt.factorize(dense, GROUPED_PLAN)
    images = random_array(16, 12, 12, 3)
    report = elrt.export.to_litert(low, tmp_path / "model.tflite", quantization, images)
    assert report.operators["CONV_2D"] + report.operators.get("DEPTHWISE_CONV_2D", 0) == 7
    assert report.rms_difference < (1e-5 if quantization is None else 0.1)


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (lambda: elrt.factorize(grouped_model(), GROUPED_PLAN), (12, 12, 3)),
        (grouped_model, (12, 12, 3)),
        (
            lambda: model_of(
                layers.Conv1D(8, 3, 2, padding="causal", groups=2, activation="relu"),
                elrt.layers.Tucker2Conv1D(12, 3, 0.5, groups=4, padding="causal", dilation_rate=2, execution="chain"),
                shape=(16, 6),
            ),
            (16, 6),
        ),
        (
            lambda: model_of(
                layers.Conv2D(8, 3, groups=2, data_format="channels_first", use_bias=False),
                elrt.layers.CPConv2D(8, 3, 2, groups=2, strides=2, padding="same", data_format="channels_first"),
                shape=(6, 12, 12),
            ),
            (6, 12, 12),
        ),
        (
            lambda: model_of(
                elrt.layers.Tucker2Conv3D(8, 3, 1, groups=2, execution="chain", name="conv", activation="tanh"),
                layers.Conv3D(8, 1, name="conv_core"),  # the name of a layer of the chain
                shape=(5, 5, 5, 4),
            ),
            (5, 5, 5, 4),
        ),
    ],
    ids=["low_rank", "stock", "one_dimensional", "channels_first", "three_dimensional"],
)
def test_onnx_has_grouped_convolutions(made, shape, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model, images = made(), random_array(4, *shape)
    report = elrt.export.to_onnx(model, tmp_path / "model.onnx", evaluation_data=images)
    assert report.max_difference <= 1e-4 * np.abs(to_numpy(model(images))).max()
    nodes = [node for node in onnx.load(report.path).graph.node if node.op_type == "Conv"]
    found = [attribute.i for node in nodes for attribute in node.attribute if attribute.name == "group"]
    stock = [layer.stock_layers() if isinstance(layer, FactorizedConv) else [(layer, ())] for layer in model.layers]
    expected = [layer.groups for chain in stock for layer, _ in chain if getattr(layer, "groups", 1) > 1]
    expected *= len(shape) < 4  # with three dimensions the groups are split
    assert not collections.Counter(expected) - collections.Counter(found)


class Unknown(layers.Layer):
    """A layer that cannot be rebuilt: its configuration lacks an argument. Its `groups` is not a number."""

    groups = None

    def __init__(self, by):
        super().__init__()
        self.by = by

    def call(self, x):
        return x + self.by


def test_onnx_of_models_that_cannot_be_rebuilt(tmp_path):
    pytest.importorskip("onnxruntime")
    model = model_of(layers.Conv2D(8, 3), layers.GroupNormalization(4), Unknown(0.5), shape=(8, 8, 4))
    assert elrt.export.to_onnx(model, tmp_path / "model.onnx").max_difference < 1e-4
    frames = layers.TimeDistributed(elrt.layers.Tucker2Conv2D(8, 3, 2, padding="same"))
    grouped = elrt.layers.Tucker2Conv2D(8, 3, 2, groups=2, execution="chain")
    model = model_of(frames, layers.Reshape((24, 8, 8)), grouped, shape=(3, 8, 8, 4))
    assert elrt.export.to_onnx(model, tmp_path / "frames.onnx", input_range=(0, 1)).max_difference < 1e-4


def test_what_litert_cannot_take_is_told_before_layers_are_timed(tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    monkeypatch.setenv("ELRT_CACHE_DIR", str(tmp_path))
    model = model_of(layers.Conv3D(32, 1, name="a"), layers.Conv3D(64, 3, groups=2), shape=(6, 6, 6, 4))
    with pytest.raises(ValueError, match="Expected a model that LiteRT can take"):
        elrt.plan_ranks(model, max_latency=0.9, exclude=[])
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_ranks_of_grouped_layers_by_measured_time(tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    monkeypatch.setenv("ELRT_CACHE_DIR", str(tmp_path))
    model = model_of(
        layers.Conv2D(64, 3, padding="same", name="stem"),
        layers.Conv2D(256, 3, padding="same", groups=2, name="grouped"),
        shape=(16, 16, 3),
    )
    plan = elrt.plan_ranks(model, max_latency=0.7, method="latency", exclude="stem")
    assert plan["grouped"].ranks[0] <= 32 and plan["grouped"].ranks[1] <= 128
    assert plan.costs["grouped"]["planned_latency"] < plan.costs["grouped"]["latency"]
