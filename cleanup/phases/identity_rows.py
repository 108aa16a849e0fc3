"""Identity rows: which tracks may not meet, how earlier identities live on, and the figures kept with each."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.algorithms.embedding_pooling import Centroid, PooledTrack, compute_centroid
from cleanup.algorithms.frame_pairs import find_frame_pairs, places_of_pairs
from cleanup.episode import Episode, format_identity_id
from cleanup.names import normalise_name
from cleanup.phases.track_samples import pool_tracks
from cleanup.settings import PoolingSettings, ReclusterSettings

# Where a name came from, as the files say it: a seed photo, or the person's identities in other episodes.
FACEBANK_SOURCE, PERSON_SOURCE = "facebank", "person"


@dataclass(frozen=True)
class Cluster:
    """A group of tracks on its way to becoming an identity."""

    track_ids: tuple[int, ...]
    outlier_reason: str | None = None


def is_human_named(row: Mapping[str, Any]) -> bool:
    """Whether a person gave this identity its name; what was found by itself carries its source."""
    is_named = row["person_id"] is not None or row["name"] is not None
    return is_named and row["person_source"] not in (FACEBANK_SOURCE, PERSON_SOURCE)


def find_shared_frames(episode: Episode) -> dict[tuple[int, int], int]:
    """Pairs of tracks (lower id first) that are seen in two places of one frame -> in how many frames.

    Boxes on one another are one face found twice. Tracks that lie on one another as often as apart are such a face, and
    no pair of two.
    """
    table = episode.boxes
    frames, tracks = schemas.ints_of(table, "frame_idx"), schemas.ints_of(table, "track_id")
    found = find_frame_pairs(frames, tracks, schemas.matrix_of(table["bbox"], 4))
    is_pair = found.n_apart > found.n_overlapping
    return {
        (a, b): n for (a, b), n in zip(found.tracks[is_pair].tolist(), found.n_apart[is_pair].tolist(), strict=True)
    }


def find_companions(rows: Iterable[Mapping[str, Any]], shared: Iterable[tuple[int, int]]) -> dict[str, set[str]]:
    """Identities that are seen together with each identity in some frame.

    Args:
        rows: The identities.
        shared: Pairs of tracks that share a frame.
    """
    owner = {track: row["identity_id"] for row in rows for track in row["track_ids"]}
    tracks, names = sorted(owner), sorted(set(owner.values()))
    place = {name: i for i, name in enumerate(names)}
    owners = np.array([place[owner[track]] for track in tracks], np.int64)
    first, second = owners[places_of_pairs(np.array(sorted(shared), np.int64).reshape(-1, 2), tracks)].T
    companions: dict[str, set[str]] = defaultdict(set)
    for code in np.unique(first * len(names) + second).tolist():
        a, b = names[code // len(names)], names[code % len(names)]
        if a != b:
            companions[a].add(b)
            companions[b].add(a)
    return companions


def find_named_people(episode: Episode, tracks: Sequence[int]) -> NDArray[np.int64]:
    """A number for the person that a human named each track's identity after, -1 where none did; shape (n,)."""
    people: dict[str, int] = {}
    named = {
        track: people.setdefault(row["person_id"] or normalise_name(row["name"]), len(people))
        for row in episode.identities.to_pylist()
        if is_human_named(row)
        for track in row["track_ids"]
    }
    return np.array([named.get(track, -1) for track in tracks], np.int64)


