"""Inputs made to hurt: bounded before they are taken apart, refused in one line, and nothing is touched elsewhere."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from cleanup import errors
from cleanup.edges import video_packets, video_streams
from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import find_violations, read_episode
from cleanup.edges.artifact_writing import render_episode
from cleanup.edges.model_files import find_model_files
from cleanup.edges.pictures import find_fault
from cleanup.edges.root_path import RootPath
from cleanup.edges.seed_archive import _read_archive
from cleanup.edges.video_frames import VideoFrames
from cleanup.errors import ArtifactError, CleanupError, FacebankError, ModelError, SettingsError, VideoError
from cleanup.names import check_ep_id, check_person_id, check_run_id, check_show
from cleanup.resolve_settings import find_config_dir, read_config
from tests.builders import read_lines, snapshot, write_episode
from tests.entrypoints.test_cli import EP, cleanup

DIALECTS = ("documented", "emitted")
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(params=DIALECTS)
def paths(tmp_path: Path, request: pytest.FixtureRequest) -> EpisodePaths:
    return EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, request.param))


def edit(path: Path, number: int, **values: Any) -> None:
    """Sets values in one line of a file."""
    lines = path.read_text().splitlines()
    lines[number - 1] = json.dumps({**json.loads(lines[number - 1]), **values})
    path.write_text("\n".join(lines) + "\n")


def refused(paths: EpisodePaths, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        read_episode(paths)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["tracks.jsonl", "faces.jsonl"])
def test_a_line_without_end_is_not_read_to_its_end(paths: EpisodePaths, name: str) -> None:
    with (paths.manifests / name).open("ab") as stream:
        stream.write(b'{"x": "')
        stream.truncate(stream.tell() + (1 << 30))  # a hole of a gigabyte

    refused(paths, rf"{name}:\d+: longer than 64 MiB")


@pytest.mark.parametrize("name", ["identities.json", "track_metrics.json"])
def test_a_document_of_any_size_is_not_read_as_a_whole(paths: EpisodePaths, name: str) -> None:
    with (paths.manifests / name).open("ab") as stream:
        stream.truncate(1 << 30)

    refused(paths, rf"{name}: larger than 256 MiB")


def nest(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("name", ["tracks.jsonl", "faces.jsonl"])
def test_fields_nobody_knows_may_be_nested_as_deep_as_they_can_be_written(paths: EpisodePaths, name: str) -> None:
    edit((paths.manifests / name).system_path, 2, theirs=nest(100))
    before = (paths.manifests / name).read_bytes()
    assert b"".join(render_episode(read_episode(paths), "now")[name]) == before

    edit((paths.manifests / name).system_path, 2, theirs=nest(300))
    refused(paths, rf"{name}:2: nested deeper than 250 levels")


def test_numbers_no_file_can_mean_are_named(paths: EpisodePaths) -> None:
    is_documented = paths.ep_id.endswith("e01")
    track: Any = "track-" + "9" * 20 if is_documented else 2**63
    for values in ({"frame_idx": 2**63}, {"frame_idx": -1}, {"track_id": track}):
        before = paths.faces.read_bytes()
        edit(paths.faces.system_path, 3, **values)
        refused(paths, rf"faces.jsonl:3: .*{next(iter(values))}")
        paths.faces.write_bytes(before)


@pytest.mark.parametrize(
    ("key", "value"), [("metadata", None), ("metadata", []), ("config", 3), ("stats", "x"), ("identities", {})]
)
def test_a_document_whose_parts_are_something_else(paths: EpisodePaths, key: str, value: Any) -> None:
    document = json.loads(paths.identities.system_path.read_text())
    paths.identities.system_path.write_text(json.dumps({**document, key: value}))

    refused(paths, rf"identities.json: ({key} is a \w+ instead of an object|has no list of identities)")


def test_metrics_whose_counts_are_something_else(tmp_path: Path) -> None:
    paths = EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, "emitted"))
    for metrics, what in (
        (None, "metrics is a NoneType"),
        ({"appearance_gate": 1}, "appearance_gate is a int"),
        ({"appearance_gate": {"splits": []}}, "splits is a list"),
        ({"appearance_gate": {"splits": {"hard": "many"}}}, "splits.hard is 'many' instead of a count"),
    ):
        paths.track_metrics.system_path.write_text(json.dumps({"ep_id": paths.ep_id, "metrics": metrics}))
        refused(paths, rf"track_metrics.json: .*{what}")


@pytest.mark.parametrize(
    "header",
    [b"{'descr': '<f4', 'fortran_order': False, 'shape': ((36, 64", b"{'shape': (1 << 70, 64)}", b"[" * 3000, b"\xff" * 60],
)  # fmt: skip
def test_a_header_of_numpy_that_is_none(paths: EpisodePaths, header: bytes) -> None:
    paths.embeddings.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)

    refused(paths, "faces.npy: not a readable NumPy array")


def test_rows_that_are_not_finite_are_named_without_a_warning(paths: EpisodePaths) -> None:
    rows = np.load(paths.embeddings.system_path)
    rows[3] = np.inf
    np.save(paths.embeddings.system_path, rows)

    refused(paths, r"faces.npy: row 3 is not finite")


def test_what_a_terminal_would_obey_is_written_out(paths: EpisodePaths) -> None:
    edit(paths.faces.system_path, 3, face_id="\x1b]0;owned\x07\nline", frame_idx="x")

    problem, *_ = find_violations(paths)
    assert problem.isprintable() and r"\x1b]0;owned\x07\nline" in problem


@given(st.text())
def test_a_message_is_one_line_whatever_is_in_it(text: str) -> None:
    for kind in (getattr(errors, name) for name in dir(errors) if name.endswith("Error")):
        assert str(kind(text)).isprintable()


@given(st.one_of(st.text(), st.from_regex(r"[\w./-]{1,30}")))
def test_an_id_that_passes_is_safe_in_a_path(text: str) -> None:
    for check in (check_ep_id, check_show, check_person_id, check_run_id):
        try:
            name = check(text)
        except CleanupError:
            continue
        assert (
            name == text and name.isascii() and Path("/root", name).parent == Path("/root") and name not in (".", "..")
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@FEW
@given(st.sampled_from(DIALECTS), st.sampled_from(["tracks.jsonl", "faces.jsonl"]), st.integers(0, 30), JSON)
def test_any_value_anywhere_is_taken_or_named(dialect: str, name: str, place: int, value: Any) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        paths = EpisodePaths(RootPath(Path(scratch)), write_episode(Path(scratch), dialect))
        record = read_lines(paths.manifests / name)[0]
        edit((paths.manifests / name).system_path, 1, **{sorted(record)[place % len(record)]: value})
        before = snapshot(Path(scratch))

        problems = find_violations(paths)
        if not problems:
            for pieces in render_episode(read_episode(paths), "now").values():
                b"".join(pieces)

        assert all(problem.isprintable() for problem in problems)
        assert snapshot(Path(scratch)) == before


@FEW
@given(
    st.sampled_from(DIALECTS), st.binary(max_size=200), st.sampled_from(["tracks.jsonl", "faces.jsonl", "faces.npy"])
)
def test_any_bytes_in_place_of_a_file_are_named(dialect: str, content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        paths = EpisodePaths(RootPath(Path(scratch)), write_episode(Path(scratch), dialect))
        (paths.embeddings if name == "faces.npy" else paths.manifests / name).write_bytes(content)

        assert any(name in problem for problem in find_violations(paths))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for path in find_config_dir(None, {}).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]\n", r"clustering.yaml: holds an alias, \*a"),
        ("a: &a {b: *a}\n", r"clustering.yaml: holds an alias"),
        ("a: " + "[" * 20_000, r"clustering.yaml.*: (nested deeper than 20 levels|not valid YAML)"),
        (
            "a: " + "{b: " * 3_000 + "1" + "}" * 3_000,
            r"clustering.yaml.*: (nested deeper than 20 levels|not valid YAML)",
        ),
        ("x: 1\x00\n", r"clustering.yaml: not valid YAML"),
        ("!!python/object/apply:os.system ['touch owned']\n", r"clustering.yaml:1: not valid YAML"),
        ("# " + "x" * (1 << 20), r"clustering.yaml: larger than"),
    ],
    ids=["bomb", "circle", "deep list", "deep map", "nul", "code", "large"],
)
def test_yaml_made_to_hurt(config: Path, text: str, message: str) -> None:
    (config / "clustering.yaml").write_text(text)

    with pytest.raises(SettingsError, match=message) as caught:
        read_config(config)
    assert len(str(caught.value).splitlines()) == 1


def png(width: int, height: int) -> bytes:
    """A PNG that says it is that large, and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b""))  # fmt: skip


