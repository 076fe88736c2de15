"""Random models: branches, shared and nested models, custom blocks, frozen parts, several inputs and named outputs."""

import keras
import numpy as np
from hypothesis import strategies as st

layers = keras.layers
SIZE, CHANNELS = 5, 4


@keras.saving.register_keras_serializable("random_models")
class Residual(layers.Layer):
    """A block that can be opened."""

    def __init__(self, **options):
        super().__init__(**options)
        self.conv = layers.Conv2D(CHANNELS, 3, padding="same", name="conv")
        self.norm = layers.BatchNormalization(name="norm")

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build(shape)
        self.built = True

    def call(self, inputs):
        return keras.ops.relu(inputs + self.norm(self.conv(inputs)))

    def get_config(self):
        """Returns the configuration of the base class; without this override, Keras would lose the name."""
        return super().get_config()


@keras.saving.register_keras_serializable("random_models")
class Gated(Residual):
    """A block that stays closed: it has a weight of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.gain = self.add_weight(shape=(), initializer="ones", name="gain")

    def call(self, inputs):
        return inputs + self.gain * self.norm(self.conv(inputs))


@keras.saving.register_keras_serializable("random_models")
class Tied(Residual):
    """A block that stays closed: it reads a weight of the layer in it."""

    def call(self, inputs):
        return self.norm(self.conv(inputs)) * keras.ops.mean(self.conv.kernel)


@keras.saving.register_keras_serializable("random_models")
class Tasked(keras.Model):
    """A functional model with a constructor, a method, a configuration and attributes of its own."""

    def __init__(self, filters=CHANNELS, **options):
        inputs = keras.Input((SIZE, SIZE, CHANNELS), name="task_input")
        self.first = layers.Conv2D(filters, 3, padding="same", name="first")
        features = self.first(inputs)
        second = layers.Conv2D(CHANNELS, 1, name="second")
        super().__init__(inputs, second(features), **options)
        self.filters, self.features, self.parts = filters, {"early": features}, [second]

    def doubled(self, inputs):
        return 2 * self(inputs)

    def get_config(self):
        return {"name": self.name, "filters": self.filters}


def _nested(kind, name):
    inner = [
        layers.Conv2D(CHANNELS, 3, padding="same", name="inner"),
        layers.Activation("tanh", name="activation"),
        layers.Conv2D(CHANNELS, (1, 3), padding="same", use_bias=False, name="last"),
    ]
    if kind == "sequential":
        return keras.Sequential([keras.Input((SIZE, SIZE, CHANNELS)), *inner], name=name)
    inputs = keras.Input((SIZE, SIZE, CHANNELS), name=f"{name}_input")
    x = inputs
    for layer in inner:
        x = layer(x)
    return keras.Model(inputs, keras.ops.add(x, inputs), name=name)


MAKERS = {
    "conv": lambda name: layers.Conv2D(CHANNELS, 3, padding="same", activation="tanh", name=name),
    "grouped": lambda name: layers.Conv2D(CHANNELS, 3, padding="same", groups=2, name=name),
    "norm": lambda name: layers.BatchNormalization(name=name),
    "separable": lambda name: layers.SeparableConv2D(CHANNELS, 3, padding="same", name=name),
    "residual": lambda name: Residual(name=name),
    "gated": lambda name: Gated(name=name),
    "tied": lambda name: Tied(name=name),
    "functional": lambda name: _nested("functional", name),
    "sequential": lambda name: _nested("sequential", name),
    "tasked": lambda name: Tasked(name=name),
}


def random_model(draw):
    """Draws a built model with random weights; some parts are called twice or frozen."""
    tensors = [keras.Input((SIZE, SIZE, CHANNELS), name=f"input{number}") for number in range(draw(st.integers(1, 2)))]
    inputs, parts = list(tensors), []
    for number in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["add", "relu", "again", *MAKERS]))
        source = draw(st.sampled_from(tensors))
        if kind == "add":
            tensors.append(keras.ops.add(source, draw(st.sampled_from(tensors))))
        elif kind == "relu":
            tensors.append(keras.ops.relu(source))
        elif kind == "again" and parts:
            tensors.append(draw(st.sampled_from(parts))(source))
        else:
            parts.append(MAKERS[kind if kind in MAKERS else "conv"](f"part{number}"))
            tensors.append(parts[-1](source))
    # Use all inputs, and have at least one layer to factorise.
    joined = tensors[-1] if len(inputs) == 1 else keras.ops.add(tensors[-1], keras.ops.add(*inputs))
    body = layers.Conv2D(CHANNELS, 3, name="body")(joined)
    heads = {
        f"head{number}": layers.Dense(3, name=f"head{number}")(layers.Flatten()(body))
        for number in range(draw(st.integers(1, 2)))
    }
    structure = draw(st.sampled_from(("one", "list", "dict")))
    outputs = {"one": next(iter(heads.values())), "list": list(heads.values()), "dict": heads}[structure]
    model = keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs, name="random")
    for part in parts:
        frozen = draw(st.sampled_from(("none", "none", "all", "held")))
        if frozen == "all":
            part.trainable = False
        held = getattr(part, "layers", None) or [getattr(part, "norm", None)]
        if frozen == "held" and held[-1] is not None:
            held[-1].trainable = False
    random = np.random.default_rng(0)
    for weight in model.weights:
        low = 0.5 if "variance" in weight.name else -0.5
        weight.assign(random.uniform(low, 1.0, weight.shape))
    return model
