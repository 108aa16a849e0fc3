"""The container of a video does not matter to the result, on the few that tell most; tests.bench.containers has more."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.bench.containers import EP, FPS, KINDS, Kind, Run, first_frames, run, run_kind
from tests.builders import artifacts_of, read_lines
from tests.videos import read_packets

pytestmark = [pytest.mark.shared, pytest.mark.slow, pytest.mark.xdist_group("containers")]
# From the third shot on, because some files lack the first frames.
START, SECONDS = 72, 20


@pytest.fixture(scope="module")
def episode(shared: Path) -> tuple[bytes, range]:
    """The beginning of an mp4, and the frames of it whose tracks are looked at."""
    data = first_frames((shared / "data" / "videos" / EP / "episode.mp4").read_bytes(), SECONDS * FPS)
    return data, range(START, sum(1 for _ in read_packets(data)))


@pytest.fixture(scope="module")
def mp4(episode: tuple[bytes, range], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Cleanup of the mp4 itself."""
    return run_kind(tmp_path_factory.mktemp("mp4") / "data", Kind(lambda data: data), *episode)


def find_identities(done: Run) -> set[frozenset[int]]:
    """The tracks of each identity."""
    document = json.loads((done.root / "manifests" / EP / "identities.json").read_text())
    return {frozenset(identity["track_ids"]) for identity in document["identities"]}


def read_embeddings(done: Run) -> tuple[list[tuple[int, int]], NDArray[np.float32]]:
    """Track and frame of each face, counted from the first one's, and the embeddings."""
    faces = [face for face in read_lines(done.root / "manifests" / EP / "faces.jsonl") if face.get("embedding")]
    first = min(face["frame_idx"] for face in faces)
    keys = [(face["track_id"], face["frame_idx"] - first) for face in faces]
    return keys, np.load(done.root / "embeds" / EP / "faces.npy")


def check_same(done: Run, mp4: Run, min_similarity: float) -> None:
    """The same identities, and embeddings of the same faces at least so near."""
    assert done.report is not None, done.message
    assert find_identities(done) == find_identities(mp4)
    (keys, rows), (expected_keys, expected) = read_embeddings(done), read_embeddings(mp4)
    assert keys == expected_keys
    assert (rows * expected).sum(axis=1).min() >= min_similarity


def test_the_reference_tells_people_apart(mp4: Run) -> None:
    assert mp4.f >= 0.99
    assert len(find_identities(mp4)) >= 3


def test_a_stream_whose_frames_are_counted_gives_the_same_bytes(
    episode: tuple[bytes, range], mp4: Run, tmp_path: Path
) -> None:
    done = run_kind(tmp_path / "data", KINDS["ts"], *episode)

    assert done.report is not None
    assert any("counted by decoding" in warning for warning in done.report["warnings"])
    assert artifacts_of(done.root, EP) == artifacts_of(mp4.root, EP)


def test_a_file_that_begins_between_key_frames_gives_the_same(
    episode: tuple[bytes, range], mp4: Run, tmp_path: Path
) -> None:
    done = run_kind(tmp_path / "data", KINDS["mkv cut between key frames"], *episode)

    check_same(done, mp4, 0.9999)


def test_a_picture_that_is_shown_turned_gives_the_same(episode: tuple[bytes, range], mp4: Run, tmp_path: Path) -> None:
    done = run_kind(tmp_path / "data", KINDS["matrix of 90, shown"], *episode)

    check_same(done, mp4, 0.9)
    assert done.report is not None
    assert done.report["video"]["is_turned"]


def test_a_shift_is_refused_with_its_size_and_makes_no_difference_where_it_is_given(
    episode: tuple[bytes, range], mp4: Run, tmp_path: Path
) -> None:
    refused = run_kind(tmp_path / "data", KINDS["3 frames lost"], *episode)
    before = artifacts_of(refused.root, EP)
    done = run(refused.root, refused.truth, "--frame-shift", "-3")

    assert refused.report is None
    assert "its frames are shifted by -3 against" in refused.message
    assert "--frame-shift -3" in refused.message
    assert artifacts_of(done.root, EP) != before
    check_same(done, mp4, 0.9999)
