"""Files behind a URL (``s3://...``, any fsspec protocol): reading and writing them, and a cache of them per node."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cleanup.errors import CleanupError, StorageError, first_line


def is_url(text: str) -> bool:
    """Whether a path is a URL, so that fsspec has to read it."""
    return "://" in text


@contextlib.contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Turns whatever a storage client raises into a StorageError that names the URL."""
    try:
        yield
    except CleanupError:
        raise
    except FileNotFoundError as error:
        raise StorageError(f"{where}: no such object") from error
    except PermissionError as error:
        raise StorageError(f"{where}: access denied ({first_line(error)}); check the credentials") from error
    except Exception as error:  # each protocol's client has errors of its own
        raise StorageError(f"{where}: {type(error).__name__}: {first_line(error)}") from error


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, and the path inside it.

    Raises:
        StorageError: The protocol is not known, or its client library is not installed.
    """
    import fsspec

    try:
        # Listings are not cached: other machines write there, too.
        filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        protocol = url.split("://", 1)[0]
        raise StorageError(
            f"{url}: {protocol}:// needs a client library ({first_line(error)}); for s3 install episode-cleanup[s3]"
        ) from error
    except ValueError as error:
        raise StorageError(f"{url}: {first_line(error)}") from error
    return filesystem, path


@dataclass(frozen=True)
class NodeCache:
    """Copies of remote videos and models on this machine, the longest unused ones dropped beyond the limit.

    Processes of one machine share it: one downloads, the others wait. What a process holds open outlives its eviction.

    Attributes:
        folder: Where the copies lie; ``~`` is the home of whoever asks.
        max_bytes: How large they may be together; the file just asked for is kept in any case.
    """

    folder: str
    max_bytes: int

    @property
    def _root(self) -> Path:
        return Path(self.folder).expanduser().absolute()

    def fetch(self, url: str) -> Path:
        """A local copy of a remote file, downloaded if it is not there or has changed.

        Raises:
            StorageError: The file is not there or cannot be read.
        """
        filesystem, path = open_filesystem(url)
        with storage_errors(url):
            info = filesystem.info(path)
        if info["type"] != "file":
            raise StorageError(f"{url}: not a file")
        return self._fetch(filesystem, path, url, info)

    def fetch_folder(self, url: str, suffix: str) -> Path:
        """A local folder with copies of the files of a remote folder that end in ``suffix``.

        Raises:
            StorageError: The folder is not there, holds no such file, or cannot be read.
        """
        filesystem, path = open_filesystem(url)
        with storage_errors(url):
            entries = sorted(
                (e for e in filesystem.ls(path, detail=True) if e["type"] == "file" and e["name"].endswith(suffix)),
                key=lambda e: str(e["name"]),
            )
        if not entries:
            raise StorageError(f"{url}: no *{suffix} files there")
        folder = self._root / "folders" / _digest([_version_of(e) for e in entries])
        folder.mkdir(parents=True, exist_ok=True)
        for entry in entries:
            name = str(entry["name"])
            copy = self._fetch(filesystem, name, f"{url.rstrip('/')}/{Path(name).name}", entry)
            link = folder / Path(name).name
            draft = folder / f".{link.name}.{os.getpid()}"
            draft.unlink(missing_ok=True)
            os.link(copy, draft)  # no symbolic link: a model folder must not lead out of itself
            draft.replace(link)
            draft.unlink(missing_ok=True)  # where the link was that very file, replacing it did nothing
        return folder

    def _fetch(self, filesystem: Any, path: str, url: str, info: dict[str, Any]) -> Path:
        target = self._root / "files" / _digest([url, _version_of(info)]) / Path(path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                draft = target.with_name(f".{target.name}.part")
                with storage_errors(url):
                    filesystem.get_file(path, str(draft))
                if draft.stat().st_size != info["size"]:
                    raise StorageError(f"{url}: {draft.stat().st_size} bytes came, {info['size']} were announced")
                draft.replace(target)
            os.utime(target, (time.time(), target.stat().st_mtime))
        self._evict(target)
        return target

    def _evict(self, kept: Path) -> None:
        """Drops the longest unused files beyond the limit."""
        found = []
        for path in self._root.glob("files/*/*"):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                if path.name != "lock" and not path.name.startswith("."):  # nor what is still on its way
                    status = path.stat()
                    found.append((status.st_atime, status.st_size, status.st_ino, path))
        total = sum(size for _, size, _, _ in found)
        for _, size, inode, path in sorted(found):
            if total <= self.max_bytes:
                return
            if path != kept:
                path.unlink(missing_ok=True)
                for link in self._root.glob("folders/*/*"):
                    with contextlib.suppress(FileNotFoundError):
                        if link.stat().st_ino == inode:
                            link.unlink()
                total -= size


def _version_of(info: dict[str, Any]) -> str:
    """What changes when a remote file does."""
    keys = ("name", "size", "ETag", "etag", "mtime", "LastModified", "created", "updated", "generation")
    return repr([str(info[key]) for key in keys if key in info])


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
