"""Class labels and input range in a LiteRT file, at the place where the tools of Android and MediaPipe read them.

The file gets an entry `TFLITE_METADATA`, a separate flatbuffer that TensorFlow's `metadata_schema.fbs` describes. The
labels are a text file in a ZIP archive after the model, so `unzip` shows them too.
"""

import io
import zipfile
from collections.abc import Sequence

LABELS = "labels.txt"
_ENTRY, _IDENTIFIER, _PARSER = "TFLITE_METADATA", b"M001", "1.0.0"
# Numbers of the schema: union members and enums.
_IMAGE, _NORMALIZATION, _AXIS_LABELS = 2, 1, 2
_COLORS = {1: 2, 3: 1}  # channels → GRAYSCALE, RGB


def with_metadata(
    content: bytes,
    name: str,
    input_shape: Sequence[int],
    input_range: tuple[float, float],
    class_names: Sequence[str] | None = None,
) -> bytes:
    """Adds metadata to a model. Returns the new bytes.

    Args:
        content: bytes of the model, with one input and one output.
        name: name of the model.
        input_shape: `(height, width, channels)`; for 1 and 3 channels the metadata contain the colour space.
        input_range: `(lowest, highest)` value of a pixel.
        class_names: list of str, one per output, or `None`.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = bytearray(_metadata(flatbuffers.Builder(1024), name, input_shape, input_range, class_names))
    model.buffers.append(buffer)
    entry.name, entry.buffer = _ENTRY, len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), entry]
    content = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    return content if class_names is None else _with_file(content, LABELS, "\n".join(class_names) + "\n")


def read_labels(content: bytes) -> list[str] | None:
    """Returns the class names in a model's bytes, or `None`."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.read(LABELS).decode("utf-8").splitlines()
    except (zipfile.BadZipFile, KeyError):
        return None


def _with_file(content, name, text):
    file = io.BytesIO(content)
    file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file, "a") as archive:
        # `ZipInfo` has a fixed date, so the same model makes the same file.
        archive.writestr(zipfile.ZipInfo(name), text)
    return file.getvalue()


def _metadata(builder, name, input_shape, input_range, class_names):
    """Writes the table `ModelMetadata`. Tables come before the tables that point to them.

    The numbers are the field numbers of the schema.
    """
    normalization = _table(builder, 2, {0: _floats(builder, [0.0]), 1: _floats(builder, [1.0])})
    unit = _table(builder, 2, {1: normalization}, bytes_={0: _NORMALIZATION})
    low, high = input_range
    stats = _table(builder, 2, {0: _floats(builder, [high]), 1: _floats(builder, [low])})
    fields = {0: builder.CreateString("image"), 4: _vector(builder, [unit]), 5: stats}
    if len(input_shape) == 3 and input_shape[-1] in _COLORS:
        image = _table(builder, 2, {}, bytes_={0: _COLORS[input_shape[-1]]})
        fields[3] = _table(builder, 2, {1: image}, bytes_={0: _IMAGE})
    image = _table(builder, 7, fields)
    fields = {0: builder.CreateString("scores")}
    if class_names is not None:
        labels = _table(builder, 5, {0: builder.CreateString(LABELS)}, bytes_={2: _AXIS_LABELS})
        fields[6] = _vector(builder, [labels])
    scores = _table(builder, 7, fields)
    graph = _table(builder, 10, {2: _vector(builder, [image]), 3: _vector(builder, [scores])})
    root = {0: builder.CreateString(name), 3: _vector(builder, [graph]), 7: builder.CreateString(_PARSER)}
    builder.Finish(_table(builder, 8, root), file_identifier=_IDENTIFIER)
    return builder.Output()


def _table(builder, size, offsets, bytes_=None):
    """Writes a table of `size` fields: `{field number: offset}` and `{field number: small int}`."""
    builder.StartObject(size)
    for number, offset in offsets.items():
        builder.PrependUOffsetTRelativeSlot(number, offset, 0)
    for number, value in (bytes_ or {}).items():
        builder.PrependUint8Slot(number, value, 0)
    return builder.EndObject()


def _vector(builder, offsets):
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _floats(builder, values):
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependFloat32(value)
    return builder.EndVector()
