"""The one worker of both engines: turns a shard of samples into observations, in one pass over its frames."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.algorithms.box_association import compute_iou_matrix
from cleanup.algorithms.face_alignment import estimate_pose, estimate_similarity
from cleanup.edges.embedding_streams import EmbeddingStreams, MeasuredFaces
from cleanup.edges.frame_counts import FrameCounts
from cleanup.edges.frame_pixels import DecodedFrame
from cleanup.edges.model_files import MODEL_SUFFIX
from cleanup.edges.onnx_models import DetectedFace, FaceModels, ModelSpec, load_models
from cleanup.edges.remote_files import NodeCache, is_url
from cleanup.edges.video_frames import VideoFrames
from cleanup.errors import ModelError
from cleanup.interfaces import VideoSource

# Share of a box's size that is added around it before the detector looks for landmarks there.
_REGION_MARGIN = 0.75
# Decoded frames that may wait; at 1080 lines each takes 6 MB.
_FRAMES_AHEAD = 8
_T = TypeVar("_T")


@dataclass(frozen=True)
class WorkerSpec:
    """Plain values a worker is built from; they cross process boundaries.

    Attributes:
        models: Where the models are and where they run.
        cache: Where copies of videos and models behind URLs go.
        n_threads: Threads for decoding; 0 means all cores.
        min_confidence: Confidence from which a detection counts.
        min_iou: Overlap with its box from which a detection is the face of a box.
        refine_below: Similarity of neighbouring samples below which the boxes between them are embedded too.
    """

    models: ModelSpec
    cache: NodeCache
    n_threads: int
    min_confidence: float
    min_iou: float
    refine_below: float


class ObservationWorker:
    """Holds the loaded models and observes shard after shard; knows nothing of the engine it runs in.

    Args:
        spec: What to load. The models are loaded here, once.
        load: Loader of the models, for tests that count.
    """

    def __init__(self, spec: WorkerSpec, load: Callable[[ModelSpec], FaceModels] = load_models) -> None:
        self._spec = spec
        cv2.setNumThreads(1)  # crops are too small to share; the streams are what runs side by side
        directory = spec.models.directory
        if is_url(directory):
            directory = str(spec.cache.fetch_folder(directory, MODEL_SUFFIX))
        self._models = load(replace(spec.models, directory=directory))
        self._id = uuid.uuid4().hex
        self._video: VideoFrames | None = None
        self._source: VideoSource | None = None

    def describe_models(self) -> dict[str, dict[str, object]]:
        """What the report says about the models."""
        return self._models.describe()

    @property
    def dimension(self) -> int:
        """Dimension of the recogniser's embeddings."""
        return self._models.recogniser.dimension

    def observe(self, video: VideoSource, samples: pa.Table, on_faces: Callable[[int], None] | None = None) -> pa.Table:
        """Observes one shard.

        Args:
            video: The video; it stays open for the next shard of it.
            samples: SAMPLE_SCHEMA, whole lineages, boxes in pixels.
            on_faces: Called with the number of sampled faces dealt with so far.

        Returns:
            ``observation_schema`` rows with provenance: all sampled boxes, and those between two neighbours that
            disagree (``is_sampled`` false). A face that could not be looked at has a reject_reason and no embedding. A
            track with a sample in a frame that cannot be decoded has no rows; the provenance names the frame.

        Raises:
            VideoError: The video is not there, or not the one the samples are of.
            StorageError: The video lies behind a URL and does not come.
            ModelError: Landmarks are missing and the folder has no detector.
        """
        frames = self._open(video)
        n_before = frames.n_decoded
        try:
            shard = _ShardPass(self._spec, self._models, samples, on_faces)
            table = shard.run(frames)
        except BaseException:
            self.close()
            raise
        timings = {name: round(seconds, 4) for name, seconds in sorted(shard.timings.items())}
        provenance = schemas.Provenance(
            self._id, self.describe_models(), frames.n_decoded - n_before, timings, sorted(shard.unreadable.items())
        )
        return schemas.write_provenance(table, provenance)

    def _open(self, video: VideoSource) -> VideoFrames:
        """The video, indexed once for all its shards."""
        if self._video is None or self._source != video:
            self.close()
            cache = self._spec.cache
            path = cache.fetch(video.location) if is_url(video.location) else Path(video.location)
            self._video = VideoFrames(path, self._spec.n_threads, FrameCounts(cache.folder), video.view)
            self._source = video
        return self._video

    def close(self) -> None:
        """Releases the video."""
        if self._video is not None:
            self._video.close()
        self._video = None


