"""The one worker of both engines: turns a shard of samples into observations, in one pass over its frames."""

from __future__ import annotations

import contextlib
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.algorithms.box_association import compute_iou_matrix
from cleanup.algorithms.face_alignment import CROP_SIZE, estimate_pose, estimate_similarity
from cleanup.edges.onnx_models import MODEL_SUFFIX, DetectedFace, FaceModels, ModelSpec, load_models
from cleanup.edges.remote_files import NodeCache, is_url
from cleanup.edges.video_frames import VideoFrames
from cleanup.errors import ModelError

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
        n_threads: Threads for decoding and image work; 0 means all cores.
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


@dataclass
class _Face:
    """One face on its way through the worker."""

    lineage_id: int
    row: dict[str, Any]
    crop: NDArray[np.uint8] | None
    is_sampled: bool
    embedding: NDArray[np.float32] | None = None
    skipped: list[_Face] = field(default_factory=list)


class ObservationWorker:
    """Holds the loaded models and observes shard after shard; knows nothing of the engine it runs in.

    Args:
        spec: What to load. The models are loaded here, once.
        load: Loader of the models, for tests that count.
    """

    def __init__(self, spec: WorkerSpec, load: Callable[[ModelSpec], FaceModels] = load_models) -> None:
        self._spec = spec
        if spec.n_threads:
            cv2.setNumThreads(spec.n_threads)
        directory = spec.models.directory
        if is_url(directory):
            directory = str(spec.cache.fetch_folder(directory, MODEL_SUFFIX))
        self._models = load(replace(spec.models, directory=directory))
        self._id = uuid.uuid4().hex
        self._video: VideoFrames | None = None
        self._source = ""

    def describe_models(self) -> dict[str, dict[str, object]]:
        """What the report says about the models."""
        return self._models.describe()

    @property
    def dimension(self) -> int:
        """Dimension of the recogniser's embeddings."""
        return self._models.recogniser.dimension

    def observe(self, video: str, samples: pa.Table, on_faces: Callable[[int], None] | None = None) -> pa.Table:
        """Observes one shard.

        Args:
            video: Path or URL of the video; it stays open for the next shard of it.
            samples: SAMPLE_SCHEMA, whole lineages, boxes in pixels.
            on_faces: Called with the number of sampled faces dealt with so far.

        Returns:
            ``observation_schema`` rows with provenance: all sampled boxes, and those between two neighbours that
            disagree (``is_sampled`` false). A face that could not be looked at has a reject_reason and no embedding.

        Raises:
            DamagedVideoError: A frame cannot be decoded.
            VideoError: The video is not there, or not the one the samples are of.
            StorageError: The video lies behind a URL and does not come.
            ModelError: Landmarks are missing and the folder has no detector.
        """
        frames = self._open(video)
        n_before = frames.n_decoded
        try:
            table = _ShardPass(self._spec, self._models, on_faces).run(samples, frames)
        except BaseException:
            self.close()
            raise
        provenance = schemas.Provenance(self._id, self.describe_models(), frames.n_decoded - n_before)
        return schemas.write_provenance(table, provenance)

    def _open(self, video: str) -> VideoFrames:
        """The video, indexed once for all its shards."""
        if self._video is None or self._source != video:
            self.close()
            path = self._spec.cache.fetch(video) if is_url(video) else Path(video)
            self._video, self._source = VideoFrames(path, self._spec.n_threads), video
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
    """State of one pass: a pending batch, and per lineage the last embedded sample with what lies behind it."""

    def __init__(self, spec: WorkerSpec, models: FaceModels, on_faces: Callable[[int], None] | None) -> None:
        self._spec, self._models, self._on_faces = spec, models, on_faces
        self._batch: list[_Face] = []
        self._previous: dict[int, _Face] = {}
        self._between: dict[int, list[_Face]] = defaultdict(list)
        self._done: list[_Face] = []
        self._n_sampled = 0

    def run(self, samples: pa.Table, video: VideoFrames) -> pa.Table:
        by_frame: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in samples.to_pylist():
            by_frame[row["frame_idx"]].append(row)
        with contextlib.closing(read_ahead(video.read(by_frame), _FRAMES_AHEAD)) as frames:
            for frame_idx, image in frames:
                for row in by_frame[frame_idx]:
                    self._take(row, image, video.timestamp_s(frame_idx))
        self._flush()
        dimension = self._models.recogniser.dimension
        faces = sorted(self._done, key=lambda f: (f.row["track_id"], f.row["frame_idx"]))
        rows = [{**f.row, "embedding": f.embedding, "is_sampled": f.is_sampled} for f in faces]
        return schemas.build_table(rows, schemas.observation_schema(dimension))

    def _take(self, row: dict[str, Any], image: NDArray[np.uint8], ts: float) -> None:
        is_sampled = row["is_sampled"]
        landmarks = row["landmarks"]
        if landmarks is None:
            if not is_sampled:
                return
            found = self._find_face(image, np.array(row["bbox"]))
            if found is not None:
                landmarks = found.landmarks.astype(np.float64).round(2).ravel().tolist()
        box = np.array(row["bbox"])
        observed: dict[str, Any] = {
            "track_id": row["track_id"],
            "frame_idx": row["frame_idx"],
            "ts": ts,
            "bbox": row["bbox"],
            "landmarks": landmarks,
            # The detector's own confidence in landmarks found here is not kept in any artifact, so it is not used: a
            # second run, which finds the landmarks written, has to judge as the first did.
            "confidence": row["confidence"],
            "size_px": float(min(box[2] - box[0], box[3] - box[1])),
        }
        face = _Face(row["lineage_id"], observed, None, is_sampled)
        matrix = None if landmarks is None else estimate_similarity(np.array(landmarks).reshape(1, 5, 2))[0]
        if matrix is None or not np.isfinite(matrix).all():
            if is_sampled:
                observed["reject_reason"] = "no_face"
                self._finish(face)
            return
        face.crop = cv2.warpAffine(image, matrix, (CROP_SIZE, CROP_SIZE), borderValue=0.0)
        if not is_sampled:
            self._between[face.lineage_id].append(face)
            return
        face.skipped = self._between.pop(face.lineage_id, [])
        self._enqueue(face)

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

    def _enqueue(self, face: _Face) -> None:
        self._batch.append(face)
        self._flush(self._models.recogniser.batch_size)

    def _flush(self, min_faces: int = 1) -> None:
        """Embeds what is pending; neighbours that disagree bring in the boxes between them."""
        size = self._models.recogniser.batch_size
        while len(self._batch) >= min_faces:
            batch, self._batch = self._batch[:size], self._batch[size:]
            raw = self._models.recogniser.embed(np.stack([f.crop for f in batch if f.crop is not None]))
            for face, vector in zip(batch, raw, strict=True):
                self._measure(face, vector)
            for face in batch:
                if not face.is_sampled:
                    continue
                previous = self._previous.get(face.lineage_id)
                if previous is not None and self._disagree(previous, face):
                    self._batch.extend(face.skipped)
                face.skipped = []
                self._previous[face.lineage_id] = face

    def _disagree(self, a: _Face, b: _Face) -> bool:
        if a.embedding is None or b.embedding is None:
            return False
        return float(a.embedding @ b.embedding) < self._spec.refine_below

    def _measure(self, face: _Face, vector: NDArray[np.float32]) -> None:
        assert face.crop is not None
        grey = cv2.cvtColor(face.crop, cv2.COLOR_RGB2GRAY)
        norm = float(np.sqrt((vector.astype(np.float64) ** 2).sum()))
        yaw, pitch = estimate_pose(np.array(face.row["landmarks"]).reshape(1, 5, 2))
        face.row.update(
            sharpness=float(cv2.Laplacian(grey, cv2.CV_64F).var()),
            contrast=float(grey.std()),
            yaw=float(yaw[0]),
            pitch=float(pitch[0]),
            norm=norm,
        )
        if np.isfinite(norm) and norm > 0:
            face.embedding = (vector / norm).astype(np.float32)
        else:
            face.row["reject_reason"] = "no_embedding"
        face.crop = None
        self._finish(face)

    def _finish(self, face: _Face) -> None:
        self._done.append(face)
        if face.is_sampled:
            self._n_sampled += 1
            if self._on_faces is not None:
                self._on_faces(self._n_sampled)
