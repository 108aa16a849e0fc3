"""What is fuzzed: each target takes bytes and may raise a CleanupError, and nothing else.

Seeds are valid inputs, so that mutation starts behind the first check. Files lie in one scratch folder.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from cleanup import schemas
from cleanup.edges.artifact_checks import BadValueError
from cleanup.edges.artifact_dialects import DIALECTS, dialect_of_face, dialect_of_track
from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import find_violations, read_episode
from cleanup.edges.artifact_writing import render_episode
from cleanup.edges.backups import BackupStore
from cleanup.edges.embedding_text import open_record, parse_vectors
from cleanup.edges.model_files import find_model_files
from cleanup.edges.pictures import decode_picture, find_fault
from cleanup.edges.root_path import RootPath
from cleanup.edges.seed_archive import _read_archive
from cleanup.edges.write_back import recover
from cleanup.entrypoints.demo import write_embedder
from cleanup.errors import CleanupError
from cleanup.names import check_ep_id, check_person_id, check_run_id, check_show
from cleanup.report import CleanupReport
from cleanup.resolve_settings import find_config_dir, read_config, resolve_for_run
from cleanup.run import RunContext
from cleanup.run import run as run_phases
from tests.builders import write_episode


@dataclass(frozen=True)
class Target:
    """One thing that is fuzzed.

    Attributes:
        run: Takes an input.
        seeds: Valid inputs.
    """

    run: Callable[[bytes], None]
    seeds: list[bytes]


def _ids(_: Path) -> Target:
    def run(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        for check in (check_ep_id, check_show, check_person_id, check_run_id):
            try:
                name = check(text)
            except CleanupError:
                continue
            assert name == text and "/" not in name and ".." not in name and name.isprintable() and name.isascii()

    return Target(run, [b"rhobh-s05e02", b"lisa", b"20260314T092653.589793Z-4711"])


def _lines(name: str) -> Callable[[Path], Target]:
    """Single lines of tracks.jsonl or faces.jsonl, without files."""

    def make(scratch: Path) -> Target:
        run, seeds = _line_reader(name, scratch)
        return Target(run, seeds)

    return make


def _records_of_lines(name: str) -> Callable[[Path], Target]:
    """Lines that are JSON, with values that do not belong where they are: the input says which, where, and how deep."""

    def make(scratch: Path) -> Target:
        read, seeds = _line_reader(name, scratch)
        records = [orjson.loads(line) for line in seeds]

        def run(data: bytes) -> None:
            read(orjson.dumps(_mutate(records[data[0] % len(records)] if data else {}, data[1:])))

        return Target(run, [bytes([i, j, 5, k]) for i in range(len(records)) for j in range(20) for k in range(16)])

    return make


def _line_reader(name: str, scratch: Path) -> tuple[Callable[[bytes], None], list[bytes]]:
    seeds = []
    for dialect in DIALECTS:
        ep_id = write_episode(scratch / dialect, dialect)
        seeds += (scratch / dialect / "manifests" / ep_id / name).read_bytes().splitlines()[:3]

    def run(data: bytes) -> None:
        try:
            record, text = open_record(data)
        except orjson.JSONDecodeError:
            return
        if not isinstance(record, dict):
            return
        found = dialect_of_face(record) if name == "faces.jsonl" else dialect_of_track(record)
        if found is None:
            return
        dialect = DIALECTS[found]
        try:
            row = (dialect.face_row if name == "faces.jsonl" else dialect.track_row)(record)
        except BadValueError:
            return
        schema = schemas.FACE_SCHEMA if name == "faces.jsonl" else schemas.TRACK_SCHEMA
        schemas.build_table([{**row, "raw": data}], pa.schema([f for f in schema if f.name != "embedding"]))
        if text is not None:
            parse_vectors(pa.array([text], pa.large_binary()))

    return run, seeds


_ODD: list[Any] = [
    None, True, -1, 0, 2**31, 2**53, 2**63, 2**64 - 1, -(2**63), 1.5, -0.0, 1e308, 5e-324, "", "track-00001", "x" * 300,
    "\ud7ff\0\u202e", [], {}, [[]], [None] * 4, [0.1] * 4, [1e300] * 10, {"a": {"b": []}}, [["a"]] * 5,
]  # fmt: skip


def _mutate(record: dict[str, Any], data: bytes) -> dict[str, Any]:
    """The record with values exchanged: three bytes each choose where, what happens, and by what."""
    changed = orjson.loads(orjson.dumps(record))
    for i in range(0, len(data) - 2, 3):
        place: Any = changed
        where, what, value = data[i : i + 3]
        for _ in range(what % 3):  # down into lists and objects, as far as there are any
            children = list(place) if isinstance(place, dict) else range(len(place))
            inner = [place[c] for c in children if isinstance(place[c], (dict, list)) and place[c]]
            if not inner:
                break
            place = inner[where % len(inner)]
        keys = list(place) if isinstance(place, dict) else range(len(place))
        if not keys:
            continue
        key = keys[where % len(keys)]
        if what & 0x80 and isinstance(place, dict):
            del place[key]
        else:
            place[key] = copy.deepcopy(_ODD[value % len(_ODD)])
    return dict(changed)


_DETECTION = (
    b'{"ep_id":"show-s01e01","frame_idx":4,"ts_s":0.17,"bbox":[0.4,0.3,0.5,0.5],"landmarks":[0.43,0.36,0.47,0.36,0.45,'
    b'0.4,0.43,0.45,0.47,0.45],"conf":0.9,"model_id":"m","schema_version":"det_v1"}\n'
)


def _episode(name: str) -> Callable[[Path], Target]:
    """A whole episode with one of its files replaced: read, checked, and if it is valid written again."""

    def make(scratch: Path) -> Target:
        seeds, paths = [], {}
        for dialect in DIALECTS:
            ep_id = write_episode(scratch / dialect, dialect, (("a",), ("b",)))
            paths[dialect] = EpisodePaths(RootPath(scratch / dialect), check_ep_id(ep_id))
            path = _file_of(paths[dialect], name)
            seeds.append(path.read_bytes() if path.exists() else _DETECTION)

        def run(data: bytes) -> None:
            for episode in paths.values():
                target = _file_of(episode, name)
                kept = target.read_bytes() if target.exists() else None
                target.write_bytes(data)
                try:
                    problems = find_violations(episode)
                    if not problems:
                        for pieces in render_episode(read_episode(episode), "2026-01-01T00:00:00Z").values():
                            b"".join(pieces)
                finally:
                    target.write_bytes(kept) if kept is not None else target.unlink()

        return Target(run, seeds)

    return make


def _whole_run(scratch: Path) -> Target:
    """An episode with odd values in any file: read, and if it is valid split, clustered and written again."""
    settings = resolve_for_run({}, None, None).settings
    context = RunContext(settings, None, None, None, "", "show", None)
    names = ("tracks.jsonl", "faces.jsonl", "identities.json", "detections.jsonl")
    episodes = []
    for dialect in DIALECTS:
        ep_id = write_episode(scratch / dialect, dialect, (("a", "b"), ("b",), ("a",)))
        episodes.append(EpisodePaths(RootPath(scratch / dialect), check_ep_id(ep_id)))
        if dialect == "documented":
            episodes[-1].detections.write_bytes(_DETECTION)

    def run(data: bytes) -> None:
        if len(data) < 3:
            return
        episode = episodes[data[0] % len(episodes)]
        path = episode.manifests / names[data[1] % len(names)]
        if not path.exists():
            return
        kept = path.read_bytes()
        if path.suffix == ".json":
            path.write_bytes(orjson.dumps(_mutate(orjson.loads(kept), data[3:])))
        else:
            lines = kept.splitlines()
            place = data[2] % len(lines)
            lines[place] = orjson.dumps(_mutate(orjson.loads(lines[place]), data[3:]))
            path.write_bytes(b"\n".join(lines) + b"\n")
        try:
            report = CleanupReport(episode.ep_id, "run")
            refined = run_phases(read_episode(episode), ("split_tracks", "recluster"), context, lambda _: None, report)
            for pieces in render_episode(refined, "2026-01-01T00:00:00Z").values():
                b"".join(pieces)
        finally:
            path.write_bytes(kept)

    return Target(run, [bytes([d, f, line, key, what, value]) for d in range(2) for f in range(4) for line in (0, 9)
                        for key in range(0, 20, 3) for what in (0, 1, 2) for value in range(0, 24, 5)])  # fmt: skip


def _file_of(paths: EpisodePaths, name: str) -> Path:
    return (paths.embeddings if name == "faces.npy" else paths.manifests / name).system_path


def _config(scratch: Path) -> Target:
    folder = scratch / "config"
    folder.mkdir()
    for path in find_config_dir(None, {}).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    names = sorted(path.name for path in folder.iterdir())
    seeds = [bytes([i]) + (folder / name).read_bytes() for i, name in enumerate(names)]

    def run(data: bytes) -> None:
        if data:
            target = folder / names[data[0] % len(names)]
            kept = target.read_bytes()
            target.write_bytes(data[1:])
            try:
                read_config(folder)
            finally:
                target.write_bytes(kept)

    return Target(run, seeds)


def _archive(scratch: Path) -> Target:
    """A tar inside a gzip that is always whole, so that mutation reaches the members."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, held in (
            ("manifest.json", b'{"version":1,"seeds":[],"images":{}}'),
            ("facebank/seeds/a/b.png", b"x"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(held)
            archive.addfile(member, io.BytesIO(held))
    path = scratch / "seeds.tar.gz"

    def run(data: bytes) -> None:
        path.write_bytes(gzip.compress(data, 0))
        manifest, images = _read_archive(path)
        assert isinstance(manifest, dict) and all(name.startswith("facebank/seeds/") for name in images)

    return Target(run, [content.getvalue()])


def _picture(_: Path) -> Target:
    from PIL import Image

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8))
    seeds = []
    for kind in ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF"):
        stream = io.BytesIO()
        image.save(stream, kind)
        seeds.append(stream.getvalue())

    def run(data: bytes) -> None:
        if not find_fault(data):
            decode_picture(data)

    return Target(run, seeds)


