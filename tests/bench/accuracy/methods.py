"""What people would use instead. Peers that know no tracks cluster the faces themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import DBSCAN, HDBSCAN

from cleanup.algorithms.appearance_gate import compute_consecutive_iou
from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import read_episode
from cleanup.edges.root_path import RootPath
from tests.bench.accuracy.scene import Outcome, Scene, score

Labels = NDArray[np.int64]

PLAIN_FIXED = "plain gate + fixed 0.30"


def raw_artifacts(scene: Scene, root: Path) -> Outcome:
    """The artifacts as they are."""
    owner = {
        t: i["identity_id"]
        for i in read_episode(EpisodePaths(RootPath(root), scene.ep_id)).identities.to_pylist()
        for t in i["track_ids"]
    }
    return Outcome(scene.raw_track, [owner[t] for t in scene.raw_track])


def cut_plainly(scene: Scene) -> list[int]:
    """The piece of each face by the documented gate without confirmation (0.70 / 0.78, streak 2, IoU 0.55)."""
    piece = [0] * len(scene.frames)
    n_pieces = 0
    for track in scene.tracks(range(len(scene.frames))):
        ious = compute_consecutive_iou(scene.boxes[track])
        prototype, n_low = scene.embeddings[track[0]], 0
        for k, i in enumerate(track):
            similarity = float(prototype @ scene.embeddings[i])
            n_low = n_low + 1 if similarity < 0.78 else 0
            if k == 0 or similarity < 0.70 or n_low >= 2 or ious[k] < 0.55:
                n_pieces, n_low, prototype = n_pieces + 1, 0, scene.embeddings[i]
            elif similarity >= 0.78:
                prototype = 0.85 * prototype + 0.15 * scene.embeddings[i]
                prototype = prototype / np.linalg.norm(prototype)
            piece[i] = n_pieces
    return piece


def pool_plainly(scene: Scene, piece: list[int]) -> dict[int, NDArray[np.float32]]:
    """The mean of each piece's embeddings, as a unit vector."""
    sums = {p: scene.embeddings[np.array(piece) == p].sum(axis=0) for p in sorted(set(piece))}
    return {p: total / np.linalg.norm(total) for p, total in sums.items()}


def plain_gate(scene: Scene, cut: float) -> Outcome:
    """The plain gate, mean pooling, and average linkage at a fixed cut."""
    piece = cut_plainly(scene)
    pooled = pool_plainly(scene, piece)
    labels = fcluster(linkage(list(pooled.values()), "average", metric="cosine"), 1 - cut, "distance")
    owner = dict(zip(pooled, labels.tolist(), strict=True))
    return Outcome(piece, [owner[p] for p in piece], cut=cut)


def _faces_alone(cluster: Callable[[NDArray[np.float32]], Labels]) -> Callable[[Scene], Outcome]:
    def run(scene: Scene) -> Outcome:
        labels = cluster(scene.embeddings).copy()
        noise = labels < 0
        labels[noise] = labels.max(initial=0) + 1 + np.arange(noise.sum())
        return Outcome(scene.raw_track, labels.tolist())

    return run


def immich_rule(embeddings: NDArray[np.float32]) -> Labels:
    """Incremental core points: a face with 3 faces (itself included) within distance 0.5 starts or joins a person."""
    distance = 1 - embeddings @ embeddings.T
    labels = np.full(len(embeddings), -1, np.int64)
    n_people = 0
    for _ in range(2):  # a second pass gives faces a person that came to be after them, as Immich's deferred queue does
        for i in range(len(embeddings)):
            if labels[i] >= 0:
                continue
            near = np.flatnonzero(distance[i] <= 0.5)
            near = near[np.argsort(distance[i, near], kind="stable")]
            known = [int(labels[j]) for j in near if labels[j] >= 0]
            if known:
                labels[i] = known[0]
            elif len(near) >= 3:
                labels[i] = n_people
                n_people += 1
    return labels


def dbscan(embeddings: NDArray[np.float32]) -> Labels:
    """DBSCAN at similarity 0.48, as InsightFace's GUI clusters an album."""
    distance = np.clip(1 - embeddings @ embeddings.T, 0, 2)
    return np.asarray(DBSCAN(eps=1 - 0.48, min_samples=2, metric="precomputed").fit_predict(distance), np.int64)


def hdbscan(embeddings: NDArray[np.float32]) -> Labels:
    """HDBSCAN on unit vectors with its defaults."""
    return np.asarray(HDBSCAN(min_cluster_size=5, copy=True).fit_predict(embeddings), np.int64)


def finch(scene: Scene) -> Outcome:
    """FINCH (Sarfraz et al., 2019), the partition that scores best."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says at import which optional accelerators are missing
        from finch import FINCH
    partitions, _, _ = FINCH(scene.embeddings, verbose=False)
    outcomes = [Outcome(scene.raw_track, partitions[:, k].tolist()) for k in range(partitions.shape[1])]
    return max(outcomes, key=lambda o: float(score(scene, o)["F"]))


METHODS: dict[str, Callable[[Scene], Outcome]] = {
    "plain gate + average linkage": lambda scene: plain_gate(scene, 0.52),
    PLAIN_FIXED: lambda scene: plain_gate(scene, 0.30),
    "Immich's rule": _faces_alone(immich_rule),
    "DBSCAN 0.48": _faces_alone(dbscan),
    "HDBSCAN": _faces_alone(hdbscan),
    "FINCH (best partition)": finch,
}
