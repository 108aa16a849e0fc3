"""The Facebank: known people and their seeds in PostgreSQL with pgvector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from cleanup.algorithms.facebank_matching import combine_seeds
from cleanup.edges.postgres_calibrations import PostgresCalibrations
from cleanup.edges.postgres_dsn import Dsn
from cleanup.edges.postgres_people import PostgresPeople, log_event
from cleanup.edges.postgres_server import PostgresServer
from cleanup.edges.seed_index import N_BESIDE, create_index, find_candidates, is_worthwhile
from cleanup.errors import FacebankError
from cleanup.interfaces import PersonMatch
from cleanup.names import PersonId, check_person_id
from cleanup.people import ShowState

# PostgreSQL's binary COPY: signature, flags and extension in front, the end marker behind, and what precedes a vector.
_COPY_HEADER, _COPY_TRAILER, _ROW_HEADER = 19, 2, 10
_CENTROIDS_AT_A_TIME = 64
# People that are returned for a centroid: the decision needs two, and as many more as humans may have ruled out.
_N_NEAREST = 50


@dataclass(frozen=True)
class Seed:
    """A seed photo on its way into the Facebank.

    Attributes:
        person_id: Whose it is.
        name: Their name, where they are new.
        image_name: File name of the photo.
        image_sha256: Digest of the photo.
        embedding: Unit vector, shape (d,).
        confidence: Of the detector.
        quality: Score 0..1, or None where it was not measured.
        landmarks: Five points in pixels of the photo as ten numbers, or None where nothing was detected.
        embed_path: Aligned 112x112 crop, relative to the data root, or None.
        display_path: Picture for people, at most 512 pixels, or None.
        original_path: The photo itself, or None.
    """

    person_id: PersonId
    name: str
    image_name: str
    image_sha256: str
    embedding: NDArray[np.float32]
    confidence: float
    quality: float | None = None
    landmarks: tuple[float, ...] | None = None
    embed_path: str | None = None
    display_path: str | None = None
    original_path: str | None = None


@dataclass(frozen=True)
class StoredSeed:
    """A seed as the Facebank has it; fields as in ``Seed``."""

    seed_id: str
    show: str
    model: str
    model_sha256: str
    is_featured: bool
    seed: Seed


@dataclass(frozen=True)
class PersonSummary:
    """One person as ``facebank list`` shows it."""

    show: str
    person_id: str
    name: str
    n_seeds: int
    models: tuple[str, ...]


class PostgresFacebank(PostgresServer):
    """People and their seeds on one server; ``people`` has what is known of them beside the seeds.

    Args:
        dsn: Connection string or URL of the server, taken apart or not.
        max_exact_seeds: Up to this many seeds of a show all are compared; beyond, an index finds the likely people.
    """

    def __init__(self, dsn: str | Dsn, *, max_exact_seeds: int = 100_000) -> None:
        super().__init__(dsn)
        self._max_exact_seeds = max_exact_seeds

    @property
    def people(self) -> PostgresPeople:
        """The people of the shows, across episodes."""
        return PostgresPeople(self.server)

    @property
    def calibrations(self) -> PostgresCalibrations:
        """What two people look like to each model."""
        return PostgresCalibrations(self.server)

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

        Raises:
            FacebankError: The show's seeds were made with another model.
        """
        n_new = 0
        with self.transaction() as connection:
            connection.execute("INSERT INTO shows (show) VALUES (%s) ON CONFLICT DO NOTHING", (show,))
            # Until the end nobody else adds seeds, so that two models cannot meet.
            connection.execute("SELECT 1 FROM shows WHERE show = %s FOR UPDATE", (show,))
            other = connection.execute(
                "SELECT model FROM seeds WHERE show = %s AND (model, model_sha256) <> (%s, %s) LIMIT 1",
                (show, model, model_sha256),
            ).fetchone()
            if other is not None and seeds:
                raise FacebankError(
                    f"the seeds of show {show!r} were made with {other[0]}, these with {model} or another version of "
                    f"it; change all of them first: cleanup facebank reembed --show {show} --models FOLDER"
                )
            for seed in sorted(seeds, key=lambda s: (s.person_id, s.image_sha256)):
                connection.execute(
                    "INSERT INTO people (show, person_id, name) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                    (show, seed.person_id, seed.name),
                )
                done = connection.execute(
                    "INSERT INTO seeds (show, person_id, image_sha256, image_name, model, model_sha256, dimension, "
                    "embedding, confidence, quality, landmarks, embed_path, display_path, original_path) "
                    "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
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
                        seed.quality,
                        None if seed.landmarks is None else list(seed.landmarks),
                        seed.embed_path,
                        seed.display_path,
                        seed.original_path,
                    ),
                )
                n_new += done.rowcount
        if n_new:
            self._index_if_large(show)
        return n_new

    def _index_if_large(self, show: str) -> None:
        # In a transaction of its own: two that had written seeds would wait for each other.
        with self.transaction(is_patient=True) as connection:
            for dimension, n_seeds in connection.execute(
                "SELECT dimension, count(*) FROM seeds WHERE show = %s GROUP BY 1", (show,)
            ).fetchall():
                if n_seeds > self._max_exact_seeds:
                    create_index(connection, dimension)

    def list_people(self, show: str | None = None) -> list[PersonSummary]:
        """All people, or those of one show, by show and id."""
        with self.transaction() as connection:
            rows = connection.execute(
                "SELECT p.show, p.person_id, p.name, count(s.seed_id), "
                "coalesce(array_agg(DISTINCT s.model) FILTER (WHERE s.model IS NOT NULL), '{}') "
                "FROM people p LEFT JOIN seeds s USING (show, person_id) "
                "WHERE NOT p.is_unknown AND (%s::text IS NULL OR p.show = %s) GROUP BY 1, 2, 3 ORDER BY 1, 2",
                (show, show),
            ).fetchall()
        return [PersonSummary(row[0], row[1], row[2], row[3], tuple(row[4])) for row in rows]

    def list_seeds(self, show: str | None = None, person_id: str | None = None) -> list[StoredSeed]:
        """Seeds of one person, one show or all, by show, person and photo."""
        with self.transaction() as connection:
            rows = connection.execute(
                "SELECT s.seed_id::text, s.show, s.model, s.model_sha256, s.is_featured, s.person_id, p.name, "
                "s.image_name, s.image_sha256, s.embedding, s.confidence, s.quality, s.landmarks, s.embed_path, "
                "s.display_path, s.original_path FROM seeds s JOIN people p USING (show, person_id) "
                "WHERE (%s::text IS NULL OR s.show = %s) AND (%s::text IS NULL OR s.person_id = %s) "
                "ORDER BY s.show, s.person_id, s.image_sha256",
                (show, show, person_id, person_id),
            ).fetchall()
        return [
            StoredSeed(
                seed_id=row[0],
                show=row[1],
                model=row[2],
                model_sha256=row[3],
                is_featured=row[4],
                seed=Seed(
                    person_id=check_person_id(row[5]),
                    name=row[6],
                    image_name=row[7],
                    image_sha256=row[8],
                    embedding=row[9].to_numpy().astype(np.float32),
                    confidence=row[10],
                    quality=row[11],
                    landmarks=None if row[12] is None else tuple(row[12]),
                    embed_path=row[13],
                    display_path=row[14],
                    original_path=row[15],
                ),
            )
            for row in rows
        ]

    def find_seed(self, seed_id: str) -> StoredSeed:
        """The seed with an id, or with an id that begins so.

        Raises:
            FacebankError: There is no such seed, or several begin like that.
        """
        with self.transaction() as connection:
            full_id, show, person_id = _find_seed(connection, seed_id)
        return next(s for s in self.list_seeds(show, person_id) if s.seed_id == full_id)

    def feature(self, seed_id: str) -> StoredSeed:
        """Makes a seed the one that stands for its person.

        Raises:
            FacebankError: There is no such seed, or several begin like that.
        """
        with self.transaction() as connection:
            full_id, show, person_id = _find_seed(connection, seed_id)
            connection.execute(
                "UPDATE seeds SET is_featured = false WHERE show = %s AND person_id = %s AND is_featured",
                (show, person_id),
            )
            connection.execute("UPDATE seeds SET is_featured = true, updated_at = now() WHERE seed_id = %s", (full_id,))
        return self.find_seed(full_id)

    def replace_embeddings(
        self, model: str, model_sha256: str, embeddings: Mapping[str, NDArray[np.float32]], shows: Sequence[str]
    ) -> None:
        """Gives all seeds of some shows embeddings of another model, in one transaction.

        Args:
            model: The model.
            model_sha256: Its digest.
            embeddings: Seed id -> unit vector of shape (d,).
            shows: The shows.

        Raises:
            FacebankError: A seed of them has none; it was enrolled meanwhile.
        """
        with self.transaction() as connection:
            connection.execute("SELECT 1 FROM shows WHERE show = ANY(%s) FOR UPDATE", (list(shows),))
            rows = connection.execute("SELECT seed_id::text FROM seeds WHERE show = ANY(%s)", (list(shows),)).fetchall()
            missing = [row[0] for row in rows if row[0] not in embeddings]
            if missing:
                raise FacebankError(f"{len(missing)} seeds were enrolled meanwhile; run cleanup facebank reembed again")
            for seed_id, embedding in sorted(embeddings.items()):
                connection.execute(
                    "UPDATE seeds SET model = %s, model_sha256 = %s, dimension = %s, embedding = %s, "
                    "updated_at = now() WHERE seed_id = %s",
                    (model, model_sha256, len(embedding), embedding, seed_id),
                )
        for show in shows:
            self._index_if_large(show)

    def set_images(self, seeds: Mapping[str, Seed]) -> None:
        """Notes pictures, landmarks and quality of seeds that were enrolled without; seed id -> what it has now."""
        with self.transaction() as connection:
            for seed_id, seed in sorted(seeds.items()):
                connection.execute(
                    "UPDATE seeds SET quality = %s, landmarks = %s, embed_path = %s, display_path = %s, "
                    "original_path = %s, updated_at = now() WHERE seed_id = %s",
                    (
                        seed.quality,
                        None if seed.landmarks is None else list(seed.landmarks),
                        seed.embed_path,
                        seed.display_path,
                        seed.original_path,
                        seed_id,
                    ),
                )

    def remove(self, show: str, person_id: str, actor: str) -> int:
        """Removes a person with all seeds; their identities are nobody's until they are grouped again.

        Returns:
            How many seeds went.

        Raises:
            FacebankError: The show has no such person.
        """
        with self.transaction() as connection:
            n_seeds = connection.execute(
                "DELETE FROM seeds WHERE show = %s AND person_id = %s", (show, person_id)
            ).rowcount
            connection.execute(
                "UPDATE episode_clusters SET person_id = NULL, source = 'none' WHERE show = %s AND person_id = %s",
                (show, person_id),
            )
            gone = connection.execute("DELETE FROM people WHERE show = %s AND person_id = %s", (show, person_id))
            if gone.rowcount == 0:
                raise FacebankError(f"show {show!r} has no person {person_id!r}; cleanup facebank list shows them")
            log_event(connection, show, "remove", actor, f"with {n_seeds} seeds", person_id=person_id)
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
        """See ``cleanup.interfaces.Facebank``.

        Exact up to 100,000 seeds: the vectors of the show's seeds are read once, in PostgreSQL's binary form, and
        compared by one matrix product. It needs 4 d bytes for each seed: 205 MB for 100,000 of 512 dimensions. Of more
        seeds an index finds the people who can matter, and only theirs are read.
        """
        with self.transaction(is_snapshot=True) as connection:
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
                    "dimensions); change them to the episode's model: "
                    f"cleanup facebank reembed --show {show} --models FOLDER"
                )
            people = connection.execute(
                "SELECT s.person_id, p.name, count(*) FROM seeds s JOIN people p USING (show, person_id) "
                "WHERE s.show = %s AND s.model = %s AND s.dimension = %s GROUP BY 1, 2 ORDER BY 1",
                (show, model, dimension),
            ).fetchall()
            if sum(row[2] for row in people) > self._max_exact_seeds:
                people = _keep_likely(connection, show, model, centroids, people)
            vectors = _read_vectors(connection, show, model, dimension, [row[0] for row in people])
        counts = np.array([row[2] for row in people])
        return [
            PersonMatch(place, people[i][0], people[i][1], float(best[i]), _or_none(second[i]), people[i][2])
            for place, best, second in _find_nearest(centroids, vectors, counts)
            for i in _rank(best, second)
        ]


