"""The low-rank convolution: equal to a NumPy convolution with its composed kernel, for every argument."""

import keras
import numpy as np
import pytest
from common import (
    EPS,
    compose,
    conv_cases,
    conv_error_bound,
    gradients,
    matrices,
    numpy_conv,
    orthonormality,
    random_array,
    random_examples,
    to_numpy,
    tucker2_compose,
)
from hypothesis import given
from hypothesis import strategies as st

import elrt_keras as elrt
from elrt_keras import formats
from elrt_keras.layers.convolutions import layer_class

pytestmark = pytest.mark.backends

LAYERS = {dims: getattr(elrt.layers, f"Tucker2Conv{dims}D") for dims in (1, 2, 3)}
LEAVES = [(name, dims) for name in formats.names() for dims in formats.get(name).spatial_dims if dims]
STOCK = {dims: getattr(keras.layers, f"Conv{dims}D") for dims in (1, 2, 3)}


def make(case, format_name="tucker2", **arguments):
    *kernel_size, _, filters = case["kernel_shape"]
    leaf = layer_class(format_name, len(kernel_size))
    return leaf(filters, tuple(kernel_size), case["ranks"], **{**case["arguments"], **arguments})


def test_every_format_has_its_layers():
    names = {layer_class(*leaf).__name__ for leaf in LEAVES}
    required = {f"Tucker2Conv{dims}D" for dims in (1, 2, 3)}
    required |= {"SVDConv2D", "SpatialSVDConv2D", "CPConv2D", "TensorTrainConv2D"}
    assert required <= names <= set(elrt.layers.__all__)
    assert layer_class("spatial_svd", 1) is None and layer_class("svd", 0) is elrt.layers.LowRankDense


@pytest.mark.parametrize("format_name", formats.names())
@random_examples(60)
@given(data=st.data(), execution=st.sampled_from(("auto", "chain", "compose")), training=st.booleans())
def test_layer_equals_convolving_with_its_composed_kernel(format_name, data, execution, training):
    case = data.draw(conv_cases(format_name=format_name))
    layer = make(case, format_name, execution=execution, use_bias=False)
    inputs = random_array(*case["input_shape"], seed=3)
    outputs = to_numpy(layer(inputs, training=training))
    assert layer.ranks == case["resolved"]
    expected = numpy_conv(inputs, compose(format_name, layer.factors), **case["arguments"])
    assert outputs.shape == expected.shape == tuple(layer.compute_output_shape(case["input_shape"]))
    bound = conv_error_bound(inputs, layer, EPS["float32"], **case["arguments"])
    assert np.all(np.abs(outputs - expected) <= bound)


GRID = [
    {"strides": strides, "padding": padding, "dilation_rate": dilation, "kernel_size": kernel, "data_format": order}
    for kernel in ((3, 3), (3, 1), (2, 3))
    for strides, dilation in (((1, 1), (1, 1)), ((2, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 1), (1, 2)))
    for padding in ("same", "valid")
    for order in ("channels_last", "channels_first")
]


# Every eleventh case covers each value of each argument; continuous integration runs all cases.
@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("format_name", formats.names())
def test_parity_with_the_dense_convolution_over_a_grid_of_arguments(format_name, step):
    for arguments in GRID[::step]:
        dense = keras.layers.Conv2D(5, activation="tanh", bias_initializer="ones", **arguments)
        shape = (2, 8, 7, 4) if arguments["data_format"] == "channels_last" else (2, 4, 8, 7)
        inputs = random_array(*shape)
        expected = to_numpy(dense(inputs))
        for execution, training in (("chain", False), ("chain", True), ("compose", False)):
            low = layer_class(format_name, 2).from_dense(dense, 1.0, execution=execution)
            outputs = to_numpy(low(inputs, training=training))
            np.testing.assert_allclose(outputs, expected, atol=1e-5, err_msg=str(arguments))


