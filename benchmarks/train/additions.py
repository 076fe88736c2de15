"""Parts of a run that `elrt-train` does not have: a learning rate of the factors, and ranks by stage."""

import re

import elrt_keras as elrt
from elrt_keras.graph.view import View
from elrt_keras.layers.factorized import FactorizedLayer
from elrt_keras.ranks.budget import Budget
from elrt_keras.ranks.planner import validated_multiple
from elrt_keras.ranks.survey import survey
from elrt_keras.ranks.uniform import ScaledRanks


def scale_factor_rate(model, multiple):
    """Makes the orthogonal factors of a model compiled with SGD train at `multiple` times its learning rate.

    The function multiplies their gradients, penalty included; for SGD that is equivalent. The decoupled weight decay of
    the factors does not change.
    """
    factors = {
        id(layer.factors[view.index])
        for _, layer in elrt.graph.paths.iterate_layers(model)
        if isinstance(layer, FactorizedLayer)
        for view in layer.format.orthogonal_factors(layer.spatial_dims)
    }
    optimizer = model.optimizer
    variables, apply = model.trainable_variables, optimizer.apply
    scales = [multiple if id(variable) in factors else 1.0 for variable in variables]

    def scaled_apply(gradients, trainable_variables=None):
        apply([scale * gradient for scale, gradient in zip(scales, gradients)], trainable_variables)

    optimizer.apply = scaled_apply


def plan_by_stage(dense, config, weights):
    """Plans ranks for a run's `max_macs`; each stage keeps a part of the full ranks in proportion to its weight.

    Args:
        dense: a model whose layers are named `stage1_…`, `stage2_…` and so on.
        config: a TrainConfig with `max_macs`.
        weights: list of floats, one per stage.
    """
    candidates, reasons = survey(View(dense), config.format, None)
    macs = elrt.count_costs(dense).macs
    budget = Budget(candidates, {"macs": macs}, {"macs": config.max_macs})
    stage = {c.name: int(re.match(r"stage(\d+)_", c.name)[1]) for c in candidates}
    bases = {c.name: [weights[stage[c.name] - 1] * limit for limit in c.limits] for c in candidates}
    multiple_of = validated_multiple(config.multiple_of)
    chosen = ScaledRanks(candidates, bases, multiple_of, True, ["macs"]).solve(budget)
    entries = {c.name: chosen[c.name] and (c.format.name, chosen[c.name]) for c in candidates}
    return elrt.RankPlan({**entries, **dict.fromkeys(reasons)}, reasons)
