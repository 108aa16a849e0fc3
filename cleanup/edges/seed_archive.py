"""Seeds as one tar.gz: a manifest and the pictures; everything is checked before anything is written."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from cleanup.edges.artifact_checks import NORM_TOLERANCE
from cleanup.edges.data_root import DataRoot
from cleanup.edges.file_writing import write_synced
from cleanup.edges.pictures import find_fault
from cleanup.edges.postgres_facebank import PostgresFacebank, Seed
from cleanup.edges.root_path import RootPath
from cleanup.edges.seed_images import check_image_name, read_image, write_image
from cleanup.errors import CleanupError, FacebankError, first_line
from cleanup.input_limits import (
    MAX_ARCHIVE_BYTES,
    MAX_ARCHIVE_GROWTH,
    MAX_ARCHIVE_MEMBERS,
    MAX_PICTURE_BYTES,
    MIB,
)
from cleanup.names import check_person_id, check_person_name, check_show

_MANIFEST, _VERSION = "manifest.json", 1
_IMAGE_FIELDS = ("embed_path", "display_path", "original_path")
_MAX_MANIFEST_BYTES = 1 << 30


def export_seeds(root: DataRoot, facebank: PostgresFacebank, show: str | None, target: Path) -> tuple[int, int]:
    """Writes the seeds of one show or of all, with their pictures.

    Returns:
        How many seeds and how many pictures.

    Raises:
        FacebankError: There are none, or a picture is gone.
    """
    stored = facebank.list_seeds(show)
    if not stored:
        raise FacebankError(f"there are no seeds{f' of show {show!r}' if show else ''} to export")
    images: dict[str, bytes] = {}
    seeds = []
    for entry in stored:
        seed = entry.seed
        for field in _IMAGE_FIELDS:
            name = getattr(seed, field)
            if name is not None:
                content = read_image(root, name)
                if content is None:
                    raise FacebankError(f"{root.name}/{name} is gone; cleanup facebank check lists what is missing")
                images[name] = content
        seeds.append(
            {
                "show": entry.show,
                "model": entry.model,
                "model_sha256": entry.model_sha256,
                "person_id": seed.person_id,
                "name": seed.name,
                "image_name": seed.image_name,
                "image_sha256": seed.image_sha256,
                "embedding": [float(v) for v in seed.embedding],
                "confidence": seed.confidence,
                "quality": seed.quality,
                "landmarks": seed.landmarks,
                **{field: getattr(seed, field) for field in _IMAGE_FIELDS},
            }
        )
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in images.items()}
    manifest = orjson.dumps({"version": _VERSION, "seeds": seeds, "images": digests}, option=orjson.OPT_INDENT_2)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in [(_MANIFEST, manifest), *sorted(images.items())]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    write_synced(RootPath.of_file(target), buffer.getvalue())
    return len(seeds), len(images)


def import_seeds(root: DataRoot, facebank: PostgresFacebank, source: Path, *, is_dry_run: bool) -> tuple[int, int]:
    """Adds the seeds of an archive; those that are there already stay as they are.

    Returns:
        How many seeds it holds and how many were new (0 in a dry run).

    Raises:
        FacebankError: The archive is damaged or holds something else; nothing was written.
    """
    manifest, images = _read_archive(source)
    groups: dict[tuple[str, str, str], list[Seed]] = {}
    for entry in manifest["seeds"]:
        try:
            key, seed = _check_seed(entry, images)
        except (KeyError, TypeError, ValueError, CleanupError) as error:
            raise FacebankError(f"{source}: a seed in its manifest is not valid ({first_line(error)})") from error
        groups.setdefault(key, []).append(seed)
    if is_dry_run:
        return len(manifest["seeds"]), 0
    for name, content in sorted(images.items()):
        write_image(root, name, content)
    n_new = sum(facebank.enroll(*key, seeds) for key, seeds in sorted(groups.items()))
    return len(manifest["seeds"]), n_new


def _check_seed(entry: dict[str, Any], images: dict[str, bytes]) -> tuple[tuple[str, str, str], Seed]:
    embedding = np.array(entry["embedding"], np.float32)
    if embedding.ndim != 1 or not abs(float(np.linalg.norm(embedding)) - 1) <= NORM_TOLERANCE:
        raise ValueError(f"the embedding of {entry['image_name']!r} is no unit vector")
    for field in _IMAGE_FIELDS:
        if entry[field] is not None and entry[field] not in images:
            raise ValueError(f"{entry[field]!r} is not in the archive")
    seed = Seed(
        person_id=check_person_id(str(entry["person_id"])),
        name=check_person_name(str(entry["name"])),
        image_name=str(entry["image_name"]),
        image_sha256=str(entry["image_sha256"]),
        embedding=embedding,
        confidence=float(entry["confidence"]),
        quality=None if entry["quality"] is None else float(entry["quality"]),
        landmarks=None if entry["landmarks"] is None else tuple(float(v) for v in entry["landmarks"]),
        **{field: entry[field] for field in _IMAGE_FIELDS},
    )
    return (check_show(str(entry["show"])), str(entry["model"]), str(entry["model_sha256"])), seed


def _read_archive(source: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Manifest and pictures, none of which can be written anywhere but under facebank/seeds."""
    images: dict[str, bytes] = {}
    manifest: dict[str, Any] | None = None
    try:
        _check_members(source)
        with tarfile.open(source, "r:gz") as archive:
            for member in archive:
                stream = archive.extractfile(member)
                content = stream.read() if stream is not None else b""
                if member.name == _MANIFEST:
                    manifest = orjson.loads(content)
                else:
                    images[check_image_name(member.name)] = content
    except FileNotFoundError:
        raise FacebankError(f"{source}: no such file") from None
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        raise FacebankError(f"{source}: not an archive of seeds, or damaged ({first_line(error)})") from error
    if (
        not isinstance(manifest, dict)
        or manifest.get("version") != _VERSION
        or not isinstance(manifest.get("seeds"), list)
    ):
        raise FacebankError(
            f"{source}: has no {_MANIFEST} of version {_VERSION}; export it with cleanup facebank export"
        )
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in images.items()}
    if digests != manifest.get("images"):
        raise FacebankError(f"{source}: its pictures are not those its manifest lists; the archive is damaged")
    for name, content in images.items():
        fault = find_fault(content)
        if fault:
            raise FacebankError(f"{source}: {name!r} is no picture to take: {fault}; refused")
    return manifest, images


def _check_members(source: Path) -> None:
    """Looks at the headers alone, before anything is unpacked.

    Raises:
        FacebankError: A member is no plain file under facebank/seeds, is there twice, or is larger than makes sense,
            alone or with the others.
    """
    names: set[str] = set()
    n_bytes = 0
    most = min(MAX_ARCHIVE_BYTES, max(MAX_ARCHIVE_GROWTH * source.stat().st_size, MIB))
    with tarfile.open(source, "r:gz") as archive:
        while (member := archive.next()) is not None:
            limit = _MAX_MANIFEST_BYTES if member.name == _MANIFEST else MAX_PICTURE_BYTES
            n_bytes += member.size
            if not member.isfile() or not 0 <= member.size <= limit or member.name in names:
                raise FacebankError(f"{source}: {member.name!r} is no plain file of a sensible size; refused")
            if n_bytes > most or len(names) >= MAX_ARCHIVE_MEMBERS:
                raise FacebankError(f"{source}: unpacks to far more than an archive of seeds does; refused")
            if member.name != _MANIFEST:
                check_image_name(member.name)
            names.add(member.name)
