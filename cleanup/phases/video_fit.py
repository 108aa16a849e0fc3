"""Is this the video that the artifacts were made from, and how do they count in it?

Some faces are looked at where the artifacts say they are, and in the frames around: their embeddings, or where a
detector finds them, tell whether frame numbers are shifted and in which picture the boxes lie. Faces that move and
faces at the ends of tracks tell it best; half of each are taken, from all parts of the episode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.episode import Episode
from cleanup.interfaces import VideoInfo
from cleanup.phases.track_samples import group_rows

# Parts of the episode that are judged by themselves, because frames may be missing in the middle; faces of each.
N_PARTS = 3
_FACES_PER_PART = 8
# Shifts that are tried at first, and all that are tried where these do not settle it (frames).
NEAR_SHIFTS = range(-2, 3)
ALL_SHIFTS = range(-50, 51)
# Those by which places are searched, and what is tried around the best of them.
COARSE_SHIFTS, FINE_STEPS = range(-50, 51, 5), range(-4, 5)
# Boxes of a track this far apart tell how fast it moves (frames).
_MOTION_FRAMES = 12
# A frame at this distance from the end of its track may lie at a cut (frames).
_END_FRAMES = 2
# Odds against a shift or a view being better by chance, over all faces and in one part.
_MAX_CHANCE, _MAX_PART_CHANCE = 1e-3, 0.01
# Difference of two costs that says nothing, and the share of its cost that a better way may have at most.
_MIN_GAIN, _MAX_SHARE = 1e-3, 0.8
# Mean cost up to which faces are where they should be: similarity above 0.9, or found within a tenth of their size.
MAX_COST = 0.1
# Cost of a face that is not there.
_LOST = 1.0


@dataclass(frozen=True)
class Probes:
    """Faces of the artifacts that are looked at; arrays have one entry per face.

    Attributes:
        frames: Frame of each, as the artifacts count, shape (n,).
        boxes: Shape (n, 4), as the artifacts count: in pixels, or as shares of the picture.
        landmarks: Shape (n, 10), likewise; NaN where the artifacts have none.
        embeddings: Unit rows of the artifacts, shape (n, d).
        parts: Part of the episode each is in, 0 to ``N_PARTS - 1``, shape (n,).
    """

    frames: NDArray[np.int64]
    boxes: NDArray[np.float64]
    landmarks: NDArray[np.float64]
    embeddings: NDArray[np.float32]
    parts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.frames)


def choose_probes(episode: Episode) -> Probes:
    """Picks the faces that tell a shift best; none where the artifacts have no faces with embeddings."""
    faces = episode.embedded_faces
    frames, tracks = schemas.ints_of(faces, "frame_idx"), schemas.ints_of(faces, "track_id")
    quality = np.nan_to_num(schemas.floats_of(faces, "quality"))
    motion, end_distance = _measure_motion(episode, tracks, frames)
    span = int(frames.max(initial=0)) + 1
    parts = frames * N_PARTS // span
    chosen: list[int] = []
    for part in range(N_PARTS):
        inside = np.flatnonzero(parts == part)
        clear = inside[quality[inside] >= np.median(quality[inside])] if len(inside) else inside
        moving = clear[np.argsort(-motion[clear], kind="stable")]
        ends = clear[end_distance[clear] <= _END_FRAMES]
        picked = _pick(moving, tracks, _FACES_PER_PART // 2, set())
        picked += _pick(ends, tracks, _FACES_PER_PART - len(picked), {int(tracks[i]) for i in picked})
        picked += [int(i) for i in moving if i not in picked][: _FACES_PER_PART - len(picked)]
        chosen += sorted(picked)
    rows = faces.take(pa.array(chosen, pa.int64()))
    return Probes(
        frames[chosen],
        schemas.matrix_of(rows["bbox"], 4),
        schemas.matrix_of(rows["landmarks"], 10),
        schemas.embeddings_of(rows),
        parts[chosen],
    )


def _pick(rows: NDArray[np.intp], tracks: NDArray[np.int64], n_wanted: int, used: set[int]) -> list[int]:
    """The first rows of as many tracks."""
    picked: list[int] = []
    for row in rows.tolist():
        if len(picked) < n_wanted and int(tracks[row]) not in used:
            used.add(int(tracks[row]))
            picked.append(row)
    return picked


def _measure_motion(
    episode: Episode, tracks: NDArray[np.int64], frames: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Of each face: how far it moves per frame, as a share of its size, and frames to the nearer end of its track."""
    box_tracks, box_frames = schemas.ints_of(episode.boxes, "track_id"), schemas.ints_of(episode.boxes, "frame_idx")
    corners = schemas.matrix_of(episode.boxes["bbox"], 4)
    centres, sizes = (corners[:, :2] + corners[:, 2:]) / 2, np.sqrt((corners[:, 2:] - corners[:, :2]).prod(axis=1))
    rows_of = {}
    for track, rows in group_rows(box_tracks):
        rows_of[track] = rows[np.argsort(box_frames[rows], kind="stable")]
    motion, distance = np.zeros(len(frames)), np.zeros(len(frames), np.int64)
    for i, (track, frame) in enumerate(zip(tracks.tolist(), frames.tolist(), strict=True)):
        rows = rows_of[track]
        own = box_frames[rows]
        first, last = np.searchsorted(own, [frame - _MOTION_FRAMES, frame + _MOTION_FRAMES + 1])
        a, b = rows[first], rows[min(last, len(rows)) - 1]
        steps = max(int(box_frames[b] - box_frames[a]), 1)
        motion[i] = float(np.hypot(*(centres[b] - centres[a]))) / steps / max(float(sizes[a]), 1e-9)
        distance[i] = min(frame - int(own[0]), int(own[-1]) - frame)
    return motion, distance


