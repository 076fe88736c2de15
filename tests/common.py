"""Helpers that several test modules share: oracles in NumPy, error bounds, gradients on every backend."""

import itertools
import math

import keras
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from elrt_keras import formats
from elrt_keras.graph import paths

# Distance from 1 to the next number: twice the relative error of one rounding.
EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


# `max_examples` of the profile "ci" in conftest.py, for which `random_examples` counts.
_CI_EXAMPLES = 25

# Marks of a test whose many operations JAX compiles one by one, for minutes.
SLOW_ON_JAX = [pytest.mark.slow] if keras.backend.backend() == "jax" else []


def random_examples(count):
    """Returns settings of a property test: `count` examples in continuous integration, fewer in other suites.

    JAX compiles for the shapes of each example, so it gets a quarter of the examples.
    """
    scaled = count * settings().max_examples // _CI_EXAMPLES
    return settings(max_examples=max(scaled // 4 if keras.backend.backend() == "jax" else scaled, 3))


def thorough(*cases):
    """Marks cases of a parametrized test for continuous integration only; a tuple is several arguments."""
    return thorough_but((), cases)


def thorough_but(quick, cases):
    """Marks all cases except those in `quick` for continuous integration only; a tuple is several arguments."""
    marks = [() if case in quick else (pytest.mark.thorough,) for case in cases]
    return [
        pytest.param(*case, marks=mark) if isinstance(case, tuple) else pytest.param(case, marks=mark)
        for case, mark in zip(cases, marks)
    ]


def random_array(*shape, seed=0, scale=1.0):
    """Float32 Gaussian values of a fixed seed."""
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype("float32")


def random_factors(shapes, seed=0):
    """One random array for each shape."""
    return [random_array(*shape, seed=seed + index) for index, shape in enumerate(shapes)]


def unfoldings(kernel):
    """The channel unfoldings: C_in × rest and C_out × rest."""
    return [np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1) for axis in (-2, -1)]


def to_numpy(tensor):
    """A tensor or variable as a float64 array."""
    return np.asarray(keras.ops.convert_to_numpy(tensor)).astype("float64")


def per_axis(value, dims):
    """An int or tuple as a tuple of `dims` ints."""
    return (value,) * dims if isinstance(value, int) else tuple(value)


def numpy_conv(inputs, kernel, strides=1, padding="valid", dilation_rate=1, data_format="channels_last"):
    """N-D cross-correlation in float64, as a sum of shifted matrix products over the kernel's positions."""
    inputs, kernel = np.asarray(inputs, "float64"), np.asarray(kernel, "float64")
    dims = kernel.ndim - 2
    strides, dilation_rate = per_axis(strides, dims), per_axis(dilation_rate, dims)
    if data_format == "channels_first":
        inputs = np.moveaxis(inputs, 1, -1)
    pads, sizes = [(0, 0)], []
    for axis in range(dims):
        size, stride, reach = inputs.shape[axis + 1], strides[axis], dilation_rate[axis] * (kernel.shape[axis] - 1)
        if padding == "same":
            total = max((math.ceil(size / stride) - 1) * stride + reach + 1 - size, 0)
            pads.append((total // 2, total - total // 2))
        else:
            pads.append((reach, 0) if padding == "causal" else (0, 0))
        sizes.append((size + sum(pads[-1]) - reach - 1) // stride + 1)
    padded = np.pad(inputs, [*pads, (0, 0)])
    outputs = np.zeros((inputs.shape[0], *sizes, kernel.shape[-1]))
    for offset in itertools.product(*map(range, kernel.shape[:dims])):
        starts = [position * dilation for position, dilation in zip(offset, dilation_rate)]
        window = [slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(starts, sizes, strides)]
        outputs += padded[(slice(None), *window)] @ kernel[offset]
    return np.moveaxis(outputs, -1, 1) if data_format == "channels_first" else outputs


def depthwise_as_dense(kernel):
    """Returns the dense kernel equal to a depthwise kernel `(*kernel_size, C, multiplier)`."""
    *kernel_size, channels, multiplier = kernel.shape
    dense = np.zeros((*kernel_size, channels, channels * multiplier))
    for channel in range(channels):
        dense[..., channel, channel * multiplier : (channel + 1) * multiplier] = kernel[..., channel, :]
    return dense


def compose(format_name, factors):
    """Composes the dense kernel of factors by the format's defining sum, in float64."""
    factors = [to_numpy(factor) for factor in factors]
    matrices = [
        factor.reshape(factor.shape[-2:]) if factor.size == math.prod(factor.shape[-2:]) else None for factor in factors
    ]
    if format_name == "tucker2":
        return np.einsum("pa,...ab,bq->...pq", matrices[0], factors[1], matrices[2])
    if format_name == "svd":
        return np.einsum("...pa,aq->...pq", factors[0], matrices[1])
    if format_name == "spatial_svd":
        return np.einsum("hpa,waq->hwpq", factors[0][:, 0], factors[1][0])
    if format_name == "cp":
        return np.einsum("pa,...a,aq->...pq", matrices[0], factors[1][..., 0], matrices[2])
    if format_name == "tensor_train":
        return np.einsum("pa,hab,wbc,cq->hwpq", matrices[0], factors[1][:, 0], factors[2][0], matrices[3])
    raise ValueError(format_name)


def tucker2_compose(factors):
    """The dense kernel of Tucker-2 factors."""
    return compose("tucker2", factors)


def matrices(layer):
    """The orthogonal factors of a Tucker-2 layer in float64: `U_in (C_in, r_in)` and `U_out (r_out, C_out)`."""
    return [to_numpy(layer.factors[index]).reshape(layer.factors[index].shape[-2:]) for index in (0, 2)]


def orthonormality(matrix):
    """Returns the largest absolute entry of S − I, where S is the smaller Gram matrix."""
    matrix = np.asarray(matrix, "float64")
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    return np.abs(gram - np.eye(len(gram))).max()


def conv_error_bound(inputs, layer, eps, roundings=None, **arguments):
    """Bounds the rounding error of a low-rank convolution elementwise, for the chain and the composed kernel.

    With n roundings on the longest path from an input to an output, the error is at most n·eps times the same
    convolution of absolute values (Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1).
    """
    shapes = [tuple(factor.shape) for factor in layer.factors]
    if roundings is None:
        # Each stage sums over its kernel and inputs. Composing sums over ranks, the dense kernel over its own.
        chain = sum(math.prod(shape[:-1]) for shape in shapes)
        roundings = chain + sum(shape[-2] for shape in shapes) + math.prod(layer.kernel_shape[:-1]) + 4
    kernel = compose(layer.format_name, [np.abs(to_numpy(factor)) for factor in layer.factors])
    return roundings * eps * numpy_conv(np.abs(inputs), kernel, **arguments) + np.finfo("float32").tiny


def gradients(function, variables):
    """Returns gradients of `function()` by Keras variables as float64 arrays; `None` if it does not depend on one."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow

        with tensorflow.GradientTape() as tape:
            value = function()
        results = tape.gradient(value, [variable.value for variable in variables])
    elif backend == "torch":
        import torch

        results = torch.autograd.grad(function(), [variable.value for variable in variables], allow_unused=True)
    else:
        import jax

        def stateless(values):
            with keras.StatelessScope(state_mapping=list(zip(variables, values))):
                return function()

        results = jax.grad(stateless)([variable.value for variable in variables])
    return [None if result is None else to_numpy(result) for result in results]


@st.composite
def rank_arguments(draw, full_ranks):
    """Draws `(ranks, resolved)`: a value that a user may pass for the full ranks, and the ints that it means."""
    kind = draw(st.sampled_from(("int", "tuple", "float", "mixed")))
    if kind == "int":
        rank = draw(st.integers(1, min(full_ranks)))
        return rank, (rank,) * len(full_ranks)
    ints = tuple(draw(st.integers(1, limit)) for limit in full_ranks)
    # Eighths are exact in binary, so that rounding up has one answer.
    eighths = draw(st.integers(1, 8))
    fraction, floored_up = eighths / 8, tuple(-(-eighths * limit // 8) for limit in full_ranks)
    if kind == "tuple":
        return ints, ints
    if kind == "float" or len(full_ranks) == 1:
        return fraction, floored_up
    return (fraction, *ints[1:]), (floored_up[0], *ints[1:])


@st.composite
def conv_cases(draw, dims=None, format_name="tucker2"):
    """A random convolution: `dict(arguments, ranks, resolved, kernel_shape, input_shape)` (channels last or first)."""
    layer_format = formats.get(format_name)
    dims = dims or draw(st.sampled_from([d for d in (1, 1, 2, 2, 2, 3) if d in layer_format.spatial_dims]))
    kernel_size = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    channels, filters = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    strides = dilation_rate = (1,) * dims
    which = draw(st.sampled_from(("plain", "strides", "dilation")))
    if which == "strides":
        strides = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    elif which == "dilation":
        dilation_rate = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    paddings = ("valid", "same", "causal") if dims == 1 else ("valid", "same")
    padding = draw(st.sampled_from(paddings))
    data_format = draw(st.sampled_from(("channels_last", "channels_last", "channels_first")))
    smallest = [d * (k - 1) + 1 if padding == "valid" else 1 for k, d in zip(kernel_size, dilation_rate)]
    # TensorFlow 2.21 with oneDNN reads out of bounds in stock convolutions of one channel whose strides differ between
    # axes, if the output is one pixel wide. Such inputs get one more step. Each stage of these two formats has strides
    # along one axis, so equal strides cause the same bug there.
    unlike = len(set(strides)) > 1 or format_name in ("spatial_svd", "tensor_train")
    least = strides if unlike and max(strides) > 1 else (0,) * dims
    spatial = tuple(size + more + draw(st.integers(0, 4)) for size, more in zip(smallest, least))
    ranks, resolved = draw(rank_arguments(layer_format.max_ranks((*kernel_size, channels, filters))))
    arguments = {
        "strides": strides,
        "padding": padding,
        "data_format": data_format,
        "dilation_rate": dilation_rate,
    }
    last = data_format == "channels_last"
    return {
        "arguments": arguments,
        "ranks": ranks,
        "resolved": resolved,
        "kernel_shape": (*kernel_size, channels, filters),
        "input_shape": (2, *spatial, channels) if last else (2, channels, *spatial),
    }


# Flags of `elrt-train`: decay takes weights to (1 − 0.1 · 39)·w = −2.9 w each step; with half the
# learning rate to −0.95 w.
DIVERGING = (
    "--epochs=2",
    "--batch_size=32",
    "--weight_decay=39",
    "--weight_decay_kind=decoupled",
    "--lr_schedule=constant",
    "--max_macs=0.3",
)


def randomized(model, seed=0):
    """Sets random values in every weight of a model, with batch-norm statistics (variances stay positive)."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(rng.uniform(0.2, 1.0, weight.shape) * (1 if "variance" in weight.name else rng.choice([-1, 1])))
    return model


def functional():
    """A model with a stem, a layer that is called twice, a nested model and a head, with random weights."""
    inputs = keras.Input((10, 10, 3), name="image")
    x = keras.layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    shared = keras.layers.Conv2D(8, (3, 1), padding="same", activation="tanh", name="shared")
    x = shared(shared(keras.layers.BatchNormalization(name="bn")(x)))
    nested = keras.Sequential(
        [keras.Input((10, 10, 8)), keras.layers.Conv2D(6, 3, strides=2, use_bias=False, name="conv")], name="nested"
    )
    x = nested(x)
    return randomized(keras.Model(inputs, keras.layers.Dense(3, name="head")(keras.layers.Flatten()(x)), name="net"))


def layer_table(model):
    """Paths and class names of all layers."""
    return [(path, type(layer).__name__) for path, layer in paths.iterate_layers(model)]


def model_of(*layers, shape=(8, 8, 6)):
    """A Sequential model of these layers."""
    return keras.Sequential([keras.Input(shape), *layers])


def dense_model():
    """Builds a model with layers that a plan factorises and layers that it leaves dense."""
    return model_of(
        keras.layers.Conv2D(12, 3, padding="same", name="stem"),
        keras.layers.Conv2D(10, 3, padding="same", name="body"),
        keras.layers.DepthwiseConv2D(3, name="depthwise"),
        keras.layers.Conv2D(8, 1, name="pointwise"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(5, name="classifier"),
    )


def grouped_model():
    """Builds a stem, two grouped convolutions (one with single-channel groups), a pointwise one, and a classifier."""
    return randomized(
        model_of(
            keras.layers.Conv2D(32, 3, padding="same", name="stem"),
            keras.layers.Conv2D(64, 3, padding="same", groups=2, activation="relu", name="grouped"),
            keras.layers.Conv2D(64, 3, padding="same", groups=64, name="depthwise"),
            keras.layers.Conv2D(64, 1, groups=4, name="pointwise"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(5, name="head"),
            shape=(12, 12, 3),
        )
    )


GROUPED_PLAN = {"grouped": ("tucker2", (8, 16)), "pointwise": ("svd", 4)}


def curves(axis):
    """Returns `{label: y}` of the lines on a plot's axis, without the lines that mark ranks."""
    return {line.get_label(): line.get_ydata() for line in axis.get_lines() if line.get_gid() != "rank"}
