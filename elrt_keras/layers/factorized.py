"""Base class of all low-rank layers: they hold factors instead of a kernel.

A subclass names the stock layer that it replaces, and defines how inputs run through the factors.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any, Literal, Self, TypeAlias

import keras
import numpy as np
from keras import ops

from elrt_keras import constraints, formats, initializers, regularizers
from elrt_keras.checks import Identifier, one_of
from elrt_keras.formats.arrays import Tensor
from elrt_keras.formats.base import Ranks
from elrt_keras.formats.weighting import InputWeighting
from elrt_keras.graph.configs import copy_arguments, plain, serialized
from elrt_keras.layers import penalties
from elrt_keras.layers.ways import TrainingWay

Execution: TypeAlias = Literal["auto", "chain", "compose"]
_EXECUTIONS = ("auto", "chain", "compose")
# Arguments that the stock layer does not have. The others are `shared` with it.
_LOW_RANK_ONLY = ("ranks", "factor_initializer", "factor_regularizer", "factor_constraint", "execution", "recompute")
# Attributes that may change after a layer is built. They act from the next call on, or in the next copy of the layer.
_CHANGEABLE = ("activation", "recompute", "factor_initializer", "bias_initializer")


class FactorizedLayer(keras.layers.Layer):
    """A layer that holds its kernel as the factors of a low-rank format, from the first training step to the last.

    Attributes:
        ranks: the argument until the layer is built; then a tuple of ints, one per rank of the format.
        factors: list of variables, in the order of the chain.
        kernel: the composed dense kernel, `(*kernel_size, C_in, C_out)`; `(C_in, C_out)` for a dense layer. For
            a grouped convolution C_in counts the channels of one group, as in Keras.

    Args:
        shared: dict of the constructor arguments that the stock layer has too. The stock layer checks and normalises
            them, so both layers accept and refuse the same arguments.
        ranks, factor_initializer, factor_regularizer, factor_constraint, execution, recompute: as in the subclasses.
        **kwargs: `name`, `dtype`, `trainable`, `activity_regularizer`.

    Raises:
        ValueError: for arguments that the stock layer refuses, ranks out of range, or an unknown `execution`.

    Example:

    >>> layer = elrt_keras.layers.Tucker2Conv2D(32, 3, ranks=0.5, execution="chain")
    >>> layer.build((None, 8, 8, 16))
    >>> layer.ranks, [tuple(factor.shape) for factor in layer.factors]
    ((8, 16), [(1, 1, 16, 8), (3, 3, 8, 16), (1, 1, 16, 32)])
    >>> layer.kernel.shape == (3, 3, 16, 32)
    True
    """

    format_name: str = None  # pyright: ignore[reportAssignmentType]  (every subclass sets these three)
    spatial_dims: int = None  # pyright: ignore[reportAssignmentType]
    stock_class: type[keras.layers.Layer] = None  # pyright: ignore[reportAssignmentType]
    use_bias: bool
    _shared: tuple[str, ...] = ()  # arguments of the stock layer

    def __init__(
        self,
        shared: dict[str, Any],
        ranks: Ranks,
        factor_initializer: Identifier,
        factor_regularizer: Identifier | None,
        factor_constraint: Identifier | None,
        execution: Execution,
        recompute: bool,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        try:
            stock = self.stock_class(**shared, name="argument_check")  # never becomes part of this layer
        except AttributeError as error:  # Keras calls methods of str on some arguments without a check
            raise ValueError(f"Expected arguments of a {self.stock_class.__name__}. Received: {shared}") from error
        for argument in shared:
            setattr(self, argument, plain(getattr(stock, argument)))
        one_of(execution, _EXECUTIONS, "execution")
        if not isinstance(recompute, bool):
            raise ValueError(f"Expected `recompute` as a bool. Received: recompute={recompute!r}")
        self._shared = tuple(shared)
        self.format: formats.Format = formats.get(self.format_name)
        self._ranks = self.format.validate_ranks(ranks)
        self.factor_initializer: Any = initializers.get(factor_initializer)
        self.factor_regularizer: Any = regularizers.get(factor_regularizer)
        self.factor_constraint: Any = constraints.get(factor_constraint)
        self.execution: Execution = execution
        self.recompute = recompute
        self.factors: list[keras.Variable] = []
        self.bias: keras.Variable | None = None
        self._kernel_shape = None
        self._resolved_ranks = None
        self._runs_chain = True
        self._way: TrainingWay | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        fixed = (*self._shared, *_LOW_RANK_ONLY)
        if name in fixed and name not in _CHANGEABLE and getattr(self, "built", False):
            raise AttributeError(
                f"Expected {name!r} to be set before the layer is built. To change it later, make a new layer with "
                f"`{type(self).__name__}.from_config({{**layer.get_config(), {name!r}: …}})`. "
                f"Received: {name}={value!r} for {getattr(self, 'name', None)!r}, which is built"
            )
        super().__setattr__(name, value)

    @property
    def ranks(self) -> Any:
        """The argument `ranks` until the layer is built; then a tuple of ints, one per rank of the format."""
        return self._ranks if self._resolved_ranks is None else self._resolved_ranks

    @property
    def kernel(self) -> Tensor:
        """The composed dense kernel, `(*kernel_size, C_in, C_out)`; known once the layer is built."""
        self._require_built("kernel")
        _refuse_writer(inspect.currentframe())
        return self.format.compose([ops.convert_to_tensor(factor) for factor in self.factors])

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the composed kernel, `(*kernel_size, C_in, C_out)`; known once the layer is built."""
        self._require_built("kernel_shape")
        return self._kernel_shape  # pyright: ignore[reportReturnType]  (known once built)

    def _require_built(self, name):
        if not self.built:
            raise AttributeError(f"You must build the layer before accessing `{name}`.")

    @property
    def runs_chain(self) -> bool:
        """True if inputs run through the chain of stages, False if they run through the composed kernel."""
        return self._runs_chain

    @property
    def variables(self) -> list[keras.Variable]:
        # A compiled step has to read the strength of a penalty, but the strength is no weight. Like the state of a seed
        # generator it is listed here and not under `weights`, so it is neither saved nor counted.
        regularizers = (self.factor_regularizer, self.kernel_regularizer)
        strengths = [getattr(regularizer, "strength_variable", None) for regularizer in regularizers]
        return super().variables + list({id(s): s for s in strengths if s is not None}.values())

    def _build_factors(self, kernel_shape, ranks):
        """Adds the factors and the bias for a kernel of the given shape."""
        self._kernel_shape, self._resolved_ranks = tuple(kernel_shape), ranks
        for argument in ("factor_regularizer", "kernel_regularizer"):
            if isinstance(regularizer := getattr(self, argument), regularizers.OrthogonalityRegularizer):
                regularizer.place_strength(argument)
        views = {view.index: view for view in self.format.orthogonal_factors(self.spatial_dims)}
        drawn = []

        def initial(index):
            # All factors are drawn together at the first use, because Keras may postpone the initialization.
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
                regularizer=penalties.penalty_of(self, index, views.get(index)),
                constraint=penalties.projection_of(self, views.get(index)),
            )
            for index, (name, shape) in enumerate(
                zip(self.format.factor_names, self.format.factor_shapes(kernel_shape, ranks))
            )
        ]
        for index, factor in enumerate(self.factors):
            setattr(self, f"_factor_{index}", factor)  # `tf.train.Checkpoint` finds attributes, not entries of lists
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(kernel_shape[-1],),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        if training:
            # With `recompute` TensorFlow would count a variable twice: as an argument, and as a variable read inside.
            read = (lambda factor: ops.copy(factor.value)) if self.recompute else ops.convert_to_tensor
            outputs = self.run_training(inputs, [read(factor) for factor in self.factors])
        else:
            outputs = self._run(inputs, *(ops.convert_to_tensor(factor) for factor in self.factors))
        outputs = self._add_bias(outputs)
        return outputs if self.activation is None else self.activation(outputs)

    def _run(self, inputs, *factors):
        """Runs inputs through the chain, or through the composed kernel."""
        raise NotImplementedError

    def run_training(self, inputs: Tensor, factors: Sequence[Tensor], way: TrainingWay | None = None) -> Tensor:
        """Runs inputs through the factors as a training step does, without bias and activation.

        Args:
            inputs: tensor.
            factors: tensors in the shapes of `self.factors`.
            way: one of `training_ways`; `None` for `training_way`.
        """
        way = way or self.training_way

        def run(inputs, *factors):
            return self._run_way(way, inputs, factors)

        # With `recompute` the gradient computes the tensors between the stages again.
        return (keras.remat(run) if self.recompute else run)(inputs, *factors)

    def _run_way(self, way, inputs, factors):
        """Runs inputs through the factors in the given way. All ways give equal outputs."""
        raise NotImplementedError

    @property
    def training_way(self) -> TrainingWay:
        """The `TrainingWay` in which the layer runs in training; it can be set to one of `training_ways`.

        Set it before `compile`, or let `elrt_keras.tune_training` set it: the layer reads it at the next trace.
        Inference, saved files and exports do not depend on it. A loaded or cloned layer has the default way.

        Raises:
            ValueError: if it is set to another value.
        """
        self._require_built("training_way")
        return self._way or self.default_way

    @training_way.setter
    def training_way(self, way: TrainingWay) -> None:
        self._require_built("training_way")
        if way not in self.training_ways:
            known = "; ".join(str(way.to_json()) for way in self.training_ways)
            raise ValueError(f"Expected a way to train {self.name!r}: {known}. Received: {way!r}")
        self._way = way

    @property
    def default_way(self) -> TrainingWay:
        """The `TrainingWay` of a layer before tuning."""
        raise NotImplementedError

    @property
    def training_ways(self) -> list[TrainingWay]:
        """All ways in which the layer can train on this backend."""
        raise NotImplementedError

    def way_costs(self, way: TrainingWay, input_shape: Sequence[int]) -> tuple[int, int]:
        """Returns the numbers of elements that training keeps for the gradient, beside inputs and outputs.

        The first number counts per example: the outputs between the convolutions of the way. The second counts per
        batch: the kernels that the way multiplies from several factors. With `recompute` both are 0.

        Args:
            way: one of `training_ways`.
            input_shape: shape of the input with a batch axis; sizes must be known.
        """
        raise NotImplementedError

    def _add_bias(self, outputs):
        return outputs if self.bias is None else ops.add(outputs, self.bias)

    def compute_macs(self, input_shape: Sequence[int | None]) -> int:
        """Counts the multiply-accumulates of one example, for the execution of this layer.

        Composing the kernel is not counted, because it happens once per batch.

        Args:
            input_shape: full shape of the input, batch axis included; spatial sizes must be known.

        Raises:
            AttributeError: before the layer is built.
        """
        self._require_built("compute_macs")
        return self._costs(input_shape, self._runs_chain).macs

    def compute_activations(self, input_shape: Sequence[int | None]) -> int:
        """Counts the elements of all stage outputs of one example. Arguments and errors are those of `compute_macs`."""
        self._require_built("compute_activations")
        return self._costs(input_shape, self._runs_chain).activations

    def _chooses_chain(self, kernel_shape, ranks, strides):
        if self.execution != "auto":
            return self.execution == "chain"
        return self.format.prefers_chain(kernel_shape, ranks, strides)

    def _costs(self, input_shape, chain):
        """`ChainCosts` of one example, through the chain or through the composed kernel."""
        raise NotImplementedError

    def stock_layers(self) -> list[tuple[keras.layers.Layer, list[np.ndarray]]]:
        """Makes stock Keras layers that together equal this layer: its chain, or one layer if it composes its kernel.

        Returns:
            A list of `(layer, weights)`, to be applied one after another. The layers are not built; `weights` is the
            argument of their `set_weights`.

        Raises:
            AttributeError: before the layer is built.
        """
        raise NotImplementedError

    def _stage_names(self):
        """Names of the chain's stock layers. The last one has the name of the layer, which losses and targets use."""
        return [*(f"{self.name}_{name}" for name in self.format.factor_names[:-1]), self.name]

    def _bias_arguments(self):
        """Arguments that the last stock layer takes over: bias, activation and their penalties."""
        names = ("bias_initializer", "bias_regularizer", "bias_constraint", "activity_regularizer")
        activation = copy_arguments(self)["activation"]
        return {"use_bias": self.use_bias, "activation": activation, **{name: getattr(self, name) for name in names}}

    def end_weights(self) -> list[np.ndarray]:
        """The weights that follow the factors, in the order of a stock layer: the bias and those of the activation."""
        bias = [] if self.bias is None else [ops.convert_to_numpy(self.bias)]
        return [*bias, *(self.activation.get_weights() if isinstance(self.activation, keras.layers.Layer) else [])]

    def assign_end(self, layer: keras.layers.Layer) -> None:
        """Copies the weights that follow the kernel of a stock layer: the bias, and any weights of the activation.

        Args:
            layer: a built layer of the stock class, with the same arguments.
        """
        if self.bias is not None:
            # Copied through NumPy. On JAX both layers would share the array, and a compiled step of either reuses it.
            self.bias.assign(ops.convert_to_numpy(layer.bias))
        if isinstance(self.activation, keras.layers.Layer) and layer.activation.built:
            if not self.activation.built:
                self.activation.build(layer.compute_output_shape(layer.get_build_config()["input_shape"]))
            self.activation.set_weights(layer.activation.get_weights())

    def merged(self) -> tuple[keras.layers.Layer, list[np.ndarray]]:
        """Makes the dense twin: an unbuilt stock layer with the same name and arguments, and its weights."""
        left_behind = (*_LOW_RANK_ONLY, "format")
        config = {name: value for name, value in copy_arguments(self).items() if name not in left_behind}
        if isinstance(self.factor_initializer, (initializers.OrthogonalFactors, initializers.Spectral)):
            # The composed kernel started with the variance of this initializer.
            config["kernel_initializer"] = copy.copy(self.factor_initializer.kernel_initializer)
        layer = self.stock_class(**{**config, "dtype": self.dtype_policy})
        return layer, [ops.convert_to_numpy(self.kernel), *self.end_weights()]

    def to_dense(self) -> keras.layers.Layer:
        """Makes the dense twin with the same name, arguments and, up to rounding, outputs: inverse of `from_dense`.

        Penalties and constraints of factors are dropped. Bias and activation are copied with their weights.

        Returns:
            A built stock layer, such as a `keras.layers.Conv2D`, with the composed kernel.

        Raises:
            AttributeError: before the layer is built.

        Example:

        >>> layer = elrt_keras.layers.Tucker2Conv2D(8, 3, ranks=(2, 4), name="stem")
        >>> layer.build((None, 6, 6, 4))
        >>> dense = layer.to_dense()
        >>> type(dense).__name__, dense.name, dense.kernel.shape == (3, 3, 4, 8)
        ('Conv2D', 'stem', True)
        """
        self._require_built("to_dense")
        layer, weights = self.merged()
        input_shape = self.get_build_config()["input_shape"]
        if isinstance(self.activation, keras.layers.Layer) and self.activation.built and not layer.activation.built:
            layer.activation.build(layer.compute_output_shape(input_shape))
        layer.build(input_shape)
        layer.set_weights(weights)
        return layer

    def _composed(self):
        """Like `merged`, but without the kernel penalty: chains drop it too, and it may be a class of this package."""
        layer, weights = self.merged()
        layer.kernel_regularizer = None
        return layer, weights

    def quantize(self, mode: Any = None, **kwargs: Any) -> None:
        """Refuses Keras' own quantisation, which does not support factors.

        Raises:
            NotImplementedError: always; `keras.Model.quantize` shows it as a warning and keeps the layer unchanged.
        """
        raise NotImplementedError(
            f"Expected layers of Keras' own to quantise: `elrt_keras.expand(model)` makes them, and "
            f"`export.to_litert(quantization='int8')` quantises low-rank layers as they are. "
            f"Received: {self.name!r}, a {type(self).__name__}, which stays as it is"
        )

    def assign_kernel(self, kernel: Tensor, weighting: InputWeighting | None = None) -> None:
        """Sets the factors to the best approximation of a dense kernel at the layer's ranks.

        Args:
            kernel: array or tensor of shape `(*kernel_size, C_in, C_out)`.
            weighting: statistics of the layer's inputs. With it the approximation fits the outputs, not the kernel.

        Raises:
            ValueError: for a wrong shape, or values that are not finite.

        Example:

        >>> layer = elrt_keras.layers.Tucker2Conv2D(8, 3, ranks=(4, 8))
        >>> layer.build((None, 6, 6, 4))
        >>> kernel = np.random.default_rng(0).standard_normal((3, 3, 4, 8)).astype("float32")
        >>> layer.assign_kernel(kernel)  # full ranks lose nothing
        >>> np.allclose(keras.ops.convert_to_numpy(layer.kernel), kernel, atol=1e-5)
        True
        """
        dtype = "float64" if self.variable_dtype == "float64" else "float32"
        kernel = np.asarray(ops.convert_to_numpy(kernel), dtype=dtype)
        if kernel.shape != self.kernel_shape:
            raise ValueError(f"Expected a kernel of shape {self.kernel_shape}. Received: kernel.shape={kernel.shape}")
        if not np.all(np.isfinite(kernel)):
            raise ValueError(f"Expected a kernel of finite numbers for '{self.name}'. Received: NaN or infinity")
        if weighting is None:
            factors = self.format.decompose(kernel, self.ranks)
        else:
            factors = weighting.decompose(self.format, kernel, self.ranks)
        for variable, factor in zip(self.factors, factors):
            variable.assign(factor)

    @classmethod
    def dense_arguments(cls, layer: keras.layers.Layer) -> dict[str, Any]:
        """Returns the constructor arguments that the low-rank twin takes over from a stock layer.

        Raises:
            ValueError: if `layer` is not of the stock class, has a kernel constraint, or is quantised.
        """
        if type(layer) is not cls.stock_class:
            raise ValueError(
                f"Expected a keras.layers.{cls.stock_class.__name__} for {cls.__name__}. "
                f"Received: layer={getattr(layer, 'name', layer)!r} of type {type(layer).__name__}"
            )
        if layer.kernel_constraint is not None:
            raise ValueError(
                "Expected no kernel constraint: it acts on the dense kernel and has no counterpart on factors. "
                f"Received: layer={layer.name!r} with kernel_constraint={type(layer.kernel_constraint).__name__}"
            )
        if isinstance(layer.dtype_policy, keras.dtype_policies.QuantizedDTypePolicy):
            raise ValueError(
                "Expected a layer with weights that can be trained; quantise the low-rank model instead. "
                f"Received: layer={layer.name!r} with dtype={layer.dtype_policy.name!r}"
            )
        taken = {*inspect.signature(cls.__init__).parameters, "name", "trainable"}
        arguments = {name: value for name, value in copy_arguments(layer).items() if name in taken}
        return {**arguments, "dtype": layer.dtype_policy}

    @classmethod
    def from_dense(cls, layer: keras.layers.Layer, ranks: Ranks, **kwargs: Any) -> Self:
        """Makes the low-rank twin of a built stock layer: same name, arguments and bias, decomposed kernel.

        Args:
            layer: a built layer of the stock class of this one, such as `keras.layers.Conv2D`.
            ranks: int, tuple or float, as for the constructor.
            **kwargs: further constructor arguments, such as `factor_regularizer`; they override the dense layer's.

        Raises:
            ValueError: for a layer of another class, one that is not built, or one with a `kernel_constraint`, which
                has no counterpart on factors.

        Example:

        >>> dense = keras.layers.Conv2D(8, 3, name="stem")
        >>> dense.build((None, 6, 6, 4))
        >>> low_rank = elrt_keras.layers.Tucker2Conv2D.from_dense(dense, ranks=0.5)
        >>> low_rank.name, low_rank.ranks
        ('stem', (2, 4))
        """
        low_rank = cls(**{**cls.dense_arguments(layer), "ranks": ranks, **kwargs})
        if not layer.built:
            raise ValueError(f"Expected a built layer, with weights to take over. Received: layer={layer.name!r}")
        low_rank.build(layer.get_build_config()["input_shape"])
        low_rank.assign_kernel(layer.kernel)
        low_rank.assign_end(layer)
        return low_rank

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for argument in (*self._shared, "activity_regularizer", *_LOW_RANK_ONLY):
            config[argument] = serialized(argument, getattr(self, argument))
        config["ranks"] = self._ranks  # as given: a fraction stays one
        return config


def _refuse_writer(frame):
    """Refuses a layer that reads `kernel` in order to assign to it later. Keras would fail without saying why.

    Keras has one such layer. The inner layer can recognise it only by the frame that reads `kernel`.
    """
    reader = frame.f_back.f_locals.get("self")
    if isinstance(reader, keras.layers.SpectralNormalization):
        raise ValueError(
            f"Expected a layer that stores its kernel; a low-rank layer composes it. To limit its factors instead, use "
            f"factor_constraint='stiefel' or factor_regularizer='srip'. "
            f"Received: a SpectralNormalization around a {type(frame.f_locals['self']).__name__}"
        )
