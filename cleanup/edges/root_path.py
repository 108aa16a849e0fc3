"""A place below a data root, and the one way to open, list, make, rename and remove anything there.

What lies in a data root may come from somebody else, so nothing in it is trusted: a link, a FIFO or a device where a
file or a folder belongs is an error, and no operation leaves the root. Every operation walks from a handle of the root
folder, component by component, without following links, and acts relative to the last folder's handle. So it does not
matter either what another process puts into its way meanwhile. The root itself may be a link.

A ``RootPath`` is deliberately no ``os.PathLike``: what opens files by their names cannot be given one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fnmatch
import io
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, overload

from cleanup.errors import ArtifactError
from cleanup.input_limits import MAX_DOCUMENT_BYTES

_WALK = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without waiting: who opens a FIFO would wait for its other end.
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | getattr(os, "O_NOCTTY", 0)
# What a file server has lent to a client (a lease, a delegation) the kernel asks back when it is opened, and takes back
# after 45 seconds (fs.lease-break-time); who does not wait is told to try again.
_LEASE_BREAK_S, _GLANCE_S = 60.0, 0.02
_FLAGS = {
    "rb": os.O_RDONLY,
    "xb": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "ab": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
}
# A name is made with O_EXCL; Python's own "x" would want to do that itself.
_PYTHON_MODES: dict[str, Literal["rb", "wb", "ab"]] = {"rb": "rb", "xb": "wb", "ab": "ab"}
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_KINDS = {
    stat.S_IFLNK: "a link", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


class UnsafePathError(ArtifactError):
    """Something below a data root is no regular file and no real folder."""


@dataclass(frozen=True, order=True)
class RootPath:
    """A place below a data root, or the root itself.

    Attributes:
        root: The data root, absolute; may be a link.
        parts: The names that lead to the place.
    """

    root: Path
    parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.root.is_absolute():  # a place is made for every file of a folder that is listed
            object.__setattr__(self, "root", self.root.absolute())

    @classmethod
    def of_file(cls, path: Path) -> RootPath:
        """A file outside a data root that the user named: its folder is taken as it is, links and all.

        Raises:
            UnsafePathError: It is a link or a device, like /dev/null, in whose place a file would come.
        """
        absolute = path.absolute()
        place = cls(absolute.parent, (absolute.name,))
        place.exists()
        return place

    def __truediv__(self, name: str) -> RootPath:
        parts = PurePosixPath(name).parts
        if any(part in ("..", "/") or "\0" in part for part in parts):
            raise UnsafePathError(f"{self}: {name!r} does not lie below it")
        return RootPath(self.root, self.parts + parts)

    def __str__(self) -> str:
        return str(self.system_path)

    @property
    def system_path(self) -> Path:
        """The place by its name, for messages and for programs that know nothing else; nothing here opens it."""
        return self.root.joinpath(*self.parts)

    @property
    def name(self) -> str:
        return self.parts[-1] if self.parts else self.root.name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> RootPath:
        """The folder it lies in; the root's is the root."""
        return RootPath(self.root, self.parts[:-1])

    def with_name(self, name: str) -> RootPath:
        """The place of another name in the same folder."""
        return self.parent / name

    def is_relative_to(self, other: RootPath) -> bool:
        """Whether it is, or lies below, another place."""
        return self.root == other.root and self.parts[: len(other.parts)] == other.parts

    def relative_to(self, other: RootPath) -> PurePosixPath:
        """The way from a place above it.

        Raises:
            ValueError: It does not lie below the other one.
        """
        if not self.is_relative_to(other):
            raise ValueError(f"{self} does not lie below {other}")
        return PurePosixPath(*self.parts[len(other.parts) :])

    # Looking

    def stat(self) -> os.stat_result:
        """What the system knows of the file or folder.

        Raises:
            FileNotFoundError: There is none.
            UnsafePathError: It is a link or a special file, or lies behind one.
        """
        with self.naming():
            if not self.parts:
                return self.root.stat()
            with self._parent_handle() as handle:
                status = os.stat(self.name, dir_fd=handle, follow_symlinks=False)
        self._check_kind(status)
        return status

    def exists(self) -> bool:
        """Whether there is a file or a folder.

        Raises:
            UnsafePathError: There is a link or a special file, here or on the way.
        """
        return self._status_or_none() is not None

    def is_taken(self) -> bool:
        """Whether anything has the name, of whatever kind."""
        try:
            with self.naming(), self._parent_handle() as folder:
                os.stat(self.name, dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def is_file(self) -> bool:
        """Whether there is a file; raises as ``exists`` does."""
        status = self._status_or_none()
        return status is not None and stat.S_ISREG(status.st_mode)

    def is_dir(self) -> bool:
        """Whether there is a folder; raises as ``exists`` does."""
        status = self._status_or_none()
        return status is not None and stat.S_ISDIR(status.st_mode)

    def _status_or_none(self) -> os.stat_result | None:
        try:
            return self.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def is_real_file(self) -> bool:
        """Whether there is a file; where there is a link or a special file, there is none."""
        return self._is_of(stat.S_ISREG)

    def is_real_folder(self) -> bool:
        """Whether there is a folder; where there is a link or a special file, there is none."""
        return self._is_of(stat.S_ISDIR)

    def _is_of(self, kind: Callable[[int], bool]) -> bool:
        try:
            return kind(self.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError, UnsafePathError):
            return False

    def iterdir(self) -> list[RootPath]:
        """What lies in the folder, sorted, whatever kind it is of.

        Raises:
            FileNotFoundError: There is no such folder.
        """
        with self.handle() as handle:
            names = os.listdir(handle)  # noqa: PTH208 -- of a handle
        return [RootPath(self.root, (*self.parts, name)) for name in sorted(names)]

    def glob(self, pattern: str) -> list[RootPath]:
        """What lies below the folder under names of a pattern: names and ``fnmatch`` patterns between slashes, sorted.

        Links and special files may be among what is found, but nothing behind a link.
        """
        found = [self]
        for part in pattern.split("/"):
            found = [
                path
                for folder in found
                if folder.is_real_folder()
                for path in folder.iterdir()
                if fnmatch.fnmatchcase(path.name, part)
            ]
        return found

    def walk_files(self) -> Iterator[RootPath]:
        """All regular files below the folder; there may be no such folder."""
        if self.is_real_folder():
            for path in self.iterdir():
                if path.is_real_folder():
                    yield from path.walk_files()
                elif path.is_real_file():
                    yield path

    # Reading and writing

    @overload
    def open(self, mode: Literal["rb"], buffering: int = ...) -> io.BufferedReader: ...
    @overload
    def open(self, mode: Literal["wb", "xb", "ab"], buffering: int = ...) -> io.BufferedWriter: ...
    def open(self, mode: Literal["rb", "wb", "xb", "ab"], buffering: int = -1) -> io.BufferedReader | io.BufferedWriter:
        """Opens a regular file.

        Args:
            mode: Reads; writes a new file in place of what has the name (``wb``, which never writes into a file that
                may have other names); writes one that must not be there (``xb``); or appends.
            buffering: Bytes to buffer, as for ``io.open``.

        A file that is made gets the rights of the folder it is made in.

        Raises:
            FileNotFoundError, FileExistsError, OSError: As for ``io.open``.
            UnsafePathError: It is a link, a special file or, to append to, has other names.
        """
        if mode == "wb":
            with contextlib.suppress(FileExistsError):
                return self.open("xb", buffering)
            self.unlink()
            return self.open("xb", buffering)
        with self.naming(), self._parent_handle() as folder:
            handle = self._open_in(folder, _FLAGS[mode])
            try:
                status = os.fstat(handle)
                self._check_is_file(status)
                if mode == "ab" and status.st_nlink > 1:
                    raise UnsafePathError(f"{self}: has other names (hard links), so nothing is written into it")
                if mode != "rb":
                    _take_rights(handle, status, os.fstat(folder), 0o666)
                return os.fdopen(handle, _PYTHON_MODES[mode], buffering=buffering)  # type: ignore[return-value]
            except BaseException:
                os.close(handle)
                raise

    def open_lock(self) -> io.BufferedReader:
        """Opens a file to be locked, and makes it if need be; what it holds is never touched."""
        with self.naming(), self._parent_handle() as folder:
            handle = self._open_in(folder, os.O_RDWR | os.O_CREAT)
            try:
                status = os.fstat(handle)
                self._check_is_file(status)
                if status.st_size == 0:
                    _take_rights(handle, status, os.fstat(folder), 0o666)
                return os.fdopen(handle, "rb")
            except BaseException:
                os.close(handle)
                raise

    def _open_in(self, folder: int, flags: int) -> int:
        deadline = time.monotonic() + _LEASE_BREAK_S
        while True:
            try:
                return os.open(self.name, flags | _FILE, 0o666, dir_fd=folder)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_GLANCE_S)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO, errno.EMLINK, errno.EISDIR):
                    self._check_is_file(os.stat(self.name, dir_fd=folder, follow_symlinks=False))
                raise

    @contextlib.contextmanager
    def reading_name(self) -> Iterator[str]:
        """A name under which a library that opens files by their names reads this very file, while the block lasts."""
        with self.open("rb") as stream:
            yield f"/dev/fd/{stream.fileno()}"

    def read_bytes(self, limit: int = MAX_DOCUMENT_BYTES) -> bytes:
        """What the file holds.

        Args:
            limit: Bytes it may hold.

        Raises:
            ArtifactError: It holds more.
        """
        with self.open("rb") as stream:
            content = stream.read(limit + 1)
        if len(content) > limit:
            raise ArtifactError(f"{self}: more than {limit:,} bytes, which no such file needs")
        return content

    def write_bytes(self, content: bytes) -> None:
        """Writes a new file in place of what has the name, not atomically."""
        with self.naming(), self.open("wb") as stream:
            stream.write(content)

    def touch(self) -> None:
        """Sets the file's time of change to now."""
        with self.open("rb") as stream:
            os.utime(stream.fileno())

    def take_rights_of(self, other: RootPath) -> None:
        """Lets this file be read and written by whom another one can be."""
        with other.open("rb") as model, self.open("rb") as stream:
            _take_rights(stream.fileno(), os.fstat(stream.fileno()), os.fstat(model.fileno()), 0o7777)
            _take_acl(stream.fileno(), model.fileno())

    # Folders and names

    def mkdir(self, like: RootPath | None = None) -> None:
        """Makes the folder and those above it, if they are not there, in a way that outlasts a power cut.

        Args:
            like: A folder whose rights, and whose parents', those that are made get, level by level, as far as it is
                there; else those of the folder each is made in.
        """
        if self.is_dir():
            return
        if not self.parts:
            self.root.mkdir(parents=True, exist_ok=True)
        else:
            is_peer = like is not None and len(like.parts) == len(self.parts)
            self.parent.mkdir(like.parent if is_peer and like is not None else like)
            model = like if is_peer and like is not None and like.is_dir() else self.parent
            with self.naming(), self._parent_handle() as folder:
                try:
                    os.mkdir(self.name, dir_fd=folder)
                except FileExistsError:
                    self._check_kind(os.stat(self.name, dir_fd=folder, follow_symlinks=False))
                    return
                with _opened(self.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, folder) as made:
                    _take_rights(made, os.fstat(made), model.stat(), 0o2777)
            self.parent.sync()

    def sync(self) -> None:
        """Makes renames in the folder outlast a power cut."""
        with self.handle() as handle:
            os.fsync(handle)

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes a file, or a link itself."""
        try:
            with self.naming(), self._parent_handle() as folder:
                os.unlink(self.name, dir_fd=folder)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmdir(self) -> None:
        """Removes an empty folder."""
        with self.naming(), self._parent_handle() as folder:
            os.rmdir(self.name, dir_fd=folder)

    def rmtree(self) -> None:
        """Removes a folder with all that lies in it; links in it are removed and not followed."""
        if self.is_dir():
            with self.naming(), self._parent_handle() as folder:
                shutil.rmtree(self.name, dir_fd=folder)

    def replace(self, target: RootPath) -> None:
        """Renames a file or folder to a name below the same root, in place of a file that has it."""
        with target.naming(), self._parent_handle() as source, target._parent_handle() as folder:
            os.replace(self.name, target.name, src_dir_fd=source, dst_dir_fd=folder)

    def rename_new(self, target: RootPath) -> None:
        """Renames a file to a name that nothing has yet.

        Raises:
            FileExistsError: Something has the name.
        """
        try:
            self._rename(target, _RENAME_NOREPLACE)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            # File systems of the network that cannot do it in one step can link.
            with target.naming(), self._parent_handle() as source, target._parent_handle() as folder:
                os.link(self.name, target.name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
                os.unlink(self.name, dir_fd=source)

    def exchange(self, target: RootPath) -> bool:
        """Lets two files swap their names in one step; false, and nothing done, where the file system cannot."""
        try:
            self._rename(target, _RENAME_EXCHANGE)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            return False
        return True

    def check_replaceable(self, probe: RootPath) -> None:
        """Makes sure that something may be renamed to this file's name, without doing it.

        A file is never renamed over a folder, but whether it may be renamed at all is looked at first.

        Args:
            probe: A name in the same folder that is free; an empty folder has it meanwhile.

        Raises:
            OSError: It may not: the file is immutable, a mount, or another user's in a sticky folder.
        """
        with self.naming(), self._parent_handle() as folder:
            with _opened(self.name, os.O_RDONLY | _FILE, folder) as handle:
                if _mount_of(handle) != _mount_of(folder):
                    raise OSError(errno.EBUSY, "it is a mount of its own", str(self))
            os.mkdir(probe.name, dir_fd=folder)
            try:
                os.rename(self.name, probe.name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError as error:
                if error.errno not in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
                    raise
            finally:
                os.rmdir(probe.name, dir_fd=folder)

    def _rename(self, target: RootPath, flag: int) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(target))
        with target.naming(), self._parent_handle() as source, target._parent_handle() as folder:
            names = (os.fsencode(self.name), os.fsencode(target.name))
            if _C.renameat2(source, names[0], folder, names[1], flag) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), str(target))

    # Handles

    @contextlib.contextmanager
    def handle(self) -> Iterator[int]:
        """A handle of the folder, for what acts relative to one."""
        with (
            self.naming(),
            self._handle_of(self.parts) as walked,
            _opened(".", os.O_RDONLY | os.O_DIRECTORY, walked) as handle,
        ):
            yield handle

    @contextlib.contextmanager
    def _parent_handle(self) -> Iterator[int]:
        if not self.parts:
            raise UnsafePathError(f"{self}: is the data root itself")
        with self._handle_of(self.parts[:-1]) as handle:
            yield handle

    @contextlib.contextmanager
    def _handle_of(self, parts: tuple[str, ...]) -> Iterator[int]:
        handle = os.open(self.root, _WALK & ~os.O_NOFOLLOW)
        try:
            for depth, part in enumerate(parts):
                try:
                    deeper = os.open(part, _WALK, dir_fd=handle)
                except NotADirectoryError:
                    status = os.stat(part, dir_fd=handle, follow_symlinks=False)
                    RootPath(self.root, parts[: depth + 1])._check_kind(status)
                    raise
                os.close(handle)
                handle = deeper
            yield handle
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Lets errors of the system name the whole place, not the last component, or of a full disk nothing."""
        try:
            yield
        except OSError as error:
            if not str(error.filename or "").startswith("/"):  # else another place has named itself
                error.filename = str(self)
            del error.filename2
            raise

    def _check_is_file(self, status: os.stat_result) -> None:
        self._check_kind(status)
        if stat.S_ISDIR(status.st_mode):
            raise UnsafePathError(f"{self}: is a folder, where a file belongs; move it away")

    def _check_kind(self, status: os.stat_result) -> None:
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is not None:
            raise UnsafePathError(
                f"{self}: is {kind}; below a data root only regular files and real folders are used (the root itself "
                "may be a link): put the file or folder itself there"
            )


