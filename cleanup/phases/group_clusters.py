"""Phase 4: names identities after the people of the Facebank and merges the identities of one person."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.algorithms.embedding_pooling import Centroid, PooledTrack
from cleanup.algorithms.facebank_matching import (
    AMBIGUOUS,
    ASSIGNED,
    SUGGESTED,
    MatchDecision,
    MatchLimits,
    PersonSimilarity,
    decide_match,
    find_dissent,
    find_tier,
)
from cleanup.algorithms.person_linking import Link
from cleanup.algorithms.similarity_scale import SimilarityScale
from cleanup.episode import Episode
from cleanup.interfaces import Facebank
from cleanup.names import normalise_name
from cleanup.people import ShowState, find_rejected
from cleanup.phases.human_verdicts import read_manual_assignments
from cleanup.phases.identity_rows import (
    FACEBANK_SOURCE,
    PERSON_SOURCE,
    compute_centroids,
    find_companions,
    is_human_named,
)
from cleanup.phases.link_episodes import EpisodeLinker
from cleanup.phases.photo_matching import PhotoMatcher
from cleanup.phases.seen_together import find_questions, judge_shared_frames
from cleanup.phases.track_samples import pool_tracks
from cleanup.settings import GroupClustersSettings, PoolingSettings

Row = dict[str, Any]
# Tracks of an identity that are asked for a vote of their own.
_MAX_VOTERS = 8
# Identities less alike than this, on the model's scale, are no more alike than strangers are.
_AGREEMENT_POSITION = 0.20


@dataclass
class _Grouping:
    """What grouping found, in the shapes of the report."""

    assigned: list[Row] = field(default_factory=list)
    ambiguous: list[Row] = field(default_factory=list)
    suggestions: list[Row] = field(default_factory=list)
    conflicts: list[Row] = field(default_factory=list)
    disagreements: list[Row] = field(default_factory=list)
    groups: list[Row] = field(default_factory=list)
    protected_pairs: list[Row] = field(default_factory=list)
    new_people: list[Row] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)


def group_clusters(
    episode: Episode,
    settings: GroupClustersSettings,
    pooling: PoolingSettings,
    show: str,
    model: str,
    facebank: Facebank,
    known: SimilarityScale | None = None,
) -> tuple[Episode, dict[str, Any]]:
    """Matches every identity to the show's people, names the clear cases and merges identities of one person.

    A name that a person gave and a locked identity are never changed. An identity that comes near two people, or that
    would put one person twice into a frame, is reported and not named.

    Args:
        episode: With identities.
        settings: Similarity and margin.
        pooling: How a track's faces become one vector.
        show: Show whose people are looked up.
        model: Recogniser the embeddings were made with.
        facebank: The known people.
        known: What is known of the model's scale from elsewhere.

    Returns:
        The episode and the phase's part of the report, ``grouping`` included; beside it, as ``plan``, what the
        Facebank has to record when the episode is written.

    Raises:
        FacebankError: The Facebank does not answer or holds another model's embeddings.
    """
    pooled = pool_tracks(episode, pooling)
    centroids = compute_centroids(episode, pooled)
    n_faces = Counter(episode.embedded_faces["track_id"].to_pylist())
    rows = episode.identities.to_pylist()
    asked = _vectors_to_match(rows, centroids, pooled, n_faces)
    photos = PhotoMatcher(facebank, show, model, settings, known)
    people = photos.compare([vector for _, vector in asked])
    state = facebank.read_show(show, model)
    together = judge_shared_frames(episode, pooled, known)
    limits = photos.place_limits(together.scale)
    shared = together.n_frames.keys()
    # Who may be another one seen a second time takes no name from them, and is no person until somebody says so.
    doubles = {question.identity_ids[1] for question in find_questions(episode, together)}
    found = _Grouping()
    warnings = []
    decisions: dict[str, MatchDecision] = {}
    if asked and not any(people):
        warnings.append(f"the Facebank has no seeds of show {show!r} for model {model}; nobody was named by a photo")
    else:
        rejected = {r["identity_id"]: find_rejected(episode.ep_id, r["track_ids"], state.rejections) for r in rows}
        decisions, votes = _decide([i for i, _ in asked], people, limits, rejected)
        _name_rows(rows, decisions, votes, find_companions(rows, shared), doubles, found)
    # A known person comes near, but something speaks against it: that is no unknown person.
    doubtful = doubles | {
        identity_id
        for identity_id, decision in decisions.items()
        if decision.best is not None and decision.best.similarity >= limits.similarity
    }
    n_seen = Counter(episode.faces["track_id"].to_pylist())
    linker = EpisodeLinker(
        show,
        episode.ep_id,
        model,
        state,
        settings,
        pooled,
        n_faces,
        n_seen,
        shared,
        together.scale,
        frozenset(doubtful),
    )
    links = linker.link(rows, centroids)
    _name_linked(rows, links, episode.ep_id, state, found)
    by_hand = frozenset(read_manual_assignments(episode)[0].values())
    unlike = _Unlike(centroids, together.scale.at(_AGREEMENT_POSITION))
    rows = _merge_rows(rows, find_companions(rows, shared), by_hand, unlike, found)
    merged = episode.replace(identities=schemas.build_table(rows, schemas.IDENTITY_SCHEMA))
    centroids = compute_centroids(merged, pooled)
    plan = linker.plan(rows, centroids, links, found.reasons)
    _hide_newcomers(rows, links, state, found)
    outcome = {
        "plan": plan,
        "thresholds": {
            "facebank_similarity": round(limits.similarity, 4),
            "facebank_margin": round(limits.margin, 4),
            "probability": limits.probability,
            "scale": limits.scale.describe(),
        },
        "clusters_grouped": sum(len(g["cluster_ids"]) for g in found.groups),
        "auto_assigned_identities": len(found.assigned),
        "ambiguous": found.ambiguous,
        "grouping": {
            "counts": _count(rows, found),
            "centroids": {
                row["identity_id"]: {
                    "centroid": [round(float(v), 6) for v in centroids[row["identity_id"]].vector],
                    "tracks": row["track_ids"],
                    "cohesion": round(centroids[row["identity_id"]].cohesion, 4),
                    "num_faces": sum(n_faces[t] for t in row["track_ids"]),
                }
                for row in rows
                if row["identity_id"] in centroids
            },
            "within_episode": {
                "groups": found.groups,
                "merged_count": sum(len(g["cluster_ids"]) - 1 for g in found.groups),
                "protected_pairs": found.protected_pairs,
            },
            "across_episodes": {
                "assigned": found.assigned,
                "suggestions": found.suggestions,
                "ambiguous": found.ambiguous,
                "conflicts": found.conflicts,
                "disagreements": found.disagreements,
                "new_people_count": len(found.new_people),
                "new_people": found.new_people,
                "warnings": [],
            },
        },
        "warnings": warnings,
    }
    return episode.replace(identities=schemas.build_table(rows, schemas.IDENTITY_SCHEMA)), outcome


def _count(rows: Sequence[Row], found: _Grouping) -> dict[str, int]:
    """What each step did, in identities: matching to photos, to other episodes, merging, and what is left."""
    return {
        "identities": len(rows),
        "matched_by_photo": sum(entry["seed_match"] for entry in found.assigned),
        "matched_by_episode": sum(not entry["seed_match"] for entry in found.assigned),
        "merged_away": sum(len(group["cluster_ids"]) - 1 for group in found.groups),
        "new_people": len(found.new_people),
        "suggested": len(found.suggestions),
        "ambiguous": len(found.ambiguous),
        "conflicts": len(found.conflicts),
        "disagreements": len(found.disagreements),
        "nobody": sum(row["person_id"] is None and row["name"] is None for row in rows),
    }


def _vectors_to_match(
    rows: list[Row], centroids: Mapping[str, Centroid], pooled: Mapping[int, PooledTrack], n_faces: Mapping[int, int]
) -> list[tuple[str, NDArray[np.float32]]]:
    """Identity id and vector of everything that is compared: each centroid first, then its largest tracks."""
    asked = []
    for row in rows:
        identity_id = row["identity_id"]
        if identity_id in centroids:
            asked.append((identity_id, centroids[identity_id].vector))
            members = sorted((t for t in row["track_ids"] if t in pooled), key=lambda t: (-n_faces[t], t))
            asked += [(identity_id, pooled[t].vector) for t in members[:_MAX_VOTERS]]
    return asked


def _decide(
    identity_ids: Sequence[str],
    people: Sequence[Sequence[PersonSimilarity]],
    limits: MatchLimits,
    rejected: Mapping[str, frozenset[str]],
) -> tuple[dict[str, MatchDecision], dict[str, list[str]]]:
    """The decision for each identity by its centroid, and the people its members clearly match."""
    decisions: dict[str, MatchDecision] = {}
    votes: dict[str, list[str]] = defaultdict(list)
    for identity_id, near in zip(identity_ids, people, strict=True):
        decision = decide_match([p for p in near if p.person_id not in rejected[identity_id]], limits)
        if identity_id not in decisions:
            decisions[identity_id] = decision
        elif decision.status == ASSIGNED and decision.best is not None:
            votes[identity_id].append(decision.best.person_id)
    return decisions, votes


def _name_rows(
    rows: list[Row],
    decisions: dict[str, MatchDecision],
    votes: Mapping[str, Sequence[str]],
    companions: Mapping[str, set[str]],
    doubles: Collection[str],
    found: _Grouping,
) -> None:
    """Names the clear cases, the most similar first, so that of two that share a frame the better one gets the name.

    Identities that may be others seen a second time come last.
    """
    holders: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if is_human_named(row) and row["person_id"] is not None:
            holders[row["person_id"]].append(row)
    order = sorted(
        (r for r in rows if r["identity_id"] in decisions),
        key=lambda r: (
            r["identity_id"] in doubles,
            -_best_similarity(decisions[r["identity_id"]]),
            r["identity_id"],
        ),
    )
    for row in order:
        decision = decisions[row["identity_id"]]
        best = decision.best
        if row["is_locked"] or is_human_named(row) or best is None:
            continue
        row.update(person_id=None, name=None, person_source=None)
        if decision.status == AMBIGUOUS:
            found.ambiguous.append(_describe_ambiguous(row, decision))
        elif decision.status == SUGGESTED:
            found.suggestions.append(_describe_suggestion(row, decision, "photo"))
        elif decision.status == ASSIGNED:
            dissent = find_dissent(best.person_id, votes.get(row["identity_id"], ()))
            if dissent:
                found.disagreements.append(
                    {"cluster_id": row["identity_id"], "person_id": best.person_id, "tracks_that_match_others": dissent}
                )
                continue
            beside = companions.get(row["identity_id"], set())
            rival = next((o for o in holders[best.person_id] if o["identity_id"] in beside), None)
            if rival is not None:
                found.conflicts.append(
                    {
                        "cluster_id": row["identity_id"],
                        "person_id": best.person_id,
                        "similarity": round(best.similarity, 4),
                        "shares_a_frame_with": rival["identity_id"],
                    }
                )
                continue
            row.update(person_id=best.person_id, name=best.name, person_source=FACEBANK_SOURCE)
            holders[best.person_id].append(row)
            found.reasons[row["identity_id"]] = f"similarity {best.similarity:.3f} to the seeds"
            found.assigned.append(
                {
                    "cluster_id": row["identity_id"],
                    "person_id": best.person_id,
                    "distance": round(1 - best.similarity, 4),
                    "probability": round(decision.probability, 4),
                    "suggested": False,
                    "seed_match": True,
                }
            )


def _name_linked(
    rows: list[Row],
    links: Mapping[tuple[str, str], Link],
    ep_id: str,
    state: ShowState,
    found: _Grouping,
) -> None:
    """Gives the identities that neither a seed nor a human named the people they were linked to."""
    dissenting = {entry["cluster_id"] for entry in found.disagreements}
    reported = {entry["cluster_id"] for entry in (*found.ambiguous, *found.suggestions, *found.conflicts)}
    for row in rows:
        link = links.get((ep_id, row["identity_id"]))
        if link is None or row["is_locked"] or row["person_source"] == FACEBANK_SOURCE or is_human_named(row):
            continue
        row.update(person_id=None, name=None, person_source=None)
        best = link.decision.best
        if row["identity_id"] in dissenting:
            continue
        if link.person_id is None:
            if best is None or row["identity_id"] in reported:
                continue
            if link.decision.status == AMBIGUOUS:
                found.ambiguous.append(_describe_ambiguous(row, link.decision))
            elif link.decision.status == SUGGESTED or link.is_conflict:
                found.suggestions.append(_describe_suggestion(row, link.decision, "episode"))
            continue
        is_unknown = link.person_id not in state.names or link.person_id in state.unknown_ids
        name = None if is_unknown else state.names[link.person_id]
        row.update(person_id=link.person_id, name=name, person_source=PERSON_SOURCE)
        if is_unknown or best is None:
            found.reasons[row["identity_id"]] = "no known person comes near"
            continue
        found.reasons[row["identity_id"]] = f"similarity {best.similarity:.3f} to the person in another episode"
        found.assigned.append(
            {
                "cluster_id": row["identity_id"],
                "person_id": link.person_id,
                "distance": round(1 - best.similarity, 4),
                "suggested": False,
                "seed_match": False,
            }
        )


def _hide_newcomers(rows: list[Row], links: Mapping[tuple[str, str], Link], state: ShowState, found: _Grouping) -> None:
    """An unknown person's id goes into files once the person is seen in a second episode; before it says nothing."""
    episodes = defaultdict(set)
    for (ep_id, _), link in links.items():
        episodes[link.person_id].add(ep_id)
    known = state.names.keys() - state.unknown_ids
    for row in rows:
        person_id = row["person_id"]
        if person_id is None or row["person_source"] != PERSON_SOURCE or person_id in known or row["is_locked"]:
            continue
        if person_id not in state.unknown_ids:
            found.new_people.append({"person_id": person_id, "cluster_id": row["identity_id"]})
        if len(episodes[person_id]) < 2:
            row.update(person_id=None, name=None, person_source=None)


