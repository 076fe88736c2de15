"""Reader of protocol buffers, field by field. It needs no description of the messages."""

import struct
from collections.abc import Iterator
from typing import Any


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yields `(number, value)` of each field of a message. The value is an int, a float (32 bits) or bytes.

    Raises:
        IndexError: for a truncated message or a field of another kind.
        struct.error: for a truncated float.

    Example:

    >>> list(fields(bytes([0x08, 0x96, 0x01, 0x12, 0x02, 0x68, 0x69])))
    [(1, 150), (2, b'hi')]
    """
    position = 0
    while position < len(message):
        key, position = varint(message, position)
        if key & 7 == 0:
            value, position = varint(message, position)
        elif key & 7 == 5:
            (value,) = struct.unpack_from("<f", message, position)
            position += 4
        elif key & 7 == 2:
            length, position = varint(message, position)
            value, position = message[position : position + length], position + length
        else:
            raise IndexError(f"a field of kind {key & 7}")
        yield key >> 3, value


def varint(message: bytes, position: int) -> tuple[int, int]:
    """Reads an integer of variable length at a position. Returns it and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
