"""Writes files of a data root whole or not at all."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from cleanup.edges.root_path import RootPath

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


def read_version(path: RootPath) -> FileVersion:
    """What a file holds."""
    with path.open("rb") as stream:
        return FileVersion(hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell())


def read_pieces(path: RootPath) -> Iterator[bytes]:
    """A file's content, in pieces."""
    with path.open("rb") as stream:
        while piece := stream.read(_BUFFER_BYTES):
            yield piece


def write_pieces(path: RootPath, pieces: Iterable[bytes | memoryview]) -> FileVersion:
    """Writes and fsyncs a file, not atomically; gives what it holds then."""
    path.parent.mkdir()
    digest = hashlib.sha256()
    with path.naming(), path.open("wb", buffering=_BUFFER_BYTES) as stream:
        for piece in pieces:
            digest.update(piece)
            stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())
        return FileVersion(digest.hexdigest(), stream.tell())


def write_synced(path: RootPath, content: bytes) -> None:
    """Writes one file atomically: staged beside it, fsynced, renamed."""
    draft = _draft_of(path)
    try:
        write_pieces(draft, [content])
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    path.parent.sync()


def replace_file(path: RootPath, content: bytes) -> None:
    """Replaces a file that only has to be whole, not to outlast a power cut."""
    draft = _draft_of(path)
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def render_json(value: Any, option: int = orjson.OPT_INDENT_2) -> bytes:
    """A record as JSON. Of a name that is no UTF-8, which JSON cannot hold, the odd bytes are written out."""
    try:
        return orjson.dumps(value, option=option)
    except orjson.JSONEncodeError:
        return orjson.dumps(_write_out(value), option=option)


def _write_out(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_write_out(key): _write_out(entry) for key, entry in value.items()}
    return [_write_out(entry) for entry in value] if isinstance(value, list | tuple) else value


def _draft_of(path: RootPath) -> RootPath:
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
