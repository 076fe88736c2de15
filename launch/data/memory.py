"""Data sets that fit into memory: decoded once, gathered and augmented batch by batch."""

import dataclasses
import os

import numpy as np

from elrt_keras.launch.data.augment import Augmentation
from elrt_keras.launch.data.interface import Images, local_batch, one_hot_batches, steps_per_epoch, untuned

TFDS_SETS = ("cifar10", "cifar100", "fashion_mnist", "svhn_cropped")


@dataclasses.dataclass(frozen=True)
class ImageData(Images):
    """A classification data set in memory: images `(N, height, width, channels)` uint8, labels `(N,)` int64."""

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple

    @property
    def image_shape(self):
        return self.train_images.shape[1:]

    @property
    def train_count(self):
        return len(self.train_images)

    def pixel_statistics(self):
        """Returns mean and standard deviation of the training pixels per channel, 0–255."""
        pixels = self.train_images.reshape(-1, self.image_shape[-1])
        mean = pixels.mean(axis=0, dtype="float64")
        # Square the pixels in blocks, to avoid a float64 copy of a large set.
        square = sum((block.astype("float64") ** 2).sum(axis=0) for block in np.array_split(pixels, 64)) / len(pixels)
        return [float(v) for v in mean], [float(max(v, 1e-6)) for v in np.sqrt(square - mean**2)]

    def train_batches(self, config, first_epoch=0, shard=(0, 1), first_step=0):
        import tensorflow as tf

        steps, (worker, workers) = steps_per_epoch(self, config), shard
        local_batch(config, shard)
        images, labels = tf.constant(self.train_images), tf.constant(self.train_labels)
        fill = np.round(self.pixel_statistics()[0])
        augment = Augmentation(config.augmentations, self.image_shape, fill, len(self.class_names))

        def batches_of(epoch):
            order = tf.random.experimental.stateless_shuffle(tf.range(self.train_count), seed=[config.seed, epoch])
            order = tf.reshape(order[: steps * config.batch_size], (steps, config.batch_size))
            indices = tf.data.Dataset.from_tensor_slices(order)
            return tf.data.Dataset.zip(indices, tf.data.Dataset.range(epoch * steps, (epoch + 1) * steps))

        def batch(indices, step):
            # Each worker augments the whole batch and keeps its part. So random numbers and mixed pairs do not depend
            # on the number of workers.
            seed = tf.stack([tf.cast(config.seed, tf.int64), step])
            augmented = augment(tf.gather(images, indices), tf.gather(labels, indices), seed)
            return tuple(tensor[worker::workers] for tensor in augmented)

        epochs = tf.data.Dataset.counter(first_epoch).flat_map(batches_of).skip(first_step)
        batches = epochs.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return untuned(batches.prefetch(tf.data.AUTOTUNE))

    def test_batches(self, config):
        import tensorflow as tf

        dataset = tf.data.Dataset.from_tensor_slices((self.test_images, self.test_labels))
        dataset = dataset.take(128) if config.smoke else dataset
        return one_hot_batches(dataset, len(self.class_names))


def load_digits():
    """Loads the 8×8 grey digits of scikit-learn; one fifth of them are test images."""
    from sklearn.datasets import load_digits as embedded
    from sklearn.model_selection import train_test_split

    digits = embedded()
    images = np.round(digits.images[..., None] * (255 / 16)).astype("uint8")
    split = train_test_split(images, digits.target, test_size=360, random_state=0, stratify=digits.target)
    train_images, test_images, train_labels, test_labels = split
    names = tuple(str(digit) for digit in range(10))
    return ImageData(
        "digits", train_images, train_labels.astype("int64"), test_images, test_labels.astype("int64"), names
    )


def load_tfds(name, data_dir, download):
    """Loads a small TFDS data set into memory."""
    import tensorflow_datasets as tfds

    builder = prepared(name, data_dir, download)
    arrays = []
    for split in ("train", "test"):
        images, labels = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, as_supervised=True))
        arrays += [images, labels.astype("int64")]
    return ImageData(name, *arrays, tuple(builder.info.features["label"].names))


def prepared(name, data_dir, download):
    """Returns the TFDS builder of a prepared data set; downloads and prepares the data if `download` allows it.

    Raises:
        ValueError: if the data set is missing and may not be downloaded, or TFDS cannot prepare it.
    """
    if data_dir is not None and not download and not os.path.isdir(data_dir):
        raise ValueError(f"Expected a TFDS data directory. Received: data_dir={data_dir!r}, which is no directory")
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir)
    if not builder.is_prepared():
        if not download:
            raise ValueError(
                f"Expected the prepared data set '{name}' in {str(builder.data_dir)!r}; pass --download to fetch it, "
                f"or --data_dir for its place. Received: data_dir={data_dir!r}"
            )
        try:
            builder.download_and_prepare()
        except Exception as error:  # TFDS raises many kinds of errors, AssertionError for missing archives
            reason = " ".join(str(error).split()) or repr(error)
            raise ValueError(f"Expected TFDS to download and prepare '{name}'. Received: {reason}") from error
    return builder
