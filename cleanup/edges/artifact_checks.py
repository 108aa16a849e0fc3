"""Checks of single values in artifacts; each says in words what is wrong, the reader adds file and line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from cleanup.input_limits import MAX_DEPTH, MAX_INTEGER

NORM_TOLERANCE = 0.01
# Normalised corners are rounded to six digits on disk.
UNIT_TOLERANCE = 1e-5


class BadValueError(ValueError):
    """A value in an artifact breaks the contract."""


def require(record: Mapping[str, Any], key: str, kind: type | tuple[type, ...], what: str) -> Any:
    """The value of a key that must be there and of a type; booleans do not pass for numbers."""
    if key not in record:
        raise BadValueError(f"{what} has no {key}")
    return check_type(record[key], key, kind, what)


def optional(record: Mapping[str, Any], key: str, kind: type | tuple[type, ...], what: str) -> Any:
    """The value of a key that may be missing or null."""
    value = record.get(key)
    return None if value is None else check_type(value, key, kind, what)


def check_type(value: Any, key: str, kind: type | tuple[type, ...], what: str) -> Any:
    """The value, if it is of a type."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise BadValueError(f"{what} has {key} of type {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadValueError(f"{what} has {key} = {value}")
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise BadValueError(f"{what} has {key} = {value}, which is too large")
    return value


def require_frame(record: Mapping[str, Any], key: str, what: str) -> int:
    """A frame number that must be there."""
    frame = require(record, key, int, what)
    if frame < 0:
        raise BadValueError(f"{what} has {key} = {frame}; frames count from 0")
    return int(frame)


def check_box(box: Any, what: str, *, is_normalised: bool) -> list[float]:
    """Four finite corners with x1 < x2 and y1 < y2, inside 0..1 where normalised."""
    corners = _numbers(box, 4, "a box", what)
    if not (corners[0] < corners[2] and corners[1] < corners[3]):
        raise BadValueError(f"{what} has an empty box {corners} (x1 < x2 and y1 < y2 must hold)")
    if is_normalised and not (min(corners) >= -UNIT_TOLERANCE and max(corners) <= 1 + UNIT_TOLERANCE):
        raise BadValueError(f"{what} has a box outside 0..1: {corners}")
    return corners


def check_landmarks(landmarks: Any, what: str) -> list[float] | None:
    """Ten finite numbers, or None where there are none; five pairs are taken as well."""
    if landmarks is None or landmarks == []:
        return None
    if isinstance(landmarks, list) and len(landmarks) == 5 and all(isinstance(p, list) for p in landmarks):
        landmarks = [value for point in landmarks for value in point]
    return _numbers(landmarks, 10, "landmarks", what)


def check_embedding(embedding: Any, what: str) -> list[float] | None:
    """A finite vector of unit norm, or None where there is none."""
    if embedding is None:
        return None
    if not isinstance(embedding, list) or not embedding:
        raise BadValueError(f"{what} has an embedding that is no list of numbers")
    try:
        vector = np.array(embedding, dtype=np.float64)
    except (TypeError, ValueError):
        raise BadValueError(f"{what} has an embedding that is no list of numbers") from None
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise BadValueError(f"{what} has an embedding that is not finite")
    norm = float(np.linalg.norm(vector))
    if abs(norm - 1) > NORM_TOLERANCE:
        raise BadValueError(f"{what} has an embedding of norm {norm:.4f} instead of 1")
    return embedding


def check_fraction(value: float | None, key: str, what: str) -> float | None:
    """A number 0..1, or None."""
    if value is not None and not 0 <= value <= 1:
        raise BadValueError(f"{what} has {key} = {value}, outside 0..1")
    return value


def _numbers(values: Any, count: int, name: str, what: str) -> list[float]:
    if not isinstance(values, list) or len(values) != count:
        raise BadValueError(f"{what} has {name} that is no list of {count} numbers")
    if not set(map(type, values)) <= {int, float} or not math.isfinite(sum(values)):
        raise BadValueError(f"{what} has {name} that holds something else than finite numbers: {values}")
    return list(map(float, values))


def is_too_deep(content: bytes, record: Any) -> bool:
    """Whether JSON is nested deeper than MAX_DEPTH, give or take a few levels.

    Args:
        content: The JSON.
        record: What it was parsed to.
    """
    if content.count(b"[") + content.count(b"{") <= MAX_DEPTH:
        return False
    try:
        orjson.dumps([[[[record]]]])  # records are written inside a document
    except TypeError:
        return True
    return False
