"""The figures a run is judged by, before and after; pure functions of counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cleanup.algorithms.targets import TARGETS

_SHORT_S = 1.0
_IN_WORDS = {
    "tracks_per_minute": "tracks per minute: faces are lost and found again too often",
    "short_track_fraction": "of the tracks are shorter than a second",
    "id_switch_rate": "changes of person inside a track, per track",
    "singleton_fraction": "of the identities have a single track",
    "largest_cluster_fraction": "of all tracks are in one identity",
}


def compute_metrics(
    track_durations_s: NDArray[np.floating],
    identity_sizes: Sequence[int],
    n_switches: int,
    duration_s: float,
) -> dict[str, float]:
    """The five metrics.

    Args:
        track_durations_s: Length of every track in seconds, shape (n,).
        identity_sizes: Number of tracks of every identity.
        n_switches: Places where the appearance gate sees the person change inside a track.
        duration_s: Length of the episode in seconds.

    Returns:
        Metric name -> value, rounded to four digits; 0 where there is nothing to count.
    """
    n_tracks = len(track_durations_s)
    values = {
        "tracks_per_minute": n_tracks / (duration_s / 60) if duration_s > 0 else 0.0,
        "short_track_fraction": float(np.mean(track_durations_s < _SHORT_S)) if n_tracks else 0.0,
        "id_switch_rate": n_switches / n_tracks if n_tracks else 0.0,
        "singleton_fraction": sum(s == 1 for s in identity_sizes) / len(identity_sizes) if identity_sizes else 0.0,
        "largest_cluster_fraction": max(identity_sizes, default=0) / n_tracks if n_tracks else 0.0,
    }
    return {name: round(value, 4) for name, value in values.items()}


def find_missed_targets(metrics: Mapping[str, float]) -> list[str]:
    """A sentence for every metric that is not below its target."""
    return [
        f"{name} is {metrics[name]:g}, target below {target:g} ({_IN_WORDS[name]})"
        for name, target in TARGETS.items()
        if metrics[name] >= target
    ]
