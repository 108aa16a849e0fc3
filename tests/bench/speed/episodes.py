"""Large episodes to measure on, made by repeating a real one or drawn at random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.root_path import RootPath
from tests.conftest import SHARED

SOURCE_EP = "bbt-s01e01"
FPS = 24.0


def draw_tracks(n_tracks: int, n_people: int, noise: float, shared: float = 0.0, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors of tracks, shape (n_tracks, 512), of people in random order.

    Args:
        n_tracks: How many.
        n_people: Of how many people.
        noise: Length of a track's deviation from its person.
        shared: Length of a direction that everybody has in them; it makes people look alike.
        seed: Another seed draws others.
    """
    rng = np.random.default_rng(seed)
    people = rng.normal(size=(n_people, 512)).astype(np.float32)
    people /= np.linalg.norm(people, axis=1, keepdims=True)
    people[:, 0] += shared
    rows = people[rng.integers(0, n_people, n_tracks)]
    rows += noise * rng.normal(size=rows.shape).astype(np.float32) / np.float32(np.sqrt(512))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def repeat_video(source: Path, target: Path, n_times: int) -> int:
    """Appends a video to itself without encoding it anew; returns the frames of one repetition."""
    target.parent.mkdir(parents=True, exist_ok=True)
    n_frames = 0
    with av.open(str(target), "w") as output:
        stream = None
        for turn in range(n_times):
            with av.open(str(source)) as video:
                entry = video.streams.video[0]
                if stream is None:
                    stream = output.add_stream_from_template(entry)
                    stream.time_base = entry.time_base
                    packets = [p for p in video.demux(entry) if p.size]
                    n_frames, step = len(packets), min(p.duration for p in packets)
                    video.seek(0)
                for packet in video.demux(entry):
                    if packet.size:
                        packet.stream = stream
                        packet.pts += turn * n_frames * step
                        packet.dts += turn * n_frames * step
                        output.mux(packet)
    return n_frames


def repeat_episode(root: Path, ep_id: str, n_times: int, faces_per_turn: int) -> Path:
    """A long episode: the video again and again, and each time the same first tracks with so many faces.

    Returns:
        The data root.
    """
    source, target = EpisodePaths(RootPath(SHARED / "data"), SOURCE_EP), EpisodePaths(RootPath(root), ep_id)
    if target.identities.exists():
        return root
    n_frames = repeat_video(source.video.system_path, target.video.system_path, n_times)
    tracks, faces, detections = (_read(p.system_path) for p in (source.tracks, source.faces, source.detections))
    matrix = np.load(source.embeddings.system_path)
    chosen = _first_tracks(tracks, faces, faces_per_turn)
    spans = [t["frame_span"] for t in tracks if t["track_id"] in chosen]
    last = max(stop for _, stop in spans)
    new_tracks, new_faces, rows, new_detections, identities = [], [], [], [], []
    for turn in range(n_times):
        shift, prefix = turn * n_frames, turn * len(tracks)
        names = {name: f"track-{prefix + int(name.split('-')[1]):05d}" for name in chosen}
        for track in tracks:
            if track["track_id"] in chosen:
                start, stop = (frame + shift for frame in track["frame_span"])
                times = {"frame_span": [start, stop], "start_s": start / FPS, "end_s": stop / FPS}
                new_tracks.append({**track, "ep_id": ep_id, "track_id": names[track["track_id"]], **times})
                identities.append(new_tracks[-1]["track_id"])
        for place, face in enumerate(faces):
            if face["track_id"] in chosen:
                new = {"face_id": f"face-{len(new_faces) + 1:06d}", "track_id": names[face["track_id"]]}
                new_faces.append({**face, **new, "frame_idx": face["frame_idx"] + shift})
                rows.append(place)
        new_detections += [
            {**d, "ep_id": ep_id, "frame_idx": d["frame_idx"] + shift, "ts_s": (d["frame_idx"] + shift) / FPS}
            for d in detections
            if d["frame_idx"] <= last
        ]
    target.manifests.mkdir()
    target.embeddings.parent.mkdir()
    _write(target.tracks.system_path, new_tracks)
    _write(target.faces.system_path, new_faces)
    _write(target.detections.system_path, new_detections)
    np.save(target.embeddings.system_path, matrix[rows])
    document = json.loads(source.identities.read_bytes())
    document["identities"] = [
        {"identity_id": f"identity-{i:05d}", "track_ids": [t], "labels": {}, "locked": False}
        for i, t in enumerate(identities, start=1)
    ]
    if "ep_id" in document.get("metadata", {}):
        document["metadata"]["ep_id"] = ep_id
    target.identities.system_path.write_text(json.dumps(document))
    return root


