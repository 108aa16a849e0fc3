"""A shift between artifacts and video is told by the faces, and by nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import read_episode
from cleanup.edges.root_path import RootPath
from cleanup.interfaces import VideoInfo, VideoSource, VideoView
from cleanup.phases.video_fit import (
    N_PARTS,
    NEAR_SHIFTS,
    Probes,
    build_table,
    choose_probes,
    find_shifts,
    is_better,
    measure_costs,
)
from tests.builders import write_episode

SHIFTS = range(-5, 6)


def make_probes(n_faces: int = 24, *, first_frame: int = 100) -> Probes:
    return Probes(
        frames=first_frame + 40 * np.arange(n_faces),
        boxes=np.tile([100.0, 50.0, 140.0, 90.0], (n_faces, 1)),
        landmarks=np.full((n_faces, 10), np.nan),
        embeddings=np.eye(n_faces, 64, dtype=np.float32),
        parts=np.arange(n_faces) * N_PARTS // n_faces,
    )


def make_video(*, n_frames: int = 2000, shift: int = 0) -> VideoInfo:
    return VideoInfo(VideoSource("v.mp4", VideoView(shift)), 640, 360, n_frames, 25.0, n_frames / 25)


def costs_at(
    true_shift: int | list[int], probes: Probes, *, noise: float = 0.002, slope: float = 0.01, seed: int = 0
) -> NDArray[np.float64]:
    """Costs that grow with the distance from the true shift of each part."""
    shifts = np.array([true_shift] * N_PARTS if isinstance(true_shift, int) else true_shift)[probes.parts]
    distance = np.abs(np.array(SHIFTS)[None] - shifts[:, None])
    return slope * distance + np.random.default_rng(seed).uniform(0, noise, distance.shape)


@pytest.mark.parametrize("shift", [-4, -1, 0, 1, 3])
def test_the_shift_of_all_faces_is_found(shift: int) -> None:
    probes = make_probes()

    (finding,) = find_shifts(probes, costs_at(shift, probes), SHIFTS)

    assert (finding.shift, finding.first_frame, finding.last_frame) == (shift, 100, 100 + 40 * 23)
    assert finding.cost < 0.01


def test_faces_that_look_alike_at_all_shifts_tell_none() -> None:
    probes = make_probes()

    for seed in range(20):
        (finding,) = find_shifts(probes, costs_at(2, probes, slope=0.0, noise=0.02, seed=seed), SHIFTS)
        assert finding.shift == 0


def test_frames_that_are_missing_in_the_middle_are_seen_part_by_part() -> None:
    probes = make_probes()

    findings = find_shifts(probes, costs_at([0, 0, 4], probes), SHIFTS)

    assert [f.shift for f in findings] == [0, 0, 4]
    assert findings[2].first_frame == probes.frames[probes.parts == 2].min()


def test_a_part_that_cannot_tell_does_not_speak_against_the_others() -> None:
    probes = make_probes()
    costs = costs_at(3, probes)
    costs[probes.parts == 1] = 0.02

    (finding,) = find_shifts(probes, costs, SHIFTS)

    assert finding.shift == 3


def test_faces_that_were_not_looked_at_count_for_nothing() -> None:
    probes = make_probes()
    costs = costs_at(2, probes)
    costs[::2, list(SHIFTS).index(0)] = np.nan

    (finding,) = find_shifts(probes, costs, SHIFTS)

    assert finding.shift == 2
    assert not is_better(np.full(5, np.nan), np.full(5, np.nan))


def test_a_trifle_is_not_better_however_many_agree() -> None:
    assert not is_better(np.full(24, 0.100), np.full(24, 0.104))
    assert is_better(np.full(24, 0.100), np.full(24, 0.2))
    assert not is_better(np.full(3, 0.0), np.full(3, 1.0)), "three faces may be chance"


def test_only_frames_of_the_video_are_looked_at() -> None:
    probes = make_probes(3, first_frame=0)

    table = build_table(probes, make_video(n_frames=82), NEAR_SHIFTS, is_detected=False, is_normalised=False)
    shifted = build_table(probes, make_video(n_frames=82, shift=2), NEAR_SHIFTS, is_detected=False, is_normalised=False)

    assert sorted(set(table["frame_idx"].to_pylist())) == [0, 1, 2, *range(38, 43), 78, 79, 80, 81]
    assert min(shifted["frame_idx"].to_pylist()) == -2 and max(shifted["frame_idx"].to_pylist()) == 79


def test_shares_of_the_picture_become_its_pixels() -> None:
    probes = replace(make_probes(3), boxes=np.tile([0.25, 0.5, 0.5, 0.75], (3, 1)))

    table = build_table(probes, make_video(), [0], is_detected=True, is_normalised=True)

    assert schemas.matrix_of(table["bbox"], 4).tolist() == [[160, 180, 320, 270]] * 3


def test_what_the_detector_finds_beside_all_faces_alike_is_no_distance() -> None:
    """Another detector puts landmarks elsewhere; only what differs from face to face tells."""
    probes = make_probes(6)
    table = build_table(probes, make_video(), [0], is_detected=True, is_normalised=False)
    landmarks = np.tile([120.0, 80.0], (6, 5))
    landmarks[5] += 8.0
    seen = schemas.set_column(table, "landmarks", schemas.list_column(landmarks, schemas.LANDMARKS))

    costs = measure_costs(probes, make_video(), 1, seen, is_detected=True, is_normalised=False)

    assert costs[:5, 0].tolist() == [0.0] * 5
    assert costs[5, 0] == pytest.approx(np.hypot(8, 8) / 40)


def test_probes_are_of_many_tracks_and_of_all_parts(tmp_path: Path) -> None:
    ep_id = write_episode(tmp_path, "emitted", [("a",), ("b",)] * 15)
    episode = read_episode(EpisodePaths(RootPath(tmp_path), ep_id))

    probes = choose_probes(episode)

    assert len(probes) == 24
    assert np.bincount(probes.parts).tolist() == [8, 8, 8]
    assert len(set((probes.frames // 68).tolist())) >= 20, "a track lasts 45 frames, and 68 later the next begins"


def test_an_episode_without_embeddings_has_no_probes(tmp_path: Path) -> None:
    ep_id = write_episode(tmp_path, "emitted")
    episode = read_episode(EpisodePaths(RootPath(tmp_path), ep_id))

    assert len(choose_probes(episode.replace(faces=episode.faces.slice(0, 0)))) == 0
