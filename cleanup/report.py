"""CleanupReport: what a run did, with counts and metrics before and after."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cleanup import schemas
from cleanup.algorithms.episode_metrics import compute_metrics, find_missed_targets
from cleanup.algorithms.similarity_scale import ASSUMED, SimilarityScale
from cleanup.episode import Episode
from cleanup.people import GroupingPlan
from cleanup.phases.gate import count_switches
from cleanup.settings import ReclusterSettings, SplitTracksSettings

SCHEMA_VERSION = "cleanup_report_v1"


@dataclass(frozen=True)
class EpisodeFigures:
    """Counts and metrics of an episode at one moment."""

    n_tracks: int
    n_faces: int
    n_clusters: int
    metrics: dict[str, float]


def measure_episode(
    episode: Episode, gate: SplitTracksSettings, known: SimilarityScale | None = None
) -> EpisodeFigures:
    """Counts and metrics of an episode; the same function before and after a run."""
    durations = schemas.floats_of(episode.tracks, "end_s") - schemas.floats_of(episode.tracks, "start_s")
    # A track lasts to the end of its last frame.
    durations = durations + 1 / episode.fps
    sizes = [len(t) for t in episode.identities["track_ids"].to_pylist()]
    metrics = compute_metrics(np.round(durations, 6), sizes, count_switches(episode, gate, known), episode.duration_s)
    return EpisodeFigures(len(episode.tracks), len(episode.embedded_faces), len(episode.identities), metrics)


def find_warnings(after: EpisodeFigures, settings: ReclusterSettings) -> list[str]:
    """A sentence for every metric past its target and every configured limit that is broken."""
    warnings = find_missed_targets(after.metrics)
    limits = (
        ("singleton_fraction", settings.max_singleton_fraction),
        ("largest_cluster_fraction", settings.max_largest_cluster_fraction),
    )
    for name, limit in limits:
        if after.metrics[name] > limit and not any(w.startswith(name) for w in warnings):
            warnings.append(f"{name} is {after.metrics[name]:g}, above the configured {limit:g}")
    if not settings.min_cluster_count <= after.n_clusters <= settings.max_cluster_count:
        warnings.append(
            f"{after.n_clusters} identities, expected {settings.min_cluster_count} to {settings.max_cluster_count}"
        )
    return warnings


def find_scale_warnings(phases: Collection[Mapping[str, Any]]) -> list[str]:
    """A sentence where a phase could not tell what two people look like to the model, and nothing was known of it."""
    placed = [phase["thresholds"]["scale"] for phase in phases if "thresholds" in phase]
    placed += [phase["min_agreement"] for phase in phases if "min_agreement" in phase]
    if all(entry["source"] != ASSUMED for entry in placed):
        return []
    return [
        "the episode shows too few people to tell the model's scale, so thresholds are those of a model for which two "
        "people are at a cosine of 0; measure it once: cleanup models calibrate --photos DIR"
    ]


@dataclass
class Timings:
    """Where the time of a run went, so that people can see what to buy more of.

    Attributes:
        phases: Seconds of each part of the run, one after the other: read, observe (the pass over the pixels), the
            phases, measure (metrics before and after), write.
        workers: For each worker of the pass its busy seconds by step (decode, crop, detect, quality, embed), summed
            over its threads; the steps overlap, so the largest is what the pass waits for.
    """

    phases: dict[str, float] = field(default_factory=dict)
    workers: list[dict[str, float]] = field(default_factory=list)

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Adds the time spent inside to a part of the run."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - started

    def to_json(self) -> dict[str, Any]:
        """As the report holds it, in milliseconds' precision."""
        steps: Counter[str] = Counter()
        for worker in self.workers:
            steps.update(worker)
        return {
            "phases": {name: round(seconds, 3) for name, seconds in self.phases.items()},
            "steps": {name: round(seconds, 3) for name, seconds in sorted(steps.items())},
            "workers": [{name: round(s, 3) for name, s in sorted(worker.items())} for worker in self.workers],
        }


@dataclass
class CleanupReport:
    """The report of one run, filled in as the run goes on; ``to_json`` is cleanup_report.json.

    Attributes:
        ep_id: Episode.
        run_id: Run.
        actions: Phases done, in order.
        before: Figures before the first phase.
        after: Figures after the last one.
        phases: Phase name -> its part.
        settings: ``{name: {value, source}}``.
        profile: Profile in force.
        warnings: Sentences for people.
        models: Names, digests and providers; empty where no model was needed.
        engine: Engine that did the work.
        write_back: Whether files were written back.
        files: What was written, and where the backup lies.
        observed: Frames, faces and shards of the pass over the pixels: what was planned and what was done.
        video: How the artifacts count in the video, and what it is; empty where no pixels were looked at.
        failed_shards: Shards that failed for good; their tracks are as they were.
        unreadable: Stretches of the video that cannot be decoded; likewise.
        timings: Where the time went, see ``Timings``.
        plan: What the Facebank has to record when the episode is written; no part of what is written.
        runtime_sec: Seconds from start to end.
    """

    ep_id: str
    run_id: str
    actions: list[str] = field(default_factory=list)
    before: EpisodeFigures | None = None
    after: EpisodeFigures | None = None
    phases: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    profile: str = ""
    warnings: list[str] = field(default_factory=list)
    models: dict[str, Any] = field(default_factory=dict)
    engine: str = ""
    write_back: bool = False
    files: dict[str, Any] = field(default_factory=dict)
    observed: dict[str, int] = field(default_factory=dict)
    video: dict[str, Any] = field(default_factory=dict)
    failed_shards: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[dict[str, Any]] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)
    plan: GroupingPlan | None = None
    runtime_sec: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The report as it is written."""
        assert self.before is not None and self.after is not None
        record: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "ep_id": self.ep_id,
            "run_id": self.run_id,
            "actions_completed": self.actions,
            "actions": list(self.actions),
            "runtime_sec": round(self.runtime_sec, 3),
            "tracks_before": self.before.n_tracks,
            "tracks_after": self.after.n_tracks,
            "faces_before": self.before.n_faces,
            "faces_after": self.after.n_faces,
            "clusters_before": self.before.n_clusters,
            "clusters_after": self.after.n_clusters,
            "metrics_before": self.before.metrics,
            "metrics_after": self.after.metrics,
        }
        for name, part in self.phases.items():
            part = dict(part)
            for key in ("splits", "grouping"):
                if key in part:
                    record[key] = part.pop(key)
            part.pop("warnings", None)
            record[name] = part
        record.update(
            profile=self.profile,
            engine=self.engine,
            models=self.models,
            observed=self.observed,
            video=self.video,
            failed_shards=self.failed_shards,
            unreadable=self.unreadable,
            timings=self.timings.to_json(),
            write_back=self.write_back,
            files=self.files,
            warnings=self.warnings,
            settings=self.settings,
        )
        return record
