"""Pieces are cut where the person changes, and every box and face ends up in exactly one of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cleanup import schemas
from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import read_episode
from cleanup.edges.root_path import RootPath
from cleanup.episode import Episode
from cleanup.phases.split_tracks import split_tracks
from cleanup.settings import SplitTracksSettings
from tests.builders import write_episode


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Episode]:
    def make(*people: tuple[str, ...]) -> Episode:
        return read_episode(EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, "emitted", people)))

    return make


def pieces_of(episode: Episode, parent: int) -> list[dict[str, Any]]:
    return [r for r in episode.tracks.to_pylist() if parent in (r["track_id"], r["parent_track_id"])]


def test_pieces_are_numbered_in_time_order_after_the_highest_id(load: Callable[..., Episode]) -> None:
    before = load(("a", "b"), ("c",), ("c", "a", "b"))

    after, report = split_tracks(before, SplitTracksSettings())

    fresh = [(r["track_id"], r["parent_track_id"]) for r in after.tracks.to_pylist() if r["parent_track_id"]]
    assert fresh == [(4, 1), (5, 3), (6, 3)]
    assert report["splits"] == {"hard": 3, "streak": 0, "iou": 0, "total": 3}
    assert (report["tracks_split"], report["new_tracks_created"]) == (2, 3)


def test_every_box_and_face_is_in_exactly_one_piece(load: Callable[..., Episode]) -> None:
    before = load(("a", "b", "a"))

    after, _ = split_tracks(before, SplitTracksSettings())

    for table in ("boxes", "faces"):
        old, new = getattr(before, table), getattr(after, table)
        assert sorted(old["frame_idx"].to_pylist()) == sorted(new["frame_idx"].to_pylist())
    spans = {r["track_id"]: (r["first_frame"], r["last_frame"]) for r in pieces_of(after, 1)}
    ordered = sorted(spans.values())
    assert all(a[1] < b[0] for a, b in pairwise(ordered))
    for row in after.faces.to_pylist():
        first, last = spans[row["track_id"]]
        assert first <= row["frame_idx"] <= last
    assert sum(r["n_boxes"] for r in pieces_of(after, 1)) == pieces_of(before, 1)[0]["n_boxes"]


def test_the_pieces_stay_with_their_parents_identity(load: Callable[..., Episode]) -> None:
    after, _ = split_tracks(load(("a", "b"), ("c",)), SplitTracksSettings())

    assert [r["track_ids"] for r in after.identities.to_pylist()] == [[1, 3], [2]]


def test_a_gate_that_is_off_splits_nothing(load: Callable[..., Episode]) -> None:
    before = load(("a", "b"))

    after, report = split_tracks(before, SplitTracksSettings(gate_enabled=False))

    assert after is before
    assert report["splits"]["total"] == 0


@pytest.mark.parametrize("confidence", [0.5, 0.9])
def test_half_a_second_of_somebody_is_a_piece_however_sure_the_detector_was(
    load: Callable[..., Episode], confidence: float
) -> None:
    """The last three samples are somebody else, and nobody else is in the episode to learn from."""
    episode = load(("a", "b"))
    last = sorted(episode.faces["frame_idx"].to_pylist())[14]
    keep = [f <= last for f in episode.faces["frame_idx"].to_pylist()]
    boxes = [
        r | {"confidence": confidence if r["frame_idx"] > 44 else 0.9}
        for r in episode.boxes.to_pylist()
        if r["frame_idx"] <= last
    ]
    episode = episode.replace(faces=episode.faces.filter(keep), boxes=schemas.build_table(boxes, schemas.BOX_SCHEMA))

    after, report = split_tracks(episode, SplitTracksSettings())

    assert len(pieces_of(after, 1)) == 2
    assert [d["split"] for d in report["decisions"]] == [True]
    assert report["thresholds"]["scale"] == {"strangers": 0.0, "source": "assumed", "pairs": 0}
