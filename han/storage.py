"""An output folder, on a disk or in a bucket. A file under its final name is complete.

A disk has an atomic rename for files and folders, and locks that end with their process. A bucket has neither, but an object appears only
after its last byte, so writing a small object is atomic too. Code above this module does not depend on other differences.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.fs
from pyarrow.fs import FileSelector, FileType

from han.types import UserError

log = logging.getLogger(__name__)
_LOCK_TRIES = 100  # more removals of the lock's folder than jobs can finish meanwhile: something else is wrong
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)


class Folder:
    """Operations on names in a folder; a name may have slashes. Errors of the disk or the network are OSErrors with an errno."""

    def __init__(self, place: str) -> None:
        self.place = place.rstrip("/")
        self.system, self.path = filesystem(self.place)
        self.on_disk = isinstance(self.system, pyarrow.fs.LocalFileSystem)

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.place}/{name}")

    def sibling(self) -> Folder:
        """A hidden folder next to this one, on the same disk. Its content can enter this folder by one rename."""
        parent, _, name = self.place.rpartition("/")
        return Folder(f"{parent}/.{name}.publishing")

    def exists(self, name: str = "") -> bool:
        return bool(self.system.get_file_info(self._at(name)).type != FileType.NotFound)

    def is_link(self, name: str = "") -> bool:
        """Whether the name is a symbolic link; a bucket has none."""
        return self.on_disk and os.path.islink(self._at(name))

    def is_folder(self) -> bool:
        return bool(self.system.get_file_info(self.path).type == FileType.Directory)

    def names(self, name: str = "", *, recursive: bool = False) -> list[str]:
        """The names in a folder, sorted and relative to it; none if there is no such folder."""
        base = self._at(name)
        selector = FileSelector(base, allow_not_found=True, recursive=recursive)
        try:
            infos = self.system.get_file_info(selector)
        except FileNotFoundError:  # a folder was removed after it was found and before it was listed
            return self.names(name, recursive=recursive) if self.exists(name) else []
        return sorted(info.path.removeprefix(f"{base}/") for info in infos)

    def size(self, name: str) -> int | None:
        """Bytes of a file, None if there is no such file."""
        info = self.system.get_file_info(self._at(name))
        return int(info.size) if info.type == FileType.File else None

    def read(self, name: str) -> bytes | None:
        try:
            with self.system.open_input_file(self._at(name)) as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None

    def open(self, name: str) -> pa.NativeFile:
        return self.system.open_input_file(self._at(name))

    def create(self, name: str) -> pa.NativeFile:
        """A file to write. On a disk it is visible at once, so its name must show that it is unfinished."""
        return self.system.open_output_stream(self._at(name))

    def make(self, name: str = "") -> None:
        self.system.create_dir(self._at(name), recursive=True)

    def write(self, name: str, content: bytes, *, durable: bool) -> None:
        """Replace a file atomically. durable: the file and its name are on the disk, also after a power failure, before this returns."""
        unfinished = f"{name}.{secrets.token_hex(4)}.tmp" if self.on_disk else name
        with self.create(unfinished) as file:
            file.write(content)
        if self.on_disk:
            if durable:
                self.sync(unfinished)
            self.move(unfinished, name)
            if durable:
                self.sync(os.path.dirname(name))

    def sync(self, name: str) -> None:
        """Flush a file, or the names in a folder, to the disk. A bucket needs no flush."""
        if self.on_disk:
            descriptor = os.open(self._at(name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def move(self, name: str, to: str, *, into: Folder | None = None) -> None:
        """Rename a file, or on a disk a folder, here or into another folder of the same disk or bucket."""
        target = (into or self)._at(to)
        if self.on_disk:
            os.rename(self._at(name), target)
        else:
            self.system.move(self._at(name), target)

    def remove(self, name: str = "") -> None:
        """Remove a file, a folder with its content, or a link without its target. It may be missing, or be removed by another process."""
        if self.is_link(name):
            with suppress(FileNotFoundError):
                os.unlink(self._at(name))
            return
        while (kind := self.system.get_file_info(self._at(name)).type) != FileType.NotFound:
            with suppress(FileNotFoundError):
                if kind == FileType.Directory:
                    self.system.delete_dir(self._at(name))
                else:
                    self.system.delete_file(self._at(name))

    def remove_empty(self) -> None:
        """Remove this folder unless it has content."""
        if self.on_disk:
            with suppress(OSError):
                os.rmdir(self.path)
        elif not self.names():
            self.remove()

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the lock `name` while the body runs. If another process holds it, a `UserError` names that process.

        The lock ends with its process, however that dies, so a stale lock cannot exist. A bucket has no locks.
        """
        if not self.on_disk:
            yield
            return
        descriptor = self._lock(name)
        try:
            about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(about).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, name: str) -> int:
        removed = 0  # times that another job removed the lock's folder because it had just finished
        while True:
            try:
                self.make(name.rpartition("/")[0])
                descriptor = os.open(self._at(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            except (FileExistsError, FileNotFoundError):  # mkdir raises the first if the folder is removed before it is checked
                removed += 1
                if removed == _LOCK_TRIES:
                    raise
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 1000, 0).decode("utf-8", "replace") or "which is just starting"
                os.close(descriptor)
                raise UserError(f"{self.place} is being written by another process, {holder}: wait for it, or give a new folder") from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(descriptor)
                    raise
                log.warning("%s is on a disk without locks: do not start a second job on it", self.place)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(self._at(name))):
                    return descriptor
            os.close(descriptor)  # the lock file was removed

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path


def filesystem(path: str) -> tuple[pa.fs.FileSystem, str]:
    """The filesystem of a path or URI, and the path in it."""
    if "://" in path:
        return cast(tuple[pa.fs.FileSystem, str], pa.fs.FileSystem.from_uri(path))
    return pa.fs.LocalFileSystem(), os.path.abspath(path)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file on a disk: `write` fills a hidden temporary file, which is flushed and renamed. A crash leaves the old or new file."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    folder = Folder(str(path.parent))
    try:
        write(temporary)
        folder.sync(temporary.name)
        folder.move(temporary.name, path.name)
        folder.sync("")
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: object) -> None:
    """Replace a small state file by `values` as JSON, atomically and durably (see `replace_file`)."""
    content = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))
