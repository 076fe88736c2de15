"""Convolutions inside `TimeDistributed`: counted, planned, converted and exported like others."""

import keras
import numpy as np
import pytest
from common import model_of, random_array, to_numpy
from test_custom_blocks import Block

import elrt_keras as elrt
from elrt_keras.graph.view import View
from elrt_keras.plot.kernels import layer_spectra
from elrt_keras.ranks.latency import TimeTable, time_candidates
from elrt_keras.ranks.survey import survey

layers = keras.layers
FRAMES = 3


def frame_network(**arguments):
    """Builds the model for each frame, with a batch-norm, a stride and an activation without a name."""
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(16, 3, padding="same", name="stem", **arguments),
            layers.BatchNormalization(name="norm", **arguments),
            layers.Conv2D(
                32, 3, strides=2, padding="same", activation=lambda x: 0.5 * abs(x), name="body", **arguments
            ),
            layers.Conv2D(32, 3, dilation_rate=2, activation="relu", name="tail", **arguments),
            layers.GlobalAveragePooling2D(),
        ],
        name="network",
    )


def video_model(network=None, **arguments):
    """Builds `(frames, rows, columns, channels)` → a network for each frame → a recurrent layer → classes."""
    inputs = keras.Input((FRAMES, 12, 12, 3))
    x = layers.TimeDistributed(layers.Conv2D(3, 3, padding="same", name="conv"), name="smooth")(inputs)
    x = layers.TimeDistributed(network or frame_network(**arguments), name="frames")(x)
    return with_statistics(keras.Model(inputs, layers.Dense(10, name="classes")(layers.GRU(8, name="gru")(x))))


def with_statistics(model):
    """Sets random batch-norm statistics in a model; its other weights keep their initial values."""
    for weight in model.weights:
        if "moving" in weight.path:
            weight.assign(np.random.default_rng(0).uniform(0.2, 1.0, weight.shape))
    return model


def outputs(model, x=None):
    x = random_array(2, FRAMES, 12, 12, 3) if x is None else x
    return to_numpy(model(x, training=False))


def planned(model, **budget):
    return elrt.plan_ranks(model, **{"max_macs": 0.5, "exclude": ["smooth/conv", "*stem", "classes"], **budget})


def test_costs_are_those_of_all_frames():
    video, network = elrt.count_costs(video_model()), elrt.count_costs(frame_network())
    smoothing, recurrent, classes = 144 * 81, 3 * 8 * (32 + 8), 80
    assert video.macs == FRAMES * (network.macs + smoothing + recurrent) + classes
    rows = {row.name: row for row in video.layers}
    assert rows["body"].calls == FRAMES and rows["body"].params == 9 * 16 * 32 + 32
    assert rows["body"].macs == FRAMES * 36 * 9 * 16 * 32
    nested = model_of(layers.TimeDistributed(layers.TimeDistributed(layers.Conv2D(4, 3))), shape=(2, 5, 6, 6, 1))
    assert elrt.count_costs(nested).macs == 10 * 16 * 9 * 4


@pytest.mark.parametrize("budget", [{"max_macs": 0.5}, {"max_macs": 0.5, "method": "energy"}, {"method": "vbmf"}])
def test_ranks_are_those_of_the_network_by_itself(budget):
    network = frame_network()
    video = model_of(layers.TimeDistributed(network, name="frames"), shape=(FRAMES, 12, 12, 3))
    plan = elrt.plan_ranks(video, exclude="*stem", **budget)
    by_itself = elrt.plan_ranks(network, exclude="stem", **budget).factorized()
    assert by_itself
    assert {path.removeprefix("frames/network/"): entry for path, entry in plan.factorized().items()} == by_itself


def test_defaults_exclude_the_first_convolution_and_the_classifier():
    plan = elrt.plan_ranks(video_model(), max_macs=0.5)
    assert {path for path, reason in plan.reasons.items() if reason == "excluded"} == {"smooth/conv", "classes"}
    assert {"frames/network/body", "frames/network/tail"} <= set(plan.factorized())


