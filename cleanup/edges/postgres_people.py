"""Who is who in a show, across its episodes: people, their identities, what humans ruled out, and the log of it all.

Every change is one transaction that also writes an event, with what undoing it needs. Files are not touched here: what
has to be relabelled is returned as (episode, identity) pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from psycopg.types.json import Jsonb

from cleanup.edges.postgres_server import PostgresServer
from cleanup.errors import FacebankError
from cleanup.names import fold_name
from cleanup.people import (
    HUMAN,
    NONE,
    PERSON,
    GroupingPlan,
    Key,
    Rejection,
    ShowCluster,
    ShowState,
    find_rejected,
    format_unknown_id,
    make_person_id,
)

Row = dict[str, Any]
Connection = psycopg.Connection[Any]


@dataclass(frozen=True)
class PersonOverview:
    """One person as ``people list`` shows it; ``episodes`` are those the person is seen in."""

    show: str
    person_id: str
    name: str
    is_unknown: bool
    aliases: tuple[str, ...]
    n_seeds: int
    n_identities: int
    n_faces: int
    episodes: tuple[str, ...]


@dataclass(frozen=True)
class Label:
    """What an identity's label should be; ``source`` as in ``episode_clusters``."""

    person_id: str | None
    name: str | None
    source: str
    track_ids: frozenset[int]


@dataclass(frozen=True)
class Event:
    """One line of the log."""

    event_id: int
    at: str
    show: str
    kind: str
    person_id: str | None
    ep_id: str | None
    identity_id: str | None
    actor: str
    reason: str
    undone_by: int | None


