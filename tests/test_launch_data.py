"""The input pipelines: contents of a batch, effects of augmentation, and equal batches in a resumed run."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
from common import SLOW_ON_JAX, thorough_but

from elrt_keras.launch import data
from elrt_keras.launch.config import TrainConfig
from elrt_keras.launch.data import augment

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "tfds"


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def batches(dataset, count):
    return [(x.numpy(), y.numpy()) for x, y in dataset.take(count)]


def test_digits_are_the_embedded_ones(digits):
    assert digits.train_images.shape == (1437, 8, 8, 1) and digits.test_images.shape == (360, 8, 8, 1)
    assert digits.train_images.dtype == "uint8" and digits.train_images.max() == 255
    np.testing.assert_allclose(np.bincount(digits.test_labels), 36, atol=1)  # stratified
    both = np.concatenate([digits.train_images, digits.test_images]).reshape(1797, -1)
    from sklearn.datasets import load_digits

    assert sorted(map(tuple, both)) == sorted(map(tuple, np.round(load_digits().data * 255 / 16).astype("uint8")))


def test_pixel_statistics_match_numpy(digits):
    mean, std = digits.pixel_statistics()
    np.testing.assert_allclose(mean, [digits.train_images.mean()], rtol=1e-6)
    np.testing.assert_allclose(std, [digits.train_images.std()], rtol=1e-6)


def test_an_epoch_without_augmentation_holds_each_image_once(digits):
    config = TrainConfig(augmentation="none", batch_size=100)
    steps = data.steps_per_epoch(digits, config)
    assert steps == 14
    seen = np.concatenate([x for x, _ in batches(digits.train_batches(config), steps)]).reshape(1400, -1)
    images = digits.train_images.reshape(1437, -1)
    available = {tuple(image): np.sum(np.all(images == image, axis=1)) for image in images}
    counts = {}
    for image in map(tuple, seen.astype("uint8")):
        counts[image] = counts.get(image, 0) + 1
    assert all(counts[image] <= available[image] for image in counts)


def test_labels_follow_their_images(digits):
    config = TrainConfig(augmentation="none", batch_size=50)
    label_of = {tuple(image.ravel()): label for image, label in zip(digits.train_images, digits.train_labels)}
    for images, labels in batches(digits.train_batches(config), 3):
        assert labels.shape == (50, 10) and (labels.sum(axis=1) == 1).all()
        expected = [label_of[tuple(image.ravel().astype("uint8"))] for image in images]
        np.testing.assert_array_equal(labels.argmax(axis=1), expected)


def test_epochs_differ_and_a_late_start_continues_the_same_stream(digits):
    config = TrainConfig(augmentation="crop,flip,cutout", batch_size=128, seed=5)
    steps = data.steps_per_epoch(digits, config)
    stream = batches(digits.train_batches(config), 2 * steps)
    resumed = batches(digits.train_batches(config, first_epoch=1), steps)
    for (x, y), (x_resumed, y_resumed) in zip(stream[steps:], resumed):
        np.testing.assert_array_equal(x, x_resumed)
        np.testing.assert_array_equal(y, y_resumed)
    assert not np.array_equal(stream[0][0], stream[steps][0])


@pytest.mark.tensorflow
def test_every_epoch_has_an_order_of_its_own(digits):
    config = TrainConfig(augmentation="none", batch_size=400)
    firsts = [batches(digits.train_batches(config, first_epoch=epoch), 1)[0][0] for epoch in (0, 1, 2)]
    # Two batches of 400 from 1437 images share 111 images on average, few of them at the same place.
    assert all(np.mean(np.all(a == b, axis=(1, 2, 3))) < 0.1 for a, b in zip(firsts, firsts[1:]))


def test_seeds_give_other_orders(digits):
    first, second = (
        batches(digits.train_batches(TrainConfig(augmentation="none", seed=seed)), 1)[0][0] for seed in (0, 1)
    )
    assert not np.array_equal(first, second)


def test_pad_and_crop_equals_a_crop_of_the_padded_image(digits):
    images = digits.train_images[:64]
    cropped = augment.pad_and_crop(images, [1, 2], margin=2).numpy()
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)])
    offsets = set()
    for image, crop in zip(padded, cropped):
        found = [(r, c) for r in range(5) for c in range(5) if np.array_equal(image[r : r + 8, c : c + 8], crop)]
        assert found
        offsets.update(found[:1])
    assert len(offsets) > 10  # of 25: each image has its own shift


def test_crops_reach_every_place():
    images = np.random.default_rng(0).integers(1, 255, (200, 6, 6, 1)).astype("uint8")
    cropped = augment.pad_and_crop(images, [1, 2], margin=2).numpy()[..., 0] > 0
    # Zeros lie before the image if the crop begins early, and behind it if it begins late.
    for axis in (1, 2):
        lines = cropped.any(axis=3 - axis)
        assert {(int(line.argmax()), int(line[::-1].argmax())) for line in lines} == {
            (2, 0),
            (1, 0),
            (0, 0),
            (0, 1),
            (0, 2),
        }


def test_flip_mirrors_about_half(digits):
    images = digits.train_images[:200]
    flipped = augment.flip(images, [3, 4]).numpy()
    mirrored = [np.array_equal(f, i[:, ::-1]) and not np.array_equal(f, i) for f, i in zip(flipped, images)]
    kept = [np.array_equal(f, i) for f, i in zip(flipped, images)]
    assert all(m or k for m, k in zip(mirrored, kept))
    assert 60 < sum(mirrored) < 140  # binomial(200, ½) leaves that range once in 10⁸


def test_cutout_fills_one_square():
    images = np.full((50, 8, 8, 1), 9, "uint8")
    cut = augment.cutout(images, [0, 0], size=4, fill=np.array([100], "uint8")).numpy()[..., 0] == 100
    assert cut.any(axis=(1, 2)).all()
    for mask in cut:
        rows, columns = np.where(mask.any(axis=1))[0], np.where(mask.any(axis=0))[0]
        for places in (rows, columns):  # four wide, or cut off by the border
            assert len(places) == 4 or (len(places) < 4 and (places[0] == 0 or places[-1] == 7))
        assert mask.sum() == len(rows) * len(columns)


CLASSES = 8


def constant_images(count=64, size=64, channels=3):
    """Makes images of one constant value each: twenty times the label."""
    labels = np.arange(count) % CLASSES
    return np.broadcast_to((20 * labels)[:, None, None, None], (count, size, size, channels)).astype("uint8"), labels


def augmented(names, images, labels, seed=(0, 0)):
    apply = augment.Augmentation(names, images.shape[1:], np.zeros(images.shape[-1]), CLASSES)
    dataset = tf.data.Dataset.from_tensors((images, labels)).map(lambda x, y: apply(x, y, tf.constant(seed, tf.int64)))
    ((x, y),) = batches(dataset, 1)
    return x, y


MIXERS = ["mixup", "cutmix", "mixup+cutmix"]


@pytest.mark.parametrize("names", thorough_but(["mixup"], MIXERS))
def test_mixed_labels_say_what_is_in_the_image(names):
    names = tuple(names.split("+"))
    images, labels = constant_images()
    seen = []
    for seed in range(8):
        x, y = augmented(names, images, labels, (seed, 1))
        np.testing.assert_allclose(y.sum(axis=1), 1, atol=1e-6)
        # Linear in the pixels, so the mean of an image tells the labels' weights; CutMix counts the area of its box
        # before it is rounded to pixels, one row and column at most.
        slack = 140 * (2 * 64 + 1) / 64**2 if "cutmix" in names else 1e-3
        np.testing.assert_allclose(x.mean(axis=(1, 2, 3)), y @ (20 * np.arange(CLASSES)), atol=slack)
        assert (y[np.arange(64), labels] < 1).mean() > 0.3
        seen.append("cutmix" if len(np.unique(x[y.max(axis=1) < 1].round(2))) <= CLASSES else "mixup")
    assert set(seen) == set(names)


def test_jitter_changes_brightness_contrast_and_saturation_of_each_image_by_itself():
    coarse = np.random.default_rng(0).integers(40, 200, (1, 8, 8, 3))
    images = np.repeat(coarse, 100, axis=0).astype("uint8")
    x, _ = augmented(("jitter",), images, np.zeros(100, int))
    assert x.min() >= 0 and x.max() <= 255
    assert len(np.unique(x.mean(axis=(1, 2, 3)).round(3))) > 95 and len(np.unique(x.std(axis=(1, 2, 3)).round(3))) > 95
    spread = (x.max(axis=3) - x.min(axis=3)).mean(axis=(1, 2))  # between the channels: saturation
    assert spread.min() < 0.8 * np.ptp(coarse, axis=3).mean() and spread.max() > 1.2 * np.ptp(coarse, axis=3).mean()
    # On average, brightness and contrast stay the same.
    assert x.mean() == pytest.approx(coarse.mean(), abs=10)
    assert x.std(axis=(1, 2, 3)).mean() == pytest.approx(coarse.std(), rel=0.1)


def test_grey_images_are_jittered_too():
    x, _ = augmented(("jitter",), np.full((20, 8, 8, 1), 100, "uint8"), np.zeros(20, int))
    assert x.shape == (20, 8, 8, 1) and x.std() > 5


@pytest.mark.thorough
@pytest.mark.parametrize("augmentation", [pytest.param("randaugment", marks=SLOW_ON_JAX)])
def test_randaugment_keeps_the_range_and_differs_between_steps(augmentation):
    images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3)).astype("uint8")
    outputs = [augmented((augmentation,), images, np.zeros(16, int), (0, step))[0] for step in range(6)]
    assert all(x.min() >= 0 and x.max() <= 255 for x in outputs)
    assert len({x.tobytes() for x in outputs}) > 3
    np.testing.assert_array_equal(outputs[2], augmented((augmentation,), images, np.zeros(16, int), (0, 2))[0])


def test_workers_get_their_share_of_each_batch(digits):
    config = TrainConfig(augmentation="none", batch_size=60)
    whole = batches(digits.train_batches(config), 3)
    shares = [batches(digits.train_batches(config, shard=(worker, 3)), 3) for worker in range(3)]
    for step, (x, y) in enumerate(whole):
        for worker in range(3):
            np.testing.assert_array_equal(shares[worker][step][0], x[worker::3])
            np.testing.assert_array_equal(shares[worker][step][1], y[worker::3])


def test_test_batches_hold_all_images_in_order(digits):
    seen = np.concatenate([x for x, _ in batches(digits.test_batches(TrainConfig()), 10)])
    np.testing.assert_array_equal(seen, digits.test_images)


def test_batch_larger_than_the_data_is_refused(digits):
    with pytest.raises(ValueError, match="at most 1437 images.*Received: batch_size=2000"):
        data.steps_per_epoch(digits, TrainConfig(batch_size=2000))


def test_missing_data_is_named(tmp_path):
    with pytest.raises(ValueError, match="is no directory"):
        data.load("cifar10", data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"prepared data set 'cifar10'.*--download"):
        data.load("cifar10", data_dir=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_archives_that_tfds_misses_are_named(tmp_path):
    with pytest.raises(ValueError, match="TFDS to download and prepare 'imagenet2012'.*ILSVRC2012_img_train.tar"):
        data.load("imagenet2012", data_dir=str(tmp_path), download=True, image_size=32)


@pytest.mark.thorough
@pytest.mark.skipif(not SHARED.is_dir(), reason="no prepared CIFAR-10 beside the project")
def test_cifar10_from_tfds():
    cifar = data.load("cifar10", data_dir=str(SHARED))
    assert cifar.train_images.shape == (50_000, 32, 32, 3) and cifar.test_images.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(cifar.test_labels), 1000)
    assert cifar.class_names[0] == "airplane"


SMALL_SETS = {
    "cifar10": ((32, 32, 3), 10, {"id": "a"}),
    "cifar100": ((32, 32, 3), 100, {"id": "a", "coarse_label": 3}),
    "fashion_mnist": ((28, 28, 1), 10, {}),
    "svhn_cropped": ((32, 32, 3), 10, {"id": "a"}),
}


@pytest.mark.parametrize("name", SMALL_SETS)
def test_small_sets_as_tfds_prepares_them(tmp_path, name):
    """Writes a directory in TFDS' own format with few images; PNG keeps every pixel."""
    import tensorflow_datasets as tfds

    shape, classes, rest = SMALL_SETS[name]
    images = np.random.default_rng(0).integers(0, 256, (30, *shape), dtype="uint8")
    labels = np.random.default_rng(1).integers(0, classes, 30)
    builder = tfds.builder(name, data_dir=str(tmp_path))

    def examples(start, stop):
        return ((n, {"image": images[n], "label": int(labels[n]), **rest}) for n in range(start, stop))

    splits = {"train": examples(0, 20), "test": examples(20, 30)}
    builder._split_generators = lambda *args, **kwargs: splits
    builder.download_and_prepare()
    loaded = data.load(name, str(tmp_path))
    assert (loaded.image_shape, loaded.train_count, len(loaded.class_names)) == (shape, 20, classes)
    assert loaded.class_names == tuple(builder.info.features["label"].names)
    expected = {image.tobytes(): label for image, label in zip(images[:20], labels)}
    config = TrainConfig(dataset=name, batch_size=10, augmentation="none")
    x, y = (np.concatenate(part) for part in zip(*batches(loaded.train_batches(config), 2)))
    assert [expected[image.astype("uint8").tobytes()] for image in x] == list(y.argmax(axis=1))
    x, y = (np.concatenate(part) for part in zip(*batches(loaded.test_batches(config), 1)))
    assert {image.astype("uint8").tobytes() for image in x} == {image.tobytes() for image in images[20:]}
