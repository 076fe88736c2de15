"""The builders: exact sizes and published MACs, shortcuts, normalisation, options, gradients, low-rank twins."""

import keras
import numpy as np
import pytest
from common import gradients, random_array, to_numpy

import elrt_keras as elrt

# Trainable parameters; MACs as published, in the unit and the digits of the source (tables of torchvision's weights for
# large images, where "GFLOPS" counts multiply-accumulates; arXiv 1605.07146 for the wide ResNet).
SIZES = {
    # Not in the paper; counted: kernels of 432 + 2·2304, 4608 + 9216 and 18432 + 36864 weights at 32², 16², 8² pixels.
    "resnet8": (75_290, "12.24 M"),
    "resnet20": (269_722, "40.55 M"),
    "resnet32": (464_154, "68.86 M"),
    "resnet44": (658_586, "97.17 M"),
    "resnet56": (853_018, "125.49 M"),
    "resnet110": (1_727_962, "252.89 M"),
    "resnet18_cifar": (11_173_962, "0.56 G"),
    "wide_resnet28_10": (36_479_194, "5.2 G"),
    "vgg16_cifar": (14_724_042, "313.2 M"),
    "resnet18": (11_689_512, "1.81 G"),
    "resnet34": (21_797_672, "3.66 G"),
    "resnet50": (25_557_032, "4.09 G"),
    "resnet101": (44_549_160, "7.80 G"),
    "resnet152": (60_192_808, "11.51 G"),
    "vgg11": (132_868_840, "7.61 G"),
    "vgg13": (133_053_736, "11.31 G"),
    "vgg16": (138_365_992, "15.47 G"),
    "vgg19": (143_678_248, "19.63 G"),
    "mobilenet_v2": (3_504_872, "0.30 G"),
}
SMALL_IMAGES = [name for name in SIZES if "cifar" in name or name[:6] == "resnet" and int(name[6:]) in (8, 20, 56)]
# The models are the same on every backend, and only TensorFlow makes a hundred million random numbers quickly.
EVERY_BACKEND = ("resnet8", "resnet20", "resnet18_cifar", "vgg16_cifar", "mobilenet_v2")


def each(names, quick=EVERY_BACKEND):
    """Makes a test for each name; only those in `quick` run in the quick suite and on other backends."""
    marks = {name: () if name in EVERY_BACKEND else (pytest.mark.tensorflow,) for name in names}
    marks = {name: marks[name] if name in quick else (*marks[name], pytest.mark.thorough) for name in names}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks[name], id=name) for name in names])


def trainable(model):
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


@each(SIZES)
def test_size_is_the_published_one_and_stands_in_the_table(name):
    model = elrt.models.build(name)
    parameters, published_macs = SIZES[name]
    macs = elrt.count_costs(model).macs
    assert trainable(model) == parameters
    digits, unit = published_macs.split()
    assert f"{macs / {'M': 1e6, 'G': 1e9}[unit]:.{len(digits.split('.')[1])}f}" == digits
    assert model.name == name and len({layer.name for layer in model.layers}) == len(model.layers)
    assert model.input_shape == (None, *elrt.models.default_input_shape(name))
    row = next(line.split() for line in elrt.models.__doc__.splitlines() if line.startswith(f"{name} "))
    shape, classes, counted, millions = row[1], row[2], row[3], row[4]
    assert shape == "×".join(map(str, model.input_shape[1:])) and int(classes) == model.output_shape[1]
    assert (counted, millions) == (f"{parameters:,}", f"{macs / 1e6:,.2f}")


def test_names():
    assert set(elrt.models.list_models()) == set(SIZES)
    for name in ("ResNet20", "resnet-20", "RESNET_20"):
        assert elrt.models.build(name, (8, 8, 1), 3).name == "resnet20"
    assert elrt.models.build("MobileNetV2", (32, 32, 3), 3).name == "mobilenet_v2"
    with pytest.raises(ValueError, match=r"resnet110.*Received: name='resnet21'"):
        elrt.models.build("resnet21")


@pytest.mark.backends
@pytest.mark.parametrize("width, added", [(1.0, (8, 8)), (0.3, (2, 3))])  # from 16 to 32 channels, from 5 to 10
def test_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides(width, added):
    model = elrt.models.build("resnet20", input_shape=(8, 8, 3), width=width)
    probe = keras.Model(
        model.input, [model.get_layer(f"{n}").output for n in ("stage1_block3_relu", "stage2_block1_shortcut_pad")]
    )
    before, after = map(to_numpy, probe(random_array(2, 8, 8, 3, scale=100)))
    expected = np.pad(before[:, ::2, ::2], [(0, 0), (0, 0), (0, 0), added])
    np.testing.assert_array_equal(after, expected)