class PostgresPeople(PostgresServer):
    """The tables of people on one server."""

    def read_show(self, show: str, model: str) -> ShowState:
        """See ``cleanup.interfaces.Facebank``."""
        with self.transaction() as connection:
            counter = connection.execute("SELECT last_unknown FROM shows WHERE show = %s", (show,)).fetchone()
            people = connection.execute(
                "SELECT person_id, name, is_unknown, aliases FROM people WHERE show = %s ORDER BY 1", (show,)
            ).fetchall()
            rejections = _read_rejections(connection, show)
            rows = connection.execute(
                "SELECT ep_id, identity_id, centroid, sub_centroids, n_faces, is_solid, is_seen, person_id, source, "
                "shares_frames_with, track_ids FROM episode_clusters WHERE show = %s AND model = %s ORDER BY 1, 2",
                (show, model),
            ).fetchall()
        clusters = tuple(
            ShowCluster(
                ep_id=row[0],
                identity_id=row[1],
                vectors=np.array([v.to_numpy() for v in (row[2], *row[3])], np.float32),
                n_faces=row[4],
                is_solid=row[5],
                is_seen=row[6],
                person_id=row[7],
                source=row[8],
                shares_frames_with=frozenset(row[9]),
                rejected=find_rejected(row[0], row[10], rejections),
            )
            for row in rows
        )
        aliases: dict[str, str] = {}
        for person_id, name, is_unknown, others in people:
            for other in (name, *others) if not is_unknown else others:
                aliases.setdefault(fold_name(other), person_id)
        return ShowState(
            clusters=clusters,
            names={row[0]: row[1] for row in people},
            unknown_ids=frozenset(row[0] for row in people if row[2]),
            aliases=aliases,
            rejections=tuple(rejections),
            last_unknown=counter[0] if counter else 0,
        )

    def record(self, plan: GroupingPlan, actor: str, before_commit: Callable[[], None]) -> list[str]:
        """Keeps what grouping an episode found, with an event for everybody who is somebody else from now on.

        Args:
            plan: What it found.
            actor: Who says so.
            before_commit: Called when all is said; what it raises undoes it.

        Returns:
            Other episodes whose labels are not what they were.
        """
        with self.transaction() as connection:
            labels_before = _visible_labels(connection, plan.show)
            connection.execute(
                "INSERT INTO shows (show, last_unknown) VALUES (%s, %s) ON CONFLICT (show) DO UPDATE "
                "SET last_unknown = greatest(shows.last_unknown, excluded.last_unknown)",
                (plan.show, plan.last_unknown),
            )
            seen = {c.person_id for c in plan.clusters} | {person for person, _ in plan.others.values()}
            for person_id, name in sorted(plan.new_people.items()):
                _insert_person(connection, plan.show, person_id, name, is_unknown=False)
            for unknown_id in sorted(p for p in seen if p is not None):
                _insert_person(connection, plan.show, unknown_id, unknown_id, is_unknown=True)
            rows = connection.execute(
                "SELECT identity_id, person_id FROM episode_clusters WHERE show = %s AND ep_id = %s",
                (plan.show, plan.ep_id),
            ).fetchall()
            before = {row[0]: row[1] for row in rows}
            connection.execute(
                "DELETE FROM episode_clusters WHERE show = %s AND ep_id = %s AND NOT identity_id = ANY(%s)",
                (plan.show, plan.ep_id, [c.identity_id for c in plan.clusters]),
            )
            for cluster in plan.clusters:
                connection.execute(
                    "INSERT INTO episode_clusters (show, ep_id, identity_id, model, dimension, centroid, "
                    "sub_centroids, track_ids, n_faces, is_solid, is_seen, shares_frames_with, person_id, "
                    "source) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) "
                    "ON CONFLICT (show, ep_id, identity_id) DO UPDATE SET model = excluded.model, "
                    "dimension = excluded.dimension, centroid = excluded.centroid, "
                    "sub_centroids = excluded.sub_centroids, track_ids = excluded.track_ids, "
                    "n_faces = excluded.n_faces, is_solid = excluded.is_solid, is_seen = excluded.is_seen, "
                    "shares_frames_with = excluded.shares_frames_with, person_id = excluded.person_id, "
                    "source = excluded.source, updated_at = now()",
                    (
                        plan.show, plan.ep_id, cluster.identity_id, plan.model, cluster.vectors.shape[1],
                        cluster.vectors[0], list(cluster.vectors[1:]), list(cluster.track_ids), cluster.n_faces,
                        cluster.is_solid, cluster.is_seen, list(cluster.shares_frames_with), cluster.person_id,
                        cluster.source,
                    ),
                )  # fmt: skip
                if before.get(cluster.identity_id) != cluster.person_id:
                    details = {"before": before.get(cluster.identity_id), "source": cluster.source}
                    log_event(connection, plan.show, "assign", actor, cluster.reason, person_id=cluster.person_id,
                         key=(plan.ep_id, cluster.identity_id), details=details)  # fmt: skip
            for key, (other_id, source) in sorted(plan.others.items()):
                _assign(connection, plan.show, key, other_id, source)
                log_event(
                    connection, plan.show, "assign", actor, f"with episode {plan.ep_id}", person_id=other_id, key=key
                )
            _remove_unseen(connection, plan.show)
            changed = labels_before ^ _visible_labels(connection, plan.show)
            before_commit()
        return sorted({ep_id for ep_id, _, _ in changed} - {plan.ep_id})

    def read_labels(self, show: str, ep_id: str) -> dict[str, Label]:
        """The label of every identity of an episode. Unknown people have none before they are seen in two episodes."""
        with self.transaction() as connection:
            rows = connection.execute(
                "WITH seen AS (SELECT person_id, count(DISTINCT ep_id) AS n FROM episode_clusters WHERE show = %s "
                "GROUP BY 1) SELECT c.identity_id, c.person_id, p.name, p.is_unknown, c.source, c.track_ids, seen.n "
                "FROM episode_clusters c LEFT JOIN people p USING (show, person_id) LEFT JOIN seen USING (person_id) "
                "WHERE c.show = %s AND c.ep_id = %s",
                (show, show, ep_id),
            ).fetchall()
        labels = {}
        for identity_id, person_id, name, is_unknown, source, track_ids, n_episodes in rows:
            tracks = frozenset(track_ids)
            if person_id is None or (is_unknown and n_episodes < 2):
                labels[identity_id] = Label(None, None, NONE, tracks)
            else:
                labels[identity_id] = Label(
                    person_id, None if is_unknown else name, PERSON if is_unknown else source, tracks
                )
        return labels

    def list_episodes(self, show: str) -> list[str]:
        """The episodes of a show that were grouped."""
        with self.transaction() as connection:
            rows = connection.execute(
                "SELECT DISTINCT ep_id FROM episode_clusters WHERE show = %s ORDER BY 1", (show,)
            ).fetchall()
        return [row[0] for row in rows]

    def list_visible(self, show: str) -> set[tuple[str, str, str]]:
        """(episode, identity, person) as the files should say it."""
        with self.transaction() as connection:
            return _visible_labels(connection, show)

    def list_confirmed(self, show: str) -> list[Key]:
        """(episode, identity) of everybody whom a human named."""
        with self.transaction() as connection:
            rows = connection.execute(
                "SELECT ep_id, identity_id FROM episode_clusters WHERE show = %s AND source = 'human' ORDER BY 1, 2",
                (show,),
            ).fetchall()
        return [(row[0], row[1]) for row in rows]

    def list_people(self, show: str | None = None) -> list[PersonOverview]:
        """All people, or those of one show: named ones first, then unknown ones."""
        with self.transaction() as connection:
            rows = connection.execute(
                "SELECT p.show, p.person_id, p.name, p.is_unknown, p.aliases, "
                "(SELECT count(*) FROM seeds s WHERE (s.show, s.person_id) = (p.show, p.person_id)), "
                "count(c.identity_id), coalesce(sum(c.n_faces), 0), "
                "coalesce(array_agg(DISTINCT c.ep_id) FILTER (WHERE c.ep_id IS NOT NULL), '{}') "
                "FROM people p LEFT JOIN episode_clusters c USING (show, person_id) "
                "WHERE %s::text IS NULL OR p.show = %s GROUP BY p.show, p.person_id ORDER BY 1, 4, 2",
                (show, show),
            ).fetchall()
        return [
            PersonOverview(row[0], row[1], row[2], row[3], tuple(row[4]), row[5], row[6], int(row[7]), tuple(row[8]))
            for row in rows
        ]

    def find_id(self, show: str, reference: str) -> str:
        """The id of the person with an id, name or alias.

        Raises:
            FacebankError: There is none, or several.
        """
        with self.transaction() as connection:
            return str(_find(connection, show, reference)["person_id"])

    def list_identities(self, show: str, reference: str) -> list[Row]:
        """The identities of a person in all episodes."""
        with self.transaction() as connection:
            person_id = _find(connection, show, reference)["person_id"]
            rows = connection.execute(
                "SELECT ep_id, identity_id, n_faces, cardinality(track_ids), source FROM episode_clusters "
                "WHERE show = %s AND person_id = %s ORDER BY 1, 2",
                (show, person_id),
            ).fetchall()
        keys = ("ep_id", "identity_id", "faces", "tracks", "source")
        return [dict(zip(keys, row, strict=True)) for row in rows]

    def list_events(self, show: str, limit: int) -> list[Event]:
        """The newest events of a show, newest first."""
        with self.transaction() as connection:
            rows = connection.execute(
                "SELECT event_id, at, show, kind, person_id, ep_id, identity_id, actor, reason, undone_by FROM events "
                "WHERE show = %s ORDER BY event_id DESC LIMIT %s",
                (show, limit),
            ).fetchall()
        return [Event(row[0], row[1].isoformat(timespec="seconds"), *row[2:]) for row in rows]

    def name(self, show: str, reference: str, name: str, person_id: str | None, actor: str) -> list[Key]:
        """Names a person; an unknown one gets an id of its own, and its identities count as confirmed.

        Args:
            show: The show.
            reference: The person's id, name or alias.
            name: The name.
            person_id: The new id; None makes one from the name where the person is unknown.
            actor: Who says so.

        Raises:
            FacebankError: There is no such person, or somebody else has the id.
        """
        with self.transaction() as connection:
            person = _find(connection, show, reference)
            old_id = person["person_id"]
            new_id = person_id or (make_person_id(name) if person["is_unknown"] else old_id)
            if new_id != old_id and _exists(connection, show, new_id):
                raise FacebankError(
                    f"show {show!r} has a person {new_id!r} already; if this is the same one: cleanup people merge "
                    f"{old_id} {new_id} --show {show}; else give another id with --person-id"
                )
            confirmed = _keys(connection, show, old_id, PERSON) if person["is_unknown"] else []
            connection.execute(
                "UPDATE people SET person_id = %s, name = %s, is_unknown = false, aliases = %s, updated_at = now() "
                "WHERE show = %s AND person_id = %s",
                (new_id, name, _joined(person["aliases"], [old_id] if old_id != new_id else []), show, old_id),
            )
            for key in confirmed:
                _assign(connection, show, key, new_id, HUMAN)
            log_event(connection, show, "name", actor, f"{old_id} is {name}", person_id=new_id,
                 details={"person": person, "confirmed": confirmed})  # fmt: skip
            return _keys(connection, show, new_id)

    def merge(self, show: str, reference: str, into: str, actor: str) -> list[Key]:
        """Makes two people one: identities, seeds, aliases and rejections of the first go to the second.

        Raises:
            FacebankError: One of them does not exist, both are the same, or they are seen in one frame.
        """
        with self.transaction() as connection:
            person, target = _find(connection, show, reference), _find(connection, show, into)
            old_id, new_id = person["person_id"], target["person_id"]
            if old_id == new_id:
                raise FacebankError(f"{reference!r} and {into!r} are the same person of show {show!r} already")
            together = connection.execute(
                "SELECT a.ep_id, a.identity_id, b.identity_id FROM episode_clusters a JOIN episode_clusters b "
                "USING (show, ep_id) WHERE a.show = %s AND a.person_id = %s AND b.person_id = %s "
                "AND b.identity_id = ANY(a.shares_frames_with) ORDER BY 1, 2, 3 LIMIT 1",
                (show, old_id, new_id),
            ).fetchone()
            if together is not None:
                raise FacebankError(
                    f"{old_id} and {new_id} cannot be one person: in {together[0]} their identities {together[1]} and "
                    f"{together[2]} are seen in one frame; reject the wrong one first (cleanup people reject), or, of "
                    f"one person seen twice, merge the two identities: cleanup people merge {together[0]}:"
                    f"{together[1]} {together[0]}:{together[2]} --show {show}"
                )
            moved = connection.execute(
                "SELECT ep_id, identity_id, source FROM episode_clusters WHERE show = %s AND person_id = %s "
                "ORDER BY 1, 2",
                (show, old_id),
            ).fetchall()
            seeds = connection.execute(
                "SELECT seed_id::text FROM seeds WHERE show = %s AND person_id = %s", (show, old_id)
            ).fetchall()
            for ep_id, identity_id, _ in moved:
                _assign(connection, show, (ep_id, identity_id), new_id, HUMAN)
            _move_seeds(connection, show, [row[0] for row in seeds], new_id)
            rejections = [r for r in _read_rejections(connection, show) if r.person_id == old_id]
            for rejection in rejections:
                _reject(connection, show, rejection.ep_id, rejection.track_ids, new_id)
            names = [old_id] if person["is_unknown"] else [old_id, person["name"]]
            connection.execute(
                "UPDATE people SET aliases = %s, updated_at = now() WHERE show = %s AND person_id = %s",
                (_joined(target["aliases"], [*person["aliases"], *names]), show, new_id),
            )
            connection.execute("DELETE FROM people WHERE show = %s AND person_id = %s", (show, old_id))
            details = {
                "person": person,
                "into": target,
                "identities": moved,
                "seeds": [row[0] for row in seeds],
                "rejections": [[r.ep_id, sorted(r.track_ids)] for r in rejections],
            }
            log_event(connection, show, "merge", actor, f"{old_id} is {new_id}", person_id=new_id, details=details)
            return _keys(connection, show, new_id)

    def split(self, show: str, reference: str, keys: Sequence[Key], actor: str) -> tuple[str, list[Key]]:
        """Takes identities out of a person; they become an unknown person of their own.

        Returns:
            The new person's id, and what has to be relabelled.
        """
        with self.transaction() as connection:
            person_id = _find(connection, show, reference)["person_id"]
            owned = _keys(connection, show, person_id)
            foreign = [f"{ep}:{identity}" for ep, identity in keys if (ep, identity) not in owned]
            if foreign:
                raise FacebankError(
                    f"{', '.join(foreign)}: not {person_id}; cleanup people show {person_id} lists them"
                )
            row = connection.execute(
                "UPDATE shows SET last_unknown = last_unknown + 1 WHERE show = %s RETURNING last_unknown", (show,)
            ).fetchone()
            assert row is not None
            new_id = format_unknown_id(row[0])
            _insert_person(connection, show, new_id, new_id, is_unknown=True)
            sources = []
            for key in keys:
                sources.append(_source_of(connection, show, key))
                _reject(connection, show, key[0], _tracks_of(connection, show, key), person_id)
                _assign(connection, show, key, new_id, HUMAN)
            for key in owned:
                if key not in keys:  # those who stay are not the new person either
                    _reject(connection, show, key[0], _tracks_of(connection, show, key), new_id)
            details = {"person_id": person_id, "identities": [[*k, s] for k, s in zip(keys, sources, strict=True)]}
            log_event(connection, show, "split", actor, f"out of {person_id}", person_id=new_id, details=details)
            return new_id, list(keys)

    def add_alias(self, show: str, reference: str, alias: str, actor: str) -> None:
        """Gives a person another name to be found by."""
        with self.transaction() as connection:
            person = _find(connection, show, reference)
            taken = _find_all(connection, show, alias)
            if any(p["person_id"] != person["person_id"] for p in taken):
                raise FacebankError(f"{alias!r} is {taken[0]['person_id']} of show {show!r} already")
            connection.execute(
                "UPDATE people SET aliases = %s, updated_at = now() WHERE show = %s AND person_id = %s",
                (_joined(person["aliases"], [alias]), show, person["person_id"]),
            )
            log_event(connection, show, "alias", actor, f"also {alias}", person_id=person["person_id"],
                 details={"person": person})  # fmt: skip

    def reject(self, show: str, key: Key, reference: str, actor: str) -> list[Key]:
        """Notes that an identity is not a person; it is never named or suggested so again."""
        with self.transaction() as connection:
            person_id = _find(connection, show, reference)["person_id"]
            tracks = _tracks_of(connection, show, key)
            source = _source_of(connection, show, key)
            is_this = key in _keys(connection, show, person_id)
            _reject(connection, show, key[0], tracks, person_id)
            if is_this:
                _assign(connection, show, key, None, NONE)
            details = {"tracks": sorted(tracks), "was": [person_id, source] if is_this else None}
            log_event(
                connection, show, "reject", actor, f"not {person_id}", person_id=person_id, key=key, details=details
            )
            return [key] if is_this else []

    def log_lock(self, show: str, key: Key, actor: str, *, is_locked: bool) -> None:
        """Notes that a human locked or unlocked an identity; who is locked is confirmed to be who it is."""
        with self.transaction() as connection:
            if is_locked:
                connection.execute(
                    "UPDATE episode_clusters SET source = 'human', updated_at = now() WHERE show = %s AND ep_id = %s "
                    "AND identity_id = %s AND source = 'person'",
                    (show, *key),
                )
            log_event(connection, show, "lock" if is_locked else "unlock", actor, "", key=key)

    def log_apart(self, show: str, key: Key, other: str, actor: str) -> None:
        """Notes that a human said that two identities of an episode are two people."""
        with self.transaction() as connection:
            log_event(connection, show, "apart", actor, f"not {other}", key=key)

    def check_show_of(self, ep_id: str, show: str) -> None:
        """Makes sure that an episode is not known as one of another show.

        Raises:
            FacebankError: It is.
        """
        with self.transaction() as connection:
            rows = connection.execute(
                "SELECT DISTINCT show FROM episode_clusters WHERE ep_id = %s ORDER BY 1", (ep_id,)
            ).fetchall()
        shows = [str(row[0]) for row in rows]
        if shows and show not in shows:
            raise FacebankError(f"{ep_id} is of show {' and '.join(map(repr, shows))}, not of {show!r}")

    def join(self, show: str, key: Key, into: str, actor: str) -> None:
        """Notes that a human put an identity's tracks into another one of the episode, which is there no more."""
        with self.transaction() as connection:
            connection.execute(
                "UPDATE episode_clusters c SET track_ids = c.track_ids || o.track_ids, "
                "n_faces = c.n_faces + o.n_faces, updated_at = now() FROM episode_clusters o "
                "WHERE (c.show, c.ep_id, c.identity_id) = (%s, %s, %s) "
                "AND (o.show, o.ep_id, o.identity_id) = (%s, %s, %s)",
                (show, key[0], into, show, *key),
            )
            connection.execute(
                "DELETE FROM episode_clusters WHERE show = %s AND ep_id = %s AND identity_id = %s", (show, *key)
            )
            _remove_unseen(connection, show)
            log_event(connection, show, "join", actor, f"is {into}", key=key)

    def undo(self, show: str, event_id: int, actor: str) -> list[Key]:
        """Takes back a name, merge, split, alias or rejection.

        Raises:
            FacebankError: There is no such event, it was undone already, or what it changed has changed since.
        """
        with self.transaction() as connection:
            row = connection.execute(
                "SELECT kind, person_id, ep_id, identity_id, details, undone_by FROM events "
                "WHERE show = %s AND event_id = %s FOR UPDATE",
                (show, event_id),
            ).fetchone()
            if row is None:
                raise FacebankError(
                    f"show {show!r} has no event {event_id}; cleanup people log --show {show} lists them"
                )
            kind, person_id, ep_id, identity_id, details, undone_by = row
            if undone_by is not None:
                raise FacebankError(f"event {event_id} was undone already, by event {undone_by}")
            undo = {"name": _undo_name, "merge": _undo_merge, "split": _undo_split, "alias": _undo_alias,
                    "reject": _undo_reject}.get(kind)  # fmt: skip
            if undo is None:
                raise FacebankError(f"event {event_id} is of kind {kind}, which cannot be undone")
            if kind != "reject" and not _exists(connection, show, person_id):
                raise FacebankError(
                    f"event {event_id} cannot be undone: {person_id} has changed since; undo that first"
                )
            keys = undo(connection, show, person_id, (ep_id, identity_id), details)
            number = log_event(connection, show, "undo", actor, f"event {event_id}", person_id=person_id)
            connection.execute("UPDATE events SET undone_by = %s WHERE event_id = %s", (number, event_id))
            return keys


