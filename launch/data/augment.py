"""Augmentation of whole batches: uint8 images `(batch, height, width, channels)` in, uint8 or floats out.

All random numbers are functions of a seed tensor, so a resumed run sees the same images as an uninterrupted one.
"""

import keras

NAMES = ("crop", "flip", "jitter", "randaugment", "cutout", "mixup", "cutmix")
# Brightness shifts by up to one eighth of the range; contrast and saturation are multiplied by 0.5 to 1.5.
_BRIGHTNESS = (-0.125, 0.125)
_CONTRAST = (0.5, 0.5)  # below and above 1; a single number would only ever raise the contrast
_SATURATION = (1 / 3, 0.6)  # Keras multiplies by f / (1 − f)
# Part of each operation's range: rotations up to 36°, shifts and shears up to a tenth.
_RANDAUGMENT = 0.1
_MIXUP_ALPHA = 0.2


class StepSeed(keras.random.SeedGenerator):
    """Seeds for Keras' random layers that depend only on a given seed, not on the number of earlier calls.

    `start` takes the seed, an int tensor of shape `(2,)`. Each `next` folds one more number into it.
    """

    def __init__(self):
        super().__init__(seed=0)
        self._base, self._drawn = None, 0

    def start(self, seed):
        """Restarts the sequence from `seed`."""
        self._base, self._drawn = seed, 0

    def next(self, ordered=True):
        """Returns the next seed."""
        import tensorflow as tf

        self._drawn += 1
        return tf.random.fold_in(self._base, self._drawn)


def _keras_layers(names, channels):
    """Returns `{name: layer}` of the augmentations that are Keras layers; all except `jitter` take pixels 0–255."""
    layers = keras.layers
    makers = {
        # On the 0–255 scale, Keras loses saturation factors below 1.
        "jitter": lambda: layers.RandomColorJitter(
            (0, 1), _BRIGHTNESS, _CONTRAST, _SATURATION if channels == 3 else None, dtype="float32"
        ),
        "randaugment": lambda: layers.RandAugment((0, 255), factor=_RANDAUGMENT, dtype="float32"),
        "mixup": lambda: layers.MixUp(_MIXUP_ALPHA, dtype="float32"),
        "cutmix": lambda: layers.CutMix(dtype="float32"),
    }
    return {name: make() for name, make in makers.items() if name in names}


class Augmentation:
    """Applies the configured augmentations to a batch.

    Args:
        names: tuple of names out of `NAMES`.
        image_shape: `(height, width, channels)`.
        fill: pixel value per channel that `cutout` leaves.
        classes: number of classes, for one-hot labels, which `mixup` and `cutmix` blend.
    """

    def __init__(self, names, image_shape, fill, classes):
        self._names, self._shape, self._fill, self._classes = names, image_shape, fill, classes
        self._seeds = StepSeed()
        self._layers = _keras_layers(names, image_shape[-1])
        for layer in self._layers.values():
            # Keras has no argument for the generator. A layer in tf.data draws from `generator` on the TensorFlow
            # backend, and from `_backend_generators` on the other backends.
            layer.generator = self._seeds
            layer._backend_generators = {"tensorflow": self._seeds}

    def __call__(self, images, labels, seed):
        """Returns float32 images and one-hot (or blended) labels.

        Args:
            images: uint8, `(batch, height, width, channels)`.
            labels: ints, `(batch,)`.
            seed: int tensor of shape `(2,)`, different for each batch.
        """
        import tensorflow as tf

        height = self._shape[0]
        seeds = dict(zip(NAMES, tf.unstack(tf.random.split(seed, len(NAMES)))))
        if "crop" in self._names:
            images = pad_and_crop(images, seeds["crop"], height // 8)
        if "flip" in self._names:
            images = flip(images, seeds["flip"])
        images = tf.cast(images, tf.float32)
        if "jitter" in self._names:
            images = 255.0 * self._layer("jitter", images / 255.0, seeds["jitter"])
        if "randaugment" in self._names:
            images = self._layer("randaugment", images, seeds["randaugment"])
        if "cutout" in self._names:
            images = cutout(images, seeds["cutout"], height // 2, self._fill)
        images, labels = self._mix(images, tf.one_hot(labels, self._classes), seeds)
        return tf.ensure_shape(images, (None, *self._shape)), tf.ensure_shape(labels, (None, self._classes))

    def _layer(self, name, inputs, seed):
        self._seeds.start(seed)
        return self._layers[name](inputs, training=True)

    def _mix(self, images, labels, seeds):
        """Applies MixUp or CutMix; if both are configured, each batch gets one of them at random."""
        import tensorflow as tf

        def mixed(name):
            outputs = self._layer(name, {"images": images, "labels": labels}, seeds[name])
            return outputs["images"], outputs["labels"]

        wanted = [name for name in ("mixup", "cutmix") if name in self._names]
        if not wanted:
            return images, labels
        if len(wanted) == 1:
            return mixed(wanted[0])
        toss = tf.random.stateless_uniform((), tf.random.fold_in(seeds["mixup"], 0)) < 0.5
        return tf.cond(toss, lambda: mixed("mixup"), lambda: mixed("cutmix"))


def pad_and_crop(images, seed, margin):
    """Pads a batch by `margin` zero pixels on each side, and crops each image to its old size at a random place."""
    import tensorflow as tf

    shape = tf.shape(images)
    padded = tf.pad(images, [(0, 0), (margin, margin), (margin, margin), (0, 0)])
    offsets = tf.random.stateless_uniform((shape[0], 2, 1), seed, 0, 2 * margin + 1, tf.int32)
    rows = offsets[:, 0] + tf.range(shape[1])
    columns = offsets[:, 1] + tf.range(shape[2])
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def flip(images, seed):
    """Mirrors each image of a batch left to right with probability one half."""
    import tensorflow as tf

    chosen = tf.random.stateless_uniform((tf.shape(images)[0], 1, 1, 1), seed) < 0.5
    return tf.where(chosen, images[:, :, ::-1], images)


def cutout(images, seed, size, fill):
    """Fills a `size`-pixel square around a random pixel of each image; it may reach over the border.

    Source: DeVries and Taylor, arXiv 1708.04552.
    """
    import tensorflow as tf

    shape = tf.shape(images)
    center = tf.random.stateless_uniform((shape[0], 2, 1), seed)
    rows = tf.range(shape[1]) - tf.cast(center[:, 0] * tf.cast(shape[1], tf.float32), tf.int32)
    columns = tf.range(shape[2]) - tf.cast(center[:, 1] * tf.cast(shape[2], tf.float32), tf.int32)
    low, high = -(size // 2), size - size // 2
    inside_rows = (rows >= low) & (rows < high)
    inside_columns = (columns >= low) & (columns < high)
    inside = inside_rows[:, :, None, None] & inside_columns[:, None, :, None]
    return tf.where(inside, tf.constant(fill, images.dtype), images)
