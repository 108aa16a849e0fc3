"""The appearance gate over an episode: its thresholds, placed or given, and the changes it sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cleanup.algorithms.appearance_gate import Candidate, GateThresholds, find_changes
from cleanup.algorithms.threshold_evidence import place_threshold
from cleanup.episode import Episode
from cleanup.phases.evidence import gather_gate_evidence
from cleanup.phases.track_samples import TrackSamples, iterate_samples
from cleanup.settings import SplitTracksSettings

# Where the gate's thresholds lie between the end of "two people" and the beginning of "one person". A confirmation asks
# whether two stretches are one person and sits low; a proposal only asks for a second look and sits high.
_SAME_PERSON_POSITION, _HARD_POSITION, _SOFT_POSITION = 0.25, 0.70, 0.85


@dataclass(frozen=True)
class PlacedGate:
    """The thresholds in force, and how they came about."""

    thresholds: GateThresholds
    description: dict[str, Any]


def place_gate(episode: Episode, settings: SplitTracksSettings) -> PlacedGate:
    """Places the gate's thresholds from the episode's evidence; numbers given explicitly are obeyed.

    If the hard threshold is given and the soft one is not, the soft one keeps its distance to it.
    """
    evidence = gather_gate_evidence(episode)
    configured_soft = settings.gate_soft.value
    is_soft_auto = settings.gate_soft.is_auto
    if is_soft_auto and not settings.gate_hard.is_auto:
        configured_soft, is_soft_auto = min(settings.gate_hard.value + 0.08, 1.0), False
    hard = place_threshold(evidence, _HARD_POSITION, settings.gate_hard.value, is_auto=settings.gate_hard.is_auto)
    soft = place_threshold(evidence, _SOFT_POSITION, configured_soft, is_auto=is_soft_auto)
    same = place_threshold(
        evidence, _SAME_PERSON_POSITION, settings.gate_same_person.value, is_auto=settings.gate_same_person.is_auto
    )
    thresholds = GateThresholds(
        hard=hard.value,
        soft=soft.value,
        streak=settings.gate_streak,
        min_iou=settings.gate_iou,
        prototype_momentum=settings.gate_proto_momentum,
        same_person=same.value,
    )
    description = {
        "gate_hard": hard.describe(),
        "gate_soft": soft.describe(),
        "gate_same_person": same.describe(),
        "evidence": evidence.describe(),
    }
    return PlacedGate(thresholds, description)


def find_track_changes(samples: TrackSamples, thresholds: GateThresholds) -> list[Candidate]:
    """The gate's candidates in one track, confirmed and refused."""
    return find_changes(samples.gate, thresholds)


def count_switches(episode: Episode, settings: SplitTracksSettings) -> int:
    """Places where the gate sees the person change inside a track."""
    thresholds = place_gate(episode, settings).thresholds
    return sum(sum(c.is_split for c in find_track_changes(s, thresholds)) for s in iterate_samples(episode))
