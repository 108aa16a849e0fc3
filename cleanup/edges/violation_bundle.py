"""What is kept for a report when a result breaks an invariant, which is a fault of this program."""

from __future__ import annotations

import importlib.metadata
import io
import platform
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.file_writing import render_json
from cleanup.edges.root_path import RootPath

_PACKAGES = ("episode-cleanup", "numpy", "scikit-learn", "pyarrow", "onnxruntime-gpu", "onnxruntime", "av", "ray")


def save_bundle(
    target: RootPath, source: EpisodePaths, result: EpisodePaths, problems: Sequence[str], run: Mapping[str, Any]
) -> None:
    """Writes a tar.gz with the violations, versions and settings, the artifacts as they are and the refused result.

    Args:
        target: The archive.
        source: The episode as it lies on disk.
        result: The episode as it was to become, as far as it was staged.
        problems: The violations.
        run: What was asked for: actions, settings.
    """
    about = {
        "problems": list(problems), "ep_id": source.ep_id, "python": platform.python_version(),
        "platform": platform.platform(), "packages": {name: _version_of(name) for name in _PACKAGES}, **run,
    }  # fmt: skip
    content = render_json(about)
    target.parent.mkdir()
    with target.open("wb") as stream, tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo("violation.json")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
        for folder, paths in (("source", source), ("result", result)):
            for path, name in zip(paths.written, source.written, strict=True):
                if path.exists():
                    _add(archive, path, f"{folder}/{name.name}")


def _add(archive: tarfile.TarFile, path: RootPath, name: str) -> None:
    with path.open("rb") as stream:
        archive.addfile(archive.gettarinfo(arcname=name, fileobj=stream), stream)


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
