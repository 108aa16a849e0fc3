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
from cleanup.algorithms.embedding_pooling import PooledTrack, find_views
from cleanup.algorithms.threshold_evidence import place_threshold
from cleanup.algorithms.track_clustering import attach_singletons, eject_outliers, find_twins, find_view_merges
from cleanup.episode import Episode
from cleanup.interfaces import RunMany, run_in_turn
from cleanup.phases.human_verdicts import apply_manual_assignments, read_manual_assignments
from cleanup.phases.identity_rows import (
    Cluster,
    carry_over,
    find_named_people,
)
from cleanup.phases.seen_together import SeenTogether, find_questions, judge_shared_frames
from cleanup.phases.track_samples import group_rows, pool_tracks
from cleanup.progress import ReportItems, ignore_items
from cleanup.settings import PoolingSettings, ReclusterSettings

# Where the cut lies between the end of "two people" and the beginning of "one person". Averages over clusters of two
# people stay well below the end, averages over one person come down to near it: the cut sits in the lower half.
_CUT_POSITION = 0.35
# Faces of one view are this similar where the episode does not tell.
_DEFAULT_SAME_VIEW = 0.70
# A few pairs of views speak for two whole clusters, so they have to be nearer than a mean over all pairs.
_VIEW_MARGIN = 0.05


