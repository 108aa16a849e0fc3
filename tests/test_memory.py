"""Memory grows with the faces, not with their square: long tracks, full frames, everybody named; and where it ends."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from cleanup.algorithms.appearance_gate import GateSamples, GateThresholds, find_changes
from cleanup.algorithms.average_linkage import Conflicts, cluster_tracks
from cleanup.algorithms.embedding_pooling import find_views, pool_faces
from cleanup.algorithms.face_quality import AgreementScale, measure_agreement
from cleanup.algorithms.frame_pairs import find_frame_pairs
from cleanup.algorithms.seed_statistics import describe_seeds
from cleanup.algorithms.similarity_scale import measure_scale
from cleanup.errors import find_shortage
from cleanup.phases import recluster as recluster_phase
from tests.builders import artifacts_of, make_faces, make_people, write_episode
from tests.entrypoints.test_cli import cleanup

DIMENSION = 16
THRESHOLDS = GateThresholds(
    hard=0.5, soft=0.6, streak=3, min_iou=0.3, prototype_momentum=0.9, same_person=0.4, strangers=0.2, coherent=0.75
)


@contextmanager
def at_most(n_bytes: int) -> Iterator[None]:
    """What is done inside takes no more memory at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= n_bytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("n_faces", "noise"), [(20_000, 0.3), (4000, 3.0)])
def test_a_long_track_is_held_in_memory_linear_in_its_faces(n_faces: int, noise: float) -> None:
    """A matrix of all its pairs would take 3.2 GB, or 128 MB. With much noise every face proposes a change."""
    faces = make_faces(make_people(1, DIMENSION)[0], n_faces, noise).astype(np.float32)
    boxes, ones = np.tile([0.0, 0.0, 1.0, 1.0], (n_faces, 1)), np.ones(n_faces)

    with at_most(n_faces * 4096):
        pool_faces(faces, ones, max_samples=16, sim_delta=0.08, sim_min=0.6)
        find_views(faces[:1000], ones[:1000], min_similarity=0.7)
        measure_agreement(faces, ones, AgreementScale(0.2, 0.7))
        samples = GateSamples(faces, boxes, np.arange(n_faces) / 6, ones, np.full(n_faces, np.nan))
        find_changes(samples, THRESHOLDS)


def test_five_hundred_faces_in_each_frame_are_as_many_pairs_as_tracks_have() -> None:
    """40 frames of 500 are 5 million pairs of faces, and 124,750 of tracks."""
    frames, tracks = np.repeat(np.arange(40), 500), np.tile(np.arange(500), 40)
    boxes = np.stack([tracks * 30.0, tracks * 0.0, tracks * 30.0 + 25, tracks * 0.0 + 30], axis=1)
    embeddings = make_people(500)[tracks].astype(np.float32)

    with at_most(64 << 20):
        found = find_frame_pairs(frames, tracks, boxes, embeddings)

    assert len(found.tracks) == 500 * 499 // 2


def test_tracks_of_people_who_are_named_differently_are_no_pairs() -> None:
    """6,000 tracks of 30 people: 17 million pairs that must not be joined."""
    people = np.repeat(np.arange(30), 200)
    vectors = make_people(30)[people]
    conflicts = Conflicts(np.zeros((0, 2), np.int64), people)

    with at_most(200 << 20):
        labels = cluster_tracks(vectors, 0.5, conflicts).labels

    assert len(np.unique(labels)) == 30
    assert conflicts.count() == 6000**2 // 2 - 30 * 200**2 // 2


def test_the_scale_is_measured_on_so_many_tracks_and_no_more() -> None:
    """A matrix of all pairs of 50,000 tracks would take 20 GB."""
    vectors = make_people(50_000, DIMENSION).astype(np.float32)
    together = np.stack([np.arange(49_999), np.arange(1, 50_000)], axis=1)

    with at_most(250 << 20):
        scale = measure_scale(vectors, together)

    assert scale.source == "episode"


def test_seeds_are_compared_in_blocks() -> None:
    people = [f"p{i // 10}" for i in range(8000)]
    vectors = list(make_people(8000, DIMENSION).astype(np.float32))

    with at_most(64 << 20):
        found = describe_seeds(people, vectors)["most_alike"]

    everything = np.stack(vectors) @ np.stack(vectors).T
    everything[np.array(people)[:, None] == np.array(people)] = -1
    i, j = np.unravel_index(int(everything.argmax()), everything.shape)
    assert found == {"people": sorted([people[i], people[j]]), "similarity": round(float(everything.max()), 4)}


def test_the_medoid_is_that_of_the_matrix_of_all_pairs() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        faces = np.concatenate([make_faces(p, 12, 0.9, seed + i) for i, p in enumerate(make_people(2, 8, seed))])
        quality = rng.uniform(0.1, 1.0, len(faces))
        similarity = faces @ faces.T
        to_medoid = similarity[int(np.argmax((similarity @ quality).round(9)))]
        kept = np.flatnonzero((to_medoid >= 0.6) | (to_medoid >= np.median(to_medoid) - 0.08))

        pooled = pool_faces(faces, quality, max_samples=len(faces), sim_delta=0.08, sim_min=0.6)

        assert pooled.used.tolist() == kept.tolist()


def _raised_by_arrow() -> None:
    pa.allocate_buffer(1 << 60)


def _raised_by_numpy() -> None:
    np.empty(1 << 60, np.uint8)


def _raised_by_opencv() -> None:
    cv2.copyMakeBorder(np.zeros((1, 1), np.uint8), 0, 2**31 - 2, 0, 2**31 - 2, cv2.BORDER_REFLECT)


@pytest.mark.parametrize("allocate", [_raised_by_arrow, _raised_by_numpy, _raised_by_opencv])
def test_an_allocation_that_fails_is_known_whoever_tried(allocate: object) -> None:
    with pytest.raises(Exception) as caught:
        allocate()  # type: ignore[operator]

    assert str(find_shortage(caught.value)).startswith("not enough memory (")


def test_a_run_that_gets_no_memory_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ep_id = write_episode(tmp_path, "documented", (("a", "b"), ("a",)))
    before = artifacts_of(tmp_path, ep_id)
    monkeypatch.setattr(recluster_phase, "cluster_tracks", lambda *_: _raised_by_numpy())

    arguments = ("run", "--ep-id", ep_id, "--out-root", tmp_path, "--actions", "recluster", "--write-back", "-q")
    result = cleanup(*arguments, code=1)

    [line] = result.stderr.splitlines()
    assert line.startswith("cleanup: not enough memory (Unable to allocate") and line.endswith(
        "no file is half written"
    )
    assert artifacts_of(tmp_path, ep_id) == before
    progress = json.loads((tmp_path / "manifests" / ep_id / "cleanup_progress.json").read_bytes())
    assert progress["phase"] == "failed" and progress["error"].startswith("not enough memory")
