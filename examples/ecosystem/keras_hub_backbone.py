"""Low-rank keras-hub backbone in keras-hub's own image classifier.

  pip install keras-hub
  python examples/ecosystem/keras_hub_backbone.py [--max_macs=0.5] [--epochs=3] [--output=classifier.keras]

The backbone is a small ResNet with random weights, trained low-rank from scratch on the digits of scikit-learn. For a
trained backbone, such as `keras_hub.models.Backbone.from_preset("resnet_18_imagenet")`, plan with `method="energy"` and
factorise with `factor_initializer="decomposed"`.
"""

import keras
import keras_hub
import numpy as np
from absl import app, flags
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import elrt_keras as elrt
from elrt_keras.terminal.tables import render_table

_MAX_MACS = flags.DEFINE_float("max_macs", 0.5, "Part of the backbone's MACs to keep.")
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Epochs of training.")
_OUTPUT = flags.DEFINE_string("output", None, "Where to save the classifier (.keras).")


def build_backbone():
    """Builds a ResNet of five blocks for images of 32×32 pixels."""
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 128],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(32, 32, 3),
    )


def load_images():
    """Loads the digits as colour images, each pixel enlarged to 4×4."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32") / 8 - 1
    images = np.kron(images, np.ones((1, 4, 4, 3), "float32"))
    return train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)


def main(argv):
    """Builds, plans, factorises, trains."""
    keras.utils.set_random_seed(0)
    backbone = build_backbone()
    plan = elrt.plan_ranks(backbone, max_macs=_MAX_MACS.value)
    penalty = elrt.regularizers.DoubleSoftOrthogonality(1e-2)
    low_rank = elrt.factorize(backbone, plan, factor_regularizer=penalty)
    print(plan)
    rows = []
    for name, model in {"dense": backbone, "low-rank": low_rank}.items():
        costs = elrt.count_costs(model)
        rows.append((name, str(model.output_shape[1:]), f"{costs.macs:,}", f"{costs.params:,}"))
    print(render_table(["backbone", "features", "MACs", "params"], rows))

    # The classifier takes any backbone that maps images to features, dense or low-rank.
    classifier = keras_hub.models.ResNetImageClassifier(backbone=low_rank, num_classes=10, preprocessor=None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"], jit_compile=False)
    train_images, test_images, train_labels, test_labels = load_images()
    for epoch in range(_EPOCHS.value):
        # keras-hub turns arrays into a tf.data.Dataset, which `fit` cannot shuffle.
        order = np.random.default_rng(epoch).permutation(len(train_labels))
        classifier.fit(train_images[order], train_labels[order], batch_size=64, shuffle=False, verbose=0)
        _, accuracy = classifier.evaluate(test_images, test_labels, verbose=0)
        print(f"epoch {epoch + 1}: test accuracy {accuracy:.1%}")
    if _OUTPUT.value:
        classifier.save(_OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
