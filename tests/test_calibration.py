"""Batch-norm statistics and decompositions from data: against NumPy, least squares, and the outputs of whole models."""

import keras
import numpy as np
import pytest
from common import random_array, to_numpy
from hypothesis import given
from hypothesis import strategies as st

import elrt_keras as elrt
from elrt_keras import formats
from elrt_keras.formats.weighting import InputWeighting

SETTINGS = {"tucker2": (3, 4), "svd": (4,), "spatial_svd": (5,), "cp": (9,), "tensor_train": (3, 5, 4)}


def normalized(**options):
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, **options)


def network(*, filters=6, seed=0):
    keras.utils.set_random_seed(seed)
    stack = [keras.Input((8, 8, 3)), keras.layers.Conv2D(filters, 3, name="conv"), normalized(), keras.layers.ReLU()]
    return keras.Sequential([*stack, keras.layers.Dropout(0.5, seed=1), keras.layers.GlobalAveragePooling2D()])


def statistics_of(batches):
    """Averages means and variances over all axes but the last, over batches weighted by their sizes."""
    sizes = np.array([len(batch) for batch in batches])[:, None]
    flat = [batch.reshape(-1, batch.shape[-1]).astype("float64") for batch in batches]
    return [np.sum(sizes * [f(one, axis=0) for one in flat], axis=0) / sizes.sum() for f in (np.mean, np.var)]


def values_of(model):
    return [np.array(weight) for weight in model.get_weights()]


@pytest.mark.backends
@pytest.mark.parametrize("fused", [False, True])
def test_statistics_are_those_of_the_batches_and_nothing_else_changes(fused):
    model = network(filters=8)
    if fused:
        elrt.fuse_batch_norm(model)
    images = random_array(300, 8, 8, 3) + 2
    layer, before = model.layers[1], values_of(model)
    states = [np.array(variable) for variable in model.non_trainable_variables]
    activations = to_numpy(model.layers[0](images))
    assert elrt.recalibrate_batch_norm(model, images) is model
    mean, variance = statistics_of([activations[start : start + 128] for start in (0, 128, 256)])
    np.testing.assert_allclose(to_numpy(layer.moving_mean), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(to_numpy(layer.moving_variance), variance, rtol=1e-3)
    assert layer.momentum == 0.9 and ("call" in vars(layer)) == (fused and keras.backend.backend() == "tensorflow")
    statistics = {id(layer.moving_mean), id(layer.moving_variance)}
    for variable, value in zip(model.weights, before, strict=True):
        assert (id(variable) in statistics) != np.array_equal(np.array(variable), value)
    for variable, value in zip(model.non_trainable_variables, states, strict=True):  # seeds of dropout among them
        assert id(variable) in statistics or np.array_equal(np.array(variable), value)


@pytest.mark.backends
def test_shared_frozen_and_nested_layers():
    shared, frozen = normalized(name="shared"), normalized(name="frozen", trainable=False)
    inner_input = keras.Input((4,))
    inner = keras.Model(inner_input, normalized(name="inner")(inner_input), name="nested")
    inputs = keras.Input((4,))
    outputs = inner(frozen(shared(inputs) + shared(3 * inputs + 1)))
    model = keras.Model(inputs, outputs)
    batch = random_array(100, 4)
    elrt.recalibrate_batch_norm(model, batch)
    calls = [batch, 3 * batch + 1]
    for value, expected in zip((shared.moving_mean, shared.moving_variance), statistics_of(calls)):
        np.testing.assert_allclose(to_numpy(value), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(to_numpy(frozen.moving_mean), 0)
    after = sum((one - one.mean(0)) / np.sqrt(one.var(0) + 1e-5) for one in calls) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(to_numpy(inner.layers[1].moving_variance), after.var(0), rtol=1e-3)


class Pages(keras.utils.PyDataset):
    def __init__(self, images):
        super().__init__()
        self.images = images

    def __len__(self):
        return len(self.images) // 64

    def __getitem__(self, index):
        part = self.images[64 * index : 64 * index + 64]
        return part, np.zeros(len(part))


@pytest.mark.tensorflow
def test_all_kinds_of_data_give_the_same():
    import tensorflow as tf

    images = random_array(128, 8, 8, 3)
    kinds = [
        (images, np.zeros(128)),
        tf.data.Dataset.from_tensor_slices((images, np.zeros(128))).batch(64),
        Pages(images),
        [images[:64], images[64:]],
        (part for part in (images[:64], images[64:])),
        lambda: iter([images[:64], images[64:]]),
    ]
    found = [to_numpy(elrt.recalibrate_batch_norm(network(), data).layers[1].moving_variance) for data in kinds]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=2e-3)  # two batches or one


def flawed(value):
    images = random_array(200, 8, 8, 3)
    images[-1, 0, 0, 0] = value
    return images


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "data, message",
    [
        (random_array(4, 9, 8, 3), r"examples of shape \(N, 8, 8, 3\). Received: \(4, 9, 8, 3\)"),
        (random_array(0, 8, 8, 3), "Received: none"),
        (flawed(np.nan), "finite numbers. Received: NaN or infinity"),
        (flawed(np.inf), "finite numbers. Received: NaN or infinity"),
        (random_array(4, 4), "examples of shape"),
    ],
)
def test_data_that_does_not_fit_changes_nothing(data, message):
    model = network()
    before = values_of(model)
    with pytest.raises(ValueError, match=message):
        elrt.recalibrate_batch_norm(model, data)
    for one, two in zip(before, values_of(model), strict=True):
        np.testing.assert_array_equal(one, two)
    assert model.layers[1].momentum == 0.9 and "call" not in vars(model.layers[1])