def _undo_name(connection: Connection, show: str, person_id: str, _key: Key, details: Row) -> list[Key]:
    old = details["person"]
    connection.execute(
        "UPDATE people SET person_id = %s, name = %s, is_unknown = %s, aliases = %s, updated_at = now() "
        "WHERE show = %s AND person_id = %s",
        (old["person_id"], old["name"], old["is_unknown"], old["aliases"], show, person_id),
    )
    for key in details["confirmed"]:
        if tuple(key) in _keys(connection, show, old["person_id"]):
            _assign(connection, show, (key[0], key[1]), old["person_id"], PERSON)
    return _keys(connection, show, old["person_id"])


def _undo_merge(connection: Connection, show: str, person_id: str, _key: Key, details: Row) -> list[Key]:
    old, target = details["person"], details["into"]
    if _exists(connection, show, old["person_id"]):
        raise FacebankError(f"the merge cannot be undone: show {show!r} has another person {old['person_id']!r} now")
    connection.execute(
        "INSERT INTO people (show, person_id, name, is_unknown, aliases) VALUES (%s, %s, %s, %s, %s)",
        (show, old["person_id"], old["name"], old["is_unknown"], old["aliases"]),
    )
    connection.execute(
        "UPDATE people SET aliases = %s, updated_at = now() WHERE show = %s AND person_id = %s",
        (target["aliases"], show, person_id),
    )
    still = set(_keys(connection, show, person_id))
    moved = [(ep_id, identity_id, source) for ep_id, identity_id, source in details["identities"]
             if (ep_id, identity_id) in still]  # fmt: skip
    for ep_id, identity_id, source in moved:
        _assign(connection, show, (ep_id, identity_id), old["person_id"], source)
    _move_seeds(connection, show, details["seeds"], old["person_id"])
    for ep_id, tracks in details["rejections"]:
        _unreject(connection, show, ep_id, tracks, person_id)
        _reject(connection, show, ep_id, tracks, old["person_id"])
    return [*still]


