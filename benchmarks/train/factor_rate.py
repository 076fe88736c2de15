"""A learning rate of their own for the orthogonal factors of a compiled model."""

import elrt_keras as elrt
from elrt_keras.layers.factorized import FactorizedLayer


def scale_factor_rate(model, multiple):
    """Has the orthogonal factors of a model that is compiled with SGD train at `multiple` times its learning rate.

    Their gradients are multiplied, penalty included, which for SGD comes to the same; their decoupled weight decay
    stays as it is.
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
