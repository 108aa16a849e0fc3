"""Reads an episode's files into Arrow tables and checks every invariant on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.edges.artifact_checks import (
    BadValueError,
    check_box,
    check_landmarks,
    is_too_deep,
    optional,
    require,
    require_frame,
)
from cleanup.edges.artifact_dialects import DIALECTS, Record, dialect_of_face, dialect_of_track
from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.bounded_map import map_ahead
from cleanup.edges.embedding_text import ParsedVectors, open_record, parse_vectors
from cleanup.edges.face_columns import ROW_TOLERANCE, read_plain_faces
from cleanup.edges.json_faults import explain_json_error
from cleanup.edges.root_path import RootPath
from cleanup.episode import DOCUMENTED, EMITTED, Episode
from cleanup.errors import ArtifactError, first_line, one_line, raise_shortage
from cleanup.input_limits import MAX_DEPTH, MAX_DOCUMENT_BYTES, MAX_LINE_BYTES, MIB
from cleanup.names import EpId
from cleanup.text_files import BOM, find_encoding_fault

# Lines whose numbers are parsed at a time, and how many such batches may wait: a few MB each.
_LINES_AT_A_TIME, _BATCHES_AHEAD = 512, 8
_BUFFER_BYTES = 1 << 20
_MAX_PROBLEMS = 1000
# A row of faces.jsonl, and the numbers of its embedding as text.
_OpenedFace = tuple[dict[str, Any], bytes | None]


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
            self.add(f"{self.paths.manifests}: no such episode; check --ep-id and --out-root")
            return None
        tracks, dialect_name = self._read_tracks()
        fps = _estimate_fps(tracks)
        faces = self._read_faces(dialect_name, {row["track_id"] for row in tracks}, fps)
        document, identities = self._read_identities(dialect_name)
        detections = self._read_detections() if dialect_name == DOCUMENTED and self.paths.detections.exists() else None
        metrics = self._read_metrics(dialect_name)
        if dialect_name is None or not tracks or faces is None:
            return None
        self._check_references(tracks, identities)
        if self.problems:
            return None
        return _build_episode(
            self.paths.ep_id, dialect_name, fps, tracks, faces, (document, identities), detections, metrics
        )

    def add(self, problem: str) -> None:
        """Notes what is wrong."""
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(one_line(problem))

    def _raw_lines(self, path: RootPath, *, is_required: bool) -> Iterator[tuple[int, bytes]]:
        """Numbers and contents of the lines that are not blank."""
        n_records = 0
        try:
            with path.open("rb", buffering=_BUFFER_BYTES) as stream:
                for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b""), start=1):
                    if number == 1:
                        fault = find_encoding_fault(line)
                        if fault:
                            self.add(f"{path}: {fault}")
                            return
                        line = line.removeprefix(BOM)
                    if len(line) > MAX_LINE_BYTES:
                        self.add(f"{path}:{number}: longer than {MAX_LINE_BYTES // MIB} MiB, which no record is")
                        return
                    if not line.isspace():
                        n_records += 1
                        yield number, line.removesuffix(b"\n")
        except FileNotFoundError:
            if is_required:
                self.add(f"{path}: missing")
            return
        except OSError as error:
            raise_shortage(error, path)
            self.add(f"{path}: cannot be read ({error.strerror})")
            return
        if n_records == 0 and is_required:
            self.add(f"{path}: empty; the step that writes it did not finish or found nothing")

    def _lines(self, path: RootPath, *, is_required: bool) -> Iterator[tuple[int, bytes, Record]]:
        for number, line in self._raw_lines(path, is_required=is_required):
            record = self._parse(path, number, line)
            if record is not None:
                yield number, line, record

    def _parse(self, path: RootPath, number: int, line: bytes) -> Record | None:
        opened = self._open(path, number, line, lambda content: (orjson.loads(content), None))
        return None if opened is None else opened[0]

    def _open(
        self, path: RootPath, number: int, line: bytes, load: Callable[[bytes], tuple[Any, bytes | None]]
    ) -> tuple[Record, bytes | None] | None:
        try:
            record, text = load(line)
        except orjson.JSONDecodeError as error:
            self.add(f"{path}:{number + error.lineno - 1}: {explain_json_error(line, error)}")
            return None
        if not isinstance(record, dict):
            self.add(f"{path}:{number}: a JSON {type(record).__name__} instead of an object")
            return None
        if is_too_deep(line, record):
            self.add(f"{path}:{number}: nested deeper than {MAX_DEPTH} levels")
            return None
        return record, text

    def _row(
        self, path: RootPath, number: int, read: Callable[[Record], dict[str, Any]], record: Record
    ) -> dict[str, Any] | None:
        try:
            row = read(record)
        except BadValueError as error:
            self.add(f"{path}:{number}: {error}")
            return None
        row["line"] = number
        return row

    def _read_tracks(self) -> tuple[list[dict[str, Any]], str | None]:
        path, rows, dialect_name = self.paths.tracks, [], None
        for number, line, record in self._lines(path, is_required=True):
            found = dialect_of_track(record)
            dialect_name = dialect_name or found
            if found is None or found != dialect_name:
                self.add(_odd_line(path, number, found, dialect_name))
                continue
            row = self._row(path, number, DIALECTS[found].track_row, record)
            if row is not None:
                row["raw"] = line
                rows.append(row)
                self._check_track(path, row)
        self._check_unique(path, rows, "track_id")
        return rows, dialect_name

    def _check_track(self, path: RootPath, row: dict[str, Any]) -> None:
        if row["first_frame"] > row["last_frame"] or row["start_s"] > row["end_s"]:
            self.add(f"{path}:{row['line']}: track {row['track_id']} ends before it starts")
        frames = [b["frame_idx"] for b in row["boxes"]]
        if frames and (min(frames) < row["first_frame"] or max(frames) > row["last_frame"]):
            self.add(f"{path}:{row['line']}: track {row['track_id']} has a box outside its frames")
        if len(set(frames)) != len(frames):
            self.add(f"{path}:{row['line']}: track {row['track_id']} has two boxes in one frame")

    def _check_unique(self, path: RootPath, rows: list[dict[str, Any]], key: str) -> None:
        seen: dict[Any, int] = {}
        for row in rows:
            if row[key] in seen:
                self.add(f"{path}:{row['line']}: {key} {row[key]} is already on line {seen[row[key]]}")
            seen.setdefault(row[key], row["line"])

    def _read_faces(self, dialect_name: str | None, track_ids: set[int], fps: float) -> pa.Table | None:
        """STORED_FACE_SCHEMA; None if there is none to be had."""
        matrix = self._open_matrix()
        if dialect_name is not None:
            plain = read_plain_faces(self.paths.faces, dialect_name, track_ids, matrix, fps)
            if plain is not None:
                return plain
        rows = self._read_face_lines(dialect_name, matrix)
        for row in rows:
            if row["track_id"] not in track_ids:
                self.add(f"{self.paths.faces}:{row['line']}: face {row['face_id']} is of track {row['track_id']}, "
                          f"which {self.paths.tracks.name} does not have")  # fmt: skip
        if not rows or matrix is None or self.problems:
            return None
        for row in rows:
            if row.get("ts") is None:
                row["ts"] = row["frame_idx"] / fps
        has_embedding = np.array([row["has_embedding"] for row in rows])
        faces = schemas.build_faces(rows, schemas.spread_embeddings(matrix, has_embedding))
        faces = schemas.set_column(faces, "stored_row", np.arange(len(rows)))
        lines = pa.array([row["raw"] for row in rows], pa.large_binary())
        return faces.append_column(schemas.STORED_FACE_SCHEMA.field("line"), lines)

    def _read_face_lines(self, dialect_name: str | None, matrix: NDArray[np.floating] | None) -> list[dict[str, Any]]:
        """The rows of faces.jsonl, line by line, with everything that is wrong noted."""
        rows: list[dict[str, Any]] = []
        check = _EmbeddingCheck(self, matrix)
        with ThreadPoolExecutor(thread_name_prefix="numbers") as threads:
            batches = self._open_faces(dialect_name)
            for opened, parsed in map_ahead(_parse_embeddings, batches, threads, _BATCHES_AHEAD):
                rows += [row for row, _ in opened]
                check.add([row for row, text in opened if text is not None], parsed)
        self._check_unique(self.paths.faces, rows, "face_id")
        if matrix is not None and len(matrix) != check.n_faces:
            self.add(
                f"{self.paths.embeddings}: {len(matrix)} rows, but {check.n_faces} lines of {self.paths.faces.name} "
                "carry an embedding"
            )
        return rows

    def _open_faces(self, dialect_name: str | None) -> Iterator[list[_OpenedFace]]:
        """Rows of faces.jsonl and the numbers of their embeddings, a batch at a time."""
        path, batch = self.paths.faces, []
        for number, line in self._raw_lines(path, is_required=True):
            opened = self._open(path, number, line, open_record)
            if opened is None or dialect_name is None:
                continue
            record, text = opened
            found = dialect_of_face(record)
            if found != dialect_name:
                self.add(_odd_line(path, number, found, dialect_name))
                continue
            row = self._row(path, number, DIALECTS[found].face_row, record)
            if row is None:
                continue
            row["raw"] = line + b"\n"
            batch.append((row, text))
            if len(batch) == _LINES_AT_A_TIME:
                yield batch
                batch = []
        yield batch

    def _open_matrix(self) -> NDArray[np.floating] | None:
        """faces.npy, mapped into memory: what is not looked at is not read."""
        path = self.paths.embeddings
        try:
            with path.reading_name() as name:
                matrix = np.load(name, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            self.add(f"{path}: missing")
            return None
        except Exception as error:  # noqa: BLE001 -- NumPy lets out whatever its parser of the header stumbles over
            raise_shortage(error, path)
            self.add(f"{path}: not a readable NumPy array ({first_line(error)})")
            return None
        if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or not np.issubdtype(matrix.dtype, np.floating):
            kind = f"a {matrix.dtype} array of shape {matrix.shape}" if isinstance(matrix, np.ndarray) else "an archive"
            self.add(f"{path}: holds {kind} instead of rows of floats")
            return None
        return matrix

    def _read_json(self, path: RootPath) -> tuple[bytes, Record] | None:
        try:
            if path.stat().st_size > MAX_DOCUMENT_BYTES:
                self.add(f"{path}: larger than {MAX_DOCUMENT_BYTES // MIB} MiB, which no such file is")
                return None
            content = path.read_bytes()
        except FileNotFoundError:
            self.add(f"{path}: missing")
            return None
        except OSError as error:
            raise_shortage(error, path)
            self.add(f"{path}: cannot be read ({error.strerror})")
            return None
        if not content.strip():
            self.add(f"{path}: empty; the step that writes it did not finish")
            return None
        fault = find_encoding_fault(content)
        if fault:
            self.add(f"{path}: {fault}")
            return None
        content = content.removeprefix(BOM)
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
            self.add(f"{path}: has no list of identities")
            return b"{}", []
        if not self._are_objects(path, document, ("metadata", "config", "stats")):
            return b"{}", []
        found = DOCUMENTED if "metadata" in document else EMITTED if {"config", "stats"} & set(document) else None
        if found is not None and found != dialect_name:
            self.add(f"{path}: is written in the {found} dialect, {self.paths.tracks.name} in the {dialect_name} one")
            return b"{}", []
        rows = []
        number, place = 1, 0
        for entry in entries:
            number, place = _line_of(content, entry, number, place)
            if not isinstance(entry, dict):
                self.add(f"{path}: an identity that is no object")
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

    def _read_metrics(self, dialect_name: str | None) -> bytes | None:
        path = self.paths.track_metrics
        loaded = self._read_json(path) if path.exists() else None
        if loaded is None:
            return None
        content, document = loaded
        if dialect_name == EMITTED and self._are_objects(path, document, ("metrics", "cluster_metrics")):
            metrics = document.get("metrics", {})
            if self._are_objects(path, metrics, ("appearance_gate",)):
                gate = metrics.get("appearance_gate", {})
                if self._are_objects(path, gate, ("splits",)):
                    for name, count in gate.get("splits", {}).items():
                        if not isinstance(count, int):
                            self.add(f"{path}: metrics.appearance_gate.splits.{name} is {count!r} instead of a count")
        return content

    def _are_objects(self, path: RootPath, document: Record, keys: Iterable[str]) -> bool:
        """Whether the keys of a document that are there hold objects; what does not is noted."""
        wrong = [key for key in keys if not isinstance(document.get(key, {}), dict)]
        for key in wrong:
            self.add(f"{path}: {key} is a {type(document[key]).__name__} instead of an object")
        return not wrong

    def _check_references(self, tracks: list[dict[str, Any]], identities: list[dict[str, Any]]) -> None:
        known = {row["track_id"] for row in tracks}
        owner: dict[int, str] = {}
        for row in identities:
            for track_id in row["track_ids"]:
                where = f"{self.paths.identities}:{row['line']}: identity {row['identity_id']}"
                if track_id not in known:
                    self.add(f"{where} has track {track_id}, which {self.paths.tracks.name} does not have")
                elif track_id in owner:
                    self.add(f"{where} has track {track_id}, which identity {owner[track_id]} has as well")
                owner.setdefault(track_id, row["identity_id"])
        for row in tracks:
            if row["parent_track_id"] is not None and row["parent_track_id"] not in known:
                self.add(f"{self.paths.tracks}:{row['line']}: parent track {row['parent_track_id']} does not exist")


def _detection_row(record: Record) -> dict[str, Any]:
    what = f"the detection in frame {record.get('frame_idx')}"
    return {
        "frame_idx": require_frame(record, "frame_idx", what),
        "ts": float(require(record, "ts_s", (int, float), what)),
        "bbox": check_box(record.get("bbox"), what, is_normalised=True),
        "landmarks": check_landmarks(record.get("landmarks"), what),
        "confidence": optional(record, "conf", (int, float), what),
    }


def _by(row: Mapping[str, Any]) -> str:
    return f" (model {row['embedding_model']})" if row.get("embedding_model") else ""


def _odd_line(path: RootPath, number: int, found: str | None, expected: str | None) -> str:
    if found is None:
        return f"{path}:{number}: written in neither dialect or in both at once"
    return f"{path}:{number}: in the {found} dialect, but the episode is in the {expected} one; mixed files are refused"


def _line_of(content: bytes, entry: Any, line: int, start: int) -> tuple[int, int]:
    """Line and place of an identity in the document, by its id; searched from a place on whose line is known."""
    identity_id = entry.get("identity_id") if isinstance(entry, dict) else None
    place = content.find(orjson.dumps(identity_id), start) if isinstance(identity_id, str) else -1
    return (line, start) if place < 0 else (line + content.count(b"\n", start, place), place)


def _build_episode(
    ep_id: EpId,
    dialect_name: str,
    fps: float,
    tracks: list[dict[str, Any]],
    faces: pa.Table,
    identities: tuple[bytes, list[dict[str, Any]]],
    detections: list[dict[str, Any]] | None,
    metrics: bytes | None,
) -> Episode:
    sampled = schemas.build_table([box for track in tracks for box in track["boxes"]], schemas.BOX_SCHEMA)
    return Episode(
        ep_id=ep_id,
        dialect=dialect_name,
        fps=fps,
        tracks=schemas.build_table(tracks, schemas.TRACK_SCHEMA),
        boxes=_merge_boxes(pa.concat_tables([sampled, faces.select(schemas.BOX_SCHEMA.names)])),
        faces=faces.drop_columns(["line"]),
        identities=schemas.build_table(identities[1], schemas.IDENTITY_SCHEMA),
        detections=None if detections is None else schemas.build_table(detections, schemas.DETECTION_SCHEMA),
        observations=None,
        identity_document=identities[0],
        track_metrics=metrics,
        duration_s=max(row["end_s"] for row in tracks),
        stored_faces=faces,
    )


def _merge_boxes(boxes: pa.Table) -> pa.Table:
    """One box per track and frame: the first, with the first landmarks and confidence that any of them has."""
    tracks, frames = schemas.ints_of(boxes, "track_id"), schemas.ints_of(boxes, "frame_idx")
    order = np.lexsort((frames, tracks))  # stable: of one place the first stays first
    is_first = np.ones(len(order), bool)
    is_first[1:] = (np.diff(tracks[order]) != 0) | (np.diff(frames[order]) != 0)
    merged = boxes.take(order[is_first])
    starts = np.flatnonzero(is_first)
    for name in ("landmarks", "confidence"):
        is_there = boxes[name].is_valid().to_numpy()[order]
        places = np.where(is_there, np.arange(len(order)), len(order))
        first = np.minimum.reduceat(places, starts) if len(starts) else starts
        source = pa.array(np.append(order, -1)[first], mask=first == len(order))
        merged = merged.set_column(merged.schema.get_field_index(name), name, boxes[name].take(source))
    return merged


def _parse_embeddings(faces: list[_OpenedFace]) -> tuple[list[_OpenedFace], ParsedVectors]:
    return faces, parse_vectors(pa.array([text for _, text in faces if text is not None], pa.large_binary()))


class _EmbeddingCheck:
    """Compares the embeddings of lines with each other and with the rows of faces.npy.

    Args:
        reader: Gets what is wrong.
        matrix: faces.npy; None where it cannot be read.
    """

    def __init__(self, reader: _Reader, matrix: NDArray[np.floating] | None) -> None:
        self._reader, self._matrix = reader, matrix
        self._first: tuple[int, dict[str, Any]] | None = None
        self._is_row_wrong = matrix is None
        self.n_faces = 0

    def add(self, rows: list[dict[str, Any]], parsed: ParsedVectors) -> None:
        """Takes the next rows that have an embedding."""
        start = self.n_faces
        self.n_faces += len(rows)
        path = self._reader.paths.faces
        for place, fault in parsed.faults:
            self._reader.add(f"{path}:{rows[place]['line']}: face {rows[place]['face_id']} has {fault}")
        sizes = np.diff(parsed.ends, prepend=0)
        if parsed.faults or not rows:
            return
        if self._first is None:
            self._first = int(sizes[0]), rows[0]
        dimension, first = self._first
        for place in np.flatnonzero(sizes != dimension).tolist():
            self._reader.add(
                f"{path}:{rows[place]['line']}: embedding of {sizes[place]} dimensions{_by(rows[place])}, line "
                f"{first['line']} has {dimension}; re-embed the whole episode with one model"
            )
        if (sizes == dimension).all() and not self._is_row_wrong:
            self._compare(start, rows, parsed.values.reshape(-1, dimension))

    def _compare(self, start: int, rows: list[dict[str, Any]], vectors: NDArray[np.float32]) -> None:
        """Finds the first row of faces.npy that is not what its line says."""
        assert self._matrix is not None
        stored = self._matrix[start : start + len(rows)]
        path = self._reader.paths.embeddings
        if len(stored) == len(rows) and stored.shape[1] == vectors.shape[1]:
            is_finite = np.isfinite(stored).all(axis=1)
            with np.errstate(invalid="ignore", over="ignore"):  # infinity less infinity; it is told as not finite
                is_same = np.abs(stored - vectors).max(axis=1) <= ROW_TOLERANCE
            wrong = np.flatnonzero(~is_same | ~is_finite)
        elif len(stored) == len(rows):
            is_finite, wrong = np.ones(len(rows), bool), np.array([0])
        else:
            return  # too few rows, which is said once all lines are counted
        if len(wrong):
            self._is_row_wrong = True
            place = int(wrong[0])
            self._reader.add(
                f"{path}: row {start + place} is not the embedding of {self._reader.paths.faces.name}:"
                f"{rows[place]['line']}"
                if is_finite[place]
                else f"{path}: row {start + place} is not finite"
            )


def _estimate_fps(tracks: list[dict[str, Any]]) -> float:
    rates = [
        (row["last_frame"] - row["first_frame"]) / (row["end_s"] - row["start_s"])
        for row in tracks
        if row["end_s"] > row["start_s"] and row["last_frame"] > row["first_frame"]
    ]
    rates = rates or [row["first_frame"] / row["start_s"] for row in tracks if row["start_s"] > 0]
    return float(np.median(rates)) if rates and np.median(rates) > 0 else 25.0
