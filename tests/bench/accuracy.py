"""Accuracy side by side with what people would use instead: ``uv run python -m tests.bench.accuracy``.

Every method sees the same observations of an episode (one pass of the product's own worker) and is scored on the faces
that truth names. Peers that know no tracks cluster the faces themselves. FINCH yields several partitions; the one that
scores best is shown, which flatters it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import DBSCAN, HDBSCAN
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, roc_auc_score

from cleanup import schemas
from cleanup.algorithms.appearance_gate import compute_consecutive_iou
from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import read_episode
from cleanup.edges.data_root import DataRoot
from cleanup.edges.embedded_postgres import open_embedded_facebank
from cleanup.edges.local_workers import LocalEngine
from cleanup.edges.onnx_models import ModelSpec, load_models
from cleanup.edges.photo_folders import find_photos
from cleanup.edges.postgres_facebank import PostgresFacebank
from cleanup.edges.root_path import RootPath
from cleanup.edges.seed_photos import SeedRules, embed_photos
from cleanup.edges.video_frames import VideoFrames
from cleanup.entrypoints.episode_job import EpisodeJob, parse_actions, run_episode_job
from cleanup.entrypoints.run_tools import build_engine
from cleanup.names import show_of
from cleanup.phases.observe import attach_detections, plan_observations
from cleanup.progress import ignore_items
from cleanup.resolve_settings import ResolvedSettings, resolve_for_run
from cleanup.settings import Secret
from tests.conftest import SHARED, copy_data

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Scene:
    """Truth of an episode and what the worker saw; arrays over the faces of faces.jsonl, in line order."""

    ep_id: str
    person: list[str | None]
    is_clean: NDArray[np.bool_]
    raw_track: list[Any]
    frames: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    boxes: NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """What a method says of each face: its piece of a track, its identity, and a person where it names one."""

    piece: list[Any]
    identity: list[Any]
    person: list[str | None] | None = None


def score(scene: Scene, outcome: Outcome) -> dict[str, float | int | str]:
    """The figures of one row of the table."""
    known = [i for i, p in enumerate(scene.person) if p]
    truth = [str(scene.person[i]) for i in known]
    found = [outcome.identity[i] for i in known]
    both, people, clusters = Counter(zip(truth, found, strict=True)), Counter(truth), Counter(found)
    n = len(known)
    precision = sum(both[t, c] / clusters[c] for t, c in zip(truth, found, strict=True)) / n
    recall = sum(both[t, c] / people[t] for t, c in zip(truth, found, strict=True)) / n
    best: dict[Any, int] = {}
    for (_, cluster), count in both.items():
        best[cluster] = max(best.get(cluster, 0), count)
    codes = [sorted(clusters, key=str).index(c) for c in found]
    row: dict[str, float | int | str] = {
        "P": precision,
        "R": recall,
        "F": 2 * precision * recall / (precision + recall),
        "WCP": sum(best.values()) / n,
        "NMI": float(normalized_mutual_info_score(truth, codes)),
        "ARI": float(adjusted_rand_score(truth, codes)),
        "ids/people": f"{len(clusters)}/{len(people)}",
        "coverage": sum(c is not None for c in found) / n,
    }
    row.update(_score_pieces(scene, outcome, known))
    if outcome.person is not None:
        named = [outcome.person[i] for i in known]
        row["label_acc"] = sum(a == b for a, b in zip(named, truth, strict=True)) / n
        row["label_wrong"] = sum(a is not None and a != b for a, b in zip(named, truth, strict=True)) / n
    return row


def _score_pieces(scene: Scene, outcome: Outcome, known: list[int]) -> dict[str, float | int]:
    pieces = Counter(outcome.piece[i] for i in known)
    pure = Counter((outcome.piece[i], scene.person[i]) for i in known)
    best: dict[Any, int] = {}
    for (piece, _), count in pure.items():
        best[piece] = max(best.get(piece, 0), count)
    tracks: dict[Any, list[int]] = {}
    for i in known:
        tracks.setdefault(scene.raw_track[i], []).append(i)
    n_false = n_missed = 0
    for members in tracks.values():
        ordered = sorted(members, key=lambda i: int(scene.frames[i]))
        for a, b in pairwise(ordered):
            is_cut, is_change = outcome.piece[a] != outcome.piece[b], scene.person[a] != scene.person[b]
            n_false += is_cut and not is_change
            n_missed += is_change and not is_cut
    purity = sum(best.values()) / sum(pieces.values())
    return {"track purity": purity, "false splits/track": n_false / len(tracks), "missed": n_missed}


def observe_scene(root: Path, truth_file: Path, settings: ResolvedSettings) -> Scene:
    """One pass over the pixels of an episode, as the product makes it."""
    truth = json.loads(truth_file.read_text())
    paths = EpisodePaths(RootPath(root), truth["ep_id"])
    episode = attach_detections(read_episode(paths), settings.settings.observe)
    with VideoFrames(paths.video.system_path) as video:
        info = video.info
    plan = plan_observations(episode, settings.settings.observe, info.width, info.height, info.fps)
    engine = build_engine(settings)
    assert isinstance(engine, LocalEngine)
    results = engine.observe(truth["ep_id"], str(paths.video), plan.tables(), ignore_items)
    engine.close()
    seen = schemas.merge_observations([r.observations for r in results if r.observations is not None])
    place = {k: i for i, k in enumerate(zip(seen["track_id"].to_pylist(), seen["frame_idx"].to_pylist(), strict=True))}
    keys = list(zip(episode.faces["track_id"].to_pylist(), episode.faces["frame_idx"].to_pylist(), strict=True))
    rows = seen.take([place[k] for k in keys])
    faces = truth["faces"]
    assert [f["frame_idx"] for f in faces] == [k[1] for k in keys], "truth and faces.jsonl are in the same order"
    return Scene(
        truth["ep_id"],
        [f["person"] for f in faces],
        np.array([f["clean"] for f in faces]),
        [k[0] for k in keys],
        schemas.ints_of(rows, "frame_idx"),
        schemas.embeddings_of(rows),
        schemas.matrix_of(rows["bbox"], 4),
    )


def raw_artifacts(scene: Scene, root: Path) -> Outcome:
    """The artifacts as they are."""
    owner = {
        t: i["identity_id"]
        for i in read_episode(EpisodePaths(RootPath(root), scene.ep_id)).identities.to_pylist()
        for t in i["track_ids"]
    }
    return Outcome(scene.raw_track, [owner[t] for t in scene.raw_track])


def plain_gate(scene: Scene) -> Outcome:
    """The documented gate without confirmation (0.70 / 0.78, streak 2, IoU 0.55), mean pooling, average linkage at 0.52."""
    piece = np.zeros(len(scene.frames), np.int64)
    n_pieces = 0
    tracks: dict[Any, list[int]] = {}
    for i, track in enumerate(scene.raw_track):
        tracks.setdefault(track, []).append(i)
    for members in tracks.values():
        ordered = sorted(members, key=lambda i: int(scene.frames[i]))
        ious = compute_consecutive_iou(scene.boxes[ordered])
        prototype, n_low = scene.embeddings[ordered[0]], 0
        for k, i in enumerate(ordered):
            similarity = float(prototype @ scene.embeddings[i])
            n_low = n_low + 1 if similarity < 0.78 else 0
            if k == 0 or similarity < 0.70 or n_low >= 2 or ious[k] < 0.55:
                n_pieces, n_low, prototype = n_pieces + 1, 0, scene.embeddings[i]
            elif similarity >= 0.78:
                prototype = 0.85 * prototype + 0.15 * scene.embeddings[i]
                prototype = prototype / np.linalg.norm(prototype)
            piece[i] = n_pieces
    pooled = np.array([scene.embeddings[piece == p].mean(axis=0) for p in range(1, n_pieces + 1)])
    labels = fcluster(linkage(pooled, "average", metric="cosine"), 1 - 0.52, "distance")
    return Outcome(piece.tolist(), [int(labels[p - 1]) for p in piece])


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


def ours(scene: Scene, root: Path, settings: ResolvedSettings, *, is_grouped: bool) -> tuple[Outcome, float | None]:
    """The product itself, with write-back on a copy; also the area under the ROC of quality against truth's clean flag."""
    actions = parse_actions(None if is_grouped else ["split_tracks", "reembed", "recluster"])
    with tempfile.TemporaryDirectory() as scratch:
        copy = copy_data(root, Path(scratch) / "data")
        run_episode_job(EpisodeJob(scene.ep_id, DataRoot(RootPath(copy)), actions, settings, write_back=True))
        episode = read_episode(EpisodePaths(RootPath(copy), scene.ep_id))
    identities = episode.identities.to_pylist()
    owner = {t: i for i in identities for t in i["track_ids"]}
    n_raw = len(scene.frames)
    piece = episode.faces["track_id"].to_pylist()[:n_raw]
    quality = schemas.floats_of(episode.faces, "quality")[:n_raw]
    known = np.array([p is not None for p in scene.person])
    is_mixed = len(set(scene.is_clean[known].tolist())) > 1
    area = float(roc_auc_score(scene.is_clean[known], quality[known])) if is_mixed else None
    people = [owner[t]["person_id"] for t in piece] if is_grouped else None
    return Outcome(piece, [owner[t]["identity_id"] for t in piece], people), area


