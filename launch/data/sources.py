"""Training and test splits of image files in folders, one folder per class.

A split yields `(name, reference, label)` and turns a reference into the bytes of an image.
"""

import collections
import dataclasses
import mimetypes
import os
import pathlib
import re

import numpy as np
from absl import logging

_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
# First bytes of the formats that `decode.py` reads; a WebP file has its name after its length.
_MAGIC = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM|RIFF....WEBP", re.DOTALL)
# Suffixes of other picture formats, which Python's table of file types may lack.
_OTHER_PICTURES = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".tif", ".tiff", ".dng", ".cr2", ".nef", ".arw", ".psd")
# Names of splits, without case and without words such as "set", separators and numbers. A folder of the first test kind
# is preferred to one of the second.
_TRAIN = ("train", "training", "trn")
_TEST_KINDS = (("val", "valid", "validation", "dev"), ("test", "testing", "tst", "eval", "evaluation", "holdout"))
_FILLER = re.compile(r"(?:set|data|split|images|imgs|img)$|[^a-z]+$")
_TEST_FRACTION = 0.2


@dataclasses.dataclass(frozen=True)
class FolderSplit:
    """Image files and their labels."""

    paths: np.ndarray
    labels: np.ndarray

    @property
    def count(self):
        return len(self.paths)

    def examples(self, seed=None, shard=(0, 1)):
        """Returns a dataset of `(name, reference, label)`, shuffled by `seed` (int tensor `(2,)`) or in order."""
        import tensorflow as tf

        paths, labels = tf.constant(self.paths), tf.constant(self.labels)
        order = tf.range(self.count)
        if seed is not None:
            order = tf.random.experimental.stateless_shuffle(order, seed)
        picked = tf.data.Dataset.from_tensor_slices(order).shard(shard[1], shard[0])
        return picked.map(lambda index: (paths[index], paths[index], labels[index]))

    @staticmethod
    def contents(reference):
        """Returns the bytes of an image."""
        import tensorflow as tf

        return tf.io.read_file(reference)


def folder_splits(path):
    """Returns the training and test `FolderSplit` of a folder, and its class names.

    A folder with splits has `PATH/train/CLASS/*` and `PATH/val/CLASS/*`, also under other usual names. Any other folder
    has `PATH/CLASS/*`: one fifth of its images are test images, the same in every run.

    Raises:
        ValueError: for a path without class folders, with only one of the two splits, with two folders that could be
            the same split, or with folders that look like splits under unknown names.
    """
    root = pathlib.Path(path).expanduser()
    if not str(path) or not root.is_dir():
        raise ValueError(f"Expected a folder with one folder per class. Received: {str(path)!r}, which is no folder")
    train, test = _split_folders(root)
    if train is None or test is None:
        _refuse_a_lone_split(root, train or test)
        files = _class_files(root)
        _refuse_unknown_splits(root, files)
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


def _folders(root):
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _plain(name):
    """Removes from a folder's name the case and the words, separators and numbers after the name of a split.
    >>> _plain("Training_set"), _plain("train2017"), _plain("VAL")
    ('training', 'train', 'val')
    """
    name = name.lower()
    while (shorter := _FILLER.sub("", name)) != name:
        name = shorter
    return name


def _split_folders(root):
    """Returns the folders of the training and the test split; `None` for a missing one."""

    def only(kinds):
        for kind in kinds:
            folders = [folder for folder in _folders(root) if _plain(folder.name) in kind]
            if len(folders) > 1 and all(map(_holds_classes, folders)):
                raise ValueError(
                    f"Expected one folder for each split in {str(root)!r}. "
                    f"Received: {[folder.name for folder in folders]}, which could be the same split"
                )
            if folders:
                return folders[0]
        return None

    return only((_TRAIN,)), only(_TEST_KINDS)


def _holds_classes(folder):
    """Reports if a folder holds folders of images and no images itself."""
    return not any(map(_is_image, folder.iterdir())) and any(_image_files(inner)[0] for inner in _folders(folder))


