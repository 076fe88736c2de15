"""Parsers of flags that hold several values."""


def input_shape(sizes: list[str] | None, image_size: int | None) -> tuple[int, ...] | None:
    """Parses height, width and channels from texts, or from the size of square colour images; `None` without both.

    Raises:
        ValueError: for both at once, or texts that are not positive ints.
    """
    if image_size is not None:
        if sizes is not None:
            raise ValueError(
                f"Expected either an image size or an input shape. Received: image_size={image_size}, "
                f"input_shape={sizes}"
            )
        return image_size, image_size, 3
    if sizes is None:
        return None
    if not sizes or not all(size.strip().isdecimal() and int(size) for size in sizes):
        raise ValueError(f"Expected positive ints such as 32,32,3. Received: input_shape={sizes}")
    return tuple(map(int, sizes))


def formats_by_layer(text: str) -> str | dict[str, str]:
    """Parses `"conv1*:svd,*:tucker2"` to a dict; returns a single name such as `"svd"` unchanged.

    Raises:
        ValueError: for a part that is not a pair, or a pattern that occurs twice.
    """
    if ":" not in text:
        return text
    pairs = [part.split(":") for part in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"Expected a format, or pattern:format, separated by commas. Received: format={text!r}")
    formats = {pattern: name for pattern, name in pairs}
    if len(formats) < len(pairs):
        raise ValueError(f"Expected each pattern once. Received: format={text!r}")
    return formats
