"""Phase 3: clusters the pooled track vectors anew, centrally, over the whole episode."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.algorithms.embedding_pooling import PooledTrack
from cleanup.algorithms.track_clustering import (
    Conflicts,
    attach_singletons,
    cluster_tracks,
    eject_outliers,
)
from cleanup.episode import Episode
from cleanup.phases.identity_rows import Cluster, carry_over, find_named_apart, find_shared_frames
from cleanup.phases.track_samples import pool_tracks
from cleanup.progress import ReportItems, ignore_items
from cleanup.settings import PoolingSettings, ReclusterSettings


def recluster(
    episode: Episode,
    settings: ReclusterSettings,
    pooling: PoolingSettings,
    report: ReportItems = ignore_items,
) -> tuple[Episode, dict[str, Any]]:
    """Groups all tracks that are in no locked identity; afterwards every track is in exactly one identity.

    Args:
        episode: Its faces are pooled per track; tracks that share a frame never join.
        settings: Thresholds of clustering, ejection and the second look at singletons.
        pooling: How a track's faces become one vector.
        report: Told how many of the steps are done.

    Returns:
        The episode and the phase's part of the report.
    """
    before = _fractions([len(t) for t in episode.identities["track_ids"].to_pylist()], len(episode.tracks))
    pooled = pool_tracks(episode, pooling)
    report(1, 4, "pooled")
    locked = {t for r in episode.identities.filter(episode.identities["is_locked"])["track_ids"].to_pylist() for t in r}
    free = [t for t in sorted(episode.tracks["track_id"].to_pylist()) if t not in locked]
    tracks = [t for t in free if t in pooled]
    run = _Clustering(episode, settings, tracks, pooled)
    report(2, 4, "shared frames found")
    clusters = run.cluster()
    report(3, 4, "clustered")
    clusters += [Cluster((t,), "no_embedding") for t in free if t not in pooled]
    clusters.sort(key=lambda c: c.track_ids)
    rows = carry_over(episode, clusters)
    n_before = len(episode.identities)
    episode = episode.replace(identities=schemas.build_table(rows, schemas.IDENTITY_SCHEMA))
    after = _fractions([len(r["track_ids"]) for r in rows], len(episode.tracks))
    report(4, 4, "identities carried over")
    return episode, {
        "clusters_merged": max(n_before - len(rows), 0),
        "singleton_fraction_before": before[0],
        "singleton_fraction_after": after[0],
        "largest_cluster_fraction_before": before[1],
        "largest_cluster_fraction_after": after[1],
        "tracks_ejected": len(run.ejected),
        "singletons_attached": run.n_attached,
        "conflicting_pairs": len(run.conflicts.pairs),
    }


def _fractions(sizes: list[int], n_tracks: int) -> tuple[float, float]:
    singletons = sum(s == 1 for s in sizes) / len(sizes) if sizes else 0.0
    largest = max(sizes, default=0) / n_tracks if n_tracks else 0.0
    return round(singletons, 4), round(largest, 4)


class _Clustering:
    """One clustering of an episode's free tracks, step by step."""

    def __init__(
        self, episode: Episode, settings: ReclusterSettings, tracks: list[int], pooled: dict[int, PooledTrack]
    ) -> None:
        self._settings, self._tracks = settings, tracks
        self._vectors = np.array([pooled[t].vector for t in tracks]).reshape(len(tracks), -1)
        place = {t: i for i, t in enumerate(tracks)}
        pairs = find_shared_frames(episode) | find_named_apart(episode)
        self.conflicts = Conflicts.of((place[a], place[b]) for a, b in pairs if a in place and b in place)
        self.ejected: dict[int, float] = {}
        self.n_attached = 0
        self._fallback_only = _tracks_kept_despite(episode)

    def cluster(self) -> list[Cluster]:
        labels = cluster_tracks(self._vectors, self._settings.cluster_thresh, self.conflicts)
        reasons: dict[int, str] = {}
        self.ejected = eject_outliers(self._vectors, labels, self._settings.min_identity_sim)
        for i in sorted(self.ejected):
            labels[i] = labels.max() + 1
            reasons[i] = "low_identity_similarity"
        self._attach_singletons(labels)
        sizes = Counter(labels.tolist())
        for i, label in enumerate(labels.tolist()):
            if sizes[label] < self._settings.min_cluster_size:
                reasons.setdefault(i, "below_min_cluster_size")
        members: dict[int, list[int]] = defaultdict(list)
        for i, label in enumerate(labels.tolist()):
            if reasons.get(i) == "below_min_cluster_size":
                label = int(labels.max()) + 1 + i
            members[label].append(i)
        return [self._as_cluster(m, reasons) for m in members.values()]

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
            limit = settings.singleton_similarity - round_number * settings.singleton_fallback_delta
            joins = attach_singletons(
                self._vectors, labels, self.conflicts, min_similarity=limit, n_neighbours=settings.singleton_neighbours
            )
            for i, label, _ in joins:
                joined = {*np.flatnonzero(labels == label).tolist(), i}
                if i not in self.ejected and len(joined) >= settings.singleton_min_tracks and not self._clash(joined):
                    labels[i] = label
                    self.n_attached += 1

    def _clash(self, members: set[int]) -> bool:
        pairs = self.conflicts.pairs
        return any(a in members and b in members for a, b in pairs.tolist())


def _tracks_kept_despite(episode: Episode) -> set[int]:
    faces = episode.faces
    return {
        t
        for t, despite in zip(faces["track_id"].to_pylist(), faces["kept_despite"].to_pylist(), strict=True)
        if despite is not None
    }
