"""The appearance gate over an episode: its thresholds, placed or given, and the changes it sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cleanup.algorithms.appearance_gate import Candidate, GateThresholds, find_changes
from cleanup.algorithms.similarity_scale import SimilarityScale, place_threshold
from cleanup.episode import Episode
from cleanup.phases.model_scale import measure_face_scale
from cleanup.phases.track_samples import TrackSamples, iterate_samples
from cleanup.settings import SplitTracksSettings

# Two stretches less alike than this are no more alike than strangers are; samples of one stretch that are as alike as
# the other are of one person.
_STRANGERS_POSITION, _COHERENT_POSITION = 0.20, 0.75
# If the hard threshold is given and the soft one is not, it lies so much higher.
_SOFT_LEAD = 0.08


@dataclass(frozen=True)
class PlacedGate:
    """The thresholds in force, and how they came about."""

    thresholds: GateThresholds
    description: dict[str, Any]


def place_gate(episode: Episode, settings: SplitTracksSettings, known: SimilarityScale | None = None) -> PlacedGate:
    """Places the gate's thresholds on the model's scale; numbers given explicitly are obeyed.

    If the hard threshold is given and the soft one is not, the soft one keeps its distance to it.
    """
    scale = measure_face_scale(episode, known)
    soft, is_soft_auto = settings.gate_soft.value, settings.gate_soft.is_auto
    if is_soft_auto and not settings.gate_hard.is_auto:
        soft, is_soft_auto = min(settings.gate_hard.value + _SOFT_LEAD, 1.0), False
    choices = {
        "gate_hard": place_threshold(scale, settings.gate_hard.value, is_auto=settings.gate_hard.is_auto),
        "gate_soft": place_threshold(scale, soft, is_auto=is_soft_auto),
        "gate_same_person": place_threshold(
            scale, settings.gate_same_person.value, is_auto=settings.gate_same_person.is_auto
        ),
    }
    thresholds = GateThresholds(
        hard=choices["gate_hard"].value,
        soft=choices["gate_soft"].value,
        streak=settings.gate_streak,
        min_iou=settings.gate_iou,
        prototype_momentum=settings.gate_proto_momentum,
        same_person=choices["gate_same_person"].value,
        strangers=scale.at(_STRANGERS_POSITION),
        coherent=scale.at(_COHERENT_POSITION),
    )
    described = {name: choice.describe() for name, choice in choices.items()}
    return PlacedGate(thresholds, {**described, "scale": scale.describe()})


def find_track_changes(samples: TrackSamples, thresholds: GateThresholds) -> list[Candidate]:
    """The gate's candidates in one track, confirmed and refused."""
    return find_changes(samples.gate, thresholds)


def count_switches(episode: Episode, settings: SplitTracksSettings, known: SimilarityScale | None = None) -> int:
    """Places where the gate sees the person change inside a track."""
    thresholds = place_gate(episode, settings, known).thresholds
    return sum(sum(c.is_split for c in find_track_changes(s, thresholds)) for s in iterate_samples(episode))
