"""What photos say against a merge undoes it, and never what a person said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import read_episode
from cleanup.edges.root_path import RootPath
from cleanup.episode import Episode
from cleanup.interfaces import PersonMatch
from cleanup.people import ShowState
from cleanup.phases.photo_matching import PhotoMatcher
from cleanup.phases.recluster import recluster
from cleanup.resolve_settings import resolve_for_run
from tests.builders import make_people, write_episode

SETTINGS = resolve_for_run({}, None, None).settings
# Two people who look alike, a and b, and four others, each in three tracks.
TRACKS = [(person,) for person in "abcdef" * 3]
LIKENESS = 0.40


class Photos:
    """One photo of each of some people, in memory."""

    def __init__(self, people: dict[str, NDArray[np.float64]]) -> None:
        self._people = people

    def match(self, show: str, model: str, centroids: NDArray[np.float32]) -> list[PersonMatch]:
        return [
            PersonMatch(i, name, name, float(vector @ centroid), None, 1)
            for i, centroid in enumerate(centroids)
            for name, vector in self._people.items()
        ]

    def read_show(self, show: str, model: str) -> ShowState:
        raise NotImplementedError


def people_of(names: str) -> dict[str, NDArray[np.float64]]:
    """The people of the episode; b is a mixture of a and somebody else."""
    vectors = dict(zip("abcdef", make_people(6), strict=True))
    mixed = LIKENESS * vectors["a"] + np.sqrt(1 - LIKENESS**2) * vectors["b"]
    return {name: mixed if name == "b" else vectors[name] for name in names}


@pytest.fixture
def episode(tmp_path: Path) -> Episode:
    read = read_episode(EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, "emitted", TRACKS)))
    faces, own = read.faces, people_of("abcdef")
    vectors = schemas.embeddings_of(faces).astype(np.float64)
    is_b = np.array([TRACKS[t - 1][0] == "b" for t in faces["track_id"].to_pylist()])
    vectors[is_b] += own["b"] - make_people(6)[1]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return read.replace(faces=schemas.set_column(faces, "embedding", list(vectors.astype(np.float32))))


def cluster(episode: Episode, names: str = "abcd") -> tuple[Episode, dict[str, Any]]:
    photos = PhotoMatcher(Photos(people_of(names)), "show", "tiny", SETTINGS.group_clusters)
    return recluster(episode, SETTINGS.recluster, SETTINGS.pooling, photos=photos)


def who_is_together(episode: Episode) -> set[str]:
    return {"".join(sorted({TRACKS[t - 1][0] for t in r["track_ids"]})) for r in episode.identities.to_pylist()}


def test_two_people_who_look_alike_are_parted_by_their_photos(episode: Episode) -> None:
    alone, report = recluster(episode, SETTINGS.recluster, SETTINGS.pooling)
    assert who_is_together(alone) == {"ab", "c", "d", "e", "f"}, "without photos they are one"
    assert report["partings"] == []

    parted, report = cluster(episode)

    assert who_is_together(parted) == set("abcdef")
    [parting] = report["partings"]
    assert sorted(map(sorted, parting["track_ids"])) == [[1, 7, 13], [2, 8, 14]]
    assert parting["person_id"] in ("a", "b")
    assert cluster(parted)[0].identities.equals(parted.identities), "a second run changes nothing"


def test_a_photo_of_one_of_them_alone_parts_nobody(episode: Episode) -> None:
    """The other one is near enough to the photo to be the same person."""
    assert "ab" in who_is_together(cluster(episode, "a")[0])


def test_photos_of_others_part_nobody(episode: Episode) -> None:
    assert who_is_together(cluster(episode, "cdef")[0]) == {"ab", "c", "d", "e", "f"}


def test_what_a_person_put_together_photos_do_not_part(episode: Episode) -> None:
    rows = episode.identities.to_pylist()
    for row in rows:
        if TRACKS[row["track_ids"][0] - 1][0] in "ab":
            row.update(person_id="anna", name="Anna", person_source=None)
    named = episode.replace(identities=schemas.build_table(rows, schemas.IDENTITY_SCHEMA))

    found, report = cluster(named)

    assert "ab" in who_is_together(found)
    assert report["partings"] == []
