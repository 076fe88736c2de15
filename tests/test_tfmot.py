"""Models of tf_keras: quantisation-aware, pruned, clustered, combined, stripped and exported."""

import keras
import numpy as np
import pytest
from common import thorough_but

import elrt_keras as elrt

pytestmark = pytest.mark.tensorflow
tf_keras = pytest.importorskip("tf_keras")
tfmot = pytest.importorskip("tensorflow_model_optimization")
export = elrt.export


def images(*shape, seed=4):
    return np.random.default_rng(seed).uniform(0, 255, shape).astype("float32")


def gated():
    """Builds a squeeze-and-excitation block whose gate ends in a custom function."""
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    gate = layers.Conv2D(8, 1, activation="sigmoid", name="gate")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    return keras.Model(inputs, layers.Flatten()(layers.Multiply()([x, gate])))


def test_ranges_from_data_hold_zero_where_no_output_is_near_it():
    conv = keras.layers.Conv2D(4, 3, bias_initializer=keras.initializers.Constant(9.0), name="conv")
    x = images(4, 6, 6, 3) / 255
    aware = export.quantization_aware(keras.Sequential([keras.Input((6, 6, 3)), conv]), representative_data=x)
    ends = {weight.name: float(weight) for weight in aware.weights if weight.name.startswith("quant_conv/post_act")}
    assert ends["quant_conv/post_activation_min:0"] == 0.0
    assert 5 < ends["quant_conv/post_activation_max:0"] < 15


def norm_behind_activation():
    layers = keras.layers
    chain = [layers.Conv2D(8, 3, activation="relu"), layers.BatchNormalization(), layers.Flatten()]
    return keras.Sequential([keras.Input((8, 8, 3)), *chain])


def norm_beside_a_shortcut():
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same")(inputs)
    y = layers.Conv2D(8, 3, padding="same")(layers.ReLU()(layers.BatchNormalization()(x)))
    return keras.Model(inputs, layers.Flatten()(layers.Add()([x, y])))


def norm_called_twice():
    layers = keras.layers
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(3, 3, padding="same"), layers.BatchNormalization()])
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, layers.Flatten()(inner(inner(inputs))))


@pytest.mark.parametrize(
    "make",
    thorough_but((gated,), [gated, norm_behind_activation, norm_beside_a_shortcut, norm_called_twice]),
)
def test_what_tfmot_does_not_fold_stays_as_it_is(make):
    keras.utils.set_random_seed(3)
    model, x = make(), images(64, 8, 8, 3)
    aware = export.quantization_aware(model, representative_data=x)
    expected, got = model.predict(x, verbose=0), aware.predict(x, verbose=0)
    assert np.linalg.norm(got - expected) < 0.1 * np.linalg.norm(expected)  # 8 bits, and not another function


def adapted_normalization():
    layers = keras.layers
    normalization = layers.Normalization(name="normalization")
    normalization.adapt(images(64, 8, 8, 3))
    chain = [normalization, layers.Conv2D(8, 3, activation="relu"), layers.Flatten(), layers.Dense(4)]
    return keras.Sequential([keras.Input((8, 8, 3)), *chain])


def adapted_normalization_of_vectors():
    layers = keras.layers
    normalization = layers.Normalization()
    normalization.adapt(images(64, 64, 8, 3).reshape(64, -1))
    chain = [layers.Flatten(), normalization, layers.Dense(8, activation="relu"), layers.Dense(4)]
    return keras.Sequential([keras.Input((64, 8, 3)), *chain])


def called_twice():
    """Builds a layer that is called twice; the values of the second call are ten times as large."""
    layers = keras.layers
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    inputs = keras.Input((8, 8, 3))
    x = layers.Add()([shared(inputs), shared(layers.Rescaling(10.0)(inputs))])
    return keras.Model(inputs, layers.Dense(4)(layers.Flatten()(layers.ReLU()(x))))


def rescaled_behind_pooling():
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(inputs)) * 0.5
    return keras.Model(inputs, layers.Dense(4)(x))


