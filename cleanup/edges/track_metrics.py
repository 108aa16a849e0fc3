"""track_metrics.json: the figures of a run written into the file's own shape, everything else in it kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from cleanup import schemas
from cleanup.edges.artifact_dialects import DIALECTS
from cleanup.episode import Episode
from cleanup.report import CleanupReport

_N_LONGEST = 5


def update_track_metrics(episode: Episode, report: CleanupReport) -> bytes:
    """The content of track_metrics.json after a run.

    Args:
        episode: The refined episode; its ``track_metrics`` is what stood in the file, if there was one.
        report: With the figures after the run.
    """
    assert report.after is not None
    document: dict[str, Any] = orjson.loads(episode.track_metrics) if episode.track_metrics else {}
    document.setdefault("ep_id", episode.ep_id)
    splits = report.phases.get("split_tracks", {}).get("splits")
    figures = report.after.metrics
    if episode.is_normalised:
        document["tracks_per_minute"] = figures["tracks_per_minute"]
        document["short_track_fraction"] = figures["short_track_fraction"]
        if splits and splits["total"]:
            document["longest_tracks"] = _longest_tracks(episode)
        return orjson.dumps(document, option=orjson.OPT_INDENT_2)
    metrics = document.setdefault("metrics", {})
    metrics.update(total_tracks=report.after.n_tracks)
    for name in ("tracks_per_minute", "short_track_fraction", "id_switch_rate"):
        metrics[name] = figures[name]
    if splits and splits["total"]:
        gate = metrics.setdefault("appearance_gate", {}).setdefault("splits", {})
        for name, count in splits.items():
            gate[name] = gate.get(name, 0) + count
        metrics["forced_splits"] = gate["total"]
    clusters = document.setdefault("cluster_metrics", {})
    clusters["singleton_fraction"] = figures["singleton_fraction"]
    clusters["largest_cluster_fraction"] = figures["largest_cluster_fraction"]
    return orjson.dumps(document, option=orjson.OPT_INDENT_2)


def _longest_tracks(episode: Episode) -> list[dict[str, Any]]:
    lengths = schemas.ints_of(episode.tracks, "last_frame") - schemas.ints_of(episode.tracks, "first_frame") + 1
    track_ids = schemas.ints_of(episode.tracks, "track_id")
    order = np.lexsort((track_ids, -lengths))[:_N_LONGEST]
    return [
        {"track_id": DIALECTS[episode.dialect].track_key(int(track_ids[i])), "length": int(lengths[i])} for i in order
    ]