def test_a_picture_is_refused_by_what_it_claims_before_it_is_decoded(drawn: Path) -> None:
    photos = drawn / "seed_photos" / "bomb"
    photos.mkdir()
    (photos / "a.png").write_bytes(png(60_000, 60_000))
    (photos / "b.png").write_bytes(b"GIF89a")
    with (photos / "c.jpg").open("wb") as stream:
        stream.truncate(1 << 30)

    result = cleanup("facebank", "enroll", "--show", "demo", "--aligned", "--out-root", drawn, "--models",
                     drawn / "models", drawn / "seed_photos", code=None)  # fmt: skip

    output = result.stdout + result.stderr
    assert "a.png" in output and "more than 100,000,000 pixels" in output
    assert "not a readable picture" in output and "larger than 64 MiB" in output
    assert find_fault(png(20, 20)) == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [("list.m3u8", "#EXTM3U\n#EXTINF:1\n{}\n"), ("list.mp4", "ffconcat version 1.0\nfile '{}'\n"), ("x.sdp", "v=0\n")],
)
def test_a_playlist_leads_nowhere(drawn: Path, name: str, text: str) -> None:
    video = drawn / "videos" / EP / "episode.mp4"
    path = drawn / name
    path.write_text(text.format(video))

    with pytest.raises(VideoError, match=f"{name}: not a readable video"):
        VideoFrames(path)
    VideoFrames(video).close()


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [("MAX_VIDEO_FRAMES", 100, "more than 100 frames"), ("MAX_VIDEO_SIDE", 200, "pictures of 640x360"),
     ("MAX_STREAMS", 0, "1 streams, more than 0")],
)  # fmt: skip
def test_a_video_is_refused_by_what_it_claims(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, message: str
) -> None:
    for module in (video_packets, video_streams):
        monkeypatch.setattr(module, limit, value, raising=False)

    with pytest.raises(VideoError, match=message):
        VideoFrames(drawn / "videos" / EP / "episode.mp4")