@pytest.mark.tensorflow
def test_models_without_statistics_and_endless_data_are_refused():
    import tensorflow as tf

    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="batch-norm layers that are not frozen. Received: model='sequential"):
        elrt.recalibrate_batch_norm(plain, random_array(4, 4))
    frozen = network()
    frozen.trainable = False
    with pytest.raises(ValueError, match="not frozen"):
        elrt.recalibrate_batch_norm(frozen, random_array(4, 8, 8, 3))
    endless = tf.data.Dataset.from_tensors(random_array(4, 8, 8, 3)).repeat()
    with pytest.raises(ValueError, match=r"data that ends, such as dataset.take\(20\)"):
        elrt.recalibrate_batch_norm(network(), endless)


# Decompositions by the moments of inputs.


def anisotropic(channels, groups=1, seed=0):
    """Returns moments of inputs that vary much more in some directions than in others."""
    rng = np.random.default_rng(seed)
    bases = np.linalg.qr(rng.standard_normal((groups, channels, channels)))[0]
    scales = np.geomspace(1, 1e-3, channels)
    return bases @ (scales[:, None] * np.swapaxes(bases, 1, 2))


@pytest.mark.tensorflow
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 4), st.integers(0, 99))
def test_of_a_matrix_it_is_the_best_of_that_rank_by_least_squares(inputs, outputs, rank, seed):
    rng = np.random.default_rng(seed)
    rank = min(rank, inputs, outputs)
    examples = rng.standard_normal((40, inputs)) @ rng.standard_normal((inputs, inputs))
    kernel = rng.standard_normal((inputs, outputs))
    moments = examples.T @ examples / len(examples)
    svd = formats.get("svd")
    near = to_numpy(svd.compose(InputWeighting(moments[None]).decompose(svd, kernel, (rank,))))
    # Reduced-rank regression projects outputs onto their leading directions. The damping acts like additional examples.
    damping = np.sqrt(1e-2 * np.trace(moments) / inputs) * np.eye(inputs)
    stacked = np.concatenate([examples / np.sqrt(len(examples)), damping])
    right = np.linalg.svd(stacked @ kernel)[2][:rank]
    np.testing.assert_allclose(near, kernel @ right.T @ right, atol=1e-6 * np.abs(kernel).max())


