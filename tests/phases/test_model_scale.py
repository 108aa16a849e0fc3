"""The model's scale as an episode shows it."""

from __future__ import annotations

from pathlib import Path

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import read_episode
from cleanup.edges.root_path import RootPath
from cleanup.phases.model_scale import measure_face_scale
from tests.builders import write_episode


def test_of_equally_good_faces_the_order_of_lines_decides_nothing(tmp_path: Path) -> None:
    people = [(person,) for person in "abcdeabfcd"]
    found = set()
    for seed in (None, 1, 2, 3):
        root = tmp_path / str(seed)
        ep_id = write_episode(root, "emitted", people, together=range(1, 10, 2), order_seed=seed)
        found.add(measure_face_scale(read_episode(EpisodePaths(RootPath(root), ep_id))))

    assert len(found) == 1
    assert found.pop().source == "episode"