def _best_similarity(decision: MatchDecision) -> float:
    return decision.best.similarity if decision.best is not None else -1.0


def _describe_suggestion(row: Row, decision: MatchDecision, by: str) -> Row:
    """``by``: compared with the person's seed photos, or with the person in other episodes."""
    best = decision.best
    assert best is not None
    return {
        "cluster_id": row["identity_id"],
        "suggested_person_id": best.person_id,
        "distance": round(1 - best.similarity, 4),
        "by": by,
        "tier": find_tier(decision.probability),
        "probability": round(decision.probability, 4),
    }


def _describe_ambiguous(row: Row, decision: MatchDecision) -> Row:
    return {
        "cluster_id": row["identity_id"],
        "candidates": [
            {"person_id": p.person_id, "name": p.name, "similarity": round(p.similarity, 4)}
            for p in (decision.best, decision.second)
            if p is not None
        ],
    }


def _merge_rows(
    rows: list[Row], companions: dict[str, set[str]], by_hand: frozenset[str], unlike: _Unlike, found: _Grouping
) -> list[Row]:
    """Merges identities of one person, unless one is locked, they share a frame, or humans assigned tracks to both.

    Identities that have the name from photos or other episodes, and do not look like each other, are not merged: one of
    the names may be wrong.
    """
    by_person: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["person_id"] is not None:
            by_person[row["person_id"]].append(row)
    gone: set[str] = set()
    for person_id in sorted(by_person):
        members = sorted(by_person[person_id], key=lambda row: _survivor_rank(row, by_hand))
        for i, survivor in enumerate(members):
            if survivor["identity_id"] in gone:
                continue
            merged = [survivor["identity_id"]]
            for other in members[i + 1 :]:
                if other["identity_id"] in gone:
                    continue
                reason = _why_apart(survivor, other, companions, by_hand) or unlike.explain(survivor, other)
                if reason is not None:
                    found.protected_pairs.append(
                        {"cluster_ids": [survivor["identity_id"], other["identity_id"]], "reason": reason}
                    )
                    continue
                survivor["track_ids"] = sorted(survivor["track_ids"] + other["track_ids"])
                survivor["outlier_reason"] = None
                for beside in companions.pop(other["identity_id"], set()):
                    companions[beside].add(survivor["identity_id"])
                    companions[survivor["identity_id"]].add(beside)
                merged.append(other["identity_id"])
                gone.add(other["identity_id"])
            if len(merged) > 1:
                found.groups.append({"cluster_ids": merged, "person_id": person_id})
    return [row for row in rows if row["identity_id"] not in gone]