def recluster(
    episode: Episode,
    settings: ReclusterSettings,
    pooling: PoolingSettings,
    report: ReportItems = ignore_items,
    run_many: RunMany = run_in_turn,
) -> tuple[Episode, dict[str, Any]]:
    """Groups all tracks that are in no locked identity; afterwards every track is in exactly one identity.

    Args:
        episode: Its faces are pooled per track; tracks that share a frame never join. Of two that may be one person one
            is set apart, with others like it, and keeps nothing else apart.
        settings: Thresholds of clustering, ejection and the second look at singletons.
        pooling: How a track's faces become one vector.
        report: Told how many of the steps are done.
        run_many: Runs independent parts of the linkage side by side.

    Returns:
        The episode and the phase's part of the report.
    """
    before = _fractions([len(t) for t in episode.identities["track_ids"].to_pylist()], len(episode.tracks))
    pooled = pool_tracks(episode, pooling)
    report(1, 4, "pooled")
    locked = {t for r in episode.identities.filter(episode.identities["is_locked"])["track_ids"].to_pylist() for t in r}
    free = [t for t in sorted(episode.tracks["track_id"].to_pylist()) if t not in locked]
    tracks = [t for t in free if t in pooled]
    together = judge_shared_frames(episode, pooled)
    run = _Clustering(episode, settings, tracks, pooled, together)
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
        "singletons_attached": sum(m.evidence == "singleton" for m in run.merges),
        "conflicting_pairs": run.conflicts.count(),
        "questions": [question.describe() for question in questions],
        "thresholds": run.describe_thresholds(),
        "merges": run.describe_merges(),
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
    ) -> None:
        self._settings, self._tracks, self._episode = settings, tracks, episode
        self._vectors = np.array([pooled[t].vector for t in tracks]).reshape(len(tracks), episode.dimension or 0)
        place = {t: i for i, t in enumerate(tracks)}
        people = find_named_people(episode, tracks)

        def places(pairs: Iterable[tuple[int, int]]) -> Conflicts:
            known = ((place[a], place[b]) for a, b in pairs if a in place and b in place)
            return Conflicts(Conflicts.of(known).pairs, people)

        self.conflicts = places(together.apart)
        self._alike = [(place[a], place[b]) for a, b in together.alike if a in place and b in place]
        # Where no more than one track looks for its cluster, those two are kept apart like any other.
        self._all_apart = places([*together.apart, *together.alike])
        self.ejected: dict[int, float] = {}
        self.merges: list[Merge] = []
        self._fallback_only = _tracks_kept_despite(episode)
        self._evidence = together.evidence
        cut = settings.cluster_thresh
        self._cut = place_threshold(self._evidence, _CUT_POSITION, cut.value, is_auto=cut.is_auto)
        # Where the cut is placed, what is configured relative to it moves along.
        self._shift = self._cut.value - cut.value if self._cut.source == "evidence" else 0.0
        ejection = settings.min_identity_sim
        self._min_identity_sim = ejection.value + (self._shift if ejection.is_auto else 0.0)

    def cluster(self, run_many: RunMany) -> list[Cluster]:
        result = cluster_tracks(self._vectors, self._cut.value, self.conflicts, run_many)
        labels, self.merges = result.labels, list(result.merges)
        self._join_views(labels)
        self._part_twins(labels, run_many)
        reasons: dict[int, str] = {}
        self.ejected = eject_outliers(self._vectors, labels, self._min_identity_sim)
        for i in sorted(self.ejected):
            labels[i] = labels.max() + 1
            reasons[i] = "low_identity_similarity"
        self._attach_singletons(labels)
        sizes = Counter(labels.tolist())
        members: dict[int, list[int]] = defaultdict(list)
        for i, label in enumerate(labels.tolist()):
            if sizes[label] < self._settings.min_cluster_size:
                reasons.setdefault(i, "below_min_cluster_size")
                label = int(labels.max()) + 1 + i
            members[label].append(i)
        return [self._as_cluster(m, reasons) for m in members.values()]

    def _part_twins(self, labels: NDArray[np.int64], run_many: RunMany) -> None:
        """Clusters those who are seen twice by themselves, and of them those who are seen a third time, and so on."""
        pairs = np.array(self._alike, np.int64).reshape(-1, 2)
        # What one person's faces differ by tells nobody apart.
        min_lead = 1 - self._evidence.same_low if self._alike else 1.0
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

    def _join_views(self, labels: NDArray[np.int64]) -> None:
        if len(self._tracks) == 0:
            return
        shortage = self._evidence.explain_shortage()
        same_view = _DEFAULT_SAME_VIEW if shortage else self._evidence.same_low
        faces = self._episode.embedded_faces
        embeddings, quality = schemas.embeddings_of(faces), schemas.floats_of(faces, "quality")
        rows_of = dict(group_rows(schemas.ints_of(faces, "track_id")))
        views = [
            find_views(embeddings[rows_of[t]], quality[rows_of[t]], min_similarity=same_view) for t in self._tracks
        ]
        track_of_view = np.repeat(np.arange(len(views)), [len(v) for v in views])
        self.merges += find_view_merges(
            np.concatenate(views), track_of_view, labels, self.conflicts, self._cut.value + _VIEW_MARGIN
        )

    def _as_cluster(self, members: list[int], reasons: dict[int, str]) -> Cluster:
        reason = None
        if len(members) == 1:
            is_fallback = self._tracks[members[0]] in self._fallback_only
            reason = reasons.get(members[0]) or ("low_quality" if is_fallback else None)
        return Cluster(tuple(self._tracks[i] for i in members), reason)

    def _attach_singletons(self, labels: NDArray[np.int64]) -> None:
        settings = self._settings
        if not settings.singleton_merge_enabled:
            return
        for round_number in range(settings.singleton_max_rounds):
            sizes = Counter(labels.tolist())
            if not sizes or sum(n == 1 for n in sizes.values()) / len(sizes) <= settings.singleton_trigger:
                return
            limit = settings.singleton_similarity + self._shift - round_number * settings.singleton_fallback_delta
            joins = attach_singletons(
                self._vectors, labels, self._all_apart, min_similarity=limit, n_neighbours=settings.singleton_neighbours
            )
            for i, label, similarity in joins:
                joined = labels == label
                n_joined = int(joined.sum())
                lowest = int(joined.argmax())
                joined[i] = True
                if i in self.ejected or n_joined + 1 < settings.singleton_min_tracks or self._clash(joined):
                    continue
                self.merges.append(Merge(lowest, i, (n_joined, 1), similarity, "singleton", n_joined))
                labels[i] = label

    def _clash(self, members: NDArray[np.bool_]) -> bool:
        named = self._all_apart.people_of(len(members))[members]
        first, second = self._all_apart.pairs.T
        return bool((members[first] & members[second]).any()) or len(np.unique(named[named >= 0])) > 1

    def describe_thresholds(self) -> dict[str, Any]:
        """For the report: the thresholds in force and the evidence they stand on."""
        return {
            "cluster_thresh": self._cut.describe(),
            "min_identity_sim": round(self._min_identity_sim, 4),
            "evidence": self._evidence.describe(),
        }

    def describe_merges(self) -> list[dict[str, Any]]:
        """For the report: each merge by the lowest track of either side."""
        return [
            {
                "track_ids": [self._tracks[m.first], self._tracks[m.second]],
                "sizes": list(m.sizes),
                "similarity": round(m.similarity, 4),
                "evidence": m.evidence,
                "supporting_pairs": m.n_supporting_pairs,
            }
            for m in self.merges
        ]

    def describe_ejections(self) -> list[dict[str, Any]]:
        """For the report: each ejected track with its similarity to the cluster it was ejected from."""
        return [
            {"track_id": self._tracks[i], "similarity": round(similarity, 4), "limit": round(self._min_identity_sim, 4)}
            for i, similarity in sorted(self.ejected.items())
        ]


def _tracks_kept_despite(episode: Episode) -> set[int]:
    faces = episode.faces
    return {
        t
        for t, despite in zip(faces["track_id"].to_pylist(), faces["kept_despite"].to_pylist(), strict=True)
        if despite is not None
    }
