"""The N-D low-rank convolution: one layer for every format and every number of spatial dimensions.

The leaf classes in `convolutions.py` add only a format, a number of dimensions and a docstring.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from elrt_keras import formats
from elrt_keras.checks import Identifier, int_in
from elrt_keras.formats.arrays import joined, split
from elrt_keras.formats.base import Ranks
from elrt_keras.formats.chain import chain_costs, conv_output_size, dense_stage
from elrt_keras.layers import ways
from elrt_keras.layers.factorized import Execution, FactorizedLayer
from elrt_keras.layers.ways import TrainingWay


class FactorizedConv(FactorizedLayer):
    """A convolution that holds its kernel as the factors of a low-rank format, from the first step to the last.

    The state is the factors (and the bias). The chain of stages equals one convolution with `compose(factors)`,
    padding, strides and dilation included. Only the spatial stages have padding, strides or dilation, and only the last
    stage has a bias.

    Arguments, shapes and errors are those of a leaf class such as `Tucker2Conv2D`. A leaf class sets the format and the
    number of spatial axes.

    Example:

    >>> layer = elrt_keras.layers.SVDConv2D(8, 3, ranks=4, strides=2, padding="same")
    >>> isinstance(layer, elrt_keras.layers.FactorizedConv), layer.compute_output_shape((None, 9, 9, 3))
    (True, (None, 5, 5, 8))
    """

    filters: int
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation_rate: tuple[int, ...]
    padding: str
    data_format: str
    groups: int

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        ranks: Ranks,
        strides: int | Sequence[int] = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = 1,
        groups: int = 1,
        activation: str | Callable[..., Any] | None = None,
        use_bias: bool = True,
        factor_initializer: Identifier = "orthogonal_factors",
        bias_initializer: Identifier = "zeros",
        factor_regularizer: Identifier | None = None,
        kernel_regularizer: Identifier | None = None,
        bias_regularizer: Identifier | None = None,
        activity_regularizer: Identifier | None = None,
        factor_constraint: Identifier | None = None,
        bias_constraint: Identifier | None = None,
        execution: Execution = "auto",
        recompute: bool = False,
        **kwargs: Any,
    ):
        if not isinstance(padding, str):  # Keras takes pairs of numbers here and fails at the first call
            raise ValueError(f"Expected `padding` as a string such as 'same'. Received: padding={padding!r}")
        shared = {
            "filters": int_in(filters, "[1, inf)", "filters"),
            "kernel_size": kernel_size,
            "strides": strides,
            "padding": padding,
            "data_format": data_format,
            "dilation_rate": dilation_rate,
            "groups": groups,
            "activation": activation,
            "use_bias": use_bias,
            "bias_initializer": bias_initializer,
            "kernel_regularizer": kernel_regularizer,
            "bias_regularizer": bias_regularizer,
            "bias_constraint": bias_constraint,
        }
        super().__init__(
            shared,
            ranks,
            factor_initializer,
            factor_regularizer,
            factor_constraint,
            execution,
            recompute,
            activity_regularizer=activity_regularizer,
            **kwargs,
        )
        self.format = formats.grouped(self.format, self.groups)
        self.input_spec = keras.layers.InputSpec(min_ndim=self.spatial_dims + 2)

    def build(self, input_shape: Sequence[int | None]) -> None:
        channels = input_shape[self._channel_axis]
        if channels is None:
            raise ValueError(
                f"Expected a known size of the channel axis of the input to build '{self.name}'. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        if channels % self.groups:
            raise ValueError(
                f"Expected channels of the input of '{self.name}' that are a multiple of groups={self.groups}. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self.input_spec = keras.layers.InputSpec(min_ndim=self.spatial_dims + 2, axes={self._channel_axis: channels})
        kernel_shape = (*self.kernel_size, channels // self.groups, self.filters)
        self.compute_output_shape(input_shape)
        ranks = self.format.resolve_ranks(kernel_shape, self._ranks)
        self._stages = tuple(self.format.stages(kernel_shape, ranks, self.strides, self.dilation_rate))
        self._dense = dense_stage(kernel_shape, self.strides, self.dilation_rate, self.groups)
        self._runs_chain = self._chooses_chain(kernel_shape, ranks, self.strides)
        self._build_factors(kernel_shape, ranks)
        self.built = True

    def _run(self, inputs, *factors):
        """Runs inputs as plain convolutions: through the chain, or through the composed kernel."""
        convolutions = zip(self._stages, factors)
        if not self._runs_chain:
            convolutions = [(self._dense, self.format.compose(list(factors)))]
        for stage, kernel in convolutions:
            inputs = self._convolve(inputs, kernel, stage)
        return inputs

    def _run_way(self, way, inputs, factors):
        kernels = ways.folded_kernels(self.format, self._stages, factors, way.sizes)
        for stage, kernel in zip(self._way_stages(way), kernels):
            inputs = self._convolve_training(inputs, kernel, stage, way)
        return inputs

    def _way_stages(self, way):
        return ways.folded_stages(self._stages, self._dense, way.sizes)

    def _convolve_training(self, inputs, kernel, stage, way):
        """Like `_convolve`, but in ways whose gradient is quicker. Only training uses it: exports need convolutions."""
        # In XLA for CPUs the gradient of a grouped convolution takes longer the more groups it has.
        if stage.groups > 1 and ways.only_cpus("tensorflow", "jax"):
            parts = split(inputs, stage.groups, self._channel_axis), split(kernel, stage.groups, -1)
            outputs = [self._convolve_training(*part, stage.of_one_group(), way) for part in zip(*parts)]
            return joined(outputs, self._channel_axis)
        if way.products and ways.mixes_channels(stage):
            return ways.mix_channels(inputs, kernel, stage)
        if way.shifts and stage.depthwise and None not in inputs.shape[1:]:
            return ways.shift_channels(inputs, kernel, stage, *self._padding_of(inputs, stage))
        return self._convolve(inputs, kernel, stage)

    def _padding_of(self, inputs, stage):
        """Numbers of zeros to pad before and after each spatial axis of channels-last inputs."""
        if self.padding == "same":
            return ways.same_padding(inputs.shape[1:-1], stage)
        spans = [dilation * (size - 1) for dilation, size in zip(stage.dilation_rate, stage.kernel_size)]
        none = [0] * self.spatial_dims
        return (spans, none) if self.padding == "causal" else (none, none)

    @property
    def default_way(self) -> TrainingWay:
        sizes = (1,) * len(self._stages) if self._runs_chain else (len(self._stages),)
        is_last, jax_on_cpus = self.data_format == "channels_last", ways.only_cpus("jax")
        products = keras.backend.backend() == "tensorflow" or jax_on_cpus
        return self._way_of(sizes, is_last and products, is_last and jax_on_cpus)

    @property
    def training_ways(self) -> list[TrainingWay]:
        self._require_built("training_ways")
        # TensorFlow and PyTorch do not fuse shifted products, which therefore take many times as long there.
        options = [(products, shifts) for products in (False, True) for shifts in (False, True)]
        if self.data_format == "channels_first":
            options = [(False, False)]
        elif keras.backend.backend() != "jax":
            options = [(products, False) for products in (False, True)]
        candidates = [self._way_of(sizes, *option) for sizes in ways.foldings(self._stages) for option in options]
        return list(dict.fromkeys(candidates))

    def _way_of(self, sizes, products, shifts):
        """Makes the way, without the options that none of its convolutions can use."""
        stages = self._way_stages(TrainingWay(sizes))
        products = products and any(ways.mixes_channels(stage) for stage in stages)
        return TrainingWay(sizes, products, shifts and any(stage.depthwise for stage in stages))

    def way_costs(self, way: TrainingWay, input_shape: Sequence[int]) -> tuple[int, int]:
        stages = self._way_stages(way)
        if self.recompute:
            return 0, 0
        size, between = self._spatial_size(input_shape), 0
        for stage in stages[:-1]:
            size = conv_output_size(size, stage.kernel_size, stage.strides, self.padding, stage.dilation_rate)
            between += stage.out_channels * math.prod(size)
        folded_weights = sum(stage.weights for stage, count in zip(stages, way.sizes) if count > 1)
        return between, folded_weights

    def _add_bias(self, outputs):
        if self.bias is None:
            return outputs
        ones = (1,) * self.spatial_dims
        if self.data_format == "channels_last":
            return ops.add(outputs, ops.reshape(self.bias, (1, *ones, -1)))
        # `ops.add` is wrong here: on TensorFlow it adds the bias along the last axis if that has the same length.
        return outputs + ops.reshape(self.bias, (1, -1, *ones))

    def _convolve(self, inputs, kernel, stage):
        padding = self.padding
        if padding == "causal":
            before = stage.dilation_rate[0] * (stage.kernel_size[0] - 1)
            spatial_axis = 1 if self.data_format == "channels_last" else 2
            if before:
                inputs = ops.pad(inputs, [(before, 0) if axis == spatial_axis else (0, 0) for axis in range(3)])
            padding = "valid"
        convolve = ops.depthwise_conv if stage.depthwise else ops.conv
        return convolve(
            inputs,
            kernel,
            strides=stage.strides,
            padding=padding,
            data_format=self.data_format,
            dilation_rate=stage.dilation_rate,
        )

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        spatial = conv_output_size(
            self._spatial_size(input_shape), self.kernel_size, self.strides, self.padding, self.dilation_rate
        )
        if any(size is not None and size <= 0 for size in spatial):
            raise ValueError(
                f"Expected a larger input of '{self.name}', with kernel_size={self.kernel_size}, "
                f"dilation_rate={self.dilation_rate} and padding '{self.padding}'. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        if self.data_format == "channels_last":
            return (input_shape[0], *spatial, self.filters)
        return (input_shape[0], self.filters, *spatial)

    def stock_layers(self) -> list[tuple[keras.layers.Layer, list[np.ndarray]]]:
        self._require_built("stock_layers")
        if not self._runs_chain:
            return [self._composed()]
        names = self._stage_names()
        last = len(names) - 1
        layers = []
        for index, (stage, factor) in enumerate(zip(self._stages, self.factors)):
            arguments: dict[str, Any] = self._bias_arguments() if index == last else {"use_bias": False}
            end = self.end_weights() if index == last else []
            if stage.depthwise and self.padding == "causal":  # the stock depthwise layer has no causal padding
                before = stage.dilation_rate[0] * (stage.kernel_size[0] - 1)
                padding = {"padding": (before, 0), "data_format": self.data_format, "dtype": self.dtype_policy}
                layers.append((keras.layers.ZeroPadding1D(name=f"{names[index]}_padding", **padding), []))
                arguments["padding"] = "valid"
            layer = self._stock_stage(stage, {**arguments, "name": names[index]})
            layers.append((layer, [ops.convert_to_numpy(factor), *end]))
        return layers

    def _stock_stage(self, stage, arguments):
        arguments = {
            "kernel_size": stage.kernel_size,
            "strides": stage.strides,
            "padding": self.padding,
            "data_format": self.data_format,
            "dilation_rate": stage.dilation_rate,
            "dtype": self.dtype_policy,
            "trainable": self.trainable,
            **arguments,
        }
        if stage.depthwise:
            return _DEPTHWISE[self.spatial_dims](**arguments)
        return self.stock_class(stage.out_channels, groups=stage.groups, **arguments)

    def _costs(self, input_shape, chain):
        size = self._spatial_size(input_shape)
        if None in size:
            raise ValueError(f"Expected known spatial sizes to count costs. Received: input_shape={tuple(input_shape)}")
        return chain_costs(self._stages if chain else [self._dense], size, self.padding)

    @property
    def _channel_axis(self):
        return -1 if self.data_format == "channels_last" else 1

    def _spatial_size(self, shape):
        if len(shape) != self.spatial_dims + 2:
            raise ValueError(
                f"Expected inputs of '{self.name}' with {self.spatial_dims + 2} axes (batch, {self.spatial_dims} "
                f"spatial, channels). Received: input_shape={tuple(shape)}"
            )
        return tuple(shape[1:-1] if self.data_format == "channels_last" else shape[2:])


_DEPTHWISE = {1: keras.layers.DepthwiseConv1D, 2: keras.layers.DepthwiseConv2D}
