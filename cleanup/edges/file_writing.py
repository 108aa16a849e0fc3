"""Writes files whole or not at all."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class FileVersion:
    """What a file holds, told by its digest.

    Attributes:
        sha256: Hex digest.
        size: Bytes.
    """

    sha256: str
    size: int


def read_version(path: Path) -> FileVersion:
    """What a file holds."""
    with path.open("rb") as stream:
        return FileVersion(hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell())


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> FileVersion:
    """Writes and fsyncs a file, not atomically; gives what it holds then."""
    make_folder(path.parent)
    digest = hashlib.sha256()
    with path.open("wb", buffering=_BUFFER_BYTES) as stream:
        for piece in pieces:
            digest.update(piece)
            stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())
        return FileVersion(digest.hexdigest(), stream.tell())


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder outlast a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, in a way that outlasts a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def write_synced(path: Path, content: bytes) -> None:
    """Writes one file atomically: staged beside it, fsynced, renamed."""
    draft = _draft_of(path)
    try:
        write_pieces(draft, [content])
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Replaces a file that only has to be whole, not to outlast a power cut."""
    draft = _draft_of(path)
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
