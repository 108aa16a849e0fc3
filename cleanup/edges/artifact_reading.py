"""Reads an episode's files into Arrow tables and checks every invariant on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.edges.artifact_checks import BadValueError, check_box, check_landmarks, optional, require
from cleanup.edges.artifact_dialects import DIALECTS, Record, dialect_of_face, dialect_of_track
from cleanup.edges.artifact_files import EpisodePaths
from cleanup.episode import DOCUMENTED, Episode
from cleanup.errors import ArtifactError

# How far a row of faces.npy may lie from the embedding in its line, which is rounded on disk.
_ROW_TOLERANCE = 1e-3
_MAX_PROBLEMS = 1000


def read_episode(paths: EpisodePaths) -> Episode:
    """Reads and checks all artifacts of an episode.

    Raises:
        ArtifactError: A file is missing, empty or broken, or an invariant does not hold. The message names the first
            violation with file and line, and how many more there are.
    """
    reader = _Reader(paths)
    episode = reader.read()
    if episode is None or reader.problems:
        more = len(reader.problems) - 1
        suffix = f" (and {more} more; cleanup validate --ep-id {paths.ep_id} lists them)" if more else ""
        raise ArtifactError(reader.problems[0] + suffix)
    return episode


def find_violations(paths: EpisodePaths) -> list[str]:
    """Every violation in an episode's artifacts, each with file and line; empty if there is none."""
    reader = _Reader(paths)
    reader.read()
    return reader.problems


