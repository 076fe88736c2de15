"""Streamed images: real files of every kind, real TFDS records, crops, order, shards, and broken images."""

import io
import os
import shutil

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from common import SLOW_ON_JAX
from PIL import Image

from elrt_keras.launch import data
from elrt_keras.launch.config import TrainConfig
from elrt_keras.launch.data import decode, records, sources, stream

CLASSES = ("cat", "dog", "eel")
PER_CLASS = 20


def picture(seed, height, width):
    """Makes a smooth random RGB picture, which JPEG keeps well."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype="uint8")
    return Image.fromarray(coarse).resize((width, height), Image.BICUBIC)


def encoded(image, kind="JPEG", mode="RGB", **options):
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def write_folder(root, kinds=(("JPEG", "RGB", "jpg"),)):
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            kind, mode, suffix = kinds[number % len(kinds)]
            content = encoded(picture(100 * label + number, 40 + number, 70 - number), kind, mode)
            (root / name / f"{number:02}.{suffix}").write_bytes(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_folder(root)
    return root


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """Prepares Imagenette and ImageNet by TFDS, with few images each."""
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("tfds")
    for name in ("imagenette/160px-v2", "imagenet2012"):
        builder = tfds.builder(name, data_dir=str(root))
        labels = builder.info.features["label"].names

        def examples(start, count, labels=labels, has_name="file_name" in builder.info.features):
            for number in range(start, start + count):
                content = io.BytesIO(encoded(picture(number, 30 + number, 50), mode="L" if number == 3 else "RGB"))
                example = {"image": content, "label": labels[number % 10]}
                yield number, {**example, "file_name": f"{number}.JPEG"} if has_name else example

        builder._split_generators = lambda manager, examples=examples: {
            "train": examples(0, 40),
            "validation": examples(40, 12),
        }
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=4))
    return root


def load(folder, size=24, bad_images="error"):
    return data.load(f"folder:{folder}", image_size=size, bad_images=bad_images)


def config_of(folder, **fields):
    fields = {"batch_size": 16, "augmentation": "none", "image_size": 24, **fields}
    return TrainConfig(dataset=f"folder:{folder}", **fields)


def batches(dataset, count=None):
    dataset = dataset if count is None else dataset.take(count)
    return [(images.numpy(), labels.numpy()) for images, labels in dataset]


def stacked(found):
    return tuple(np.concatenate(part) for part in zip(*found))


def test_a_folder_is_split_by_class_and_always_alike(folder):
    images = load(folder)
    assert (images.class_names, images.image_shape, images.train_count) == (CLASSES, (24, 24, 3), 48)
    np.testing.assert_array_equal(np.bincount(images.train.labels), [16, 16, 16])
    np.testing.assert_array_equal(np.bincount(images.test.labels), [4, 4, 4])
    assert not set(images.train.paths) & set(images.test.paths)
    assert list(load(folder).test.paths) == list(images.test.paths)
    for split in (images.train, images.test):
        names = [os.fsdecode(path).split(os.sep)[-2] for path in split.paths]
        assert names == [CLASSES[label] for label in split.labels]


def test_a_folder_with_its_own_split_keeps_it(folder, tmp_path):
    for split, numbers in (("train", range(12)), ("val", range(12, 20))):
        for name in CLASSES:
            (tmp_path / split / name).mkdir(parents=True)
            for number in numbers:
                shutil.copy(folder / name / f"{number:02}.jpg", tmp_path / split / name)
    images = load(tmp_path)
    assert (images.train.count, images.test.count) == (36, 24)
    assert all(b"/train/" in path for path in images.train.paths)
    assert all(b"/val/" in path for path in images.test.paths)
    shutil.rmtree(tmp_path / "val" / "eel")
    with pytest.raises(ValueError, match=r"same classes.*Received: \['eel'\] in one of them only"):
        load(tmp_path)


def test_a_link_that_leads_back_adds_no_images(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "cat" / "self").symlink_to(".")
    images = load(tmp_path / "copy")
    assert (images.train.count, images.test.count) == (48, 12)


def test_a_lone_split_is_no_class(folder, tmp_path):
    for split in ("train", "part"):
        for name in CLASSES:
            (tmp_path / split / name).mkdir(parents=True)
            shutil.copy(folder / name / "00.jpg", tmp_path / split / name)
    with pytest.raises(ValueError, match=r"such as 'train' and.*Received: 'train', which.*beside \['part'\]"):
        load(tmp_path)
    (tmp_path / "part").rename(tmp_path / "testing")
    assert (load(tmp_path).train.count, load(tmp_path).test.count) == (3, 3)
    # A class may have this name.
    for name in ("train", "bus"):
        (tmp_path / "vehicles" / name).mkdir(parents=True)
        for number in range(2):
            shutil.copy(folder / CLASSES[0] / f"{number:02}.jpg", tmp_path / "vehicles" / name)
    assert load(tmp_path / "vehicles").class_names == ("bus", "train")


def write_splits(root, names, classes=("cup", "pan"), count=3):
    """Writes a folder for each name with `count` images in each class; the images of the first are black."""
    for number, name in enumerate(names):
        for kind in classes:
            (root / name / kind).mkdir(parents=True)
            for image in range(count):
                Image.new("RGB", (9, 9), (200 * number, 0, 0)).save(root / name / kind / f"{image}.png")


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "train, test",
    [
        *[("Train", "Test"), ("TRAIN", "VAL"), ("training_set", "test_set"), ("Training", "Testing"), ("train", "dev")],
        *[("train2017", "val2017"), ("trainset", "evaluation"), ("train_images", "valid_images"), ("trn", "holdout")],
        *[("train-data", "Validation Data"), ("train_split_1", "eval.set")],
    ],
)
def test_splits_under_any_usual_name(tmp_path, train, test):
    write_splits(tmp_path, (train, test))
    halves = *_, names = sources.folder_splits(tmp_path)
    assert names == ("cup", "pan") and [half.count for half in halves[:2]] == [6, 6]
    assert all(f"/{train}/".encode() in path for path in halves[0].paths)
    assert all(f"/{test}/".encode() in path for path in halves[1].paths)


@pytest.mark.tensorflow
def test_validation_comes_before_test_and_two_of_a_kind_are_refused(tmp_path):
    write_splits(tmp_path, ("train", "Test", "Val"))
    assert b"/Val/" in sources.folder_splits(tmp_path)[1].paths[0]
    write_splits(tmp_path, ("train2014",))
    with pytest.raises(ValueError, match=r"one folder for each split.*Received: \['train', 'train2014'\]"):
        sources.folder_splits(tmp_path)


@pytest.mark.tensorflow
def test_folders_of_the_same_folders_are_no_classes(tmp_path):
    write_splits(tmp_path / "folds", ("1_train", "2_test"))
    with pytest.raises(ValueError, match=r"Received: \['1_train', '2_test'\], each of which holds .*\['cup', 'pan'\]"):
        sources.folder_splits(tmp_path / "folds")
    # A class may keep its images in one folder, or in folders of its own.
    write_splits(tmp_path / "deep", ("cup", "pan"), classes=("images",))
    assert sources.folder_splits(tmp_path / "deep")[2] == ("cup", "pan")
    write_splits(tmp_path / "unlike", ("cup",), classes=("red", "blue"))
    write_splits(tmp_path / "unlike", ("pan",), classes=("steel", "iron"))
    assert sources.folder_splits(tmp_path / "unlike")[2] == ("cup", "pan")


@pytest.mark.tensorflow
def test_images_under_other_suffixes_are_taken_and_other_pictures_counted(tmp_path, caplog):
    write_splits(tmp_path, ("cup", "pan"), classes=("",))
    for name in ("a.jfif", "b.jpe", "c", "d.tif.part"):
        (tmp_path / "cup" / name).write_bytes(encoded(picture(1, 9, 9)))
    for name in ("e.tif", "f.HEIC", "g.avif"):
        (tmp_path / "pan" / name).write_bytes(b"II*\0 a picture of another kind")
    (tmp_path / "pan" / "notes.txt").write_text("no picture")
    with caplog.at_level("WARNING"):
        train, test, _ = sources.folder_splits(tmp_path)
    assert train.count + test.count == 3 + 4 + 3
    assert "3 pictures of other kinds (1 .tif, 1 .heic, 1 .avif)" in caplog.text
    assert "e.tif" in caplog.text and "notes.txt" not in caplog.text


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda root: None, r"at least two class folders.*Received: classes \[\]"),
        (lambda root: (root / "cat").mkdir(), r"Received: classes \['cat'\], no images in \['cat'\]"),
        (lambda root: root.rmdir(), "is no folder"),
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path, make, message):
    root = tmp_path / "set"
    root.mkdir()
    make(root)
    with pytest.raises(ValueError, match=message):
        load(root)


@pytest.mark.parametrize(
    "kind, mode, tolerance",
    [
        ("PNG", "RGB", 0),
        ("PNG", "P", 0),
        ("PNG", "RGBA", 0),
        ("PNG", "L", 0),
        ("BMP", "RGB", 0),
        ("GIF", "P", 0),
        ("JPEG", "RGB", 8),
        ("JPEG", "L", 8),
        ("JPEG", "CMYK", 12),
        ("WEBP", "RGB", 12),
    ],
)
def test_every_kind_of_file_is_decoded_as_pillow_does(kind, mode, tolerance):
    content = encoded(picture(1, 40, 56), kind, mode)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))[2:37, 10:45]
    # A center crop of 0.875 · 40 = 35 pixels, shown at 35 pixels: no resizing.
    got = decode.decoded(content, 35).numpy()
    assert got.shape == (35, 35, 3) and got.dtype == np.uint8
    assert np.abs(got.astype(int) - expected).max() <= tolerance


def test_webp_with_transparency_and_an_animation():
    colours = np.array(picture(1, 40, 40))
    clear = np.dstack([colours, np.full((40, 40), 100, "uint8")])
    content = io.BytesIO()
    Image.fromarray(clear).save(content, "WEBP", lossless=True, exact=True)
    np.testing.assert_array_equal(decode.decoded(content.getvalue(), 35).numpy(), colours[2:37, 2:37])
    content = io.BytesIO()
    others = [Image.fromarray(255 - colours)]
    Image.fromarray(colours).save(content, "WEBP", save_all=True, append_images=others, lossless=True)
    with pytest.raises(Exception, match="Animation"):  # not an image; decoding its frames would crash the process
        decode.decoded(content.getvalue(), 35)


def test_resizing_is_bilinear():
    ramp = np.broadcast_to(np.arange(64, dtype="uint8")[:, None, None] * 2, (64, 64, 3))
    got = decode.decoded(encoded(Image.fromarray(ramp), "PNG"), 28).numpy()  # 56 rows from row 4 on, halved
    expected = np.round((np.arange(28) * 2 + 0.5 + 4) * 2)
    assert np.abs(got[:, 0, 0] - expected).max() <= 1 and (got == got[:, :1, :1]).all()


@hypothesis.given(height=st.integers(1, 500), width=st.integers(1, 500), seed=st.integers(0, 2**31))
def test_windows_lie_in_the_image(height, width, seed):
    top, left, window_height, window_width = decode.inception_window([height, width, 3], [seed, 1]).numpy()
    assert 0 <= top <= top + window_height <= height and 0 <= left <= left + window_width <= width
    if (window_height, window_width) != (height, width):  # the whole image is used if no window fits
        area, ratio = window_height * window_width, window_width / window_height
        slack = 2 / min(window_height, window_width)  # rounding to pixels
        assert 0.08 * (1 - slack) <= area / (height * width) <= 1
        assert 0.75 * (1 - slack) <= ratio <= 4 / 3 * (1 + slack)
    top, left, side, other = decode.center_window([height, width, 3]).numpy()
    assert side == other >= 1 and 0 <= top <= height - side and 0 <= left <= width - side


def test_windows_spread_over_sizes_and_places():
    windows = np.array([decode.inception_window([300, 400, 3], [7, index]).numpy() for index in range(200)])
    areas = windows[:, 2] * windows[:, 3] / 120_000
    # Areas are drawn evenly from 8 % to 100 %; windows that do not fit are drawn again.
    assert areas.min() < 0.15 and areas.max() > 0.8 and 0.35 < areas.mean() < 0.6
    assert len({tuple(window) for window in windows}) == 200


def test_an_epoch_holds_each_image_once_and_labels_follow(folder):
    images = load(folder)
    by_pixels = {}
    for path, label in zip(images.train.paths, images.train.labels):
        by_pixels[decode.decoded(images.train.contents(path), 24).numpy().tobytes()] = label
    assert len(by_pixels) == 48
    x, y = stacked(batches(images.train_batches(config_of(folder)), 3))
    seen = [image.astype("uint8").tobytes() for image in x]
    assert len(set(seen)) == 48
    np.testing.assert_array_equal(y.argmax(axis=1), [by_pixels[key] for key in seen])


@pytest.mark.thorough
@pytest.mark.parametrize(
    "augmentation",
    [
        "crop,flip",
        pytest.param("crop,flip,jitter,cutout,mixup,cutmix,randaugment", marks=[pytest.mark.thorough, *SLOW_ON_JAX]),
    ],
)
def test_a_late_start_continues_the_same_stream(folder, augmentation):
    images = load(folder)
    config = config_of(folder, augmentation=augmentation, seed=3)
    stream = batches(images.train_batches(config), 9)
    again, late = (batches(images.train_batches(config, epoch), 9 - 3 * epoch) for epoch in (0, 1))
    for found, expected in ((again, stream), (late, stream[3:])):
        for (x, y), (x_expected, y_expected) in zip(found, expected):
            np.testing.assert_array_equal(x, x_expected)
            np.testing.assert_array_equal(y, y_expected)
    assert not np.array_equal(stream[0][0], stream[3][0])
    other = batches(images.train_batches(config_of(folder, augmentation=augmentation, seed=4)), 1)
    assert not np.array_equal(other[0][0], stream[0][0])


@pytest.mark.tensorflow
def test_every_image_of_every_epoch_has_a_crop_of_its_own(folder, monkeypatch):
    import tensorflow as tf

    def numbered(contents_of, reference, size, seed):
        return tf.fill((size, size, 3), tf.cast(seed[1], tf.uint8)), tf.constant(True)

    monkeypatch.setattr(stream, "decoded_or_blank", numbered)
    x, _ = stacked(batches(load(folder).train_batches(config_of(folder, augmentation="crop")), 6))
    assert sorted(x[:, 0, 0, 0]) == list(range(2 * 48))


@pytest.mark.tensorflow
def test_every_epoch_of_a_stream_has_an_order_of_its_own(folder):
    images, config = load(folder), config_of(folder)
    x, _ = stacked(batches(images.train_batches(config), 6))
    assert np.mean(np.all(x[:48] == x[48:], axis=(1, 2, 3))) < 0.25  # one image stays in place on average


def test_test_images_come_in_order_and_whole(folder):
    images = load(folder)
    x, y = stacked(batches(images.test_batches(config_of(folder))))
    expected = [decode.decoded(images.test.contents(path), 24).numpy() for path in images.test.paths]
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(y.argmax(axis=1), images.test.labels)


def names_of(dataset):
    return [name.numpy().decode() for name, _, _ in dataset]


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.thorough)])
def test_workers_share_the_images(folder, tfds_dir, workers):
    for split in (load(folder).train, data.load("imagenette/160px-v2", str(tfds_dir)).train):
        parts = [names_of(split.examples([0, 5], (worker, workers))) for worker in range(workers)]
        everything = sum(parts, [])
        assert len(everything) == len(set(everything)) == split.count
        assert set(everything) == set(names_of(split.examples()))
    images = load(folder)
    config = config_of(folder, batch_size=12)
    whole = batches(images.train_batches(config), 4)
    shares = [batches(images.train_batches(config, shard=(worker, workers)), 4) for worker in range(workers)]
    for step, (x, _) in enumerate(whole):
        both = np.concatenate([share[step][0] for share in shares])
        assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in x)


def test_every_batch_of_every_worker_is_augmented_by_a_seed_of_its_own(folder, monkeypatch):
    monkeypatch.setattr(stream, "Augmentation", lambda *_: lambda images, labels, seed: seed)
    config = config_of(folder, batch_size=12)
    seeds = [
        tuple(map(int, seed))
        for worker in range(3)
        for seed in load(folder).train_batches(config, shard=(worker, 3)).take(6).as_numpy_iterator()
    ]
    assert len(set(seeds)) == 3 * 6


def test_a_batch_that_does_not_divide_is_refused(folder):
    with pytest.raises(ValueError, match="Received: batch_size=16, workers=3"):
        load(folder).train_batches(config_of(folder), shard=(0, 3))


@pytest.mark.parametrize("name", ["imagenette/160px-v2", pytest.param("imagenet2012", marks=pytest.mark.thorough)])
def test_tfds_records(tfds_dir, name, monkeypatch):
    monkeypatch.setattr(records, "_BLOCK", 16)  # several blocks, the last one not full
    images = data.load(name, str(tfds_dir), image_size=20)
    assert (images.train_count, images.test.count) == (40, 12)
    assert len(images.class_names) == (1000 if name == "imagenet2012" else 10)
    config = TrainConfig(dataset=name, image_size=20, batch_size=8, augmentation="none")
    expected = {}
    for number in range(40):
        content = encoded(picture(number, 30 + number, 50), mode="L" if number == 3 else "RGB")
        expected[decode.decoded(content, 20).numpy().tobytes()] = number % 10
    epochs = [stacked(batches(images.train_batches(config, epoch), 5)) for epoch in (0, 1)]
    for x, y in epochs:
        seen = [image.astype("uint8").tobytes() for image in x]
        assert set(seen) == set(expected)
        np.testing.assert_array_equal(y.argmax(axis=1), [expected[key] for key in seen])
    assert not np.array_equal(epochs[0][0], epochs[1][0])
    x, _ = stacked(batches(images.test_batches(config)))
    assert x.shape == (12, 20, 20, 3)
    assert len(set(names_of(images.train.examples()))) == 40


@pytest.mark.thorough
def test_the_order_is_that_of_seed_and_epoch_whatever_the_global_seed(folder, tfds_dir):
    for images in (data.load("imagenette/160px-v2", str(tfds_dir), image_size=20), load(folder)):
        config = TrainConfig(dataset=images.name, image_size=images.image_size, batch_size=8)
        found = []
        for seed in (0, 1):
            keras.utils.set_random_seed(seed)
            found.append(stacked(batches(images.train_batches(config), 5))[0])
        np.testing.assert_array_equal(found[0], found[1])


BROKEN = {
    "cut.jpg": lambda good: good[: len(good) // 2],
    "text.jpg": lambda good: b"no image",
    "empty.png": lambda good: b"",
}


@pytest.fixture
def broken_folder(folder, tmp_path):
    for split in ("train", "val"):
        shutil.copytree(folder, tmp_path / split)
    good = (folder / "cat" / "00.jpg").read_bytes()
    for name, breaks in BROKEN.items():
        (tmp_path / "train" / "dog" / name).write_bytes(breaks(good))
    (tmp_path / "val" / "eel" / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image either")
    return tmp_path


def test_broken_images_are_left_out_named_and_counted(broken_folder):
    images = load(broken_folder, bad_images="skip")
    config = config_of(broken_folder, batch_size=21, bad_images="skip")
    found = batches(images.train_batches(config), 6)
    assert data.steps_per_epoch(images, config) == 3  # of 63 images; others replace the three broken ones
    first, second = stacked(found[:3])[0], stacked(found[3:])[0]
    for epoch in (first, second):
        assert len(epoch) == 63 and len({image.tobytes() for image in epoch}) == 60
        assert epoch.max(axis=(1, 2, 3)).min() > 0  # no black image has slipped in
    assert not np.array_equal(first, second)
    assert [os.path.basename(name) for name in images.bad_images] == sorted(BROKEN)
    x, _ = stacked(batches(images.test_batches(config)))
    assert len(x) == 60 and len(images.bad_images) == 4


def test_a_broken_image_can_be_fatal_and_is_named(broken_folder):
    images = load(broken_folder)
    with pytest.raises(ValueError, match=r"--bad_images=skip.*Received: .*/dog/(cut.jpg|text.jpg|empty.png)"):
        with data.plain_errors(images):
            batches(images.train_batches(config_of(broken_folder)), 10)
    with pytest.raises(ValueError, match=r"Received: .*/eel/bad.jpg"):
        images = load(broken_folder)
        with data.plain_errors(images):
            batches(images.test_batches(config_of(broken_folder)))


def test_a_file_that_vanished_is_a_broken_image(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "set")
    images = load(tmp_path / "set", bad_images="skip")
    gone = os.fsdecode(images.train.paths[7])
    os.remove(gone)
    batches(images.train_batches(config_of(tmp_path / "set")), 3)
    assert images.bad_images == (gone,)


def test_a_run_goes_on_with_half_of_its_images():
    bad = stream.BadImages("skip", 4)
    assert bad.note(b"a") and bad.note(b"a") and bad.note(b"b") and bad.fatal is None
    assert not bad.note(b"c") and "Received: 3 of 4 that cannot" in bad.fatal


def test_mostly_broken_images_end_the_run(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "set")
    for path in sorted((tmp_path / "set").rglob("*.jpg"))[:45]:
        path.write_bytes(b"x")
    images = load(tmp_path / "set", bad_images="skip")
    with pytest.raises(ValueError, match=r"Received: \d+ of 48 that cannot, such as .*jpg"), data.plain_errors(images):
        batches(images.train_batches(config_of(tmp_path / "set")), 6)


def test_other_errors_stay_what_they_are(folder):
    with pytest.raises(ZeroDivisionError), data.plain_errors(load(folder)):
        _ = 1 / 0


@pytest.mark.parametrize("bad_images", ["error", "skip"])
def test_the_number_of_test_batches_is_known(broken_folder, bad_images):
    if bad_images == "error":
        os.remove(broken_folder / "val" / "eel" / "bad.jpg")
    images = load(broken_folder, bad_images=bad_images)
    assert int(images.test_batches(config_of(broken_folder, bad_images=bad_images)).cardinality()) == 1