def carry_over(episode: Episode, clusters: Sequence[Cluster]) -> list[dict[str, Any]]:
    """Identity rows for clusters; ids, labels, locks and dates of earlier identities live on.

    Each earlier identity goes to the cluster that holds most of its faces. Where several go to one cluster, one that a
    person named comes first, then the one with more faces there. Locked identities are not among the clusters and stay
    as they are.

    Args:
        episode: With the earlier identities.
        clusters: The new grouping of all tracks that are in no locked identity.
    """
    earlier = episode.identities.to_pylist()
    n_faces = Counter(episode.faces["track_id"].to_pylist())
    cluster_of = {t: i for i, c in enumerate(clusters) for t in c.track_ids}
    heirs: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for place, row in enumerate(earlier):
        if row["is_locked"]:
            continue
        held: Counter[int] = Counter()
        for track_id in row["track_ids"]:
            if track_id in cluster_of:
                held[cluster_of[track_id]] += max(n_faces[track_id], 1)
        if held:
            heir, n_held = min(held.items(), key=lambda item: (-item[1], item[0]))
            heirs[heir].append((int(not is_human_named(row)), -n_held, place))
    rows: dict[int, dict[str, Any]] = {}
    fresh: list[dict[str, Any]] = []
    for i, cluster in enumerate(clusters):
        if heirs[i]:
            place = min(heirs[i])[2]
            rows[place] = {**earlier[place], "track_ids": sorted(cluster.track_ids)}
            rows[place]["outlier_reason"] = cluster.outlier_reason
        else:
            blank: dict[str, Any] = dict.fromkeys(schemas.IDENTITY_SCHEMA.names)
            tracks = sorted(cluster.track_ids)
            fresh.append({**blank, "track_ids": tracks, "is_locked": False, "outlier_reason": cluster.outlier_reason})
    rows.update({place: row for place, row in enumerate(earlier) if row["is_locked"]})
    number = max((_number_of(row["identity_id"]) for row in earlier), default=0)
    for row in sorted(fresh, key=lambda r: r["track_ids"][0]):
        number += 1
        row["identity_id"] = format_identity_id(episode.dialect, number)
    return [rows[place] for place in sorted(rows)] + sorted(fresh, key=lambda r: r["identity_id"])


def _number_of(identity_id: str) -> int:
    match = re.search(r"(\d+)$", identity_id)
    return int(match[1]) if match else 0


def compute_centroids(episode: Episode, pooled: Mapping[int, PooledTrack]) -> dict[str, Centroid]:
    """The centroid of every identity that has a track with an embedding."""
    centroids = {}
    for identity_id, track_ids in zip(
        episode.identities["identity_id"].to_pylist(), episode.identities["track_ids"].to_pylist(), strict=True
    ):
        vectors = [pooled[t].vector for t in track_ids if t in pooled]
        if vectors:
            centroids[identity_id] = compute_centroid(np.array(vectors))
    return centroids


def refresh_identity_figures(
    episode: Episode, pooling: PoolingSettings, recluster: ReclusterSettings | None
) -> Episode:
    """Brings the figures kept with the identities up to date: sizes, cohesion, and the document's summary.

    Without settings, because nothing was clustered, what the summary says about clustering stays.
    """
    centroids = compute_centroids(episode, pool_tracks(episode, pooling))
    n_faces = Counter(episode.embedded_faces["track_id"].to_pylist())
    rows = episode.identities.to_pylist()
    for row in rows:
        centroid = centroids.get(row["identity_id"])
        row["n_faces"] = sum(n_faces[t] for t in row["track_ids"])
        row["centroid_norm"] = None if centroid is None else round(centroid.norm, 4)
        row["cohesion"] = None if centroid is None else round(centroid.cohesion, 4)
    return episode.replace(
        identities=schemas.build_table(rows, schemas.IDENTITY_SCHEMA),
        identity_document=_summarise(episode, rows, recluster),
    )


def _summarise(episode: Episode, rows: list[dict[str, Any]], settings: ReclusterSettings | None) -> bytes:
    document = orjson.loads(episode.identity_document)
    sizes = [len(row["track_ids"]) for row in rows]
    n_tracks, n_singletons = len(episode.tracks), sum(s == 1 for s in sizes)
    if episode.is_normalised:
        metadata = document.setdefault("metadata", {})
        metadata.update(
            ep_id=episode.ep_id,
            num_tracks=n_tracks,
            num_clusters=len(rows),
            num_singletons=n_singletons,
            singleton_fraction=round(n_singletons / len(rows), 4) if rows else 0.0,
            largest_cluster_size=max(sizes, default=0),
            largest_cluster_fraction=round(max(sizes, default=0) / n_tracks, 4),
        )
        if settings is not None:
            metadata.update(
                cluster_thresh=settings.cluster_thresh.value,
                min_cluster_size=settings.min_cluster_size,
                algorithm="agglomerative",
                linkage="average",
            )
    else:
        document.setdefault("ep_id", episode.ep_id)
        if settings is not None:
            document.setdefault("config", {}).update(
                cluster_thresh=settings.cluster_thresh.value,
                min_cluster_size=settings.min_cluster_size,
                min_identity_sim=settings.min_identity_sim.value,
            )
        document.setdefault("stats", {}).update(
            faces=len(episode.embedded_faces),
            clusters=len(rows),
            outlier_tracks=sum(row["outlier_reason"] is not None for row in rows),
        )
    return orjson.dumps(document)
