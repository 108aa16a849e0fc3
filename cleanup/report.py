"""CleanupReport: what a run did, with counts and metrics before and after."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.algorithms.episode_metrics import compute_metrics, find_missed_targets
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


def measure_episode(episode: Episode, gate: SplitTracksSettings) -> EpisodeFigures:
    """Counts and metrics of an episode; the same function before and after a run."""
    durations = schemas.floats_of(episode.tracks, "end_s") - schemas.floats_of(episode.tracks, "start_s")
    # A track lasts to the end of its last frame.
    durations = durations + 1 / episode.fps
    sizes = [len(t) for t in episode.identities["track_ids"].to_pylist()]
    metrics = compute_metrics(np.round(durations, 6), sizes, count_switches(episode, gate), episode.duration_s)
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
        failed_shards: Shards that failed for good; their tracks are as they were.
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
    failed_shards: list[dict[str, Any]] = field(default_factory=list)
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
            failed_shards=self.failed_shards,
            timings=self.timings.to_json(),
            write_back=self.write_back,
            files=self.files,
            warnings=self.warnings,
            settings=self.settings,
        )
        return record


def check_conservation(before: Episode, after: Episode, *, is_reclustered: bool) -> list[str]:
    """What a run may never do; a sentence for each thing that it did.

    Every track is still there, and every face and every box of it is in it or in exactly one of its pieces; a face that
    lost its embedding says why; a track is in one identity, and a locked identity has its tracks.

    Args:
        before: The episode as it came to the phases.
        after: What they made of it.
        is_reclustered: Whether every track has to be in an identity, or only those that were.
    """
    root_of = find_roots(before, after)
    problems = _check_tracks(before, after, root_of)
    if problems:
        return problems  # nothing below means anything then
    if not np.array_equal(_places_of(before, {}), _places_of(after, root_of)):
        problems.append(f"the {len(before.boxes)} boxes of tracks are not those of their pieces ({len(after.boxes)})")
    problems += _check_faces(before, after, root_of)
    return problems + _check_owners(before, after, root_of, is_reclustered=is_reclustered)


def find_roots(before: Episode, after: Episode) -> dict[int, int]:
    """For every track of the later state the track of the earlier one that it is a piece of, else itself."""
    parents = dict(zip(*(after.tracks[name].to_pylist() for name in ("track_id", "parent_track_id")), strict=True))
    known = set(before.tracks["track_id"].to_pylist())
    roots = {}
    for track_id in parents:
        root, seen = track_id, {track_id}
        while root not in known and parents.get(root) is not None and parents[root] not in seen:
            root = parents[root]
            seen.add(root)
        roots[track_id] = root
    return roots


def _check_tracks(before: Episode, after: Episode, root_of: dict[int, int]) -> list[str]:
    problems = []
    known, found = set(before.tracks["track_id"].to_pylist()), after.tracks["track_id"].to_pylist()
    lost = known - set(found)
    if lost:
        problems.append(f"tracks {sorted(lost)} are lost")
    if len(set(found)) != len(found):
        problems.append("a track id is there twice")
    strange = sorted(t for t, root in root_of.items() if root not in known)
    if strange:
        problems.append(f"tracks {strange} are pieces of nothing")
    reasons = dict(zip(found, after.tracks["split_reason"].to_pylist(), strict=True))
    unexplained = sorted(t for t in set(found) - known if reasons[t] is None or t <= max(known))
    if unexplained:
        problems.append(f"tracks {unexplained} were split off without a reason or a fresh id")
    return problems


def _places_of(episode: Episode, root_of: dict[int, int]) -> NDArray[np.int64]:
    """Track before the run and frame of every box, sorted; shape (n, 2)."""
    tracks = [root_of.get(t, t) for t in episode.boxes["track_id"].to_pylist()]
    places = np.stack([np.array(tracks, np.int64), schemas.ints_of(episode.boxes, "frame_idx")], axis=1)
    return places[np.lexsort((places[:, 1], places[:, 0]))]


def _check_faces(before: Episode, after: Episode, root_of: dict[int, int]) -> list[str]:
    problems = []
    names = ["face_id", "track_id", "reject_reason"]
    old, new = (
        {
            row["face_id"]: (row, has_embedding)
            for row, has_embedding in zip(
                e.faces.select(names).to_pylist(), e.faces["embedding"].is_valid().to_pylist(), strict=True
            )
        }
        for e in (before, after)
    )
    lost = sorted(old.keys() - new.keys())
    if lost:
        problems.append(f"{len(lost)} faces are lost, {lost[0]} among them")
    if len(new) != len(after.faces):
        problems.append("a face id is there twice")
    moved = [f for f in old.keys() & new.keys() if root_of[new[f][0]["track_id"]] != old[f][0]["track_id"]]
    if moved:
        problems.append(f"{len(moved)} faces are in another track, {min(moved)} among them")
    silent = [f for f in old.keys() & new.keys() if old[f][1] and not new[f][1] and new[f][0]["reject_reason"] is None]
    if silent:
        problems.append(f"{len(silent)} faces lost their embedding without a reason, {min(silent)} among them")
    return problems


def _check_owners(before: Episode, after: Episode, root_of: dict[int, int], *, is_reclustered: bool) -> list[str]:
    problems = []
    owners = Counter(t for tracks in after.identities["track_ids"].to_pylist() for t in tracks)
    twice = sorted(t for t, n in owners.items() if n > 1)
    if twice:
        problems.append(f"tracks {twice} are in two identities")
    owned_before = {t for tracks in before.identities["track_ids"].to_pylist() for t in tracks}
    dropped = sorted(t for t, root in root_of.items() if t not in owners and (is_reclustered or root in owned_before))
    if dropped:
        problems.append(f"tracks {dropped} are in no identity")
    locked = before.identities.filter(before.identities["is_locked"]).to_pylist()
    still = {r["identity_id"]: set(r["track_ids"]) for r in after.identities.to_pylist() if r["is_locked"]}
    for row in locked:
        if not set(row["track_ids"]) <= still.get(row["identity_id"], set()):
            problems.append(f"locked identity {row['identity_id']} lost tracks")
    return problems
