"""Phase 3: clusters the pooled track vectors anew, centrally, over the whole episode."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.algorithms.average_linkage import Conflicts, Merge, cluster_tracks
from cleanup.algorithms.embedding_pooling import PooledTrack, compute_centroid
from cleanup.algorithms.facebank_matching import find_telling_person
from cleanup.algorithms.similarity_scale import SimilarityScale, place_threshold
from cleanup.algorithms.track_clustering import Parting, eject_outliers, find_last_merges, find_twins, rate_merge
from cleanup.episode import Episode
from cleanup.interfaces import RunMany, run_in_turn
from cleanup.phases.human_verdicts import apply_manual_assignments, read_manual_assignments
from cleanup.phases.identity_rows import (
    Cluster,
    carry_over,
    find_named_people,
)
from cleanup.phases.photo_matching import PhotoMatcher
from cleanup.phases.seen_together import SeenTogether, find_questions, judge_shared_frames
from cleanup.phases.track_samples import pool_tracks
from cleanup.progress import ReportItems, ignore_items
from cleanup.settings import PoolingSettings, ReclusterSettings

# What one person's faces differ by, on the scale of the model, tells nobody apart.
_MIN_LEAD = 0.10
# Merges at a similarity below this are worth a look at the photos of both sides.
_DOUBTFUL_POSITION = 0.45


def recluster(
    episode: Episode,
    settings: ReclusterSettings,
    pooling: PoolingSettings,
    report: ReportItems = ignore_items,
    run_many: RunMany = run_in_turn,
    known: SimilarityScale | None = None,
    photos: PhotoMatcher | None = None,
) -> tuple[Episode, dict[str, Any]]:
    """Groups all tracks that are in no locked identity; afterwards every track is in exactly one identity.

    Args:
        episode: Its faces are pooled per track; tracks that share a frame never join. Of two that may be one person one
            is set apart, with others like it, and keeps nothing else apart.
        settings: Thresholds of clustering and ejection.
        pooling: How a track's faces become one vector.
        report: Told how many of the steps are done.
        run_many: Runs independent parts of the linkage side by side.
        known: What is known of the model's scale from elsewhere.
        photos: Photos of known people, where there are any: what they tell apart is parted again.

    Returns:
        The episode and the phase's part of the report.
    """
    before = _fractions([len(t) for t in episode.identities["track_ids"].to_pylist()], len(episode.tracks))
    pooled = pool_tracks(episode, pooling)
    report(1, 4, "pooled")
    locked = {t for r in episode.identities.filter(episode.identities["is_locked"])["track_ids"].to_pylist() for t in r}
    free = [t for t in sorted(episode.tracks["track_id"].to_pylist()) if t not in locked]
    tracks = [t for t in free if t in pooled]
    together = judge_shared_frames(episode, pooled, known)
    run = _Clustering(episode, settings, tracks, pooled, together, photos)
    report(2, 4, "thresholds placed")
    clusters = run.cluster(run_many)
    report(3, 4, "clustered")
    clusters += [Cluster((t,), "no_embedding") for t in free if t not in pooled]
    clusters.sort(key=lambda c: c.track_ids)
    assigned, odd = read_manual_assignments(episode)
    rows = apply_manual_assignments(carry_over(episode, clusters), episode.identities.to_pylist(), assigned)
    n_before = len(episode.identities)
    episode = episode.replace(identities=schemas.build_table(rows, schemas.IDENTITY_SCHEMA))
    after = _fractions([len(r["track_ids"]) for r in rows], len(episode.tracks))
    questions = find_questions(episode, together)
    report(4, 4, "identities carried over")
    return episode, {
        "clusters_merged": max(n_before - len(rows), 0),
        "singleton_fraction_before": before[0],
        "singleton_fraction_after": after[0],
        "largest_cluster_fraction_before": before[1],
        "largest_cluster_fraction_after": after[1],
        "tracks_ejected": len(run.ejected),
        "conflicting_pairs": run.conflicts.count(),
        "questions": [question.describe() for question in questions],
        "thresholds": run.describe_thresholds(),
        "merges": run.describe_merges(),
        "partings": run.describe_partings(),
        "ejections": run.describe_ejections(),
        "manual_assignments": len(assigned),
        "warnings": [*odd, *together.warnings, *_ask(episode, len(questions))],
    }


def _ask(episode: Episode, n_questions: int) -> list[str]:
    if n_questions == 0:
        return []
    what = "1 pair of identities" if n_questions == 1 else f"{n_questions} pairs of identities"
    return [f"{what} may be one person seen twice, or twins; to say which: cleanup people questions {episode.ep_id}"]


def _fractions(sizes: list[int], n_tracks: int) -> tuple[float, float]:
    singletons = sum(s == 1 for s in sizes) / len(sizes) if sizes else 0.0
    largest = max(sizes, default=0) / n_tracks if n_tracks else 0.0
    return round(singletons, 4), round(largest, 4)


class _Clustering:
    """One clustering of an episode's free tracks, step by step; every step leaves what it did and why."""

    def __init__(
        self,
        episode: Episode,
        settings: ReclusterSettings,
        tracks: list[int],
        pooled: dict[int, PooledTrack],
        together: SeenTogether,
        photos: PhotoMatcher | None,
    ) -> None:
        self._photos = photos
        self._settings, self._tracks, self._episode = settings, tracks, episode
        self._vectors = np.array([pooled[t].vector for t in tracks]).reshape(len(tracks), episode.dimension or 0)
        place = {t: i for i, t in enumerate(tracks)}
        people = find_named_people(episode, tracks)

        def places(pairs: Iterable[tuple[int, int]]) -> Conflicts:
            known = ((place[a], place[b]) for a, b in pairs if a in place and b in place)
            return Conflicts(Conflicts.of(known).pairs, people)

        self.conflicts = places(together.apart)
        self._alike = [(place[a], place[b]) for a, b in together.alike if a in place and b in place]
        self.ejected: dict[int, float] = {}
        self.merges: list[Merge] = []
        self.partings: list[Parting] = []
        self._doubtful = _find_doubtful_tracks(episode)
        self._scale = together.scale
        cut, ejection = settings.cluster_thresh, settings.min_identity_sim
        self._cut = place_threshold(self._scale, cut.value, is_auto=cut.is_auto)
        self._min_identity_sim = self._scale.at(ejection.value) if ejection.is_auto else ejection.value
        if ejection.is_auto and not cut.is_auto:
            # A cut that is given moves along what is said beside it.
            self._min_identity_sim += cut.value - self._scale.at(ReclusterSettings().cluster_thresh.value)

    def cluster(self, run_many: RunMany) -> list[Cluster]:
        result = cluster_tracks(self._vectors, self._cut.value, self.conflicts, run_many)
        labels, self.merges = result.labels, list(result.merges)
        if self._photos is not None:
            self._part_by_photos(self._photos, labels)
        self._part_twins(labels, run_many)
        reasons: dict[int, str] = {}
        self.ejected = eject_outliers(self._vectors, labels, self._min_identity_sim)
        for i in sorted(self.ejected):
            labels[i] = labels.max() + 1
            reasons[i] = "low_identity_similarity"
        sizes = Counter(labels.tolist())
        members: dict[int, list[int]] = defaultdict(list)
        for i, label in enumerate(labels.tolist()):
            if sizes[label] < self._settings.min_cluster_size:
                reasons.setdefault(i, "below_min_cluster_size")
                label = int(labels.max()) + 1 + i
            members[label].append(i)
        return [self._as_cluster(m, reasons) for m in members.values()]

    def _part_by_photos(self, photos: PhotoMatcher, labels: NDArray[np.int64]) -> None:
        """Undoes the last merge of a cluster, and then of its halves, where the photos tell the two sides apart."""
        limits = photos.place_limits(self._scale)
        people = self.conflicts.people_of(len(labels))
        open_labels = set(np.unique(labels).tolist())
        while open_labels:
            doubtful = [
                parting
                for parting in find_last_merges(self.merges, labels, self._scale.at(_DOUBTFUL_POSITION))
                if parting.label in open_labels and not _is_named_on_both_sides(parting, people)
            ]
            sides = [side for parting in doubtful for side in (parting.first, parting.second)]
            near = photos.compare([compute_centroid(self._vectors[side]).vector for side in sides])
            open_labels = set()
            for i, parting in enumerate(doubtful):
                person_id = find_telling_person(near[2 * i], near[2 * i + 1], limits)
                if person_id is None:
                    continue
                self.merges.remove(parting.merge)
                self.partings.append(replace(parting, person_id=person_id))
                labels[parting.second] = labels.max() + 1
                open_labels |= {parting.label, int(labels[parting.second[0]])}

    def _part_twins(self, labels: NDArray[np.int64], run_many: RunMany) -> None:
        """Clusters those who are seen twice by themselves, and of them those who are seen a third time, and so on."""
        pairs = np.array(self._alike, np.int64).reshape(-1, 2)
        min_lead = self._scale.width(_MIN_LEAD)
        while len(leaving := find_twins(self._vectors, labels, pairs, min_lead)):
            place = np.full(len(labels), -1)
            place[leaving] = np.arange(len(leaving))
            inside = place[self.conflicts.pairs]
            conflicts = Conflicts(inside[(inside >= 0).all(axis=1)], self.conflicts.people_of(len(labels))[leaving])
            result = cluster_tracks(self._vectors[leaving], self._cut.value, conflicts, run_many)
            labels[leaving] = labels.max() + 1 + result.labels
            self.merges += [
                replace(merge, first=int(leaving[merge.first]), second=int(leaving[merge.second]))
                for merge in result.merges
            ]

    def _as_cluster(self, members: list[int], reasons: dict[int, str]) -> Cluster:
        reason = None
        if len(members) == 1:
            is_fallback = self._tracks[members[0]] in self._doubtful
            reason = reasons.get(members[0]) or ("low_quality" if is_fallback else None)
        return Cluster(tuple(self._tracks[i] for i in members), reason)

    def describe_thresholds(self) -> dict[str, Any]:
        """For the report: the thresholds in force and the scale they stand on."""
        return {
            "cluster_thresh": self._cut.describe(),
            "min_identity_sim": round(self._min_identity_sim, 4),
            "scale": self._scale.describe(),
        }

    def describe_merges(self) -> list[dict[str, Any]]:
        """For the report: each merge by the lowest track of either side."""
        return [
            {
                "track_ids": [self._tracks[m.first], self._tracks[m.second]],
                "sizes": list(m.sizes),
                "similarity": round(m.similarity, 4),
                "probability": round(rate_merge(self._scale.position_of(m.similarity)), 4),
                "evidence": "average_linkage",
                "supporting_pairs": m.n_pairs,
            }
            for m in self.merges
        ]

    def describe_partings(self) -> list[dict[str, Any]]:
        """For the report: each merge that photos undid, by the tracks of its sides."""
        return [
            {
                "track_ids": [[self._tracks[i] for i in side] for side in (p.first, p.second)],
                "similarity": round(p.merge.similarity, 4),
                "person_id": p.person_id,
            }
            for p in self.partings
        ]

    def describe_ejections(self) -> list[dict[str, Any]]:
        """For the report: each ejected track with its similarity to the cluster it was ejected from."""
        return [
            {"track_id": self._tracks[i], "similarity": round(similarity, 4), "limit": round(self._min_identity_sim, 4)}
            for i, similarity in sorted(self.ejected.items())
        ]


def _is_named_on_both_sides(parting: Parting, people: NDArray[np.int64]) -> bool:
    """Whether a person named tracks of both sides; they are named alike, or they would not be in one cluster."""
    return bool((people[parting.first] >= 0).any() and (people[parting.second] >= 0).any())


def _find_doubtful_tracks(episode: Episode) -> set[int]:
    """Tracks of which no face passed every gate; their best one is kept all the same."""
    columns = (episode.faces[name].to_pylist() for name in ("track_id", "kept_despite"))
    return {t for t, despite in zip(*columns, strict=True) if despite is not None}