def _undo_split(connection: Connection, show: str, person_id: str, _key: Key, details: Row) -> list[Key]:
    keys = _keys(connection, show, person_id)
    for ep_id, identity_id, source in details["identities"]:
        _unreject(connection, show, ep_id, _tracks_of(connection, show, (ep_id, identity_id)), details["person_id"])
        if (ep_id, identity_id) in keys:
            _assign(connection, show, (ep_id, identity_id), details["person_id"], source)
    _remove_unseen(connection, show)
    return keys


def _undo_alias(connection: Connection, show: str, person_id: str, _key: Key, details: Row) -> list[Key]:
    connection.execute(
        "UPDATE people SET aliases = %s, updated_at = now() WHERE show = %s AND person_id = %s",
        (details["person"]["aliases"], show, person_id),
    )
    return []


def _undo_reject(connection: Connection, show: str, person_id: str, key: Key, details: Row) -> list[Key]:
    _unreject(connection, show, key[0], details["tracks"], person_id)
    if details["was"] is None or not _exists(connection, show, person_id):
        return []
    _assign(connection, show, key, person_id, details["was"][1])
    return [key]


def _find(connection: Connection, show: str, reference: str) -> Row:
    """The person with an id, or else with a name or alias.

    Raises:
        FacebankError: There is none, or the name is that of several.
    """
    found = _find_all(connection, show, reference)
    if not found:
        raise FacebankError(f"show {show!r} has no person {reference!r}; cleanup people list --show {show} lists them")
    exact = [p for p in found if p["person_id"] == reference]
    if len(found) > 1 and not exact:
        ids = ", ".join(p["person_id"] for p in found)
        raise FacebankError(f"several people of show {show!r} are called {reference!r}: {ids}; give the id")
    return (exact or found)[0]


