"""Who is who across episodes: the same from whatever side, and never against what a human said."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from cleanup.algorithms.facebank_matching import MatchLimits
from cleanup.algorithms.person_linking import Link, link_people
from cleanup.algorithms.similarity_scale import SimilarityScale
from cleanup.people import HUMAN, NONE, PERSON, SEED, Key, ShowCluster
from tests.builders import make_faces, make_people

PEOPLE = make_people(4, 32)
NAMES = {"lisa": "Lisa", "max": "Max", "unknown-0001": "unknown-0001", "unknown-0002": "unknown-0002"}
UNKNOWN_IDS = frozenset({"unknown-0001", "unknown-0002"})


def cluster(ep_id: str, number: int, person: int, **values: Any) -> ShowCluster:
    vector = make_faces(PEOPLE[person], 1, 0.4, seed=10 * number + len(ep_id))[0].astype(np.float32)
    fields = {"vectors": vector[None], "n_faces": 10, "is_solid": True, "person_id": None, "source": NONE, **values}
    return ShowCluster(ep_id, f"id_{number}", **fields)


def link(clusters: Sequence[ShowCluster], next_number: int = 3) -> dict[Key, Link]:
    return link_people(clusters, NAMES, UNKNOWN_IDS, next_number, MatchLimits(0.6, 0.1, 0.0, SimilarityScale()))


def people_of(links: dict[Key, Link]) -> dict[Key, str | None]:
    return {key: found.person_id for key, found in links.items()}


def test_a_person_named_in_one_episode_is_found_in_another() -> None:
    links = link([cluster("e1", 1, 0, person_id="lisa", source=HUMAN), cluster("e2", 2, 0), cluster("e2", 3, 1)])

    assert people_of(links) == {("e2", "id_2"): "lisa", ("e2", "id_3"): "unknown-0003"}


def test_clusters_of_one_unknown_person_get_one_id_in_any_order() -> None:
    clusters = [cluster("e1", 1, 0), cluster("e1", 2, 1), cluster("e2", 3, 1), cluster("e3", 4, 0)]

    results = {tuple(sorted(people_of(link(order)).items())) for order in permutations(clusters)}

    [found] = results
    ids = dict(found)
    assert ids["e1", "id_1"] == ids["e3", "id_4"] == "unknown-0003"
    assert ids["e1", "id_2"] == ids["e2", "id_3"] == "unknown-0004"


def test_an_unknown_person_keeps_the_id_most_of_its_faces_had() -> None:
    links = link(
        [
            cluster("e1", 1, 0, person_id="unknown-0001", source=PERSON, n_faces=10),
            cluster("e2", 2, 0, person_id="unknown-0002", source=PERSON, n_faces=30),
            cluster("e3", 3, 0),
        ]
    )

    assert set(people_of(links).values()) == {"unknown-0002"}


def test_identities_seen_in_one_frame_stay_apart() -> None:
    a = cluster("e1", 1, 0, shares_frames_with=frozenset({"id_2"}))
    b = cluster("e1", 2, 0, shares_frames_with=frozenset({"id_1"}))

    assert len(set(people_of(link([a, b])).values())) == 2

    named = people_of(link([cluster("e2", 3, 0, person_id="lisa", source=SEED), a, b]))
    assert sorted(map(str, named.values())) == ["None", "lisa"]


@pytest.mark.parametrize("source", [HUMAN, SEED])
def test_a_rejected_person_is_never_found_again(source: str) -> None:
    links = link(
        [cluster("e1", 1, 0, person_id="lisa", source=source), cluster("e2", 2, 0, rejected=frozenset({"lisa"}))]
    )

    assert people_of(links) == {("e2", "id_2"): "unknown-0003"}
    best = links["e2", "id_2"].decision.best
    assert best is None or best.person_id != "lisa"


def test_what_a_human_took_out_of_an_unknown_person_does_not_come_back() -> None:
    links = link(
        [
            cluster("e1", 1, 0, person_id="unknown-0001", source=PERSON),
            cluster("e2", 2, 0, rejected=frozenset({"unknown-0001"})),
        ]
    )

    assert people_of(links) == {("e1", "id_1"): "unknown-0001", ("e2", "id_2"): "unknown-0003"}


def test_a_poor_identity_may_be_somebody_known_but_is_not_taken_for_another_unknown_one() -> None:
    links = link(
        [
            cluster("e1", 1, 0, person_id="lisa", source=SEED),
            cluster("e2", 2, 0, is_solid=False),
            cluster("e2", 3, 1, is_solid=False),
            cluster("e3", 4, 1),
            cluster("e3", 5, 2, is_solid=False, is_seen=False),
        ]
    )

    assert people_of(links) == {
        ("e2", "id_2"): "lisa",
        ("e2", "id_3"): "unknown-0003",
        ("e3", "id_4"): "unknown-0004",
        ("e3", "id_5"): None,
    }


def test_a_face_between_two_people_is_nobody() -> None:
    between = (PEOPLE[0] + PEOPLE[1]) / np.sqrt(2)
    open_one = cluster("e2", 3, 0, vectors=between[None].astype(np.float32))
    links = link(
        [
            cluster("e1", 1, 0, person_id="lisa", source=SEED, vectors=PEOPLE[:1].astype(np.float32)),
            cluster("e1", 2, 1, person_id="max", source=SEED, vectors=PEOPLE[1:2].astype(np.float32)),
            open_one,
        ]
    )

    assert links[open_one.key].person_id is None
    assert links[open_one.key].decision.status == "ambiguous"
