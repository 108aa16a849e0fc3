"""Both dialects survive a round trip, and every violation is found and named with its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import find_violations, read_episode
from cleanup.edges.artifact_writing import render_episode, same_json
from cleanup.edges.root_path import RootPath
from cleanup.errors import ArtifactError
from cleanup.names import check_ep_id
from tests.builders import DOCUMENTED_EP, EMITTED_EP, write_episode

EP = {"documented": DOCUMENTED_EP, "emitted": EMITTED_EP}


def file_of(paths: EpisodePaths, name: str) -> Path:
    return (paths.embeddings if name == "faces.npy" else paths.manifests / name).system_path


@pytest.mark.parametrize("dialect", ["documented", "emitted"])
def test_a_round_trip_changes_nothing(tmp_path: Path, dialect: str) -> None:
    paths = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, dialect))

    rendered = render_episode(read_episode(paths), "2026-02-02T00:00:00Z")

    for name, pieces in rendered.items():
        old, content = file_of(paths, name).read_bytes(), b"".join(pieces)
        assert content == old or same_json(old, content), name


@pytest.mark.shared
@pytest.mark.parametrize("ep_id", ["bbt-s01e01", "bbt-s01e02", "hamilton-s01e01"])
def test_a_round_trip_of_a_real_episode_changes_nothing(shared: Path, ep_id: str) -> None:
    paths = EpisodePaths(RootPath(shared / "data"), ep_id)

    for name, pieces in render_episode(read_episode(paths), "now").items():
        old, content = file_of(paths, name).read_bytes(), b"".join(pieces)
        assert content == old or same_json(old, content), name


def change_line(path: Path, number: int, change: Callable[[dict[str, Any]], None]) -> None:
    lines = path.read_text().splitlines()
    record = json.loads(lines[number - 1])
    change(record)
    lines[number - 1] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n")


def set_value(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.update({key: value})


def scale_embedding(factor: float) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.update(embedding=[v * factor for v in record["embedding"]])


VIOLATIONS = [
    ("faces.jsonl", 3, scale_embedding(0.0), r"faces.jsonl:3: .*norm 0.0000 instead of 1"),
    ("faces.jsonl", 3, scale_embedding(float("nan")), r"faces.jsonl:3: .* not finite"),
    ("faces.jsonl", 3, set_value("embedding", [1.0]), r"faces.jsonl:3: embedding of 1 dimensions"),
    ("faces.jsonl", 3, set_value("embedding", ["x"]), r"faces.jsonl:3: .*no list of numbers"),
    ("faces.jsonl", 2, set_value("frame_idx", "seven"), r"faces.jsonl:2: .*frame_idx of type str"),
    ("faces.jsonl", 2, set_value("landmarks", [1, 2]), r"faces.jsonl:2: .*list of 10 numbers"),
    ("tracks.jsonl", 1, set_value("parent_track_id", "??"), r"tracks.jsonl:1: .*track_id '\?\?'"),
]


@pytest.mark.parametrize("dialect", ["documented", "emitted"])
@pytest.mark.parametrize(("name", "line", "change", "message"), VIOLATIONS)
def test_a_broken_line_is_named(
    tmp_path: Path, dialect: str, name: str, line: int, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    paths = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, dialect))
    change_line(file_of(paths, name), line, change)

    with pytest.raises(ArtifactError, match=message):
        read_episode(paths)


@pytest.mark.parametrize(
    ("dialect", "name", "line", "change", "message"),
    [
        ("documented", "faces.jsonl", 5, set_value("track_id", "track-00099"), r"faces.jsonl:5: .*track 99"),
        ("emitted", "faces.jsonl", 5, set_value("track_id", 99), r"faces.jsonl:5: .*track 99"),
        ("documented", "faces.jsonl", 5, set_value("bbox", [0.5, 0.3, 0.4, 0.5]), r"faces.jsonl:5: .*empty box"),
        ("documented", "faces.jsonl", 5, set_value("bbox", [0.5, 0.3, 1.4, 0.5]), r"faces.jsonl:5: .*outside 0..1"),
        ("documented", "faces.jsonl", 5, set_value("face_id", "face-00001"), r"faces.jsonl:5: .*already on line 1"),
        ("documented", "tracks.jsonl", 2, set_value("frame_span", [90, 3]), r"tracks.jsonl:2: .*ends before it starts"),
        ("emitted", "tracks.jsonl", 2, set_value("track_id", "track-00002"), r"tracks.jsonl:2: .*not a whole number"),
        ("emitted", "tracks.jsonl", 2, set_value("track_id", 1), r"tracks.jsonl:2: .*already on line 1"),
        ("emitted", "faces.jsonl", 4, set_value("skip", "blurry:3"), r"faces.jsonl:4: .*skipped .* has an embedding"),
        ("emitted", "faces.jsonl", 4, set_value("quality", 7), r"faces.jsonl:4: .*quality = 7, outside 0..1"),
    ],
)
def test_a_broken_line_of_one_dialect_is_named(
    tmp_path: Path, dialect: str, name: str, line: int, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    paths = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, dialect))
    change_line(file_of(paths, name), line, change)

    with pytest.raises(ArtifactError, match=message):
        read_episode(paths)


@pytest.mark.parametrize("name", ["tracks.jsonl", "faces.jsonl", "faces.npy", "identities.json"])
@pytest.mark.parametrize("dialect", ["documented", "emitted"])
@pytest.mark.parametrize("content", [None, b""], ids=["missing", "empty"])
def test_a_missing_or_empty_file_is_named(tmp_path: Path, dialect: str, name: str, content: bytes | None) -> None:
    paths = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, dialect))
    path = file_of(paths, name)
    path.unlink() if content is None else path.write_bytes(content)

    with pytest.raises(ArtifactError, match=f"{name}: (missing|empty|not a readable)"):
        read_episode(paths)


def test_a_cut_off_line_is_named(tmp_path: Path) -> None:
    paths = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, "emitted"))
    paths.faces.write_bytes(paths.faces.read_bytes()[:-40])

    with pytest.raises(ArtifactError, match=r"faces.jsonl:36: not valid JSON .*cut off"):
        read_episode(paths)


def test_faces_npy_of_another_length_or_order_is_refused(tmp_path: Path) -> None:
    paths = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, "emitted"))
    matrix = np.load(paths.embeddings.system_path)

    np.save(paths.embeddings.system_path, matrix[:-1])
    assert find_violations(paths) == [f"{paths.embeddings}: 35 rows, but 36 lines of faces.jsonl carry an embedding"]
    np.save(paths.embeddings.system_path, matrix[::-1])
    assert find_violations(paths) == [f"{paths.embeddings}: row 0 is not the embedding of faces.jsonl:1"]


def test_mixed_dialects_are_refused_at_the_first_odd_line(tmp_path: Path) -> None:
    paths = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, "emitted"))
    other = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, "documented"))
    lines = paths.faces.system_path.read_text().splitlines()
    lines[6] = other.faces.system_path.read_text().splitlines()[6]
    paths.faces.system_path.write_text("\n".join(lines))

    with pytest.raises(ArtifactError, match=r"faces.jsonl:7: in the documented dialect"):
        read_episode(paths)


def test_a_track_in_two_identities_or_unknown_is_refused(tmp_path: Path) -> None:
    paths = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, "emitted"))
    document = json.loads(paths.identities.system_path.read_text())
    document["identities"][0]["track_ids"] = [1, 2, 77]
    paths.identities.system_path.write_text(json.dumps(document, indent=1))

    problems = find_violations(paths)

    assert "which tracks.jsonl does not have" in problems[0]
    assert "identity id_0002 has track 2, which identity id_0001 has as well" in problems[1]


def test_all_violations_are_collected(tmp_path: Path) -> None:
    paths = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, "documented"))
    for line in (2, 5, 9):
        change_line(paths.faces.system_path, line, set_value("bbox", [1, 1, 0, 0]))

    assert [p.split(":")[1] for p in find_violations(paths)][:3] == ["2", "5", "9"]


@pytest.mark.parametrize(
    "ep_id", ["../x", "a/b-s01e01", "show", "show-s1e1", "", ".-s01e01", "x-s01e01/..", "x\n-s01e01"]
)
def test_an_episode_id_that_is_none_is_refused(ep_id: str) -> None:
    with pytest.raises(ArtifactError, match="not of the form"):
        check_ep_id(ep_id)


@pytest.mark.parametrize("ep_id", ["rhobh-s05e02", "the_office-us-s10e101", "A-s01e01"])
def test_usual_episode_ids_are_taken(ep_id: str) -> None:
    assert check_ep_id(ep_id) == ep_id