def _find_all(connection: Connection, show: str, reference: str) -> list[Row]:
    # Compared here: what the server takes for one letter depends on how its database was made.
    rows = connection.execute(
        "SELECT person_id, name, is_unknown, aliases FROM people WHERE show = %s ORDER BY 1", (show,)
    ).fetchall()
    people = [dict(zip(("person_id", "name", "is_unknown", "aliases"), row, strict=True)) for row in rows]
    folded = fold_name(reference)
    return [p for p in people if p["person_id"] == reference or folded in map(fold_name, (p["name"], *p["aliases"]))]


def _exists(connection: Connection, show: str, person_id: str) -> bool:
    query = "SELECT 1 FROM people WHERE show = %s AND person_id = %s"
    return connection.execute(query, (show, person_id)).fetchone() is not None


def _insert_person(connection: Connection, show: str, person_id: str, name: str, *, is_unknown: bool) -> None:
    connection.execute(
        "INSERT INTO people (show, person_id, name, is_unknown) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (show, person_id, name, is_unknown),
    )


def _remove_unseen(connection: Connection, show: str) -> None:
    """Unknown people whom no identity holds any more are somebody else now."""
    connection.execute(
        "DELETE FROM people p WHERE show = %s AND is_unknown AND NOT EXISTS (SELECT 1 FROM episode_clusters c "
        "WHERE (c.show, c.person_id) = (p.show, p.person_id)) AND NOT EXISTS (SELECT 1 FROM seeds s "
        "WHERE (s.show, s.person_id) = (p.show, p.person_id))",
        (show,),
    )


