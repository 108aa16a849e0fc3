"""What a container or codec does to a result: ``uv run python -m tests.bench.containers [--seconds N] [name ...]``.

The video of a shared episode is put into other containers, cut, turned and encoded anew; artifacts count as a tool would
count that reads the file. Each is cleaned, scored, and shown beside the mp4's score on the same tracks. Then frames are
taken away behind the artifacts' back: a run has to name the shift, and to come to the same score where it is told.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tests.builders import read_lines
from tests.conftest import SHARED
from tests.edges.test_frame_pixels import to_high_range
from tests.entrypoints.test_cli import cleanup
from tests.test_acceptance import score
from tests.videos import copy, read_packets, with_edits, with_matrix

EP, WIDTH, HEIGHT, FPS = "bbt-s01e02", 960, 540, 24
ACTIONS = "split_tracks,reembed,recluster"
TOLERANCE = 0.005
COLUMNS = (
    "kind", "F", "F of the mp4", "difference", "similarity", "lowest", "right", "s", "what the run says of the video",
)  # fmt: skip
# Units of the mp4's clock per frame and per second, and presentation time of its first frame after the encoder's delay.
_PER_FRAME, _PER_SECOND, _DELAY = 512, 12288, 1024
# Tracks of those kinds that lack frames at the beginning are counted from here on: the third shot.
_SECOND_START = 72
_X264 = "preset=veryfast crf=18"
Picture = NDArray[np.uint8 | np.uint16]
Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]
AS_IT_IS: Matrix = ((1, 0, 0), (0, 1, 0))


@dataclass(frozen=True)
class Kind:
    """A way to keep the pictures of the mp4 in a file.

    Attributes:
        make: The file's bytes, given the mp4's.
        is_cut: Whether frames are missing at the beginning, and artifacts count from the first that OpenCV reads.
        matrix: From points in the mp4's picture to those in the picture that artifacts count in.
        lost: So many frames are missing at the beginning, and artifacts count as if they were there.
        refusal: What a run that is told nothing has to say, where it has to refuse.
    """

    make: Callable[[bytes], bytes]
    is_cut: bool = False
    matrix: Matrix = AS_IT_IS
    lost: int = 0
    refusal: str = ""


@dataclass(frozen=True)
class Result:
    """What came of a kind; ``f`` is None where the run was refused and should have been, or failed.

    Attributes:
        name: Of the kind.
        f: B-cubed F.
        f_mp4: That of the mp4 on the same tracks.
        similarity: Median and lowest cosine of a face's embedding and the one it has in the mp4.
        is_right: Whether the two scores are near, and a refusal came where one had to.
        said: What the run said of the video that it does not say of the mp4.
        seconds: Of the run.
    """

    name: str
    f: float | None
    f_mp4: float
    similarity: tuple[float, float] | None
    is_right: bool
    said: list[str]
    seconds: float


# Files.


def first_frames(data: bytes, n_frames: int) -> bytes:
    """The mp4 up to the key frame at or before a frame."""
    keys = [place for place, packet in enumerate(read_packets(data)) if packet.is_keyframe and place <= n_frames]
    return copy(data, "mp4", lambda packets: packets[: keys[-1]] if n_frames < len(packets) else packets)


def trim(data: bytes, n_frames: int) -> bytes:
    """The mp4 with an edit list that leaves out its first frames."""
    n_left = sum(1 for _ in read_packets(data)) - n_frames
    return with_edits(data, [(1000 * n_left // FPS, _DELAY + n_frames * _PER_FRAME)])


def cut_start(container: str) -> Callable[[bytes], bytes]:
    """As a recorder begins that is switched on in the middle of a group of pictures."""
    return lambda data: copy(data, container, lambda packets: packets[10:])


def double_a_time(packets: list[av.Packet]) -> Iterable[av.Packet]:
    """A picture in the middle is given the time of the one before it."""
    middle = next(p for p in packets[len(packets) // 2 :] if p.pts > p.dts and not p.is_keyframe)
    middle.pts -= _PER_FRAME
    return packets


def jump(packets: list[av.Packet]) -> Iterable[av.Packet]:
    """The clock is an hour ahead from a key frame in the middle on."""
    first = next(i for i in range(len(packets) // 2, len(packets)) if packets[i].is_keyframe)
    for packet in packets[first:]:
        packet.pts += 3600 * _PER_SECOND
        packet.dts += 3600 * _PER_SECOND
    return packets


@cache
def reencode(
    data: bytes,
    codec: str,
    container: str,
    options: str,
    *,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    change: Callable[[Picture], Picture] | None = None,
    leave_out: range = range(0),
    aspect: Fraction | None = None,
    b_frames: int = 2,
    high_range: ColorTrc | None = None,
) -> bytes:
    """The mp4's pictures encoded anew.

    Args:
        data: The mp4.
        codec: FFmpeg's name of an encoder.
        container: FFmpeg's name of a muxer.
        options: Those of the encoder, "name=value name=value".
        size: Of the coded picture.
        change: Given each picture in RGB, the one that is encoded.
        leave_out: Frames that are not encoded.
        aspect: Of a pixel, width to height.
        b_frames: The most B-frames in a row.
        high_range: The transfer of the picture in 10 bits and BT.2020, with the mp4's white at 203 nits.
    """
    pix_fmt = "yuv420p" if high_range is None else "yuv420p10le"
    target = io.BytesIO()
    with av.open(io.BytesIO(data)) as old, av.open(target, "w", format=container) as new:
        old.streams.video[0].thread_type = "AUTO"
        stream = new.add_stream(codec, rate=FPS, options=dict(o.split("=", 1) for o in options.split()))
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        context = stream.codec_context
        context.gop_size, context.max_b_frames, context.bit_rate = 2 * FPS, b_frames, 0
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        if high_range is not None:
            _tag(context, high_range)
        kept = (frame for i, frame in enumerate(old.decode(video=0)) if i not in leave_out)
        for number, frame in enumerate(kept):
            frame = _change_frame(frame, change, high_range)
            frame = frame.reformat(*size, pix_fmt, dst_colorspace=None if high_range is None else Colorspace.BT2020)
            if high_range is not None:
                _tag(frame, high_range)
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            frame.pict_type = PictureType.NONE  # else the encoder makes a key frame of each that was one
            new.mux(stream.encode(frame))
        new.mux(stream.encode(None))
    return target.getvalue()


def _change_frame(
    frame: av.VideoFrame, change: Callable[[Picture], Picture] | None, high_range: ColorTrc | None
) -> av.VideoFrame:
    if change is not None:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(change(frame.to_ndarray(format="rgb24"))), "rgb24")
    if high_range is not None:
        red, green, blue = np.moveaxis(frame.to_ndarray(format="rgb24"), 2, 0)
        frame = av.VideoFrame.from_ndarray(_high_range_table(high_range)[red, green, blue], "rgb48le")
    return frame


@cache
def _high_range_table(transfer: ColorTrc) -> NDArray[np.uint16]:
    """R'G'B' in BT.2020 of every colour of standard range, shape (256, 256, 256, 3)."""
    table = np.empty((256, 256, 256, 3), np.uint16)
    colours = np.stack(np.meshgrid(0, np.arange(256), np.arange(256), indexing="ij"), axis=-1)[0]
    for red in range(256):
        colours[..., 0] = red
        table[red] = np.rint(65535 * to_high_range(np.maximum(colours, 1e-3), transfer, is_bt2020=True))  # no 0 ** -x
    return table


