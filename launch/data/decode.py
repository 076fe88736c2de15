"""Decodes image files to RGB pixels of one size: JPEG, PNG, GIF, BMP and WebP, also grey and CMYK."""

# Center crop: part of the shorter side that evaluation keeps (224 of 256 pixels).
_CENTER_FRACTION = 0.875


def decoded(contents, size, seed=None):
    """Decodes one image to `size` × `size` pixels, uint8 RGB.

    Args:
        contents: string tensor, the bytes of the file.
        size: int.
        seed: int tensor of shape `(2,)` for a random crop, `None` for the center crop.

    Raises:
        tf.errors.InvalidArgumentError: for bytes that are not an image.
    """
    import tensorflow as tf

    window = center_window if seed is None else lambda shape: inception_window(shape, seed)

    def jpeg():
        # This decodes only the blocks that the crop needs.
        return tf.image.decode_and_crop_jpeg(contents, window(tf.io.extract_jpeg_shape(contents)), channels=3)

    def other():
        image = tf.cond(
            _is_webp_image(contents),
            lambda: tf.io.decode_image(contents, channels=0, expand_animations=False)[..., :3],
            lambda: tf.io.decode_image(contents, channels=3, expand_animations=False),
        )
        top, left, height, width = tf.unstack(window(tf.shape(image)))
        return tf.slice(image, [top, left, 0], [height, width, 3])

    image = tf.cond(tf.io.is_jpeg(contents), jpeg, other)
    image = tf.image.resize(image, (size, size))
    return tf.ensure_shape(tf.cast(tf.round(image), tf.uint8), (size, size, 3))


def _is_webp_image(contents):
    """Reports if the bytes are a WebP image without animation.

    TensorFlow drops the transparency of other formats, but decodes a transparent WebP only with `channels=0`. It must
    not decode an animation in this way: TensorFlow 2.21 then writes past its memory.
    """
    import tensorflow as tf

    head = tf.strings.substr(contents, 0, 21) + 21 * b" "  # a file may be shorter
    extended = tf.strings.substr(head, 12, 4) == b"VP8X"
    flags = tf.io.decode_raw(tf.strings.substr(head, 20, 1), tf.uint8)[0]
    animated = extended & (tf.bitwise.bitwise_and(flags, 2) > 0)
    return (tf.strings.substr(head, 8, 4) == b"WEBP") & ~animated


def inception_window(shape, seed):
    """Draws a random window `(top, left, height, width)` of 8 % to 100 % of the area, aspect ratio 3:4 to 4:3.

    Source: Szegedy et al., "Going Deeper with Convolutions" (arXiv 1409.4842), section 6.
    """
    import tensorflow as tf

    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros((1, 0, 4)),
        seed,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.stack([begin[0], begin[1], extent[0], extent[1]])


def center_window(shape):
    """Returns the central square window `(top, left, height, width)`, 0.875 of the shorter side."""
    import tensorflow as tf

    height, width = shape[0], shape[1]
    side = tf.cast(tf.cast(tf.minimum(height, width), tf.float32) * _CENTER_FRACTION, tf.int32)
    side = tf.maximum(side, 1)
    return tf.stack([(height - side) // 2, (width - side) // 2, side, side])


def decoded_or_blank(contents_of, reference, size, seed=None):
    """Returns `(image, True)`, or a black image and `False` if the bytes are not an image or cannot be read.

    Args:
        contents_of: function from `reference` to the bytes.
        reference: string tensor.
        size, seed: as for `decoded`.
    """
    import tensorflow as tf

    # TensorFlow graphs have no `try`; a dataset of one element with `ignore_errors` replaces it.
    tried = tf.data.Dataset.from_tensors(reference).map(lambda text: (decoded(contents_of(text), size, seed), True))
    blank = tf.data.Dataset.from_tensors((tf.zeros((size, size, 3), tf.uint8), False))
    return tried.ignore_errors().concatenate(blank).take(1).get_single_element()
