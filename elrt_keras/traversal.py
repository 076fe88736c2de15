"""Walking the layers of a model, nested models included."""

import keras


def iterate_layers(model, prefix=""):
    """All layers of a model that are no models themselves, as `(path, layer)`.

    The path of a layer is its name, with the names of the nested models that hold it in front: `"backbone/conv1"`. It
    is the key of the layer in a rank plan.
    """
    for layer in model.layers:
        path = f"{prefix}{layer.name}"
        if isinstance(layer, keras.Model):
            yield from iterate_layers(layer, prefix=f"{path}/")
        else:
            yield path, layer