def test_a_bottleneck_strides_in_its_3x3():
    model = elrt.models.build("resnet50", (32, 32, 3), 5, width=0.125)
    strides = [model.get_layer(f"stage2_block1_{n}_conv").strides for n in (1, 2, 3)]
    assert strides == [(1, 1), (2, 2), (1, 1)]
    assert model.get_layer("stage2_block1_shortcut_conv").strides == (2, 2)


@pytest.mark.backends
@pytest.mark.parametrize("normalization", [None, ([10.0, 20.0, 30.0], [2.0, 4.0, 8.0]), (100.0, 50.0)])
def test_raw_pixels_are_normalised_inside(normalization):
    model = elrt.models.build("resnet20", input_shape=(8, 8, 3), normalization=normalization)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype("float32")
    mean, std = (127.5, 127.5) if normalization is None else map(np.array, normalization)
    got = to_numpy(model.get_layer("normalization")(pixels))
    np.testing.assert_allclose(got, (pixels - mean) / std, atol=1e-4)


@each(SMALL_IMAGES + ["mobilenet_v2", "vgg11", "resnet50"], quick=("resnet20",))
def test_builders_do_not_follow_the_global_image_format(name):
    arguments = {"input_shape": (32, 32, 3), "classes": np.int64(4), "width": np.float32(0.25)}
    arguments["normalization"] = ([10.0, 20.0, 30.0], [2.0, 4.0, 8.0])
    images = random_array(2, 32, 32, 3, scale=100)
    model = elrt.models.build(name, **arguments)
    keras.config.set_image_data_format("channels_first")
    try:
        twin = elrt.models.build(name, **arguments)
        twin.set_weights(model.get_weights())
        outputs = to_numpy(twin(images))
    finally:
        keras.config.set_image_data_format("channels_last")
    np.testing.assert_allclose(outputs, to_numpy(model(images)), atol=1e-5)


@pytest.mark.parametrize(
    "name, channels", [("resnet20", 64), ("vgg16_cifar", 512), ("vgg11", 512), ("mobilenet_v2", 1280)]
)
def test_without_top_there_are_feature_maps(name, channels):
    model = elrt.models.build(name, (64, 64, 3), include_top=False, width=1.0)
    assert len(model.output_shape) == 4 and model.output_shape[-1] == channels
    assert "classifier" not in [layer.name for layer in model.layers]


@pytest.mark.thorough
def test_logits_instead_of_probabilities():
    keras.utils.set_random_seed(0)
    model = elrt.models.build("resnet20", (8, 8, 3), 5, classifier_activation=None)
    keras.utils.set_random_seed(0)
    twin = elrt.models.build("resnet20", (8, 8, 3), 5)
    images = random_array(3, 8, 8, 3, scale=100)
    expected = to_numpy(keras.ops.softmax(model(images)))
    np.testing.assert_allclose(to_numpy(twin(images)), expected, atol=1e-5)


@each(["resnet20", "resnet18_cifar", "vgg16_cifar", "wide_resnet28_10", "mobilenet_v2"])
def test_width_multiplies_all_channels(name):
    model = elrt.models.build(name, (32, 32, 3), 4, width=0.25)
    full = next(line.split()[3] for line in elrt.models.__doc__.splitlines() if line.startswith(f"{name} "))
    assert trainable(model) < 0.15 * int(full.replace(",", ""))


@each(["resnet20", "resnet18_cifar", "resnet50"], quick=("resnet20", "resnet50"))
def test_zero_init_residual_makes_blocks_identities(name):
    model = elrt.models.build(name, (32, 32, 3), 4, width=0.25, zero_init_residual=True)
    add = model.get_layer("stage1_block2_add")
    probe = keras.Model(model.input, [add.input[0], add.output])
    shortcut, result = map(to_numpy, probe(random_array(2, 32, 32, 3, scale=100)))
    np.testing.assert_array_equal(shortcut, result)
    assert np.abs(result).max() > 0