@pytest.mark.tensorflow
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_format_loses_less_of_the_outputs(name, groups):
    form, ranks = formats.grouped(name, groups), SETTINGS[name]
    kernel = random_array(3, 3, 8, 10 * groups, seed=1)
    moments = anisotropic(8, groups)
    weighting = InputWeighting(moments)
    plain, fitted = form.decompose(kernel, ranks), weighting.decompose(form, kernel, ranks)
    assert [factor.shape for factor in fitted] == [factor.shape for factor in plain]
    assert {factor.dtype for factor in fitted} == {np.dtype("float32")}

    def lost(factors):
        difference = (kernel - to_numpy(form.compose(factors))).reshape(9, 8, groups, 10)
        return np.einsum("kign,gij,kjgn->", difference, moments, difference)

    assert lost(fitted) < 0.8 * lost(plain)
    # The damping acts like additional examples: a hundredth of the mean moment in every direction.
    damped = moments + 1e-2 * np.trace(moments, axis1=1, axis2=2)[:, None, None] / 8 * np.eye(8)

    def norm(array):
        array = array.reshape(9, 8, groups, 10)
        return np.einsum("kign,gij,kjgn->", array, damped, array)

    part = norm(kernel - to_numpy(form.compose(fitted))) / norm(kernel)
    assert weighting.relative_error(kernel, to_numpy(form.compose(fitted))) == pytest.approx(part, rel=1e-5)
    if name != "cp":  # errors of CP at many ranks are interpolated
        # Formats with several ranks have an estimate from the spectra.
        assert weighting.errors(form, kernel)(ranks) == pytest.approx(part, rel=0.35)
        for view in form.orthogonal_factors(2):
            for matrix in view.matrices(keras.ops.convert_to_tensor(fitted[view.index])):
                assert float(elrt.regularizers.orthogonality_error(matrix)) < 1e-4
    # From there to lower ranks.
    lower = tuple(rank - 1 for rank in ranks)
    truncated, by_norm = weighting.truncate(form, fitted, lower), form.truncate(fitted, lower)
    assert lost(truncated) < lost(by_norm) or name == "cp"
    same = weighting.truncate(form, fitted, ranks)
    np.testing.assert_allclose(to_numpy(form.compose(same)), to_numpy(form.compose(fitted)), atol=1e-4)


@pytest.mark.tensorflow
def test_inputs_that_never_vary_keep_the_kernel_finite():
    svd, kernel = formats.get("svd"), random_array(4, 5)
    for moments in (np.zeros((1, 4, 4)), np.diag([1.0, 0, 0, 0])[None]):
        near = to_numpy(svd.compose(InputWeighting(moments).decompose(svd, kernel, (4,))))
        np.testing.assert_allclose(near, kernel, atol=1e-4)


@pytest.mark.backends
def test_moments_are_those_of_the_inputs_of_each_call():
    from elrt_keras.graph.view import View
    from elrt_keras.ranks.moments import input_weightings

    shared = keras.layers.Conv2D(4, 3, padding="same", groups=2, name="shared")
    pointwise = keras.layers.Conv2D(5, 1, strides=2, name="pointwise")
    dense = keras.layers.Dense(3, name="dense")
    inputs = keras.Input((6, 6, 4))
    model = keras.Model(inputs, dense(keras.layers.Flatten()(pointwise(shared(shared(inputs))))))
    images = random_array(70, 6, 6, 4)
    found = input_weightings(View(model), model.layers, images)
    between = to_numpy(shared(images))
    both = np.concatenate([images.reshape(-1, 2, 2), between.reshape(-1, 2, 2)])
    np.testing.assert_allclose(found[id(shared)].moments, np.einsum("pgi,pgj->gij", both, both) / len(both), rtol=1e-4)
    last = to_numpy(shared(between))
    read = last[:, ::2, ::2].reshape(-1, 4)
    np.testing.assert_allclose(found[id(pointwise)].moments[0], read.T @ read / len(read), rtol=1e-3, atol=1e-5)
    flat = to_numpy(pointwise(last)).reshape(70, -1)
    np.testing.assert_allclose(found[id(dense)].moments[0], flat.T @ flat / 70, rtol=1e-3, atol=1e-4)


