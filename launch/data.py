"""Image classification data in memory, and the tf.data pipelines over it.

The order of the images and their augmentation are functions of (seed, epoch, step) alone, so a run that resumes at an
epoch sees what an undisturbed one would have seen.
"""

import dataclasses
import os

import numpy as np


@dataclasses.dataclass(frozen=True)
class ImageData:
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

    def pixel_statistics(self):
        """Mean and standard deviation of the training pixels per channel, on the 0–255 scale."""
        pixels = self.train_images.reshape(-1, self.image_shape[-1])
        mean = pixels.mean(axis=0, dtype="float64")
        # In blocks, so that the squares of a large set need no copy of it.
        square = sum((block.astype("float64") ** 2).sum(axis=0) for block in np.array_split(pixels, 64)) / len(pixels)
        return [float(v) for v in mean], [float(max(v, 1e-6)) for v in np.sqrt(square - mean**2)]


def load(name, data_dir=None, download=False):
    """Loads a data set.

    Args:
        name: `"digits"` (embedded in scikit-learn, 8×8 grey), `"cifar10"`, `"cifar100"` or `"fashion_mnist"` (TFDS).
        data_dir: TFDS data directory; `None` for TFDS' own default.
        download: whether TFDS may download and prepare what is missing.

    Raises:
        ValueError: when the data is not there and may not be downloaded.
    """
    return _load_digits() if name == "digits" else _load_tfds(name, data_dir, download)


def _load_digits():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images[..., None] * (255 / 16)).astype("uint8")
    split = train_test_split(images, digits.target, test_size=360, random_state=0, stratify=digits.target)
    train_images, test_images, train_labels, test_labels = split
    names = tuple(str(digit) for digit in range(10))
    return ImageData(
        "digits", train_images, train_labels.astype("int64"), test_images, test_labels.astype("int64"), names
    )


def _load_tfds(name, data_dir, download):
    if data_dir is not None and not download and not os.path.isdir(data_dir):
        raise ValueError(f"Expected a TFDS data directory. Received: data_dir={data_dir!r}, which is no directory")
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir)
    if not builder.is_prepared():
        if not download:
            raise ValueError(
                f"Expected the prepared data set '{name}' in {str(builder.data_dir)!r}; pass --download to fetch it, "
                f"or --data_dir for where it is. Received: data_dir={data_dir!r}"
            )
        builder.download_and_prepare()
    arrays = []
    for split in ("train", "test"):
        images, labels = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, as_supervised=True))
        arrays += [images, labels.astype("int64")]
    return ImageData(name, *arrays, tuple(builder.info.features["label"].names))


def steps_per_epoch(data, config):
    """Full batches in an epoch; the rest of a shuffled epoch is dropped.

    Raises:
        ValueError: when the data set is smaller than one batch.
    """
    steps = len(data.train_images) // config.batch_size
    if not steps:
        raise ValueError(
            f"Expected a batch of at most {len(data.train_images)} images, all of '{data.name}'. "
            f"Received: batch_size={config.batch_size}"
        )
    return min(steps, 4) if config.smoke else steps


def train_batches(data, config, first_epoch=0):
    """Endless batches of `(images, one-hot labels)` from epoch `first_epoch` on, `steps_per_epoch` to an epoch."""
    import tensorflow as tf

    steps = steps_per_epoch(data, config)
    images, labels = tf.constant(data.train_images), tf.constant(data.train_labels)
    augment = _augmentation(config, data)

    def batches_of(epoch):
        order = tf.random.experimental.stateless_shuffle(tf.range(len(data.train_images)), seed=[config.seed, epoch])
        order = tf.reshape(order[: steps * config.batch_size], (steps, config.batch_size))
        indices = tf.data.Dataset.from_tensor_slices(order)
        return tf.data.Dataset.zip(indices, tf.data.Dataset.range(epoch * steps, (epoch + 1) * steps))

    def batch(indices, step):
        x = augment(tf.gather(images, indices), tf.stack([tf.cast(config.seed, tf.int64), step]))
        return tf.cast(x, tf.float32), tf.one_hot(tf.gather(labels, indices), len(data.class_names))

    epochs = tf.data.Dataset.counter(first_epoch).flat_map(batches_of)
    return epochs.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


def test_batches(data, config):
    """All test images in order, as `(images, one-hot labels)`."""
    import tensorflow as tf

    def batch(images, labels):
        return tf.cast(images, tf.float32), tf.one_hot(labels, len(data.class_names))

    dataset = tf.data.Dataset.from_tensor_slices((data.test_images, data.test_labels))
    dataset = dataset.take(128) if config.smoke else dataset
    return dataset.batch(256).map(batch).prefetch(tf.data.AUTOTUNE)


def _augmentation(config, data):
    """A function of a batch and a seed that applies the configured augmentations to the whole batch at once."""
    import tensorflow as tf

    height = data.image_shape[0]
    fill = np.round(data.pixel_statistics()[0]).astype("uint8")
    apply = {
        "crop": lambda x, seed: pad_and_crop(x, seed, height // 8),
        "flip": flip,
        "cutout": lambda x, seed: cutout(x, seed, height // 2, fill),
    }

    def augment(images, seed):
        seeds = tf.random.split(seed, len(apply)) if config.augmentations else []
        for index, name in enumerate(apply):
            if name in config.augmentations:
                images = apply[name](images, seeds[index])
        return images

    return augment


def pad_and_crop(images, seed, margin):
    """Pads a batch by `margin` zero pixels on each side and crops every image back at its own random place."""
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
