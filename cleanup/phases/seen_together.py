"""What two tracks that share a frame are to each other: two people, or a question.

A pair that is as alike as one person mostly is from shot to shot may be one person seen twice (a mirror, a screen, a
split screen, a poster) or twins. No machine can tell, so it keeps no other tracks apart. Both are kept apart until a
person says what they are.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cleanup import schemas
from cleanup.algorithms.embedding_pooling import PooledTrack
from cleanup.algorithms.frame_sampling import find_roots
from cleanup.algorithms.similarity_scale import SEEN_TWICE_POSITION, SimilarityScale
from cleanup.episode import Episode
from cleanup.phases.human_verdicts import read_verdicts
from cleanup.phases.identity_rows import (
    find_named_people,
    find_shared_frames,
    is_human_named,
)
from cleanup.phases.model_scale import measure_track_scale
from cleanup.phases.track_samples import group_rows

Pair = tuple[int, int]
# Boxes of one face differ by a few percent from detection to detection.
_CLEARLY_LARGER = 1.1
_CLEARLY_MORE_FACES = 2


@dataclass(frozen=True)
class SeenTogether:
    """The pairs of tracks that share frames, lower id first but where they are alike.

    Attributes:
        n_frames: Pair -> frames they share.
        apart: Pairs that are two people by their looks, or because they are named differently.
        alike: Pair -> cosine of their vectors, where they may be one person; here the track is first that is the person
            rather than a picture of them. Nobody said that they are one.
        told_apart: Those of them of which a person said that they are two people.
        scale: Of the model's similarities.
        warnings: A sentence for each verdict in the files that could not be obeyed.
    """

    n_frames: Mapping[Pair, int]
    apart: frozenset[Pair]
    alike: Mapping[Pair, float]
    told_apart: frozenset[Pair]
    scale: SimilarityScale
    warnings: list[str]


@dataclass(frozen=True)
class Question:
    """Two identities that may be one person seen twice, or twins.

    Attributes:
        identity_ids: The one that is the person, rather than a picture of them, first.
        track_ids: The pairs of tracks that share frames, a track of either identity in each.
        n_frames: Frames in which the two are seen.
        similarity: Mean cosine of the pairs.
    """

    identity_ids: tuple[str, str]
    track_ids: tuple[Pair, ...]
    n_frames: int
    similarity: float

    def describe(self) -> dict[str, Any]:
        """For the report and for programs."""
        return {
            "identity_ids": list(self.identity_ids),
            "track_ids": [list(pair) for pair in self.track_ids],
            "frames_shared": self.n_frames,
            "similarity": round(self.similarity, 4),
        }


def judge_shared_frames(
    episode: Episode, pooled: Mapping[int, PooledTrack], known: SimilarityScale | None = None
) -> SeenTogether:
    """Tells two people who are seen together from what only a person can tell."""
    n_frames, verdicts = find_shared_frames(episode), read_verdicts(episode)
    tracks = episode.tracks["track_id"].to_pylist()
    named = dict(zip(tracks, find_named_people(episode, tracks).tolist(), strict=True))
    pairs = sorted(n_frames.keys() - verdicts.one_person)
    scale = measure_track_scale(pooled, pairs, known)
    similarity = {
        (a, b): float(pooled[a].vector @ pooled[b].vector)
        for a, b in pairs
        if a in pooled and b in pooled and (named[a] == named[b] or min(named[a], named[b]) < 0)
    }
    alike = {pair for pair, value in similarity.items() if value > scale.at(SEEN_TWICE_POSITION)}
    ordered = _put_originals_first(episode, alike)
    return SeenTogether(
        n_frames=n_frames,
        apart=frozenset(set(pairs) - alike),
        alike={pair: similarity[min(pair), max(pair)] for pair in ordered},
        told_apart=frozenset(pair for pair in ordered if (min(pair), max(pair)) in verdicts.two_people),
        scale=scale,
        warnings=verdicts.odd,
    )


def _put_originals_first(episode: Episode, pairs: Iterable[Pair]) -> list[Pair]:
    """The larger face of each pair first: a reflection is farther away than the person, a picture mostly smaller.

    Where neither is clearly larger, the track that was there first: trackers number the surest face of a frame first.
    """
    tracks, frames = schemas.ints_of(episode.boxes, "track_id"), schemas.ints_of(episode.boxes, "frame_idx")
    boxes = schemas.matrix_of(episode.boxes["bbox"], 4)
    heights, rows_of = boxes[:, 3] - boxes[:, 1], dict(group_rows(tracks))
    columns = (episode.tracks[name].to_pylist() for name in ("track_id", "parent_track_id"))
    roots = find_roots(dict(zip(*columns, strict=True)))
    ordered = []
    for pair in sorted(pairs):
        first, second = sorted(pair, key=lambda track: (roots[track], track))
        _, i, j = np.intersect1d(frames[rows_of[first]], frames[rows_of[second]], return_indices=True)
        ratio = float(np.median(heights[rows_of[second][j]] / heights[rows_of[first][i]]))
        ordered.append((second, first) if ratio > _CLEARLY_LARGER else (first, second))
    return ordered


def find_questions(episode: Episode, together: SeenTogether) -> list[Question]:
    """What a person has to say about the identities as they are, the most frames first.

    Two identities that a person gave the same name are answered for.
    """
    rows = {row["identity_id"]: row for row in episode.identities.to_pylist()}
    owner = {t: identity_id for identity_id, row in rows.items() for t in row["track_ids"]}
    n_faces = Counter(owner.get(t) for t in episode.embedded_faces["track_id"].to_pylist())
    pairs: dict[frozenset[str], list[Pair]] = defaultdict(list)
    for a, b in sorted(together.alike.keys() - together.told_apart):
        if a in owner and b in owner and owner[a] != owner[b] and not _is_named_alike(rows[owner[a]], rows[owner[b]]):
            pairs[frozenset((owner[a], owner[b]))].append((a, b))
    found = []
    for identity_ids, tracks in pairs.items():
        n_first = Counter(owner[a] for a, _ in tracks)
        first, second = sorted(identity_ids, key=lambda i: (-n_first[i], -n_faces[i], i))
        # Whoever is seen much more is no picture of the other, whatever the few frames say in which both are seen.
        if n_faces[second] > _CLEARLY_MORE_FACES * n_faces[first]:
            first, second = second, first
        ends = tuple((a, b) if owner[a] == first else (b, a) for a, b in tracks)
        n_frames = sum(together.n_frames[min(pair), max(pair)] for pair in tracks)
        similarity = float(np.mean([together.alike[pair] for pair in tracks]))
        found.append(Question((first, second), ends, n_frames, similarity))
    return sorted(found, key=lambda question: (-question.n_frames, question.identity_ids))


def _is_named_alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    label = a["person_id"] or a["name"]
    return is_human_named(a) and is_human_named(b) and label == (b["person_id"] or b["name"])
