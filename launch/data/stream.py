"""Data sets too large for memory: images are read, decoded and cropped one by one, ordered by seed and epoch."""

import dataclasses
import os

from absl import logging

from elrt_keras.checks import one_of
from elrt_keras.launch.data.augment import Augmentation
from elrt_keras.launch.data.decode import decoded_or_blank
from elrt_keras.launch.data.interface import Images, local_batch, one_hot_batches, steps_per_epoch
from elrt_keras.launch.data.memory import prepared
from elrt_keras.launch.data.records import RecordSplit, record_splits
from elrt_keras.launch.data.sources import FolderSplit, folder_splits

FOLDER = "folder:"
STREAMED_SETS = ("imagenet2012", "imagenette", "imagenette/320px-v2", "imagenette/160px-v2")
BAD_IMAGES = ("error", "skip")
# Mean and standard deviation of ImageNet's training pixels (0–255), the same as in every public recipe.
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# Offset that keeps the seeds of crops different from those of batches.
_CROP_SEEDS = 2**32


class BadImages:
    """Images of a split that cannot be decoded.

    Args:
        mode: `"error"`: the first bad image ends the run; `"skip"`: bad images are left out and counted, and the run
            ends if they are more than half of the images.
        count: number of images in the split.
    """

    def __init__(self, mode, count):
        self.mode, self._count = one_of(mode, BAD_IMAGES, "bad_images"), count
        self.names = set()
        self.fatal = None

    def note(self, name):
        """Records a bad image. Reports if the run may continue without it."""
        name = os.fsdecode(name)
        if name not in self.names:
            self.names.add(name)
            logging.warning("bad image %d: %s cannot be decoded", len(self.names), name)
        if self.mode == "error":
            self.fatal = f"Expected an image that can be decoded; --bad_images=skip leaves it out. Received: {name}"
        elif 2 * len(self.names) > self._count:
            self.fatal = (
                f"Expected images that can be decoded. Received: {len(self.names)} of {self._count} that cannot, "
                f"such as {name}"
            )
        return self.fatal is None


@dataclasses.dataclass(frozen=True)
class StreamedImages(Images):
    """A data set whose images are decoded while training.

    `bad` holds the `BadImages` of the training and of the test split.
    """

    name: str
    class_names: tuple
    image_size: int
    train: FolderSplit | RecordSplit
    test: FolderSplit | RecordSplit
    bad: tuple

    @property
    def image_shape(self):
        return (self.image_size, self.image_size, 3)

    @property
    def train_count(self):
        return self.train.count

    @property
    def bad_images(self):
        return tuple(sorted(self.bad[0].names | self.bad[1].names))

    @property
    def fatal(self):
        return self.bad[0].fatal or self.bad[1].fatal

    def pixel_statistics(self):
        return list(_MEAN), list(_STD)

    def train_batches(self, config, first_epoch=0, shard=(0, 1), first_step=0):
        import tensorflow as tf

        steps, local = steps_per_epoch(self, config), local_batch(config, shard)
        crops = "crop" in config.augmentations
        others = tuple(name for name in config.augmentations if name != "crop")
        augment = Augmentation(others, self.image_shape, _MEAN, len(self.class_names))

        def batches_of(epoch):
            examples = self.train.examples(tf.stack([tf.cast(config.seed, tf.int64), epoch]), shard)
            numbers = tf.data.Dataset.counter(epoch * self.train_count + shard[0], shard[1])
            seeds = numbers.map(lambda number: tf.stack([config.seed + _CROP_SEEDS, number]))
            images = self._images(self.train, self.bad[0], tf.data.Dataset.zip(examples, seeds), crops)
            # Skipped images shorten the epoch; repeat its first images to fill it.
            batches = images.repeat().batch(local, drop_remainder=True).take(steps)
            return tf.data.Dataset.zip(batches, tf.data.Dataset.range(epoch * steps, (epoch + 1) * steps))

        def batch(images_and_labels, step):
            images, labels = images_and_labels
            seed = tf.stack([tf.cast(config.seed, tf.int64), step * shard[1] + shard[0]])
            return augment(images, labels, seed)

        epochs = tf.data.Dataset.counter(first_epoch).flat_map(batches_of).skip(first_step)
        return epochs.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)

    def test_batches(self, config):
        import tensorflow as tf

        count = min(128, self.test.count) if config.smoke else self.test.count
        examples = self.test.examples().take(count)
        no_seeds = tf.data.Dataset.from_tensors(tf.zeros(2, tf.int64)).repeat()
        images = self._images(self.test, self.bad[1], tf.data.Dataset.zip(examples, no_seeds), crops=False)
        if self.bad[1].mode == "skip":
            # Keras warns about data of unknown length as if the data had ended too early, so count the good images.
            count = int(images.reduce(0, lambda total, _: total + 1))
        images = images.apply(tf.data.experimental.assert_cardinality(count))
        return one_hot_batches(images, len(self.class_names), size=64)

    def _images(self, split, bad, examples, crops):
        """Decodes `((name, reference, label), seed)` to `(image, label)`; drops images that cannot be decoded."""
        import tensorflow as tf

        def image_of(example, seed):
            name, reference, label = example
            image, good = decoded_or_blank(split.contents, reference, self.image_size, seed if crops else None)
            goes_on = tf.cond(good, lambda: True, lambda: tf.numpy_function(bad.note, [name], tf.bool))
            with tf.control_dependencies([tf.debugging.Assert(goes_on, ["bad image", name])]):
                return image, label, tf.identity(good)

        def is_good(image, label, good):
            return good

        def without_flag(image, label, good):
            return image, label

        images = examples.map(image_of, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return images.filter(is_good).map(without_flag)


def load_streamed(name, data_dir, download, image_size, bad_images):
    """Prepares a large TFDS data set for streaming."""
    builder = prepared(name, data_dir, download)
    train, test = record_splits(builder)
    names = tuple(builder.info.features["label"].names)
    return StreamedImages(name, names, image_size, train, test, _bad(bad_images, train, test))


def load_folder(path, image_size, bad_images):
    """Prepares a folder with one folder per class for streaming."""
    train, test, names = folder_splits(path)
    return StreamedImages(FOLDER + path, names, image_size, train, test, _bad(bad_images, train, test))


def _bad(mode, *splits):
    return tuple(BadImages(mode, split.count) for split in splits)
