"""Classifies image files with an exported model. Needs only LiteRT's interpreter, NumPy and Pillow, as on a device.

  elrt-export runs/r20 --quantization=int8
  python examples/classify.py --model=runs/r20/export/low_rank_int8.tflite cat.jpg dog.png --top_k=3

Class names come from the file's metadata; without names, classes are numbered.
"""

import sys
import zipfile

import numpy as np
from absl import app, flags
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, UnidentifiedImageError

_MODEL = flags.DEFINE_string("model", None, "The .tflite file.", required=True)
_TOP_K = flags.DEFINE_integer("top_k", 3, "Number of classes to print per image.", lower_bound=1)
_CENTER = 0.875  # part of the shorter side of a large photograph that evaluation crops


def load_image(path, height, width, channels):
    """Returns the central part of an image file as `(1, height, width, channels)`, 0–255."""
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


def quantized(values, detail):
    """Converts values to the type of a tensor; an integer tensor has a scale and a zero point."""
    scale, zero = detail["quantization"]
    if not scale:
        return values.astype(detail["dtype"])
    limits = np.iinfo(detail["dtype"])
    return np.clip(np.rint(values / scale + zero), limits.min, limits.max).astype(detail["dtype"])


def dequantized(values, detail):
    """Inverts `quantized`."""
    scale, zero = detail["quantization"]
    return (values.astype("float32") - zero) * scale if scale else values


def class_names(path, count):
    """Returns the class names in the file, or numbers."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if "labels.txt" in archive.namelist():
                return archive.read("labels.txt").decode("utf-8").splitlines()
    return [str(number) for number in range(count)]


def main(argv):
    """Prints the most likely classes of every image named on the command line."""
    if len(argv) < 2:
        sys.exit("Expected image files: classify.py --model=FILE.tflite IMAGE… Received: none")
    try:
        interpreter = Interpreter(_MODEL.value)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        sys.exit(f"Expected a LiteRT model. Received: {_MODEL.value}: {error}")
    (image_detail,), (score_detail,) = interpreter.get_input_details(), interpreter.get_output_details()
    if len(image_detail["shape"]) != 4:
        sys.exit(f"Expected a model for images. Received: {_MODEL.value}: an input of shape {image_detail['shape']}")
    names = class_names(_MODEL.value, score_detail["shape"][-1])
    failed = False
    for path in argv[1:]:
        try:
            image = load_image(path, *image_detail["shape"][1:])
        except (OSError, UnidentifiedImageError) as error:
            print(f"{path}: no image that can be read: {error}", file=sys.stderr)
            failed = True
            continue
        interpreter.set_tensor(image_detail["index"], quantized(image, image_detail))
        interpreter.invoke()
        scores = dequantized(interpreter.get_tensor(score_detail["index"])[0], score_detail)
        best = np.argsort(scores)[::-1][: _TOP_K.value]
        print(f"{path}: " + ", ".join(f"{names[number]} {scores[number]:.1%}" for number in best))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    app.run(main)
