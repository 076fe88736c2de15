"""Classifies image files with an exported model.

  elrt-classify runs/r20/export/low_rank_int8.tflite cat.jpg dog.png
  elrt-classify model.tflite photos/*.jpg --top_k=1

Prints the most likely classes of each image. Each image is converted to the model's input: the central part of a large
photograph is cropped and resized. Class names come from the file; without names, classes are numbered. The exit status
is 1 if some images could not be read, and 2 if no image could be read.

This command loads Keras and starts slowly. examples/classify.py prints the same at once, without this package.
"""

import os
import sys

import numpy as np
from absl import flags as absl_flags

from elrt_keras.launch import cli

_CENTER = 0.875  # part of the shorter side of a large photograph that evaluation crops


def define():
    """Defines the flags of `elrt-classify`."""
    absl_flags.DEFINE_integer("top_k", 3, "Number of classes to print per image.", lower_bound=1)


def run(argv):
    """Prints the most likely classes of the images that `argv` names; exits with 1 or 2 if some cannot be read."""
    if len(argv) < 3:
        raise ValueError(f"Expected a model and images: elrt-classify FILE.tflite IMAGE… Received: {argv[1:]}")
    _, path, *images = argv
    runner, names = _opened(path)
    unread = [image for image in images if not _classify(image, runner, names)]
    if unread:
        sys.exit(2 if len(unread) == len(images) else 1)


def _opened(path):
    """Opens a LiteRT file as `(Runner, class names)`; numbers stand in for missing names."""
    from elrt_keras import litert
    from elrt_keras.litert.metadata import read_labels

    runner = litert.Runner(path)
    shapes = list(runner.input_shapes.values())
    if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][2] not in (1, 3) or len(runner.output_names) != 1:
        outputs = runner.output_names
        raise ValueError(
            f"Expected a model from one grey or RGB image to one vector of scores. Received: {path!r}, with inputs of "
            f"shapes {shapes} and outputs {outputs}"
        )
    with open(path, "rb") as file:
        names = read_labels(file.read())
    count = runner(np.zeros((1, *shapes[0]), "float32")).shape[-1]
    return runner, names or list(map(str, range(count)))


def _classify(path, runner, names):
    """Prints the classes of one image file, or the reason why it cannot be read. Reports if it could be read."""
    try:
        (shape,) = runner.input_shapes.values()
        image = load_image(path, *shape)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three for damaged files
        print(f"elrt-classify: {path}: no image that can be read: {error}", file=sys.stderr)
        return False
    (scores,) = runner(image)
    best = np.argsort(scores)[::-1][: absl_flags.FLAGS.top_k]
    print(f"{path}: " + ", ".join(f"{names[number]} {scores[number]:.1%}" for number in best))
    return True


def load_image(path, height, width, channels):
    """Returns the central part of an image file as `(1, height, width, channels)`, 0–255."""
    from PIL import Image

    with Image.open(path) as image:
        if image.mode.startswith("I"):  # 16 bits, which `convert` would clip to 8
            image = Image.fromarray((np.asarray(image) / 257).astype("uint8"))
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            side = max(1, int(min(image.size) * _CENTER))
            left, top = (image.width - side) // 2, (image.height - side) // 2
            box = (left, top, left + side, top + side)
            image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
        return np.asarray(image, dtype="float32").reshape(1, height, width, channels)


def main():
    """Entry point of `elrt-classify`."""
    define()
    cli.start("elrt-classify", run, [os.path.basename(sys.argv[0]), *sys.argv[1:]])


if __name__ == "__main__":
    main()