def rescaled_pixel_by_pixel():
    layers = keras.layers
    offsets = np.random.default_rng(1).uniform(-1, 1, (8, 8, 1)).tolist()
    chain = [layers.Rescaling(1 / 255, offsets), layers.Conv2D(4, 3), layers.Flatten()]
    return keras.Sequential([keras.Input((8, 8, 3)), *chain])


def rescaled_sequence():
    layers = keras.layers
    chain = [layers.Rescaling(1 / 255), layers.Conv1D(8, 3), layers.Flatten(), layers.Dense(2)]
    return keras.Sequential([keras.Input((20, 4)), *chain])


def bytes_as_inputs():
    layers = keras.layers
    chain = [layers.Rescaling(1 / 255), layers.Conv2D(4, 3), layers.Flatten()]
    return keras.Sequential([keras.Input((8, 8, 3), dtype="uint8"), *chain])


def transposed():
    layers = keras.layers
    chain = [layers.Rescaling(1 / 255), layers.Conv2DTranspose(8, 2, strides=2, activation="relu"), layers.Conv2D(3, 1)]
    return keras.Sequential([keras.Input((8, 8, 3)), *chain])


def other_activations():
    """Builds activations that tfmot refuses, in a convolution and as layers."""
    layers = keras.layers
    chain = [layers.Conv2D(8, 3, activation="elu"), layers.Conv2D(8, 3), layers.Activation("softplus")]
    return keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Rescaling(1 / 255), *chain, layers.Flatten(), layers.Dense(4)]
    )


@pytest.mark.parametrize(
    "make",
    thorough_but(
        (adapted_normalization,),
        [
            adapted_normalization,
            adapted_normalization_of_vectors,
            called_twice,
            rescaled_behind_pooling,
            rescaled_pixel_by_pixel,
            rescaled_sequence,
            bytes_as_inputs,
            transposed,
            other_activations,
        ],
    ),
)
def test_whatever_the_layers_the_aware_model_computes_what_the_float_model_does(make, tmp_path):
    keras.utils.set_random_seed(3)
    model = make()
    x = np.floor(images(64, *model.input_shape[1:]))
    aware = export.quantization_aware(model, representative_data=x)
    expected, got = model.predict(x, verbose=0), aware.predict(x, verbose=0)
    assert np.linalg.norm(got - expected) < 0.1 * np.linalg.norm(expected)  # 8 bits, and not another function
    report = export.to_litert(aware, tmp_path / "model.tflite", evaluation_data=x)
    assert report.quantization == "int8" and report.rms_difference < 0.05


def test_normalisation_of_images_is_quantised():
    aware = export.quantization_aware(adapted_normalization())
    assert aware.get_layer("quant_normalization").trainable_weights == []


