"""The contracts of the outside world: what the run needs of an engine and of a Facebank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cleanup.people import ShowState
from cleanup.progress import ReportItems, ignore_items


@dataclass(frozen=True)
class VideoView:
    """How artifacts count in a video.

    Attributes:
        frame_shift: Their frame n is frame n + frame_shift of the video.
        is_turned: Their boxes lie in the picture as the display matrix turns or mirrors it, else as it is stored.
        is_stretched: They lie in it with its pixels made square, else with pixels as they are stored.
    """

    frame_shift: int = 0
    is_turned: bool = False
    is_stretched: bool = False


AS_STORED = VideoView()


@dataclass(frozen=True)
class VideoSource:
    """A video, by path or URL, and how artifacts count in it."""

    location: str
    view: VideoView = AS_STORED


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, seen as artifacts may count in it.

    Attributes:
        source: Where it is, and the view.
        width: Of the picture in this view, in pixels.
        height: The same.
        n_frames: How many frames it has, those before the artifacts' frame 0 among them.
        fps: Mean frames per second; 0 where nothing in the file tells it.
        duration_s: Its length in seconds.
        notes: Sentences for people on how the file was read.
    """

    source: VideoSource
    width: int
    height: int
    n_frames: int
    fps: float
    duration_s: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShardResult:
    """What came of one shard.

    Attributes:
        observations: ``observation_schema`` with provenance (``schemas.read_provenance``), or None if it failed.
        failure: Why the shard failed for good, in one line; None if it did not.
        n_attempts: How often it was begun in this run; 0 where a checkpoint was used.
    """

    observations: pa.Table | None
    failure: str | None = None
    n_attempts: int = 1


OnShard = Callable[[int, ShardResult], None]


def ignore_shard(_number: int, _result: ShardResult) -> None:
    """Takes a shard's result and does nothing with it."""


RunMany = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]


def run_in_turn(function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Calls a function with the arguments of each task, one after the other."""
    return [function(*task) for task in tasks]


class Engine(Protocol):
    """Runs the pass over the pixels, and the final task; serves one episode after the other, or several at once.

    ``close`` frees workers; it may be called twice.
    """

    name: str

    @property
    def n_model_loads(self) -> int:
        """How often workers loaded models."""

    def describe_models(self, report: ReportItems = ignore_items) -> dict[str, dict[str, object]]:
        """Names, digests, dimension and providers of the models, loading them if they are not yet.

        ``report`` is called while workers are waited for; what it raises ends the waiting.
        """

    def observe(
        self,
        ep_id: str,
        video: VideoSource,
        shards: Sequence[pa.Table],
        report: ReportItems,
        on_shard: OnShard = ignore_shard,
    ) -> list[ShardResult]:
        """Observes the shards of one episode.

        Args:
            ep_id: The episode, for names and counters.
            video: Its video; a path or URL that every worker sees.
            shards: SAMPLE_SCHEMA each.
            report: Called often while the pass lasts; what it raises ends the pass.
            on_shard: Given number and result of each shard as soon as it is done, in any order.

        Returns:
            One result per shard, in order. A shard whose worker was lost too often is a result with a failure.

        Raises:
            CleanupError: What concerns more than a shard: a model that does not load, a video that a worker does not
                reach, a worker that is broken.
        """

    def run_final(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function of the package where the engine runs its tasks and returns its result."""

    def run_many(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Calls a function of the package with the arguments of each task, side by side in other processes.

        Returns:
            The results in the order of the tasks.
        """

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

    def read_show(self, show: str, model: str) -> ShowState:
        """What is known about a show's people, without its seeds; clusters of another model are left out."""

    def match(self, show: str, model: str, centroids: NDArray[np.float32]) -> list[PersonMatch]:
        """Similarity of each vector to the people of the show that come nearest, nearest first within a vector.

        Raises:
            FacebankError: The show's seeds were made with another model or dimension; the message names both.
        """
