"""Draws the pictures of docs/elrt.md into docs/images/: `python docs/figures.py`, about a minute.

The numbers of the chain are those of a layer. The curves come from trainings on the digits of scikit-learn.
"""

import pathlib

import keras
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Polygon
from sklearn.datasets import load_digits

import elrt_keras as elrt

IMAGES = pathlib.Path(__file__).parent / "images"
KERNEL, RANKS, SIZE = (3, 3, 64, 64), (16, 16), (16, 16)
EPOCHS, STRENGTH = 15, 1e-2
ARROW = {"arrowstyle": "-|>", "mutation_scale": 14, "color": "#303f9f"}


def chain():
    """Draws a dense 3×3 convolution above its Tucker-2 chain, with MACs; widths show the numbers of channels."""
    tucker2 = elrt.formats.get("tucker2")
    arguments = (SIZE, (1, 1), "same", (1, 1))
    low = tucker2.costs(KERNEL, RANKS, *arguments)
    dense = elrt.formats.chain.chain_costs([elrt.formats.chain.dense_stage(KERNEL, (1, 1), (1, 1))], SIZE, "same")
    figure = Figure(figsize=(7.5, 3.7), layout="constrained")
    axis = figure.subplots()
    axis.set(xlim=(0, 10), ylim=(0.6, 6.4))
    axis.axis("off")
    _draw_row(axis, 4.4, [KERNEL[-2], KERNEL[-1]], ["3×3\nW"])
    channels = [KERNEL[-2], *RANKS, KERNEL[-1]]
    _draw_row(axis, 1.2, channels, ["1×1\n$U_{in}$", "3×3\ncore G", "1×1\n$U_{out}$"])
    axis.text(0.1, 6.1, _title("dense", dense, dense), fontsize=10)
    axis.text(0.1, 2.9, _title(f"Tucker-2, ranks {RANKS[0]} and {RANKS[1]}", low, dense), fontsize=10)
    figure.savefig(IMAGES / "tucker2_chain.png", dpi=150)


def _title(name, costs, dense):
    part = "" if costs == dense else f" ({costs.macs / dense.macs:.0%} of the MACs)"
    return f"{name}: {costs.params:,} weights, {costs.macs / 1e6:.2f} M MACs on {SIZE[0]}×{SIZE[1]} pixels{part}"


def _draw_row(axis, y, channels, names):
    """Draws feature maps as slabs of `channels`, with arrows for the convolutions between them."""
    places = np.linspace(0.3, 8.6, len(channels))
    for x, count in zip(places, channels):
        width = count / max(KERNEL[-2:])
        for offset in ((0.16, 0.2), (0, 0)):
            corners = np.array([(0, 0), (width, 0), (width, 1.0), (0, 1.0)]) + (x, y) + offset
            axis.add_patch(Polygon(corners, facecolor="#9fa8da", edgecolor="#303f9f"))
        axis.text(x + width / 2, y - 0.4, f"{count} channels", ha="center", fontsize=9)
    for left, right, count, name in zip(places, places[1:], channels, names):
        start = left + count / max(KERNEL[-2:]) + 0.25
        axis.add_patch(FancyArrowPatch((start, y + 0.5), (right - 0.08, y + 0.5), **ARROW))
        axis.text((start + right) / 2, y + 0.62, name, ha="center", va="bottom", fontsize=9)


def digits():
    """Loads images `(N, 8, 8, 1)`, 0–1, and labels."""
    images, labels = load_digits(return_X_y=True)
    return images.reshape(-1, 8, 8, 1).astype("float32") / 16, labels


def network():
    """Builds a dense CNN of four convolutions with batch-norm, as in the package's builders."""
    layers = [keras.Input((8, 8, 1))]
    for number, (filters, strides) in enumerate(((32, 1), (32, 1), (64, 2), (64, 1)), start=1):
        convolution = {"strides": strides, "padding": "same", "use_bias": False, "name": f"conv{number}"}
        layers.append(keras.layers.Conv2D(filters, 3, **convolution))
        layers += [keras.layers.BatchNormalization(), keras.layers.ReLU()]
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10, activation="softmax", name="classifier")]
    return keras.Sequential([*layers, *head])


def train(model, **options):
    """Trains on the digits and returns the history; refuses a training that diverged."""
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy", jit_compile=False)
    history = model.fit(*digits(), batch_size=64, epochs=EPOCHS, verbose=0, **options).history
    if not np.all(np.isfinite(history["loss"])):
        raise ValueError(f"Expected a training with finite losses. Received: {history['loss']}")
    return history


def orthogonality():
    """Draws the orthogonality error over the training, with and without a penalty, from two kinds of factors."""
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    starts = {"orthogonal start": "orthogonal_factors", "Glorot start": "glorot_normal"}
    for axis, (title, start) in zip(axes, starts.items()):
        penalties = {"no penalty": None, f"DSO, ρ = {STRENGTH:g}": elrt.regularizers.DoubleSoftOrthogonality(STRENGTH)}
        for label, penalty in penalties.items():
            keras.utils.set_random_seed(0)
            dense = network()
            plan = elrt.plan_ranks(dense, fraction=0.5)
            low = elrt.factorize(dense, plan, factor_initializer=start, factor_regularizer=penalty)
            before = float(np.mean(list(elrt.callbacks.factor_errors(low).values())))
            history = train(low, callbacks=[elrt.callbacks.OrthogonalityLogger()])
            errors = [before, *history["orthogonality_error_mean"]]
            axis.plot(range(len(errors)), errors, marker=".", label=label)
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean of ‖S − I‖$_F$ / √Φ")
    axes[1].legend()
    figure.savefig(IMAGES / "orthogonality.png", dpi=150)


def spectra():
    """Draws the part of a kernel's squared norm in its leading ranks: untrained, trained, and trained low-rank."""
    keras.utils.set_random_seed(0)
    dense = network()
    plan = elrt.plan_ranks(dense, max_macs=0.4, multiple_of=4)
    low = elrt.factorize(dense, plan, factor_regularizer=elrt.regularizers.DoubleSoftOrthogonality(STRENGTH))
    start = {name: keras.ops.convert_to_numpy(dense.get_layer(name).kernel) for name in ("conv3", "conv4")}
    train(dense)
    train(low)
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (name, kernel) in zip(axes, start.items()):
        kernels = {
            "random start": kernel,
            "trained dense": dense.get_layer(name).kernel,
            "trained low-rank": low.get_layer(name).kernel,
        }
        for label, values in kernels.items():
            energy = elrt.formats.get("tucker2").spectra(keras.ops.convert_to_numpy(values))[1]
            axis.plot(np.arange(len(energy) + 1), np.cumsum([0, *energy]) / energy.sum(), label=label)
        axis.axvline(plan[name].ranks[1], color="gray", linestyle="--", label="r_out of the plan")
        axis.set(title=f"{name}, output channels", xlabel="rank")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("part of ‖W‖$_F^2$ that the rank holds")
    axes[1].legend()
    figure.savefig(IMAGES / "spectra.png", dpi=150)


if __name__ == "__main__":
    chain()
    orthogonality()
    spectra()
