"""The Facebank: known people and their seeds in PostgreSQL with pgvector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cleanup.edges.postgres_people import PostgresPeople
from cleanup.edges.postgres_server import PostgresServer
from cleanup.errors import FacebankError
from cleanup.interfaces import PersonMatch
from cleanup.people import ShowState


@dataclass(frozen=True)
class Seed:
    """A seed photo's embedding on its way into the Facebank; ``embedding`` is a unit vector of shape (d,)."""

    person_id: str
    name: str
    image_name: str
    image_sha256: str
    embedding: NDArray[np.float32]
    confidence: float


@dataclass(frozen=True)
class PersonSummary:
    """One person as ``facebank list`` shows it."""

    show: str
    person_id: str
    name: str
    n_seeds: int
    models: tuple[str, ...]


class PostgresFacebank(PostgresServer):
    """People and their seeds on one server; ``people`` has what is known of them beside the seeds."""

    @property
    def people(self) -> PostgresPeople:
        """The people of the shows, across episodes."""
        return PostgresPeople(self.dsn)

    def read_show(self, show: str, model: str) -> ShowState:
        """See ``cleanup.interfaces.Facebank``."""
        return self.people.read_show(show, model)

    def check(self) -> str:
        """Connects, migrates and returns the versions of server and extension."""
        with self.transaction() as connection:
            server = connection.execute("SHOW server_version").fetchone()
            vector = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
        return f"PostgreSQL {server[0] if server else '?'}, pgvector {vector[0] if vector else '?'}"

    def enroll(self, show: str, model: str, model_sha256: str, seeds: list[Seed]) -> int:
        """Adds seeds in one transaction; one that is there already stays as it is.

        Returns:
            How many were new.
        """
        n_new = 0
        with self.transaction() as connection:
            connection.execute("INSERT INTO shows (show) VALUES (%s) ON CONFLICT DO NOTHING", (show,))
            for seed in sorted(seeds, key=lambda s: (s.person_id, s.image_sha256)):
                connection.execute(
                    "INSERT INTO people (show, person_id, name) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                    (show, seed.person_id, seed.name),
                )
                done = connection.execute(
                    "INSERT INTO seeds (show, person_id, image_sha256, image_name, model, model_sha256, dimension, "
                    "embedding, confidence) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                    (
                        show,
                        seed.person_id,
                        seed.image_sha256,
                        seed.image_name,
                        model,
                        model_sha256,
                        len(seed.embedding),
                        seed.embedding,
                        seed.confidence,
                    ),
                )
                n_new += done.rowcount
        return n_new

    def list_people(self, show: str | None = None) -> list[PersonSummary]:
        """All people, or those of one show, by show and id."""
        with self.transaction() as connection:
            rows = connection.execute(
                "SELECT p.show, p.person_id, p.name, count(s.seed_id), "
                "coalesce(array_agg(DISTINCT s.model) FILTER (WHERE s.model IS NOT NULL), '{}') "
                "FROM people p LEFT JOIN seeds s USING (show, person_id) "
                "WHERE %s::text IS NULL OR p.show = %s GROUP BY 1, 2, 3 ORDER BY 1, 2",
                (show, show),
            ).fetchall()
        return [PersonSummary(row[0], row[1], row[2], row[3], tuple(row[4])) for row in rows]

    def remove(self, show: str, person_id: str) -> int:
        """Removes a person with all seeds.

        Returns:
            How many seeds went.

        Raises:
            FacebankError: The show has no such person.
        """
        with self.transaction() as connection:
            n_seeds = connection.execute(
                "DELETE FROM seeds WHERE show = %s AND person_id = %s", (show, person_id)
            ).rowcount
            gone = connection.execute("DELETE FROM people WHERE show = %s AND person_id = %s", (show, person_id))
            if gone.rowcount == 0:
                raise FacebankError(f"show {show!r} has no person {person_id!r}; cleanup facebank list shows them")
        return n_seeds

    def compute_digest(self, show: str) -> str:
        """Digest of a show's known people, seeds and rejections: it changes with what humans say.

        What other episodes hold is no part of it: whoever groups an episode relabels the others at once.
        """
        with self.transaction() as connection:
            people = connection.execute(
                "SELECT md5(coalesce(string_agg(concat_ws('|', p.person_id, p.name, s.image_sha256, s.model_sha256, "
                "md5(s.embedding::text)), ';' ORDER BY p.person_id, s.model_sha256, s.image_sha256), '')) "
                "FROM people p LEFT JOIN seeds s USING (show, person_id) WHERE p.show = %s AND NOT p.is_unknown",
                (show,),
            ).fetchone()
            rejections = connection.execute(
                "SELECT md5(coalesce(string_agg(concat_ws('|', ep_id, track_ids::text, person_id), ';' "
                "ORDER BY ep_id, person_id, track_ids), '')) FROM rejections WHERE show = %s",
                (show,),
            ).fetchone()
        return "".join(str(row[0]) for row in (people, rejections) if row)

    def match(self, show: str, model: str, centroids: NDArray[np.float32]) -> list[PersonMatch]:
        """See ``cleanup.interfaces.Facebank``: one exact scan of the show's seeds for all centroids."""
        with self.transaction() as connection:
            stored = connection.execute(
                "SELECT DISTINCT model, dimension FROM seeds WHERE show = %s ORDER BY 1, 2", (show,)
            ).fetchall()
            if not stored:
                return []
            dimension = centroids.shape[1]
            if (model, dimension) not in stored:
                known = ", ".join(f"{name} ({size} dimensions)" for name, size in stored)
                raise FacebankError(
                    f"the seeds of show {show!r} were made with {known}, the episode with {model} ({dimension} "
                    "dimensions); enrol the seed photos again with the episode's model (cleanup facebank enroll)"
                )
            rows = connection.execute(
                "SELECT c.place - 1, s.person_id, p.name, "
                "(array_agg(1 - (s.embedding <=> c.centroid) ORDER BY s.embedding <=> c.centroid))[1:2], count(*) "
                "FROM unnest(%s::vector[]) WITH ORDINALITY AS c (centroid, place), seeds s "
                "JOIN people p USING (show, person_id) WHERE s.show = %s AND s.model = %s AND s.dimension = %s "
                "GROUP BY 1, 2, 3 ORDER BY 1, 4 DESC, 2",
                (list(centroids), show, model, dimension),
            ).fetchall()
        return [
            PersonMatch(int(place), person_id, name, float(near[0]), float(near[1]) if near[1:] else None, int(n_seeds))
            for place, person_id, name, near, n_seeds in rows
        ]
