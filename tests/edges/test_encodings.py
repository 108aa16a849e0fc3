"""Files that other programs wrote: a byte order mark is read past, and what is no JSON gets its true name."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from cleanup import schemas
from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import find_violations, read_episode
from cleanup.edges.artifact_writing import render_episode
from cleanup.edges.data_root import DataRoot
from cleanup.edges.root_path import RootPath
from cleanup.entrypoints.season_job import choose_episodes
from cleanup.episode import Episode
from cleanup.errors import ArtifactError, SettingsError
from cleanup.resolve_settings import find_config_dir, read_config
from tests.builders import write_episode
from tests.conftest import copy_data

DIALECTS = ("documented", "emitted")
MARK = codecs.BOM_UTF8
NAMES = ("tracks.jsonl", "faces.jsonl", "identities.json", "track_metrics.json")


@pytest.fixture(params=DIALECTS)
def paths(tmp_path: Path, request: pytest.FixtureRequest) -> EpisodePaths:
    paths = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, request.param))
    paths.track_metrics.write_bytes(b'{"mine": 1}')
    paths.detections.write_bytes(b'{"frame_idx": 0, "ts_s": 0.0, "bbox": [0.1, 0.1, 0.2, 0.2], "conf": 0.9}\n')
    return paths


def test_a_byte_order_mark_is_read_past_and_not_written(paths: EpisodePaths) -> None:
    plain = read_episode(paths)
    before = render_with_a_changed_face(plain)
    for name in (*NAMES, "detections.jsonl"):
        path = paths.manifests / name
        path.write_bytes(MARK + path.read_bytes())

    marked = read_episode(paths)

    assert marked.tracks.equals(plain.tracks) and marked.track_metrics == plain.track_metrics
    assert (marked.detections is None) == (plain.detections is None)
    assert render_with_a_changed_face(marked) == before


def render_with_a_changed_face(episode: Episode) -> dict[str, bytes]:
    rows = schemas.face_rows(episode.faces)
    rows[0]["quality"] = 0.25
    faces = schemas.build_faces(rows, episode.faces["embedding"].combine_chunks())
    rendered = render_episode(episode.replace(faces=faces), "now")
    return {name: b"".join(pieces) for name, pieces in rendered.items()}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"NaN", "holds NaN, which is not JSON"),
        (b"-Infinity", "holds -Infinity, which is not JSON"),
        (b"1e400", "holds 1e400, a number too large for a double"),
        (b"-" + b"9" * 400, r"holds -9+\.\.\., a number too large for a double"),
        (b'"\\ud800"', "holds one half of a surrogate pair, which is no character"),
        (b'"\\udc00x"', "holds one half of a surrogate pair, which is no character"),
        (b'"Jos\xe9"', "is not UTF-8 \\(byte 0xe9 after .*Jos'\\); save it as UTF-8"),
        (b"[" * 2000 + b"]" * 2000, "nested deeper than 250 levels"),
        (b"tru", "not valid JSON .* at column .*; it is cut off or damaged"),
    ],
    ids=["nan", "infinity", "exponent", "digits", "high half", "low half", "latin", "deep", "cut"],
)
def test_what_is_no_json_gets_its_true_name(paths: EpisodePaths, text: bytes, name: str) -> None:
    for file in NAMES[:3]:
        path = paths.manifests / file
        before = path.read_bytes()
        path.write_bytes(before.replace(b'": ', b'": ' + text + b', "rest": ', 1))

        assert next(p for p in find_violations(paths) if name_of(p) == file).startswith(f"{path}:")
        with pytest.raises(ArtifactError, match=rf"{file}:\d+: {name}"):
            read_episode(paths)
        path.write_bytes(before)


def name_of(problem: str) -> str:
    return Path(problem.split(":", 1)[0]).name


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_a_file_of_another_encoding_is_named_once(paths: EpisodePaths, encoding: str) -> None:
    for file in NAMES:
        path = paths.manifests / file
        before = path.read_bytes()
        path.write_bytes(before.decode().encode(encoding))

        told = [p for p in find_violations(paths) if name_of(p) == file]

        assert len(told) == 1 and f"{path}: is {encoding[:6].upper()} " in told[0] and "save it as UTF-8" in told[0]
        path.write_bytes(before)


def test_two_files_joined_with_their_marks_are_told_so(paths: EpisodePaths) -> None:
    lines = paths.tracks.read_bytes().splitlines(keepends=True)
    paths.tracks.write_bytes(MARK + lines[0] + MARK + b"".join(lines[1:]))

    with pytest.raises(ArtifactError, match=r"tracks.jsonl:2: begins with a byte order mark"):
        read_episode(paths)


def test_configuration_and_lists_may_begin_with_a_mark_and_name_their_encoding(tmp_path: Path) -> None:
    folder = copy_data(find_config_dir(None, {}), tmp_path / "config")
    profiles, names = folder / "performance_profiles.yaml", tmp_path / "list.txt"
    plain, text = read_config(folder), profiles.read_text()
    profiles.write_text(text, encoding="utf-8-sig")
    names.write_text("show-s01e01\n", encoding="utf-8-sig")

    assert read_config(folder).profiles == plain.profiles
    assert choose_episodes(DataRoot(tmp_path), [], names, None, None) == ("show-s01e01",)

    for path in (profiles, names):
        path.write_text(path.read_text(encoding="utf-8-sig"), encoding="utf-16")
    with pytest.raises(SettingsError, match="performance_profiles.yaml: is UTF-16"):
        read_config(folder)
    with pytest.raises(ArtifactError, match=r"list.txt: is UTF-16"):
        choose_episodes(DataRoot(tmp_path), [], names, None, None)
