"""Cases about the pass over the pixels: embed, peer loop, decode, sparse, memory."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import read_episode
from cleanup.edges.local_workers import LocalEngine
from cleanup.edges.model_files import find_model_files
from cleanup.edges.observation_worker import ObservationWorker
from cleanup.edges.onnx_models import FaceModels, FaceRecogniser, ModelSpec, load_models
from cleanup.edges.root_path import RootPath
from cleanup.edges.video_frames import VideoFrames
from cleanup.edges.video_index import build_index, count_frames
from cleanup.entrypoints.run_tools import build_engine, worker_spec
from cleanup.interfaces import VideoSource
from cleanup.phases.observe import attach_detections, plan_observations
from cleanup.progress import ignore_items
from cleanup.resolve_settings import ResolvedSettings, resolve_for_run
from tests.bench.speed.episodes import SOURCE_EP, repeat_episode
from tests.bench.speed.measure import CLEANUP, Row, Side, run_command, run_side, take_turns
from tests.conftest import SHARED

_MODELS = SHARED / "models"
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_MIN_COSINE = 0.999
_HOUR_MINUTES, _SHORT_MINUTES = 60, 15
_FACES_PER_TURN = 667  # of the two minutes that are repeated


def _resolve(profile: str) -> ResolvedSettings:
    return resolve_for_run({"models": str(_MODELS), "engine": "local"}, profile, None)


def _plan(root: Path, ep_id: str, settings: ResolvedSettings) -> tuple[VideoSource, list[pa.Table]]:
    """The episode's video and the shards of its pass."""
    paths = EpisodePaths(RootPath(root), ep_id)
    observe = settings.settings.observe
    episode = attach_detections(read_episode(paths), observe)
    with VideoFrames(paths.video.system_path) as video:
        info = video.info
    return VideoSource(str(paths.video)), plan_observations(
        episode, observe, info.width, info.height, info.fps
    ).tables()


def _observe(root: Path, ep_id: str, profile: str) -> dict[str, Any]:
    """Our pass: decode, align, measure, embed; models loaded before."""
    settings = _resolve(profile)
    video, shards = _plan(root, ep_id, settings)
    engine = build_engine(settings)
    assert isinstance(engine, LocalEngine)
    engine.describe_models()
    started = time.perf_counter()
    results = engine.observe(ep_id, video, shards, ignore_items)
    seconds = time.perf_counter() - started
    engine.close()
    tables = [result.observations for result in results]
    seen = schemas.merge_observations([t for t in tables if t is not None])
    seen = seen.filter(seen["embedding"].is_valid())
    keys = list(zip(seen["track_id"].to_pylist(), seen["frame_idx"].to_pylist(), strict=True))
    n_decoded = sum(schemas.read_provenance(t).n_frames for t in tables if t is not None)
    return {
        "seconds": seconds, "keys": keys, "embeddings": schemas.embeddings_of(seen), "n_decoded": n_decoded
    }  # fmt: skip


