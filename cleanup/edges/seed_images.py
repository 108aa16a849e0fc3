"""The pictures of seeds under the data root, named by the digest of the photo they came from."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import cv2
import numpy as np
from numpy.typing import NDArray

from cleanup.algorithms.face_alignment import CROP_SIZE
from cleanup.edges.artifact_checks import NORM_TOLERANCE
from cleanup.edges.data_root import DataRoot
from cleanup.edges.file_writing import write_synced
from cleanup.edges.pictures import decode_picture, find_fault
from cleanup.edges.postgres_facebank import Seed, StoredSeed
from cleanup.edges.seed_photos import SeedImages
from cleanup.errors import FacebankError
from cleanup.names import Show

_JPEG_QUALITY = 92
_SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")


def save_images(root: DataRoot, show: Show, seed: Seed, images: SeedImages, *, keeps_original: bool) -> Seed:
    """Writes the pictures of a seed; returns the seed with their paths, relative to the data root."""
    folder = f"facebank/seeds/{show}/{seed.person_id}/{seed.image_sha256[:16]}"
    embed_path, display_path, original_path = f"{folder}/embed.png", f"{folder}/display.jpg", None
    write_image(root, embed_path, _encode(images.crop, ".png", []))
    write_image(root, display_path, _encode(images.display, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]))
    if keeps_original:
        suffix = PurePosixPath(seed.image_name).suffix.lower()
        original_path = f"{folder}/original{suffix if _SUFFIX.fullmatch(suffix) else ''}"
        write_image(root, original_path, images.original)
    return dataclasses.replace(
        seed, embed_path=embed_path, display_path=display_path, original_path=original_path or seed.original_path
    )


def check_image_name(name: str) -> str:
    """The name of a seed's picture, checked before it becomes a path.

    Raises:
        FacebankError: It does not lie under facebank/seeds.
    """
    parts = PurePosixPath(name).parts
    if parts[:2] != ("facebank", "seeds") or ".." in parts or "\\" in name or "\0" in name:
        raise FacebankError(f"{name!r} does not lie under facebank/seeds; refused")
    return name


def write_image(root: DataRoot, name: str, content: bytes) -> None:
    """Writes a picture to its place under the data root, whole or not at all."""
    path = root.path / check_image_name(name)
    path.parent.mkdir()
    write_synced(path, content)
    if root.remote is not None:
        root.remote.put(path)


def read_image(root: DataRoot, name: str) -> bytes | None:
    """The bytes of a picture, or None where it is gone."""
    path = root.path / check_image_name(name)
    if root.remote is not None and not path.exists():
        root.remote.fetch(path)
    return path.read_bytes() if path.is_file() else None


def read_crop(root: DataRoot, seed: Seed) -> NDArray[np.uint8]:
    """The aligned crop of a seed, RGB, shape (112, 112, 3).

    Raises:
        FacebankError: It was never kept, is gone, or is no such picture.
    """
    what = f"seed {seed.image_name} of {seed.person_id}"
    if seed.embed_path is None:
        raise FacebankError(f"{what} was enrolled without pictures; cleanup facebank backfill DIR makes up for it")
    content = read_image(root, seed.embed_path)
    image = None if not content or find_fault(content) else decode_picture(content)
    if image is None or image.shape != (CROP_SIZE, CROP_SIZE, 3):
        raise FacebankError(
            f"{what}: {root.name}/{seed.embed_path} is gone or no {CROP_SIZE}x{CROP_SIZE} picture; "
            "run cleanup facebank backfill DIR"
        )
    return image


def find_problems(root: DataRoot, entries: Sequence[StoredSeed]) -> list[str]:
    """What is wrong with seeds: norm, pictures, the photo's digest, several models in a show; a sentence each."""
    problems = []
    for entry in entries:
        seed, what = entry.seed, f"{entry.show}: {entry.seed.person_id}, {entry.seed.image_name}"
        if not abs(float(np.linalg.norm(seed.embedding)) - 1) <= NORM_TOLERANCE:
            problems.append(f"{what}: the embedding is no unit vector; run cleanup facebank reembed")
        if seed.embed_path is None:
            problems.append(f"{what}: has no pictures; run cleanup facebank backfill DIR")
        for name in (seed.embed_path, seed.display_path, seed.original_path):
            content = b"" if name is None else read_image(root, name)
            if content is None:
                problems.append(f"{what}: {name} is gone; run cleanup facebank backfill DIR")
                continue
            is_photo = name is not None and name == seed.original_path
            if is_photo and hashlib.sha256(content).hexdigest() != seed.image_sha256:
                problems.append(f"{what}: {name} is not the photo that was enrolled")
    for name in sorted({entry.show for entry in entries}):
        models = sorted({f"{e.model} {e.model_sha256[:8]}" for e in entries if e.show == name})
        if len(models) > 1:
            problems.append(f"{name}: seeds of several models ({', '.join(models)}); run cleanup facebank reembed")
    return problems


def _encode(image: NDArray[np.uint8], suffix: str, options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise FacebankError(f"a picture of shape {image.shape} cannot be encoded as {suffix}")
    return bytes(data.tobytes())