@pytest.mark.parametrize("name, count", [("vgg11", 2), ("mobilenet_v2", 1), ("wide_resnet28_10", 12)])
def test_dropout(name, count):
    model = elrt.models.build(name, (32, 32, 3), 4, width=0.1, dropout=0.3)
    rates = [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert rates == [0.3] * count


def test_batch_norm_is_that_of_the_source():
    norm = elrt.models.build("resnet20", (8, 8, 3), 3).get_layer("stem_bn")
    assert (norm.momentum, norm.epsilon) == (0.9, 1e-5)
    norm = elrt.models.build("mobilenet_v2", (32, 32, 3), 3, width=0.1).get_layer("stem_bn")
    assert (norm.momentum, norm.epsilon) == (0.997, 1e-3)


@pytest.mark.tensorflow
def test_every_relu_of_mobilenet_is_limited_to_six():
    model = elrt.models.build("mobilenet_v2", (32, 32, 3), 4, width=0.25)
    limits = [layer.max_value for layer in model.layers if isinstance(layer, keras.layers.ReLU)]
    assert len(limits) == 35 and set(limits) == {6.0}


def test_initial_weights_are_he_normal():
    model = elrt.models.build("resnet18_cifar", (32, 32, 3), 10)
    kernel = to_numpy(model.get_layer("stage3_block2_1_conv").kernel)
    # With 590,000 samples, the deviation is known to 0.1 %.
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 256)), rel=5e-3)
    kernel = to_numpy(
        elrt.models.build("mobilenet_v2", (32, 32, 3), 10).get_layer("stage7_block1_depthwise_conv").kernel
    )
    assert kernel.std() == pytest.approx(np.sqrt(2 / 9), rel=3e-2)  # 8640 samples


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"normalization": ([1.0, 2.0], [1.0, 1.0])}, ValueError, "one value per channel, 3"),
        ({"normalization": (1.0, 2.0, 3.0)}, ValueError, r"\(mean, std\). Received: normalization=\(1.0, 2.0, 3.0\)"),
        ({"normalization": (1.0, 0.0)}, ValueError, r"above 0. Received: normalization=\(1.0, 0.0\)"),
        ({"factor_initializer": "spectral"}, ValueError, r"Expected a plan.*factor_initializer"),
        ({"dropout": 0.5}, TypeError, r"Expected arguments of resnet20.*Received: \['dropout'\]"),
        ({"classes": 0}, ValueError, "Received: classes=0"),
        ({"input_shape": (32, 32)}, ValueError, r"\(height, width, channels\). Received: input_shape=\(32, 32\)"),
        ({"input_shape": (32, 32, None)}, ValueError, r"ints of at least 1.*Received: input_shape=\(32, 32, None\)"),
        ({"input_shape": (32, 32, 0)}, ValueError, r"Received: input_shape=\(32, 32, 0\)"),
        ({"input_shape": (32.0, None, 3)}, ValueError, r"Received: input_shape=\(32.0, None, 3\)"),
        ({"width": -1.0}, ValueError, "Received: width=-1.0"),
    ],
    ids=str,
)
def test_bad_builder_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        elrt.models.build("resnet20", **arguments)


def test_dense_layers_of_vgg_want_a_fixed_image_size():
    with pytest.raises(ValueError, match="Expected a fixed height and width.*`vgg16_cifar`"):
        elrt.models.build("vgg11", input_shape=(None, 64, 3))
    assert elrt.models.build("vgg11", input_shape=(None, 64, 3), width=0.1, include_top=False).count_params() > 0


def test_bad_dropout():
    with pytest.raises(ValueError, match=r"\[0, 1\). Received: dropout=1.0"):
        elrt.models.build("vgg11", dropout=1.0)


@each(SMALL_IMAGES + ["mobilenet_v2", "vgg11", "wide_resnet28_10", "resnet50"], quick=("vgg16_cifar",))
def test_every_builder_has_a_low_rank_twin(name):
    # `multiple_of` is 1: at this width no layer can lose eight ranks.
    arguments = {"input_shape": (32, 32, 3), "classes": 4, "width": 0.25}
    dense = elrt.models.build(name, **arguments)
    plan = elrt.plan_ranks(dense, max_macs=0.7, multiple_of=1)
    low = elrt.models.build(name, plan=plan, **arguments)
    assert 0.66 < elrt.count_costs(low).macs / elrt.count_costs(dense).macs <= 0.7
    outputs = to_numpy(low(random_array(2, 32, 32, 3, scale=100)))
    assert outputs.shape == (2, 4) and np.isfinite(outputs).all()


def test_low_rank_build_outputs_probabilities_and_every_parameter_gets_a_gradient():
    plan = elrt.plan_ranks(elrt.models.build("resnet20", (8, 8, 1), 7), fraction=0.5)
    model = elrt.models.build(
        "resnet20", (8, 8, 1), 7, plan, factor_regularizer=elrt.regularizers.DoubleSoftOrthogonality(1e-3)
    )
    images = random_array(4, 8, 8, 1, scale=100)
    outputs = to_numpy(model(images))
    assert outputs.shape == (4, 7)
    np.testing.assert_allclose(outputs.sum(axis=1), 1, atol=1e-5)

    def loss():
        return keras.ops.mean(keras.ops.square(model(images, training=True)[:, 0])) + sum(model.losses)

    found = gradients(loss, model.trainable_variables)
    missing = [v.path for v, g in zip(model.trainable_variables, found) if g is None or not np.abs(g).max() > 0]
    assert missing == []
