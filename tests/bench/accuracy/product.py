"""The product itself, with write-back on a copy, with and without a Facebank."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from cleanup import schemas
from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import read_episode
from cleanup.edges.data_root import DataRoot
from cleanup.edges.embedded_postgres import open_embedded_facebank
from cleanup.edges.onnx_models import ModelSpec, load_models
from cleanup.edges.photo_folders import find_photos
from cleanup.edges.root_path import RootPath
from cleanup.edges.seed_photos import SeedRules, embed_photos
from cleanup.entrypoints.episode_job import EpisodeJob, parse_actions, run_episode_job
from cleanup.episode import Episode
from cleanup.phases.seen_together import judge_shared_frames
from cleanup.phases.track_samples import pool_tracks
from cleanup.resolve_settings import ResolvedSettings
from cleanup.settings import Secret
from tests.bench.accuracy.peeks import find_best_cut
from tests.bench.accuracy.scene import Outcome, Scene
from tests.conftest import copy_data

OURS, OURS_ALONE, OURS_ANSWERED = "ours", "ours, no Facebank", "ours, its questions answered (peeks)"


@dataclass(frozen=True)
class ProductRun:
    """What a run said, its report, the episode as it was written, and the area under the ROC of quality against clean."""

    outcome: Outcome
    report: dict[str, Any]
    episode: Episode
    quality_area: float | None


def run_product(scene: Scene, root: Path, settings: ResolvedSettings, *, is_grouped: bool) -> ProductRun:
    """One run over a copy of the data root, whose checkpoints it takes."""
    actions = parse_actions(None if is_grouped else ["split_tracks", "reembed", "recluster"])
    with tempfile.TemporaryDirectory() as scratch:
        copy = copy_data(root, Path(scratch) / "data")
        report = run_episode_job(EpisodeJob(scene.ep_id, DataRoot(RootPath(copy)), actions, settings, write_back=True))
        episode = read_episode(EpisodePaths(RootPath(copy), scene.ep_id))
    owner = {t: row for row in episode.identities.to_pylist() for t in row["track_ids"]}
    n_raw = len(scene.frames)
    piece = episode.faces["track_id"].to_pylist()[:n_raw]
    quality = schemas.floats_of(episode.faces, "quality")[:n_raw]
    is_clean = scene.is_clean[scene.known]
    is_mixed = len(np.unique(is_clean)) > 1
    area = float(roc_auc_score(is_clean, quality[scene.known])) if is_mixed else None
    people = [owner[t]["person_id"] for t in piece] if is_grouped else None
    cut = float(report["recluster"]["thresholds"]["cluster_thresh"]["value"])
    return ProductRun(Outcome(piece, [owner[t]["identity_id"] for t in piece], people, cut), report, episode, area)


def recut_best(scene: Scene, run: ProductRun, settings: ResolvedSettings) -> Outcome:
    """The product's own pieces, vectors and pairs that must not join, at the cut that scores best."""
    pooled = pool_tracks(run.episode, settings.settings.pooling)
    apart = judge_shared_frames(run.episode, pooled).apart
    return find_best_cut(scene, run.outcome.piece, {t: track.vector for t, track in pooled.items()}, apart)


def answer_questions(scene: Scene, run: ProductRun) -> Outcome:
    """What is left of the loss once a person has said of each question whether it is one person."""
    owner = {t: row["identity_id"] for row in run.episode.identities.to_pylist() for t in row["track_ids"]}
    people: dict[Any, Counter[str | None]] = defaultdict(Counter)
    for i in scene.known:
        people[run.outcome.piece[i]][scene.person[i]] += 1
    joined = {identity_id: identity_id for identity_id in owner.values()}
    for question in run.report["recluster"]["questions"]:
        for a, b in question["track_ids"]:
            first, second = joined[owner[a]], joined[owner[b]]
            if people[a] and people[b] and people[a].most_common(1)[0][0] == people[b].most_common(1)[0][0]:
                joined = {k: first if v == second else v for k, v in joined.items()}
    return Outcome(run.outcome.piece, [joined[i] for i in run.outcome.identity], cut=run.outcome.cut)


@contextlib.contextmanager
def with_facebank(settings: ResolvedSettings, seeds: Path, show: str) -> Iterator[ResolvedSettings]:
    """The settings with a Facebank that a show's seed photos are enrolled in."""
    models = load_models(ModelSpec(settings.settings.observe.models, settings.settings.observe.device))
    outcomes = embed_photos(find_photos(seeds / show).photos, models, SeedRules(0.5, 45))
    found = [o.seed for o in outcomes if o.seed is not None]
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_embedded_facebank(RootPath.of_file(Path(scratch) / "postgres")) as facebank,
    ):
        facebank.enroll(show, models.recogniser.name, models.recogniser.sha256, found)
        named = replace(settings.settings.group_clusters, facebank_dsn=Secret(facebank.dsn))
        yield replace(settings, settings=replace(settings.settings, group_clusters=named))


def pick_ours(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The product's row among an episode's rows: with a Facebank where the show has one."""
    of = {row["method"]: row for row in rows}
    return of.get(OURS, of[OURS_ALONE])
