"""What became of a folder of photos: every file, whom nothing was taken for and why, and what was left out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cleanup.edges.onnx_models import FaceModels, ModelSpec, load_models
from cleanup.edges.photo_folders import Person, PhotoFolder
from cleanup.edges.postgres_facebank import StoredSeed
from cleanup.edges.seed_photos import PhotoOutcome, SeedRules
from cleanup.entrypoints.run_tools import find_models
from cleanup.entrypoints.terminal import say
from cleanup.resolve_settings import ResolvedSettings

# Names of files that were left out, in one line.
_NAMES_SHOWN = 5
# Two photos this alike are one picture, saved twice.
_SAME_PICTURE = 0.98


def load_face_models(resolved: ResolvedSettings) -> FaceModels:
    """The models that the settings name, loaded into this process."""
    observe = resolved.settings.observe
    return load_models(ModelSpec(str(find_models(resolved)), observe.device, observe.embed_device))


def make_rules(resolved: ResolvedSettings, *, largest: bool, aligned: bool) -> SeedRules:
    """Which photos are taken."""
    seeds = resolved.settings.seeds
    max_yaw = seeds.max_seed_yaw if seeds.check_pose_quality else None
    return SeedRules(
        resolved.settings.observe.det_thresh, max_yaw, seeds.min_seed_blur, use_largest=largest, is_aligned=aligned
    )


def check_duplicates(outcomes: Sequence[PhotoOutcome], stored: Sequence[StoredSeed], model: str) -> list[PhotoOutcome]:
    """Refuses a photo that is somebody else's as well, and notes one that the person has in another file."""
    checked: list[PhotoOutcome] = []
    seen = [(s.seed, f"seed {s.seed.image_name}") for s in stored if s.model == model]
    for outcome in outcomes:
        seed, twin = outcome.seed, None
        if seed is not None:
            for other, what in seen:
                is_same = seed.image_sha256 == other.image_sha256
                if is_same and seed.person_id == other.person_id:
                    twin = None  # the very photo again: enrolling does nothing
                    break
                if is_same or float(seed.embedding @ other.embedding) >= _SAME_PICTURE:
                    twin = other, what
            if twin is not None and twin[0].person_id != seed.person_id:
                problem = f"the same picture as {twin[1]} of {twin[0].person_id}; one of the two is somebody else"
                outcome = dataclasses.replace(outcome, seed=None, problem=problem)
            elif twin is not None:
                outcome = dataclasses.replace(outcome, note=f"nearly the same picture as {twin[1]}")
            if outcome.seed is not None:
                seen.append((seed, str(outcome.path)))
        checked.append(outcome)
    return checked


@dataclass(frozen=True)
class PhotoAccount:
    """A folder of photos that were looked at.

    Attributes:
        found: What lies in the folder.
        outcomes: What became of its photos.
    """

    found: PhotoFolder
    outcomes: Sequence[PhotoOutcome]

    @cached_property
    def without_seeds(self) -> list[tuple[Person, str]]:
        """People whose folder gave nothing, and why."""
        has_seed = {o.person_id for o in self.outcomes if o.seed is not None}
        told = []
        for person in self.found.people:
            reasons = [f"{o.path.name}: {o.problem}" for o in self.outcomes if o.person_id == person.person_id]
            if person.person_id not in has_seed:
                more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
                told.append((person, f"{reasons[0]}{more}" if reasons else "no picture lies in the folder"))
        return told

    @property
    def n_taken(self) -> int:
        """Photos with one clear face."""
        return sum(o.seed is not None for o in self.outcomes)

    @property
    def n_people(self) -> int:
        """People who are on them."""
        return len({o.person_id for o in self.outcomes if o.seed is not None})

    @property
    def n_refused(self) -> int:
        """Files that were not taken."""
        return len(self.outcomes) - self.n_taken + len(self.found.refused)

    def to_json(self) -> dict[str, Any]:
        """All of it for programs."""
        files: list[dict[str, Any]] = [
            {
                "file": _shown(o.path),
                "person_id": o.person_id,
                "problem": o.problem or None,
                "note": o.note or None,
                "quality": None if o.seed is None else o.seed.quality,
            }
            for o in self.outcomes
        ]
        files += [
            {"file": _shown(path), "person_id": None, "problem": problem, "note": None, "quality": None}
            for path, problem in self.found.refused
        ]
        people = [
            {"person_id": person.person_id, "name": person.name, "folder": _shown(person.folder), "reason": why}
            for person, why in self.without_seeds
        ]
        left_out = [_shown(path) for path in self.found.left_out]
        return {"files": files, "people_without_seeds": people, "left_out": left_out}

    def tell(self) -> None:
        """Prints all of it for people."""
        for outcome in self.outcomes:
            note = f" ({outcome.note})" if outcome.note else ""
            say(f"{outcome.path}: {outcome.problem or f'{outcome.person_id}, one face'}{note}")
        for path, problem in self.found.refused:
            say(f"{path}: {problem}")
        if self.found.left_out:
            names = ", ".join(sorted({path.name for path in self.found.left_out})[:_NAMES_SHOWN])
            say(f"left out: {len(self.found.left_out)} hidden and system files and folders ({names})")
        for person, why in self.without_seeds:
            say(f"nothing was taken for {person.name} ({person.person_id}): {why}")


@dataclass(frozen=True)
class Enrolment:
    """A folder of photos that was enrolled, or looked at.

    Attributes:
        show: The show.
        photos: What became of them.
        n_new: Seeds that were not there before.
        is_dry_run: Whether nothing was done.
    """

    show: str
    photos: PhotoAccount
    n_new: int
    is_dry_run: bool

    def to_json(self) -> dict[str, Any]:
        """All of it for programs."""
        return {"show": self.show, "enrolled": self.n_new, "dry_run": self.is_dry_run, **self.photos.to_json()}

    def tell(self) -> None:
        """Prints all of it for people."""
        photos = self.photos
        photos.tell()
        if self.is_dry_run:
            counts = (
                f"{photos.n_taken} photos of {photos.n_people} people would be enrolled, {photos.n_refused} refused"
            )
            say(f"{self.show}: {counts}; nothing was done")
        else:
            known = photos.n_taken - self.n_new
            counts = f"{self.n_new} new seeds of {photos.n_people} people, {known} were there already"
            say(f"{self.show}: {counts}, {photos.n_refused} photos refused")


def _shown(path: Path) -> str:
    """A path for programs; names that are not UTF-8 have escapes in it."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
