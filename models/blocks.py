"""Shared parts of all builders: input normalisation, named layers, the head, and the public builder functions.

Convolutions are He-normal and have no bias if batch-norm follows. Data is channels-last, padding is "same".
"""

import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import keras

from elrt_keras.checks import int_in, number_in
from elrt_keras.conversion import factorize
from elrt_keras.formats.arrays import Tensor
from elrt_keras.ranks.plan import Entry, RankPlan

Plan: TypeAlias = RankPlan | Mapping[str, Entry]
# Mean and standard deviation of the pixels, each one number or one number per channel.
Normalization: TypeAlias = tuple[float | Sequence[float], float | Sequence[float]]

_CONVERSION = tuple(inspect.signature(factorize).parameters)[2:]


class Builder(Protocol):
    """Type of a public builder with the common arguments; `elrt_keras.models.build` explains them."""

    __name__: str
    __signature__: inspect.Signature

    def __call__(
        self,
        input_shape: Sequence[int | None] = ...,
        classes: int = ...,
        plan: Plan | None = None,
        normalization: Normalization | None = None,
        *,
        include_top: bool = True,
        classifier_activation: str | Callable[..., Any] | None = "softmax",
        width: float = 1.0,
        **kwargs: Any,
    ) -> keras.Model: ...


def builder(
    name: str,
    features: Callable[..., Tensor],
    *,
    input_shape: tuple[int, ...],
    classes: int,
    options: dict[str, Any] | None = None,
    head: Callable[..., Tensor] | None = None,
    doc: str = "",
) -> Builder:
    """Makes a public builder.

    Args:
        name: name of the builder and of its models.
        features: function `(x, **options)` from normalised pixels to feature maps.
        input_shape: default shape of one image.
        classes: default number of classes.
        options: `{name: default}` of the arguments of `features` and `head` that users may set.
        head: function `(x, classes, activation, **options)` from feature maps to class probabilities; `None` for global
            average pooling and one dense layer.
        doc: first line of the builder's docstring.

    Returns:
        The builder, a function.
    """
    own = {"width": 1.0, **(options or {})}
    accepted = {part: _accepted(part, own) for part in filter(None, (features, head))}

    def build(*args, **kwargs):
        values = build.__signature__.bind(*args, **kwargs)  # pyright: ignore[reportFunctionMemberAccess]
        values.apply_defaults()
        values = values.arguments
        conversion = _conversion(values.pop("conversion", {}), values["plan"], name)
        chosen = {option: values[option] for option in own}
        _check(values["input_shape"], values["classes"], chosen)
        inputs = keras.Input(values["input_shape"], name="image")
        x = normalized(inputs, values["normalization"])
        x = features(x, **{option: chosen[option] for option in accepted[features]})
        if values["include_top"]:
            arguments = (x, int(values["classes"]), values["classifier_activation"])
            x = pooled(*arguments) if head is None else head(*arguments, **{o: chosen[o] for o in accepted[head]})
        model = keras.Model(inputs, x, name=name)
        return model if values["plan"] is None else factorize(model, values["plan"], **conversion)

    keyword = inspect.Parameter.KEYWORD_ONLY
    positional = {"input_shape": input_shape, "classes": classes, "plan": None, "normalization": None}
    named = {"include_top": True, "classifier_activation": "softmax", **own}
    parameters = [
        *(inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=d) for n, d in positional.items()),
        *(inspect.Parameter(n, keyword, default=d) for n, d in named.items()),
        inspect.Parameter("conversion", inspect.Parameter.VAR_KEYWORD),
    ]
    build.__signature__ = inspect.Signature(parameters)
    build.__name__ = build.__qualname__ = name
    shape = ", ".join(map(str, input_shape))
    build.__doc__ = (
        f"{doc}\n\nInput: raw pixels `(batch, height, width, channels)`, by default `(batch, {shape})`. Output: class "
        f"probabilities `(batch, classes)`, by default {classes} of them. Arguments, errors and an example: "
        "`elrt_keras.models.build`."
    )
    return build  # pyright: ignore[reportReturnType]  (`__signature__` gives it this type)


def _accepted(function, own):
    return [name for name in own if name in inspect.signature(function).parameters]


