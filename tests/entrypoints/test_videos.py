"""Videos that are not quite those the artifacts were made from, as a user meets them, on the drawn episode."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from cleanup.edges.data_root import DataRoot
from cleanup.edges.root_path import RootPath
from cleanup.entrypoints.episode_job import EpisodeJob, parse_actions, run_episode_job
from cleanup.errors import VideoError
from cleanup.names import check_ep_id
from cleanup.progress import PhaseProgress
from cleanup.resolve_settings import resolve_for_run
from tests.builders import artifacts_of, read_lines, snapshot
from tests.conftest import copy_data
from tests.entrypoints.test_cli import EP, artifacts, cleanup, edit_lines, report_of, run

Picture = NDArray[np.uint8]


def video_of(root: Path) -> Path:
    return root / "videos" / EP / "episode.mp4"


def encode_again(
    root: Path,
    *,
    keep: Callable[[int], bool] = lambda _: True,
    change: Callable[[Picture], Picture] = lambda picture: picture,
    rotation: int = 0,
    format_name: str = "mp4",
) -> None:
    """Replaces the video by one of some of its frames, changed one by one."""
    video = video_of(root)
    source = video.with_name("source.mp4")
    video.rename(source)
    with av.open(str(source)) as old, av.open(str(video), "w", format=format_name) as new:
        stream = new.add_stream("libx264", rate=24, options={"preset": "ultrafast", "crf": "8", "bf": "2"})
        stream.pix_fmt = "yuv420p"
        n_kept = 0
        for number, frame in enumerate(old.decode(video=0)):
            if not keep(number):
                continue
            picture = np.ascontiguousarray(change(frame.to_ndarray(format="rgb24")))
            if n_kept == 0:
                stream.height, stream.width = picture.shape[:2]
                if rotation:
                    stream.set_display_rotation(rotation)
            changed = av.VideoFrame.from_ndarray(picture, format="rgb24")
            changed.pts, changed.time_base = n_kept, Fraction(1, 24)
            n_kept += 1
            new.mux(stream.encode(changed))
        new.mux(stream.encode())
    source.unlink()


def copy_packets(root: Path, format_name: str) -> None:
    """Puts the video into another container as it is."""
    video = video_of(root)
    source = video.with_name("source.mp4")
    video.rename(source)
    with av.open(str(source)) as old, av.open(str(video), "w", format=format_name) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    source.unlink()


def test_a_shift_is_named_refused_and_applied(drawn: Path) -> None:
    encode_again(drawn, keep=lambda number: number >= 3)
    before = artifacts(drawn)
    first = {track["track_id"] for track in read_lines(drawn / "manifests" / EP / "tracks.jsonl")
             if track["first_frame_idx"] < 3}  # fmt: skip

    refused = run(drawn, "--write-back", code=2)
    assert artifacts(drawn) == before
    report = report_of(run(drawn, "--frame-shift", "-3", "--write-back", "--json"))

    assert "episode.mp4: its frames are shifted by -3 against demo-s01e01" in refused.stderr
    assert "--frame-shift -3" in refused.stderr
    assert report["video"]["frame_shift"] == -3
    (stretch,) = report["unreadable"]
    assert (stretch["first_frame"], stretch["last_frame"]) == (0, 0) and set(stretch["tracks"]) == first
    assert "the video does not reach there from 0:00.0" in stretch["reason"]
    assert report["tracks_after"] > report["tracks_before"], "all others were split as ever"


def test_frames_that_are_missing_in_the_middle_are_named_with_their_places(drawn: Path) -> None:
    encode_again(drawn, keep=lambda number: not 240 <= number < 244)

    refused = run(drawn, code=2)

    assert "not alike everywhere" in refused.stderr
    assert "(by 0 from 0:0" in refused.stderr and "by -4 from 0:20." in refused.stderr


def test_another_container_gives_the_very_same_artifacts(drawn: Path, tmp_path: Path) -> None:
    other = copy_data(drawn, tmp_path / "other")
    copy_packets(other, "mpegts")

    run(drawn, "--write-back")
    report = report_of(run(other, "--write-back", "--json", "--cache-dir", tmp_path / "cache"))

    assert artifacts_of(other, EP) == artifacts_of(drawn, EP)
    assert any("frames were counted by decoding the whole video: MPEG-TS" in w for w in report["warnings"])
    assert len(list((tmp_path / "cache" / "counts").iterdir())) == 1


def turn_back(drawn: Path) -> None:
    """Stores the picture turned a quarter clockwise, with a matrix that shows it as it was."""
    encode_again(drawn, change=lambda picture: np.rot90(picture, -1), rotation=90)


def turn_boxes(drawn: Path) -> None:
    """Artifacts that count in the picture as it is stored then, 360 wide and 640 high."""

    def turn(box: list[float]) -> list[float]:
        x1, y1, x2, y2 = box
        return [360 - y2, x1, 360 - y1, x2]

    def change_face(face: dict) -> dict:
        points = np.array(face["landmarks"]).reshape(-1, 2)
        landmarks = np.stack([360 - points[:, 1], points[:, 0]], axis=1).ravel().tolist()
        return {**face, "bbox_xyxy": turn(face["bbox_xyxy"]), "landmarks": landmarks}

    def change_track(track: dict) -> dict:
        boxes = [
            {**b, "bbox_xyxy": turn(b["bbox_xyxy"])} | (change_face(b) if "landmarks" in b else {})
            for b in track["bboxes_sampled"]
        ]
        return {**track, "bboxes_sampled": boxes}

    edit_lines(drawn / "manifests" / EP / "faces.jsonl", change_face)
    edit_lines(drawn / "manifests" / EP / "tracks.jsonl", change_track)


@pytest.mark.parametrize("is_shown", [True, False])
def test_it_is_found_out_whether_artifacts_count_in_the_picture_as_it_is_shown(drawn: Path, is_shown: bool) -> None:
    turn_back(drawn)
    if not is_shown:
        turn_boxes(drawn)

    report = report_of(run(drawn, "--json"))

    assert report["video"]["is_turned"] is is_shown
    assert (report["video"]["width"], report["video"]["height"]) == ((640, 360) if is_shown else (360, 640))
    assert any("the artifacts count in the picture" in w for w in report["warnings"])
    assert report["tracks_after"] > report["tracks_before"]


def test_a_rotation_given_by_hand_that_does_not_fit_is_refused(drawn: Path) -> None:
    turn_back(drawn)

    refused = run(drawn, "--rotation", "ignore", code=2)

    assert "360x640, but demo-s01e01 has faces as far as" in refused.stderr


def test_pictures_of_another_size_cost_the_tracks_in_them_and_nothing_else(drawn: Path) -> None:
    encode_again(drawn, format_name="mpegts")
    video = video_of(drawn)
    whole = video.read_bytes()
    small = drawn / "small"
    small.mkdir()
    encode_again(
        drawn, keep=lambda number: number >= 500, change=lambda picture: picture[::2, ::2], format_name="mpegts"
    )
    tail = video.read_bytes()
    video.write_bytes(whole)
    encode_again(drawn, keep=lambda number: number < 500, format_name="mpegts")
    video.write_bytes(video.read_bytes() + tail)

    report = report_of(run(drawn, "--json"))

    (stretch,) = report["unreadable"]
    assert stretch["reason"].startswith("the video is 320x180 and not 640x360 from 0:2")
    assert stretch["first_frame"] >= 500 and 0 < len(stretch["tracks"]) < report["tracks_before"]


def test_a_video_that_grows_under_the_run_is_refused(drawn: Path) -> None:
    before = artifacts(drawn)
    settings = resolve_for_run({"models": str(drawn / "models"), "device": "cpu"}, "balanced", None)
    job = EpisodeJob(
        check_ep_id(EP), DataRoot(RootPath(drawn)), parse_actions(["split_tracks"]), settings, write_back=True
    )

    def grow(progress: PhaseProgress) -> None:
        if progress.items_done:
            with video_of(drawn).open("ab") as stream:
                stream.write(b"more")

    with pytest.raises(VideoError, match="changed while the run read it; if it is being written"):
        run_episode_job(job, grow)
    video_of(drawn).write_bytes(video_of(drawn).read_bytes().removesuffix(b"more"))
    assert {k: v for k, v in artifacts(drawn).items() if "episode.mp4" not in k} == {
        k: v for k, v in before.items() if "episode.mp4" not in k
    }


def test_doctor_tells_of_a_video_what_it_holds_and_what_a_run_does_with_it(drawn: Path, tmp_path: Path) -> None:
    turn_back(drawn)
    options = ["--video", video_of(drawn)]

    text = cleanup("doctor", *options).stdout
    found = json.loads(cleanup("doctor", *options, "--json").stdout)

    assert "frames: 672 by its packets, 672 by decoding, numbered by packets; 24 per second" in text
    assert "shown: 270 degrees clockwise, square pixels" in text
    assert "a run: whether artifacts count in 360x640 or 640x360 is found out from their faces" in text
    assert found["picture"] == {"width": 360, "height": 640, "pixel_format": "yuv420p", "interlaced": False}
    assert found["rotation"] == {"clockwise_deg": 270, "mirrored": False}
    assert [s["codec"] for s in found["streams"] if s["is_read"]] == ["h264"]
    assert found["damage"] == []
    files = snapshot(drawn)
    cleanup("doctor", "--video", tmp_path / "none.mp4", code=2)
    assert snapshot(drawn) == files, "nothing is written beside the video"


def test_doctor_lists_a_damaged_stretch_by_its_time(drawn: Path) -> None:
    from tests.builders import corrupt_video

    corrupt_video(video_of(drawn), 0.5, 0.6)

    found = json.loads(cleanup("doctor", "--video", video_of(drawn), "--json").stdout)

    assert found["frames"]["by_packets"] == 672 > found["frames"]["by_decoding"]
    assert 13 < found["damage"][0]["first_s"] < 15 and found["damage"][-1]["last_s"] < 18
    assert any("cannot be decoded; tracks there are left as they were" in sentence for sentence in found["does"])


class _Dropping(BaseHTTPRequestHandler):
    """Announces a video and breaks off in the middle of it."""

    content = b""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.content[: len(self.content) // 2])

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_a_url_that_drops_is_one_line_and_the_files_stay(drawn: Path, tmp_path: Path) -> None:
    before = artifacts(drawn)
    _Dropping.content = video_of(drawn).read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Dropping) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/episode.mp4"
        refused = run(drawn, "--video", url, "--cache-dir", tmp_path / "cache", "--write-back", code=1)
        server.shutdown()

    assert url in refused.stderr and len(refused.stderr.strip().splitlines()) == 1
    assert artifacts(drawn) == before
