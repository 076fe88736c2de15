"""Files and folders that are whole or not there."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from typing import TypeAlias

Path: TypeAlias = str | os.PathLike[str]
TEMPORARY = ".tmp"  # in the names of files that are being written


@contextlib.contextmanager
def replacing(path: Path, ending: str = "") -> Iterator[str]:
    """Yields the name of a file to write, which takes the place of `path` at the end, or is removed after an error.

    Args:
        path: file path; where it is a link, the file that it leads to.
        ending: ending of the name to write to, such as `".keras"`.
    """
    target = os.path.realpath(path)
    # Not by `tempfile`, whose files nobody else may read.
    temporary = os.path.join(os.path.dirname(target), f"{uuid.uuid4().hex}{TEMPORARY}{ending}")
    try:
        yield temporary
        with open(temporary, "r+b") as file:  # Windows flushes only what may be written
            os.fsync(file.fileno())  # or a power failure after the rename could leave a part
        os.replace(temporary, target)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file so that `path` holds the old content or the new one, never a part.

    Args:
        path: file path; where it is a link, the file that it leads to.
        content: bytes.

    Raises:
        OSError: where there is no room or no permission; nothing is left behind.
    """
    try:
        with replacing(path) as temporary, open(temporary, "xb") as file:
            file.write(content)
    except OSError as error:
        error.filename = str(path)  # the one the user knows
        raise


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


def check_file(path: Path, argument: str = "path") -> None:
    """Refuses a path that no file can be written to, before the work whose result it is to hold.

    Args:
        path: file path.
        argument: what the user calls it.

    Raises:
        ValueError: with the path.
    """
    if not os.path.basename(path):
        raise ValueError(f"Expected a path that ends in the name of a file. Received: {argument}={str(path)!r}")
    _check_writable(path, argument)
    # What /dev/stdout leads to may be a file, but is the shell's.
    if os.path.exists(path) and (not os.path.isfile(path) or os.path.abspath(path).startswith(("/dev/", "/proc/"))):
        kind = "folder" if os.path.isdir(path) else "device or the like"
        raise ValueError(f"Expected a path of a file. Received: {argument}={str(path)!r}, a {kind}")


def check_folder(path: Path) -> None:
    """Refuses a path that no new folder can be put at, before the work whose result it is to hold.

    Raises:
        ValueError: with the path.
    """
    _check_writable(path, "path")
    if os.path.exists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        kind = "a folder that holds files" if os.path.isdir(path) else "a file"
        raise ValueError(f"Expected a path with nothing, or an empty folder. Received: path={str(path)!r}, {kind}")


def _check_writable(path, argument):
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"Expected a path in a folder that can be written. Received: {argument}={str(path)!r}")