def enroll_seeds(facebank: PostgresFacebank, seeds: Path, settings: ResolvedSettings, show: str) -> None:
    """Enrols a show's seed photos."""
    models = load_models(ModelSpec(settings.settings.observe.models, settings.settings.observe.device))
    outcomes = embed_photos(find_photos(seeds / show).photos, models, SeedRules(0.5, 45))
    found = [o.seed for o in outcomes if o.seed is not None]
    facebank.enroll(show, models.recogniser.name, models.recogniser.sha256, found)


def bench_episode(root: Path, truth_file: Path, seeds: Path, settings: ResolvedSettings) -> list[dict[str, Any]]:
    """All rows of one episode."""
    scene = observe_scene(root, truth_file, settings)
    methods: list[tuple[str, Callable[[Scene], Outcome]]] = [
        ("raw artifacts", lambda s: raw_artifacts(s, root)),
        ("plain gate + average linkage", plain_gate),
        ("Immich's rule", _faces_alone(immich_rule)),
        ("DBSCAN 0.48", _faces_alone(dbscan)),
        ("HDBSCAN", _faces_alone(hdbscan)),
        ("FINCH (best partition)", finch),
    ]
    rows = [{"method": name, **score(scene, method(scene))} for name, method in methods]
    outcome, area = ours(scene, root, settings, is_grouped=False)
    rows.append({"method": "ours, no Facebank", **score(scene, outcome), "quality AUC": area})
    show = show_of(scene.ep_id)
    if (seeds / show).is_dir():
        with (
            tempfile.TemporaryDirectory() as scratch,
            open_embedded_facebank(RootPath.of_file(Path(scratch) / "postgres")) as facebank,
        ):
            enroll_seeds(facebank, seeds, settings, show)
            named = replace(settings.settings.group_clusters, facebank_dsn=Secret(facebank.dsn))
            with_seeds = replace(settings, settings=replace(settings.settings, group_clusters=named))
            outcome, area = ours(scene, root, with_seeds, is_grouped=True)
        rows.append({"method": "ours", **score(scene, outcome), "quality AUC": area})
    return rows