def build_table(
    probes: Probes, video: VideoInfo, shifts: Sequence[int], *, is_detected: bool, is_normalised: bool
) -> pa.Table:
    """A SAMPLE_SCHEMA table that looks at every face in the frames around its own.

    Args:
        probes: The faces; face i at shift number k is track ``i * len(shifts) + k``.
        video: In the view that is tried.
        shifts: Frames to look at, relative to each face's own.
        is_detected: Whether faces are to be found by the detector; else they are where the artifacts' landmarks are.
        is_normalised: Whether boxes are shares of the picture.
    """
    scale = np.array([video.width, video.height], np.float64) if is_normalised else np.ones(2)
    n_shifts = len(shifts)
    faces, places = np.repeat(np.arange(len(probes)), n_shifts), np.tile(np.arange(n_shifts), len(probes))
    frames = probes.frames[faces] + np.array(shifts)[places]
    in_video = frames + video.source.view.frame_shift
    is_there = (in_video >= 0) & (in_video < video.n_frames)
    faces, places, frames = faces[is_there], places[is_there], frames[is_there]
    landmarks = probes.landmarks[faces] * np.tile(scale, 5)
    ids = faces * n_shifts + places
    return pa.table(
        {
            "lineage_id": ids,
            "track_id": ids,
            "frame_idx": frames,
            "bbox": schemas.list_column(probes.boxes[faces] * np.tile(scale, 2), schemas.BBOX),
            "landmarks": schemas.list_column(landmarks * np.nan if is_detected else landmarks, schemas.LANDMARKS),
            "confidence": pa.nulls(len(ids), pa.float64()),
            "is_sampled": np.ones(len(ids), bool),
        },
        schema=schemas.SAMPLE_SCHEMA,
    )


def measure_costs(
    probes: Probes, video: VideoInfo, n_shifts: int, observations: pa.Table, *, is_detected: bool, is_normalised: bool
) -> NDArray[np.float64]:
    """How far each face is from what the artifacts say, at each shift; shape (n, n_shifts).

    0 is what they say, ``_LOST`` is somebody or something else; 1 - cosine of the embeddings or, of faces found by the
    detector, the distance from where they should be as a share of their size.
    """
    costs = np.full((len(probes), n_shifts), np.nan)
    ids = schemas.ints_of(observations, "track_id")
    faces, places = ids // n_shifts, ids % n_shifts
    if not is_detected:
        is_seen = pc.is_valid(observations["embedding"]).to_numpy()
        similarity = (schemas.embeddings_of(observations) * probes.embeddings[faces]).sum(axis=1)
        costs[faces, places] = np.where(is_seen, np.clip(1 - similarity, 0, _LOST), _LOST)
        return costs
    scale = np.array([video.width, video.height], np.float64) if is_normalised else np.ones(2)
    boxes = probes.boxes * np.tile(scale, 2)
    known = (probes.landmarks * np.tile(scale, 5)).reshape(-1, 5, 2).mean(axis=1)
    centres = np.where(np.isfinite(known), known, (boxes[:, :2] + boxes[:, 2:]) / 2)
    sizes = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    found = schemas.matrix_of(observations["landmarks"], 10).reshape(-1, 5, 2).mean(axis=1)
    offsets = (found - centres[faces]) / sizes[faces, None]
    for place in range(n_shifts):
        rows = np.flatnonzero(places == place)
        is_found = np.isfinite(offsets[rows]).all(axis=1)
        # Another detector may put its landmarks elsewhere, but does so on all faces alike.
        usual = np.median(offsets[rows[is_found]], axis=0) if is_found.any() else np.zeros(2)
        distance = np.hypot(*(offsets[rows] - usual).T)
        costs[faces[rows], place] = np.where(is_found, np.minimum(distance, _LOST), _LOST)
    return costs


