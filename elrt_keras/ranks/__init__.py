"""Ranks that choose themselves."""

from elrt_keras.ranks.plan import LayerPlan, RankPlan
from elrt_keras.ranks.planner import METHODS, READ_WEIGHTS, plan_ranks

__all__ = ["METHODS", "READ_WEIGHTS", "LayerPlan", "RankPlan", "plan_ranks"]
