"""Phase 4, across episodes: identities without a seed become people of other episodes, or unknown people."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from cleanup.algorithms.embedding_pooling import Centroid, PooledTrack, find_views
from cleanup.algorithms.facebank_matching import UNKNOWN, MatchDecision, MatchLimits
from cleanup.algorithms.person_linking import Link, find_seen_together, link_people
from cleanup.algorithms.similarity_scale import ASSUMED, SimilarityScale, measure_scale
from cleanup.errors import FacebankError
from cleanup.names import check_person_name, fold_name
from cleanup.people import (
    HUMAN,
    NONE,
    PERSON,
    SEED,
    ClusterRecord,
    GroupingPlan,
    ShowCluster,
    ShowState,
    find_rejected,
    make_person_id,
)
from cleanup.phases.identity_rows import FACEBANK_SOURCE, PERSON_SOURCE, find_companions, is_human_named
from cleanup.phases.photo_matching import make_limits
from cleanup.settings import GroupClustersSettings

Row = dict[str, Any]
# Tracks this alike, on the model's scale, show a person from one side.
_SAME_VIEW_POSITION = 0.70
_UNKNOWN_ID = re.compile(r"unknown-(\d+)")


@dataclass
class EpisodeLinker:
    """Links the identities of one episode with those of the show's other episodes.

    Attributes:
        show: The show.
        ep_id: The episode.
        model: Recogniser of the vectors.
        state: What is known about the show.
        settings: Thresholds.
        pooled: Vector of every track that has one.
        n_faces: Faces with an embedding by track.
        n_seen: Faces by track, with an embedding or without.
        shared: Pairs of tracks that share a frame.
        scale: The model's scale in this episode.
        doubtful: Identities that come near a known person without being named, or may be another identity seen a second
            time; they found no unknown person.
    """

    show: str
    ep_id: str
    model: str
    state: ShowState
    settings: GroupClustersSettings
    pooled: Mapping[int, PooledTrack]
    n_faces: Mapping[int, int]
    n_seen: Mapping[int, int]
    shared: Collection[tuple[int, int]]
    scale: SimilarityScale
    doubtful: frozenset[str] = frozenset()

    def link(self, rows: Sequence[Row], centroids: Mapping[str, Centroid]) -> dict[tuple[str, str], Link]:
        """Who each identity of the show is: given by seeds and humans, or found by comparing episodes."""
        companions = find_companions(rows, self.shared)
        own = [
            replace(
                self._describe(row, centroids[row["identity_id"]], companions),
                person_id=self._given_person(row) or self._last_person(row),
                rejected=find_rejected(self.ep_id, row["track_ids"], self.state.rejections),
            )
            for row in rows
            if row["identity_id"] in centroids
        ]
        others = [c for c in self.state.clusters if c.ep_id != self.ep_id]
        links = link_people(
            [*own, *others],
            self.state.names,
            self.state.unknown_ids,
            self.state.last_unknown + 1,
            place_limits([*own, *others], self.settings, self.scale),
        )
        given = {c.key: Link(c.person_id, MatchDecision(UNKNOWN, None, None)) for c in (*own, *others)}
        return {**given, **links}

    def plan(
        self,
        rows: Sequence[Row],
        centroids: Mapping[str, Centroid],
        links: Mapping[tuple[str, str], Link],
        reasons: Mapping[str, str],
    ) -> GroupingPlan:
        """What the Facebank has to keep, once the rows are final.

        Args:
            rows: The identities after merging.
            centroids: Their centroids.
            links: As ``link`` gave them.
            reasons: Why each identity is who it is, in words.
        """
        records, new_people, companions = [], {}, find_companions(rows, self.shared)
        for row in rows:
            if row["identity_id"] not in centroids:
                continue
            cluster = self._describe(row, centroids[row["identity_id"]], companions)
            person_id = self._given_person(row) or row["person_id"]
            is_new = person_id is not None and person_id not in self.state.names
            if is_new and not _UNKNOWN_ID.fullmatch(person_id):
                new_people[person_id] = _name_of(row, person_id)
            records.append(
                ClusterRecord(
                    identity_id=row["identity_id"],
                    vectors=cluster.vectors,
                    track_ids=tuple(row["track_ids"]),
                    n_faces=cluster.n_faces,
                    is_solid=cluster.is_solid,
                    is_seen=cluster.is_seen,
                    shares_frames_with=tuple(sorted(cluster.shares_frames_with)),
                    person_id=person_id,
                    source=cluster.source if person_id is not None else NONE,
                    reason=reasons.get(row["identity_id"], ""),
                )
            )
        others = {}
        for cluster in self.state.clusters:
            link = links.get(cluster.key)
            if cluster.ep_id != self.ep_id and link is not None and link.person_id != cluster.person_id:
                others[cluster.key] = link.person_id, PERSON if link.person_id is not None else NONE
        numbers = [int(m[1]) for link in links.values() if (m := _UNKNOWN_ID.fullmatch(link.person_id or ""))]
        return GroupingPlan(
            self.show,
            self.ep_id,
            self.model,
            tuple(records),
            others,
            new_people,
            max([self.state.last_unknown, *numbers]),
        )

    @cached_property
    def _stored(self) -> dict[str, ShowCluster]:
        """The episode's identities as they were last written."""
        return {c.identity_id: c for c in self.state.clusters if c.ep_id == self.ep_id}

    def _is_settled(self, stored: ShowCluster) -> bool:
        """Whether a human put an identity to an unknown person; files cannot say so."""
        return stored.source == HUMAN and stored.person_id in self.state.unknown_ids

    def _last_person(self, row: Row) -> str | None:
        stored = self._stored.get(row["identity_id"])
        return stored.person_id if stored is not None else None

    def _given_person(self, row: Row) -> str | None:
        """The person that a seed or a human gave, as the Facebank calls them."""
        if not is_human_named(row):
            return row["person_id"] if row["person_source"] == FACEBANK_SOURCE else None
        for reference in (row["person_id"], row["name"]):
            if reference in self.state.names:
                return str(reference)
            if reference is not None and fold_name(reference) in self.state.aliases:
                return self.state.aliases[fold_name(reference)]
        return row["person_id"] or make_person_id(row["name"])

    def _describe(self, row: Row, centroid: Centroid, companions: Mapping[str, set[str]]) -> ShowCluster:
        tracks = sorted((t for t in row["track_ids"] if t in self.pooled), key=lambda t: (-self.n_faces[t], t))
        views = find_views(
            np.array([self.pooled[t].vector for t in tracks]),
            np.ones(len(tracks)),
            min_similarity=self.scale.at(_SAME_VIEW_POSITION),
        )
        n_faces = sum(self.n_faces[t] for t in row["track_ids"])
        source = {FACEBANK_SOURCE: SEED, PERSON_SOURCE: PERSON}.get(row["person_source"], NONE)
        stored = self._stored.get(row["identity_id"])
        is_confirmed = is_human_named(row) or (row["is_locked"] and row["person_id"] is not None)
        if is_confirmed or (source != SEED and stored is not None and self._is_settled(stored)):
            source = HUMAN
        return ShowCluster(
            ep_id=self.ep_id,
            identity_id=row["identity_id"],
            vectors=np.stack([centroid.vector, *(views if len(views) > 1 else [])]).astype(np.float32),
            n_faces=n_faces,
            is_solid=row["outlier_reason"] is None and n_faces >= self.settings.unknown_min_faces,
            is_seen=row["identity_id"] not in self.doubtful
            and sum(self.n_seen[t] for t in row["track_ids"]) >= self.settings.unknown_min_faces,
            person_id=row["person_id"],
            source=source,
            shares_frames_with=frozenset(companions.get(row["identity_id"], ())),
        )


def place_limits(clusters: Sequence[ShowCluster], settings: GroupClustersSettings, own: SimilarityScale) -> MatchLimits:
    """From where clusters of several episodes are one person, by what two people look like in all of them.

    It depends on the clusters alone, not on the episode that is being linked, unless they are too few to tell.

    Args:
        clusters: Of all episodes.
        settings: What a match has to reach.
        own: The scale in the episode that is being linked.
    """
    ordered = sorted(clusters, key=lambda c: c.key)
    vectors = np.array([cluster.vectors[0] for cluster in ordered])
    together = np.array(find_seen_together(ordered), np.int64).reshape(-1, 2)
    scale = measure_scale(vectors, together) if ordered else own
    if scale.source == ASSUMED:
        scale = own
    return make_limits(scale, settings.person_similarity, settings.facebank_margin, 0.0)


def _name_of(row: Row, person_id: str) -> str:
    """The name that a human wrote into the file, unless nobody could have given it to the Facebank."""
    try:
        return check_person_name(row["name"] or person_id)
    except FacebankError:
        return person_id
