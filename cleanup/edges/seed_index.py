"""Approximate search among very many seeds: an HNSW index that narrows a show's people down before the exact match."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from cleanup.edges.postgres_server import INDEX_LOCK

# pgvector's limit for an index on vector.
_MAX_DIMENSION = 2000
_EF_SEARCH = 400
# More than this share of a show's seeds is not worth an index.
_MAX_SHARE = 0.1
# Seeds to be found for a centroid beside all of the person with the most seeds, so that others are among them.
N_BESIDE = 100


def create_index(connection: psycopg.Connection[Any], dimension: int) -> None:
    """Makes the index for vectors of one length, if it is not there; in a transaction that has written no seeds.

    It is built in memory by one process: parallel building needs more shared memory than containers have.
    """
    if dimension > _MAX_DIMENSION:
        return
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (INDEX_LOCK,))
    connection.execute("SET LOCAL maintenance_work_mem = '1GB'")
    connection.execute("SET LOCAL max_parallel_maintenance_workers = 0")
    connection.execute(
        sql.SQL(
            "CREATE INDEX IF NOT EXISTS {} ON seeds USING hnsw ((embedding::vector({size})) vector_ip_ops) "
            "WHERE dimension = {size}"
        ).format(sql.Identifier(_name(dimension)), size=sql.Literal(dimension))
    )


def find_candidates(
    connection: psycopg.Connection[Any], show: str, model: str, centroids: NDArray[np.float32], n_nearest: int
) -> frozenset[str] | None:
    """People who own the seeds nearest to any centroid, found by one query through the index.

    The index knows no shows: an iterative scan goes on until enough seeds of this show and model are found.

    Args:
        connection: Connection with pgvector's types.
        show: The show.
        model: Recogniser of the centroids.
        centroids: Unit rows, shape (n, d).
        n_nearest: Seeds to find for each.

    Returns:
        Person ids, or None where the index cannot serve: it is not there, or a centroid got fewer seeds than asked.
    """
    dimension = centroids.shape[1]
    is_there = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (_name(dimension),)).fetchone()
    if is_there is None or not is_there[0]:
        return None
    for setting, value in (
        ("hnsw.ef_search", _EF_SEARCH),
        ("hnsw.iterative_scan", "relaxed_order"),
        ("hnsw.max_scan_tuples", 2**31 - 1),
        ("hnsw.scan_mem_multiplier", 1000),
        # The index is the one way that needs neither.
        ("enable_seqscan", "off"),
        ("enable_sort", "off"),
    ):
        connection.execute("SELECT set_config(%s, %s, true)", (setting, str(value)))
    rows = connection.execute(
        sql.SQL(
            "SELECT count(near.person_id), array_agg(DISTINCT near.person_id) "
            "FROM unnest(%(centroids)s::vector[]) WITH ORDINALITY AS wanted(centroid, place) LEFT JOIN LATERAL ("
            "SELECT person_id FROM seeds WHERE show = %(show)s AND model = %(model)s AND dimension = {size} "
            "ORDER BY embedding::vector({size}) <#> wanted.centroid::vector({size}) LIMIT %(n)s"
            ") AS near ON true GROUP BY wanted.place"
        ).format(size=sql.Literal(dimension)),
        {"centroids": list(centroids), "show": show, "model": model, "n": n_nearest},
    ).fetchall()
    if any(count < n_nearest for count, _ in rows):
        return None
    return frozenset(person_id for _, people in rows for person_id in people)


def is_worthwhile(n_nearest: int, n_seeds: int) -> bool:
    """Whether the seeds to find are few among those of the show."""
    return n_nearest <= _MAX_SHARE * n_seeds


def _name(dimension: int) -> str:
    return f"seeds_hnsw_{dimension}"