@pytest.mark.thorough
def test_whole_kernels_compute_the_same_and_lower_ranks_cost_what_was_planned():
    model = video_model()
    whole = {"smooth/conv": ("tucker2", 1.0), "frames/network/body": ("svd", 1.0)}
    exact = elrt.factorize(model, whole, factor_initializer="decomposed")
    np.testing.assert_allclose(outputs(exact), outputs(model), atol=1e-5)
    np.testing.assert_allclose(outputs(elrt.merge(exact)), outputs(model), atol=1e-5)

    plan = planned(model)
    low_rank = elrt.factorize(model, plan)
    saved = plan.costs["frames/network/body"]
    body = next(row for row in elrt.count_costs(low_rank).layers if row.name == "body")
    assert body.macs == saved["planned_macs"] < saved["macs"]
    assert elrt.count_costs(low_rank).macs <= 0.5 * elrt.count_costs(model).macs
    for other in (elrt.expand(low_rank), elrt.merge(low_rank)):
        np.testing.assert_allclose(outputs(other), outputs(low_rank), atol=1e-5)
        assert not any(isinstance(layer, elrt.layers.FactorizedLayer) for layer in elrt.graph.paths.held_layers(other))
    smaller = elrt.shrink(low_rank, max_macs=0.3)
    assert elrt.count_costs(smaller).macs <= 0.3 * elrt.count_costs(model).macs


def test_chains_are_models_of_their_own_and_survive_saving(tmp_path):
    model = model_of(layers.TimeDistributed(layers.Conv2D(8, 3, name="conv"), name="frames"), shape=(2, 8, 8, 6))
    low_rank = elrt.factorize(model, {"frames/conv": ("tucker2", (2, 3))})
    x = random_array(2, 2, 8, 8, 6)
    for one in (low_rank, elrt.expand(low_rank)):
        one.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(outputs(again, x), outputs(low_rank, x), atol=1e-6)
    chain = elrt.expand(low_rank).get_layer("frames").layer
    assert [layer.name for layer in chain.layers] == ["conv_factor_in", "conv_core", "conv"]


