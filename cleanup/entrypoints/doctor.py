"""``cleanup doctor``: what a run needs on this machine, checked by using it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cleanup.edges.data_root import DataRoot
from cleanup.errors import CleanupError, first_line
from cleanup.resolve_settings import ResolvedSettings

_MIN_PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    """One check: what was found, and whether a run can work with it."""

    check: str
    is_ok: bool
    text: str


def examine(settings: ResolvedSettings, root: DataRoot) -> list[Finding]:
    """Runs all checks; one that fails does not keep the others from running."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("Python", _check_python),
        ("OpenCV", _check_opencv),
        ("FFmpeg libraries", _check_ffmpeg),
        ("ONNX Runtime", _check_onnxruntime),
        ("models", lambda: _check_models(settings)),
        ("PostgreSQL", lambda: _check_facebank(settings, root)),
        ("Ray", _check_ray),
        ("data root", lambda: check_data_root(root)),
    ]
    findings = []
    for name, check in checks:
        try:
            findings.append(Finding(name, True, check()))
        except CleanupError as error:
            findings.append(Finding(name, False, str(error)))
        except Exception as error:  # noqa: BLE001 -- a broken installation fails in ways nobody lists
            findings.append(Finding(name, False, f"{type(error).__name__}: {first_line(error)}"))
    return findings


def examine_video(settings: ResolvedSettings, video: str) -> dict[str, Any]:
    """What a video holds and what a run does with it; see ``describe_video``.

    Args:
        settings: Where copies of remote videos and counts of frames are kept.
        video: Path or URL.

    Raises:
        VideoError: It is no video, or one that is not read.
        StorageError: It lies behind a URL and does not come.
    """
    from cleanup.edges.frame_counts import FrameCounts
    from cleanup.edges.remote_files import is_url
    from cleanup.edges.video_report import describe_video
    from cleanup.entrypoints.run_tools import node_cache

    cache = node_cache(settings)
    path = cache.fetch(video) if is_url(video) else Path(video)
    return {**describe_video(path, FrameCounts(cache.folder)), "video": video}


def tell_video(described: Mapping[str, Any]) -> list[str]:
    """What ``examine_video`` found, in lines."""
    picture, frames, keys, colour = (described[key] for key in ("picture", "frames", "key_frames", "colour"))
    rotation, fps, aspect = described["rotation"], described["fps"], described["pixel_aspect"]
    turns = [f"{rotation['clockwise_deg']} degrees clockwise"] if rotation["clockwise_deg"] else []
    turns += ["mirrored"] if rotation["mirrored"] else []
    lines = [f"{described['video']}: {described['container']}"]
    for stream in described["streams"]:
        size = f", {stream['width']}x{stream['height']}" if "width" in stream else ""
        use = ", a cover" if stream["is_cover"] else ", read" if stream["is_read"] else ""
        lines.append(f"stream {stream['index']}: {stream['type']}, {stream['codec'] or 'no decoder'}{size}{use}")
    lines += [
        f"picture: {picture['width']}x{picture['height']}, {picture['pixel_format']}"
        + (", interlaced" if picture["interlaced"] else ""),
        f"shown: {', '.join(turns) or 'as it is stored'}, "
        + ("square pixels" if aspect == 1 else f"pixels {aspect:g} times as wide as high"),
        f"colour: matrix {colour['matrix']}, range {colour['range']}, transfer {colour['transfer']}, "
        f"primaries {colour['primaries']}",
        f"frames: {frames['by_packets']} by its packets, {frames['by_decoding']} by decoding, numbered by "
        f"{frames['numbered_by']}; {f'{fps:g} per second' if fps else 'their rate is not told'}",
        f"key frames: {keys['count']}, {keys['mean_distance']:g} frames apart, {keys['longest_distance']} at most",
    ]
    return lines + [f"a run: {sentence}" for sentence in described["does"] or ["reads it as it is"]]


def _check_python() -> str:
    version = platform.python_version()
    if sys.version_info < _MIN_PYTHON:
        raise CleanupError(f"{version}; needs 3.11 or newer")
    return f"{version}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def _check_opencv() -> str:
    try:
        import cv2
    except ImportError as error:
        raise CleanupError(
            f"cannot be imported ({first_line(error)}); on Debian and Ubuntu: apt-get install -y libgl1 libglib2.0-0"
        ) from error
    return str(cv2.__version__)


def _check_ffmpeg() -> str:
    import av

    libraries = ", ".join(f"{name} {'.'.join(map(str, v))}" for name, v in sorted(av.library_versions.items()))
    return f"PyAV {importlib.metadata.version('av')} ({libraries})"


def _check_onnxruntime() -> str:
    import onnxruntime

    from cleanup.edges.onnx_sessions import KEEP_ONE, find_onnxruntime_distributions, has_nvidia_driver

    found = " and ".join(find_onnxruntime_distributions())
    if " and " in found:
        raise CleanupError(f"{found}: they overwrite each other's files and CUDA goes missing; keep one: {KEEP_ONE}")
    driver = "NVIDIA driver found" if has_nvidia_driver() else "no NVIDIA driver"
    return f"{found}, providers {', '.join(onnxruntime.get_available_providers())}, {driver}"


def _check_models(settings: ResolvedSettings) -> str:
    from cleanup.edges.onnx_models import ModelSpec, load_models
    from cleanup.entrypoints.run_tools import find_models

    observe = settings.settings.observe
    directory = find_models(settings)
    described = load_models(ModelSpec(str(directory), observe.device, observe.embed_device)).describe()
    notes = [str(m["note"]) for m in described.values() if "note" in m]
    if notes:
        raise CleanupError(
            f"{notes[0]}: pip install onnxruntime-gpu with the CUDA and cuDNN libraries its release notes name"
        )
    parts = [f"{kind} {m['name']} on {m['provider']}" for kind, m in described.items()]
    return f"{directory}: {', '.join(parts)}, {described['recogniser']['dimension']} dimensions"


def _check_facebank(settings: ResolvedSettings, root: DataRoot) -> str:
    from psycopg.conninfo import conninfo_to_dict

    from cleanup.edges.embedded_postgres import open_trial_facebank
    from cleanup.entrypoints.run_tools import facebank_of

    if settings.settings.group_clusters.facebank_dsn:
        with facebank_of(settings, root) as facebank:
            return f"{facebank.check()} (your server)"
    is_there = root.remote is not None or root.has_facebank()
    with facebank_of(settings, root) if is_there else open_trial_facebank(root.path) as facebank:
        user = conninfo_to_dict(facebank.dsn)["requirepeer"]
        note = "" if is_there else f"; tried in {root.path}, where nobody is enrolled yet"
        return f"{facebank.check()} (embedded, runs as {user}{note})"


def _check_ray() -> str:
    version = importlib.metadata.version("ray")
    address = os.environ.get("RAY_ADDRESS")
    return f"{version}, {f'RAY_ADDRESS={address}' if address else 'no RAY_ADDRESS: --engine auto works locally'}"


def check_data_root(root: DataRoot) -> str:
    """What is found of the data root; a CleanupError says what is wrong."""
    if root.remote is not None:
        return f"{root.name} answers, {len(root.list_episodes())} episodes"
    path = root.path.system_path
    existing = next(p for p in (path, *path.parents) if p.exists())
    if not os.access(existing, os.W_OK):
        raise CleanupError(f"{existing} cannot be written; give another --out-root or change its rights")
    if existing != path:
        return f"{path} does not exist yet; {existing} can be written"
    return f"{path} can be written"
