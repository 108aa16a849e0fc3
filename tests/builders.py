"""Small builders for test data; each test spells out only what it is about."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from cleanup.edges.root_path import RootPath

_TIME = re.compile(rb"20\d\d-\d\d-\d\dT[\d:.]+(Z|\+00:00)")
DOCUMENTED_EP, EMITTED_EP = "show-s01e01", "show-s01e02"


def make_people(n_people: int, dimension: int = 64, seed: int = 0) -> NDArray[np.float64]:
    """Unit vectors of different people, nearly orthogonal, shape (n_people, dimension)."""
    vectors = np.random.default_rng(seed).normal(size=(n_people, dimension))
    return np.linalg.qr(vectors.T)[0].T if n_people <= dimension else vectors / np.linalg.norm(vectors, axis=1)[:, None]


def make_faces(person: NDArray[np.float64], n_faces: int, noise: float = 0.3, seed: int = 0) -> NDArray[np.float64]:
    """Unit rows around one person; ``noise`` is the length of the deviation."""
    deviation = np.random.default_rng(seed).normal(size=(n_faces, len(person)))
    deviation *= noise / np.linalg.norm(deviation, axis=1, keepdims=True)
    rows = person + deviation
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def push_up(rows: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    """Unit rows to which a constant vector was added: all cosines are higher, and their order is about the same."""
    constant = np.random.default_rng(7).normal(size=rows.shape[1])
    moved = rows + length * constant / np.linalg.norm(constant)
    return np.asarray(moved / np.linalg.norm(moved, axis=1, keepdims=True))


def write_episode(
    root: Path,
    dialect: str,
    people: Sequence[Sequence[str]] = (("a",), ("b",), ("a",)),
    *,
    together: Collection[int] = (),
    doubled: Collection[int] = (),
    locked: Collection[int] = (),
    order_seed: int | None = None,
    push: float = 0.0,
) -> str:
    """Writes a small episode: one track per entry, in which the people named follow each other, 12 faces each.

    Tracks lie one after the other in time, so none share a frame, except those whose place is in ``together``: they
    start with the track before them, beside it in the picture; those in ``doubled`` do so in the same place. Tracks whose
    place is in ``locked`` are locked identities. With ``order_seed`` lines and identities are written in another order.
    ``push`` adds a constant vector of this length to all embeddings: a model for which strangers look more alike.
    """
    ep_id = DOCUMENTED_EP if dialect == "documented" else EMITTED_EP
    names = sorted({p for track in people for p in track})
    vectors = dict(zip(names, make_people(len(names)), strict=True))
    tracks, faces, rows, frame = [], [], [], 0
    last_first = end = 0
    for number, track in enumerate(people, start=1):
        is_beside = number - 1 in together and number > 1
        first = frame = last_first if is_beside or number - 1 in doubled else frame
        last_first = first
        for place, person in enumerate(track):
            for vector in push_up(make_faces(vectors[person], 12, seed=100 * number + place), push):
                faces.append(_face(dialect, ep_id, number, frame, vector, len(faces) + 1, is_beside=is_beside))
                rows.append(vector.round(6))
                frame += 4
        tracks.append(_track(dialect, ep_id, number, first, frame - 4, is_beside=is_beside))
        frame = max(frame, end) + 20
        end = frame
    if order_seed is not None:
        rng = np.random.default_rng(order_seed)
        order = rng.permutation(len(faces))
        faces, rows = [faces[i] for i in order], [rows[i] for i in order]
        tracks = [tracks[i] for i in rng.permutation(len(tracks))]
    _write(root, ep_id, dialect, tracks, faces, rows, locked)
    return ep_id


def _face(
    dialect: str, ep_id: str, track: int, frame: int, vector: NDArray[np.float64], number: int, *, is_beside: bool
) -> dict[str, Any]:
    dx = 0.3 if is_beside else 0.0
    embedding = [round(float(v), 6) for v in vector]
    if dialect == "documented":
        return {"face_id": f"face-{number:05d}", "track_id": f"track-{track:05d}", "frame_idx": frame,
                "bbox": [0.4 + dx, 0.3, 0.5 + dx, 0.5],
                "landmarks": [0.43, 0.36, 0.47, 0.36, 0.45, 0.4, 0.43, 0.45, 0.47, 0.45],
                "embedding": embedding, "quality_score": 0.8, "crop_path": "", "x_ours": number}  # fmt: skip
    return {"ep_id": ep_id, "face_id": f"face_{track:04d}_{frame:06d}", "track_id": track, "frame_idx": frame,
            "ts": round(frame / 24, 4), "bbox_xyxy": [200.0 + 1000 * dx, 100.0, 300.0 + 1000 * dx, 220.0], "conf": 0.8,
            "quality": 0.8,
            "embedding": embedding, "embedding_model": "tiny", "detector": "d", "pipeline_ver": "v",
            "seed_cast_id": "c1"}  # fmt: skip


def _track(dialect: str, ep_id: str, number: int, first: int, last: int, *, is_beside: bool) -> dict[str, Any]:
    x = 500.0 if is_beside else 200.0
    if dialect == "documented":
        return {"track_id": f"track-{number:05d}", "ep_id": ep_id, "start_s": round(first / 24, 4),
                "end_s": round(last / 24, 4), "frame_span": [first, last], "sample_thumbs": ["t.jpg"],
                "stats": {"detections": (last - first) // 4 + 1, "avg_conf": 0.8, "mine": 1},
                "schema_version": "track_v1"}  # fmt: skip
    boxes = [{"frame_idx": f, "ts": round(f / 24, 4), "bbox_xyxy": [x, 100.0, x + 100, 220.0], "conf": 0.8, "k": f}
             for f in range(first, last + 1, 2)]  # fmt: skip
    return {"track_id": number, "class": "face", "first_ts": round(first / 24, 4), "last_ts": round(last / 24, 4),
            "frame_count": len(boxes), "first_frame_idx": first, "last_frame_idx": last, "bboxes_sampled": boxes,
            "pipeline_ver": "v", "thumb_s3_key": "s3"}  # fmt: skip


def _write(
    root: Path,
    ep_id: str,
    dialect: str,
    tracks: list[Any],
    faces: list[Any],
    rows: list[Any],
    locked: Collection[int],
) -> None:
    manifests = root / "manifests" / ep_id
    manifests.mkdir(parents=True)
    (root / "embeds" / ep_id).mkdir(parents=True)
    for name, records in (("tracks.jsonl", tracks), ("faces.jsonl", faces)):
        (manifests / name).write_text("".join(json.dumps(r) + "\n" for r in records))
    ids = [t["track_id"] for t in tracks]
    if dialect == "documented":
        document: dict[str, Any] = {
            "identities": [
                {"identity_id": f"identity-{i:05d}", "cluster_id": None, "track_ids": [t], "canonical_face_path": "p",
                 "embedding_stats": {"centroid_norm": 1.0, "variance": 0.0, "num_tracks": 1, "num_faces_total": 12},
                 "labels": {}, "locked": False, "created_at": "2026-01-01T00:00:00Z",
                 "updated_at": "2026-01-01T00:00:00Z", "note": "kept"}
                for i, t in enumerate(ids, start=1)
            ],
            "metadata": {"ep_id": ep_id, "num_tracks": len(ids), "created_at": "2026-01-01T00:00:00Z", "tool": "x"},
        }  # fmt: skip
    else:
        document = {
            "ep_id": ep_id, "pipeline_ver": "v", "config": {"cluster_thresh": 0.9}, "stats": {"faces": len(faces)},
            "identities": [{"identity_id": f"id_{t:04d}", "label": None, "track_ids": [t], "size": 12, "note": "kept"}
                           for t in ids],
        }  # fmt: skip
    for entry in document["identities"]:
        number = int(str(entry["track_ids"][0]).rsplit("-", 1)[-1])
        if number - 1 in locked:
            entry["locked"] = True
    (manifests / "identities.json").write_text(json.dumps(document, indent=1))
    np.save(root / "embeds" / ep_id / "faces.npy", np.array(rows, np.float32))


def copy_episode(root: Path, ep_id: str, new_id: str, target: Path | None = None) -> None:
    """Copies an episode with its video under another id, and into another data root if one is given."""
    for folder in ("manifests", "embeds", "videos"):
        for path in sorted((root / folder / ep_id).iterdir()):
            copy = (target or root) / folder / new_id / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes()
            is_text = path.suffix in (".json", ".jsonl")
            copy.write_bytes(content.replace(ep_id.encode(), new_id.encode()) if is_text else content)


def artifacts_of(root: Path, ep_id: str) -> dict[str, bytes]:
    """The files of an episode that a run may replace, with the times that a run writes blanked."""
    found = {}
    for folder in ("manifests", "embeds"):
        for path in sorted((root / folder / ep_id).iterdir()):
            if not path.name.startswith("cleanup_"):
                found[path.name] = (
                    _TIME.sub(b"TIME", path.read_bytes()) if path.suffix == ".json" else path.read_bytes()
                )
    return found


def corrupt_video(video: Path, first: float, last: float) -> None:
    """Overwrites the packets of a stretch of a video, given as shares of its length."""
    with av.open(str(video)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size and p.pos is not None]
    content = bytearray(video.read_bytes())
    for pos, size in packets[int(first * len(packets)) : int(last * len(packets))]:
        content[pos + 8 : pos + size] = bytes(size - 8)
    video.write_bytes(content)


def read_lines(path: Path | RootPath) -> list[dict[str, Any]]:
    """The records of a JSON-lines file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def snapshot(folder: Path | RootPath) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    folder = Path(str(folder))
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
