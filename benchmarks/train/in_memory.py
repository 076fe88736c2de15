"""Training without TensorFlow: CIFAR-10 in memory, read from its TFDS records, and epochs that keep a GPU busy.

On JAX the images lie on the device. On an accelerator an epoch is one compiled call: a scan gathers, augments and
trains batch by batch. On the other backends NumPy makes the batches.
"""

import contextlib
import io
import pathlib
import struct

import keras
import numpy as np

from elrt_keras.launch.data import ImageData
from elrt_keras.litert.protobuf import fields, varint

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_cifar10(folder):
    """Loads CIFAR-10 from a folder with the TFRecord files of a prepared TFDS data set.

    Raises:
        ValueError: if the folder lacks one of the two splits.
    """
    arrays = []
    for split in ("train", "test"):
        files = sorted(pathlib.Path(folder).rglob(f"cifar10-{split}.tfrecord*"))
        if not files:
            raise ValueError(f"Expected cifar10-{split}.tfrecord* below {str(folder)!r}. Received: no such file")
        examples = [_features(record) for file in files for record in _records(file)]
        arrays.append(np.stack([_decoded(example["image"]) for example in examples]))
        arrays.append(np.array([example["label"] for example in examples], dtype="int64"))
    return ImageData("cifar10", *arrays, _CIFAR10)


def _records(path):
    """Yields the payloads of a TFRecord file: length (8 bytes), its checksum (4), payload, its checksum (4)."""
    content = pathlib.Path(path).read_bytes()
    position = 0
    while position < len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        yield content[position + 12 : position + 12 + length]
        position += 16 + length


def _features(record):
    """Reads the features of a `tf.train.Example`: the first value of each, bytes or int."""
    (_, features), *_ = fields(record)
    result = {}
    for _, entry in fields(features):
        (_, name), (_, feature) = fields(entry)
        for kind, values in fields(feature):
            first = next((value for _, value in fields(values)), None)
            result[name.decode()] = varint(first, 0)[0] if kind == 3 and isinstance(first, bytes) else first
    return result


def _decoded(jpeg):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


class JaxEpochs:
    """Trains a compiled Keras model epoch by epoch on the JAX backend; all data and state stay on the device."""

    def __init__(self, model, config, data):
        import jax

        if config.ema is not None:
            raise ValueError(f"Expected TensorFlow or PyTorch with averaged weights. Received: ema={config.ema} on JAX")
        self._model, self._config, self._data = model, config, data
        self._steps = len(data.train_images) // config.batch_size
        model.optimizer.build(model.trainable_variables)
        self._device = jax.devices()[0]  # computations run where their arrays are, even inside `on_host`
        arrays = (data.train_images, data.train_labels, data.test_images)
        self._images, self._labels, self._test_images = jax.device_put(arrays, self._device)
        self._epoch = self._compiled_epoch()
        self._predict = jax.jit(
            lambda tv, ntv, images: model.stateless_call(tv, ntv, images.astype("float32"), training=False)[0]
        )
        self.load()

    def load(self):
        """Reads the state from the model's variables; call it after other code has changed them."""
        from benchmarks.measure.device_steps import copied_state

        self._state = copied_state(self._model, self._device)

    def store(self):
        """Writes the state into the model's variables."""
        model = self._model
        variables = (model.trainable_variables, model.non_trainable_variables, model.optimizer.variables)
        for group, values in zip(variables, self._state):
            for variable, value in zip(group, values):
                variable.assign(np.asarray(value))

    def train(self, epoch):
        """Trains one epoch; returns `{"loss", "accuracy"}` over its batches."""
        import jax

        # The key is an argument, so runs with other seeds are the same program for the compilation cache.
        key = jax.random.fold_in(jax.random.key(self._config.seed), epoch)
        self._state, (loss, accuracy) = self._epoch(self._state, self._images, self._labels, key)
        return {"loss": float(loss), "accuracy": float(accuracy)}

    def evaluate(self, batch_size=1000):
        """`{"val_accuracy", "val_loss"}` on the test images."""
        starts = range(0, len(self._test_images), batch_size)
        batches = (self._test_images[start : start + batch_size] for start in starts)
        outputs = [self._predict(*self._state[:2], batch) for batch in batches]  # start all, then wait
        return _scores(np.concatenate([np.asarray(output) for output in outputs]), self._data.test_labels)

    def _compiled_epoch(self):
        """Returns `epoch(state, images, labels, key)`, which returns the next state, mean loss and mean accuracy."""
        import jax
        from jax import numpy as jnp

        count, size, steps = len(self._data.train_images), self._config.batch_size, self._steps
        step = self._step_function()

        def drawn(key):
            return jax.random.permutation(key, count)[: steps * size].reshape(steps, size), jax.random.split(key, steps)

        def scanned(state, images, labels, key):
            batches = drawn(key)
            state, scores = jax.lax.scan(lambda state, batch: step(state, images, labels, *batch), state, batches)
            return state, tuple(score.mean() for score in scores)

        compiled_step = jax.jit(step, donate_argnums=0)

        def looped(state, images, labels, key):
            scores = []
            for batch in zip(*drawn(key)):
                state, score = compiled_step(state, images, labels, *batch)
                scores.append(score)
            return state, tuple(jnp.stack(score).mean() for score in zip(*scores))

        # In a compiled loop XLA runs convolutions on one CPU core only.
        return looped if jax.devices()[0].platform == "cpu" else jax.jit(scanned, donate_argnums=0)

    def _step_function(self):
        import jax
        from jax import numpy as jnp

        from benchmarks.measure.device_steps import functional_step

        config, classes, train = self._config, len(self._data.class_names), functional_step(self._model)

        def step(state, images, labels, indices, key):
            batch = _augmented(images[indices], key, config.augmentations)
            targets = jax.nn.one_hot(labels[indices], classes)
            state, loss, outputs = train(state, batch, targets)
            return state, (loss, jnp.mean(jnp.argmax(outputs, -1) == labels[indices]))

        return step


