"""Quality measures and embeddings of aligned crops, computed side by side in as many streams as the device can feed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from cleanup.edges.onnx_models import FaceRecogniser


@dataclass(frozen=True)
class MeasuredFaces:
    """What a batch of n crops gave: raw embeddings (n, d), sharpness and contrast (n,), and the seconds it took."""

    embeddings: NDArray[np.float32]
    sharpness: NDArray[np.float64]
    contrast: NDArray[np.float64]
    quality_s: float
    embed_s: float


class EmbeddingStreams:
    """Measures and embeds crops side by side, in batches, with a bounded number under way.

    Args:
        recogniser: Embeds.
        on_batch: Called in the caller's thread with the rows of each finished batch, in order, and what they gave.
        timings: Gets the seconds spent, as ``quality`` and ``embed``, summed over the streams.
    """

    def __init__(
        self,
        recogniser: FaceRecogniser,
        on_batch: Callable[[list[int], MeasuredFaces], None],
        timings: dict[str, float],
    ) -> None:
        self._recogniser, self._on_batch, self._timings = recogniser, on_batch, timings
        self._rows: list[int] = []
        self._crops: list[NDArray[np.uint8]] = []
        self._threads = ThreadPoolExecutor(recogniser.n_streams, thread_name_prefix="embed")
        self._under_way: deque[tuple[list[int], Future[MeasuredFaces]]] = deque()

    def add(self, row: int, crop: NDArray[np.uint8]) -> None:
        """Takes one crop; may wait until an earlier batch is done."""
        self._rows.append(row)
        self._crops.append(crop)
        if len(self._rows) == self._recogniser.batch_size:
            self._submit()
        while len(self._under_way) > 2 * self._recogniser.n_streams:
            self._collect()

    def finish(self) -> None:
        """Waits for everything that was added."""
        if self._rows:
            self._submit()
        while self._under_way:
            self._collect()

    def _submit(self) -> None:
        future = self._threads.submit(_measure, self._recogniser, np.stack(self._crops))
        self._under_way.append((self._rows, future))
        self._rows, self._crops = [], []

    def _collect(self) -> None:
        rows, future = self._under_way.popleft()
        measured = future.result()
        self._timings["quality"] += measured.quality_s
        self._timings["embed"] += measured.embed_s
        self._on_batch(rows, measured)

    def __enter__(self) -> EmbeddingStreams:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)


def _measure(recogniser: FaceRecogniser, crops: NDArray[np.uint8]) -> MeasuredFaces:
    started = time.perf_counter()
    greys = [cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY) for crop in crops]
    # A Laplacian of 8-bit pixels fits into 16 bits; its variance comes out the same as from floats.
    sharpness = [float(cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))[1].item() ** 2) for grey in greys]
    contrast = [float(cv2.meanStdDev(grey)[1].item()) for grey in greys]
    measured = time.perf_counter()
    embeddings = recogniser.embed(crops)
    ended = time.perf_counter()
    return MeasuredFaces(embeddings, np.array(sharpness), np.array(contrast), measured - started, ended - measured)