@dataclass(frozen=True)
class _Unlike:
    """Tells identities whose centroids are no more alike than strangers are, though photos gave them one name."""

    centroids: Mapping[str, Centroid]
    limit: float

    def explain(self, a: Row, b: Row) -> str | None:
        """Why two identities of one name do not agree, or None; whom a person put together stay together."""
        known = [self.centroids[row["identity_id"]].vector for row in (a, b) if row["identity_id"] in self.centroids]
        is_named_by_photo = FACEBANK_SOURCE in (a["person_source"], b["person_source"])
        if len(known) < 2 or not is_named_by_photo or float(known[0] @ known[1]) >= self.limit:
            return None
        return "unlike each other"


def _survivor_rank(row: Row, by_hand: frozenset[str]) -> tuple[bool, bool, bool, bool, int, str]:
    return (
        not row["is_locked"],
        row["identity_id"] not in by_hand,
        not is_human_named(row),
        row["raw"] is None,
        -len(row["track_ids"]),
        row["identity_id"],
    )


def _why_apart(a: Row, b: Row, companions: Mapping[str, set[str]], by_hand: frozenset[str]) -> str | None:
    if a["identity_id"] in by_hand and b["identity_id"] in by_hand:
        return "assigned by hand"
    if a["is_locked"] or b["is_locked"]:
        return "locked"
    if is_human_named(a) and is_human_named(b) and normalise_name(a["name"] or "") != normalise_name(b["name"] or ""):
        return "named differently"
    return "share a frame" if b["identity_id"] in companions.get(a["identity_id"], ()) else None
