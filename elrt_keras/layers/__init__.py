"""Low-rank layers."""

from elrt_keras.layers.convolutions import (
    CPConv1D,
    CPConv2D,
    SpatialSVDConv2D,
    SVDConv1D,
    SVDConv2D,
    SVDConv3D,
    TensorTrainConv2D,
    Tucker2Conv1D,
    Tucker2Conv2D,
    Tucker2Conv3D,
)
from elrt_keras.layers.factorized import FactorizedLayer
from elrt_keras.layers.factorized_conv import FactorizedConv
from elrt_keras.layers.low_rank_conv import LowRankConv1D, LowRankConv2D, LowRankConv3D
from elrt_keras.layers.low_rank_dense import LowRankDense
from elrt_keras.layers.ways import TrainingWay

__all__ = [
    "CPConv1D",
    "CPConv2D",
    "FactorizedConv",
    "FactorizedLayer",
    "LowRankConv1D",
    "LowRankConv2D",
    "LowRankConv3D",
    "LowRankDense",
    "SVDConv1D",
    "SVDConv2D",
    "SVDConv3D",
    "SpatialSVDConv2D",
    "TensorTrainConv2D",
    "TrainingWay",
    "Tucker2Conv1D",
    "Tucker2Conv2D",
    "Tucker2Conv3D",
]
