"""``cleanup demo``: a drawn episode with planted faults, cleaned up by the product's own commands.

Faces are drawn, the embedder is a tiny ONNX file computed here and good for drawn faces only, landmarks are known from
drawing. What the raw artifacts hold is what a naive tracker would have written: tracks that run on over cuts, faces
embedded while blurred, one person in many clusters, nobody named.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cleanup.algorithms.face_alignment import ARCFACE_TEMPLATE, CROP_SIZE, estimate_similarity
from cleanup.edges.onnx_models import FaceRecogniser
from cleanup.entrypoints.terminal import say
from cleanup.errors import SettingsError

EP_ID = "demo-s01e01"
MODEL_NAME = "demo_only_drawn_faces"
_WIDTH, _HEIGHT, _FPS = 640, 360, 24
_N_SHOTS, _SHOT_FRAMES = 14, 48
_N_PEOPLE, _N_SEEDED = 5, 4
_NAMES = ("actor-1", "actor-2", "actor-3", "actor-4", "actor-5")
_DIMENSION = 64
_POOL = 8
_BLUR_FRAMES = 8


@dataclass(frozen=True)
class _Look:
    """How a drawn person looks; colours RGB 0..255, shapes as fractions."""

    skin: tuple[int, int, int]
    hair: tuple[int, int, int]
    eyes: tuple[int, int, int]
    mouth: tuple[int, int, int]
    shirt: tuple[int, int, int]
    hair_height: float
    beard: float


def run_demo(folder: Path, seed: int) -> None:
    """Makes the demo's data root, enrols seeds, runs all phases with write-back and says where the files are.

    Raises:
        SettingsError: The folder exists and was not made by the demo.
    """
    from cleanup.entrypoints.cli import app

    marker = folder / "DEMO"
    if folder.exists() and not marker.exists():
        raise SettingsError(f"{folder}: exists and was not made by the demo; give another --out-root")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    marker.write_text("Made by cleanup demo; made anew at each call.\n")
    say(f"Drawing a {_N_SHOTS * _SHOT_FRAMES / _FPS:.0f} s episode and its raw artifacts under {folder}")
    draw_episode(folder, seed)
    models, seeds = folder / "models", folder / "seed_photos"
    shared = ["--out-root", str(folder), "--models", str(models), "--device", "cpu"]
    for arguments in (
        ["facebank", "enroll", "--show", "demo", "--aligned", *shared, str(seeds)],
        ["run", "--ep-id", EP_ID, "--profile", "balanced", "--write-back", "--save-crops", *shared],
    ):
        say("")
        say(f"$ cleanup {' '.join(arguments)}")
        app(arguments, standalone_mode=False)
    say("")
    say(f"{_N_SEEDED} of {_N_PEOPLE} people have a seed; {_NAMES[-1]} has none and stays unnamed.")
    say(f"pictures of every track: {folder / 'frames' / EP_ID / 'thumbs'}")


def draw_episode(folder: Path, seed: int) -> None:
    """Draws an episode into a data root: its video, raw artifacts in the emitted dialect, models and seed photos.

    Args:
        folder: An existing data root; ``models`` and ``seed_photos`` are made in it as well.
        seed: Decides cast, shots and movements.
    """
    rng = np.random.default_rng(seed)
    models, seeds = folder / "models", folder / "seed_photos"
    models.mkdir()
    write_embedder(models / f"{MODEL_NAME}.onnx", rng)
    recogniser = FaceRecogniser(models / f"{MODEL_NAME}.onnx", "cpu")
    cast = _choose_cast(recogniser, rng)
    faces = _render_video(folder / "videos" / EP_ID / "episode.mp4", cast, rng)
    _write_artifacts(folder, faces, recogniser)
    for name, look in list(zip(_NAMES, cast, strict=True))[:_N_SEEDED]:
        (seeds / name).mkdir(parents=True)
        crop = _draw_aligned(look, rng)
        cv2.imwrite(str(seeds / name / "seed1.png"), cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))


def _random_look(rng: np.random.Generator) -> _Look:
    def colour(low: int = 20, high: int = 235) -> tuple[int, int, int]:
        r, g, b = rng.integers(low, high, 3).tolist()
        return (r, g, b)

    tone = float(rng.uniform(0.35, 1.0))
    skin = (int(245 * tone), int(205 * tone * rng.uniform(0.85, 1.0)), int(170 * tone * rng.uniform(0.7, 1.1)))
    return _Look(
        skin, colour(), colour(), colour(60, 220), colour(), float(rng.uniform(0.1, 0.5)), float(rng.uniform())
    )


def _draw_face(look: _Look, matrix: NDArray[np.float64], canvas: NDArray[np.uint8]) -> None:
    """Draws a face into a picture; ``matrix`` (2, 3) maps the 112x112 template into it."""

    def at(x: float, y: float) -> tuple[int, int]:
        px, py = matrix @ np.array([x, y, 1.0])
        return round(float(px)), round(float(py))

    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))

    def radius(value: float) -> int:
        return max(round(value * scale), 1)

    cv2.ellipse(canvas, at(56, 140), (radius(62), radius(40)), 0, 0, 360, look.shirt, -1, cv2.LINE_AA)
    cv2.ellipse(canvas, at(56, 62), (radius(50), radius(60)), 0, 0, 360, look.hair, -1, cv2.LINE_AA)
    top = 22 + 30 * look.hair_height
    cv2.ellipse(canvas, at(56, top + 48), (radius(42), radius(52)), 0, 0, 360, look.skin, -1, cv2.LINE_AA)
    if look.beard > 0.5:
        cv2.ellipse(canvas, at(56, 92), (radius(34), radius(24)), 0, 0, 360, look.hair, -1, cv2.LINE_AA)
    left, right, nose, mouth_left, mouth_right = ARCFACE_TEMPLATE
    for x, y in (left, right):
        cv2.ellipse(canvas, at(x, y), (radius(9), radius(6)), 0, 0, 360, (250, 250, 250), -1, cv2.LINE_AA)
        cv2.circle(canvas, at(x, y), radius(5), look.eyes, -1, cv2.LINE_AA)
        cv2.line(canvas, at(x - 9, y - 11), at(x + 9, y - 12), look.hair, radius(3), cv2.LINE_AA)
    cv2.line(
        canvas, at(nose[0], nose[1] - 14), at(*nose), tuple(int(c * 0.75) for c in look.skin), radius(3), cv2.LINE_AA
    )
    cv2.line(canvas, at(*mouth_left), at(*mouth_right), look.mouth, radius(6), cv2.LINE_AA)


def _draw_aligned(look: _Look, rng: np.random.Generator) -> NDArray[np.uint8]:
    """An aligned crop with a little jitter, as alignment of a real face has."""
    canvas = np.full((CROP_SIZE, CROP_SIZE, 3), rng.integers(60, 190, 3), np.uint8)
    matrix = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    matrix[:, 2] = rng.normal(0, 1.0, 2)
    _draw_face(look, matrix, canvas)
    return cv2.add(canvas, rng.normal(0, 3, canvas.shape).astype(np.int8), dtype=cv2.CV_8U)


def _pooled(crops: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What the embedder sees before its matrix: mean colours of 8x8 blocks, normalised as InsightFace feeds them."""
    x = (crops.transpose(0, 3, 1, 2).astype(np.float64) - 127.5) / 127.5
    n, c, h, w = x.shape
    return x.reshape(n, c, h // _POOL, _POOL, w // _POOL, _POOL).mean(axis=(3, 5)).reshape(n, -1)


def write_embedder(path: Path, rng: np.random.Generator) -> None:
    """Linear discriminant analysis of drawn people on pooled colours, written as an ONNX graph.

    Directions in which people differ are kept, scaled down by how much drawings of one person differ in them.
    """
    looks = [_random_look(rng) for _ in range(150)]
    samples = np.stack([[_pooled(_draw_aligned(look, rng)[None])[0] for _ in range(3)] for look in looks])
    means = samples.mean(axis=1)
    within = (samples - means[:, None]).reshape(-1, samples.shape[-1])
    mean = means.mean(axis=0)
    _, _, directions = np.linalg.svd(means - mean, full_matrices=False)
    directions = directions[:_DIMENSION]
    between = ((means - mean) @ directions.T).std(axis=0)
    noise = (within @ directions.T).std(axis=0)
    weights = directions / np.sqrt(between**2 + 25 * noise**2)[:, None]
    graph = helper.make_graph(
        [
            helper.make_node("AveragePool", ["crop"], ["pooled"], kernel_shape=[_POOL] * 2, strides=[_POOL] * 2),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weights", "bias"], ["embedding"], transB=1),
        ],
        MODEL_NAME,
        [helper.make_tensor_value_info("crop", TensorProto.FLOAT, ["batch", 3, CROP_SIZE, CROP_SIZE])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", _DIMENSION])],
        [
            numpy_helper.from_array(weights.astype(np.float32), "weights"),
            numpy_helper.from_array((-weights @ mean).astype(np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _choose_cast(recogniser: FaceRecogniser, rng: np.random.Generator) -> list[_Look]:
    """People who do not look alike, as a casting director would choose them."""
    cast: list[_Look] = []
    vectors: list[NDArray[np.float32]] = []
    while len(cast) < _N_PEOPLE:
        look = _random_look(rng)
        vector = recogniser.embed(_draw_aligned(look, rng)[None])[0]
        vector /= np.linalg.norm(vector)
        if all(float(vector @ other) < 0.15 for other in vectors):
            cast.append(look)
            vectors.append(vector)
    return cast


@dataclass
class _DrawnFace:
    """A face in a frame: where it is, who it is, in which of two places on the screen, and its crop as filmed."""

    frame_idx: int
    place: int
    landmarks: NDArray[np.float64]
    bbox: list[float]
    is_blurred: bool
    crop: NDArray[np.uint8] | None = None


def _render_video(path: Path, cast: list[_Look], rng: np.random.Generator) -> list[_DrawnFace]:
    """Renders shots of two people each with pans and bursts of blur into an H.264 file with B-frames."""
    path.parent.mkdir(parents=True)
    faces: list[_DrawnFace] = []
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=_FPS, options={"bf": "2", "crf": "20", "threads": "2"})
        stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
        stream.time_base = Fraction(1, _FPS)
        for shot in range(_N_SHOTS):
            pair = rng.choice(len(cast), 2, replace=False)
            background = rng.integers(30, 200, (6, 8, 3)).astype(np.uint8)
            canvas = cv2.resize(background, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC)
            drift, size = rng.uniform(-0.6, 0.6, (2, 2)), rng.uniform(1.0, 1.35, 2)
            blur_start = int(rng.integers(8, _SHOT_FRAMES - _BLUR_FRAMES - 8)) if shot % 3 == 1 else None
            for t in range(_SHOT_FRAMES):
                image = canvas.copy()
                is_blurred = blur_start is not None and 0 <= t - blur_start < _BLUR_FRAMES
                drawn = [_place_face(cast[p], i, t, drift[i], size[i], image) for i, p in enumerate(pair)]
                if is_blurred:
                    image = cv2.blur(image, (25, 25))
                image = cv2.add(image, rng.normal(0, 2, image.shape).astype(np.int8), dtype=cv2.CV_8U)
                frame_idx = shot * _SHOT_FRAMES + t
                for i, (landmarks, bbox) in enumerate(drawn):
                    faces.append(_DrawnFace(frame_idx, i, landmarks, bbox, is_blurred))
                    matrix = estimate_similarity(landmarks[None])[0]
                    faces[-1].crop = cv2.warpAffine(image, matrix, (CROP_SIZE, CROP_SIZE))
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts = frame_idx
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return faces


def _place_face(
    look: _Look, place: int, t: int, drift: NDArray[np.float64], size: float, image: NDArray[np.uint8]
) -> tuple[NDArray[np.float64], list[float]]:
    """Draws a face at one of two places; returns landmarks (5, 2) and the box as a detector would give it."""
    centre = np.array([170.0 + 300.0 * place, 185.0]) + drift * t
    matrix = np.array([[size, 0.0, 0.0], [0.0, size, 0.0]])
    matrix[:, 2] = centre - size * np.array([56.0, 66.0])
    _draw_face(look, matrix, image)
    landmarks = ARCFACE_TEMPLATE @ matrix[:, :2].T + matrix[:, 2]
    corners = np.array([[22.0, 16.0], [90.0, 112.0]]) @ matrix[:, :2].T + matrix[:, 2]
    return landmarks, corners.ravel().round(2).tolist()


def _write_artifacts(folder: Path, faces: list[_DrawnFace], recogniser: FaceRecogniser) -> None:
    """What a naive pass writes: one track per place on the screen, over cuts; every sixth frame embedded."""
    manifests = folder / "manifests" / EP_ID
    manifests.mkdir(parents=True)
    (folder / "embeds" / EP_ID).mkdir(parents=True)
    by_track: dict[int, list[_DrawnFace]] = {}
    for face in faces:
        shot = face.frame_idx // _SHOT_FRAMES
        # Every other pair of shots is run together: the tracker knows nothing of cuts.
        by_track.setdefault((shot // 2 * 2 if shot // 2 % 2 == 0 else shot) * 2 + face.place, []).append(face)
    tracks: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    vectors: list[NDArray[np.float32]] = []
    for track_id, key in enumerate(sorted(by_track), start=1):
        members = by_track[key]
        tracks.append(_track_record(track_id, members))
        for face in members:
            if face.frame_idx % 6 == 0 and face.crop is not None:
                vector = recogniser.embed(face.crop[None])[0]
                vectors.append((vector / np.linalg.norm(vector)).astype(np.float32))
                lines.append(_face_record(track_id, face, vectors[-1]))
    identities = [
        {"identity_id": f"id_{t['track_id']:04d}", "label": None, "track_ids": [t["track_id"]],
         "size": sum(r["track_id"] == t["track_id"] for r in lines)}
        for t in tracks
    ]  # fmt: skip
    document = {
        "ep_id": EP_ID,
        "pipeline_ver": "demo",
        "config": {"cluster_thresh": 0.9, "min_cluster_size": 1, "min_identity_sim": 0.0},
        "stats": {"faces": len(lines), "clusters": len(identities)},
        "identities": identities,
    }
    for name, records in (("tracks.jsonl", tracks), ("faces.jsonl", lines)):
        (manifests / name).write_text("".join(json.dumps(r) + "\n" for r in records))
    (manifests / "identities.json").write_text(json.dumps(document, indent=1))
    np.save(folder / "embeds" / EP_ID / "faces.npy", np.stack(vectors))


def _confidence(face: _DrawnFace) -> float:
    return 0.62 if face.is_blurred else 0.88


def _track_record(track_id: int, members: list[_DrawnFace]) -> dict[str, Any]:
    first, last = members[0].frame_idx, members[-1].frame_idx
    return {
        "track_id": track_id,
        "class": "face",
        "first_ts": round(first / _FPS, 4),
        "last_ts": round(last / _FPS, 4),
        "frame_count": len(members),
        "first_frame_idx": first,
        "last_frame_idx": last,
        "bboxes_sampled": [
            {
                "frame_idx": f.frame_idx,
                "ts": round(f.frame_idx / _FPS, 4),
                "bbox_xyxy": f.bbox,
                "landmarks": f.landmarks.ravel().round(2).tolist(),
                "conf": _confidence(f),
            }
            for f in members
        ],
        "pipeline_ver": "demo",
    }


def _face_record(track_id: int, face: _DrawnFace, vector: NDArray[np.float32]) -> dict[str, Any]:
    return {
        "ep_id": EP_ID,
        "face_id": f"face_{track_id:04d}_{face.frame_idx:06d}",
        "track_id": track_id,
        "frame_idx": face.frame_idx,
        "ts": round(face.frame_idx / _FPS, 4),
        "bbox_xyxy": face.bbox,
        "conf": _confidence(face),
        "quality": _confidence(face),
        "embedding": [round(float(v), 6) for v in vector],
        "embedding_model": MODEL_NAME,
        "detector": "drawn",
        "pipeline_ver": "demo",
        "landmarks": face.landmarks.ravel().round(2).tolist(),
    }