def _visible_labels(connection: Connection, show: str) -> set[tuple[str, str, str]]:
    """(episode, identity, person) as the files should say it: unknown people only if seen in two episodes."""
    rows = connection.execute(
        "WITH seen AS (SELECT person_id FROM episode_clusters WHERE show = %s GROUP BY 1 "
        "HAVING count(DISTINCT ep_id) > 1) SELECT c.ep_id, c.identity_id, c.person_id FROM episode_clusters c "
        "JOIN people p USING (show, person_id) WHERE c.show = %s AND (NOT p.is_unknown OR person_id IN "
        "(SELECT person_id FROM seen))",
        (show, show),
    ).fetchall()
    return {(row[0], row[1], row[2]) for row in rows}


def _keys(connection: Connection, show: str, person_id: str, source: str | None = None) -> list[Key]:
    """The identities of a person; with ``source`` those that are theirs by it."""
    rows = connection.execute(
        "SELECT ep_id, identity_id FROM episode_clusters WHERE show = %s AND person_id = %s "
        "AND (%s::text IS NULL OR source = %s) ORDER BY 1, 2",
        (show, person_id, source, source),
    ).fetchall()
    return [(row[0], row[1]) for row in rows]


def _source_of(connection: Connection, show: str, key: Key) -> str:
    row = connection.execute(
        "SELECT source FROM episode_clusters WHERE show = %s AND ep_id = %s AND identity_id = %s", (show, *key)
    ).fetchone()
    return str(row[0]) if row else NONE


