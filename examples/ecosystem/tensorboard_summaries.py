"""TensorBoard summaries of low-rank training: orthogonality of every factor, ranks of every layer, pictures.

  python examples/ecosystem/tensorboard_summaries.py [--run_dir=runs/tensorboard] [--epochs=8] [--strength=1e-2]
  tensorboard --logdir=runs/tensorboard

After each epoch, the summaries contain the losses of Keras and:

  train/epoch_orthogonality_error_mean, …_max   from `OrthogonalityLogger`, over all factors
  low_rank/orthogonality_error/LAYER/FACTOR     ‖S − I‖_F / √Φ of the single factors
  low_rank/stable_rank/LAYER/RANK               ‖A‖_F² / ‖A‖₂² of the kernel's unfoldings: at most the rank, less where
                                                few directions dominate
  low_rank/spectra                              picture of the singular values
  low_rank/rank_plan/table, …/picture           the plan
"""

import io
import os

import keras
import tensorflow as tf
from absl import app, flags
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import elrt_keras as elrt

_RUN_DIR = flags.DEFINE_string("run_dir", "runs/tensorboard", "Where the event files go.")
_EPOCHS = flags.DEFINE_integer("epochs", 8, "Epochs of training.")
_STRENGTH = flags.DEFINE_float("strength", 1e-2, "Strength ρ of double soft orthogonality.")


class LowRankSummaries(keras.callbacks.Callback):
    """Writes the summaries of a low-rank model after each epoch.

    Args:
        log_dir: folder of the event files.
        plan: the `RankPlan` to show.
    """

    def __init__(self, log_dir, plan):
        super().__init__()
        self._writer = tf.summary.create_file_writer(log_dir)
        self._plan = plan

    def on_train_begin(self, logs=None):
        with self._writer.as_default(step=0):
            # Indented text is shown in a fixed-width font.
            tf.summary.text("rank_plan/table", "\n".join(f"    {line}" for line in str(self._plan).splitlines()))
            tf.summary.image("rank_plan/picture", picture(elrt.plot.rank_plan(self._plan)))

    def on_epoch_end(self, epoch, logs=None):
        with self._writer.as_default(step=epoch):
            for name, error in elrt.callbacks.factor_errors(self.model).items():
                tf.summary.scalar(f"orthogonality_error/{name}", error)
            names = list(self._plan.factorized())
            for name in names:
                layer = self.model.get_layer(name)
                kernel = keras.ops.convert_to_numpy(layer.kernel)
                for rank_name, squares in zip(layer.format.rank_names, layer.format.spectra(kernel)):
                    tf.summary.scalar(f"stable_rank/{name}/{rank_name}", squares.sum() / squares[0])
            tf.summary.image("spectra", picture(elrt.plot.spectra(self.model, layers=names)))

    def on_train_end(self, logs=None):
        self._writer.close()


def picture(figure):
    """Renders a matplotlib figure as a batch of one image, `(1, height, width, 4)` uint8."""
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return tf.image.decode_png(png.getvalue(), channels=4)[None]


def build():
    """Builds a small convolutional network for images of 8×8 pixels."""
    model = keras.Sequential([keras.Input((8, 8, 1))])
    for number, (filters, strides) in enumerate([(32, 1), (32, 1), (64, 2), (64, 1)], start=1):
        name = f"conv{number}"
        model.add(keras.layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False, name=name))
        model.add(keras.layers.BatchNormalization())
        model.add(keras.layers.ReLU())
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(10, activation="softmax", name="classifier"))
    return model


def main(argv):
    """Trains on the digits and writes the event files."""
    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32") / 8 - 1
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=360, random_state=0, stratify=labels
    )
    dense = build()
    plan = elrt.plan_ranks(dense, max_macs=0.4)
    penalty = elrt.regularizers.DoubleSoftOrthogonality(_STRENGTH.value)
    model = elrt.factorize(dense, plan, factor_regularizer=penalty)
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    model.fit(
        train_images,
        train_labels,
        batch_size=64,
        epochs=_EPOCHS.value,
        validation_data=(test_images, test_labels),
        callbacks=[
            elrt.callbacks.OrthogonalityLogger(),  # before TensorBoard, which writes its values
            keras.callbacks.TensorBoard(_RUN_DIR.value, write_graph=False),
            LowRankSummaries(os.path.join(_RUN_DIR.value, "low_rank"), plan),
        ],
        verbose=2,
    )
    model.save(os.path.join(_RUN_DIR.value, "model.keras"))
    print(f"tensorboard --logdir={_RUN_DIR.value}")


if __name__ == "__main__":
    app.run(main)
