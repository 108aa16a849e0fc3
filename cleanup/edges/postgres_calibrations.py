"""What two people look like to each model: measured on photos and kept with the Facebank, or else by its seeds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import psycopg

from cleanup.algorithms.similarity_scale import CALIBRATION, MIN_PEOPLE, SimilarityScale, calibrate_scale
from cleanup.edges.postgres_server import PostgresServer

# People of a show whose seeds are looked at; more tell nothing more.
_MAX_PEOPLE = 1500


@dataclass(frozen=True)
class Calibration:
    """What was measured with one model.

    Attributes:
        model: Name of the recogniser.
        model_sha256: Digest of its file.
        scale: What two people look like to it.
        n_people: People on the photos.
        n_photos: Photos.
        measured_at: When, or None for now.
    """

    model: str
    model_sha256: str
    scale: SimilarityScale
    n_people: int
    n_photos: int
    measured_at: datetime | None = None


@dataclass(frozen=True)
class KnownScales:
    """The scales of the models that a Facebank knows of, as (model, digest, scale); those to be preferred first."""

    entries: Sequence[tuple[str, str, SimilarityScale]] = ()

    def find(self, model: str | None, digests: Collection[str] | None) -> SimilarityScale | None:
        """The scale of a model.

        Args:
            model: Its name.
            digests: Digests of the files that are it, or None where embeddings are at hand and no file is: their name
                is all that is known of the model.
        """
        known = (s for name, digest, s in self.entries if name == model and (digests is None or digest in digests))
        return next(known, None)

    def describe(self) -> list[Any]:
        """As plain values, for a fingerprint."""
        return [[model, digest, scale.describe()] for model, digest, scale in self.entries]


class PostgresCalibrations(PostgresServer):
    """The calibrations on one server."""

    def keep(self, calibration: Calibration) -> None:
        """Puts a calibration in the place of the one that there was of the same model."""
        with self.transaction() as connection:
            connection.execute(
                "INSERT INTO calibrations (model, model_sha256, strangers, n_people, n_photos, n_pairs, measured_at) "
                "VALUES (%s, %s, %s, %s, %s, %s, coalesce(%s, now())) ON CONFLICT (model, model_sha256) DO UPDATE SET "
                "strangers = excluded.strangers, n_people = excluded.n_people, n_photos = excluded.n_photos, "
                "n_pairs = excluded.n_pairs, measured_at = excluded.measured_at",
                (
                    calibration.model,
                    calibration.model_sha256,
                    calibration.scale.strangers,
                    calibration.n_people,
                    calibration.n_photos,
                    calibration.scale.n_pairs,
                    calibration.measured_at,
                ),
            )

    def list_all(self) -> list[Calibration]:
        """All of them, the last one measured first."""
        with self.transaction() as connection:
            return _read(connection)

    def find_scales(self, show: str) -> KnownScales:
        """What is known of each model: the calibration, else what the seeds of the show tell, else another show's."""
        with self.transaction(is_snapshot=True) as connection:
            entries = [(c.model, c.model_sha256, c.scale) for c in _read(connection)]
            calibrated = {entry[:2] for entry in entries}
            # One show's alone: people of two shows may be the same.
            shows = connection.execute(
                "SELECT DISTINCT ON (model, model_sha256) model, model_sha256, show FROM (SELECT model, model_sha256, "
                "show, count(DISTINCT person_id) AS n_people FROM seeds GROUP BY 1, 2, 3) AS counted "
                "WHERE n_people >= %s ORDER BY model, model_sha256, show <> %s, n_people DESC, show",
                (MIN_PEOPLE, show),
            ).fetchall()
            # Where a model's name is all that is known, the show's own seeds tell better which of its files it is.
            for model, digest, source in sorted(shows, key=lambda row: row[2] != show):
                if (model, digest) not in calibrated:
                    scale = _measure_seeds(connection, source, model, digest)
                    if scale is not None:
                        entries.append((model, digest, scale))
        return KnownScales(entries)


def _read(connection: psycopg.Connection[Any]) -> list[Calibration]:
    rows = connection.execute(
        "SELECT model, model_sha256, strangers, n_pairs, n_people, n_photos, measured_at FROM calibrations "
        "ORDER BY measured_at DESC, model, model_sha256"
    ).fetchall()
    return [Calibration(row[0], row[1], SimilarityScale(row[2], CALIBRATION, row[3]), *row[4:]) for row in rows]


def _measure_seeds(connection: psycopg.Connection[Any], show: str, model: str, digest: str) -> SimilarityScale | None:
    rows = connection.execute(
        "SELECT person_id, avg(embedding) FROM seeds WHERE show = %s AND model = %s AND model_sha256 = %s "
        "GROUP BY 1 ORDER BY md5(person_id) LIMIT %s",
        (show, model, digest, _MAX_PEOPLE),
    ).fetchall()
    return calibrate_scale(np.array([row[1].to_numpy() for row in rows]), [row[0] for row in rows])