def _run_bare_model(crops: NDArray[np.uint8]) -> dict[str, Any]:
    """The recogniser as people run it, on crops that are ready: ONNX Runtime's defaults, every batch size."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(find_model_files(_MODELS).recogniser), providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    blobs = ((crops.transpose(0, 3, 1, 2).astype(np.float32)) - 127.5) / 127.5
    seconds = {}
    for batch in _BATCHES:
        session.run(None, {name: blobs[:batch]})
        started = time.perf_counter()
        for i in range(0, len(blobs), batch):
            session.run(None, {name: blobs[i : i + batch]})
        seconds[batch] = time.perf_counter() - started
    best_batch = min(seconds, key=seconds.__getitem__)
    return {"seconds": seconds[best_batch], "batch": best_batch}


def _cut_crops(profile: str, n_crops: int) -> dict[str, Any]:
    """Aligned crops of an episode."""
    from cleanup.algorithms.face_alignment import estimate_similarity

    started = time.perf_counter()
    video, shards = _plan(SHARED / "data", SOURCE_EP, _resolve(profile))
    samples = pa.concat_tables(shards)
    samples = samples.filter(samples["is_sampled"]).slice(0, n_crops)
    matrices = estimate_similarity(schemas.matrix_of(samples["landmarks"], 10).reshape(-1, 5, 2))
    frames = schemas.ints_of(samples, "frame_idx")
    crops = []
    with VideoFrames(video.location) as opened:
        for frame_idx, frame in opened.read(np.unique(frames).tolist()):
            assert frame is not None
            crops += [frame.align_face(matrix) for matrix in matrices[frames == frame_idx]]
    return {"seconds": time.perf_counter() - started, "crops": np.stack(crops)}


def embed(_folder: Path) -> list[Row]:
    """Observations per second against the bare model on ready-made crops."""
    crops = run_side(_cut_crops, "balanced", 512).values["crops"]
    ours, bare = take_turns(
        3,
        lambda: run_side(_observe, SHARED / "data", SOURCE_EP, "balanced"),
        lambda: run_side(_run_bare_model, crops),
    )
    speed, limit = len(ours.values["keys"]) / ours.seconds, len(crops) / bare.seconds
    return [
        Row(
            "embed", f"{speed:.0f} faces/s", f"{limit:.0f} faces/s, batch {bare.values['batch']}", speed / limit,
            ">= 0.90", speed / limit >= 0.9, (ours.peak_mib, bare.peak_mib), "bare ONNX Runtime on ready-made crops",
        )
    ]  # fmt: skip


def _run_peer_loop() -> dict[str, Any]:
    """InsightFace's own way: OpenCV reads, the detector looks at each sampled frame, faces are embedded one by one."""
    import cv2
    from insightface.app.common import Face
    from insightface.model_zoo import model_zoo

    video, shards = _plan(SHARED / "data", SOURCE_EP, _resolve("balanced"))
    files = find_model_files(_MODELS)
    assert files.detector is not None
    detector, recogniser = (model_zoo.get_model(str(f), providers=["CPUExecutionProvider"]) for f in (files.detector, files.recogniser))  # fmt: skip
    detector.prepare(-1, input_size=(640, 640), det_thresh=0.5)
    recogniser.prepare(-1)
    samples = pa.concat_tables(shards)
    samples = samples.filter(samples["is_sampled"])
    wanted: dict[int, list[tuple[int, NDArray[np.float64]]]] = defaultdict(list)
    boxes = schemas.matrix_of(samples["bbox"], 4)
    for track, frame, box in zip(samples["track_id"].to_pylist(), samples["frame_idx"].to_pylist(), boxes, strict=True):
        wanted[frame].append((track, box))
    keys, embeddings = [], []
    started = time.perf_counter()
    capture = cv2.VideoCapture(video)
    for frame_idx in range(max(wanted) + 1):
        if not capture.grab():
            break
        if frame_idx not in wanted:
            continue
        image = capture.retrieve()[1]
        found, landmarks = detector.detect(image)
        for track, box in wanted[frame_idx]:
            if len(found) == 0:
                continue
            nearest = int(np.abs(found[:, :4] - box).sum(axis=1).argmin())
            face = Face(bbox=found[nearest, :4], kps=landmarks[nearest])
            keys.append((track, frame_idx))
            embeddings.append(recogniser.get(image, face))
    seconds = time.perf_counter() - started
    rows = np.stack(embeddings)
    return {"seconds": seconds, "keys": keys, "embeddings": rows / np.linalg.norm(rows, axis=1, keepdims=True)}


def peer_loop(_folder: Path) -> list[Row]:
    """Against InsightFace's own way of doing the same."""
    ours, peer = take_turns(
        3, lambda: run_side(_observe, SHARED / "data", SOURCE_EP, "balanced"), lambda: run_side(_run_peer_loop)
    )
    place = {key: i for i, key in enumerate(ours.values["keys"])}
    common = [(place[key], i) for i, key in enumerate(peer.values["keys"]) if key in place]
    a, b = (np.array(side) for side in zip(*common, strict=True))
    cosines = (ours.values["embeddings"][a] * peer.values["embeddings"][b]).sum(axis=1)
    speed, other = len(ours.values["keys"]) / ours.seconds, len(peer.values["keys"]) / peer.seconds
    is_same = float((cosines >= _MIN_COSINE).mean())
    return [
        Row(
            "peer loop", f"{speed:.0f} faces/s", f"{other:.0f} faces/s", speed / other, ">= 3",
            bool(speed / other >= 3 and np.median(cosines) >= _MIN_COSINE), (ours.peak_mib, peer.peak_mib),
            f"InsightFace + OpenCV; {len(common)} faces of both, cosine >= {_MIN_COSINE} for {is_same:.1%} of them, "
            f"median {np.median(cosines):.5f}, least {cosines.min():.5f}",
        )
    ]  # fmt: skip


class _NoRecogniser(FaceRecogniser):
    """Costs nothing, so that what is left is decoding, cutting out and measuring."""

    def embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        embeddings = np.zeros((len(crops), self.dimension), np.float32)
        embeddings[:, 0] = 1
        return embeddings


def _load_nothing(spec: ModelSpec) -> FaceModels:
    models = load_models(spec)
    models.recogniser.__class__ = _NoRecogniser
    return FaceModels(models.recogniser, None)


def _decode(root: Path, ep_id: str, profile: str) -> dict[str, Any]:
    settings = _resolve(profile)
    video, shards = _plan(root, ep_id, settings)
    worker = ObservationWorker(worker_spec(settings), _load_nothing)
    started = time.perf_counter()
    tables = [worker.observe(video, shard) for shard in shards]
    seconds = time.perf_counter() - started
    worker.close()
    frames = {f for t in tables for f in t["frame_idx"].to_pylist()}
    return {"seconds": seconds, "n_frames": len(frames), "last": max(frames)}


