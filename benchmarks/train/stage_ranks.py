"""Rank plans that give the stages of a ResNet different parts of their full ranks."""

import re

import elrt_keras as elrt
from elrt_keras.graph.view import View
from elrt_keras.ranks.budget import Budget
from elrt_keras.ranks.planner import validated_multiple
from elrt_keras.ranks.survey import survey
from elrt_keras.ranks.uniform import ScaledRanks


def plan_by_stage(dense, config, weights):
    """The plan of a run's `max_macs` whose fractions of the full ranks are in proportion to the weights of the stages.

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
