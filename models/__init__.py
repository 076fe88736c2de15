"""Model builders. `build(name, …)` makes a model by name; `list_models()` returns the names.

================  =========  =======  ===========  ===========  =====================================
name                  input  classes   parameters         MACs  source
================  =========  =======  ===========  ===========  =====================================
resnet8             32×32×3       10       75,290      12.24 M  arXiv 1512.03385, section 4.2 (n = 1)
resnet20            32×32×3       10      269,722      40.55 M  arXiv 1512.03385, section 4.2
resnet32            32×32×3       10      464,154      68.86 M  arXiv 1512.03385, section 4.2
resnet44            32×32×3       10      658,586      97.17 M  arXiv 1512.03385, section 4.2
resnet56            32×32×3       10      853,018     125.49 M  arXiv 1512.03385, section 4.2
resnet110           32×32×3       10    1,727,962     252.89 M  arXiv 1512.03385, section 4.2
resnet18_cifar      32×32×3       10   11,173,962     555.42 M  arXiv 1512.03385, 3×3 stem
wide_resnet28_10    32×32×3       10   36,479,194   5,243.33 M  arXiv 1605.07146
vgg16_cifar         32×32×3       10   14,724,042     313.20 M  arXiv 1409.1556, one classifier layer
resnet18          224×224×3     1000   11,689,512   1,814.07 M  arXiv 1512.03385, section 4.1
resnet34          224×224×3     1000   21,797,672   3,663.76 M  arXiv 1512.03385, section 4.1
resnet50          224×224×3     1000   25,557,032   4,089.18 M  arXiv 1512.03385, v1.5
resnet101         224×224×3     1000   44,549,160   7,801.41 M  arXiv 1512.03385, v1.5
resnet152         224×224×3     1000   60,192,808  11,513.63 M  arXiv 1512.03385, v1.5
vgg11             224×224×3     1000  132,868,840   7,609.09 M  arXiv 1409.1556, A, batch-norm
vgg13             224×224×3     1000  133,053,736  11,308.47 M  arXiv 1409.1556, B, batch-norm
vgg16             224×224×3     1000  138,365,992  15,470.26 M  arXiv 1409.1556, D, batch-norm
vgg19             224×224×3     1000  143,678,248  19,632.06 M  arXiv 1409.1556, E, batch-norm
mobilenet_v2      224×224×3     1000    3,504,872     300.77 M  arXiv 1801.04381
================  =========  =======  ===========  ===========  =====================================

The table counts trainable parameters, and the MACs of one image, with the input and the classes shown. All models take
raw pixels, 0–255. `vgg11` to `vgg19` have convolution biases, as the public batch-norm variants do.
"""

if __name__ != "elrt_keras.models":
    # A layer imported under two names is two classes, and a model saved with one does not load with the other.
    raise ImportError(f"Import this package as `elrt_keras.models`. Received: import of {__name__!r}")

import re  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from typing import Any  # noqa: E402

import keras  # noqa: E402

from elrt_keras.checks import one_of  # noqa: E402
from elrt_keras.models.blocks import Normalization, Plan  # noqa: E402
from elrt_keras.models.mobilenet import mobilenet_v2  # noqa: E402
from elrt_keras.models.resnet import resnet18, resnet18_cifar, resnet34, resnet50, resnet101, resnet152  # noqa: E402
from elrt_keras.models.resnet_cifar import resnet8, resnet20, resnet32, resnet44, resnet56, resnet110  # noqa: E402
from elrt_keras.models.vgg import vgg11, vgg13, vgg16, vgg16_cifar, vgg19  # noqa: E402
from elrt_keras.models.wide_resnet import wide_resnet28_10  # noqa: E402

_BUILDERS = {
    builder.__name__: builder
    for builder in (
        *(resnet8, resnet20, resnet32, resnet44, resnet56, resnet110),
        *(resnet18_cifar, wide_resnet28_10, vgg16_cifar),
        *(resnet18, resnet34, resnet50, resnet101, resnet152),
        *(vgg11, vgg13, vgg16, vgg19),
        mobilenet_v2,
    )
}

__all__ = ["build", "default_input_shape", "list_models", *_BUILDERS]  # pyright: ignore[reportUnsupportedDunderAll]


def list_models() -> list[str]:
    """Lists the names that `build` knows.

    Example:

    >>> elrt_keras.models.list_models()[:3]
    ['resnet8', 'resnet20', 'resnet32']
    """
    return list(_BUILDERS)


def build(
    name: str,
    input_shape: Sequence[int | None] | None = None,
    classes: int | None = None,
    plan: Plan | None = None,
    normalization: Normalization | None = None,
    **kwargs: Any,
) -> keras.Model:
    """Builds a model by name: dense, or low-rank by a plan.

    Args:
        name: one of `list_models()`; case, `_` and `-` do not matter.
        input_shape: shape of one image, `(height, width, channels)`; pixels are raw, 0–255. `None` for the model's
            own: `(32, 32, 3)` or `(224, 224, 3)`.
        classes: int, number of classes; `None` for the model's own, 10 or 1000.
        plan: a `RankPlan`, or a mapping from layer names to `(format, ranks)`; `None` for the dense model.
        normalization: `(mean, std)` of the pixels, each one float or one float per channel, on the 0–255 scale; `None`
            for 127.5 and 127.5.
        **kwargs: further arguments of the builder: `include_top` (bool: pooling and classifier),
            `classifier_activation` (`"softmax"`; `None` for logits), `width` (float: factor for all channels),
            `dropout` (VGG-11…19, MobileNetV2, WRN) and `zero_init_residual` (ResNets: the last batch-norm scale of each
            block starts at zero). With a plan, also the arguments of `elrt_keras.factorize`.

    Returns:
        A Functional `keras.Model` from raw pixels to class probabilities.

    Raises:
        ValueError: for an unknown name, or what the builder or `factorize` refuses.
        TypeError: for an argument that the builder does not have.

    Example:

    >>> model = elrt_keras.models.build("resnet20", classes=10)
    >>> sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    269722
    """
    chosen = _builder(name)
    arguments = {"input_shape": input_shape, "classes": classes, "plan": plan, "normalization": normalization}
    return chosen(**{key: value for key, value in arguments.items() if value is not None}, **kwargs)


def default_input_shape(name: str) -> tuple[int, ...]:
    """Returns the default input shape of a model: `(height, width, channels)` of one image.

    Raises:
        ValueError: for an unknown name.

    Example:

    >>> elrt_keras.models.default_input_shape("mobilenet_v2")
    (224, 224, 3)
    """
    return _builder(name).__signature__.parameters["input_shape"].default


def _builder(name):
    def plain(text):
        return re.sub(r"[-_]", "", str(text)).lower()

    known = {plain(model): model for model in _BUILDERS}
    return _BUILDERS[one_of(known.get(plain(name), name), _BUILDERS, "name")]
