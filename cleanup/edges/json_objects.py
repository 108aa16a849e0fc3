"""Reads JSON objects that somebody else may have written."""

from __future__ import annotations

from typing import Any

import orjson

from cleanup.edges.root_path import RootPath
from cleanup.errors import ArtifactError
from cleanup.input_limits import MAX_DOCUMENT_BYTES


def read_object(path: RootPath, limit: int = MAX_DOCUMENT_BYTES) -> dict[str, Any] | None:
    """A JSON object, or None where the file is not there.

    Raises:
        ArtifactError: It is something else, or larger.
        OSError: It cannot be read.
    """
    read = _read(path, limit)
    return None if read is None else read[1]


def read_fragment(path: RootPath) -> orjson.Fragment | None:
    """A JSON object to be handed on inside another document as it is, however deep; raises as ``read_object`` does."""
    read = _read(path, MAX_DOCUMENT_BYTES)
    return None if read is None else orjson.Fragment(read[0])


def _read(path: RootPath, limit: int) -> tuple[bytes, dict[str, Any]] | None:
    try:
        content = path.read_bytes(limit)
        found = orjson.loads(content)
    except FileNotFoundError:
        return None
    except orjson.JSONDecodeError as error:
        raise ArtifactError(f"{path}: cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise ArtifactError(f"{path}: holds no JSON object")
    return content, found
