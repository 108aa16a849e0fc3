"""Targets of the report's metrics."""

from __future__ import annotations

from collections.abc import Mapping

# Each metric must stay below its target.
TARGETS: Mapping[str, float] = {
    "tracks_per_minute": 30.0,
    "short_track_fraction": 0.20,
    "id_switch_rate": 0.05,
    "singleton_fraction": 0.30,
    "largest_cluster_fraction": 0.40,
}
