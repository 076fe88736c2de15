"""Atomic writing of files and folders: they are complete or do not exist."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from typing import TypeAlias

Path: TypeAlias = str | os.PathLike[str]
TEMPORARY = ".tmp"  # part of the names of unfinished files


@contextlib.contextmanager
def replacing(path: Path, ending: str = "") -> Iterator[str]:
    """Yields the name of a temporary file to write. At the end it replaces `path`; after an error it is removed.

    Args:
        path: file path; if it is a link, the file that it leads to is replaced.
        ending: ending of the temporary name, such as `".keras"`.
    """
    target = os.path.realpath(path)
    # `tempfile` is not used, because its files are not readable for other users.
    temporary = os.path.join(os.path.dirname(target), f"{uuid.uuid4().hex}{TEMPORARY}{ending}")
    try:
        yield temporary
        with open(temporary, "r+b") as file:  # Windows flushes only files that are open for writing
            os.fsync(file.fileno())  # otherwise a power failure after the rename could leave a part of the file
        os.replace(temporary, target)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically: `path` holds the old content or the new one, never a part.

    Args:
        path: file path; if it is a link, the file that it leads to is written.
        content: bytes.

    Raises:
        OSError: for a full disk or a missing permission; no part of the file stays.
    """
    try:
        with replacing(path) as temporary, open(temporary, "xb") as file:
            file.write(content)
    except OSError as error:
        error.filename = str(path)  # instead of the temporary name
        raise


def write_file(path: Path, content: bytes) -> None:
    """Writes a file like `write_bytes`, but raises a `ValueError`.

    Raises:
        ValueError: for a full disk or a missing permission; no part of the file stays.
    """
    try:
        write_bytes(path, content)
    except OSError as error:
        raise ValueError(f"Cannot write {len(content):,} bytes. Received: path={str(path)!r}: {error}") from error


def move_folder(source: Path, path: Path) -> None:
    """Moves a finished folder to `path`, where an empty folder may be.

    Raises:
        ValueError: for a full disk or a missing permission; no part of the folder stays.
    """
    target = os.path.realpath(path)
    temporary = f"{target}.{uuid.uuid4().hex}.tmp"
    try:
        shutil.copytree(source, temporary)
        if os.path.isdir(target):
            os.rmdir(target)  # on Windows not even an empty folder can be replaced
        os.replace(temporary, target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ValueError(f"Cannot write a folder. Received: path={str(path)!r}: {error}") from error


def check_file(path: Path, argument: str = "path") -> None:
    """Checks that a file can be written to a path, before the work that produces the file.

    Args:
        path: file path.
        argument: name of the user's argument, for messages.

    Raises:
        ValueError: if it cannot.
    """
    if not os.path.basename(path):
        raise ValueError(f"Expected a path that ends in the name of a file. Received: {argument}={str(path)!r}")
    _check_writable(path, argument)
    # /dev/stdout may lead to a file, but that file belongs to the shell.
    if os.path.exists(path) and (not os.path.isfile(path) or os.path.abspath(path).startswith(("/dev/", "/proc/"))):
        kind = "folder" if os.path.isdir(path) else "device or the like"
        raise ValueError(f"Expected a path of a file. Received: {argument}={str(path)!r}, a {kind}")


def check_folder(path: Path) -> None:
    """Checks that a folder can be created at a path, before the work that produces the folder.

    Raises:
        ValueError: if it cannot.
    """
    _check_writable(path, "path")
    if os.path.exists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        kind = "a folder that holds files" if os.path.isdir(path) else "a file"
        raise ValueError(f"Expected a path with nothing, or an empty folder. Received: path={str(path)!r}, {kind}")


def _check_writable(path, argument):
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"Expected a path in a folder that can be written. Received: {argument}={str(path)!r}")
