"""Putting exported files where they belong: all of it or nothing."""

import os
import shutil

from elrt_keras.atomic import Path, write_bytes


def check_file(path: Path) -> None:
    """Refuses a path that no file can be written to, before the work whose result it is to hold.

    Raises:
        ValueError: with the path.
    """
    _check_writable(path)
    if os.path.exists(path) and not os.path.isfile(path):
        kind = "folder" if os.path.isdir(path) else "device or the like"
        raise ValueError(f"Expected a path of a file. Received: path={str(path)!r}, a {kind}")


def check_folder(path: Path) -> None:
    """Refuses a path that no new folder can be put at, before the work whose result it is to hold.

    Raises:
        ValueError: with the path.
    """
    _check_writable(path)
    if os.path.exists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        kind = "a folder that holds files" if os.path.isdir(path) else "a file"
        raise ValueError(f"Expected a path with nothing, or an empty folder. Received: path={str(path)!r}, {kind}")


def _check_writable(path):
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"Expected a path in a folder that can be written. Received: path={str(path)!r}")


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
    temporary = f"{os.path.abspath(path)}.tmp"
    try:
        shutil.copytree(source, temporary)
        os.replace(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ValueError(f"Cannot write a folder. Received: path={str(path)!r}: {error}") from error