@given(case=conv_cases())
def test_output_shape_is_the_stock_layers(case):
    *kernel_size, _, filters = case["kernel_shape"]
    stock = STOCK[len(kernel_size)](filters, tuple(kernel_size), **case["arguments"])
    shape = case["input_shape"]
    assert make(case).compute_output_shape(shape) == tuple(stock.compute_output_shape(shape))


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_bias_and_activation(data_format):
    layer = elrt.layers.Tucker2Conv2D(
        5,
        3,
        (2, 3),
        data_format=data_format,
        activation="relu",
        bias_initializer=keras.initializers.RandomNormal(seed=1),
    )
    inputs = random_array(2, 6, 6, 6, seed=1)
    outputs = to_numpy(layer(inputs))
    bias = to_numpy(layer.bias).reshape((5,) if data_format == "channels_last" else (5, 1, 1))
    linear = numpy_conv(inputs, tucker2_compose(layer.factors), data_format=data_format) + bias
    bound = conv_error_bound(inputs, layer, EPS["float32"], data_format=data_format) + EPS["float32"]
    assert np.all(np.abs(outputs - np.maximum(linear, 0)) <= bound)
    assert (outputs == 0).any() and (outputs > 0).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("execution, training", [("chain", False), ("chain", True), ("compose", False)])
def test_dtype_policies(dtype, execution, training):
    layer = elrt.layers.Tucker2Conv2D(6, 3, (3, 3), padding="same", dtype=dtype, execution=execution)
    inputs = random_array(1, 5, 5, 4, seed=2)
    outputs = layer(inputs, training=training)
    compute = dtype.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(outputs.dtype) == compute
    stored = "float32" if dtype.startswith("mixed") else dtype
    assert {keras.backend.standardize_dtype(w.dtype) for w in layer.weights} == {stored}
    # Products accumulate in float32. Inputs, factors and the outputs of the stages are rounded to half precision: seven
    # roundings of half an eps, fewer with a composed kernel.
    roundings = None if compute == "float32" else 4
    bound = conv_error_bound(inputs, layer, EPS[compute], roundings, padding="same")
    assert np.all(
        np.abs(to_numpy(outputs) - numpy_conv(inputs, tucker2_compose(layer.factors), padding="same")) <= bound
    )


@pytest.mark.tensorflow
@pytest.mark.parametrize("open_size", [False, True])
def test_training_multiplies_matrices_where_inference_convolves(open_size):
    import tensorflow as tf

    layer = elrt.layers.Tucker2Conv2D(6, 3, (2, 3), strides=2)
    shape = (None, None, None, 4) if open_size else (None, 8, 8, 4)
    operations = {}
    for training in (False, True):
        function = tf.function(lambda x, training=training: layer(x, training=training))
        graph = function.get_concrete_function(tf.TensorSpec(shape)).graph
        operations[training] = [node.type for node in graph.get_operations() if node.type in ("Conv2D", "MatMul")]
    assert operations == {False: ["Conv2D"] * 3, True: ["MatMul", "Conv2D", "MatMul"]}


@pytest.mark.parametrize("ranks, expected", [((2, 2), True), ((16, 16), False)])
def test_auto_takes_the_cheaper_execution(ranks, expected):
    layer = elrt.layers.Tucker2Conv2D(16, 3, ranks, padding="same")
    layer.build((None, 8, 8, 16))
    r_in, r_out = ranks
    chain = 64 * (16 * r_in + 9 * r_in * r_out + r_out * 16)
    dense = 64 * 9 * 16 * 16
    assert (chain <= dense) is expected
    assert layer.compute_macs((1, 8, 8, 16)) == min(chain, dense)