@pytest.mark.thorough
@pytest.mark.backends
def test_training_sees_penalties_and_lowers_the_loss():
    model = video_model()
    penalty = elrt.regularizers.DoubleSoftOrthogonality(0.1)
    low_rank = elrt.factorize(model, planned(model), factor_initializer="he_normal", factor_regularizer=penalty)
    errors = elrt.callbacks.factor_errors(low_rank)
    assert "frames/network/body/factor_in" in errors
    alone = sum(
        to_numpy(penalty(matrix))
        for name in ("body", "tail")
        for layer in [low_rank.get_layer("frames").layer.get_layer(name)]
        for view in layer.format.orthogonal_factors(2)
        for matrix in view.matrices(keras.ops.convert_to_tensor(layer.factors[view.index]))
    )
    np.testing.assert_allclose(sum(map(to_numpy, low_rank.losses)), alone, rtol=1e-5)
    low_rank.compile(keras.optimizers.SGD(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = random_array(8, FRAMES, 12, 12, 3), np.arange(8) % 10
    losses = low_rank.fit(x, y, epochs=4, batch_size=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    after = elrt.callbacks.factor_errors(low_rank)
    assert all(after[name] != errors[name] for name in errors)


def test_layers_stay_shared_between_frames_and_elsewhere():
    conv = layers.Conv2D(6, 3, padding="same", name="conv")
    first, second = keras.Input((FRAMES, 8, 8, 6), name="video"), keras.Input((8, 8, 6), name="image")
    model = keras.Model([first, second], [layers.TimeDistributed(conv, name="frames")(first), conv(second)])
    plan = elrt.plan_ranks(model, fraction=0.5, exclude=[], break_even=False, multiple_of=1)
    assert plan.reasons == {"conv": "shared: planned under its first name"}
    low_rank = elrt.factorize(model, plan)
    assert low_rank.get_layer("frames").layer is low_rank.get_layer("conv")
    assert elrt.count_costs(low_rank).layers[-1].calls == FRAMES + 1


@pytest.mark.backends
def test_precision_and_frozen_layers_stay():
    model = video_model(dtype="mixed_bfloat16", trainable=False)
    low_rank = elrt.factorize(model, planned(model))
    for one in (low_rank, elrt.expand(low_rank)):
        inner = one.get_layer("frames").layer
        body = [layer for layer in inner.layers if layer.name.startswith("body")]
        assert all(layer.compute_dtype == "bfloat16" and not layer.trainable for layer in body)
    inputs = keras.Input((FRAMES, 8, 8, 6), dtype="float64")
    frames = layers.TimeDistributed(layers.Conv2D(8, 3, name="conv", dtype="float64"), name="frames", dtype="float64")
    precise = elrt.factorize(keras.Model(inputs, frames(inputs)), {"frames/conv": ("tucker2", 2)})
    x = np.random.default_rng(0).standard_normal((2, FRAMES, 8, 8, 6))
    np.testing.assert_allclose(outputs(elrt.expand(precise), x), outputs(precise, x), rtol=1e-12, atol=1e-12)


def test_custom_blocks_are_opened_in_it_and_subclasses_stay_closed():
    @keras.saving.register_keras_serializable("elrt_tests")
    class Frames(layers.TimeDistributed):
        """A subclass that may run its layer in another way."""

    model = model_of(
        layers.TimeDistributed(Block(name="block"), name="opened"),
        Frames(layers.Conv2D(4, 3, name="conv"), name="closed"),
        shape=(FRAMES, 8, 8, 4),
    )
    plan = elrt.plan_ranks(model, fraction=0.5, exclude=[], break_even=False, multiple_of=1)
    assert set(plan.factorized()) == {"opened/block/conv"}
    assert plan.reasons["closed"] == "a Frames, which cannot be opened for the layers in it: it takes masks"
    low_rank = elrt.factorize(model, plan)
    assert elrt.count_costs(low_rank).macs < elrt.count_costs(model).macs == FRAMES * (64 + 36) * 144
    x = random_array(2, FRAMES, 8, 8, 4)
    np.testing.assert_allclose(outputs(elrt.merge(low_rank), x), outputs(low_rank, x), atol=1e-5)


class Pool(layers.Layer):
    """Masked means over the second axis, and a dense layer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pool, self.dense = layers.GlobalAveragePooling1D(), layers.Dense(8, name="dense")

    def build(self, input_shape):
        self.pool.build(input_shape)
        self.dense.build((input_shape[0], input_shape[-1]))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], 8)

    def call(self, inputs):
        return self.dense(self.pool(inputs))


@pytest.mark.parametrize("masks", [False, True])
def test_custom_layers_that_take_no_masks_are_handed_none(masks):
    inputs = keras.Input((3, 6, 8))
    x = layers.Masking()(inputs) if masks else inputs
    x = layers.TimeDistributed(Pool(name="pool"), name="frames")(x)
    model = keras.Model(inputs, layers.Dense(8, name="last")(layers.Flatten()(x)))
    plan = elrt.plan_ranks(model, fraction=1.0, exclude=[], break_even=False)
    assert ("frames/pool" in plan.reasons) == masks and ("frames/pool/dense" in plan.factorized()) != masks
    low_rank = elrt.factorize(model, plan, factor_initializer="decomposed")
    x = random_array(2, 3, 6, 8)
    x[0, 1, 2:] = 0
    np.testing.assert_allclose(outputs(low_rank, x), outputs(model, x), atol=1e-5)


@keras.saving.register_keras_serializable("elrt_tests")
class Subclassed(keras.Model):
    """A model without a graph; it computes its output shape by a rule, so no call builds it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(8, 3, name="conv")

    def call(self, inputs):
        return self.conv(inputs)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], 6, 6, 8)


def test_what_stays_as_it_is_is_copied_whole():
    inputs = keras.Input((2, 8, 8, 4))
    penalised = {"activity_regularizer": keras.regularizers.L2(1.0)}
    frames = layers.TimeDistributed(Subclassed(name="subclassed"), name="frames", **penalised)
    model = keras.Model(inputs, layers.Conv3D(4, 1, name="last")(frames(inputs)))
    x = random_array(1, 2, 8, 8, 4)
    outputs(model, x)
    low_rank = elrt.factorize(model, {"last": ("svd", 1.0)}, factor_initializer="decomposed")
    np.testing.assert_allclose(outputs(low_rank, x), outputs(model, x), atol=1e-5)
    np.testing.assert_allclose(*(to_numpy(one.losses[0]) for one in (model, low_rank)), rtol=1e-5)


def test_weights_of_a_subclass_count():
    class Scaled(layers.TimeDistributed):
        """A subclass with a weight beside those of its layer."""

        def build(self, input_shape):
            super().build(input_shape)
            self.scale = self.add_weight(shape=(5,), name="scale")

    model = model_of(Scaled(layers.Conv2D(4, 3)), shape=(2, 8, 8, 3))
    assert elrt.count_costs(model).params == model.count_params() == 4 * 27 + 4 + 5


def test_open_sizes_are_planned_as_the_layers_decide():
    model = model_of(
        layers.TimeDistributed(layers.Conv2D(32, 3, strides=2, name="c"), name="t"), shape=(2, None, None, 32)
    )
    shape = (2, 4, 4, 32)
    options = {"exclude": [], "input_shape": shape, "break_even": False, "multiple_of": 1}
    plan = elrt.plan_ranks(model, max_params=0.6, **options)
    low_rank = elrt.factorize(model, plan)
    assert plan.costs["t/c"]["planned_macs"] == elrt.count_costs(low_rank, shape).macs


def test_an_open_number_of_frames_is_asked_for():
    model = model_of(layers.TimeDistributed(layers.Conv2D(32, 3, name="conv"), name="frames"), shape=(None, 8, 8, 32))
    with pytest.raises(ValueError, match="Expected `input_shape`.* leaves its input size open"):
        elrt.plan_ranks(model, max_macs=0.5, exclude=[])
    plan = elrt.plan_ranks(model, max_macs=0.5, exclude=[], input_shape=(4, 8, 8, 32))
    low_rank = elrt.factorize(model, plan)
    for frames in (2, 5):
        x = random_array(1, frames, 8, 8, 32)
        np.testing.assert_allclose(outputs(elrt.merge(low_rank), x), outputs(low_rank, x), atol=1e-5)


def test_spectra_are_found_in_it():
    spectra = layer_spectra(video_model())
    assert {"smooth/conv", "frames/network/stem", "frames/network/body", "frames/network/tail"} <= set(spectra)


@pytest.mark.tensorflow
@pytest.mark.thorough
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_litert_files_agree(tmp_path, quantization):
    pytest.importorskip("ai_edge_litert")
    inputs = keras.Input((FRAMES, 12, 12, 3))
    pooled = layers.GlobalAveragePooling1D()(layers.TimeDistributed(frame_network(), name="frames")(inputs))
    model = with_statistics(keras.Model(inputs, layers.Dense(10)(pooled)))
    low_rank = elrt.factorize(model, {"frames/network/tail": ("tucker2", 0.5)}, factor_initializer="decomposed")
    data = random_array(16, FRAMES, 12, 12, 3)
    report = elrt.export.to_litert(low_rank, tmp_path / "video.tflite", quantization, representative_data=data)
    assert report.macs == elrt.count_costs(low_rank).macs


@pytest.mark.thorough
@pytest.mark.tensorflow
def test_ranks_by_measured_time_count_every_frame(tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    monkeypatch.setenv("ELRT_CACHE_DIR", str(tmp_path))
    conv = layers.Conv2D(64, 3, padding="same", name="conv")
    image = model_of(conv, shape=(16, 16, 64))
    video = model_of(layers.TimeDistributed(conv, name="frames"), shape=(FRAMES, 16, 16, 64))
    table = TimeTable(threads=1)
    # The second one reads the times measured for the first.
    one, all_frames = (time_candidates(survey(View(m), "tucker2", [])[0], 16, table)[0].times for m in (image, video))
    assert all_frames == {ranks: pytest.approx(FRAMES * seconds, rel=1e-9) for ranks, seconds in one.items()}
    plan = elrt.plan_ranks(video, max_latency=0.7, exclude=[])
    assert plan.costs["frames/conv"]["planned_latency"] < plan.costs["frames/conv"]["latency"]


@pytest.mark.tensorflow
def test_what_tf_keras_cannot_take_is_named():
    pytest.importorskip("tf_keras")
    model = model_of(layers.TimeDistributed(layers.Conv2D(4, 3), name="frames"), shape=(2, 8, 8, 6))
    with pytest.raises(ValueError, match="Expected layers that tf_keras can make. Received: 'frames'"):
        elrt.export.to_tf_keras(model)
