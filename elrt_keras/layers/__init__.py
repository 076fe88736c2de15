"""Low-rank layers."""

from elrt_keras.layers.convolutions import Tucker2Conv1D, Tucker2Conv2D, Tucker2Conv3D
from elrt_keras.layers.factorized_conv import FactorizedConv

__all__ = ["FactorizedConv", "Tucker2Conv1D", "Tucker2Conv2D", "Tucker2Conv3D"]
