"""Model builders. `build(name, …)` makes a model by name; `list_models()` tells the names."""

if __name__ != "elrt_keras.models":
    # Layers imported under two names are two classes, and models saved with one do not load with the other.
    raise ImportError(f"Import this package as `elrt_keras.models`. Received: import of {__name__!r}")

from elrt_keras.models.resnet_cifar import resnet20, resnet32, resnet44, resnet56, resnet110  # noqa: E402

_BUILDERS = {builder.__name__: builder for builder in (resnet20, resnet32, resnet44, resnet56, resnet110)}

__all__ = ["build", "list_models", *_BUILDERS]


def list_models():
    """The names that `build` knows."""
    return list(_BUILDERS)


def build(name, input_shape=(32, 32, 3), classes=10, plan=None, normalization=None, **kwargs):
    """Builds a model by name; low-rank where a plan says so.

    Args:
        name: one of `list_models()`.
        input_shape: shape of one image, `(height, width, channels)`; pixels are raw, 0–255.
        classes: int, number of classes.
        plan: a `RankPlan`, or a mapping from layer names to `(format, ranks)`; `None` for the dense model.
        normalization: `(mean, std)` of the pixels, each a float or one per channel, on the 0–255 scale; `None` for
            127.5 and 127.5.
        **kwargs: further arguments of the builder; with a plan, also those of `elrt_keras.factorize`.

    Returns:
        A Functional `keras.Model` from raw pixels to class probabilities.

    Raises:
        ValueError: for an unknown name, or what the builder or `factorize` refuses.

    Example:

    >>> model = elrt_keras.models.build("resnet20", classes=10)
    >>> sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    269722
    """
    if name not in _BUILDERS:
        raise ValueError(f"Unknown model. Expected one of {list_models()}. Received: name={name!r}")
    return _BUILDERS[name](input_shape, classes, plan, normalization, **kwargs)