@contextlib.contextmanager
def _opened(name: str, flags: int, folder: int) -> Iterator[int]:
    handle = os.open(name, flags | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield handle
    finally:
        os.close(handle)


def _mount_of(handle: int) -> str | None:
    """Which mount an open file or folder is in, where the system tells."""
    try:
        lines = Path(f"/proc/self/fdinfo/{handle}").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return None
    return next((line for line in lines if line.startswith("mnt_id:")), None)


def _take_rights(handle: int, now: os.stat_result, model: os.stat_result, mask: int) -> None:
    """Gives a file or folder the mode of a model, as far as the mask goes, and for root its owner, too."""
    if stat.S_IMODE(now.st_mode) != model.st_mode & mask:
        with _refusal_taken():
            os.fchmod(handle, model.st_mode & mask)
    if os.geteuid() == 0 and (now.st_uid, now.st_gid) != (model.st_uid, model.st_gid):
        with _refusal_taken():
            os.fchown(handle, model.st_uid, model.st_gid)


def _take_acl(handle: int, model: int) -> None:
    """Gives a file the access control list of a model.

    With one, the mode's group bits say what anybody named in it may do at most; without it, what the file's group may.
    """
    if sys.platform.startswith("linux"):
        try:
            acl = os.getxattr(model, "system.posix_acl_access")
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                raise
        else:
            with _refusal_taken():
                os.setxattr(handle, "system.posix_acl_access", acl)


@contextlib.contextmanager
def _refusal_taken() -> Iterator[None]:
    """Storage that knows no modes or owners refuses (or does not know the owner, where root is a container's own)."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


_C = ctypes.CDLL(None, use_errno=True)
