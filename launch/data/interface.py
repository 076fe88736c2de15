"""Interface of a data set for training and evaluation, in memory or streamed from the disk."""

import abc
import contextlib


class Images(abc.ABC):
    """A classification data set with a training and a test split.

    Attributes:
        name: value of `--dataset`.
        class_names: tuple of str.
        image_shape: `(height, width, channels)` of every image in a batch.
        train_count: number of training images.
    """

    @property
    def bad_images(self):
        """Sorted names of the images that were left out because they cannot be decoded."""
        return ()

    @property
    def fatal(self):
        """Message that says why the data stopped, or `None`."""
        return None

    @abc.abstractmethod
    def pixel_statistics(self):
        """Returns mean and standard deviation of the pixels per channel, 0–255, for the model's normalisation."""

    @abc.abstractmethod
    def train_batches(self, config, first_epoch=0, shard=(0, 1), first_step=0):
        """Returns endless batches of float32 images (0–255) and one-hot labels; an epoch has `steps_per_epoch` of them.

        Order and augmentation depend only on (seed, epoch, step), so a resumed run sees the same batches as an
        uninterrupted one.

        Args:
            config: the `TrainConfig`.
            first_epoch: first epoch.
            shard: `(index, count)` of the worker; it gets its part of each global batch of `config.batch_size`.
            first_step: first step within the first epoch.
        """

    @abc.abstractmethod
    def test_batches(self, config):
        """Returns all test images once and in order, as batches of images and one-hot labels."""


@contextlib.contextmanager
def plain_errors(data):
    """Context for code that reads batches: turns a TensorFlow error into the `ValueError` in `data.fatal`."""
    try:
        yield
    except Exception as error:
        if data.fatal is None:
            raise
        raise ValueError(data.fatal) from error


def steps_per_epoch(data, config):
    """Counts the full batches in an epoch; a smaller last batch is dropped.

    Raises:
        ValueError: if the data set is smaller than one batch.
    """
    steps = data.train_count // config.batch_size
    if not steps:
        raise ValueError(
            f"Expected a batch of at most {data.train_count} images, all of '{data.name}'. "
            f"Received: batch_size={config.batch_size}"
        )
    return min(steps, 4) if config.smoke else steps


def local_batch(config, shard):
    """Returns the size of one worker's part of the global batch.

    Raises:
        ValueError: if the batch does not divide over the workers.
    """
    if config.batch_size % shard[1]:
        raise ValueError(
            f"Expected a global batch that divides over the workers. "
            f"Received: batch_size={config.batch_size}, workers={shard[1]}"
        )
    return config.batch_size // shard[1]


def one_hot_batches(dataset, classes, size=256):
    """Batches a dataset of `(image, label)` to float32 images and one-hot labels."""
    import tensorflow as tf

    def batch(images, labels):
        return tf.cast(images, tf.float32), tf.one_hot(labels, classes)

    return untuned(dataset.batch(size).map(batch).prefetch(tf.data.AUTOTUNE))


def untuned(dataset):
    """Returns the dataset without tf.data's autotuner.

    The end of an iterator waits for the next turn of the autotuner, up to a minute. Without it, `AUTOTUNE` means one
    thread per core.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