class _Reader:
    """Reads one episode and collects what is wrong with it instead of stopping at the first violation."""

    def __init__(self, paths: EpisodePaths) -> None:
        self.paths = paths
        self.problems: list[str] = []

    def read(self) -> Episode | None:
        if not self.paths.manifests.is_dir():
            self._add(f"{self.paths.manifests}: no such episode; check --ep-id and --out-root")
            return None
        tracks, dialect_name = self._read_tracks()
        faces = self._read_faces(dialect_name)
        embeddings = self._read_embeddings(faces)
        document, identities = self._read_identities(dialect_name)
        detections = self._read_detections() if dialect_name == DOCUMENTED and self.paths.detections.exists() else None
        metrics = self._read_metrics()
        if dialect_name is None or not tracks or not faces:
            return None
        self._check_references(tracks, faces, identities)
        if self.problems:
            return None
        return _build_episode(
            self.paths.ep_id, dialect_name, tracks, faces, embeddings, (document, identities), detections, metrics
        )

    def _add(self, problem: str) -> None:
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(problem)

    def _lines(self, path: Path, *, is_required: bool) -> Iterator[tuple[int, bytes, Record]]:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            if is_required:
                self._add(f"{path}: missing")
            return
        except OSError as error:
            self._add(f"{path}: cannot be read ({error.strerror})")
            return
        n_records = 0
        for number, line in enumerate(content.split(b"\n"), start=1):
            if not line.strip():
                continue
            n_records += 1
            record = self._parse(path, number, line)
            if record is not None:
                yield number, line, record
        if n_records == 0 and is_required:
            self._add(f"{path}: empty; the step that writes it did not finish or found nothing")

    def _parse(self, path: Path, number: int, line: bytes) -> Record | None:
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            self._add(f"{path}:{number}: {_explain_json_error(line, error)}")
            return None
        if not isinstance(record, dict):
            self._add(f"{path}:{number}: a JSON {type(record).__name__} instead of an object")
            return None
        return record

    def _row(
        self, path: Path, number: int, read: Callable[[Record], dict[str, Any]], record: Record
    ) -> dict[str, Any] | None:
        try:
            row = read(record)
        except BadValueError as error:
            self._add(f"{path}:{number}: {error}")
            return None
        row["line"] = number
        return row

    def _read_tracks(self) -> tuple[list[dict[str, Any]], str | None]:
        path, rows, dialect_name = self.paths.tracks, [], None
        for number, line, record in self._lines(path, is_required=True):
            found = dialect_of_track(record)
            dialect_name = dialect_name or found
            if found is None or found != dialect_name:
                self._add(_odd_line(path, number, found, dialect_name))
                continue
            row = self._row(path, number, DIALECTS[found].track_row, record)
            if row is not None:
                row["raw"] = line
                rows.append(row)
                self._check_track(path, row)
        self._check_unique(path, rows, "track_id")
        return rows, dialect_name

    def _check_track(self, path: Path, row: dict[str, Any]) -> None:
        if row["first_frame"] > row["last_frame"] or row["start_s"] > row["end_s"]:
            self._add(f"{path}:{row['line']}: track {row['track_id']} ends before it starts")
        frames = [b["frame_idx"] for b in row["boxes"]]
        if frames and (min(frames) < row["first_frame"] or max(frames) > row["last_frame"]):
            self._add(f"{path}:{row['line']}: track {row['track_id']} has a box outside its frames")
        if len(set(frames)) != len(frames):
            self._add(f"{path}:{row['line']}: track {row['track_id']} has two boxes in one frame")

    def _check_unique(self, path: Path, rows: list[dict[str, Any]], key: str) -> None:
        seen: dict[Any, int] = {}
        for row in rows:
            if row[key] in seen:
                self._add(f"{path}:{row['line']}: {key} {row[key]} is already on line {seen[row[key]]}")
            seen.setdefault(row[key], row["line"])

    def _read_faces(self, dialect_name: str | None) -> list[dict[str, Any]]:
        path, rows = self.paths.faces, []
        dimension: tuple[int, int] | None = None
        for number, line, record in self._lines(path, is_required=True):
            found = dialect_of_face(record)
            if dialect_name is None:
                continue
            if found != dialect_name:
                self._add(_odd_line(path, number, found, dialect_name))
                continue
            row = self._row(path, number, DIALECTS[found].face_row, record)
            if row is None:
                continue
            row["raw"] = line
            rows.append(row)
            if row["embedding"] is not None:
                size = len(row["embedding"])
                dimension = dimension or (size, number)
                if size != dimension[0]:
                    self._add(
                        f"{path}:{number}: embedding of {size} dimensions{_by(row)}, line {dimension[1]} has "
                        f"{dimension[0]}; re-embed the whole episode with one model"
                    )
        self._check_unique(path, rows, "face_id")
        return rows

    def _read_embeddings(self, faces: list[dict[str, Any]]) -> NDArray[np.float32] | None:
        path = self.paths.embeddings
        try:
            with path.open("rb") as stream:
                matrix = np.lib.format.read_array(stream, allow_pickle=False)
        except FileNotFoundError:
            self._add(f"{path}: missing")
            return None
        except (OSError, ValueError, EOFError) as error:
            self._add(f"{path}: not a readable NumPy array ({error})")
            return None
        embedded = [row for row in faces if row["embedding"] is not None]
        if matrix.ndim != 2 or not np.issubdtype(matrix.dtype, np.floating):
            self._add(f"{path}: holds a {matrix.dtype} array of shape {matrix.shape} instead of rows of floats")
            return None
        if len(matrix) != len(embedded):
            self._add(
                f"{path}: {len(matrix)} rows, but {len(embedded)} lines of {self.paths.faces.name} carry an embedding"
            )
            return None
        if not np.isfinite(matrix).all():
            self._add(f"{path}: row {int(np.flatnonzero(~np.isfinite(matrix).all(axis=1))[0])} is not finite")
            return None
        for i, row in enumerate(embedded):
            vector = np.asarray(row["embedding"], np.float32)
            if len(vector) != matrix.shape[1] or float(np.abs(vector - matrix[i]).max()) > _ROW_TOLERANCE:
                self._add(f"{path}: row {i} is not the embedding of {self.paths.faces.name}:{row['line']}")
                return None
        return matrix.astype(np.float32, copy=False)

    def _read_json(self, path: Path) -> tuple[bytes, Record] | None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            self._add(f"{path}: missing")
            return None
        except OSError as error:
            self._add(f"{path}: cannot be read ({error.strerror})")
            return None
        if not content.strip():
            self._add(f"{path}: empty; the step that writes it did not finish")
            return None
        record = self._parse(path, 1, content)
        return None if record is None else (content, record)

    def _read_identities(self, dialect_name: str | None) -> tuple[bytes, list[dict[str, Any]]]:
        path = self.paths.identities
        loaded = self._read_json(path)
        if loaded is None or dialect_name is None:
            return b"{}", []
        content, document = loaded
        entries = document.pop("identities", None)
        if not isinstance(entries, list):
            self._add(f"{path}: has no list of identities")
            return b"{}", []
        found = DOCUMENTED if "metadata" in document else "emitted" if {"config", "stats"} & set(document) else None
        if found is not None and found != dialect_name:
            self._add(f"{path}: is written in the {found} dialect, {self.paths.tracks.name} in the {dialect_name} one")
            return b"{}", []
        rows = []
        for entry in entries:
            number = _line_of(content, entry)
            if not isinstance(entry, dict):
                self._add(f"{path}: an identity that is no object")
                continue
            row = self._row(path, number, DIALECTS[dialect_name].identity_row, entry)
            if row is not None:
                row["raw"] = orjson.dumps(entry)
                rows.append(row)
        self._check_unique(path, rows, "identity_id")
        return orjson.dumps(document), rows

    def _read_detections(self) -> list[dict[str, Any]]:
        path, rows = self.paths.detections, []
        for number, _, record in self._lines(path, is_required=False):
            row = self._row(path, number, _detection_row, record)
            if row is not None:
                rows.append(row)
        return rows

    def _read_metrics(self) -> bytes | None:
        if not self.paths.track_metrics.exists():
            return None
        loaded = self._read_json(self.paths.track_metrics)
        return None if loaded is None else loaded[0]

    def _check_references(
        self, tracks: list[dict[str, Any]], faces: list[dict[str, Any]], identities: list[dict[str, Any]]
    ) -> None:
        known = {row["track_id"] for row in tracks}
        for row in faces:
            if row["track_id"] not in known:
                self._add(f"{self.paths.faces}:{row['line']}: face {row['face_id']} is of track {row['track_id']}, "
                          f"which {self.paths.tracks.name} does not have")  # fmt: skip
        owner: dict[int, str] = {}
        for row in identities:
            for track_id in row["track_ids"]:
                where = f"{self.paths.identities}:{row['line']}: identity {row['identity_id']}"
                if track_id not in known:
                    self._add(f"{where} has track {track_id}, which {self.paths.tracks.name} does not have")
                elif track_id in owner:
                    self._add(f"{where} has track {track_id}, which identity {owner[track_id]} has as well")
                owner.setdefault(track_id, row["identity_id"])
        for row in tracks:
            if row["parent_track_id"] is not None and row["parent_track_id"] not in known:
                self._add(f"{self.paths.tracks}:{row['line']}: parent track {row['parent_track_id']} does not exist")


