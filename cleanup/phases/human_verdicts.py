"""What people said about tracks, as identities.json keeps it: who a track belongs to, and which are two people."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from cleanup import schemas
from cleanup.episode import Episode, format_track_id
from cleanup.errors import ArtifactError
from cleanup.phases.identity_rows import find_shared_frames, is_human_named

Row = dict[str, Any]


def read_manual_assignments(episode: Episode) -> tuple[dict[int, str], list[str]]:
    """Tracks that a human put into an identity, from ``manual_assignments`` of identities.json.

    It maps a track, as the dialect writes it, to an identity id or to an object with ``identity_id``. What was split
    off a track later goes where the track goes, unless it is assigned itself.

    Returns:
        Track -> identity id, and a sentence for everything that is not of this form or names what is not there.
    """
    entries = orjson.loads(episode.identity_document).get("manual_assignments") or {}
    if not isinstance(entries, dict):
        return {}, [f"manual_assignments is a {type(entries).__name__} and not an object; it is kept, but not obeyed"]
    tracks = set(episode.tracks["track_id"].to_pylist())
    identities = set(episode.identities["identity_id"].to_pylist())
    assigned, odd = {}, []
    for key, value in entries.items():
        identity_id = value.get("identity_id") if isinstance(value, dict) else value
        track_id = _read_track(key)
        if track_id not in tracks or identity_id not in identities:
            odd.append(f"manual_assignments: {key!r} to {identity_id!r} names what is not there; kept, but not obeyed")
        else:
            assigned[track_id] = str(identity_id)
    lines = _read_lines(episode)
    nearest = {t: next((assigned[a] for a in line if a in assigned), None) for t, line in lines.items()}
    return {t: identity_id for t, identity_id in nearest.items() if identity_id is not None}, odd


def read_two_people(episode: Episode) -> tuple[set[tuple[int, int]], list[str]]:
    """Pairs of tracks (lower id first) that a human said are two people, from ``two_people`` of identities.json.

    It lists pairs of tracks as the dialect writes them; what was split off either track later is part of the pair.

    Returns:
        The pairs, and a sentence for everything that is not of this form or names what is not there.
    """
    entries = orjson.loads(episode.identity_document).get("two_people") or []
    if not isinstance(entries, list):
        return set(), [f"two_people is a {type(entries).__name__} and not a list; it is kept, but not obeyed"]
    pieces: dict[int, list[int]] = defaultdict(list)
    for track_id, line in _read_lines(episode).items():
        for ancestor in line:
            pieces[ancestor].append(track_id)
    pairs, odd = set(), []
    for entry in entries:
        sides = [t for key in entry if (t := _read_track(key)) in pieces] if isinstance(entry, list) else []
        if len(sides) != 2 or len(entry) != 2 or sides[0] == sides[1]:
            odd.append(f"two_people: {entry!r} is no pair of tracks that are there; kept, but not obeyed")
        else:
            pairs |= {(min(a, b), max(a, b)) for a in pieces[sides[0]] for b in pieces[sides[1]] if a != b}
    return pairs, odd


def _read_track(key: Any) -> int | None:
    match = re.fullmatch(r"(?:track-)?(\d{1,18})", str(key))
    return int(match[1]) if match else None


def _read_lines(episode: Episode) -> dict[int, list[int]]:
    """Each track -> itself and the tracks that it was split off, nearest first."""
    columns = (episode.tracks[name].to_pylist() for name in ("track_id", "parent_track_id"))
    parents = dict(zip(*columns, strict=True))
    lines = {}
    for track_id, parent in parents.items():
        line = [track_id]
        while parent in parents and parent not in line:
            line.append(parent)
            parent = parents[parent]
        lines[track_id] = line
    return lines


def apply_manual_assignments(
    rows: list[Row], earlier: Sequence[Mapping[str, Any]], assigned: Mapping[int, str]
) -> list[Row]:
    """Rows in which every track that a human assigned is in its identity; locked identities stay as they are.

    Args:
        rows: The identities as clustering left them.
        earlier: The identities before; one that clustering dissolved comes back for its tracks.
        assigned: Track -> identity id.
    """
    locked = {t for row in rows if row["is_locked"] for t in row["track_ids"]}
    locked_ids = {row["identity_id"] for row in rows if row["is_locked"]}
    wanted = {t: i for t, i in assigned.items() if t not in locked and i not in locked_ids}
    before = {row["identity_id"]: row for row in earlier}
    result = [
        row if row["is_locked"] else {**row, "track_ids": [t for t in row["track_ids"] if t not in wanted]}
        for row in rows
    ]
    place = {row["identity_id"]: row for row in result}
    for track_id, identity_id in sorted(wanted.items()):
        if identity_id not in place:
            place[identity_id] = {**before[identity_id], "track_ids": [], "outlier_reason": None}
            result.append(place[identity_id])
        row = place[identity_id]
        row["track_ids"] = sorted([*row["track_ids"], track_id])
        if len(row["track_ids"]) > 1:
            row["outlier_reason"] = None
    return [row for row in result if row["track_ids"]]


def say_two_people(episode: Episode, first: str, second: str) -> Episode:
    """The episode in which two identities that are seen in one frame are two people, whatever they look like.

    Raises:
        ArtifactError: There is no such identity, they share no frame, or the file holds something else there.
    """
    sides = [set(_find_row(episode, identity_id)["track_ids"]) for identity_id in (first, second)]
    pairs = _pairs_between(episode, *sides)
    if not pairs:
        raise ArtifactError(
            f"{episode.ep_id}: {first} and {second} share no frame, so they are no question; to keep them apart, give "
            "them different names"
        )
    known, _ = read_two_people(episode)
    document = orjson.loads(episode.identity_document)
    entries = _read_entry(episode, document, "two_people", list)
    keys = [[format_track_id(episode.dialect, t) for t in pair] for pair in pairs if pair not in known]
    if not keys:
        return episode
    document["two_people"] = [*entries, *keys]
    return episode.replace(identity_document=orjson.dumps(document))


def join_identities(episode: Episode, identity_id: str, into: str) -> Episode:
    """The episode in which an identity's tracks are another's, by hand: no later run takes them apart.

    What was said before about tracks of the two being two people is taken back. The name that a person gave stays.

    Raises:
        ArtifactError: There is no such identity, one is locked, or people named the two differently.
    """
    row, target = _find_row(episode, identity_id), _find_row(episode, into)
    if identity_id == into:
        raise ArtifactError(f"{episode.ep_id}: {into} is one identity already")
    for locked in (r for r in (row, target) if r["is_locked"]):
        raise ArtifactError(
            f"{episode.ep_id}: {locked['identity_id']} is locked and keeps exactly its tracks; unlock it first: "
            f"cleanup people unlock {episode.ep_id} {locked['identity_id']}"
        )
    labels = [r["person_id"] or r["name"] for r in (row, target)]
    if is_human_named(row) and is_human_named(target) and labels[0] != labels[1]:
        raise ArtifactError(
            f"{episode.ep_id}: people named {identity_id} {labels[0]} and {into} {labels[1]}; if that is one person, "
            "merge the two people first"
        )
    document = orjson.loads(episode.identity_document)
    sides = set(row["track_ids"]), set(target["track_ids"])
    seen_with = {t for pair in _pairs_between(episode, *sides) for t in pair} & sides[1]
    _assign_by_hand(episode, document, sorted(sides[0] | seen_with), row["identity_id"], into)
    if "two_people" in document:
        document["two_people"] = _without_pairs(episode, document, *sides)
    if is_human_named(row) or (target["person_id"] is None and target["name"] is None):
        target.update({key: row[key] for key in ("person_id", "name", "person_source")})
    target.update(track_ids=sorted(sides[0] | sides[1]), outlier_reason=None)
    rows = [target if r["identity_id"] == into else r for r in episode.identities.to_pylist()]
    kept = [r for r in rows if r["identity_id"] != identity_id]
    return episode.replace(
        identities=schemas.build_table(kept, schemas.IDENTITY_SCHEMA), identity_document=orjson.dumps(document)
    )


def _find_row(episode: Episode, identity_id: str) -> Row:
    for row in episode.identities.to_pylist():
        if row["identity_id"] == identity_id:
            return dict(row)
    raise ArtifactError(f"{episode.ep_id}: identities.json has no identity {identity_id!r}")


def _pairs_between(episode: Episode, first: set[int], second: set[int]) -> list[tuple[int, int]]:
    return [
        (a, b) for a, b in find_shared_frames(episode) if (a in first and b in second) or (a in second and b in first)
    ]


def _read_entry(episode: Episode, document: Row, name: str, kind: type) -> Any:
    entry = document.get(name) or kind()
    if not isinstance(entry, kind):
        raise ArtifactError(
            f"{episode.ep_id}: {name} of identities.json is a {type(entry).__name__} and not a {kind.__name__}; "
            "correct or remove it"
        )
    return entry


def _assign_by_hand(episode: Episode, document: Row, tracks: Sequence[int], identity_id: str, into: str) -> None:
    """Tracks go into an identity, and so does what was assigned to one that is gone."""
    entries = _read_entry(episode, document, "manual_assignments", dict)
    known: set[int | None] = set()
    for key, value in entries.items():
        is_object = isinstance(value, dict)
        track_id = _read_track(key)
        if track_id in tracks or (value.get("identity_id") if is_object else value) == identity_id:
            entries[key] = {**value, "identity_id": into} if is_object else into
            known.add(track_id)
    fresh = {str(format_track_id(episode.dialect, t)): into for t in tracks if t not in known}
    document["manual_assignments"] = {**entries, **fresh}


def _without_pairs(episode: Episode, document: Row, first: set[int], second: set[int]) -> list[Any]:
    """What ``two_people`` says beside pairs of tracks, or of what they were split off, that are one person now."""
    lines = _read_lines(episode)
    sides = [{ancestor for t in side for ancestor in lines[t]} for side in (first, second)]

    def is_between(entry: Any) -> bool:
        a, b = [_read_track(key) for key in entry] if isinstance(entry, list) and len(entry) == 2 else (None, None)
        return (a in sides[0] and b in sides[1]) or (a in sides[1] and b in sides[0])

    return [entry for entry in _read_entry(episode, document, "two_people", list) if not is_between(entry)]