@pytest.mark.thorough
@pytest.mark.parametrize("prepare", [lambda m: export.prune(m, 0.5, 0, 4, 1), lambda m: export.cluster(m, 8)])
def test_a_tf_keras_model_stays_as_it_is(prepare):
    legacy = export.to_tf_keras(norm_beside_a_shortcut())
    before = [weight.copy() for weight in legacy.get_weights()]
    x = images(32, 8, 8, 3)
    prepared = prepare(legacy)
    prepared.compile("sgd", "mse")
    y = legacy.predict(x, verbose=0)
    prepared.fit(x, y, epochs=2, verbose=0, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
    for old, new in zip(before, legacy.get_weights()):
        np.testing.assert_array_equal(old, new)


@pytest.mark.thorough
def test_what_is_wrapped_is_not_wrapped_again_and_is_exported_without_its_wrapping(tmp_path):
    model = norm_beside_a_shortcut()
    wrapped = {
        "prune": export.prune(model),
        "cluster": export.cluster(model, 8),
        "aware": export.quantization_aware(model),
    }
    for made in wrapped.values():
        for again in (export.prune, export.cluster, export.quantization_aware):
            with pytest.raises(
                ValueError, match="not yet wrapped for training.*Received: '.*a .*(Prune|Cluster|Quant)"
            ):
                again(made)
    path = tmp_path / "model.tflite"
    x = images(64, 8, 8, 3)
    report = export.to_litert(wrapped["prune"], path, "int8", x)
    assert report.size_bytes == export.to_litert(export.strip(wrapped["prune"]), path, "int8", x).size_bytes
    with pytest.raises(ValueError, match="Expected quantization='int8' for .* Received: 'float16'"):
        export.to_litert(wrapped["aware"], path, "float16")


def test_custom_layers_that_cannot_be_made_again_are_told():
    class Scaled(tf_keras.layers.Layer):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def call(self, inputs):
            return self.scale * inputs

    model = tf_keras.Sequential([tf_keras.Input((4, 4, 3)), Scaled(np.ones(3)), tf_keras.layers.Conv2D(2, 3)])
    with pytest.raises(ValueError, match="made from their configuration. Received: Layer Scaled was created by"):
        export.prune(model)


def test_layers_with_fewer_weights_than_clusters_stay():
    layers = keras.layers
    model = keras.Sequential([keras.Input((8, 8, 2)), layers.Conv2D(3, 1), layers.Conv2D(8, 3), layers.Flatten()])
    clustered = export.cluster(model, clusters=16)
    wrapped = [hasattr(layer, "layer") for layer in clustered.layers]
    assert wrapped == [False, False, True, False]  # the input first


def test_frozen_layers_are_not_pruned():
    model = keras.Sequential([keras.Input((8, 8, 4))])
    model.add(keras.layers.Conv2D(4, 3, trainable=False, name="frozen"))
    model.add(keras.layers.Conv2D(4, 3, name="free"))
    for wrapped in (export.prune(model), export.cluster(model, 4)):
        assert wrapped.layers[-2].name == "frozen" and wrapped.layers[-1].name != "free"


@pytest.fixture(scope="module")
def trained():
    """Trains a low-rank network to find the bright third of an image; returns it with its data."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(2)
    labels = random.integers(0, 3, 400)
    x = images(400, 16, 16, 3, seed=2) / 2
    for image, label in zip(x, labels):
        image[:, 5 * label : 5 * label + 5] += 110
    dense = elrt.models.build("resnet8", input_shape=(16, 16, 3), classes=3)
    model = elrt.factorize(dense, elrt.plan_ranks(dense, max_macs=0.5))
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(x[:320], labels[:320], epochs=5, batch_size=32, verbose=0)
    assert accuracy(model, x[320:], labels[320:]) > 0.9
    return model, x, labels


def accuracy(model, x, labels):
    return np.mean(model.predict(x, verbose=0).argmax(1) == labels)


def fine_tune(model, x, labels, epochs=1, callbacks=()):
    model.compile(tf_keras.optimizers.legacy.Adam(1e-4), "sparse_categorical_crossentropy")
    model.fit(x, labels, epochs=epochs, batch_size=32, verbose=0, callbacks=list(callbacks))
    return model


def kernels(model):
    layers = (tf_keras.layers.Conv2D, tf_keras.layers.Dense)
    return {layer.name: layer.kernel.numpy() for layer in model.layers if type(layer) in layers}


@pytest.mark.thorough
def test_quantisation_aware_training_and_export(trained, tmp_path):
    model, x, labels = trained
    aware = export.quantization_aware(model, representative_data=x)
    # With ranges from data, even the untrained model is an int8 model.
    assert accuracy(aware, x[320:], labels[320:]) > 0.9
    before = {weight.name: weight.numpy() for weight in aware.weights}
    fine_tune(aware, x[:320], labels[:320])
    after = {weight.name: weight.numpy() for weight in aware.weights}
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {"stem_conv/kernel:0", "stage2_block1_1_conv_core/kernel:0", "classifier/bias:0"} <= moved
    # The rescaling of the input does not train.
    assert not {"normalization/depthwise_kernel:0", "normalization/bias:0"} & moved
    assert len(aware.trainable_variables) == len(export.to_tf_keras(model).trainable_variables)
    test = (x[320:], labels[320:])
    report = export.to_litert(aware, tmp_path / "model.tflite", "int8", evaluation_data=test, io_dtype="int8")
    assert report.accuracy > 0.9 and report.agreement > 0.95
    assert not {"MUL", "DEQUANTIZE", "CUSTOM"} & set(report.operators)
    assert export.strip(aware) is aware
    plain = export.to_litert(model, tmp_path / "plain.tflite")
    assert report.size_bytes < 0.5 * plain.size_bytes


@pytest.mark.thorough
def test_ranges_from_data_are_those_of_the_float_model(trained):
    model, x, _ = trained
    legacy = export.to_tf_keras(model)
    aware = export.quantization_aware(legacy, representative_data=x[:128])
    weights = {weight.name: float(weight.numpy()) for weight in aware.weights if weight.shape.rank == 0}
    relu = legacy.get_layer("stage2_block1_relu").output
    expected = tf_keras.Model(legacy.inputs, relu).predict(x[:128], verbose=0)
    assert weights["quant_stage2_block1_relu/output_max:0"] == pytest.approx(expected.max(), rel=0.01)
    logits = np.log(legacy.predict(x[:128], verbose=0))
    spread = (logits.max(1) - logits.min(1)).max()  # softmax keeps differences of logits
    low, high = (weights[f"quant_classifier/pre_activation_{end}:0"] for end in ("min", "max"))
    assert spread <= (high - low) * 1.01 and low <= 0 <= high
    # Statistics of batch-norm have not changed.
    np.testing.assert_array_equal(
        aware.get_layer("quant_stem_bn").layer.moving_mean.numpy(), legacy.get_layer("stem_bn").moving_mean.numpy()
    )


@pytest.mark.thorough
def test_pruning_clustering_and_quantisation_combine(trained, tmp_path):
    model, x, labels = trained
    pruned = export.prune(model, sparsity=0.5, end_step=10, frequency=2)
    fine_tune(pruned, x[:320], labels[:320], 2, [tfmot.sparsity.keras.UpdatePruningStep()])
    stripped = export.strip(pruned)
    assert all(type(layer).__module__.startswith("tf_keras") for layer in stripped.layers)
    assert all(np.mean(kernel == 0) == pytest.approx(0.5, abs=0.03) for kernel in kernels(stripped).values())
    clustered = export.strip(
        fine_tune(export.cluster(stripped, clusters=16, preserve_sparsity=True), x[:320], labels[:320])
    )
    for kernel in kernels(clustered).values():
        assert len(np.unique(kernel)) <= 16 and np.mean(kernel == 0) >= 0.45
    aware = fine_tune(export.quantization_aware(clustered, "both", x), x[:320], labels[:320])
    test = (x[320:], labels[320:])
    report = export.to_litert(aware, tmp_path / "model.tflite", "int8", evaluation_data=test)
    assert report.accuracy > 0.85
    zeros, distinct = int8_kernels(report.path)
    assert min(zeros) > 0.4 and max(distinct) <= 17


def int8_kernels(path):
    """Returns for each convolution in a file the part of zero weights, and the most different values in a channel."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path)
    interpreter.allocate_tensors()
    zeros, distinct = [], []
    for detail in interpreter.get_tensor_details():
        if detail["dtype"] == np.int8 and len(detail["quantization_parameters"]["scales"]) > 3:
            weights = interpreter.get_tensor(detail["index"])
            zeros.append(np.mean(weights == 0))
            distinct.append(max(len(np.unique(channel)) for channel in weights))
    return zeros, distinct


@pytest.mark.thorough
def test_clusters_alone(trained):
    model, x, labels = trained
    clustered = export.strip(fine_tune(export.cluster(model, clusters=np.int64(8)), x[:320], labels[:320]))
    assert all(len(np.unique(kernel)) <= 8 for kernel in kernels(clustered).values())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: export.quantization_aware(m, preserve="colour"), "Received: preserve='colour'"),
        (lambda m: export.prune(m, sparsity=1.0), "Received: sparsity=1.0"),
        (lambda m: export.prune(m, sparsity="half"), "Received: sparsity='half'"),
        (lambda m: export.cluster(m, clusters=2.5), "Received: clusters=2.5"),
        (lambda m: export.cluster(m, clusters=1), "Received: clusters=1"),
        (lambda m: export.strip(m), "Expected a tf_keras model"),
        (lambda m: export.to_tf_keras("model"), "Expected a built Keras model"),
    ],
)
def test_bad_arguments(trained, call, message):
    with pytest.raises(ValueError, match=message):
        call(trained[0])
