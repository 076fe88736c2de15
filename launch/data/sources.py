"""Where encoded images come from: files in folders, or the records of a prepared TFDS data set.

A split yields `(name, reference, label)` and turns a reference into the bytes of an image.
"""

import dataclasses
import os
import pathlib

import numpy as np

_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
_TRAIN, _TEST = ("train", "training"), ("val", "valid", "validation", "test", "testing", "eval")
_TEST_FRACTION = 0.2
# Files read side by side, and records that are shuffled together: memory is some of these blocks of encoded images.
_CYCLE, _BLOCK = 16, 2048


@dataclasses.dataclass(frozen=True)
class FolderSplit:
    """Image files and their labels."""

    paths: np.ndarray
    labels: np.ndarray

    @property
    def count(self):
        return len(self.paths)

    def examples(self, seed=None, shard=(0, 1)):
        """A dataset of `(name, reference, label)`: shuffled by `seed`, an int tensor of shape `(2,)`, or in order."""
        import tensorflow as tf

        paths, labels = tf.constant(self.paths), tf.constant(self.labels)
        order = tf.range(self.count)
        if seed is not None:
            order = tf.random.experimental.stateless_shuffle(order, seed)
        picked = tf.data.Dataset.from_tensor_slices(order).shard(shard[1], shard[0])
        return picked.map(lambda index: (paths[index], paths[index], labels[index]))

    @staticmethod
    def contents(reference):
        """The bytes of an image."""
        import tensorflow as tf

        return tf.io.read_file(reference)


@dataclasses.dataclass(frozen=True)
class RecordSplit:
    """The record files of one split of a TFDS data set with the features `image` and `label`."""

    files: tuple
    features: object
    count: int

    def examples(self, seed=None, shard=(0, 1)):
        """A dataset of `(name, reference, label)`: files and records shuffled by `seed`, or in order.

        The reference is the encoded image itself. Names are TFDS' own: `FILE__NUMBER`.
        """
        import tensorflow as tf

        files = tf.constant(self.files)
        if seed is not None:
            files = tf.random.experimental.stateless_shuffle(files, seed)
        files = tf.data.Dataset.from_tensor_slices(files)
        by_file = len(self.files) % shard[1] == 0
        files = files.shard(shard[1], shard[0]) if by_file else files
        # In order means file by file.
        cycle = 1 if seed is None else _CYCLE
        records = files.interleave(self._records, cycle, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        records = records if by_file else records.shard(shard[1], shard[0])
        if seed is not None:
            records = _shuffled(records, seed)
        return records.map(self._parsed)

    @staticmethod
    def _records(file):
        import tensorflow as tf

        return tf.data.TFRecordDataset(file).enumerate().map(lambda number, record: (file, number, record))

    def _parsed(self, file, number, record):
        import tensorflow as tf
        import tensorflow_datasets as tfds

        example = self.features.deserialize_example(record, decoders={"image": tfds.decode.SkipDecoding()})
        name = tf.strings.join([tf.strings.split(file, os.sep)[-1], tf.strings.as_string(number)], "__")
        return name, example["image"], example["label"]

    @staticmethod
    def contents(reference):
        """The bytes of an image."""
        return reference


def _shuffled(records, seed):
    """The elements of a dataset of tuples, shuffled in blocks.

    `Dataset.shuffle` also depends on TensorFlow's global seed, and refuses a tensor as seed where that is 0.
    """
    import tensorflow as tf

    def shuffled_block(number, block):
        block_seed = tf.cast(seed, tf.int64) + [0, number]
        order = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(block[0])[0]), block_seed)
        return tuple(tf.gather(part, order) for part in block)

    blocks = records.batch(_BLOCK).enumerate().map(shuffled_block)
    return blocks.prefetch(1).unbatch()


def record_splits(builder):
    """The training and test `RecordSplit` of a prepared TFDS builder."""

    def split(name):
        info = builder.info.splits[name]
        return RecordSplit(tuple(map(str, info.filepaths)), builder.info.features, info.num_examples)

    return split("train"), split("validation" if "validation" in builder.info.splits else "test")


def folder_splits(path):
    """The training and test `FolderSplit` of a folder, and its class names.

    `PATH/train/CLASS/*` and `PATH/val/CLASS/*` (or another of the names for these) where they are there; otherwise
    `PATH/CLASS/*`, of which every fifth image is a test image, the same in every run.

    Raises:
        ValueError: for a path that is no such folder, or has one of the two splits under another name.
    """
    root = pathlib.Path(path).expanduser()
    if not str(path) or not root.is_dir():
        raise ValueError(f"Expected a folder with one folder per class. Received: {str(path)!r}, which is no folder")
    train, test = (next((root / n for n in names if (root / n).is_dir()), None) for names in (_TRAIN, _TEST))
    if train is None or test is None:
        _refuse_a_lone_split(root, train or test)
        files = _class_files(root)
        picked = {name: _stratified(paths) for name, paths in files.items()}
        halves = [{name: picked[name][half] for name in files} for half in (0, 1)]
    else:
        halves = [_class_files(train), _class_files(test)]
        if list(halves[0]) != list(halves[1]):
            raise ValueError(
                f"Expected the same classes in {str(train)!r} and {str(test)!r}. "
                f"Received: {sorted(set(halves[0]) ^ set(halves[1]))} in one of them only"
            )
    names = tuple(halves[0])
    return *(_split(half) for half in halves), names


def _refuse_a_lone_split(root, split):
    """Refuses folders of which one is named as a split and holds folders of images: they are no classes."""
    if split is None or any(entry.suffix.lower() in _SUFFIXES for entry in split.iterdir()):
        return
    if any(entry.is_dir() and _image_files(entry) for entry in split.iterdir()):
        raise ValueError(
            f"Expected one of {_TRAIN} and one of {_TEST} in {str(root)!r}, or one folder per class. "
            f"Received: {split.name!r}, which holds folders of images, beside "
            f"{sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry != split)[:10]}"
        )


def _class_files(folder):
    """`{class: sorted image paths}` of the folders in `folder` that are not hidden."""
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = {entry.name: _image_files(entry) for entry in classes}
    empty = [name for name, paths in files.items() if not paths]
    if len(files) < 2 or empty:
        raise ValueError(
            f"Expected at least two class folders with images ({', '.join(_SUFFIXES)}) in {str(folder)!r}. "
            f"Received: classes {list(files)[:10]}" + (f", no images in {empty[:10]}" if empty else "")
        )
    return files


def _image_files(folder):
    found, seen = [], set()
    for where, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(where) in seen:  # a link has led back
            folders.clear()
            continue
        seen.add(os.path.realpath(where))
        images = [name for name in names if name.lower().endswith(_SUFFIXES) and not name.startswith(".")]
        found += [os.path.join(where, name) for name in images]
    return sorted(found)


def _stratified(paths):
    """Training and test paths of one class."""
    if len(paths) < 2:
        raise ValueError(f"Expected at least two images per class to split. Received: {paths}")
    order = np.random.default_rng(0).permutation(len(paths))
    cut = max(1, round(_TEST_FRACTION * len(paths)))
    return [sorted(paths[i] for i in part) for part in (order[cut:], order[:cut])]


def _split(files):
    paths = [path for paths in files.values() for path in paths]
    labels = [label for label, paths in enumerate(files.values()) for _ in paths]
    # Bytes: file names need not be text.
    return FolderSplit(np.array([os.fsencode(p) for p in paths], dtype=object), np.array(labels, dtype="int64"))
