"""Is this the video that the artifacts were made from, and how do they count in it? Asked before all is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.episode import Episode
from cleanup.errors import VideoError
from cleanup.interfaces import Engine, VideoInfo
from cleanup.phases.video_fit import (
    ALL_SHIFTS,
    COARSE_SHIFTS,
    FINE_STEPS,
    MAX_COST,
    NEAR_SHIFTS,
    ShiftFinding,
    build_table,
    choose_probes,
    find_shifts,
    is_better,
    mean_costs,
    measure_costs,
)
from cleanup.progress import ignore_items
from cleanup.report import CleanupReport

# Mean cost of the probes from which most of them show somebody or something else.
_MAX_FIT = 0.5


@dataclass(frozen=True)
class VideoChoice:
    """What a run is given to look at.

    Attributes:
        views: The video in every view that artifacts may count in, as it is stored first.
        rotation: ``auto``, ``ignore`` or ``apply``: whether boxes lie in the picture as its display matrix turns it.
        is_shift_trusted: Whether the frame shift of the views was given by hand: then another that is found is a
            warning.
    """

    views: Sequence[VideoInfo]
    rotation: str = "auto"
    is_shift_trusted: bool = False


def fit_video(episode: Episode, choice: VideoChoice, engine: Engine, report: CleanupReport) -> VideoInfo:
    """The video in the view that the artifacts count in.

    Raises:
        VideoError: It is not the one they were made from, its frames are shifted, or the view cannot be told.
    """
    first = choice.views[0]
    _check_rate(episode, first)
    report.warnings += [f"{first.source.location}: {note}" for note in first.notes]
    views = _views_by_hand(choice)
    views = [view for view in views if _holds_boxes(episode, view)]
    if not views:
        _refuse_size(episode, first)
    check = _FitCheck(episode, engine, report)
    if len(views) > 1:
        views = [check.choose_view(views)]
    video = views[0]
    check.check_shift(video, is_trusted=choice.is_shift_trusted)
    _check_length(episode, video)
    report.video = {
        "frame_shift": video.source.view.frame_shift,
        "is_turned": video.source.view.is_turned,
        "is_stretched": video.source.view.is_stretched,
        "width": video.width,
        "height": video.height,
        "frames": video.n_frames,
        "fps": round(video.fps, 3),
    }
    if len(choice.views) > 1:
        report.warnings.append(_tell_view(video, choice))
    return video


def _views_by_hand(choice: VideoChoice) -> list[VideoInfo]:
    """The views that ``--rotation`` leaves; a video without a display matrix has no other."""
    if choice.rotation == "auto":
        return list(choice.views)
    is_turned = choice.rotation == "apply"
    kept = [view for view in choice.views if view.source.view.is_turned == is_turned]
    return kept or list(choice.views)


def _tell_view(video: VideoInfo, choice: VideoChoice) -> str:
    view = video.source.view
    parts = []
    if any(v.source.view.is_turned for v in choice.views):
        parts.append("as its display matrix turns or mirrors it" if view.is_turned else "as it is stored")
    if any(v.source.view.is_stretched for v in choice.views):
        parts.append("with its pixels made square" if view.is_stretched else "with its pixels as they are stored")
    return f"the artifacts count in the picture {' and '.join(parts)} ({video.width}x{video.height})"


class _FitCheck:
    """Looks at some faces of an episode to tell how its artifacts count in a video."""

    def __init__(self, episode: Episode, engine: Engine, report: CleanupReport) -> None:
        self._episode, self._engine, self._report = episode, engine, report
        self._probes = choose_probes(episode)
        n_with_landmarks = int(np.isfinite(self._probes.landmarks).all(axis=1).sum())
        self._has_landmarks = 2 * n_with_landmarks > len(self._probes)
        is_same_model = episode.dimension == report.models["recogniser"]["dimension"]
        # Whether the detector finds the faces, or they are taken where the artifacts have them; the best way first.
        self._ways = [False] if is_same_model and self._has_landmarks else []
        self._ways += [True] if "detector" in report.models and len(self._probes) else []

    def _measure(self, video: VideoInfo, shifts: Sequence[int], *, is_detected: bool) -> NDArray[np.float64]:
        is_normalised = self._episode.is_normalised
        table = build_table(self._probes, video, shifts, is_detected=is_detected, is_normalised=is_normalised)
        (result,) = self._engine.observe(self._episode.ep_id, video.source, [table], ignore_items)
        if result.observations is None:
            return np.full((len(self._probes), len(shifts)), np.nan)
        return measure_costs(
            self._probes, video, len(shifts), result.observations, is_detected=is_detected,
            is_normalised=is_normalised,
        )  # fmt: skip

    def choose_view(self, views: Sequence[VideoInfo]) -> VideoInfo:
        """The view in which the faces are where the artifacts say.

        Raises:
            VideoError: They are as well where the picture is turned as where it is not.
        """
        for is_detected in self._ways:
            costs = np.hstack([self._measure(view, [0], is_detected=is_detected) for view in views])
            means = mean_costs(costs)
            best = int(np.argmin(means))
            is_turned = views[best].source.view.is_turned
            others = [k for k, view in enumerate(views) if view.source.view.is_turned != is_turned]
            if means[best] < _MAX_FIT and all(is_better(costs[:, best], costs[:, k]) for k in others):
                return views[best]
        if len({view.source.view.is_turned for view in views}) > 1:
            raise VideoError(
                f"{views[0].source.location}: its picture is to be shown turned or mirrored, and its faces do not tell "
                f"whether the artifacts of {self._episode.ep_id} count in it as it is shown; say --rotation apply, or "
                "--rotation ignore if they count in it as it is stored"
            )
        return views[0]

    def check_shift(self, video: VideoInfo, *, is_trusted: bool) -> None:
        """Checks that frame n of the artifacts is frame n of the video, with the shift of its view.

        Args:
            video: The video.
            is_trusted: Whether that shift was given by hand: another is then a warning.

        Raises:
            VideoError: It is another one.
        """
        for is_detected in self._ways:
            findings = self._find_shifts(video, is_detected=is_detected)
            if max(finding.cost for finding in findings) < _MAX_FIT:
                if any(finding.shift for finding in findings):
                    message = self._describe_shift(video, findings)
                    if self._has_landmarks and not is_trusted:
                        raise VideoError(message)
                    self._report.warnings.append(message)
                return
        if len(self._probes):
            self._report.warnings.append(
                f"{video.source.location}: whether its frames are those of the artifacts could not be told from their "
                "faces: their embeddings are of another model, and no detector finds them"
            )

    def _find_shifts(self, video: VideoInfo, *, is_detected: bool) -> list[ShiftFinding]:
        """What the frames nearby tell, or where that is nothing certain, those further off."""
        findings = self._look_at(video, NEAR_SHIFTS, is_detected=is_detected)
        if all(finding.shift == 0 and finding.cost <= MAX_COST for finding in findings):
            return findings
        if not is_detected:
            return self._look_at(video, ALL_SHIFTS, is_detected=False)
        # Places of faces change little by little, so that some shifts tell where to look; finding faces is slow.
        coarse = self._look_at(video, COARSE_SHIFTS, is_detected=True)
        near = {finding.shift + step for finding in coarse for step in FINE_STEPS}
        return self._look_at(video, sorted(near | {0}), is_detected=True)

    def _look_at(self, video: VideoInfo, shifts: Sequence[int], *, is_detected: bool) -> list[ShiftFinding]:
        return find_shifts(self._probes, self._measure(video, shifts, is_detected=is_detected), shifts)

    def _describe_shift(self, video: VideoInfo, findings: Sequence[ShiftFinding]) -> str:
        location, ep_id, fps = video.source.location, self._episode.ep_id, self._episode.fps
        given = video.source.view.frame_shift
        if len(findings) == 1:
            shift = given + findings[0].shift
            return (
                f"{location}: its frames are shifted by {shift} against {ep_id}: what the artifacts say of frame 100 "
                f"is seen in frame {100 + shift}; give the video they were made from, or --frame-shift {shift}"
            )
        parts = ", ".join(
            f"by {given + f.shift} from {format_time(f.first_frame / fps)} to {format_time(f.last_frame / fps)}"
            for f in findings
        )
        return (
            f"{location}: its frames are shifted against {ep_id}, not alike everywhere ({parts}): frames are missing "
            "in it or in the video that the artifacts were made from; give that one"
        )


def _check_rate(episode: Episode, video: VideoInfo) -> None:
    if video.fps and abs(video.fps - episode.fps) > 0.05 * episode.fps:
        raise VideoError(
            f"{video.source.location}: {video.fps:.3f} frames per second, but the artifacts count {episode.fps:.3f}; "
            "give the video they were made from"
        )


def _check_length(episode: Episode, video: VideoInfo) -> None:
    """A video that is shifted by hand may miss as many frames at one end; of another nothing may be missing."""
    last_frame = int(schemas.ints_of(episode.boxes, "frame_idx").max())
    shift = video.source.view.frame_shift
    if last_frame >= video.n_frames + max(-shift, 0):
        raise VideoError(
            f"{video.source.location}: {video.n_frames} frames, but {episode.ep_id} has a face in frame {last_frame}; "
            f"it is shorter than the one the artifacts were made from{''.join(f'; {note}' for note in video.notes)}"
        )


def _box_centres(episode: Episode) -> NDArray[np.float64]:
    boxes = schemas.matrix_of(episode.boxes["bbox"], 4)
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _holds_boxes(episode: Episode, video: VideoInfo) -> bool:
    """Whether the centres of all boxes lie in the picture."""
    if episode.is_normalised:
        return True
    centres = _box_centres(episode)
    return not ((centres < 0) | (centres > [video.width, video.height])).any()


def _refuse_size(episode: Episode, video: VideoInfo) -> None:
    raise VideoError(
        f"{video.source.location}: {video.width}x{video.height}, but {episode.ep_id} has faces as far as "
        f"{_box_centres(episode).max(axis=0).round().astype(int).tolist()}; it has another resolution than the video "
        "the artifacts were made from"
    )


def format_time(seconds: float) -> str:
    """A place in a video as players show it: minutes, or hours and minutes, and seconds with tenths."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
