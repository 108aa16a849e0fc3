"""Lines read in columns are what they are one by one, and whatever is not plain is left to the other reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cleanup import schemas
from cleanup.edges import artifact_reading
from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import find_violations, read_episode
from cleanup.edges.artifact_writing import render_episode
from cleanup.edges.embedding_text import PRESENT, close_record, format_numbers, open_record, parse_vectors
from cleanup.edges.face_columns import read_plain_faces
from cleanup.edges.root_path import RootPath
from cleanup.episode import Episode
from tests.builders import write_episode


def read_by_line(paths: EpisodePaths, monkeypatch: pytest.MonkeyPatch) -> Episode:
    with monkeypatch.context() as patch:
        patch.setattr(artifact_reading, "read_plain_faces", lambda *_: None)
        return read_episode(paths)


def read_plain(paths: EpisodePaths, dialect: str) -> object:
    return read_plain_faces(paths.faces, dialect, {1, 2, 3}, np.load(paths.embeddings.system_path), 24.0)


def edit(paths: EpisodePaths, change: Callable[[bytes], bytes]) -> None:
    """Changes the second line."""
    lines = paths.faces.read_bytes().splitlines(keepends=True)
    lines[1] = change(lines[1])
    paths.faces.write_bytes(b"".join(lines))


@pytest.mark.parametrize("dialect", ["documented", "emitted"])
def test_both_readers_give_the_same(tmp_path: Path, dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, dialect))
    assert read_plain(paths, dialect) is not None

    in_columns, by_line = read_episode(paths), read_by_line(paths, monkeypatch)

    for name in ("tracks", "boxes", "faces", "identities", "stored_faces"):
        assert getattr(in_columns, name).equals(getattr(by_line, name)), name


@pytest.mark.shared
@pytest.mark.parametrize("ep_id", ["bbt-s01e01", "bbt-s01e02"])
def test_both_readers_give_the_same_of_real_episodes(shared: Path, ep_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = EpisodePaths(RootPath(shared / "data"), ep_id)

    in_columns, by_line = read_episode(paths), read_by_line(paths, monkeypatch)

    assert in_columns.faces.equals(by_line.faces)
    assert in_columns.boxes.equals(by_line.boxes)


# Valid by the contract, though not plain.
ODD = {
    "a blank line": lambda line: line + b"\n",
    "spaces around": lambda line: b"  " + line,
    "windows line end": lambda line: line.replace(b"\n", b"\r\n"),
    "landmarks in pairs": lambda line: patch(line, landmarks=[[0.1, 0.2]] * 5),
    "umlauts": lambda line: patch(line, note="Königin"),
    "two embeddings, of which the last counts": lambda line: line.replace(b"{", b'{"embedding": [1.0], ', 1),
    "an embedding further in": lambda line: patch(line, extra={"embedding": [1, 2]}),
}
# Violations.
WRONG = {
    "two objects": lambda line: line.strip() + line,
    "cut off": lambda line: line[:-20] + b"\n",
    "no utf-8": lambda line: line.replace(b"{", b'{"note": "\xff", ', 1),
    "an empty box": lambda line: patch(line, bbox=[0.5, 0.5, 0.5, 0.6], bbox_xyxy=[5, 5, 5, 6]),
    "text for a number": lambda line: patch(line, frame_idx="4"),
    "a fraction for a frame": lambda line: patch(line, frame_idx=4.5),
    "NaN": lambda line: line.replace(b'"embedding": [', b'"embedding": [NaN, '),
    "null in it": lambda line: line.replace(b'"embedding": [', b'"embedding": [null, '),
    "a trailing comma": lambda line: line.replace(b"], ", b",], "),
    "a number without a digit behind the point": lambda line: line.replace(b'"embedding": [', b'"embedding": [1., '),
    "a number without one before it": lambda line: line.replace(b'"embedding": [', b'"embedding": [.5, '),
    "a leading zero": lambda line: line.replace(b'"embedding": [', b'"embedding": [00.5, '),
    "a plus sign": lambda line: line.replace(b'"embedding": [', b'"embedding": [+0.5, '),
    "inf": lambda line: line.replace(b'"embedding": [', b'"embedding": [inf, '),
    "a list in it": lambda line: line.replace(b'"embedding": [', b'"embedding": [[0.5], '),
    "two numbers without a comma": lambda line: line.replace(b'"embedding": [', b'"embedding": [0.5 '),
    "the text that stands for one": lambda line: patch(line, embedding=PRESENT),
    "a number too large for a double": lambda line: line.replace(b"{", b'{"note": 1e999, ', 1),
    "nested too deep": lambda line: line.replace(b"{", b'{"note": ' + b"[" * 2000 + b"]" * 2000 + b", ", 1),
    "too long": lambda line: line.replace(b'"embedding": [', b'"embedding": [0.5, '),
    "an empty list": lambda line: patch(line, embedding=[]),
    "unknown track": lambda line: patch(line, track_id="track-00099"),
    "quality above one": lambda line: patch(line, quality=1.5, quality_score=1.5),
    "nine landmarks": lambda line: patch(line, landmarks=[0.1] * 9),
    "another id's": lambda line: patch(line, face_id="face-00001"),
}


def patch(line: bytes, **values: object) -> bytes:
    """A line with other values for keys it has; of a pair of names only the one it has, and of new names all."""
    record = json.loads(line)
    pairs = {"bbox", "bbox_xyxy", "quality", "quality_score"}
    record.update({k: v for k, v in values.items() if k in record or k not in pairs})
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


@pytest.mark.parametrize("case", ODD)
def test_odd_lines_are_read_all_the_same(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, "documented"))
    edit(paths, ODD[case])

    episode = read_episode(paths)

    assert episode.faces.equals(read_by_line(paths, monkeypatch).faces)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_lines_are_named_with_their_number(tmp_path: Path, case: str) -> None:
    paths = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, "documented"))
    edit(paths, WRONG[case])

    assert read_plain(paths, "documented") is None
    assert any(f"{paths.faces}:2:" in problem for problem in find_violations(paths)), find_violations(paths)


@pytest.mark.parametrize("at_the_top", ["", ', "embedding": null', ', "embedding" : []', ', "embedding": [7]'])
def test_an_embedding_further_in_is_not_the_face_s(tmp_path: Path, at_the_top: str) -> None:
    paths = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, "documented"))

    def hide(line: bytes) -> bytes:
        record = json.loads(line)
        record["extra"] = {"embedding": record.pop("embedding")}
        return json.dumps(record)[:-1].encode() + at_the_top.encode() + b"}\n"

    edit(paths, hide)

    assert read_plain(paths, "documented") is None
    assert find_violations(paths)


def test_a_row_of_the_matrix_that_is_another_is_seen(tmp_path: Path) -> None:
    paths = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, "documented"))
    matrix = np.load(paths.embeddings.system_path)
    np.save(paths.embeddings.system_path, np.roll(matrix, 1, axis=0))

    assert read_plain(paths, "documented") is None
    assert "row 0 is not the embedding" in find_violations(paths)[0]


@pytest.mark.parametrize("dialect", ["documented", "emitted"])
def test_only_changed_lines_are_written_anew(tmp_path: Path, dialect: str) -> None:
    paths = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, dialect))
    old = paths.faces.read_bytes().splitlines()
    episode = read_episode(paths)
    rows = schemas.face_rows(episode.faces)
    rows[3]["quality"] = 0.25
    vectors = schemas.embeddings_of(episode.faces).copy()
    vectors[5] = np.roll(vectors[5], 1)
    # Without the eighth line, and the first two in another order.
    order = [1, 0, *(i for i in range(2, len(rows)) if i != 7)]
    faces = schemas.build_faces([rows[i] for i in order], schemas.embedding_lists(vectors[order]))

    new = b"".join(render_episode(episode.replace(faces=faces), "now")["faces.jsonl"]).splitlines()

    changed = [i for place, i in enumerate(order) if new[place] != old[i]]
    assert changed == [3, 5]
    assert np.allclose(json.loads(new[5])["embedding"], vectors[5])


def test_a_face_that_lost_its_embedding_and_a_new_one(tmp_path: Path) -> None:
    paths = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, "emitted"))
    episode = read_episode(paths)
    rows = schemas.face_rows(episode.faces)
    rows[0].update(reject_reason="blurry:3.0", has_embedding=False)
    rows.append({**rows[1], "face_id": "face_new", "stored_row": None})
    vectors = schemas.embeddings_of(episode.faces)
    lists = schemas.spread_embeddings(
        np.concatenate([vectors[1:], vectors[:1]]), np.array([False, *[True] * len(vectors)])
    )

    rendered = render_episode(episode.replace(faces=schemas.build_faces(rows, lists)), "now")

    records = [json.loads(line) for line in b"".join(rendered["faces.jsonl"]).splitlines()]
    assert "embedding" not in records[0] and records[0]["skip"] == "blurry:3.0"
    assert records[-1]["face_id"] == "face_new" and np.allclose(records[-1]["embedding"], vectors[0])
    assert b"".join(rendered["faces.npy"])[-vectors.nbytes :] == np.concatenate([vectors[1:], vectors[:1]]).tobytes()


def test_boxes_of_one_place_become_one(tmp_path: Path) -> None:
    paths = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, "emitted"))
    episode = read_episode(paths)
    keys = list(zip(episode.boxes["track_id"].to_pylist(), episode.boxes["frame_idx"].to_pylist(), strict=True))

    assert len(set(keys)) == len(keys) and keys == sorted(keys)
    assert pc.all(episode.boxes["confidence"].is_valid()).as_py()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"a": 1, "embedding": [0.5, 1e-05], "b": [2]}', b"0.5, 1e-05"),
        (b'{"embedding":[]}', b""),
        (b'{"a": "\\"embedding\\": [3]", "embedding": [4]}', b"4"),
        (b'{"a": {"embedding": [3]}, "embedding": [4]}', b"4"),
        (b'{"a": {"embedding": [3]}}', None),
        (b'{"embedding": null}', None),
        (b'{"embedding": "x"}', None),
    ],
)
def test_numbers_are_cut_out_and_put_back(line: bytes, text: bytes | None) -> None:
    record, found = open_record(line)

    assert (None if found is None else found.replace(b" ", b"")) == (None if text is None else text.replace(b" ", b""))
    assert (record.get("embedding") == PRESENT) == (text is not None)
    if text is not None:
        closed = close_record(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode(), found)
        assert json.loads(closed) == json.loads(line)


def test_vectors_are_parsed_as_they_were_formatted() -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    parsed = parse_vectors(pa.array([format_numbers(vector) for vector in vectors], pa.large_binary()))

    assert not parsed.faults
    assert np.array_equal(parsed.values.reshape(5, 64), vectors)
