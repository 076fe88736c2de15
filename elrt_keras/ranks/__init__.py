"""Ranks that choose themselves."""

from elrt_keras.ranks.budget import plan_ranks
from elrt_keras.ranks.plan import LayerPlan, RankPlan

__all__ = ["LayerPlan", "RankPlan", "plan_ranks"]
