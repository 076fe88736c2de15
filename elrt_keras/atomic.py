"""Files that are whole or not there."""

import os
import uuid
from typing import TypeAlias

Path: TypeAlias = str | os.PathLike[str]


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file so that `path` holds the old content or the new one, never a part.

    Args:
        path: file path.
        content: bytes.

    Raises:
        OSError: where there is no room or no permission; nothing is left behind.
    """
    # Not by `tempfile`, whose files nobody else may read.
    temporary = os.path.join(os.path.dirname(os.path.abspath(path)), f"{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # the one the user knows
        raise
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
