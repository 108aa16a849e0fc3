"""Cases about clustering: recluster, recluster big."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cleanup.algorithms.average_linkage import Conflicts, cluster_tracks
from cleanup.edges.local_workers import LocalEngine
from cleanup.entrypoints.run_tools import build_engine
from cleanup.resolve_settings import resolve_for_run
from tests.bench.speed.episodes import draw_tracks
from tests.bench.speed.measure import Row, run_side, take_turns
from tests.conftest import SHARED

_CUT = 0.5
_N_TRACKS, _N_PEOPLE = 20_000, 400
_N_BIG, _N_PEOPLE_BIG = 100_000, 2_000
_BLOCK_ROWS = 2_048


def _cluster(n_tracks: int, n_people: int, noise: float, shared: float) -> dict[str, Any]:
    vectors = draw_tracks(n_tracks, n_people, noise, shared)
    engine = build_engine(resolve_for_run({"models": str(SHARED / "models"), "engine": "local"}, None, None))
    assert isinstance(engine, LocalEngine)
    started = time.perf_counter()
    result = cluster_tracks(vectors, _CUT, Conflicts.of(()), engine.run_many)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "labels": result.labels, "n_clusters": len(np.unique(result.labels))}


def _cluster_with_sklearn(n_tracks: int, n_people: int, noise: float, shared: float) -> dict[str, Any]:
    from sklearn.cluster import AgglomerativeClustering

    vectors = draw_tracks(n_tracks, n_people, noise, shared)
    model = AgglomerativeClustering(None, metric="cosine", linkage="average", distance_threshold=1 - _CUT)
    started = time.perf_counter()
    model.fit(vectors)
    return {"seconds": time.perf_counter() - started, "labels": model.labels_}


def _is_same_partition(a: NDArray[np.int64], b: NDArray[np.int64]) -> bool:
    pairs = len(set(zip(a.tolist(), b.tolist(), strict=True)))
    return pairs == len(np.unique(a)) == len(np.unique(b))


def recluster(_folder: Path) -> list[Row]:
    """Exact average linkage against scikit-learn's: people that lie apart, and people that all hang together."""
    rows = []
    for name, noise, shared in (("recluster", 0.7, 0.0), ("recluster, entangled", 0.7, 1.0)):
        data = (_N_TRACKS, _N_PEOPLE, noise, shared)
        ours, peer = take_turns(
            1,
            lambda data=data: run_side(_cluster, *data),  # type: ignore[misc]
            lambda data=data: run_side(_cluster_with_sklearn, *data),  # type: ignore[misc]
        )
        is_same = _is_same_partition(ours.values["labels"], peer.values["labels"])
        ratio, share = peer.seconds / ours.seconds, ours.peak_mib / peer.peak_mib
        # The target is about people who can be told apart; where all hang together at the cut, the figure is for the
        # reader, and what has to hold is the partition.
        is_target = shared == 0
        rows.append(
            Row(
                name,
                f"{ours.seconds:.1f} s",
                f"{peer.seconds:.1f} s",
                ratio,
                ">= 10, a fifth of the memory" if is_target else "same partition",
                is_same and (not is_target or (ratio >= 10 and share <= 0.2)),
                (ours.peak_mib, peer.peak_mib),
                f"scikit-learn, {_N_TRACKS} tracks, {ours.values['n_clusters']} clusters, "
                f"{'same' if is_same else 'ANOTHER'} partition, {share:.2f} of the memory",
            )
        )
    return rows


def _multiply(n_tracks: int, n_people: int, noise: float) -> dict[str, Any]:
    """All similarities, block by block, nothing done with them."""
    vectors = draw_tracks(n_tracks, n_people, noise)
    out = np.empty((_BLOCK_ROWS, n_tracks), np.float32)
    started = time.perf_counter()
    for start in range(0, n_tracks, _BLOCK_ROWS):
        block = vectors[start : start + _BLOCK_ROWS]
        np.matmul(block, vectors.T, out=out[: len(block)])
    return {"seconds": time.perf_counter() - started}


def recluster_big(_folder: Path) -> list[Row]:
    """The exact partition of very many tracks against the bare matrix product."""
    ours, bare = take_turns(
        1,
        lambda: run_side(_cluster, _N_BIG, _N_PEOPLE_BIG, 0.7, 0.0),
        lambda: run_side(_multiply, _N_BIG, _N_PEOPLE_BIG, 0.7),
    )
    ratio = ours.seconds / bare.seconds
    return [
        Row(
            "recluster big", f"{ours.seconds:.0f} s", f"{bare.seconds:.0f} s", ratio, "<= 4, < 8192 MiB",
            ratio <= 4 and ours.peak_mib < 8192, (ours.peak_mib, bare.peak_mib),
            f"{_N_BIG} tracks of {_N_PEOPLE_BIG} people, {ours.values['n_clusters']} clusters; the bare float32 "
            "product of all rows in blocks",
        )
    ]  # fmt: skip
