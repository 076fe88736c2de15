"""Conversion from dense to low-rank: `factorize`."""

import functools
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from elrt_keras import constraints, initializers, regularizers
from elrt_keras.checks import Identifier
from elrt_keras.conversion.recalibrate import Calibration
from elrt_keras.graph.rebuild import check_convertible, rebuild
from elrt_keras.graph.view import View
from elrt_keras.layers.convolutions import STOCK, twin_of
from elrt_keras.ranks.plan import Entry, RankPlan
from elrt_keras.terminal.progress import progress_bar


def factorize(
    model: keras.Model,
    plan: RankPlan | Mapping[str, Entry],
    *,
    factor_initializer: Identifier = "orthogonal_factors",
    factor_regularizer: Identifier | None = None,
    kernel_regularizer: Identifier | None = None,
    factor_constraint: Identifier | None = None,
    recompute: bool = False,
    calibration_data: Any = None,
) -> keras.Model:
    """Makes the low-rank twin of a model: replaces every layer that the plan factorises and keeps all others.

    The new model has its own weights. Biases and layers that stay dense take over the values of `model`. The factors
    come from `factor_initializer`. Names, shared layers and nested models stay. A custom layer becomes a nested
    functional model if one of its layers is replaced. The new model is not compiled.

    Args:
        model: a built Functional or Sequential Keras model.
        plan: a `RankPlan`, or a mapping from layer names to `(format, ranks)` or `None`.
        factor_initializer: an initializer of `elrt_keras.initializers` or of Keras, by name or object;
            `"decomposed"` decomposes the kernels of the model. From an object with a seed each layer gets its own
            derived seed.
        factor_regularizer: regularizer of the orthogonal factors, shared by all layers, by name (`"dso"`, …) or object,
            see `elrt_keras.regularizers`. Its strength is state: models that train with different schedules need
            separate objects.
        kernel_regularizer: regularizer of the composed kernels; `None` keeps that of each layer.
        factor_constraint: constraint of the orthogonal factors, `"stiefel"` or an object.
        recompute: whether training computes the tensors between the factors again for the gradient, to save memory.
        calibration_data: some thousand examples of the training data, for `factor_initializer="decomposed"`, in the
            forms that `recalibrate_batch_norm` takes. The decompositions then minimise the error of each layer's
            outputs, ‖(W − Ŵ)ᵀx‖², from the second moments of its inputs. The batch-norm statistics are also computed
            again from the data. They are kept if they bring the model's outputs on the data closer to those of `model`;
            a line on the standard error reports this.

    Returns:
        A `keras.Model` of the same kind.

    Raises:
        ValueError: if the plan names a layer that the model does not have, factorises nothing, or has an entry that is
            not possible. The message names the layer, and nothing is built before these checks. Also for calibration
            data that do not fit the model, or without `"decomposed"`.

    Example:

    >>> model = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(6, 3, name="conv")])
    >>> low_rank = elrt_keras.factorize(model, {"conv": ("tucker2", (2, 3))})
    >>> low_rank.get_layer("conv").ranks
    (2, 3)
    """
    plan = plan if isinstance(plan, RankPlan) else RankPlan(plan)
    check_convertible(model)
    decomposed = isinstance(factor_initializer, str) and factor_initializer == "decomposed"
    if calibration_data is not None and not decomposed:
        raise ValueError(
            "Expected factor_initializer='decomposed' with calibration data. "
            f"Received: factor_initializer={factor_initializer!r}"
        )
    initializer = initializers.get("zeros" if decomposed else factor_initializer)
    overrides = {
        "factor_regularizer": regularizers.get(factor_regularizer),
        "factor_constraint": constraints.get(factor_constraint),
        "recompute": recompute,
    }
    if kernel_regularizer is not None:
        overrides["kernel_regularizer"] = keras.regularizers.get(kernel_regularizer)
    view = View(model)
    replacements = _checked_replacements(view, plan)
    calibration = None if calibration_data is None else Calibration(model, calibration_data)
    weightings = (
        calibration.weightings(view, [one for _, one in view.layers if id(one) in replacements]) if calibration else {}
    )

    def low_rank_twin(layer):
        index, twin, entry = replacements[id(layer)]
        seeded = _seeded(initializer, index)
        low_rank = twin(ranks=entry.ranks, factor_initializer=seeded, **overrides)

        def set_weights(low_rank):
            if decomposed:
                low_rank.assign_kernel(layer.kernel, weightings.get(id(layer)))
                # The zeros were only a placeholder: a model that starts from zeros cannot be trained.
                low_rank.factor_initializer = initializers.OrthogonalFactors(
                    layer.kernel_initializer or "glorot_uniform"
                )
            low_rank.assign_end(layer)

        return [(low_rank, set_weights)]

    track = functools.partial(progress_bar, told="decomposing kernels") if decomposed else iter
    low_rank = rebuild(view, lambda layer: id(layer) in replacements, low_rank_twin, track)
    if calibration:
        calibration.settle_batch_norm(low_rank)
    return low_rank


def _seeded(initializer, index):
    """Returns the initializer for the layer with number `index`. If it has a seed, the layer gets a derived seed."""
    if hasattr(initializer, "with_seed"):
        return initializer.with_seed(index)
    seed = initializer.get_config().get("seed") if isinstance(initializer, keras.initializers.Initializer) else None
    if not isinstance(seed, int):
        return initializer
    own = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
    return type(initializer).from_config({**initializer.get_config(), "seed": own})


def _checked_replacements(view, plan):
    """Checks the plan. Returns `{id(layer): (index, low-rank class, entry)}` of the layers to replace."""
    layers = dict(view.layers)
    unknown = [name for name in plan if name not in layers]
    if unknown:
        raise ValueError(
            f"Expected a plan for layers of '{view.model.name}', which has {list(layers)}. Received: {unknown}"
        )
    replacements = {}
    for index, (name, entry) in enumerate(plan.factorized().items()):
        layer = layers[name]
        try:
            twin = _checked_twin(layer, entry)
        except ValueError as error:
            raise ValueError(f"Layer {name!r}: {error}") from error
        known = replacements.setdefault(id(layer), (index, twin, entry))[2]
        if known != entry:
            raise ValueError(f"Expected one entry for layer {name!r}, which is shared. Received: {known} and {entry}")
    if not replacements:
        reasons_text = "".join(f"; '{name}': {reason}" for name, reason in plan.reasons.items())
        raise ValueError(
            f"Expected a plan that factorises a layer. Received: plan with {len(plan)} entries, all dense{reasons_text}"
        )
    return replacements


def _checked_twin(layer, entry):
    """Checks that a layer has a low-rank twin at the ranks of the entry. Returns the constructor of the twin."""
    dims = STOCK.get(type(layer))
    if dims is None:
        kinds = ", ".join(kind.__name__ for kind in STOCK)
        raise ValueError(f"expected one of {kinds}. Received: a {type(layer).__name__}")
    twin = twin_of(layer, entry.format)
    if twin is None:
        kind = f"{dims}-D convolutions" if dims else "dense layers"
        raise ValueError(f"expected a format for {kind}. Received: format={entry.format!r}")
    # Makes the layer once, unbuilt, so that errors of its constructor appear here.
    low_rank = twin(ranks=entry.ranks)
    low_rank.format.resolve_ranks(tuple(layer.kernel.shape), entry.ranks)
    return twin
