"""Search with KerasTuner over the ranks of every layer and the strength ρ of the orthogonality penalty.

  pip install keras-tuner
  python examples/ecosystem/tune_ranks.py [--trials=6] [--epochs=4] [--price=0.1] [--directory=runs/tuner]

Accuracy alone would choose the highest ranks. So each trial reports a score,

  validation accuracy − price · (MACs / MACs of the dense network),

and the tuner maximises it: at a price of 0.1, halving the MACs is worth five points of accuracy. The search is random;
`keras_tuner.BayesianOptimization` takes the same arguments and needs more trials. A second start with the same
directory resumes the search.
"""

import keras
import keras_tuner
from absl import app, flags
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import elrt_keras as elrt
from elrt_keras.terminal.tables import render_table

_TRIALS = flags.DEFINE_integer("trials", 6, "Networks to train.")
_EPOCHS = flags.DEFINE_integer("epochs", 4, "Epochs of each.")
_PRICE = flags.DEFINE_float("price", 0.1, "Accuracy that all MACs of the dense network are worth.")
_DIRECTORY = flags.DEFINE_string("directory", "runs/tuner", "Where the trials are kept.")


def build_dense():
    """Builds a small convolutional network for images of 8×8 pixels."""
    model = keras.Sequential([keras.Input((8, 8, 1))])
    for number, (filters, strides) in enumerate([(32, 1), (32, 1), (64, 2), (64, 1)], start=1):
        name = f"conv{number}"
        model.add(keras.layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False, name=name))
        model.add(keras.layers.BatchNormalization(momentum=0.9))
        model.add(keras.layers.ReLU())
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(10, activation="softmax", name="classifier"))
    return model


class LowRankNetwork(keras_tuner.HyperModel):
    """The low-rank network of a trial.

    Args:
        price: price of all MACs of the dense network, in accuracy.
    """

    def __init__(self, price):
        super().__init__()
        self.price = price
        self.dense_macs = elrt.count_costs(build_dense()).macs

    def build(self, hp):
        keras.utils.set_random_seed(0)
        dense = build_dense()
        # A plan is a mapping, which the tuner fills here. Ranks are multiples of 8, as in `plan_ranks`.
        plan = {
            name: ("tucker2", (hp.Int(f"{name}_in", 8, largest_in, 8), hp.Int(f"{name}_out", 8, largest_out, 8)))
            for name, largest_in, largest_out in [("conv2", 32, 32), ("conv3", 32, 64), ("conv4", 64, 64)]
        }
        penalty = elrt.regularizers.DoubleSoftOrthogonality(hp.Float("rho", 1e-4, 1e-1, sampling="log"))
        model = elrt.factorize(dense, plan, factor_regularizer=penalty)
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
        return model

    def fit(self, hp, model, *args, **kwargs):
        history = model.fit(*args, **kwargs).history
        accuracy = history["val_accuracy"][-1]
        macs = elrt.count_costs(model).macs
        return {"score": accuracy - self.price * macs / self.dense_macs, "val_accuracy": accuracy, "macs": macs}


def main(argv):
    """Runs the search and prints the trials, the best one first."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32") / 8 - 1
    train_images, other_images, train_labels, other_labels = train_test_split(
        images, labels, test_size=360, random_state=0, stratify=labels
    )
    network = LowRankNetwork(_PRICE.value)
    tuner = keras_tuner.RandomSearch(
        network,
        objective=keras_tuner.Objective("score", "max"),
        max_trials=_TRIALS.value,
        seed=0,
        directory=_DIRECTORY.value,
        project_name="ranks",
    )
    tuner.search(
        train_images,
        train_labels,
        batch_size=64,
        epochs=_EPOCHS.value,
        validation_data=(other_images, other_labels),
        verbose=0,
    )
    rows = []
    for trial in tuner.oracle.get_best_trials(_TRIALS.value):
        hp = trial.hyperparameters
        ranks = [f"{hp.get(f'{name}_in')}×{hp.get(f'{name}_out')}" for name in ("conv2", "conv3", "conv4")]
        accuracy, macs = (trial.metrics.get_best_value(metric) for metric in ("val_accuracy", "macs"))
        part = f"{macs / network.dense_macs:.1%}"
        rows.append((trial.trial_id, *ranks, f"{hp.get('rho'):.1e}", part, f"{accuracy:.1%}", f"{trial.score:.4f}"))
    print(render_table(["trial", "conv2", "conv3", "conv4", "ρ", "MACs of dense", "accuracy", "score"], rows))


if __name__ == "__main__":
    app.run(main)
