"""What every method sees of an episode, what it says of it, and the figures that come of that."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from cleanup import schemas
from cleanup.edges.artifact_reading import read_episode
from cleanup.edges.data_root import DataRoot
from cleanup.edges.model_files import sha256_of_file
from cleanup.edges.root_path import RootPath
from cleanup.edges.shard_checkpoints import CheckpointedEngine, compute_pass_key
from cleanup.edges.video_frames import VideoFrames
from cleanup.entrypoints.run_tools import Tools, worker_spec
from cleanup.interfaces import VideoSource
from cleanup.names import EpId
from cleanup.phases.observe import attach_detections, plan_observations
from cleanup.progress import ignore_items
from cleanup.resolve_settings import ResolvedSettings

# Sizes of faces are told as if every video had so many lines.
_REFERENCE_LINES = 540


@dataclass(frozen=True)
class Scene:
    """Truth of an episode and what the worker saw; arrays over the faces of faces.jsonl, in line order.

    ``shot`` is the kind of shot that truth names, ``any`` where it names none. ``size_px`` is the shorter side of a
    face's box, as it would be in a video of 540 lines. ``embeddings`` are unit rows, ``norms`` their lengths before.
    """

    ep_id: EpId
    person: list[str | None]
    is_clean: NDArray[np.bool_]
    shot: list[str]
    raw_track: list[Any]
    frames: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    norms: NDArray[np.float64]
    boxes: NDArray[np.float64]
    size_px: NDArray[np.float64]

    @property
    def known(self) -> list[int]:
        """The faces whose person truth names; only they are scored."""
        return [i for i, person in enumerate(self.person) if person]

    def tracks(self, faces: Sequence[int]) -> list[list[int]]:
        """Those faces by raw track, in time order."""
        members: dict[Any, list[int]] = {}
        for i in faces:
            members.setdefault(self.raw_track[i], []).append(i)
        return [sorted(track, key=lambda i: int(self.frames[i])) for track in members.values()]


@dataclass(frozen=True)
class Outcome:
    """What a method says of each face: its piece of a track, its identity, and a person where it names one.

    ``cut`` is the mean similarity down to which it joined pieces, where it has such a thing.
    """

    piece: list[Any]
    identity: list[Any]
    person: list[str | None] | None = None
    cut: float | None = None


def observe_scene(root: Path, truth_file: Path, settings: ResolvedSettings) -> Scene:
    """One pass over the pixels of an episode, as the product makes it; its checkpoints stay for the product's runs."""
    truth = json.loads(truth_file.read_text())
    data = DataRoot(RootPath(root))
    ep_id = EpId(truth["ep_id"])
    paths = data.paths(ep_id)
    episode = attach_detections(read_episode(paths), settings.settings.observe)
    video = paths.video.system_path
    with VideoFrames(video) as frames:
        info = frames.info
    plan = plan_observations(episode, settings.settings.observe, info.width, info.height, info.fps)
    with Tools(settings, data) as tools:
        key = compute_pass_key(sha256_of_file(video), tools.model_sha256, worker_spec(settings))
        results = CheckpointedEngine(tools.engine, paths.checkpoints, key).observe(
            ep_id, VideoSource(str(paths.video)), plan.tables(), ignore_items
        )
    seen = schemas.merge_observations([r.observations for r in results if r.observations is not None])
    place = {k: i for i, k in enumerate(zip(seen["track_id"].to_pylist(), seen["frame_idx"].to_pylist(), strict=True))}
    keys = list(zip(episode.faces["track_id"].to_pylist(), episode.faces["frame_idx"].to_pylist(), strict=True))
    rows = seen.take([place[k] for k in keys])
    faces, boxes = truth["faces"], schemas.matrix_of(rows["bbox"], 4)
    assert [f["frame_idx"] for f in faces] == [k[1] for k in keys], "truth and faces.jsonl are in the same order"
    assert np.abs(np.array([f["bbox_xyxy"] for f in faces]) - boxes).max() < 1, "the boxes as well"
    return Scene(
        ep_id=ep_id,
        person=[f["person"] for f in faces],
        is_clean=np.array([f["clean"] for f in faces]),
        shot=[f.get("shot") or "any" for f in faces],
        raw_track=[k[0] for k in keys],
        frames=schemas.ints_of(rows, "frame_idx"),
        embeddings=schemas.embeddings_of(rows),
        norms=schemas.floats_of(rows, "norm"),
        boxes=boxes,
        size_px=schemas.floats_of(rows, "size_px") * _REFERENCE_LINES / info.height,
    )


