"""What people said about tracks, as identities.json keeps it: where a track belongs, and who is seen beside whom.

``manual_assignments`` maps a track to an identity. ``seen_together`` lists pairs of tracks that share frames: under
``one_person`` a person seen twice, under ``two_people`` those who only look alike. Tracks are written as the dialect
writes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from cleanup import schemas
from cleanup.episode import Episode, format_track_id
from cleanup.errors import ArtifactError
from cleanup.phases.identity_rows import find_shared_frames, is_human_named

Row = dict[str, Any]
Pair = tuple[int, int]
_KEY, _ONE, _TWO = "seen_together", "one_person", "two_people"


def read_manual_assignments(episode: Episode) -> tuple[dict[int, str], list[str]]:
    """Tracks that a human put into an identity, from ``manual_assignments`` of identities.json.

    It maps a track, as the dialect writes it, to an identity id or to an object with ``identity_id``.

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
        if track_id is None or track_id not in tracks or identity_id not in identities:
            odd.append(f"manual_assignments: {key!r} to {identity_id!r} names what is not there; kept, but not obeyed")
        else:
            assigned[track_id] = str(identity_id)
    return assigned, odd


@dataclass(frozen=True)
class Verdicts:
    """What people said about pairs of tracks (lower id first) that share frames.

    Attributes:
        one_person: A person seen twice.
        two_people: Two people, however alike.
        odd: A sentence for everything that cannot be obeyed.
    """

    one_person: frozenset[Pair]
    two_people: frozenset[Pair]
    odd: list[str]


def read_verdicts(episode: Episode) -> Verdicts:
    """The verdicts in ``seen_together`` of identities.json."""
    entries = orjson.loads(episode.identity_document).get(_KEY) or {}
    if not isinstance(entries, dict):
        odd = f"{_KEY} is a {type(entries).__name__} and not an object; it is kept, but not obeyed"
        return Verdicts(frozenset(), frozenset(), [odd])
    tracks = set(episode.tracks["track_id"].to_pylist())
    found: dict[str, frozenset[Pair]] = {}
    warnings = []
    for name in (_ONE, _TWO):
        listed = entries.get(name) or []
        pairs = [_read_pair(entry) for entry in listed] if isinstance(listed, list) else [None]
        found[name] = frozenset(pair for pair in pairs if pair is not None and tracks.issuperset(pair))
        if len(found[name]) < len(pairs):
            warnings.append(f"{_KEY}: {name} holds what is no pair of tracks that are there; kept, but not obeyed")
    return Verdicts(found[_ONE] - found[_TWO], found[_TWO], warnings)


def _read_pair(entry: Any) -> Pair | None:
    tracks = [_read_track(key) for key in entry] if isinstance(entry, list) else []
    if len(tracks) != 2 or tracks[0] is None or tracks[1] is None or tracks[0] == tracks[1]:
        return None
    return min(tracks[0], tracks[1]), max(tracks[0], tracks[1])


def inherit_verdicts(episode: Episode, pieces: Mapping[int, Sequence[int]]) -> Episode:
    """The episode in which what was said about a track is said about its pieces, where they share a frame.

    Args:
        episode: In which tracks were split.
        pieces: Track -> its pieces, itself among them.
    """
    verdicts = read_verdicts(episode)
    if not verdicts.one_person and not verdicts.two_people:
        return episode
    shared = find_shared_frames(episode).keys()

    def inherited(pairs: Iterable[Pair]) -> set[Pair]:
        between = {(min(p, q), max(p, q)) for a, b in pairs for p in pieces.get(a, [a]) for q in pieces.get(b, [b])}
        return between & shared

    document = orjson.loads(episode.identity_document)
    _say(episode, document, _ONE, inherited(verdicts.one_person) - verdicts.one_person)
    _say(episode, document, _TWO, inherited(verdicts.two_people) - verdicts.two_people)
    return episode.replace(identity_document=orjson.dumps(document))


def _say(episode: Episode, document: Row, name: str, pairs: Iterable[Pair]) -> None:
    """Adds pairs to what was said, and takes them out of what was said to the contrary."""
    said = set(pairs)
    if not said:
        return
    entries = _read_entry(episode, document, _KEY, dict)
    other = _TWO if name == _ONE else _ONE
    if other in entries:
        entries[other] = [
            entry for entry in _read_entry(episode, entries, other, list) if _read_pair(entry) not in said
        ]
    listed = _read_entry(episode, entries, name, list)
    known = {_read_pair(entry) for entry in listed}
    fresh = [[format_track_id(episode.dialect, t) for t in pair] for pair in sorted(said - known)]
    document[_KEY] = {**entries, name: [*listed, *fresh]}


def _read_track(key: Any) -> int | None:
    match = re.fullmatch(r"(?:track-)?(\d{1,18})", str(key))
    return int(match[1]) if match else None


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
    if read_verdicts(episode).two_people.issuperset(pairs):
        return episode
    document = orjson.loads(episode.identity_document)
    _say(episode, document, _TWO, pairs)
    return episode.replace(identity_document=orjson.dumps(document))


def join_identities(episode: Episode, identity_id: str, into: str) -> Episode:
    """The episode in which an identity's tracks are another's, by hand: no later run takes them apart.

    Where the two share frames, it is one person seen twice. The name that a person gave stays.

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
    _assign_by_hand(episode, document, row["track_ids"], identity_id, into)
    _say(episode, document, _ONE, _pairs_between(episode, *sides))
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
