"""Records that this program keeps in a data root for itself, read like any input: they may be anybody's.

One that is not whole never holds anything up: it is set aside under another name and named once.
"""

from __future__ import annotations

import logging
from typing import Any, TypeVar

import orjson

from cleanup.edges.root_path import RootPath
from cleanup.errors import ArtifactError, first_line
from cleanup.input_limits import MAX_DOCUMENT_BYTES

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class RecordError(ArtifactError):
    """A record is not what this program writes."""


def take(path: RootPath, kind: type[_T], limit: int = MAX_DOCUMENT_BYTES) -> _T:
    """The JSON value of a record.

    Args:
        path: The record.
        kind: What it is.
        limit: Bytes it may hold.

    Raises:
        RecordError: It holds something else, or more, or is no file.
        OSError: It cannot be read.
    """
    try:
        content = path.read_bytes(limit)
    except ArtifactError as error:
        raise RecordError(str(error)) from error
    return _parse(path, content, kind)


def take_fragment(path: RootPath) -> orjson.Fragment | None:
    """A JSON object that is handed on inside another one as it is, however deep; None where there is no file.

    Raises:
        RecordError: It holds something else.
        ArtifactError: It is too large, or no file.
        OSError: It cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    _parse(path, content, dict)
    return orjson.Fragment(content)


def _parse(path: RootPath, content: bytes, kind: type[_T]) -> _T:
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise RecordError(f"{path}: not JSON ({first_line(error)})") from error
    if not isinstance(found, kind):
        raise RecordError(f"{path}: a JSON {type(found).__name__}, which no such record is")
    return found


def field(record: dict[str, Any], name: str, kind: type[_T]) -> _T:
    """A field of a record.

    Raises:
        ValueError: It is missing or of another type.
    """
    value = record.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"its {name} is {'missing' if value is None else 'a ' + type(value).__name__}")
    return value


def set_aside(path: RootPath, error: Exception, what: str) -> None:
    """Gives a record that is not whole another name, and says so.

    Args:
        path: The record.
        error: What is wrong with it.
        what: What is done without it.
    """
    number = 1
    while (target := path.with_name(f"{path.name}.unreadable-{number}")).is_taken():
        number += 1
    path.replace(target)
    _log.warning("%s; set aside as %s, %s", first_line(error), target.name, what)