@pytest.mark.parametrize("strides, padding, macs", [(1, "same", 29696), (2, "same", 9216), (2, "valid", 5184)])
def test_auto_counts_the_first_stage_at_the_resolution_of_the_input(strides, padding, macs):
    # 8 × 8 pixels, 8 → 8 channels, ranks (8, 5): the chain takes 64·64 + outputs·400, the dense kernel outputs·576.
    layer = elrt.layers.Tucker2Conv2D(8, 3, (8, 5), strides=strides, padding=padding)
    layer.build((None, 8, 8, 8))
    assert layer.compute_macs((1, 8, 8, 8)) == macs
    forced = elrt.layers.Tucker2Conv2D(8, 3, (8, 5), strides=strides, padding=padding, execution="chain")
    forced.build((None, 8, 8, 8))
    assert (
        forced.compute_macs((1, 8, 8, 8))
        == 4096 + 400 * {(1, "same"): 64, (2, "same"): 16, (2, "valid"): 9}[strides, padding]
    )


def test_kernel_and_assign_kernel():
    layer = elrt.layers.Tucker2Conv2D(6, (3, 2), 1.0)
    with pytest.raises(AttributeError, match="kernel"):  # PyTorch has its own message
        _ = layer.kernel
    layer.build((None, 8, 8, 4))
    np.testing.assert_allclose(to_numpy(layer.kernel), tucker2_compose(layer.factors), atol=1e-6)
    kernel = random_array(3, 2, 4, 6, seed=5)
    layer.assign_kernel(kernel)
    np.testing.assert_allclose(to_numpy(layer.kernel), kernel, atol=1e-5)
    with pytest.raises(ValueError, match=r"\(3, 2, 4, 6\).*Received: kernel.shape=\(3, 3, 4, 6\)"):
        layer.assign_kernel(np.zeros((3, 3, 4, 6)))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_from_dense_keeps_name_arguments_bias_and_at_full_rank_the_outputs(dims):
    padding = "causal" if dims == 1 else "same"
    dense = STOCK[dims](
        5, 3, dilation_rate=2, padding=padding, activation="tanh", bias_initializer="ones", name="the_name"
    )
    inputs = random_array(2, *(6,) * dims, 4, seed=7)
    expected = to_numpy(dense(inputs))
    layer = LAYERS[dims].from_dense(dense, 1.0)
    assert (layer.name, layer.padding, layer.dilation_rate) == ("the_name", padding, (2,) * dims)
    np.testing.assert_allclose(to_numpy(layer(inputs)), expected, atol=1e-5)
    truncated = LAYERS[dims].from_dense(dense, (2, 2), factor_regularizer=elrt.regularizers.SoftOrthogonality())
    assert truncated.ranks == (2, 2) and truncated.factor_regularizer is not None


