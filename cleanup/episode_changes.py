"""What is different between two states of one episode: tracks, faces, identities, labels, metrics."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from cleanup import schemas
from cleanup.conservation import find_roots
from cleanup.episode import Episode
from cleanup.report import EpisodeFigures

# Similarity of an embedding to what it was, below which it was made anew and not only rounded.
_SAME_EMBEDDING = 0.9999
_LABEL = ("person_id", "name", "is_locked")


def compare_episodes(
    before: Episode, after: Episode, figures_before: EpisodeFigures, figures_after: EpisodeFigures
) -> dict[str, Any]:
    """Compares two states of an episode.

    Args:
        before: The earlier one.
        after: The later one.
        figures_before: Counts and metrics of the earlier one.
        figures_after: Those of the later one, measured alike.

    Returns:
        ``tracks`` {before, after, split, gone}, ``faces`` {before, after, dropped_by_reason, recovered, reembedded,
        new, gone}, ``clusters`` {before, after, merged, divided}, ``labels`` (what changed, by identity) and
        ``metrics`` {name: [before, after]}.
    """
    root_of = find_roots(before, after)
    known = set(before.tracks["track_id"].to_pylist())
    found = set(after.tracks["track_id"].to_pylist())
    pieces: dict[int, list[int]] = defaultdict(list)
    for track_id in sorted(found - known):
        pieces[root_of[track_id]].append(track_id)
    return {
        "tracks": {
            "before": figures_before.n_tracks,
            "after": figures_after.n_tracks,
            "split": [{"track_id": root, "pieces": new} for root, new in sorted(pieces.items()) if root in known],
            "gone": sorted(known - found),
        },
        "faces": {"before": figures_before.n_faces, "after": figures_after.n_faces, **_compare_faces(before, after)},
        "clusters": {
            "before": figures_before.n_clusters,
            "after": figures_after.n_clusters,
            **_compare_clusters(before, after, root_of),
        },
        "labels": _compare_labels(before, after),
        "metrics": {name: [value, figures_after.metrics[name]] for name, value in figures_before.metrics.items()},
    }


def _compare_faces(before: Episode, after: Episode) -> dict[str, Any]:
    places = [{face_id: i for i, face_id in enumerate(e.faces["face_id"].to_pylist())} for e in (before, after)]
    has = [e.faces["embedding"].is_valid().to_numpy() for e in (before, after)]
    common = sorted(places[0].keys() & places[1].keys())
    old = np.array([places[0][face_id] for face_id in common], np.int64)
    new = np.array([places[1][face_id] for face_id in common], np.int64)
    reasons = after.faces["reject_reason"].to_pylist()
    dropped = Counter(str(reasons[i] or "no reason").split(":", 1)[0] for i in new[has[0][old] & ~has[1][new]].tolist())
    return {
        "dropped_by_reason": dict(sorted(dropped.items())),
        "recovered": int((~has[0][old] & has[1][new]).sum()),
        "reembedded": _count_reembedded(before, after, old, new, has),
        "new": len(places[1].keys() - places[0].keys()),
        "gone": len(places[0].keys() - places[1].keys()),
    }


def _count_reembedded(before: Episode, after: Episode, old: Any, new: Any, has: list[Any]) -> int:
    is_both = has[0][old] & has[1][new]
    if before.dimension != after.dimension:
        return int(is_both.sum())
    rows = [np.cumsum(h) - 1 for h in has]
    a, b = schemas.embeddings_of(before.embedded_faces), schemas.embeddings_of(after.embedded_faces)
    similarity = np.einsum("ij,ij->i", a[rows[0][old[is_both]]], b[rows[1][new[is_both]]])
    return int((similarity < _SAME_EMBEDDING).sum())


def _compare_clusters(before: Episode, after: Episode, root_of: dict[int, int]) -> dict[str, Any]:
    """Which identities came together and which came apart, by the tracks they hold."""
    owner = {t: row["identity_id"] for row in before.identities.to_pylist() for t in row["track_ids"]}
    sources: dict[str, set[str]] = {}
    parts: dict[str, set[str]] = defaultdict(set)
    for row in after.identities.to_pylist():
        held = {owner[root_of[t]] for t in row["track_ids"] if root_of.get(t) in owner}
        sources[row["identity_id"]] = held
        for identity_id in held:
            parts[identity_id].add(row["identity_id"])
    return {
        "merged": [
            {"identity_id": identity_id, "from": sorted(held)} for identity_id, held in sources.items() if len(held) > 1
        ],
        "divided": [
            {"identity_id": identity_id, "into": sorted(into)} for identity_id, into in parts.items() if len(into) > 1
        ],
    }


def _compare_labels(before: Episode, after: Episode) -> list[dict[str, Any]]:
    old, new = (
        {row["identity_id"]: {key: row[key] for key in _LABEL} for row in e.identities.to_pylist()}
        for e in (before, after)
    )
    nothing = {"person_id": None, "name": None, "is_locked": False}
    return [
        {"identity_id": identity_id, "before": was, "after": now}
        for identity_id in sorted(old.keys() | new.keys())
        for was, now in [(old.get(identity_id, nothing), new.get(identity_id, nothing))]
        if was != now
    ]