def _find_seed(connection: psycopg.Connection[Any], seed_id: str) -> tuple[str, str, str]:
    """Id, show and person of the seed whose id begins so."""
    rows = connection.execute(
        "SELECT seed_id::text, show, person_id FROM seeds WHERE starts_with(seed_id::text, lower(%s)) LIMIT 2",
        (seed_id,),
    ).fetchall()
    if len(rows) != 1:
        found = "no seed id begins" if not rows else "several seed ids begin"
        raise FacebankError(f"{found} with {seed_id!r}; cleanup facebank show lists them")
    return rows[0][0], rows[0][1], rows[0][2]


def _keep_likely(
    connection: psycopg.Connection[Any], show: str, model: str, centroids: NDArray[np.float32], people: list[Any]
) -> list[Any]:
    """The people, (id, name, seeds), that are near to a centroid; all of them where the index cannot tell."""
    n_nearest = max(row[2] for row in people) + N_BESIDE
    if not is_worthwhile(n_nearest, sum(row[2] for row in people)):
        return people
    likely = find_candidates(connection, show, model, centroids, n_nearest)
    return people if likely is None else [row for row in people if row[0] in likely]


def _find_nearest(
    centroids: NDArray[np.float32], vectors: NDArray[np.float32], counts: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
    """For each centroid its cosine to every person's nearest and second nearest seed; -inf where there is no second.

    Args:
        centroids: Unit rows, shape (n, d).
        vectors: Unit rows of the seeds, those of one person after each other, shape (m, d).
        counts: Seeds of each person.
    """
    starts = np.cumsum(counts) - counts
    owners = np.repeat(np.arange(len(counts)), counts)
    for first in range(0, len(centroids), _CENTROIDS_AT_A_TIME):
        similarities = centroids[first : first + _CENTROIDS_AT_A_TIME] @ vectors.T
        for place, row in enumerate(similarities, start=first):
            best = np.maximum.reduceat(row, starts)
            # The first of a person's seeds that is as near as the nearest is taken out; what is left is the second.
            places = np.flatnonzero(row == best[owners])
            row[places[np.unique(owners[places], return_index=True)[1]]] = -np.inf
            yield place, best, np.maximum.reduceat(row, starts)


def _rank(best: NDArray[np.float32], second: NDArray[np.float32]) -> list[int]:
    """The people that can matter for a centroid, nearest first."""
    combined = combine_seeds(best, np.where(np.isfinite(second), second, best))
    nearest = np.argpartition(-combined, _N_NEAREST)[:_N_NEAREST] if len(best) > _N_NEAREST else np.arange(len(best))
    return [int(i) for i in nearest[np.lexsort((nearest, -best[nearest]))]]


def _or_none(similarity: float) -> float | None:
    return float(similarity) if np.isfinite(similarity) else None


def _read_vectors(
    connection: psycopg.Connection[Any], show: str, model: str, dimension: int, people: list[str]
) -> NDArray[np.float32]:
    """The vectors of people's seeds by person, shape (n, dimension), without a Python object per row."""
    with connection.cursor().copy(
        "COPY (SELECT embedding FROM seeds WHERE show = %s AND model = %s AND dimension = %s "
        "AND person_id = ANY(%s) ORDER BY person_id, seed_id) TO STDOUT (FORMAT BINARY)",
        (show, model, dimension, people),
    ) as copy:
        content = b"".join(copy)
    # Each row: number of fields (2 bytes), length (4), then pgvector's dimension (2), unused (2) and the numbers.
    n_bytes = _ROW_HEADER + 4 * dimension
    n_rows = (len(content) - _COPY_HEADER - _COPY_TRAILER) // n_bytes
    rows = np.frombuffer(content, np.uint8, n_rows * n_bytes, _COPY_HEADER).reshape(n_rows, n_bytes)
    return np.ascontiguousarray(rows[:, _ROW_HEADER:]).view(">f4").astype(np.float32)
