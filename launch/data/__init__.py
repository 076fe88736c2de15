"""Image classification data: small sets in memory, large ones streamed from the disk, as tf.data pipelines.

digits                     embedded in scikit-learn, 8×8 grey
cifar10, cifar100,
fashion_mnist, svhn_cropped  through TFDS, whole in memory
imagenet2012, imagenette…  through TFDS, streamed
folder:PATH                one folder per class, streamed
"""

from elrt_keras.launch.data.interface import Images, plain_errors, steps_per_epoch
from elrt_keras.launch.data.memory import TFDS_SETS, ImageData, load_digits, load_tfds
from elrt_keras.launch.data.stream import FOLDER, STREAMED_SETS, StreamedImages, load_folder, load_streamed

DATASETS = ("digits", *TFDS_SETS, *STREAMED_SETS)

__all__ = [
    "DATASETS",
    "FOLDER",
    "ImageData",
    "Images",
    "StreamedImages",
    "is_streamed",
    "load",
    "plain_errors",
    "steps_per_epoch",
]


def is_streamed(name):
    """Reports if the images of a data set are decoded while training, to a size that the user chooses."""
    return name.startswith(FOLDER) or name in STREAMED_SETS


def load(name, data_dir=None, download=False, image_size=224, bad_images="error"):
    """Loads a small data set into memory, or prepares a large one for streaming.

    Args:
        name: one of `DATASETS` or `"folder:PATH"`.
        data_dir: TFDS data directory; `None` for TFDS' own default.
        download: whether TFDS may download and prepare a missing data set.
        image_size: int, height and width of streamed images.
        bad_images: `"error"` or `"skip"`: action for a streamed image that cannot be decoded.

    Returns:
        An `Images`.

    Raises:
        ValueError: if the data is missing and may not be downloaded, or a folder holds no classes.
    """
    if name == "digits":
        return load_digits()
    if name.startswith(FOLDER):
        return load_folder(name.removeprefix(FOLDER), image_size, bad_images)
    if name in STREAMED_SETS:
        return load_streamed(name, data_dir, download, image_size, bad_images)
    return load_tfds(name, data_dir, download)
