"""Case about the Facebank: matching against many seeds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cleanup.edges.embedded_postgres import open_embedded_facebank
from cleanup.edges.postgres_facebank import PostgresFacebank
from cleanup.edges.root_path import RootPath
from cleanup.edges.seed_index import create_index
from tests.bench.speed.measure import Row, run_side, take_turns

_N_SEEDS, _N_PEOPLE, _N_CENTROIDS, _DIMENSION = 100_000, 5_000, 200, 512
_SHOW, _MODEL = "big", "model"


def _draw(n_rows: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors of people in turn, shape (n_rows, d)."""
    people = np.random.default_rng(0).normal(size=(_N_PEOPLE, _DIMENSION))
    noise = np.random.default_rng(seed).normal(size=(n_rows, _DIMENSION))
    rows = people[np.arange(n_rows) % _N_PEOPLE] + 0.5 * noise
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def _fill(facebank: PostgresFacebank) -> None:
    vectors = _draw(_N_SEEDS, 1)
    with facebank.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO shows (show) VALUES (%s)", (_SHOW,))
        with cursor.copy("COPY people (show, person_id, name) FROM STDIN") as copy:
            for i in range(_N_PEOPLE):
                copy.write_row((_SHOW, f"p{i:05d}", f"P {i}"))
        with cursor.copy(
            "COPY seeds (show, person_id, image_sha256, image_name, model, model_sha256, dimension, embedding, "
            "confidence) FROM STDIN WITH (FORMAT BINARY)"
        ) as copy:
            copy.set_types(["text", "text", "text", "text", "text", "text", "int4", "vector", "float8"])
            for i, vector in enumerate(vectors):
                copy.write_row(
                    (_SHOW, f"p{i % _N_PEOPLE:05d}", f"d{i}", f"{i}.jpg", _MODEL, "sha", _DIMENSION, vector, 0.9)
                )


def _match(folder: Path, max_exact_seeds: int) -> dict[str, Any]:
    centroids = _draw(_N_CENTROIDS, 2)
    with open_embedded_facebank(RootPath.of_file(folder)) as opened:
        facebank = PostgresFacebank(opened.dsn, max_exact_seeds=max_exact_seeds)
        started = time.perf_counter()
        matches = facebank.match(_SHOW, _MODEL, centroids)
        seconds = time.perf_counter() - started
    people: list[list[str]] = [[] for _ in range(_N_CENTROIDS)]
    for match in matches:
        people[match.index].append(match.person_id)
    return {
        "seconds": seconds,
        "right": sum(found[0] == f"p{i:05d}" for i, found in enumerate(people)),
        "nearest_two": [found[:2] for found in people],
    }


def _index(folder: Path) -> dict[str, Any]:
    with open_embedded_facebank(RootPath.of_file(folder)) as facebank, facebank.transaction() as connection:
        started = time.perf_counter()
        create_index(connection, _DIMENSION)
        connection.commit()
        return {"seconds": time.perf_counter() - started}


def _fetch_and_multiply(folder: Path) -> dict[str, Any]:
    centroids = _draw(_N_CENTROIDS, 2)
    with open_embedded_facebank(RootPath.of_file(folder)) as facebank, facebank.transaction() as connection:
        started = time.perf_counter()
        rows = connection.cursor(binary=True).execute(
            "SELECT person_id, embedding FROM seeds WHERE show = %s AND model = %s", (_SHOW, _MODEL)
        ).fetchall()  # fmt: skip
        similarity = centroids @ np.stack([row[1].to_numpy() for row in rows]).T
        return {"seconds": time.perf_counter() - started, "best": float(similarity.max())}


def facebank(folder: Path) -> list[Row]:
    """A run's matching of 200 identities against 100,000 seeds; fetching the rows and one NumPy product.

    Then the same through the index that serves beyond 100,000 seeds, compared with the exact answer.
    """
    server = folder / "facebank" / "postgres"
    if not server.exists():
        with open_embedded_facebank(RootPath.of_file(server)) as opened:
            _fill(opened)
    ours, peer = take_turns(
        3, lambda: run_side(_match, server, _N_SEEDS), lambda: run_side(_fetch_and_multiply, server)
    )
    ratio = ours.seconds / peer.seconds
    right = ours.values["right"]
    built = run_side(_index, server)
    indexed = run_side(_match, server, 0)
    recall = np.mean([a == b for a, b in zip(indexed.values["nearest_two"], ours.values["nearest_two"], strict=True)])
    return [
        Row(
            "facebank", f"{ours.seconds:.1f} s", f"{peer.seconds:.1f} s", ratio, "<= 3",
            ratio <= 3 and right == _N_CENTROIDS, (ours.peak_mib, peer.peak_mib),
            f"{_N_CENTROIDS} identities, {_N_SEEDS} seeds of {_N_PEOPLE} people, {right} right; fetch and NumPy product",
        ),
        Row(
            "facebank, indexed", f"{indexed.seconds:.1f} s", f"{ours.seconds:.1f} s", indexed.seconds / ours.seconds,
            "recall >= 0.99", bool(recall >= 0.99), (indexed.peak_mib, ours.peak_mib),
            f"the same through the HNSW index, built in {built.seconds:.0f} s; the exact answer, whose nearest two "
            f"people it finds for {recall:.1%}",
        ),
    ]  # fmt: skip