def _tag(target: Any, transfer: ColorTrc) -> None:
    target.color_trc, target.color_primaries = int(transfer), int(ColorPrimaries.BT2020)
    target.colorspace, target.color_range = int(Colorspace.BT2020), int(ColorRange.MPEG)


def _turned(data: bytes, n_turns: int) -> bytes:
    """Pictures stored turned counterclockwise, with a display matrix that turns them back."""
    size = (HEIGHT, WIDTH) if n_turns % 2 else (WIDTH, HEIGHT)
    stored = reencode(data, "libx264", "mp4", _X264, size=size, change=_TURN[n_turns])
    return with_matrix(stored, *((0, 1, -1, 0) if n_turns == 1 else (-1, 0, 0, -1)))


_TURN = {1: np.rot90, 2: lambda picture: picture[::-1, ::-1]}


def _mirror(picture: Picture) -> Picture:
    return picture[:, ::-1]


def _mpeg2(data: bytes, container: str) -> bytes:
    return copy(reencode(data, "mpeg2video", "nut", "qmin=2 qmax=4"), container)


def _anamorphic(data: bytes) -> bytes:
    return reencode(data, "libx264", "mp4", _X264, size=(WIDTH * 3 // 4, HEIGHT), aspect=Fraction(4, 3))


def _hevc(data: bytes, high_range: ColorTrc | None = None) -> bytes:
    options = f"preset=ultrafast crf=18 x265-params=log-level=none:open-gop=1:keyint={2 * FPS}"
    return reencode(data, "libx265", "mp4", options, high_range=high_range)


def _without_middle(data: bytes) -> bytes:
    middle = sum(1 for _ in read_packets(data)) // 2
    return reencode(data, "libx264", "mp4", _X264, leave_out=range(middle, middle + 5))


KINDS: dict[str, Kind] = {
    "ts": Kind(lambda d: copy(d, "mpegts")),
    "m2ts": Kind(lambda d: copy(d, "mpegts", mux_options="mpegts_m2ts_mode=1")),
    "mkv": Kind(lambda d: copy(d, "matroska")),
    "flv": Kind(lambda d: copy(d, "flv")),
    "avi with B-frames": Kind(lambda d: reencode(d, "libx264", "avi", _X264)),
    "avi with a clock of 600 Hz": Kind(lambda d: copy(copy(d, "mpegts"), "avi")),
    "fragmented mp4": Kind(lambda d: copy(d, "mp4", mux_options="movflags=frag_keyframe+empty_moov+default_base_moof")),
    "mov trimmed by its edit list": Kind(lambda d: trim(copy(d, "mov"), 34), is_cut=True),
    "mkv cut between key frames": Kind(cut_start("matroska"), is_cut=True),
    "ts cut between key frames": Kind(cut_start("mpegts"), is_cut=True),
    "mkv with a doubled time": Kind(lambda d: copy(d, "matroska", double_a_time)),
    "mkv with a jumping clock": Kind(lambda d: copy(d, "matroska", jump)),
    "ts with a jumping clock": Kind(lambda d: copy(d, "mpegts", jump)),
    "matrix of 90, shown": Kind(lambda d: _turned(d, 1)),
    "matrix of 90, stored": Kind(lambda d: _turned(d, 1), matrix=((0, 1, 0), (-1, 0, WIDTH))),
    "matrix of 180, shown": Kind(lambda d: _turned(d, 2)),
    "matrix of 180, stored": Kind(lambda d: _turned(d, 2), matrix=((-1, 0, WIDTH), (0, -1, HEIGHT))),
    "mirroring matrix, shown": Kind(
        lambda d: with_matrix(reencode(d, "libx264", "mp4", _X264, change=_mirror), -1, 0, 0, 1)
    ),
    "mirroring matrix, stored": Kind(lambda d: with_matrix(d, -1, 0, 0, 1)),
    "anamorphic, shown": Kind(_anamorphic),
    "anamorphic, stored": Kind(_anamorphic, matrix=((0.75, 0, 0), (0, 1, 0))),
    "mpeg2 in mpg": Kind(lambda d: _mpeg2(d, "vob")),
    "mpeg2 in ts": Kind(lambda d: _mpeg2(d, "mpegts")),
    "mpeg4 in avi": Kind(lambda d: reencode(d, "mpeg4", "avi", "qmin=2 qmax=4")),
    "hevc with open groups": Kind(_hevc),
    "vp9 in webm": Kind(
        lambda d: reencode(d, "libvpx-vp9", "webm", "deadline=realtime cpu-used=8 crf=24 row-mt=1", b_frames=0)
    ),
    "av1 in webm": Kind(lambda d: reencode(d, "libsvtav1", "webm", "preset=12 crf=28", b_frames=0)),
    "hevc in PQ": Kind(lambda d: _hevc(d, ColorTrc.SMPTE2084)),
    "hevc in HLG": Kind(lambda d: _hevc(d, ColorTrc.ARIB_STD_B67)),
    "1 frame lost": Kind(lambda d: trim(d, 1), lost=1, refusal="shifted by -1 "),
    "3 frames lost": Kind(lambda d: trim(d, 3), lost=3, refusal="shifted by -3 "),
    "30 frames lost": Kind(lambda d: trim(d, 30), lost=30, refusal="shifted by -30 "),
    "5 frames lost in the middle": Kind(
        _without_middle, refusal=r"shifted .*not alike everywhere \(by 0 .*, by -5 from [0-9:.]+ to [0-9:.]+\)"
    ),
}


# Artifacts.


def recount(record: dict[str, Any], lead: int, matrix: Matrix) -> dict[str, Any]:
    """A track, box, face or face of truth as it is counted in another file.

    Args:
        record: In the emitted dialect.
        lead: Frames of the mp4 that the file does not have at its beginning.
        matrix: From points in the mp4's picture to those in the one that is counted in.
    """
    changed = dict(record)
    for key in ("frame_idx", "first_frame_idx", "last_frame_idx"):
        if key in changed:
            changed[key] -= lead
    for key in ("ts", "first_ts", "last_ts"):
        if key in changed:
            changed[key] = round(changed[key] - lead / FPS, 4)
    for key in ("bbox_xyxy", "landmarks"):
        if changed.get(key) is not None:
            points = np.reshape(changed[key], (-1, 2)) @ np.transpose(matrix)[:2] + np.transpose(matrix)[2]
            if key == "bbox_xyxy":
                points = np.sort(points, axis=0)
            changed[key] = points.round(2).ravel().tolist()
    if "bboxes_sampled" in changed:
        changed["bboxes_sampled"] = [recount(box, lead, matrix) for box in changed["bboxes_sampled"]]
    return changed


def write_artifacts(root: Path, frames: range, lead: int = 0, matrix: Matrix = AS_IT_IS) -> Path:
    """The episode's artifacts in a data root, of the tracks that lie within some frames, counted in another file.

    Returns:
        The file of truth that goes with them.
    """
    source, target = SHARED / "data" / "manifests" / EP, root / "manifests" / EP
    tracks = [
        t for t in read_lines(source / "tracks.jsonl") if {t["first_frame_idx"], t["last_frame_idx"]} <= {*frames}
    ]
    kept = {track["track_id"] for track in tracks}
    faces = read_lines(source / "faces.jsonl")
    rows = [face["track_id"] in kept for face in faces if face.get("embedding") is not None]
    target.mkdir(parents=True)
    (root / "embeds" / EP).mkdir(parents=True)
    for name, records in (("tracks", tracks), ("faces", [face for face in faces if face["track_id"] in kept])):
        lines = [json.dumps(recount(record, lead, matrix)) + "\n" for record in records]
        (target / f"{name}.jsonl").write_text("".join(lines))
    np.save(root / "embeds" / EP / "faces.npy", np.load(SHARED / "data" / "embeds" / EP / "faces.npy")[rows])
    document = json.loads((source / "identities.json").read_text())
    for identity in document["identities"]:
        identity["track_ids"] = [track for track in identity["track_ids"] if track in kept]
    document["identities"] = [identity for identity in document["identities"] if identity["track_ids"]]
    (target / "identities.json").write_text(json.dumps(document))
    (target / "track_metrics.json").write_bytes((source / "track_metrics.json").read_bytes())
    truth = json.loads((SHARED / "truth" / f"{EP}.json").read_text())
    truth["faces"] = [recount(face, lead, matrix) for face in truth["faces"] if face["track_id"] in kept]
    (root / "truth").mkdir()
    (root / "truth" / f"{EP}.json").write_text(json.dumps(truth))
    return root / "truth"


def count_by_opencv(video: Path) -> int:
    """Frames that OpenCV reads."""
    capture = cv2.VideoCapture(str(video))
    n_frames = 0
    while capture.grab():
        n_frames += 1
    capture.release()
    return n_frames


# Runs.


@dataclass(frozen=True)
class Run:
    """A run that is over: its report, or what it said when it refused; where it took place."""

    root: Path
    truth: Path
    report: dict[str, Any] | None
    message: str
    seconds: float

    @property
    def f(self) -> float:
        """B-cubed F."""
        return score(self.root, SHARED, EP, self.truth)["bcubed_f"]

    @property
    def embeddings(self) -> dict[str, NDArray[np.float64]]:
        """That of each face by its id."""
        faces = read_lines(self.root / "manifests" / EP / "faces.jsonl")
        return {face["face_id"]: np.array(face["embedding"]) for face in faces if face.get("embedding") is not None}


def compare(first: Run, second: Run) -> tuple[float, float]:
    """Median and lowest cosine of the embeddings of the faces that both runs kept."""
    one, other = first.embeddings, second.embeddings
    cosines = [float(one[face] @ other[face]) for face in one.keys() & other.keys()]
    return float(np.median(cosines)), min(cosines)


def run(root: Path, truth: Path, *options: str) -> Run:
    """Cleans the episode of a data root."""
    arguments = (
        "--ep-id",
        EP,
        "--out-root",
        root,
        "--models",
        SHARED / "models",
        "--device",
        "cpu",
        "--actions",
        ACTIONS,
    )
    start = time.monotonic()
    done = cleanup("run", *arguments, "--write-back", "--json", *options, code=None)
    seconds = time.monotonic() - start
    if done.exit_code == 0:
        return Run(root, truth, json.loads(done.stdout), "", seconds)
    lines = done.stderr.strip().splitlines() or [repr(done.exception)]
    return Run(root, truth, None, lines[-1].replace(str(root), ""), seconds)


def run_kind(root: Path, kind: Kind, data: bytes, frames: range, *options: str) -> Run:
    """Puts a kind of the mp4 into a new data root, counts the artifacts of some frames in it, and cleans it."""
    video = root / "videos" / EP / "episode.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(kind.make(data))
    lead = frames.stop - count_by_opencv(video) if kind.is_cut else 0
    return run(root, write_artifacts(root, frames, lead, kind.matrix), *options)


def judge(name: str, scratch: Path, data: bytes, n_frames: int, mp4: Callable[[int], Run]) -> Result:
    """Runs a kind, and once more with its shift where it was refused for that."""
    kind = KINDS[name]
    frames = range(_SECOND_START if kind.is_cut or kind.lost else 0, n_frames)
    reference = mp4(frames.start)
    done = run_kind(scratch / "run", kind, data, frames)
    said = [done.message] if done.message else []
    is_right = bool(re.search(kind.refusal, done.message)) if kind.refusal else done.report is not None
    if kind.lost:
        done = run(done.root, done.truth, "--frame-shift", str(-kind.lost))
        said += [done.message] if done.message else []
    if done.report is None:
        return Result(name, None, reference.f, None, is_right and not kind.lost, said, done.seconds)
    assert reference.report is not None
    said += [line.replace(str(done.root), "") for line in done.report["warnings"] if "target below" not in line]
    f = done.f
    is_right &= abs(f - reference.f) <= TOLERANCE
    return Result(name, f, reference.f, compare(done, reference), is_right, said, done.seconds)


def build_table(results: Sequence[Result]) -> Table:
    """All that came of it."""
    table = Table(title=f"{EP} in other files", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column[0] in "kw" else "right")
    for r in results:
        figures = [r.f, r.f_mp4, None if r.f is None else r.f - r.f_mp4, *(r.similarity or (None, None))]
        cells = ["" if figure is None else f"{figure:.4f}" for figure in figures]
        table.add_row(r.name, *cells, "yes" if r.is_right else "NO", f"{r.seconds:.0f}", "\n".join(r.said))
    return table


def main() -> None:
    """Prints a table of the kinds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help="only these kinds")
    parser.add_argument("--seconds", type=int, default=10_000, help="only so much of the episode")
    parser.add_argument("--json", type=Path, help="write the results there as well")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - KINDS.keys():
        parser.error(f"no kind {', '.join(sorted(unknown))}; there are: {', '.join(KINDS)}")
    data = first_frames((SHARED / "data" / "videos" / EP / "episode.mp4").read_bytes(), arguments.seconds * FPS)
    n_frames = sum(1 for _ in read_packets(data))
    results = []
    with tempfile.TemporaryDirectory() as scratch:

        @cache
        def mp4(start: int) -> Run:
            done = run_kind(Path(scratch) / f"mp4-{start}", Kind(lambda d: d), data, range(start, n_frames))
            assert done.report is not None, done.message
            return done

        for name in arguments.names or KINDS:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                results.append(judge(name, Path(folder), data, n_frames, mp4))
            print(name, "is right" if results[-1].is_right else "IS NOT RIGHT", flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps([asdict(r) for r in results], indent=1))
    Console(width=230).print(build_table(results))


if __name__ == "__main__":
    main()