def _tracks_of(connection: Connection, show: str, key: Key) -> list[int]:
    row = connection.execute(
        "SELECT track_ids FROM episode_clusters WHERE show = %s AND ep_id = %s AND identity_id = %s", (show, *key)
    ).fetchone()
    if row is None:
        raise FacebankError(
            f"{key[0]}: the Facebank knows no identity {key[1]!r}; group the episode first: "
            f"cleanup run --ep-id {key[0]} --actions group_clusters --write-back"
        )
    return list(row[0])


def _assign(connection: Connection, show: str, key: Key, person_id: str | None, source: str) -> None:
    connection.execute(
        "UPDATE episode_clusters SET person_id = %s, source = %s, updated_at = now() "
        "WHERE show = %s AND ep_id = %s AND identity_id = %s",
        (person_id, source, show, *key),
    )


def _move_seeds(connection: Connection, show: str, seed_ids: Sequence[str], person_id: str) -> None:
    """Gives seeds to another person, who keeps the featured one; a photo that the person has already stays away."""
    connection.execute(
        "DELETE FROM seeds s USING seeds t WHERE s.seed_id = ANY(%s::uuid[]) AND t.show = s.show AND t.person_id = %s "
        "AND t.image_sha256 = s.image_sha256 AND t.model = s.model AND t.seed_id <> s.seed_id",
        (list(seed_ids), person_id),
    )
    connection.execute(
        "UPDATE seeds SET person_id = %s, is_featured = false, updated_at = now() "
        "WHERE show = %s AND seed_id = ANY(%s::uuid[])",
        (person_id, show, list(seed_ids)),
    )