def _augmented(images, key, names):
    """Crops and flips a batch of bytes to floats, by the rules of `elrt_keras.launch.data`."""
    import jax
    from jax import numpy as jnp

    unknown = set(names) - {"crop", "flip"}
    if unknown:
        raise ValueError(f"Expected augmentations among crop, flip. Received: {sorted(unknown)}")
    place, side = jax.random.split(key)
    shape = images.shape
    if "crop" in names:
        margin = shape[1] // 8
        padded = jnp.pad(images, [(0, 0), (margin, margin), (margin, margin), (0, 0)])
        offsets = jax.random.randint(place, (shape[0], 2), 0, 2 * margin + 1)
        cut = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), shape[1:]))
        images = cut(padded, offsets)
    if "flip" in names:
        chosen = jax.random.bernoulli(side, 0.5, (shape[0], 1, 1, 1))
        images = jnp.where(chosen, images[:, :, ::-1], images)
    return images.astype("float32")


class KerasEpochs:
    """Trains on any backend batch by batch, with the interface of `JaxEpochs`.

    It does not use `fit` and `predict`: on TensorFlow they read from tf.data, which can take a minute to end.
    """

    def __init__(self, model, config, data):
        self._model, self._config, self._data = model, config, data

    def load(self):
        """Does nothing: the state is in the model."""

    store = load

    def train(self, epoch):
        """Trains one epoch; returns `{"loss", "accuracy"}` over its batches."""
        # `train_on_batch` returns the values of its batch only.
        scores = [
            self._model.train_on_batch(images, targets, return_dict=True)
            for images, targets in _batches(self._data, self._config, epoch)
        ]
        return {name: float(np.mean([score[name] for score in scores])) for name in ("loss", "accuracy")}

    def evaluate(self, batch_size=1000):
        """`{"val_accuracy", "val_loss"}` on the test images."""
        outputs = []
        with _averaged(self._model):
            for start in range(0, len(self._data.test_images), batch_size):
                images = self._data.test_images[start : start + batch_size].astype("float32")
                outputs.append(self._model.predict_on_batch(images))
        return _scores(np.concatenate(outputs), self._data.test_labels)


@contextlib.contextmanager
def _averaged(model):
    """Context in which the model has its averaged weights, if its optimizer keeps averages."""
    if not getattr(model.optimizer, "use_ema", False):
        yield
        return
    swap = keras.callbacks.SwapEMAWeights()
    swap.set_model(model)
    swap.on_test_begin()
    yield
    swap.on_test_end()


def augmented_batches(data, config, count):
    """Yields batches with at least `count` augmented training images as floats, from the epoch after the last."""
    for number, (images, _) in enumerate(_batches(data, config, config.epochs)):
        if number * config.batch_size >= count:
            return
        yield images


def _batches(data, config, epoch):
    """Yields shuffled, augmented batches; each depends only on (seed, epoch, number of the batch)."""
    steps = len(data.train_images) // config.batch_size
    order = np.random.default_rng((config.seed, epoch)).permutation(len(data.train_images))
    classes = np.eye(len(data.class_names), dtype="float32")
    for number, indices in enumerate(order[: steps * config.batch_size].reshape(steps, config.batch_size)):
        rng = np.random.default_rng((config.seed, epoch, number))
        images = _cropped_and_flipped(data.train_images[indices], config.augmentations, rng)
        yield images.astype("float32"), classes[data.train_labels[indices]]


def _cropped_and_flipped(images, names, rng):
    if "crop" in names:
        count, size = images.shape[:2]
        margin = size // 8
        padded = np.pad(images, [(0, 0), (margin, margin), (margin, margin), (0, 0)])
        rows, columns = (rng.integers(0, 2 * margin + 1, (2, count, 1)) + np.arange(size))[:, :, :]
        images = padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    if "flip" in names:
        images = np.where(rng.random((len(images), 1, 1, 1)) < 0.5, images[:, :, ::-1], images)
    return images


def _scores(probabilities, labels):
    picked = np.clip(probabilities[np.arange(len(labels)), labels].astype("float64"), 1e-7, 1)
    return {
        "val_accuracy": float(np.mean(np.argmax(probabilities, axis=-1) == labels)),
        "val_loss": float(-np.mean(np.log(picked))),
    }


def epochs_of(model, config, data):
    """Returns the class to train epochs with on this backend."""
    return (JaxEpochs if keras.backend.backend() == "jax" else KerasEpochs)(model, config, data)
