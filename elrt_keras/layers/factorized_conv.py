"""The N-D low-rank convolution: one layer for every format and every number of spatial dimensions.

The leaves in `convolutions.py` add nothing but a format, a dimension and a docstring.
"""

import keras
import numpy as np
from keras import ops

from elrt_keras import formats, initializers
from elrt_keras.formats.base import chain_costs, conv_output_size, dense_stage

_STOCK_CONVOLUTIONS = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}
_EXECUTIONS = ("auto", "chain", "compose")
# Stands in for a spatial size that is unknown at build: large enough that borders do not decide.
_NOMINAL_SIZE = 128


class _Penalty(keras.regularizers.Regularizer):
    """The sum of functions of one variable, as the regularizer object that Keras wants on it."""

    def __init__(self, terms):
        self._terms = terms

    def __call__(self, variable):
        return sum(term(variable) for term in self._terms)


class _Projection(keras.constraints.Constraint):
    """A constraint on a factor read as a matrix."""

    def __init__(self, constraint, view):
        self._constraint, self._view = constraint, view

    def __call__(self, factor):
        return self._view.from_matrix(self._constraint(self._view.to_matrix(factor)), factor.shape)


class FactorizedConv(keras.layers.Layer):
    """A convolution whose kernel is held as the factors of a low-rank format, from the first step to the last.

    The state is the factors (and the bias). The chain of stages equals one convolution with `compose(factors)`,
    padding, strides and dilation included: only the spatial stages have any, and no stage but the last has a bias.

    Attributes:
        ranks: as given until the layer is built, then a tuple of ints, one per rank of the format.
        factors: list of variables, in the order of the chain.
        kernel: the composed dense kernel, `(*kernel_size, C_in, C_out)`.
    """

    format_name = None
    spatial_dims = None

    def __init__(
        self,
        filters,
        kernel_size,
        ranks,
        strides=1,
        padding="valid",
        data_format=None,
        dilation_rate=1,
        groups=1,
        activation=None,
        use_bias=True,
        factor_initializer="orthogonal_factors",
        bias_initializer="zeros",
        factor_regularizer=None,
        kernel_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        factor_constraint=None,
        bias_constraint=None,
        execution="auto",
        **kwargs,
    ):
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        # The stock layer checks and normalises the arguments the two have in common, so that both accept and refuse
        # the same. It never becomes part of this layer.
        if isinstance(filters, bool) or not isinstance(filters, (int, np.integer)):
            raise ValueError(f"`filters` is a positive int. Received: filters={filters!r}")
        stock = _STOCK_CONVOLUTIONS[self.spatial_dims](
            int(filters),
            kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=groups,
            activation=activation,
            use_bias=use_bias,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            bias_constraint=bias_constraint,
            name="argument_check",
        )
        for argument in (
            *("filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate", "groups"),
            *("activation", "use_bias", "bias_initializer", "kernel_regularizer", "bias_regularizer"),
            "bias_constraint",
        ):
            setattr(self, argument, getattr(stock, argument))
        if self.groups != 1:
            raise ValueError(
                "A low-rank convolution has groups=1: the groups of a grouped kernel share no factors, so each would "
                f"need a chain of its own. Keep a grouped convolution dense. Received: groups={groups}"
            )
        if execution not in _EXECUTIONS:
            raise ValueError(f"Expected one of {_EXECUTIONS}. Received: execution={execution!r}")
        self.format = formats.get(self.format_name)
        self._ranks = self.format.validate_ranks(ranks)
        self.factor_initializer = initializers.get(factor_initializer)
        self.factor_regularizer = keras.regularizers.get(factor_regularizer)
        self.factor_constraint = keras.constraints.get(factor_constraint)
        self.execution = execution
        self.factors = []
        self.bias = None
        self._resolved_ranks = None
        self._runs_chain = True
        self.input_spec = keras.layers.InputSpec(min_ndim=self.spatial_dims + 2)

    @property
    def ranks(self):
        return self._ranks if self._resolved_ranks is None else self._resolved_ranks

    @property
    def kernel(self):
        if not self.built:
            raise AttributeError("You must build the layer before accessing `kernel`.")
        return self.format.compose([ops.convert_to_tensor(factor) for factor in self.factors])

    @property
    def kernel_shape(self):
        """Shape of the composed kernel, `(*kernel_size, C_in, C_out)`; known once the layer is built."""
        if not self.built:
            raise AttributeError("You must build the layer before accessing `kernel_shape`.")
        return (*self.kernel_size, self._input_channels, self.filters)

    @property
    def variables(self):
        # The penalty's strength is state that a compiled step has to read, but no weight: like a seed generator's
        # state it is listed here and not under `weights`, so it is neither saved nor counted.
        strength = getattr(self.factor_regularizer, "strength_variable", None)
        return super().variables + ([] if strength is None else [strength])

    def build(self, input_shape):
        channel_axis = self._channel_axis
        channels = input_shape[channel_axis]
        if channels is None:
            raise ValueError(
                f"The channel axis of the input must be known to build '{self.name}'. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self.input_spec = keras.layers.InputSpec(min_ndim=self.spatial_dims + 2, axes={channel_axis: channels})
        self._input_channels = channels
        kernel_shape = (*self.kernel_size, channels, self.filters)
        self.compute_output_shape(input_shape)
        ranks = self.format.resolve_ranks(kernel_shape, self._ranks)
        self._resolved_ranks = ranks
        self._stages = tuple(self.format.stages(kernel_shape, ranks, self.strides, self.dilation_rate))
        self._runs_chain = self._chooses_chain(input_shape)
        self._add_factors(kernel_shape, ranks)
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.filters,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        self.built = True

    def _add_factors(self, kernel_shape, ranks):
        views = {view.index: view for view in self.format.orthogonal_factors(self.spatial_dims)}
        drawn = []

        def initial(index):
            # Drawn on first use and together: Keras may postpone the initialization of variables.
            def initializer(shape, dtype=None):
                if not drawn:
                    drawn.extend(initializers.draw_factors(self.factor_initializer, self.format, kernel_shape, ranks))
                return ops.convert_to_tensor(drawn[index], dtype=dtype)

            return initializer

        self.factors = [
            self.add_weight(
                name=name,
                shape=shape,
                initializer=initial(index),
                regularizer=self._penalty(index, views.get(index)),
                constraint=self._projection(views.get(index)),
            )
            for index, (name, shape) in enumerate(
                zip(self.format.factor_names, self.format.factor_shapes(kernel_shape, ranks))
            )
        ]

    def _penalty(self, index, view):
        """What Keras adds to the loss for factor `index`: its own penalty, and on the core the composed kernel's."""
        terms = []
        if view is not None and self.factor_regularizer is not None:
            terms.append(lambda factor: self.factor_regularizer(view.to_matrix(factor)))
        if index == self.format.core_index and self.kernel_regularizer is not None:
            terms.append(self._kernel_penalty)
        return _Penalty(terms) if terms else None

    def _kernel_penalty(self, core):
        # Keras penalises variable by variable; the other factors are read beside the core it passes in.
        factors = [ops.convert_to_tensor(factor) for factor in self.factors]
        factors[self.format.core_index] = ops.convert_to_tensor(core)
        factors = [
            f if keras.backend.standardize_dtype(f.dtype) == "float64" else ops.cast(f, "float32") for f in factors
        ]
        if type(self.kernel_regularizer) is keras.regularizers.L2:
            return float(self.kernel_regularizer.l2) * self.format.squared_norm(factors)
        return self.kernel_regularizer(self.format.compose(factors))

    def _projection(self, view):
        if view is None or self.factor_constraint is None:
            return None
        return _Projection(self.factor_constraint, view)

    def call(self, inputs):
        factors = [ops.convert_to_tensor(factor) for factor in self.factors]
        if self._runs_chain:
            outputs = inputs
            for stage, factor in zip(self._stages, factors):
                outputs = self._convolve(outputs, factor, stage)
        else:
            kernel = self.format.compose(factors)
            outputs = self._convolve(inputs, kernel, dense_stage(kernel.shape, self.strides, self.dilation_rate))
        if self.bias is not None:
            ones = (1,) * self.spatial_dims
            shape = (1, *ones, -1) if self.data_format == "channels_last" else (1, -1, *ones)
            outputs = ops.add(outputs, ops.reshape(self.bias, shape))
        return outputs if self.activation is None else self.activation(outputs)

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

    def compute_output_shape(self, input_shape):
        spatial = conv_output_size(
            self._spatial_size(input_shape), self.kernel_size, self.strides, self.padding, self.dilation_rate
        )
        if any(size is not None and size <= 0 for size in spatial):
            raise ValueError(
                f"The input of '{self.name}' is too small for kernel_size={self.kernel_size} and "
                f"dilation_rate={self.dilation_rate} with padding '{self.padding}'. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        if self.data_format == "channels_last":
            return (input_shape[0], *spatial, self.filters)
        return (input_shape[0], self.filters, *spatial)

    def compute_macs(self, input_shape):
        """Multiply-accumulates of one example, as the layer executes (composing is not counted: it is per batch).

        Args:
            input_shape: full shape of the input, batch axis included; spatial sizes must be known.
        """
        return self._costs(input_shape, self._runs_chain).macs

    def compute_activations(self, input_shape):
        """Elements of all stage outputs for one example."""
        return self._costs(input_shape, self._runs_chain).activations

    def _costs(self, input_shape, chain):
        stages = self._stages if chain else [self._dense_stage()]
        return chain_costs(stages, self._spatial_size(input_shape), self.padding)

    def _dense_stage(self):
        shape = (*self.kernel_size, self._input_channels, self.filters)
        return dense_stage(shape, self.strides, self.dilation_rate)

    def _chooses_chain(self, input_shape):
        if self.execution != "auto":
            return self.execution == "chain"
        spatial = [_NOMINAL_SIZE if size is None else size for size in self._spatial_size(input_shape)]
        chain = chain_costs(self._stages, spatial, self.padding)
        dense = chain_costs([self._dense_stage()], spatial, self.padding)
        return chain.macs <= dense.macs

    @property
    def _channel_axis(self):
        return -1 if self.data_format == "channels_last" else 1

    def _spatial_size(self, shape):
        if len(shape) != self.spatial_dims + 2:
            raise ValueError(
                f"'{self.name}' takes inputs with {self.spatial_dims + 2} axes (batch, {self.spatial_dims} spatial, "
                f"channels). Received: input_shape={tuple(shape)}"
            )
        return tuple(shape[1:-1] if self.data_format == "channels_last" else shape[2:])

    def assign_kernel(self, kernel):
        """Sets the factors to the best approximation of a dense kernel at the layer's ranks.

        Args:
            kernel: array or tensor of shape `(*kernel_size, C_in, C_out)`.

        Raises:
            ValueError: for another shape.
        """
        kernel = np.asarray(ops.convert_to_numpy(kernel), dtype="float32")
        if kernel.shape != self.kernel_shape:
            raise ValueError(f"Expected a kernel of shape {self.kernel_shape}. Received: kernel.shape={kernel.shape}")
        for variable, factor in zip(self.factors, self.format.decompose(kernel, self.ranks)):
            variable.assign(factor)

    @classmethod
    def from_dense(cls, layer, ranks, **kwargs):
        """The low-rank twin of a built stock convolution: same name, arguments and bias, decomposed kernel.

        Args:
            layer: a built `keras.layers.Conv1D`, `Conv2D` or `Conv3D` of this layer's dimension.
            ranks: int, tuple or float, as for the constructor.
            **kwargs: further constructor arguments, such as `factor_regularizer`, that override the dense layer's.

        Raises:
            ValueError: for another kind of layer, one that is not built, or one with a `kernel_constraint`, which
                has no counterpart on factors.
        """
        low_rank = cls(**{**dense_arguments(cls, layer), "ranks": ranks, **kwargs})
        if not layer.built:
            raise ValueError(f"Expected a built layer, with weights to take over. Received: layer={layer.name!r}")
        low_rank.build(layer.get_build_config()["input_shape"])
        low_rank.assign_kernel(layer.kernel)
        if layer.use_bias:
            low_rank.bias.assign(layer.bias)
        return low_rank

    def get_config(self):
        config = super().get_config()
        for argument in (
            *("filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate", "groups"),
            *("use_bias", "execution"),
        ):
            config[argument] = getattr(self, argument)
        config["ranks"] = self._ranks
        config["activation"] = keras.activations.serialize(self.activation)
        for argument in ("factor_initializer", "bias_initializer"):
            config[argument] = keras.initializers.serialize(getattr(self, argument))
        for argument in ("factor_regularizer", "kernel_regularizer", "bias_regularizer", "activity_regularizer"):
            config[argument] = keras.regularizers.serialize(getattr(self, argument))
        for argument in ("factor_constraint", "bias_constraint"):
            config[argument] = keras.constraints.serialize(getattr(self, argument))
        return config


def dense_arguments(layer_class, layer):
    """The constructor arguments that a low-rank layer takes over from a stock convolution.

    Raises:
        ValueError: when `layer` is not the stock convolution of the same dimension, or has a kernel constraint.
    """
    stock = _STOCK_CONVOLUTIONS[layer_class.spatial_dims]
    if type(layer) is not stock:
        raise ValueError(
            f"{layer_class.__name__} takes over a keras.layers.{stock.__name__}. "
            f"Received: layer={getattr(layer, 'name', layer)!r} of type {type(layer).__name__}"
        )
    if layer.kernel_constraint is not None:
        raise ValueError(
            "A kernel constraint acts on the dense kernel and has no counterpart on its factors. "
            f"Received: layer={layer.name!r} with kernel_constraint={type(layer.kernel_constraint).__name__}"
        )
    config = layer.get_config()
    for dense_only in ("kernel_initializer", "kernel_constraint", "lora_rank", "lora_alpha"):
        config.pop(dense_only, None)
    config["dtype"] = layer.dtype_policy
    return config