@pytest.mark.parametrize("make_activation", [lambda: "tanh", keras.layers.PReLU], ids=["function", "layer"])
@pytest.mark.parametrize("dims", [0, 1, 2, 3])
def test_to_dense_is_the_inverse_of_from_dense(dims, make_activation):
    arguments = {"activation": make_activation(), "bias_initializer": "ones", "name": "the_name", "trainable": False}
    dense = STOCK[dims](5, 3, padding="same", **arguments) if dims else keras.layers.Dense(5, **arguments)
    inputs = random_array(2, *(6,) * dims, 4, seed=7)
    expected = to_numpy(dense(inputs))
    if isinstance(dense.activation, keras.layers.Layer):
        dense.activation.set_weights([random_array(*dense.activation.weights[0].shape)])
        expected = to_numpy(dense(inputs))
    low_rank = (LAYERS[dims] if dims else elrt.layers.LowRankDense).from_dense(dense, 1.0)
    back = low_rank.to_dense()
    assert type(back) is type(dense) and back.built
    assert back.get_config() == {**dense.get_config(), "kernel_initializer": back.get_config()["kernel_initializer"]}
    for weight, same in zip(back.get_weights(), dense.get_weights(), strict=True):
        np.testing.assert_allclose(weight, same, atol=1e-5)
    np.testing.assert_allclose(to_numpy(back(inputs)), expected, atol=1e-5)
    low_rank.factors[0].assign(0 * low_rank.factors[0])  # a copy
    np.testing.assert_allclose(to_numpy(back(inputs)), expected, atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX has no float64 unless told so at its start")
@pytest.mark.parametrize("format_name", formats.names())
@pytest.mark.parametrize("execution", ["chain", "compose"])
def test_float64_keeps_its_digits(format_name, execution):
    dense = keras.layers.Conv2D(6, 3, dtype="float64", bias_initializer="ones")
    inputs = random_array(2, 7, 7, 4).astype("float64")
    expected = to_numpy(dense(inputs))
    layer = layer_class(format_name, 2).from_dense(dense, 1.0, execution=execution)
    np.testing.assert_allclose(to_numpy(layer(inputs)), expected, atol=1e-9)  # CP ends its iterations at 1e-9 or so
    np.testing.assert_allclose(to_numpy(layer.kernel), to_numpy(dense.kernel), atol=1e-9)


def test_from_dense_refuses_what_it_cannot_carry_over():
    make_dense = keras.layers.Conv2D
    with pytest.raises(ValueError, match="built layer.*Received: layer='bare'"):
        elrt.layers.Tucker2Conv2D.from_dense(make_dense(4, 3, name="bare"), 2)
    with pytest.raises(ValueError, match="kernel_constraint=NonNeg"):
        elrt.layers.Tucker2Conv2D.from_dense(make_dense(4, 3, kernel_constraint="non_neg"), 2)
    with pytest.raises(ValueError, match="Conv2D. Received: layer='flat' of type Conv1D"):
        elrt.layers.Tucker2Conv2D.from_dense(keras.layers.Conv1D(4, 3, name="flat"), 2)


def bad(message, **arguments):
    return pytest.param({"filters": 4, "kernel_size": 3, "ranks": 2, **arguments}, message, id=str(arguments))


@pytest.mark.parametrize(
    "arguments, message",
    [
        bad(r"int of at least 1.*Received: ranks=0", ranks=0),
        bad(r"Received: ranks=-2", ranks=-2),
        bad(r"Received: ranks=True", ranks=True),
        bad(r"Received: ranks=0.0", ranks=0.0),
        bad(r"Received: ranks=1.5", ranks=1.5),
        bad(r"Received: ranks=nan", ranks=float("nan")),
        bad(r"Received: ranks=\(2, 0\)", ranks=(2, 0)),
        bad(r"Received: ranks=8bit", ranks="8bit"),
        bad(r"2 entries in `ranks` of format 'tucker2', \(r_in, r_out\).*Received: ranks=\(2, 2, 2\)", ranks=(2, 2, 2)),
        bad(r"r_in of at most the full rank, 3.*Received: ranks=\(4, 2\)", ranks=(4, 2)),
        bad(r"r_out of at most the full rank, 4.*Received: ranks=\(2, 5\)", ranks=(2, 5)),
        bad(r"strides=\(2, 2\).*dilation_rate=\(2, 2\)", strides=2, dilation_rate=2),
        bad(r"groups=3", groups=3),
        bad(r"Received: execution='fast'", execution="fast"),
        bad(r"a bool. Received: recompute=1", recompute=1),
        bad(r"padding", padding="full"),
        bad(r"Received: padding=\(1, 1\)", padding=(1, 1)),
        bad(r"Received: padding=\[1, 1\]", padding=[1, 1]),
        bad(r"2 entries.*Received: ranks=\(2, 2, 2\)", ranks=np.array([2, 2, 2])),
        bad(r"Received: filters=2.5", filters=2.5),
        bad(r"Received: factor_initializer='best'", factor_initializer="best"),
        bad(r"Received: factor_initializer=None", factor_initializer=None),
        bad(r"Expected a larger input.*Received: input_shape=\(None, 4, 4, 3\)", kernel_size=5),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        elrt.layers.Tucker2Conv2D(**arguments).build((None, 4, 4, 3))


def test_bad_inputs():
    with pytest.raises(ValueError, match="channel axis.*Received: input_shape"):
        elrt.layers.Tucker2Conv2D(4, 3, 2).build((None, 8, 8, None))
    with pytest.raises(ValueError, match="4 axes"):
        elrt.layers.Tucker2Conv2D(4, 3, 2).build((None, 8, 3))


def fitted(layer, epochs=1):
    model = keras.Sequential([keras.Input((6, 6, 4)), layer, keras.layers.GlobalAveragePooling2D()])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = [to_numpy(weight) for weight in layer.weights]
    history = model.fit(
        random_array(16, 6, 6, 4), random_array(16, layer.filters, seed=1), epochs=epochs, batch_size=8, verbose=0
    )
    return model, before, history


@pytest.mark.parametrize("execution", ["chain", "compose"])
def test_fit_reaches_every_weight(execution):
    layer = elrt.layers.Tucker2Conv2D(6, 3, (2, 3), execution=execution)
    _, before, history = fitted(layer, epochs=3)
    assert len(before) == 4 and history.history["loss"][-1] < history.history["loss"][0]
    for weight, value in zip(layer.weights, before):
        assert np.abs(to_numpy(weight) - value).max() > 1e-6, weight.path


def test_stiefel_constraint_keeps_the_factors_orthonormal_through_fit():
    layer = elrt.layers.Tucker2Conv2D(6, 3, (2, 3), factor_constraint=elrt.constraints.Stiefel())
    _, before, _ = fitted(layer, epochs=2)
    for matrix, start in zip(matrices(layer), (before[0], before[2])):
        assert orthonormality(matrix) < 1e-6  # float32 QR of a few columns
        assert np.abs(matrix - start.reshape(matrix.shape)).max() > 1e-6


def test_factor_penalty_sees_matrices_and_not_the_core():
    layer = elrt.layers.Tucker2Conv2D(7, 3, (3, 4), factor_regularizer=keras.regularizers.L1(0.5))
    layer.build((None, 8, 8, 5))
    assert [factor.regularizer is not None for factor in layer.factors] == [True, False, True]
    expected = 0.5 * sum(np.abs(matrix).sum() for matrix in matrices(layer))
    np.testing.assert_allclose(sum(map(to_numpy, layer.losses)), expected, rtol=1e-6)
    seen = []

    class Shapes(keras.regularizers.Regularizer):
        def __call__(self, matrix):
            seen.append(tuple(matrix.shape))
            return keras.ops.sum(matrix) * 0.0

    layer = elrt.layers.Tucker2Conv2D(7, 3, (3, 4), factor_regularizer=Shapes())
    layer.build((None, 8, 8, 5))
    assert len(layer.losses) == 2 and seen == [(5, 3), (4, 7)]


@pytest.mark.parametrize("regularizer", [keras.regularizers.L2(0.3), keras.regularizers.L1(0.3)])
def test_kernel_penalty_is_that_of_the_composed_kernel(regularizer):
    layer = elrt.layers.Tucker2Conv2D(7, 3, (3, 4), kernel_regularizer=regularizer, factor_initializer="glorot_uniform")
    layer.build((None, 8, 8, 5))
    kernel = tucker2_compose(layer.factors)
    expected = 0.3 * (np.sum(kernel**2) if isinstance(regularizer, keras.regularizers.L2) else np.abs(kernel).sum())
    np.testing.assert_allclose(sum(map(to_numpy, layer.losses)), expected, rtol=1e-5)
    found = gradients(lambda: sum(layer.losses), layer.factors)
    assert all(np.abs(gradient).max() > 0 for gradient in found)


def test_kernel_penalty_of_a_shared_layer_counts_once():
    layer = elrt.layers.Tucker2Conv2D(4, 3, 2, padding="same", kernel_regularizer=keras.regularizers.L2(0.3))
    inputs = keras.Input((6, 6, 4))
    model = keras.Model(inputs, layer(layer(inputs)))
    model(random_array(1, 6, 6, 4))
    expected = 0.3 * np.sum(tucker2_compose(layer.factors) ** 2)
    np.testing.assert_allclose(sum(map(to_numpy, model.losses)), expected, rtol=1e-5)


def test_penalties_are_float32_under_a_half_precision_policy():
    penalties = {"factor_regularizer": elrt.regularizers.DoubleSoftOrthogonality(1.0), "kernel_regularizer": "l2"}
    layer = elrt.layers.Tucker2Conv2D(64, 3, 32, dtype="bfloat16", **penalties)
    layer.build((None, 8, 8, 64))
    assert {keras.backend.standardize_dtype(loss.dtype) for loss in layer.losses} == {"float32"}


def test_strength_is_state_but_no_weight(tmp_path):
    layer = elrt.layers.Tucker2Conv2D(4, 3, 2, factor_regularizer=elrt.regularizers.SoftOrthogonality(0.25))
    layer.build((None, 8, 8, 4))
    strength = layer.factor_regularizer.strength_variable
    assert any(variable is strength for variable in layer.non_trainable_variables)
    assert not any(variable is strength for variable in layer.weights)
    assert layer.count_params() == 4 * 2 + 9 * 2 * 2 + 2 * 4 + 4


def test_layers_that_share_a_regularizer_train_and_count_it_once_as_a_variable():
    regularizer = elrt.regularizers.SoftOrthogonality(0.1)
    layers = [
        elrt.layers.Tucker2Conv2D(
            4, 3, 2, padding="same", factor_regularizer=regularizer, factor_initializer="he_normal"
        )
        for _ in range(2)
    ]
    model = keras.Sequential([keras.Input((6, 6, 4)), *layers, keras.layers.GlobalAveragePooling2D()])
    assert len(model.variables) == len(model.weights) + 1
    expected = sum(float(to_numpy(regularizer(matrix))) for layer in layers for matrix in matrices(layer))
    assert sum(map(to_numpy, model.losses)) == pytest.approx(expected, rel=1e-5)
    model.compile(keras.optimizers.SGD(0.01), "mse")
    before = [to_numpy(weight) for weight in model.weights]
    model.fit(random_array(8, 6, 6, 4), random_array(8, 4, seed=1), verbose=0)
    assert all(np.abs(to_numpy(weight) - value).max() > 0 for weight, value in zip(model.weights, before))


@pytest.mark.parametrize("method", ["compute_macs", "compute_activations", "stock_layers", "to_dense"])
def test_what_only_a_built_layer_knows(method):
    for layer in (elrt.layers.Tucker2Conv2D(4, 3, ranks=2), elrt.layers.LowRankDense(4, ranks=2)):
        with pytest.raises(AttributeError, match=f"You must build the layer before accessing `{method}`"):
            getattr(layer, method)(*([(None, 8, 8, 3)] if method.startswith("compute") else []))


@pytest.mark.parametrize("dims", [0, 2])
def test_a_wrapper_that_assigns_to_the_kernel_is_refused_by_name(dims):
    layer = LAYERS[dims](4, 3, 2) if dims else elrt.layers.LowRankDense(4, 2)
    wrapped = keras.layers.SpectralNormalization(layer)
    received = f"Received: a SpectralNormalization around a {type(layer).__name__}"
    with pytest.raises(ValueError, match=f"Expected a layer that stores its kernel.*factor_constraint.*{received}"):
        wrapped(random_array(2, *(6,) * dims, 4), training=True)


@pytest.mark.parametrize("layer", [elrt.layers.Tucker2Conv2D, elrt.layers.SVDConv2D])
def test_the_bias_goes_along_the_channels_first(layer):
    low_rank = layer(6, 3, ranks=1.0, padding="same", data_format="channels_first", bias_initializer="random_normal")
    images = random_array(2, 3, 7, 6)  # as many columns as channels come out
    outputs = to_numpy(low_rank(images))
    bias = to_numpy(low_rank.bias)
    low_rank.bias.assign(0 * bias)
    added = outputs - to_numpy(low_rank(images))
    np.testing.assert_allclose(added, np.broadcast_to(bias[:, None, None], outputs.shape), atol=1e-5)
