"""Geometry of the five landmarks: the similarity that aligns a face to the ArcFace template, and head pose."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CROP_SIZE = 112

# Left eye, right eye, nose, left and right mouth corner of the aligned 112x112 crop (Deng et al., ArcFace, 2019; the
# reference points of InsightFace's face_align).
ARCFACE_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    dtype=np.float64,
)

# The same five points on an average adult head in millimetres, x right in the image, y down, z towards the camera,
# nose tip at the origin. Eye distance 63 mm and a nose 30 mm in front of the eyes are the usual anthropometric means.
_HEAD_POINTS_MM = np.array(
    [[-31.5, -35.0, -30.0], [31.5, -35.0, -30.0], [0.0, 0.0, 0.0], [-25.0, 32.0, -24.0], [25.0, 32.0, -24.0]]
)


def estimate_similarity(landmarks: NDArray[np.floating]) -> NDArray[np.float64]:
    """Least-squares similarity transforms from landmarks to the ArcFace template (Umeyama, 1991, in closed form).

    Args:
        landmarks: Shape (n, 5, 2), pixels.

    Returns:
        Matrices of shape (n, 2, 3) for an affine warp into the 112x112 crop. Degenerate landmarks (all in one point)
        give a matrix of NaN.
    """
    source = np.asarray(landmarks, np.float64)
    source_mean = source.mean(axis=1, keepdims=True)
    target_mean = ARCFACE_TEMPLATE.mean(axis=0)
    x = source - source_mean
    y = ARCFACE_TEMPLATE - target_mean
    # In the plane the best rotation and scale are one complex number: <x, y> / <x, x>.
    real = np.einsum("nij,ij->n", x, y)
    imaginary = np.einsum("ni,i->n", x[..., 0], y[:, 1]) - np.einsum("ni,i->n", x[..., 1], y[:, 0])
    power = np.einsum("nij,nij->n", x, x)
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = real / power, imaginary / power
    matrices = np.empty((len(source), 2, 3))
    matrices[:, 0, 0], matrices[:, 0, 1] = a, -b
    matrices[:, 1, 0], matrices[:, 1, 1] = b, a
    matrices[:, :, 2] = target_mean - np.einsum("nij,nj->ni", matrices[:, :, :2], source_mean[:, 0])
    return matrices


def estimate_pose(landmarks: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Yaw and pitch in degrees from five landmarks under scaled orthography (POS, DeMenthon and Davis, 1995).

    Args:
        landmarks: Shape (n, 5, 2), pixels.

    Returns:
        Two arrays of shape (n,): yaw, positive when the face turns to the image's right; pitch, positive upwards.
        Degenerate landmarks give 90 degrees, so that a pose gate refuses them.
    """
    points = np.asarray(landmarks, np.float64)
    head = _HEAD_POINTS_MM - _HEAD_POINTS_MM.mean(axis=0)
    rows = np.einsum("ij,njk->nki", np.linalg.pinv(head), points - points.mean(axis=1, keepdims=True))
    norms = np.linalg.norm(rows, axis=2)
    is_flat = norms.min(axis=1) < 1e-9
    first = rows[:, 0] / np.where(norms[:, :1] == 0, 1, norms[:, :1])
    second = rows[:, 1] / np.where(norms[:, 1:] == 0, 1, norms[:, 1:])
    forward = np.cross(first, second)
    length = np.linalg.norm(forward, axis=1, keepdims=True)
    forward = forward / np.where(length == 0, 1, length)
    # first and second are the image axes in head coordinates: their z parts say how the nose axis leans in the image.
    yaw = np.degrees(np.arctan2(first[:, 2], np.abs(forward[:, 2])))
    pitch = -np.degrees(np.arctan2(second[:, 2], np.abs(forward[:, 2])))
    return np.where(is_flat, 90.0, yaw), np.where(is_flat, 90.0, pitch)
