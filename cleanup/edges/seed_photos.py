"""Turns photos of known people into seeds: one face each, aligned and embedded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cleanup.algorithms.face_alignment import CROP_SIZE, estimate_pose, estimate_similarity
from cleanup.algorithms.face_quality import score_face
from cleanup.edges.onnx_models import DetectedFace, FaceModels
from cleanup.edges.photo_folders import Person
from cleanup.edges.pictures import decode_picture, read_picture
from cleanup.edges.postgres_facebank import Seed
from cleanup.errors import ModelError
from cleanup.names import PersonId

# Longer side of the picture that is kept for people, pixels.
_DISPLAY_SIZE = 512
# Longer side of the picture that is looked at with a border, pixels: the detector sees 640 of it, and a border of twice
# the picture's size is nine times its memory.
_BORDERED_SIZE = 2048
# A face cropped tight is missed by SCRFD; with a black border of half the picture's size it is found.
_MARGINS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class PhotoOutcome:
    """What became of one photo: a seed, or the reason why not; ``note`` is what a person may want to know."""

    path: Path
    person_id: PersonId
    seed: Seed | None
    problem: str = ""
    images: SeedImages | None = None
    note: str = ""


@dataclass(frozen=True)
class SeedImages:
    """What is kept of a photo: the aligned crop (112, 112, 3) and a picture for people, RGB; and the file itself."""

    crop: NDArray[np.uint8]
    display: NDArray[np.uint8]
    original: bytes


@dataclass(frozen=True)
class SeedRules:
    """Which photos may become seeds.

    Attributes:
        min_confidence: Detector confidence a face must reach.
        max_yaw_deg: A head turned further is refused; None checks no pose.
        min_sharpness: A crop with a lower Laplacian variance is refused as blurred.
        use_largest: Of several faces take the largest instead of refusing the photo.
        is_aligned: The photos are aligned 112x112 crops already; nothing is detected.
    """

    min_confidence: float
    max_yaw_deg: float | None
    min_sharpness: float = 0.0
    use_largest: bool = False
    is_aligned: bool = False


def embed_photos(photos: Sequence[tuple[Person, Path]], models: FaceModels, rules: SeedRules) -> Iterator[PhotoOutcome]:
    """Makes a seed of each photo or says why not; in order, one at a time."""
    if models.detector is None and not rules.is_aligned:
        raise ModelError("the model folder has no face detector; enrolment needs one, or aligned crops with --aligned")
    for person, path in photos:
        person_id = person.person_id
        content, fault = read_picture(path)
        rgb = None if fault else decode_picture(content)
        if rgb is None:
            yield PhotoOutcome(path, person_id, None, fault or "not a readable picture")
            continue
        crop, face, problem = _aligned_crop(rgb, models, rules)
        if crop is None:
            yield PhotoOutcome(path, person_id, None, problem)
            continue
        sharpness = float(cv2.Laplacian(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())
        if sharpness < rules.min_sharpness:
            yield PhotoOutcome(
                path,
                person_id,
                None,
                f"blurred: sharpness {sharpness:.0f}, at least {rules.min_sharpness:.0f} is needed",
            )
            continue
        vector = models.recogniser.embed(crop[None])[0]
        norm = float(np.linalg.norm(vector))
        if not np.isfinite(norm) or norm == 0:
            yield PhotoOutcome(path, person_id, None, "the model gives no embedding for it")
            continue
        digest = hashlib.sha256(content).hexdigest()
        seed = Seed(
            person_id,
            person.name,
            path.relative_to(person.folder).as_posix(),
            digest,
            vector / np.float32(norm),
            1.0 if face is None else face.confidence,
            quality=_score(face, sharpness),
            landmarks=None if face is None else tuple(float(v) for v in face.landmarks.ravel()),
        )
        yield PhotoOutcome(path, person_id, seed, images=SeedImages(crop, _shrink(rgb, _DISPLAY_SIZE), content))


def _score(face: DetectedFace | None, sharpness: float) -> float:
    """The documented quality score; of an aligned crop only what can be seen in it."""
    yaw, pitch = (np.zeros(1), np.zeros(1)) if face is None else estimate_pose(face.landmarks[None])[:2]
    confidence = np.nan if face is None else face.confidence
    size = CROP_SIZE if face is None else float((face.bbox[2:] - face.bbox[:2]).min())
    return float(score_face(np.array([confidence]), np.array([size]), np.array([sharpness]), yaw, pitch)[0])


def _shrink(image: NDArray[np.uint8], longer_side: int) -> NDArray[np.uint8]:
    factor = longer_side / max(image.shape[:2])
    if factor >= 1:
        return image
    size = (max(round(image.shape[1] * factor), 1), max(round(image.shape[0] * factor), 1))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _aligned_crop(
    image: NDArray[np.uint8], models: FaceModels, rules: SeedRules
) -> tuple[NDArray[np.uint8] | None, DetectedFace | None, str]:
    if rules.is_aligned:
        if image.shape[:2] != (CROP_SIZE, CROP_SIZE):
            return None, None, f"{image.shape[1]}x{image.shape[0]} instead of an aligned {CROP_SIZE}x{CROP_SIZE} crop"
        return image, None, ""
    faces = _find_faces(image, models, rules.min_confidence)
    if not faces:
        return None, None, "no face found"
    if len(faces) > 1 and not rules.use_largest:
        return None, None, f"{len(faces)} faces found; crop the photo to one, or use --largest"
    face = max(faces, key=lambda f: float((f.bbox[2:] - f.bbox[:2]).prod()))
    landmarks = face.landmarks[None]
    yaw = float(estimate_pose(landmarks)[0][0])
    if rules.max_yaw_deg is not None and abs(yaw) > rules.max_yaw_deg:
        return None, None, f"the head is turned by {abs(yaw):.0f} degrees, more than {rules.max_yaw_deg:.0f}"
    crop = cv2.warpAffine(image, estimate_similarity(landmarks)[0], (CROP_SIZE, CROP_SIZE), borderValue=0.0)
    return crop, face, ""


def _find_faces(image: NDArray[np.uint8], models: FaceModels, min_confidence: float) -> list[DetectedFace]:
    """Faces in pixels of the picture itself, tried with growing borders until there is one."""
    assert models.detector is not None
    for margin in _MARGINS:
        shown = _shrink(image, _BORDERED_SIZE) if margin else image
        height, width = shown.shape[:2]
        dy, dx = int(height * margin), int(width * margin)
        padded = cv2.copyMakeBorder(shown, dy, dy, dx, dx, cv2.BORDER_CONSTANT) if margin else image
        faces = models.detector.detect(padded, min_confidence)
        if faces:
            shift = np.array([dx, dy], np.float32)
            scale = np.array([image.shape[1] / width, image.shape[0] / height], np.float32)
            return [
                DetectedFace(
                    (f.bbox - np.tile(shift, 2)) * np.tile(scale, 2), (f.landmarks - shift) * scale, f.confidence
                )
                for f in faces
            ]
    return []