def read_ahead(items: Iterator[_T], depth: int) -> Generator[_T, None, None]:
    """Takes items in another thread, up to ``depth`` before they are asked for; errors arrive in their place.

    Decoding and embedding both leave the interpreter's lock, so the one goes on while the other works.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as thread:
        pending = deque(thread.submit(next, items, end) for _ in range(depth))
        while (item := pending.popleft().result()) is not end:
            yield item  # type: ignore[misc]  # what is not the end is an item
            pending.append(thread.submit(next, items, end))


class _ShardPass:
    """One pass over a shard: its sampled faces, then those between two neighbours that disagree.

    Arrays hold one entry per row of the samples.
    """

    def __init__(
        self, spec: WorkerSpec, models: FaceModels, samples: pa.Table, on_faces: Callable[[int], None] | None
    ) -> None:
        self._spec, self._models, self._on_faces = spec, models, on_faces
        self._samples = samples
        n_rows = len(samples)
        self._frames, self._lineages = schemas.ints_of(samples, "frame_idx"), schemas.ints_of(samples, "lineage_id")
        self._boxes = schemas.matrix_of(samples["bbox"], 4)
        self._landmarks = schemas.matrix_of(samples["landmarks"], 10)
        self._is_sampled = samples["is_sampled"].to_numpy()
        self._matrices = estimate_similarity(self._landmarks.reshape(-1, 5, 2))
        self._times = np.full(n_rows, np.nan)
        self._raw = np.full((n_rows, models.recogniser.dimension), np.nan, np.float32)
        self._sharpness, self._contrast = np.full(n_rows, np.nan), np.full(n_rows, np.nan)
        self._reasons: list[str | None] = [None] * n_rows
        self._is_done = np.zeros(n_rows, bool)
        self._is_lost = np.zeros(n_rows, bool)
        self.unreadable: dict[int, str] = {}
        self._held: dict[int, NDArray[np.uint8]] = {}
        self.timings: dict[str, float] = defaultdict(float)

    def run(self, video: VideoFrames) -> pa.Table:
        """Makes the shard's observations; ``unreadable`` then holds the frames that could not be had, and why."""
        n_rows = len(self._samples)
        wanted = np.flatnonzero(np.isin(self._frames, self._frames[self._is_sampled]))
        self._look(video, wanted, self._is_sampled)
        doubtful = self._find_doubtful()
        held = [row for row in doubtful if row in self._held]
        with self._streams() as streams:
            for row in held:
                streams.add(row, self._held[row])
            streams.finish()
        self._look(video, np.setdiff1d(doubtful, held), np.ones(n_rows, bool))
        return self._build_table()

    def _streams(self) -> EmbeddingStreams:
        return EmbeddingStreams(self._models.recogniser, self._keep, self.timings)

    def _look(self, video: VideoFrames, rows: NDArray[np.intp], is_embedded: NDArray[np.bool_]) -> None:
        """Reads the frames of rows and cuts their faces out; those that are not to be embedded are held for later."""
        by_frame: dict[int, list[int]] = defaultdict(list)
        for row in rows.tolist():
            by_frame[int(self._frames[row])].append(row)
        source = self._timed(video.read(by_frame))
        with contextlib.closing(read_ahead(source, _FRAMES_AHEAD)) as frames, self._streams() as streams:
            for frame_idx, frame in frames:
                if frame is None:
                    self._miss(frame_idx, by_frame[frame_idx], video.faults[frame_idx])
                    continue
                for row in by_frame[frame_idx]:
                    self._times[row] = video.timestamp_s(frame_idx)
                    crop = self._cut_out(row, frame, may_detect=bool(is_embedded[row]))
                    if crop is None:
                        continue
                    if is_embedded[row]:
                        streams.add(row, crop)
                    else:
                        self._held[row] = crop
            streams.finish()

    def _miss(self, frame_idx: int, rows: list[int], reason: str) -> None:
        """Notes a frame that cannot be had; without samples in it nothing is missed."""
        lost = [row for row in rows if self._is_sampled[row]]
        if lost:
            self.unreadable[frame_idx] = reason
            self._is_lost |= np.isin(self._lineages, self._lineages[lost])

    def _timed(self, frames: Iterator[_T]) -> Iterator[_T]:
        while True:
            started = time.perf_counter()
            frame = next(frames, None)
            self.timings["decode"] += time.perf_counter() - started
            if frame is None:
                return
            yield frame

    def _cut_out(self, row: int, frame: DecodedFrame, *, may_detect: bool) -> NDArray[np.uint8] | None:
        """The aligned crop of a row's face; None where there is none to be had."""
        if may_detect and np.isnan(self._landmarks[row]).any():
            started = time.perf_counter()
            found = self._find_face(frame.rgb, self._boxes[row])
            self.timings["detect"] += time.perf_counter() - started
            if found is not None:
                self._landmarks[row] = found.landmarks.astype(np.float64).round(2).ravel()
                self._matrices[row] = estimate_similarity(self._landmarks[row].reshape(1, 5, 2))[0]
        if np.isfinite(self._matrices[row]).all():
            started = time.perf_counter()
            crop = frame.align_face(self._matrices[row])
            self.timings["crop"] += time.perf_counter() - started
            return crop
        if self._is_sampled[row]:
            self._reasons[row] = "no_face"
            self._mark_done([row])
        return None

    def _find_face(self, image: NDArray[np.uint8], box: NDArray[np.float64]) -> DetectedFace | None:
        """The face of a box, found by the detector in the region around it."""
        detector = self._models.detector
        if detector is None:
            raise ModelError(
                f"{self._spec.models.directory}: the artifacts have no landmarks and this folder has no detector to "
                "find them; add one (SCRFD with keypoints)"
            )
        height, width = image.shape[:2]
        margin = _REGION_MARGIN * max(box[2] - box[0], box[3] - box[1])
        x1, y1 = int(max(box[0] - margin, 0)), int(max(box[1] - margin, 0))
        x2, y2 = int(min(box[2] + margin, width)), int(min(box[3] + margin, height))
        if x2 - x1 < 2 or y2 - y1 < 2:
            return None
        # A border on all sides: a face that fills the region or is cut by the picture's edge is missed without one.
        pad = int(margin / 2)
        region = cv2.copyMakeBorder(image[y1:y2, x1:x2], pad, pad, pad, pad, cv2.BORDER_CONSTANT)
        offset = np.array([x1 - pad, y1 - pad])
        faces = [
            DetectedFace(f.bbox + np.tile(offset, 2), f.landmarks + offset, f.confidence)
            for f in detector.detect(region, self._spec.min_confidence)
        ]
        overlaps = [float(compute_iou_matrix(box[None], f.bbox[None])[0, 0]) for f in faces]
        best = int(np.argmax(overlaps)) if overlaps else -1
        return faces[best] if best >= 0 and overlaps[best] >= self._spec.min_iou else None

    def _keep(self, rows: list[int], measured: MeasuredFaces) -> None:
        self._raw[rows] = measured.embeddings
        self._sharpness[rows], self._contrast[rows] = measured.sharpness, measured.contrast
        self._mark_done(rows)

    def _mark_done(self, rows: list[int]) -> None:
        self._is_done[rows] = True
        if self._on_faces is not None:
            self._on_faces(int(np.count_nonzero(self._is_done & self._is_sampled)))

    def _find_doubtful(self) -> NDArray[np.intp]:
        """Rows with landmarks that lie between two embedded neighbours of a lineage which disagree."""
        unit, _, is_embedded = self._unit_rows()
        is_face = self._is_sampled & np.isfinite(self._sharpness)
        is_spare = ~self._is_sampled & np.isfinite(self._matrices).all(axis=(1, 2))
        order = np.lexsort((self._frames, self._lineages))
        faces = order[is_face[order]]
        first, second = faces[:-1], faces[1:]
        is_pair = self._lineages[first] == self._lineages[second]
        first, second = first[is_pair], second[is_pair]
        is_apart = (unit[first] * unit[second]).sum(axis=1) < self._spec.refine_below
        is_apart &= is_embedded[first] & is_embedded[second]
        found = [
            np.flatnonzero(
                is_spare
                & (self._lineages == self._lineages[a])
                & (self._frames > self._frames[a])
                & (self._frames < self._frames[b])
            )
            for a, b in zip(first[is_apart], second[is_apart], strict=True)
        ]
        return np.concatenate([np.zeros(0, np.intp), *found])

    def _unit_rows(self) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]]:
        """Embeddings of norm 1 (zero where there is none), the norms they had, and which rows have one."""
        norms = np.sqrt((self._raw.astype(np.float64) ** 2).sum(axis=1))
        is_embedded = np.isfinite(norms) & (norms > 0)
        unit = np.zeros_like(self._raw)
        unit[is_embedded] = (self._raw[is_embedded] / norms[is_embedded, None]).astype(np.float32)
        return unit, norms, is_embedded

    def _build_table(self) -> pa.Table:
        unit, norms, is_embedded = self._unit_rows()
        is_measured = np.isfinite(self._sharpness)
        angles = estimate_pose(self._landmarks.reshape(-1, 5, 2))
        yaw, pitch = (np.where(is_measured, angle, np.nan) for angle in angles)
        for row in np.flatnonzero(is_measured & ~is_embedded):
            self._reasons[row] = "no_embedding"
        samples, size = self._samples, self._boxes[:, 2:] - self._boxes[:, :2]
        table = pa.table(
            {
                "track_id": samples["track_id"],
                "frame_idx": samples["frame_idx"],
                "ts": self._times,
                "bbox": samples["bbox"],
                "landmarks": schemas.list_column(self._landmarks, schemas.LANDMARKS),
                # The detector's own confidence in landmarks found here is not kept in any artifact, so it is not used:
                # a second run, which finds the landmarks written, has to judge as the first did.
                "confidence": samples["confidence"],
                "size_px": size.min(axis=1),
                "sharpness": _nullable(self._sharpness),
                "contrast": _nullable(self._contrast),
                "yaw": _nullable(yaw),
                "pitch": _nullable(pitch),
                "norm": _nullable(np.where(is_measured, norms, np.nan)),
                "embedding": schemas.embedding_column(unit, is_embedded),
                "is_sampled": samples["is_sampled"],
                "reject_reason": pa.array(self._reasons, pa.string()),
            },
            schema=schemas.observation_schema(self._models.recogniser.dimension),
        )
        return table.filter(self._is_done & ~self._is_lost).sort_by(
            [("track_id", "ascending"), ("frame_idx", "ascending")]
        )


def _nullable(values: NDArray[np.float64]) -> pa.Array:
    return pa.array(values, pa.float64(), from_pandas=True)