def archive(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as target:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                target.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                target.addfile(info, io.BytesIO(member[1]))
    return path


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


MANIFEST = ("manifest.json", b'{"version": 1, "seeds": [], "images": {}}')


def listing(content: bytes) -> tuple[str, bytes]:
    """A manifest that lists one picture with its right digest."""
    images = {"facebank/seeds/a.png": hashlib.sha256(content).hexdigest()}
    return "manifest.json", json.dumps({"version": 1, "seeds": [], "images": images}).encode()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("/etc/passwd", b"x")], "does not lie under facebank/seeds"),
        ([("facebank/seeds/../../x", b"x")], "does not lie under facebank/seeds"),
        ([link("facebank/seeds/a", "/etc/passwd", tarfile.SYMTYPE)], "no plain file"),
        ([link("facebank/seeds/a", "/etc/passwd", tarfile.LNKTYPE)], "no plain file"),
        ([link("facebank/seeds/a", "", tarfile.FIFOTYPE)], "no plain file"),
        ([MANIFEST, ("facebank/seeds/a", b"x"), ("facebank/seeds/a", b"x")], "no plain file of a sensible size"),
        ([listing(b"x"), ("facebank/seeds/a.png", b"x")], "no picture to take"),
        ([listing(png(60_000, 60_000)), ("facebank/seeds/a.png", png(60_000, 60_000))], "more than 100,000,000 pixels"),
        ([MANIFEST, ("facebank/seeds/a.png", bytes(60 << 20))], "far more than an archive of seeds"),
        ([("manifest.json", b'{"version": 1}')], "has no manifest.json of version 1"),
        ([("manifest.json", b"{")], "not an archive of seeds, or damaged"),
    ],
    ids=["absolute", "climbing", "symlink", "hardlink", "pipe", "twice", "no picture", "large picture", "bomb",
         "no seeds", "no json"],
)  # fmt: skip
def test_an_archive_made_to_hurt(tmp_path: Path, members: list[Any], message: str) -> None:
    path = archive(tmp_path / "seeds.tar.gz", *members)
    before = snapshot(tmp_path)

    with pytest.raises(FacebankError, match=message):
        _read_archive(path)
    assert snapshot(tmp_path) == before


def test_an_archive_that_is_cut_short_or_none(tmp_path: Path) -> None:
    path = archive(tmp_path / "seeds.tar.gz", MANIFEST)
    whole = path.read_bytes()
    for content in (b"", whole[:20], whole[: len(whole) // 2], gzip.compress(b"no tar at all"), b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(FacebankError, match="not an archive of seeds, or damaged|has no manifest"):
            _read_archive(path)


def write_external(folder: Path, location: str) -> Path:
    """A model that keeps its weights in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 112, 112])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 112, 112])], [tensor],
    )  # fmt: skip
    path = folder / "m.onnx"
    onnx.save(helper.make_model(graph), str(path))
    return path


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret.bin", "sub/../../secret.bin", ""])
def test_a_model_that_keeps_data_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(4))
    folder = tmp_path / "models"
    folder.mkdir()
    write_external(folder, location)

    with pytest.raises(ModelError, match="which is not beside it; refused"):
        find_model_files(folder)


def test_a_model_whose_data_lies_beside_it_is_taken_and_missed_when_gone(tmp_path: Path) -> None:
    write_external(tmp_path, "m.bin")
    with pytest.raises(ModelError, match=r"keeps data in m.bin, which is missing"):
        find_model_files(tmp_path)
    (tmp_path / "m.bin").write_bytes(bytes(4))

    assert find_model_files(tmp_path).recogniser.name == "m.onnx"


def test_a_link_out_of_the_model_folder_is_refused_until_it_is_named(drawn: Path, tmp_path: Path) -> None:
    folder = tmp_path / "linked"
    folder.mkdir()
    [model] = (drawn / "models").glob("*.onnx")
    (folder / model.name).symlink_to(model)

    with pytest.raises(ModelError, match=r"a link to .*, outside the model folder; give --models the folder"):
        find_model_files(folder)
    assert find_model_files(model.parent).recogniser == model