COLUMNS = (
    "method", "P", "R", "F", "WCP", "NMI", "ARI", "ids/people", "track purity", "false splits/track", "missed", "coverage",
    "label_acc", "label_wrong", "quality AUC",
)  # fmt: skip


def main() -> None:
    """Prints a table per episode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="data root with raw episodes")
    parser.add_argument("--truth", type=Path, default=SHARED / "truth", help="folder of EP_ID.json")
    parser.add_argument("--seeds", type=Path, default=SHARED / "facebank", help="folder of SHOW/PERSON/photos")
    parser.add_argument("--models", type=Path, default=SHARED / "models")
    parser.add_argument("--profile", default="balanced")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    arguments = parser.parse_args()
    settings = resolve_for_run({"models": str(arguments.models), "device": "cpu"}, arguments.profile, None)
    console, results = Console(width=210), {}
    with tempfile.TemporaryDirectory() as scratch:
        root = copy_data(arguments.data, Path(scratch) / "data")
        for truth_file in sorted(arguments.truth.glob("*.json")):
            rows = bench_episode(root, truth_file, arguments.seeds, settings)
            results[truth_file.stem] = rows
            table = Table(title=f"{truth_file.stem}, profile {arguments.profile}", title_justify="left")
            for column in COLUMNS:
                table.add_column(column, justify="left" if column == "method" else "right")
            for row in rows:
                cells = [row.get(c) for c in COLUMNS]
                table.add_row(*("" if c is None else f"{c:.4f}" if isinstance(c, float) else str(c) for c in cells))
            console.print(table)
            shutil.rmtree(root / "runs", ignore_errors=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