def _refuse_a_lone_split(root, split):
    """Refuses a single folder that has the name of a split and holds folders of images: it is not a class."""
    if split is not None and _holds_classes(split):
        raise ValueError(
            f"Expected a folder such as 'train' and one such as 'val' or 'test' in {str(root)!r}, or one folder per "
            f"class. Received: {split.name!r}, which holds folders of images, beside "
            f"{[entry.name for entry in _folders(root) if entry != split][:10]}"
        )


def _refuse_unknown_splits(root, classes):
    """Refuses folders that all hold the same folders of images and no images themselves: they are probably splits.

    One folder of the same name in each class (`CLASS/images/*`) is usual and accepted.
    """
    inner = [sorted(entry.name for entry in _folders(root / name)) for name in classes]
    if len(inner[0]) > 1 and all(names == inner[0] and _holds_classes(root / c) for c, names in zip(classes, inner)):
        raise ValueError(
            f"Expected one folder per class in {str(root)!r}, or splits that are called 'train' and 'val' or 'test'. "
            f"Received: {list(classes)[:10]}, each of which holds the folders {inner[0][:10]}"
        )


def _class_files(folder):
    """Returns `{class: sorted image paths}` of the visible folders in `folder`; warns about other pictures."""
    paths_by_class = {entry.name: _image_files(entry) for entry in _folders(folder)}
    files = {name: images for name, (images, _) in paths_by_class.items()}
    others = [path for _, paths in paths_by_class.values() for path in paths]
    empty = [name for name, images in files.items() if not images]
    left_out = f"; {_counted(others)}" if others else ""
    if len(files) < 2 or empty:
        raise ValueError(
            f"Expected at least two class folders with images ({', '.join(_SUFFIXES)}) in {str(folder)!r}. "
            f"Received: classes {list(files)[:10]}" + (f", no images in {empty[:10]}" if empty else "") + left_out
        )
    if others:
        logging.warning("%s in %s cannot be decoded and are left out, such as %s", _counted(others), folder, others[0])
    return files


def _counted(paths):
    """Counts files by suffix, as text.
    >>> _counted(["a.tif", "b.tif", "c.heic"])
    '3 pictures of other kinds (2 .tif, 1 .heic)'
    """
    kinds = collections.Counter(os.path.splitext(path)[1].lower() for path in paths)
    text = ", ".join(f"{count} {suffix}" for suffix, count in kinds.most_common())
    return f"{len(paths)} pictures of other kinds ({text})"


def _image_files(folder):
    """Returns two sorted lists of the paths below a folder: images that can be decoded, and other pictures."""
    images, others, seen = [], [], set()
    for where, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(where) in seen:  # a link leads to a folder that was visited
            folders.clear()
            continue
        seen.add(os.path.realpath(where))
        for path in (pathlib.Path(where, name) for name in names if not name.startswith(".")):
            if _is_image(path):
                images.append(str(path))
            elif _is_other_picture(path):
                others.append(str(path))
    return sorted(images), sorted(others)


def _is_image(path):
    """Reports if a file can be decoded, by its suffix or by its first bytes."""
    if path.name.lower().endswith(_SUFFIXES):
        return True
    if not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            return _MAGIC.match(file.read(12)) is not None
    except OSError:
        return False


def _is_other_picture(path):
    kind = mimetypes.guess_type(path.name)[0] or ""
    return kind.startswith("image/") or path.name.lower().endswith(_OTHER_PICTURES)


def _stratified(paths):
    """Splits the paths of one class into training and test paths."""
    if len(paths) < 2:
        raise ValueError(f"Expected at least two images per class to split. Received: {paths}")
    order = np.random.default_rng(0).permutation(len(paths))
    cut = max(1, round(_TEST_FRACTION * len(paths)))
    return [sorted(paths[i] for i in part) for part in (order[cut:], order[:cut])]


def _split(files):
    paths = [path for paths in files.values() for path in paths]
    labels = [label for label, paths in enumerate(files.values()) for _ in paths]
    # Keep paths as bytes: file names need not be valid text.
    return FolderSplit(np.array([os.fsencode(p) for p in paths], dtype=object), np.array(labels, dtype="int64"))
