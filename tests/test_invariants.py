"""What must hold for any episode: nothing lost, conflicts and locks kept, order without meaning, a second run idle."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import read_episode
from cleanup.edges.root_path import RootPath
from cleanup.phases.identity_rows import find_shared_frames
from tests.builders import read_lines, write_episode
from tests.entrypoints.test_cli import artifacts, cleanup

TRACKS = st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3), min_size=1, max_size=6)
PLACES = st.sets(st.integers(0, 5), max_size=3)
EXAMPLES = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def clean(root: Path, ep_id: str, *options: str) -> None:
    cleanup(
        "run", "--ep-id", ep_id, "--out-root", root, "--actions", "split_tracks", "recluster", "--write-back", *options
    )


def partition(root: Path, ep_id: str) -> set[frozenset[str]]:
    document = json.loads((root / "manifests" / ep_id / "identities.json").read_text())
    return {frozenset(map(str, i["track_ids"])) for i in document["identities"]}


@EXAMPLES
@given(TRACKS, PLACES, PLACES, st.sampled_from(["documented", "emitted"]))
def test_nothing_is_lost_and_conflicts_and_locks_hold(
    people: list[list[str]], together: set[int], locked: set[int], dialect: str
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        ep_id = write_episode(root, dialect, people, together=together, locked=locked)
        manifests = root / "manifests" / ep_id
        before = {name: read_lines(manifests / name) for name in ("tracks.jsonl", "faces.jsonl")}

        clean(root, ep_id)

        tracks, faces = read_lines(manifests / "tracks.jsonl"), read_lines(manifests / "faces.jsonl")
        assert {str(t["track_id"]) for t in before["tracks.jsonl"]} <= {str(t["track_id"]) for t in tracks}
        assert [f["face_id"] for f in faces] == [f["face_id"] for f in before["faces.jsonl"]]
        owned = [t for group in partition(root, ep_id) for t in group]
        assert sorted(owned) == sorted(str(t["track_id"]) for t in tracks)
        episode = read_episode(EpisodePaths(RootPath(root), ep_id))
        identity = {t: r["identity_id"] for r in episode.identities.to_pylist() for t in r["track_ids"]}
        split = {t["parent_track_id"] for t in tracks if t.get("parent_track_id")}
        for a, b in find_shared_frames(episode):
            assert identity[a] != identity[b]
        parents = {r["track_id"]: r["parent_track_id"] or r["track_id"] for r in episode.tracks.to_pylist()}
        for row in episode.identities.to_pylist():
            if row["is_locked"]:
                assert {parents[t] for t in row["track_ids"]} <= {i + 1 for i in locked}
                assert len(row["track_ids"]) == 1 or split


@EXAMPLES
@given(TRACKS, PLACES, PLACES, st.sampled_from(["documented", "emitted"]))
def test_a_second_run_changes_nothing(
    people: list[list[str]], together: set[int], locked: set[int], dialect: str
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        ep_id = write_episode(root, dialect, people, together=together, locked=locked)
        clean(root, ep_id)
        before = artifacts(root)

        clean(root, ep_id)

        assert artifacts(root) == before


@EXAMPLES
@given(TRACKS, PLACES, st.integers(0, 1000), st.sampled_from(["documented", "emitted"]))
def test_the_order_of_lines_means_nothing(people: list[list[str]], together: set[int], seed: int, dialect: str) -> None:
    found = []
    for order_seed in (None, seed):
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch)
            ep_id = write_episode(root, dialect, people, together=together, order_seed=order_seed)
            clean(root, ep_id)
            tracks = {str(t["track_id"]): t for t in read_lines(root / "manifests" / ep_id / "tracks.jsonl")}
            found.append((partition(root, ep_id), {k: sorted(v) for k, v in tracks.items()}))

    assert found[0] == found[1]
