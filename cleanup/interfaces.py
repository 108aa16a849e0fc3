"""The contracts of the outside world: what the run needs of an engine and of a Facebank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cleanup.progress import ReportItems


@dataclass(frozen=True)
class VideoInfo:
    """What the index of a video tells. Sizes in pixels, ``duration_s`` in seconds."""

    path: str
    width: int
    height: int
    n_frames: int
    fps: float
    duration_s: float


class Engine(Protocol):
    """Runs the pass over the pixels, and the final task. ``close`` frees workers; it may be called twice."""

    name: str

    def describe_models(self) -> dict[str, dict[str, object]]:
        """Names, digests, dimension and providers of the models, loading them if they are not yet."""

    def observe(self, shards: Sequence[pa.Table], report: ReportItems) -> pa.Table:
        """Observations of all shards, sorted by track and frame. Raises what the worker raises, or EngineError."""

    def run_final(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function of the package where the engine runs its tasks and returns its result."""

    def close(self) -> None:
        """Frees the workers."""


@dataclass(frozen=True)
class PersonMatch:
    """How near a centroid comes to one person of the Facebank.

    Attributes:
        index: Row of the centroid that was asked for.
        person_id: The person.
        name: The person's name for people.
        similarity: Cosine to the person's nearest seed.
        second_similarity: Cosine to the second nearest seed, or None where the person has one.
        n_seeds: How many seeds of the person were compared.
    """

    index: int
    person_id: str
    name: str
    similarity: float
    second_similarity: float | None
    n_seeds: int


class Facebank(Protocol):
    """Known people by show. Every call is one transaction; FacebankError if the server does not answer."""

    def match(self, show: str, model: str, centroids: NDArray[np.float32]) -> list[PersonMatch]:
        """Similarity of each vector to every person of the show, nearest first within a vector.

        Raises:
            FacebankError: The show's seeds were made with another model or dimension; the message names both.
        """
