"""Backbones of keras-hub, which subclass Functional and build on custom blocks: low-rank and back."""

import keras
import numpy as np
import pytest
from common import thorough_but, to_numpy

import elrt_keras as elrt

hub = pytest.importorskip("keras_hub").models
pytestmark = pytest.mark.tensorflow
SHAPE = (64, 64, 3)


def resnet():
    return hub.ResNetBackbone(
        input_conv_filters=[32],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[2, 2],
        stackwise_num_strides=[1, 2],
        block_type="bottleneck_block",
        image_shape=SHAPE,
    )


def vgg():
    return hub.VGGBackbone(stackwise_num_repeats=[2, 2], stackwise_num_filters=[32, 64], image_shape=SHAPE)


def mobilenet():
    return hub.MobileNetBackbone(
        stackwise_expansion=[[40, 56], [64, 144]],
        stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[16, 16], [24, 24]],
        stackwise_kernel_size=[[3, 3], [5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1, 1], [2, 2]],
        output_num_filters=96,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=128,
        squeeze_and_excite=0.5,
        image_shape=SHAPE,
    )


@pytest.mark.thorough
@pytest.mark.parametrize("build", thorough_but((resnet,), [resnet, vgg, mobilenet]))
def test_there_and_back(build, tmp_path):
    model = build()
    plan = elrt.plan_ranks(model, fraction=0.25)
    assert len(plan.factorized()) >= 3
    low = elrt.factorize(model, plan)
    assert elrt.count_costs(low).macs < elrt.count_costs(model).macs
    images = np.random.default_rng(0).uniform(0, 255, (1, *SHAPE)).astype("float32")
    outputs = to_numpy(low(images))
    low.save(tmp_path / "m.keras")
    twins = (keras.models.load_model(tmp_path / "m.keras"), elrt.expand(low), elrt.merge(low))
    for twin in twins:
        np.testing.assert_allclose(to_numpy(twin(images)), outputs, atol=1e-5 * np.abs(outputs).max())
    assert elrt.count_costs(twins[-1]).macs == elrt.count_costs(model).macs


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    ["classifier", "DeepLabV3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SegFormer", "RetinaNet"))],
)
def test_tasks_keep_their_class_and_what_it_does(name, tmp_path):
    import hub_tasks

    model = hub_tasks.build(name)
    images = np.random.default_rng(0).uniform(0, 255, (1, *hub_tasks.SHAPE)).astype("float32")
    plan = elrt.plan_ranks(model, fraction=1.0, break_even=False)
    assert len(plan.factorized()) >= 5
    low = elrt.factorize(model, plan, factor_initializer="decomposed")
    merged = elrt.merge(low)
    low.save(tmp_path / "task.keras")
    expected = keras.tree.flatten(model.predict(images, verbose=0))
    for copy in (low, merged, elrt.expand(low), keras.models.load_model(tmp_path / "task.keras")):
        assert isinstance(copy, type(model))
        # `predict` does more than the graph: it preprocesses pixels and makes boxes from scores.
        for one, other in zip(expected, keras.tree.flatten(copy.predict(images, verbose=0))):
            np.testing.assert_allclose(other, one, atol=2e-3 * max(1.0, np.abs(one).max()))
    assert type(merged) is type(model) and elrt.count_costs(merged).macs == elrt.count_costs(model).macs


@pytest.mark.thorough
def test_a_detector_is_built_on_a_low_rank_backbone():
    import hub_tasks

    backbone = hub_tasks.resnet()
    low = elrt.factorize(backbone, elrt.plan_ranks(backbone, fraction=0.25))
    assert list(low.pyramid_outputs) == list(backbone.pyramid_outputs)
    detector = hub_tasks.retinanet(low)
    costs, dense = (elrt.count_costs(one).macs for one in (detector, hub_tasks.retinanet(backbone)))
    assert costs < dense
    images = np.random.default_rng(0).uniform(0, 255, (1, *hub_tasks.SHAPE)).astype("float32")
    assert set(detector.predict(images, verbose=0)) >= {"boxes", "labels"}