def _first_tracks(tracks: list[dict[str, Any]], faces: list[dict[str, Any]], n_faces: int) -> set[str]:
    chosen: set[str] = set()
    for track in tracks:
        if n_faces <= 0:
            break
        chosen.add(track["track_id"])
        n_faces -= sum(face["track_id"] == track["track_id"] for face in faces)
    return chosen


def draw_episode(root: Path, ep_id: str, dialect: str, n_tracks: int, faces_per_track: int) -> Path:
    """An episode without a video, tracks one after the other in time; embeddings are those of people.

    Returns:
        The data root.
    """
    paths = EpisodePaths(RootPath(root), ep_id)
    if paths.identities.exists():
        return root
    centres = draw_tracks(n_tracks, max(n_tracks // 20, 2), 0.6)
    n_faces = n_tracks * faces_per_track
    noise = np.random.default_rng(1).normal(size=(n_faces, 512)).astype(np.float32) * np.float32(0.4 / np.sqrt(512))
    rows = np.repeat(centres, faces_per_track, axis=0) + noise
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float64).round(6)
    paths.manifests.mkdir()
    paths.embeddings.parent.mkdir()
    np.save(paths.embeddings.system_path, rows.astype(np.float32))
    describe_face, describe_track, describe_identity = _WRITERS[dialect]
    with paths.faces.system_path.open("w") as stream:
        for i in range(n_faces):
            face = describe_face(ep_id, i, i // faces_per_track + 1, rows[i].tolist())
            stream.write(json.dumps(face) + "\n")
    _write(paths.tracks.system_path, [describe_track(ep_id, t, faces_per_track) for t in range(1, n_tracks + 1)])
    identities = [describe_identity(t, faces_per_track) for t in range(1, n_tracks + 1)]
    extra = {"metadata": {"ep_id": ep_id}} if dialect == "documented" else {"config": {}, "stats": {}}
    paths.identities.system_path.write_text(json.dumps({"identities": identities, **extra}))
    return root


def _documented_face(_ep_id: str, place: int, track: int, embedding: list[float]) -> dict[str, Any]:
    return {
        "face_id": f"face-{place:06d}", "track_id": f"track-{track:05d}", "frame_idx": place,
        "bbox": [0.1, 0.2, 0.3, 0.4], "landmarks": [0.15, 0.25, 0.25, 0.25, 0.2, 0.3, 0.16, 0.35, 0.24, 0.35],
        "embedding": embedding, "quality_score": 0.8, "crop_path": "",
    }  # fmt: skip


def _documented_track(ep_id: str, track: int, n_faces: int) -> dict[str, Any]:
    start, stop = (track - 1) * n_faces, track * n_faces - 1
    return {
        "track_id": f"track-{track:05d}", "ep_id": ep_id, "start_s": start / FPS, "end_s": stop / FPS,
        "frame_span": [start, stop], "sample_thumbs": [], "stats": {"detections": n_faces, "avg_conf": 0.8},
        "schema_version": "track_v1",
    }  # fmt: skip


def _documented_identity(track: int, _n_faces: int) -> dict[str, Any]:
    return {
        "identity_id": f"identity-{track:05d}", "track_ids": [f"track-{track:05d}"], "labels": {}, "locked": False
    }  # fmt: skip


def _emitted_face(ep_id: str, place: int, track: int, embedding: list[float]) -> dict[str, Any]:
    return {
        "ep_id": ep_id, "face_id": f"face_{track:05d}_{place:06d}", "track_id": track, "frame_idx": place,
        "ts": place / FPS, "bbox_xyxy": [96.0, 108.0, 288.0, 216.0], "conf": 0.8, "quality": 0.8,
        "embedding": embedding, "embedding_model": "model", "detector": "detector", "pipeline_ver": "1",
    }  # fmt: skip


def _emitted_track(_ep_id: str, track: int, n_faces: int) -> dict[str, Any]:
    start, stop = (track - 1) * n_faces, track * n_faces - 1
    return {
        "track_id": track, "class": "face", "first_ts": start / FPS, "last_ts": stop / FPS, "frame_count": n_faces,
        "first_frame_idx": start, "last_frame_idx": stop, "bboxes_sampled": [], "pipeline_ver": "1",
    }  # fmt: skip


def _emitted_identity(track: int, n_faces: int) -> dict[str, Any]:
    return {"identity_id": f"id_{track:04d}", "label": None, "track_ids": [track], "size": n_faces}


_WRITERS: dict[str, Any] = {
    "documented": (_documented_face, _documented_track, _documented_identity),
    "emitted": (_emitted_face, _emitted_track, _emitted_identity),
}


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    with path.open("w") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in records)
