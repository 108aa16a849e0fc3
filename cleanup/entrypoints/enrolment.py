"""What became of a folder of photos: every file, whom nothing was taken for and why, and what was left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cleanup.edges.photo_folders import Person, PhotoFolder
from cleanup.edges.seed_photos import PhotoOutcome
from cleanup.entrypoints.terminal import say

# Names of files that were left out, in one line.
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Enrolment:
    """A folder of photos that was enrolled, or looked at.

    Attributes:
        show: The show.
        found: What lies in the folder.
        outcomes: What became of its photos.
        n_new: Seeds that were not there before.
        is_dry_run: Whether nothing was done.
    """

    show: str
    found: PhotoFolder
    outcomes: Sequence[PhotoOutcome]
    n_new: int
    is_dry_run: bool

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
        return {
            "show": self.show,
            "enrolled": self.n_new,
            "dry_run": self.is_dry_run,
            "files": files,
            "people_without_seeds": people,
            "left_out": [_shown(path) for path in self.found.left_out],
        }

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
        n_seeds = sum(o.seed is not None for o in self.outcomes)
        n_people = len({o.person_id for o in self.outcomes if o.seed is not None})
        n_refused = len(self.outcomes) - n_seeds + len(self.found.refused)
        if self.is_dry_run:
            counts = f"{n_seeds} photos of {n_people} people would be enrolled, {n_refused} refused"
            say(f"{self.show}: {counts}; nothing was done")
        else:
            counts = f"{self.n_new} new seeds of {n_people} people, {n_seeds - self.n_new} were there already"
            say(f"{self.show}: {counts}, {n_refused} photos refused")


def _shown(path: Path) -> str:
    """A path for programs; names that are not UTF-8 have escapes in it."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
