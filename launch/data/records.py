"""Splits of a prepared TFDS data set with encoded images: `(name, reference, label)`, like those in `sources.py`."""

import dataclasses
import os

# Number of files read in parallel, and of records shuffled together. Memory holds a few blocks of encoded images.
_CYCLE, _BLOCK = 16, 2048


@dataclasses.dataclass(frozen=True)
class RecordSplit:
    """The record files of one split of a TFDS data set with the features `image` and `label`."""

    files: tuple
    features: object
    count: int

    def examples(self, seed=None, shard=(0, 1)):
        """Returns a dataset of `(name, reference, label)`: files and records shuffled by `seed`, or in order.

        The reference is the encoded image itself. Names are those of TFDS: `FILE__NUMBER`.
        """
        import tensorflow as tf

        files = tf.constant(self.files)
        if seed is not None:
            files = tf.random.experimental.stateless_shuffle(files, seed)
        files = tf.data.Dataset.from_tensor_slices(files)
        by_file = len(self.files) % shard[1] == 0
        files = files.shard(shard[1], shard[0]) if by_file else files
        # Without a seed, read file by file to keep the order.
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
        """Returns the bytes of an image."""
        return reference


def _shuffled(records, seed):
    """Shuffles the elements of a dataset of tuples in blocks.

    `Dataset.shuffle` also depends on TensorFlow's global seed, and refuses a tensor as seed if that seed is 0.
    """
    import tensorflow as tf

    def shuffled_block(number, block):
        block_seed = tf.cast(seed, tf.int64) + [0, number]
        order = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(block[0])[0]), block_seed)
        return tuple(tf.gather(part, order) for part in block)

    blocks = records.batch(_BLOCK).enumerate().map(shuffled_block)
    return blocks.prefetch(1).unbatch()


def record_splits(builder):
    """Returns the training and test `RecordSplit` of a prepared TFDS builder."""

    def split(name):
        info = builder.info.splits[name]
        return RecordSplit(tuple(map(str, info.filepaths)), builder.info.features, info.num_examples)

    return split("train"), split("validation" if "validation" in builder.info.splits else "test")