def _model(scratch: Path) -> Target:
    folder = scratch / "models"
    folder.mkdir()
    path = folder / "drawn.onnx"
    write_embedder(path, np.random.default_rng(0))
    seeds = [path.read_bytes()]

    def run(data: bytes) -> None:
        path.write_bytes(data)
        find_model_files(folder)

    return Target(run, seeds)


def _records(scratch: Path) -> Target:
    """Journals and records of backups."""
    paths = EpisodePaths(RootPath(scratch), check_ep_id("show-s01e01"))
    for folder in (paths.runs, paths.backups, paths.manifests, paths.embeddings.parent):
        folder.mkdir()
    record = paths.backups / "20260314T092653.589793Z-4711.json"
    version = {"sha256": "0" * 64, "size": 1}
    seeds = [
        orjson.dumps({"version": 2, "run_id": "20260314T092653.589793Z-4711", "moves": [
            {"target": "manifests/show-s01e01/tracks.jsonl", "staged": None, "before": None, "after": None}]}),
        orjson.dumps({"schema_version": "backup_v1", "made_by": "run", "created_at": "now",
                      "number": 1, "before": {"manifests/show-s01e01/tracks.jsonl": version},
                      "after": {"manifests/show-s01e01/tracks.jsonl": None}}),
    ]  # fmt: skip

    def run(data: bytes) -> None:
        paths.journal.write_bytes(data)
        record.write_bytes(data)
        for read in (lambda: recover(paths), lambda: BackupStore(paths).list_backups()):
            with contextlib.suppress(CleanupError):
                read()
        for left in (*paths.runs.glob("*.unreadable-*"), *paths.backups.glob("*.unreadable-*")):
            left.unlink()

    return Target(run, seeds)


TARGETS: dict[str, tuple[Callable[[Path], Target], int]] = {
    # How often each is run for a million in all: the quick ones most often.
    "ids": (_ids, 200_000),
    "track_line": (_lines("tracks.jsonl"), 150_000),
    "face_line": (_lines("faces.jsonl"), 150_000),
    "track_record": (_records_of_lines("tracks.jsonl"), 200_000),
    "face_record": (_records_of_lines("faces.jsonl"), 200_000),
    "picture": (_picture, 100_000),
    "records": (_records, 60_000),
    "archive": (_archive, 40_000),
    "model": (_model, 10_000),
    "config": (_config, 10_000),
    "tracks_file": (_episode("tracks.jsonl"), 10_000),
    "faces_file": (_episode("faces.jsonl"), 10_000),
    "identities_file": (_episode("identities.json"), 10_000),
    "whole_run": (_whole_run, 10_000),
    "matrix_file": (_episode("faces.npy"), 10_000),
    "detections_file": (_episode("detections.jsonl"), 10_000),
}