def _decode_bare(video: Path, last: int) -> dict[str, Any]:
    """PyAV with threads, every frame up to the last one, nothing done with them."""
    started = time.perf_counter()
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        n_frames = 0
        for _ in container.decode(stream):
            n_frames += 1
            if n_frames > last:
                break
    return {"seconds": time.perf_counter() - started, "n_frames": n_frames}


def decode(_folder: Path) -> list[Row]:
    """The pass with models that cost nothing against decoding the same stretch and throwing it away."""
    root = SHARED / "data"
    last = run_side(_decode, root, SOURCE_EP, "balanced").values["last"]
    video = EpisodePaths(RootPath(root), SOURCE_EP).video.system_path
    ours, bare = take_turns(
        7, lambda: run_side(_decode, root, SOURCE_EP, "balanced"), lambda: run_side(_decode_bare, video, last)
    )
    n = ours.values["n_frames"]
    return [
        Row(
            "decode", f"{n / ours.seconds:.0f} frames/s", f"{n / bare.seconds:.0f} frames/s",
            bare.seconds / ours.seconds, ">= 0.85", bare.seconds / ours.seconds >= 0.85,
            (ours.peak_mib, bare.peak_mib),
            f"{n} needed frames of {last + 1}; bare threaded PyAV decodes all and makes no crop of them",
        )
    ]  # fmt: skip


def _count(video: Path) -> dict[str, Any]:
    """Which packet makes which frame, by decoding all of them."""
    n_packets = len(build_index(video).size)
    started = time.perf_counter()
    count = count_frames(video, 0, n_packets)
    return {"seconds": time.perf_counter() - started, "n_frames": len(count.packet_of_frame)}


def count(_folder: Path) -> list[Row]:
    """The pass that counts frames where times do not tell their order, against bare decoding."""
    video = EpisodePaths(RootPath(SHARED / "data"), SOURCE_EP).video.system_path
    ours, bare = take_turns(7, lambda: run_side(_count, video), lambda: run_side(_decode_bare, video, 10**9))
    ratio = ours.seconds / bare.seconds
    return [
        Row(
            "count", f"{ours.seconds:.1f} s", f"{bare.seconds:.1f} s", ratio, "<= 1.1", ratio <= 1.1,
            (ours.peak_mib, bare.peak_mib), f"{ours.values['n_frames']} frames; bare threaded PyAV decodes all",
        )
    ]  # fmt: skip


def sparse(folder: Path) -> list[Row]:
    """Profile low_power where few frames are needed against decoding everything; models cost nothing, as in decode."""
    root = repeat_episode(folder / "sparse", "sparse-s01e01", 8, 130)
    video = EpisodePaths(RootPath(root), "sparse-s01e01").video.system_path
    ours, bare = take_turns(
        3,
        lambda: run_side(_decode, root, "sparse-s01e01", "low_power"),
        lambda: run_side(_decode_bare, video, 10**9),
    )
    ratio, n_needed, n_all = bare.seconds / ours.seconds, ours.values["n_frames"], bare.values["n_frames"]
    return [
        Row(
            "sparse", f"{ours.seconds:.1f} s", f"{bare.seconds:.1f} s", ratio, ">= 2", ratio >= 2,
            (ours.peak_mib, bare.peak_mib),
            f"{n_needed / n_all:.1%} of {n_all} frames needed, in stretches; bare threaded PyAV decodes all",
        )
    ]  # fmt: skip


def memory(folder: Path) -> list[Row]:
    """Peak memory of a whole run over an hour: how it grows with faces, and whether with the length of the video."""
    sides: dict[tuple[int, int], Side] = {}
    few, many = (_FACES_PER_TURN * (minutes // 2) for minutes in (_SHORT_MINUTES, _HOUR_MINUTES))
    for minutes, n_faces in ((_SHORT_MINUTES, few), (_HOUR_MINUTES, few), (_HOUR_MINUTES, many)):
        n_turns = minutes // 2
        ep_id = f"long{minutes}x{n_faces}-s01e01"
        root = repeat_episode(folder / ep_id, ep_id, n_turns, n_faces // n_turns)
        command = [CLEANUP, "run", "--ep-id", ep_id, "--out-root", str(root), "--models", str(_MODELS), "-q"]
        sides[minutes, n_faces] = run_command([*command, "--write-back", "--no-resume"])
    short, long, full = sides.values()
    return [
        Row(
            "memory", f"{full.peak_mib:.0f} MiB", "2048 MiB", full.peak_mib / 2048, "< 1", full.peak_mib < 2048,
            (full.peak_mib, short.peak_mib),
            f"cleanup run, 1 hour, {many} faces, {full.seconds:.0f} s; 15 minutes, {few} faces: {short.peak_mib:.0f} MiB",
        ),
        Row(
            "memory, length", f"{long.peak_mib:.0f} MiB", f"{short.peak_mib:.0f} MiB", long.peak_mib / short.peak_mib,
            "<= 1.1", long.peak_mib <= 1.1 * short.peak_mib, (long.peak_mib, short.peak_mib),
            f"{few} faces in 1 hour; the same number in 15 minutes",
        ),
    ]  # fmt: skip