def _conversion(arguments, plan, name):
    unknown = sorted(set(arguments) - set(_CONVERSION))
    if unknown:
        raise TypeError(f"Expected arguments of {name} or of `factorize`. Received: {unknown}")
    if arguments and plan is None:
        raise ValueError(f"Expected a plan for arguments of `factorize`. Received: {sorted(arguments)} with plan=None")
    return arguments


def _check(input_shape, classes, options):
    if not (isinstance(input_shape, (tuple, list)) and len(input_shape) == 3):
        raise ValueError(f"Expected (height, width, channels). Received: input_shape={input_shape!r}")
    *image_size, channels = input_shape
    if not (_is_count(channels) and all(size is None or _is_count(size) for size in image_size)):
        raise ValueError(
            "Expected ints of at least 1 for height, width and channels, or None for a variable height or width. "
            f"Received: input_shape={input_shape!r}"
        )
    int_in(classes, "[1, inf)", "classes")
    number_in(options["width"], "(0, inf)", "width")
    number_in(options.get("dropout", 0.0), "[0, 1)", "dropout")


def _is_count(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1


def widened(channels: int, width: float) -> int:
    """Multiplies the number of channels by `width`; returns at least one."""
    return max(1, round(channels * width))


def normalized(x: Tensor, normalization: Normalization | None) -> Tensor:
    """Normalises pixels: `(x − mean) / std`, with mean and std of the 0–255 scale, one for all or one per channel."""
    pair = (127.5, 127.5) if normalization is None else normalization
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
        raise ValueError(f"Expected (mean, std). Received: normalization={normalization!r}")
    mean, std = pair
    channels = x.shape[-1]
    mean, std = ([float(v) for v in _per_channel(value, channels)] for value in (mean, std))
    if not all(s > 0 for s in std):
        raise ValueError(f"Expected a std above 0. Received: normalization={normalization!r}")
    scale, offset = [1 / s for s in std], [-m / s for m, s in zip(mean, std)]
    # Rescaling computes x · scale + offset in the compute dtype on every backend. It keeps a scale with three axes, and
    # would reshape any other by Keras' global image format.
    return keras.layers.Rescaling(scale=[[scale]], offset=[[offset]], name="normalization")(x)


def _per_channel(value, channels):
    values = list(value) if hasattr(value, "__len__") else [value] * channels
    if len(values) != channels:
        raise ValueError(f"Expected one value per channel, {channels}, in `normalization`. Received: {values}")
    return values


def convolution(x: Tensor, filters: int, size: int, strides: int, name: str, use_bias: bool = False) -> Tensor:
    """Applies a He-normal convolution."""
    return keras.layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding="same",
        data_format="channels_last",
        use_bias=use_bias,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)


def batch_norm(x: Tensor, name: str, gamma: str = "ones", momentum: float = 0.9, epsilon: float = 1e-5) -> Tensor:
    """Applies batch-norm with PyTorch's defaults: ε = 1e-5, and momentum 0.1, which is 0.9 in Keras."""
    return keras.layers.BatchNormalization(
        momentum=momentum, epsilon=epsilon, gamma_initializer=gamma, name=f"{name}_bn"
    )(x)


def relu(x: Tensor, name: str, limit: float | None = None) -> Tensor:
    """Applies ReLU, or ReLU6 with `limit=6`."""
    return keras.layers.ReLU(max_value=limit, name=f"{name}_relu")(x)


def pool(x: Tensor) -> Tensor:
    """Applies global average pooling."""
    return keras.layers.GlobalAveragePooling2D(name="pool", data_format="channels_last")(x)


def classifier(x: Tensor, classes: int, activation: Any) -> Tensor:
    """Applies the last dense layer, He-normal."""
    policy = keras.config.dtype_policy()
    # The loss and its gradient need more digits of probabilities near 0 and 1 than 16 bits have.
    dtype = policy.variable_dtype if policy.name.startswith("mixed_") else policy
    return keras.layers.Dense(
        classes, activation=activation, kernel_initializer="he_normal", name="classifier", dtype=dtype
    )(x)


def pooled(x: Tensor, classes: int, activation: Any) -> Tensor:
    """Applies global average pooling and the classifier."""
    return classifier(pool(x), classes, activation)
