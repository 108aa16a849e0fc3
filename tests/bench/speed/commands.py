"""Cases about files and commands: artifacts, start, small, ray."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cleanup import schemas
from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import read_episode
from cleanup.edges.artifact_writing import render_episode
from cleanup.edges.data_root import resolve_out_root
from cleanup.edges.root_path import RootPath
from cleanup.entrypoints.episode_job import parse_actions
from cleanup.entrypoints.season_job import SeasonJob, run_season_job
from cleanup.resolve_settings import resolve_for_run
from tests.bench.speed.episodes import draw_episode
from tests.bench.speed.measure import CLEANUP, Row, run_command, run_side, take_turns
from tests.conftest import SHARED, copy_data

_N_FACES, _FACES_PER_TRACK = 200_000, 50
_NOW = "2026-01-01T00:00:00Z"


def _warm_up(root: Path, ep_id: str) -> None:
    """Reads the files once, so that neither side waits for the disk."""
    paths = EpisodePaths(RootPath(root), ep_id)
    for path in (paths.tracks, paths.faces, paths.embeddings):
        with path.open("rb") as stream:
            while stream.read(1 << 20):
                pass


def _read_and_write(root: Path, ep_id: str, target: Path, *, is_changed: bool) -> dict[str, Any]:
    """Read, validate and write an episode; with ``is_changed`` every embedding is another than on disk."""
    _warm_up(root, ep_id)
    started = time.perf_counter()
    episode = read_episode(EpisodePaths(RootPath(root), ep_id))
    preparing = time.perf_counter()
    if is_changed:
        embeddings = schemas.embeddings_of(episode.embedded_faces)
        moved = np.roll(embeddings, 1, axis=0)
        faces = schemas.build_faces(schemas.face_rows(episode.faces), schemas.embedding_lists(moved))
        episode = episode.replace(faces=faces)
    prepared = time.perf_counter()
    target.mkdir(parents=True, exist_ok=True)
    for name, pieces in render_episode(episode, _NOW).items():
        with (target / name).open("wb", buffering=1 << 20) as stream:
            stream.writelines(pieces)
    ended = time.perf_counter()
    return {"seconds": ended - prepared + preparing - started}


def _read_and_write_by_line(root: Path, ep_id: str, target: Path) -> dict[str, Any]:
    """The same with the json module, a line at a time, with the same checks."""
    paths = EpisodePaths(RootPath(root), ep_id)
    target.mkdir(parents=True, exist_ok=True)
    _warm_up(root, ep_id)
    started = time.perf_counter()
    with paths.tracks.system_path.open() as stream:
        tracks = {json.loads(line)["track_id"] for line in stream}
    matrix, seen = np.load(paths.embeddings.system_path), set()
    with paths.faces.system_path.open() as stream, (target / "faces.jsonl").open("w") as output:
        for place, line in enumerate(stream):
            record = json.loads(line)
            embedding, landmarks = np.array(record["embedding"], np.float32), record.get("landmarks") or [0.0] * 10
            x1, y1, x2, y2 = record.get("bbox") or record["bbox_xyxy"]
            quality = record.get("quality_score", record.get("quality"))
            if (
                record["face_id"] in seen
                or record["track_id"] not in tracks
                or not isinstance(record["frame_idx"], int)
                or not (x1 < x2 and y1 < y2 and all(map(math.isfinite, (x1, y1, x2, y2))))
                or not (len(landmarks) == 10 and all(map(math.isfinite, landmarks)))
                or not 0 <= quality <= 1
                or not abs(float(np.linalg.norm(embedding)) - 1) <= 0.01
                or not float(np.abs(embedding - matrix[place]).max()) <= 1e-3
            ):
                raise ValueError(line[:80])
            seen.add(record["face_id"])
            output.write(json.dumps(record) + "\n")
    np.save(target / "faces.npy", matrix)
    return {"seconds": time.perf_counter() - started}


def artifacts(folder: Path) -> list[Row]:
    """Read, validate and write, both dialects: files whose embeddings stay, and files whose embeddings all change."""
    rows = []
    for number, dialect in enumerate(("documented", "emitted"), start=1):
        ep_id = f"files-s01e0{number}"
        root = draw_episode(folder / "files", ep_id, dialect, _N_FACES // _FACES_PER_TRACK, _FACES_PER_TRACK)
        target = folder / "files" / "out"
        kept, changed, peer = take_turns(
            2,
            *(partial(run_side, side, root, ep_id, target) for side in (_keep, _change, _read_and_write_by_line)),
        )
        for name, ours in (("embeddings as they were", kept), ("every embedding new", changed)):
            ratio = peer.seconds / ours.seconds
            rows.append(
                Row(
                    f"artifacts, {dialect}", f"{ours.seconds:.1f} s", f"{peer.seconds:.1f} s", ratio, ">= 5",
                    ratio >= 5, (ours.peak_mib, peer.peak_mib),
                    f"{_N_FACES} faces of 512-d, {name}; json module line by line",
                )
            )  # fmt: skip
    return rows


def _keep(root: Path, ep_id: str, target: Path) -> dict[str, Any]:
    return _read_and_write(root, ep_id, target, is_changed=False)


def _change(root: Path, ep_id: str, target: Path) -> dict[str, Any]:
    return _read_and_write(root, ep_id, target, is_changed=True)


def start(_folder: Path) -> list[Row]:
    """The help text against the import of the library that parses the command line."""
    ours, peer = take_turns(
        9, lambda: run_command([CLEANUP, "--help"]), lambda: run_command([sys.executable, "-c", "import typer"])
    )
    ratio = ours.seconds / peer.seconds
    return [
        Row(
            "start", f"{ours.seconds * 1000:.0f} ms", f"{peer.seconds * 1000:.0f} ms", ratio, "<= 2.5", ratio <= 2.5,
            (ours.peak_mib, peer.peak_mib), "cleanup --help; import typer",
        )
    ]  # fmt: skip


def small(folder: Path) -> list[Row]:
    """A small run of the command against the import of two libraries it stands on."""
    root = draw_episode(folder / "small", "small-s01e01", "documented", 100, 10)
    command = [CLEANUP, "run", "--ep-id", "small-s01e01", "--actions", "recluster", "--out-root", str(root)]
    ours, peer = take_turns(
        7,
        lambda: run_command(command),
        lambda: run_command([sys.executable, "-c", "import sklearn.cluster, pyarrow"]),
    )
    ratio = ours.seconds / peer.seconds
    return [
        Row(
            "small", f"{ours.seconds:.2f} s", f"{peer.seconds:.2f} s", ratio, "<= 2", ratio <= 2,
            (ours.peak_mib, peer.peak_mib), "recluster 100 tracks, 1000 faces; import sklearn.cluster, pyarrow",
        )
    ]  # fmt: skip


def _make_season(folder: Path) -> tuple[Path, list[str]]:
    """Four episodes: the two real ones of one show, each twice under another id."""
    root = folder / "season"
    if root.exists():
        shutil.rmtree(root)
    copy_data(SHARED / "data", root)
    ep_ids = ["bbt-s01e01", "bbt-s01e02"]
    for source, copy in (("bbt-s01e01", "bbt-s02e01"), ("bbt-s01e02", "bbt-s02e02")):
        for kind in ("manifests", "embeds", "videos"):
            shutil.copytree(root / kind / source, root / kind / copy)
        for path in (root / "manifests" / copy).iterdir():
            path.write_text(re.sub(source, copy, path.read_text()))
        ep_ids.append(copy)
    return root, ep_ids


def _run_season(folder: Path, engine: str) -> dict[str, Any]:
    """A season; time counts from the first face that was dealt with, when workers and models are up."""
    root, ep_ids = _make_season(folder)
    values = {"models": str(SHARED / "models"), "engine": engine}
    if engine == "ray":
        values |= {"min_actors": "2", "max_actors": "2"}
    settings = resolve_for_run(values, None, None)
    job = SeasonJob(
        ep_ids=tuple(ep_ids),
        root=resolve_out_root(str(root), {}, settings.settings.storage),
        actions=parse_actions(["split_tracks", "reembed", "recluster"]),
        settings=settings,
        write_back=True,
    )
    begun: list[float] = []

    def on_progress(season: dict[str, Any]) -> None:
        if not begun and any(e.get("phase_progress", 0) > 0 for e in season["episodes"].values()):
            begun.append(time.perf_counter())

    report = run_season_job(job, on_progress)
    ended = time.perf_counter()
    assert report["state"] == "succeeded", report
    return {"seconds": ended - begun[0], "faces": report["totals"]["faces_embedded"]}


def ray(folder: Path) -> list[Row]:
    """A season of four on two actors against the same on the local engine, which uses the same cores."""
    ours, local = take_turns(
        2, lambda: run_side(_run_season, folder, "ray"), lambda: run_side(_run_season, folder, "local")
    )
    ratio = local.seconds / ours.seconds
    return [
        Row(
            "ray", f"{ours.seconds:.1f} s", f"{local.seconds:.1f} s", ratio, ">= 0.85", ratio >= 0.85,
            (ours.peak_mib, local.peak_mib),
            f"4 episodes, {ours.values['faces']} faces, 2 actors; the local engine one after the other on the same "
            "cores, both from the first face on",
        )
    ]  # fmt: skip