def count_pairs(first: Sequence[Any], second: Sequence[Any]) -> NDArray[np.int64]:
    """How often each of the one comes with each of the other, shape (values of the one, values of the other)."""
    (rows, row), (columns, column) = (_encode(values) for values in (first, second))
    counts = np.zeros((rows, columns), np.int64)
    np.add.at(counts, (row, column), 1)
    return counts


def _encode(values: Sequence[Any]) -> tuple[int, NDArray[np.int64]]:
    codes: dict[Any, int] = {}
    coded = np.array([codes.setdefault(value, len(codes)) for value in values], np.int64)
    return len(codes), coded


def bcubed(counts: NDArray[np.int64]) -> tuple[float, float, float]:
    """B-cubed precision, recall and F of faces counted by person (rows) and cluster (columns)."""
    n_faces = counts.sum()
    squares = counts.astype(np.float64) ** 2
    precision = float((squares.sum(axis=0) / np.maximum(counts.sum(axis=0), 1)).sum() / n_faces)
    recall = float((squares.sum(axis=1) / np.maximum(counts.sum(axis=1), 1)).sum() / n_faces)
    return precision, recall, 2 * precision * recall / (precision + recall)


def score(scene: Scene, outcome: Outcome) -> dict[str, Any]:
    """The figures of one row of the table."""
    known = scene.known
    truth = [str(scene.person[i]) for i in known]
    found = [outcome.identity[i] for i in known]
    counts = count_pairs(truth, found)
    precision, recall, f = bcubed(counts)
    codes = _encode(found)[1]
    row: dict[str, Any] = {
        "P": precision,
        "R": recall,
        "F": f,
        "WCP": float(counts.max(axis=0).sum() / len(known)),
        "NMI": float(normalized_mutual_info_score(truth, codes)),
        "ARI": float(adjusted_rand_score(truth, codes)),
        "ids/people": f"{counts.shape[1]}/{counts.shape[0]}",
        "coverage": sum(c is not None for c in found) / len(known),
        "cut": outcome.cut,
        **_score_pieces(scene, outcome, known),
    }
    if outcome.person is not None:
        named = [outcome.person[i] for i in known]
        row["label_acc"] = sum(a == b for a, b in zip(named, truth, strict=True)) / len(known)
        row["label_wrong"] = sum(a is not None and a != b for a, b in zip(named, truth, strict=True)) / len(known)
    return row


def find_changes(scene: Scene, outcome: Outcome) -> tuple[list[int], list[int]]:
    """The faces before which a track changes person and is not cut, and those before which it is cut for nothing."""
    missed, false_cuts = [], []
    for track in scene.tracks(scene.known):
        for a, b in pairwise(track):
            is_cut, is_change = outcome.piece[a] != outcome.piece[b], scene.person[a] != scene.person[b]
            if is_change and not is_cut:
                missed.append(b)
            elif is_cut and not is_change:
                false_cuts.append(b)
    return missed, false_cuts


def _score_pieces(scene: Scene, outcome: Outcome, known: list[int]) -> dict[str, float | int]:
    counts = count_pairs([scene.person[i] for i in known], [outcome.piece[i] for i in known])
    missed, false_cuts = find_changes(scene, outcome)
    n_tracks = len(Counter(scene.raw_track[i] for i in known))
    return {
        "track purity": float(counts.max(axis=0).sum() / len(known)),
        "false splits/track": len(false_cuts) / n_tracks,
        "missed": len(missed),
    }