def _detection_row(record: Record) -> dict[str, Any]:
    what = f"the detection in frame {record.get('frame_idx')}"
    return {
        "frame_idx": require(record, "frame_idx", int, what),
        "ts": float(require(record, "ts_s", (int, float), what)),
        "bbox": check_box(record.get("bbox"), what, is_normalised=True),
        "landmarks": check_landmarks(record.get("landmarks"), what),
        "confidence": optional(record, "conf", (int, float), what),
    }


def _by(row: Mapping[str, Any]) -> str:
    return f" (model {row['embedding_model']})" if row.get("embedding_model") else ""


def _odd_line(path: Path, number: int, found: str | None, expected: str | None) -> str:
    if found is None:
        return f"{path}:{number}: written in neither dialect or in both at once"
    return f"{path}:{number}: in the {found} dialect, but the episode is in the {expected} one; mixed files are refused"


def _line_of(content: bytes, entry: Any) -> int:
    """Line of an identity in the document, by its id; 1 where it cannot be told."""
    identity_id = entry.get("identity_id") if isinstance(entry, dict) else None
    place = content.find(orjson.dumps(identity_id)) if isinstance(identity_id, str) else -1
    return content.count(b"\n", 0, place) + 1 if place >= 0 else 1


def _explain_json_error(line: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return f"not valid JSON ({error.msg} at column {error.colno}); the line is cut off or damaged"
    return "holds NaN or Infinity, which is not JSON; an embedding or a number in it is not finite"


def _build_episode(
    ep_id: str,
    dialect_name: str,
    tracks: list[dict[str, Any]],
    faces: list[dict[str, Any]],
    embeddings: NDArray[np.float32] | None,
    identities: tuple[bytes, list[dict[str, Any]]],
    detections: list[dict[str, Any]] | None,
    metrics: bytes | None,
) -> Episode:
    fps = _estimate_fps(tracks)
    is_embedded = [row["embedding"] is not None for row in faces]
    vectors: Iterator[Any] = iter(embeddings if embeddings is not None else [])
    for i, row in enumerate(faces):
        row["row"] = i
        row["embedding"] = next(vectors) if is_embedded[i] else None
        if row.get("ts") is None:
            row["ts"] = row["frame_idx"] / fps
    boxes = {(box["track_id"], box["frame_idx"]): box for track in tracks for box in track["boxes"]}
    for row in faces:
        box = boxes.setdefault((row["track_id"], row["frame_idx"]), row)
        for key in ("landmarks", "confidence"):
            if box.get(key) is None and row.get(key) is not None:
                box[key] = row[key]
    return Episode(
        ep_id=ep_id,
        dialect=dialect_name,
        fps=fps,
        tracks=schemas.build_table(tracks, schemas.TRACK_SCHEMA),
        boxes=schemas.build_table(list(boxes.values()), schemas.BOX_SCHEMA).sort_by(
            [("track_id", "ascending"), ("frame_idx", "ascending")]
        ),
        faces=schemas.build_table(faces, schemas.FACE_SCHEMA),
        identities=schemas.build_table(identities[1], schemas.IDENTITY_SCHEMA),
        detections=None if detections is None else schemas.build_table(detections, schemas.DETECTION_SCHEMA),
        observations=None,
        identity_document=identities[0],
        track_metrics=metrics,
        duration_s=max(row["end_s"] for row in tracks),
    )


def _estimate_fps(tracks: list[dict[str, Any]]) -> float:
    rates = [
        (row["last_frame"] - row["first_frame"]) / (row["end_s"] - row["start_s"])
        for row in tracks
        if row["end_s"] > row["start_s"] and row["last_frame"] > row["first_frame"]
    ]
    rates = rates or [row["first_frame"] / row["start_s"] for row in tracks if row["start_s"] > 0]
    return float(np.median(rates)) if rates and np.median(rates) > 0 else 25.0