def _read_rejections(connection: Connection, show: str) -> list[Rejection]:
    rows = connection.execute(
        "SELECT ep_id, track_ids, person_id FROM rejections WHERE show = %s ORDER BY 1, 3, 2", (show,)
    ).fetchall()
    return [Rejection(row[0], frozenset(row[1]), row[2]) for row in rows]


def _reject(connection: Connection, show: str, ep_id: str, track_ids: Iterable[int], person_id: str) -> None:
    connection.execute(
        "INSERT INTO rejections (show, ep_id, track_ids, person_id) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (show, ep_id, sorted(track_ids), person_id),
    )


def _unreject(connection: Connection, show: str, ep_id: str, track_ids: Iterable[int], person_id: str) -> None:
    connection.execute(
        "DELETE FROM rejections WHERE show = %s AND ep_id = %s AND track_ids = %s::bigint[] AND person_id = %s",
        (show, ep_id, sorted(track_ids), person_id),
    )


def _joined(aliases: Sequence[str], more: Sequence[str]) -> list[str]:
    joined: dict[str, str] = defaultdict(str)
    for alias in (*aliases, *more):
        joined.setdefault(fold_name(alias), alias)
    return list(joined.values())


def log_event(
    connection: Connection,
    show: str,
    kind: str,
    actor: str,
    reason: str,
    *,
    person_id: str | None = None,
    key: tuple[str | None, str | None] = (None, None),
    details: Row | None = None,
) -> int:
    """Notes what happened to a show's people and gives its number."""
    row = connection.execute(
        "INSERT INTO events (show, kind, person_id, ep_id, identity_id, actor, reason, details) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING event_id",
        (show, kind, person_id, *key, actor, reason, Jsonb(details or {})),
    ).fetchone()
    assert row is not None
    return int(row[0])
