"""What training and evaluation need of a data set, whether it lies in memory or streams from the disk."""

import abc
import contextlib


class Images(abc.ABC):
    """A classification data set with a training and a test split.

    Attributes:
        name: as the user gave it.
        class_names: tuple of str.
        image_shape: `(height, width, channels)` of every image of a batch.
        train_count: number of training images.
    """

    @property
    def bad_images(self):
        """Sorted names of images that were left out because they could not be decoded."""
        return ()

    @property
    def fatal(self):
        """Why the data had to stop, or `None`."""
        return None

    @abc.abstractmethod
    def pixel_statistics(self):
        """Mean and standard deviation of the pixels per channel, on the 0–255 scale, for the model's normalisation."""

    @abc.abstractmethod
    def train_batches(self, config, first_epoch=0, shard=(0, 1), first_step=0):
        """Endless batches of float32 images on the 0–255 scale and one-hot labels, `steps_per_epoch` to an epoch.

        Order and augmentation are functions of (seed, epoch, step) alone, so a run that resumes at an epoch sees what
        an undisturbed one would have seen.

        Args:
            config: the `TrainConfig`.
            first_epoch: the epoch to start with.
            shard: `(index, count)` of the worker; it gets its part of each global batch of `config.batch_size`.
            first_step: the step of that epoch to start with.
        """

    @abc.abstractmethod
    def test_batches(self, config):
        """All test images in order, once, as batches of images and one-hot labels."""


@contextlib.contextmanager
def plain_errors(data):
    """Around code that reads batches: where the data had to stop, a `ValueError` says why, and no TensorFlow error."""
    try:
        yield
    except Exception as error:
        if data.fatal is None:
            raise
        raise ValueError(data.fatal) from error


def steps_per_epoch(data, config):
    """Full batches in an epoch; the rest of a shuffled epoch is dropped.

    Raises:
        ValueError: when the data set is smaller than one batch.
    """
    steps = data.train_count // config.batch_size
    if not steps:
        raise ValueError(
            f"Expected a batch of at most {data.train_count} images, all of '{data.name}'. "
            f"Received: batch_size={config.batch_size}"
        )
    return min(steps, 4) if config.smoke else steps


def local_batch(config, shard):
    """One worker's part of the global batch.

    Raises:
        ValueError: when the batch does not divide.
    """
    if config.batch_size % shard[1]:
        raise ValueError(
            f"Expected a global batch that divides over the workers. "
            f"Received: batch_size={config.batch_size}, workers={shard[1]}"
        )
    return config.batch_size // shard[1]


def one_hot_batches(dataset, classes, size=256):
    """Batches of float32 images and one-hot labels from a dataset of `(image, label)`."""
    import tensorflow as tf

    def batch(images, labels):
        return tf.cast(images, tf.float32), tf.one_hot(labels, classes)

    return untuned(dataset.batch(size).map(batch).prefetch(tf.data.AUTOTUNE))


def untuned(dataset):
    """The dataset without tf.data's tuner, for whose next turn, up to a minute away, the end of an iterator waits.

    `AUTOTUNE` then means as many threads as there are cores.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
