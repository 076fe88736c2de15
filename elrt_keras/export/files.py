"""Putting exported files where they belong: all of it or nothing."""

import os
import shutil
import uuid

from elrt_keras.atomic import Path, write_bytes


def write_file(path: Path, content: bytes) -> None:
    """Writes bytes so that `path` holds the old file or the new one, never a part.

    Raises:
        ValueError: where there is no room or no permission; nothing is left behind.
    """
    try:
        write_bytes(path, content)
    except OSError as error:
        raise ValueError(f"Cannot write {len(content):,} bytes. Received: path={str(path)!r}: {error}") from error


def move_folder(source: Path, path: Path) -> None:
    """Puts a finished folder at `path`, in the place of an empty one.

    Raises:
        ValueError: where there is no room or no permission; nothing is left behind.
    """
    target = os.path.realpath(path)
    temporary = f"{target}.{uuid.uuid4().hex}.tmp"
    try:
        shutil.copytree(source, temporary)
        if os.path.isdir(target):
            os.rmdir(target)  # on Windows nothing can be put in the place of a folder, not even of an empty one
        os.replace(temporary, target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ValueError(f"Cannot write a folder. Received: path={str(path)!r}: {error}") from error