@dataclass(frozen=True)
class ShiftFinding:
    """What the faces of a stretch say of the frame numbers.

    Attributes:
        first_frame: First and last frame looked at, as the artifacts count.
        last_frame: See above.
        shift: The shift that fits best, where that is no chance; else 0.
        cost: Mean cost at it.
    """

    first_frame: int
    last_frame: int
    shift: int
    cost: float


def find_shifts(probes: Probes, costs: NDArray[np.float64], shifts: Sequence[int]) -> list[ShiftFinding]:
    """The shift that all faces agree on, or where the parts of the episode disagree, that of each part.

    Args:
        probes: The faces.
        costs: ``measure_costs``.
        shifts: Of each column; 0 is among them.
    """
    findings = []
    for part in np.unique(probes.parts):
        rows = np.flatnonzero(probes.parts == part)
        findings.append(_find_shift(probes, costs, shifts, rows, _MAX_PART_CHANCE))
    found = {finding.shift for finding in findings}
    if len(found - {0}) > 1 or (len(found) > 1 and _contradicts(probes, costs, shifts, findings)):
        return findings
    return [_find_shift(probes, costs, shifts, np.arange(len(probes)), _MAX_CHANCE)]


def _find_shift(
    probes: Probes, costs: NDArray[np.float64], shifts: Sequence[int], rows: NDArray[np.intp], max_chance: float
) -> ShiftFinding:
    none = list(shifts).index(0)
    totals = mean_costs(costs[rows])
    # Of shifts that fit alike the smallest.
    best = int(np.lexsort((np.abs(shifts), totals.round(6)))[0])
    if not is_better(costs[rows, best], costs[rows, none], max_chance):
        best = none
    frames = probes.frames[rows]
    return ShiftFinding(int(frames.min()), int(frames.max()), int(shifts[best]), float(totals[best]))


def _contradicts(
    probes: Probes, costs: NDArray[np.float64], shifts: Sequence[int], findings: Sequence[ShiftFinding]
) -> bool:
    """Whether a part in which no shift was found is one that the other parts' shift does not fit."""
    none = list(shifts).index(0)
    shift = list(shifts).index(next(f.shift for f in findings if f.shift))
    for part, finding in zip(np.unique(probes.parts), findings, strict=True):
        rows = probes.parts == part
        if finding.shift == 0 and is_better(costs[rows, none], costs[rows, shift], _MAX_PART_CHANCE):
            return True
    return False


def mean_costs(costs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each column over the faces that were looked at; a column that none was looked at in is lost."""
    is_seen = np.isfinite(costs)
    n_seen = is_seen.sum(axis=0)
    return np.where(n_seen > 0, np.where(is_seen, costs, 0).sum(axis=0) / np.maximum(n_seen, 1), np.inf)


def is_better(costs: NDArray[np.float64], others: NDArray[np.float64], max_chance: float = _MAX_CHANCE) -> bool:
    """Whether faces fit better in one way than in another, by their sum and by a sign test on the pairs that differ.

    Args:
        costs: Cost of each face in the one way, shape (n,).
        others: The same in the other way.
        max_chance: Odds below which it is no chance.
    """
    is_pair = np.isfinite(costs) & np.isfinite(others)
    gains = (others - costs)[is_pair]
    if costs[is_pair].sum() > _MAX_SHARE * others[is_pair].sum():
        return False
    wins, losses = int((gains > _MIN_GAIN).sum()), int((gains < -_MIN_GAIN).sum())
    n_pairs = wins + losses
    chance = sum(math.comb(n_pairs, k) for k in range(wins, n_pairs + 1)) / 2**n_pairs
    return wins > losses and chance < max_chance