@pytest.mark.tensorflow
def test_ranks_go_where_outputs_are_lost():
    """Uses two equal layers; the inputs of one have a single direction."""
    inputs = keras.Input((8, 8, 16)), keras.Input((8, 8, 16))
    layers = [keras.layers.Conv2D(16, 3, name=name) for name in ("flat", "full")]
    model = keras.Model(inputs, [layer(one) for layer, one in zip(layers, inputs)])
    layers[1].set_weights(layers[0].get_weights())
    flat = random_array(64, 8, 8, 1) * random_array(16, seed=5) + 1e-3 * random_array(64, 8, 8, 16)
    names = [tensor.name for tensor in model.inputs]
    data = dict(zip(names, (flat, random_array(64, 8, 8, 16, seed=2))))
    options = {"max_macs": 0.5, "method": "energy", "multiple_of": 1, "exclude": []}
    plain = elrt.plan_ranks(model, **options)
    plan = elrt.plan_ranks(model, **options, calibration_data=data)
    assert plan["flat"].ranks[0] <= 4 < plan["full"].ranks[0] and plain["flat"].ranks[0] > 4
    low = [
        elrt.factorize(model, plan, factor_initializer="decomposed", calibration_data=given) for given in (data, None)
    ]
    ordered = [data[name] for name in names]
    wanted, fitted, plainly = (one.predict(ordered, verbose=0)[0] for one in (model, *low))
    assert np.sum((fitted - wanted) ** 2) < 0.1 * np.sum((plainly - wanted) ** 2)


@pytest.fixture(scope="module")
def trained():
    """Trains ResNet-8 at 60 % of the MACs on the digits; returns it and the test images."""
    from elrt_keras.launch import data

    digits = data.load("digits")
    keras.utils.set_random_seed(0)
    dense = elrt.models.build("resnet8", (8, 8, 1), 10, normalization=digits.pixel_statistics())
    model = elrt.factorize(dense, elrt.plan_ranks(dense, max_macs=0.6, multiple_of=4))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(digits.train_images.astype("float32"), digits.train_labels, batch_size=64, epochs=4, verbose=0)
    return model, digits


def accuracy(model, digits):
    predicted = model.predict(digits.test_images.astype("float32"), verbose=0, batch_size=360)
    return np.mean(np.argmax(predicted, axis=-1) == digits.test_labels)


@pytest.mark.tensorflow
def test_a_shrunk_model_keeps_more_of_its_accuracy(trained, capsys):
    model, digits = trained
    budgets = [0.2]
    assert accuracy(model, digits) > 0.9
    options = {"multiple_of": 1, "evaluate": lambda low: accuracy(low, digits)}
    plain = elrt.shrink_curve(model, budgets, **options)
    before = values_of(model)
    fitted = elrt.shrink_curve(model, budgets, **options, calibration_data=digits.train_images)
    told = capsys.readouterr().err
    for one, two in zip(before, values_of(model), strict=True):
        np.testing.assert_array_equal(one, two)
    assert [point.recalibrated for point in fitted.points] == [None, True]
    assert told.count("batch-norm statistics of the calibration data; outputs differ by") == 1
    assert "of the data" in str(fitted) and "batch-norm" not in str(plain)
    assert fitted.points[1].macs <= plain.points[1].macs * 1.1
    assert fitted.points[1].metric > plain.points[1].metric + 0.03


@pytest.mark.tensorflow
def test_statistics_that_would_be_worse_are_not_taken(trained, capsys):
    model, digits = trained
    dense = elrt.merge(model)
    plan = elrt.plan_ranks(dense, fraction=1.0, break_even=False)
    # At full ranks nothing is lost, and four images have less information than the training data.
    low = elrt.factorize(dense, plan, factor_initializer="decomposed", calibration_data=digits.train_images[:4])
    assert "batch-norm statistics as they were; outputs differ by" in capsys.readouterr().err
    for one, two in zip(low.layers, dense.layers, strict=True):
        if isinstance(one, keras.layers.BatchNormalization):
            np.testing.assert_array_equal(to_numpy(one.moving_mean), to_numpy(two.moving_mean))
            np.testing.assert_array_equal(to_numpy(one.moving_variance), to_numpy(two.moving_variance))


@pytest.mark.tensorflow
def test_calibration_data_need_a_use():
    model = network()
    plan = elrt.plan_ranks(model, fraction=0.5, exclude=[])
    images = random_array(8, 8, 8, 3)
    with pytest.raises(ValueError, match="factor_initializer='decomposed' with calibration data"):
        elrt.factorize(model, plan, calibration_data=images)
    with pytest.raises(ValueError, match="method='energy'.*Received: method='uniform' with calibration_data"):
        elrt.plan_ranks(model, max_macs=0.5, calibration_data=images)
