"""Decides which people the identities of a show's episodes are, beside what seeds and humans said.

The result depends on the clusters alone, not on the order in which episodes came: every call looks at all of them. Only
the numbers of unknown people keep what they were given first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cleanup.algorithms.average_linkage import Conflicts, cluster_tracks
from cleanup.algorithms.facebank_matching import (
    ASSIGNED,
    MatchDecision,
    MatchLimits,
    PersonSimilarity,
    decide_match,
)
from cleanup.people import HUMAN, SEED, Key, ShowCluster, format_unknown_id


@dataclass(frozen=True)
class Link:
    """What was decided for one cluster that was open.

    Attributes:
        person_id: The person, or None.
        decision: The comparison with the known people of other clusters.
        is_conflict: Whether the nearest person is seen beside it in the same frame.
    """

    person_id: str | None
    decision: MatchDecision
    is_conflict: bool = False


def link_people(
    clusters: Sequence[ShowCluster],
    names: Mapping[str, str],
    unknown_ids: frozenset[str],
    next_number: int,
    limits: MatchLimits,
) -> dict[Key, Link]:
    """Who each open cluster is: a person whom seeds or humans know in some episode, an unknown one, or nobody.

    Args:
        clusters: All identities of the show, made with one model.
        names: Name of every person of the show.
        unknown_ids: The ids among them that stand for people without a name.
        next_number: First number for new unknown people.
        limits: From where two clusters are one person.
    """
    ordered = sorted(clusters, key=lambda c: c.key)
    is_given = [c.source in (SEED, HUMAN) and c.person_id is not None for c in ordered]
    given = [c for c, fixed in zip(ordered, is_given, strict=True) if fixed]
    open_clusters = [c for c, fixed in zip(ordered, is_given, strict=True) if not fixed]
    links = _match_known(open_clusters, given, names, limits)
    # Whoever comes near a known person and is not named is for a human to decide, not an unknown person.
    rest = [c for c in open_clusters if c.is_seen and _best(links[c.key].decision) < limits.similarity]
    for cluster, person_id in _group_unknown(rest, unknown_ids, next_number, limits.similarity).items():
        links[cluster] = Link(person_id, links[cluster].decision)
    return links


def _match_known(
    open_clusters: Sequence[ShowCluster],
    given: Sequence[ShowCluster],
    names: Mapping[str, str],
    limits: MatchLimits,
) -> dict[Key, Link]:
    """Matches with known people, the most similar first, so that of two that share a frame the better one gets it.

    Clusters that are no person by themselves come last.
    """
    compare = _compare_with(given)
    decisions = {}
    for cluster in open_clusters:
        people = [
            PersonSimilarity(person_id, names.get(person_id, person_id), similarity)
            for person_id, similarity in compare(cluster)
            if person_id not in cluster.rejected
        ]
        decisions[cluster.key] = decide_match(people, limits)
    holders: dict[tuple[str, str], set[str]] = defaultdict(set)
    for cluster in given:
        assert cluster.person_id is not None
        holders[cluster.ep_id, cluster.person_id].add(cluster.identity_id)
    links = {}
    by_similarity = sorted(open_clusters, key=lambda c: (not c.is_seen, -_best(decisions[c.key]), c.key))
    for cluster in by_similarity:
        decision = decisions[cluster.key]
        if decision.status != ASSIGNED or decision.best is None:
            links[cluster.key] = Link(None, decision)
            continue
        held = holders[cluster.ep_id, decision.best.person_id]
        if held & cluster.shares_frames_with:
            links[cluster.key] = Link(None, decision, is_conflict=True)
            continue
        held.add(cluster.identity_id)
        links[cluster.key] = Link(decision.best.person_id, decision)
    return links


def _best(decision: MatchDecision) -> float:
    return decision.best.similarity if decision.best is not None else -1.0


def _compare_with(given: Sequence[ShowCluster]) -> Callable[[ShowCluster], list[tuple[str, float]]]:
    """A function that gives the highest cosine between any vector of a cluster and any of each person's clusters."""
    if not given:
        return lambda _: []
    by_person = sorted(given, key=lambda c: str(c.person_id))
    owners = [str(c.person_id) for c in by_person for _ in c.vectors]
    people = sorted(set(owners))
    starts = np.searchsorted(owners, people)
    vectors = np.concatenate([c.vectors for c in by_person])

    def compare(cluster: ShowCluster) -> list[tuple[str, float]]:
        similarity = (vectors @ cluster.vectors.T).max(axis=1)
        return list(zip(people, np.maximum.reduceat(similarity, starts).tolist(), strict=True))

    return compare


def _group_unknown(
    clusters: Sequence[ShowCluster], unknown_ids: frozenset[str], next_number: int, min_similarity: float
) -> dict[Key, str]:
    """The id of each unknown person: clusters of poor faces stay by themselves, the others are grouped."""
    if not clusters:
        return {}
    labels = _group_solid([c for c in clusters if c.is_solid], min_similarity)
    for cluster in clusters:
        labels.setdefault(cluster.key, len(labels))
    claims: dict[tuple[int, str], int] = defaultdict(int)
    rejected: dict[int, set[str]] = defaultdict(set)
    for cluster in clusters:
        rejected[labels[cluster.key]] |= cluster.rejected
        if cluster.person_id in unknown_ids:
            claims[labels[cluster.key], cluster.person_id] += cluster.n_faces
    id_of: dict[int, str] = {}
    taken: set[str] = set()
    for (label, person_id), _ in sorted(claims.items(), key=lambda c: (-c[1], c[0][1], c[0][0])):
        if label not in id_of and person_id not in taken and person_id not in rejected[label]:
            id_of[label] = person_id
            taken.add(person_id)
    for cluster in clusters:
        if labels[cluster.key] not in id_of:
            id_of[labels[cluster.key]] = format_unknown_id(next_number)
            next_number += 1
    return {cluster.key: id_of[labels[cluster.key]] for cluster in clusters}


def find_seen_together(clusters: Sequence[ShowCluster]) -> list[tuple[int, int]]:
    """Index pairs of clusters that share a frame; each stands there from both sides."""
    place = {cluster.key: i for i, cluster in enumerate(clusters)}
    return [
        (i, place[cluster.ep_id, other])
        for i, cluster in enumerate(clusters)
        for other in cluster.shares_frames_with
        if (cluster.ep_id, other) in place
    ]


def _group_solid(clusters: Sequence[ShowCluster], min_similarity: float) -> dict[Key, int]:
    """Clusters of one person have one label."""
    if not clusters:
        return {}
    pairs = find_seen_together(clusters)
    # What a human took out of an unknown person stays apart from those who are in it.
    members: dict[str | None, list[int]] = defaultdict(list)
    for j, cluster in enumerate(clusters):
        members[cluster.person_id].append(j)
    pairs += [
        (i, j) for i, cluster in enumerate(clusters) for person_id in cluster.rejected for j in members[person_id]
    ]
    centroids = np.stack([cluster.vectors[0] for cluster in clusters])
    labels = cluster_tracks(centroids, min_similarity, Conflicts.of(pairs)).labels
    return {cluster.key: int(label) for cluster, label in zip(clusters, labels, strict=True)}
