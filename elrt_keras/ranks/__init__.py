"""Ranks that choose themselves."""

from elrt_keras.ranks.budget import METHODS, plan_ranks
from elrt_keras.ranks.plan import LayerPlan, RankPlan

__all__ = ["METHODS", "LayerPlan", "RankPlan", "plan_ranks"]
