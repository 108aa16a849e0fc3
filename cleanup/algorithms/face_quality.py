"""How far the embedding of a face can be trusted: a score 0..1 with its parts, and the gates that refuse a face."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cleanup.algorithms.face_alignment import CROP_SIZE

# The closed set of reasons for which a face is refused, in the order in which they are tried.
REJECT_REASONS = ("too_small", "low_confidence", "blurry", "low_contrast", "extreme_pose", "occluded", "mixed",
                  "low_quality", "sample_limit", "no_face", "no_embedding", "duplicate")  # fmt: skip

# Weights of the documented score: confidence, size, sharpness, pose.
_WEIGHTS = (0.4, 0.3, 0.2, 0.1)
# Laplacian variance of an aligned crop at which a face counts as fully sharp; out-of-focus faces lie under 30, faces in
# focus between 80 and 600.
_FULL_SHARPNESS = 100.0
# Yaw or pitch in degrees at which the pose part reaches zero: ArcFace similarity to a frontal face is lost there.
_FULL_TURN_DEG = 90.0
# The norm of an embedding falls with occlusion and blur (MagFace, Meng et al. 2021). Relative to what the same track
# reaches, nothing is lost down to the first figure and no trust is left at the second.
_NORM_FULL, _NORM_NONE = 0.85, 0.60
_SHARPNESS_FULL, _SHARPNESS_NONE = 0.50, 0.20
_REFERENCE_PERCENTILE = 80


@dataclass(frozen=True)
class AgreementScale:
    """What similarity to a track's consensus means with the model at hand.

    Attributes:
        none: Cosine at which a face agrees no more than a stranger's would.
        full: Cosine from which it agrees fully.
    """

    none: float
    full: float

    def rate(self, similarity: NDArray[np.floating]) -> NDArray[np.float64]:
        """Agreement 0..1 of cosines."""
        return _ramp(similarity, self.none, self.full)


@dataclass(frozen=True)
class QualityGates:
    """Limits a face has to keep; sizes in pixels, angles in degrees, sharpness as Laplacian variance."""

    min_size_px: float
    min_confidence: float
    min_sharpness: float
    min_contrast: float
    max_yaw_deg: float
    max_pitch_deg: float
    max_occlusion: float
    min_agreement: float
    min_quality: float


def score_face(
    confidence: NDArray[np.floating],
    size_px: NDArray[np.floating],
    sharpness: NDArray[np.floating],
    yaw_deg: NDArray[np.floating],
    pitch_deg: NDArray[np.floating],
) -> NDArray[np.float32]:
    """The documented score: 0.4 confidence + 0.3 size + 0.2 sharpness + 0.1 pose, each part 0..1; shape (n,).

    Where the confidence is not known (NaN) the other parts share its weight in proportion.
    The size part is full once the crop need not be enlarged (112 pixels), the sharpness part at a Laplacian variance
    of 100, the pose part falls linearly to zero at 90 degrees of yaw or pitch.
    """
    turn = np.maximum(np.abs(yaw_deg), np.abs(pitch_deg))
    parts = np.stack(
        [
            np.clip(confidence, 0, 1),
            np.clip(np.asarray(size_px) / CROP_SIZE, 0, 1),
            np.clip(np.asarray(sharpness) / _FULL_SHARPNESS, 0, 1),
            np.clip(1 - turn / _FULL_TURN_DEG, 0, 1),
        ]
    )
    weights = np.array(_WEIGHTS)[:, None] * np.isfinite(parts)
    return ((weights * np.nan_to_num(parts)).sum(axis=0) / weights.sum(axis=0)).astype(np.float32)


def _ramp(values: NDArray[np.floating], zero_at: float, one_at: float) -> NDArray[np.float64]:
    return np.clip((np.asarray(values, np.float64) - zero_at) / (one_at - zero_at), 0, 1)


def _relative_to_best(values: NDArray[np.floating]) -> NDArray[np.float64]:
    reference = float(np.percentile(values, _REFERENCE_PERCENTILE)) if len(values) else 0.0
    return np.asarray(values, np.float64) / reference if reference > 0 else np.ones(len(values))


def estimate_trust(norms: NDArray[np.floating], sharpness: NDArray[np.floating]) -> NDArray[np.float64]:
    """Trust 0..1 in each face of one track, by what the same track reaches elsewhere.

    A blur burst shows as a fall of sharpness, an occlusion as a fall of the embedding's norm. A model that normalises
    its own output has a constant norm and the norm then says nothing.

    Args:
        norms: Norms of the raw embeddings of one track, shape (n,).
        sharpness: Laplacian variances, shape (n,); NaN where no pixels were read.
    """
    trust = _ramp(_relative_to_best(norms), _NORM_NONE, _NORM_FULL)
    is_measured = np.isfinite(sharpness)
    if is_measured.any():
        relative = np.ones(len(trust))
        relative[is_measured] = _relative_to_best(np.asarray(sharpness)[is_measured])
        trust *= _ramp(relative, _SHARPNESS_NONE, _SHARPNESS_FULL)
    return trust


def estimate_occlusion(norms: NDArray[np.floating], confidence: NDArray[np.floating]) -> NDArray[np.float64]:
    """Occlusion 0..1 of the faces of one track: the fall of the embedding's norm and of the detector's confidence.

    Something passing before a face costs both at once, while the rest of the track shows what the face gives when it
    is free. A track that is covered throughout cannot be told that way and gets 0.

    Args:
        norms: Norms of the raw embeddings of one track, shape (n,).
        confidence: Detector confidences, shape (n,); NaN where unknown, which tells of no occlusion.
    """
    norm_loss = 1 - _ramp(_relative_to_best(norms), _NORM_NONE, _NORM_FULL)
    is_known = np.isfinite(confidence)
    confidence_loss = np.zeros(len(confidence))
    confidence_loss[is_known] = 1 - _ramp(_relative_to_best(np.asarray(confidence)[is_known]), 0.7, 1.0)
    return np.sqrt(norm_loss * confidence_loss)


def measure_agreement(
    embeddings: NDArray[np.floating], trust: NDArray[np.floating], scale: AgreementScale
) -> NDArray[np.float64]:
    """Similarity of each face of one track to the consensus of the others.

    The consensus is the trust-weighted mean, recomputed once without the faces that disagree with it, so that a few
    frames of something else do not pull it.

    Args:
        embeddings: Unit rows, shape (n, d).
        trust: Weights 0..1, shape (n,).
        scale: What a cosine means.

    Returns:
        Cosine similarities, shape (n,); 1 for a track of one face.
    """
    if len(embeddings) <= 1:
        return np.ones(len(embeddings))
    weights = np.maximum(np.asarray(trust, np.float64), 1e-3)
    # The medoid is the start, not the mean: half a track of something else cannot move it.
    vectors = np.asarray(embeddings, np.float64)
    medoid = int(np.argmax((vectors @ (weights @ vectors) * weights).round(9)))
    similarity = vectors @ vectors[medoid]
    for _ in range(2):
        kept = weights * scale.rate(similarity)
        centre = kept @ vectors
        norm = float(np.linalg.norm(centre))
        if norm < 1e-9:
            return np.zeros(len(embeddings))
        similarity = vectors @ (centre / norm)
    return similarity


def combine_quality(
    score: NDArray[np.floating],
    trust: NDArray[np.floating],
    agreement: NDArray[np.floating],
    scale: AgreementScale,
) -> NDArray[np.float32]:
    """Quality 0..1: the documented score, lowered by what the track tells about blur, occlusion and disagreement.

    Trust and agreement together can take away up to three quarters of the score; nothing raises it.
    """
    doubt = 1 - np.asarray(trust) * scale.rate(agreement)
    return (np.asarray(score) * (1 - 0.75 * doubt)).astype(np.float32)


def find_reject_reasons(gates: QualityGates, parts: Mapping[str, NDArray[np.floating]]) -> list[str | None]:
    """The first gate each face fails, or None.

    Args:
        gates: The limits.
        parts: Arrays of shape (n,) named size_px, confidence, sharpness, contrast, yaw, pitch, occlusion, agreement,
            quality. NaN means not measured and fails no gate.
    """
    tests = (
        ("too_small", parts["size_px"] < gates.min_size_px),
        ("low_confidence", parts["confidence"] < gates.min_confidence),
        ("blurry", parts["sharpness"] < gates.min_sharpness),
        ("low_contrast", parts["contrast"] < gates.min_contrast),
        (
            "extreme_pose",
            (np.abs(parts["yaw"]) > gates.max_yaw_deg) | (np.abs(parts["pitch"]) > gates.max_pitch_deg),
        ),
        ("occluded", parts["occlusion"] > gates.max_occlusion),
        ("mixed", parts["agreement"] < gates.min_agreement),
        ("low_quality", parts["quality"] < gates.min_quality),
    )
    reasons: list[str | None] = [None] * len(parts["quality"])
    for reason, failed in reversed(tests):
        for i in np.flatnonzero(failed):
            reasons[i] = reason
    return reasons
