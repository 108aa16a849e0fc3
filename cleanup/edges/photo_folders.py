"""Finds the photos of known people in a folder: one folder per person, and a word about whatever else lies there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cleanup.errors import FacebankError
from cleanup.names import PersonId, check_person_id, check_person_name, find_odd_character, is_person_id
from cleanup.people import make_person_id

# What systems, cameras' programs and network storage put beside pictures, without regard to case.
_SYSTEM_NAMES = frozenset(
    {
        "@eadir", "@recently-snapshot", "@recycle", "@sharebin", "@tmp", "#recycle", "#snapshot", "$recycle.bin",
        "__macosx", "desktop.ini", "ehthumbs.db", "ehthumbs_vista.db", "found.000", "icon\r", "lost+found",
        "network trash folder", "picasa.ini", "recycler", "system volume information", "temporary items", "thumbs.db",
        "~snapshot",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Person:
    """A person who has a folder: by its name, if that is an id, or with an id made from the name."""

    person_id: PersonId
    name: str
    folder: Path


@dataclass(frozen=True)
class PhotoFolder:
    """What lies in a folder of photos; every file and folder is in one of these.

    Attributes:
        people: Those who have a folder.
        photos: Files that may be photos; what they are is seen when they are read.
        refused: What is nobody's photo whatever it holds, and why.
        left_out: Hidden files and folders, and those of systems and storage.
    """

    people: list[Person] = field(default_factory=list)
    photos: list[tuple[Person, Path]] = field(default_factory=list)
    refused: list[tuple[Path, str]] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)


def find_photos(folder: Path) -> PhotoFolder:
    """The photos in DIR/person, with all folders in it, in order.

    Raises:
        FacebankError: The folder does not exist or holds no photos, a person's folder has an impossible name, or two
            of them give one id.
    """
    if not folder.is_dir():
        raise FacebankError(f"{folder}: no such folder; it should hold one folder of photos per person")
    found = PhotoFolder()
    for path in _list(folder, found):
        if path.is_dir():
            found.people.append(_person_of(path))
        else:
            found.refused.append((path, f"lies in no person's folder; put it into one, {folder}/PERSON"))
    _check_ids(found.people)
    for person in found.people:
        found.photos.extend((person, path) for path in sorted(_walk(person.folder, found)))
    if not found.photos:
        loose = f"; {len(found.refused)} files lie in no person's folder" if found.refused else ""
        raise FacebankError(f"{folder}: no photos found; expected {folder}/PERSON/*.jpg, *.png, ...{loose}")
    return found


def name_from_id(person_id: str) -> str:
    """A name for people from a person id: ``lin-manuel-miranda`` -> ``Lin Manuel Miranda``."""
    return " ".join(part.capitalize() for part in re.split(r"[-_]+", person_id) if part)


def _list(folder: Path, found: PhotoFolder) -> list[Path]:
    """What lies in a folder, sorted, without what is hidden or a system's."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        found.refused.append((folder, f"cannot be read ({error.strerror})"))
        return []
    is_odd = [p.name.startswith(".") or p.name.casefold() in _SYSTEM_NAMES for p in paths]
    found.left_out.extend(path for path, odd in zip(paths, is_odd, strict=True) if odd)
    return [path for path, odd in zip(paths, is_odd, strict=True) if not odd]


def _walk(folder: Path, found: PhotoFolder) -> Iterator[Path]:
    """All files of a person; one that is a link may lead anywhere, a folder that is one could lead to other people."""
    folders = [folder]
    while folders:
        for path in _list(folders.pop(), found):
            if not path.is_dir():
                if find_odd_character(path.name) is None:
                    yield path
                else:
                    found.refused.append((path, "its name holds control characters or is not UTF-8; rename it"))
            elif path.is_symlink():
                found.refused.append((path, "a link to a folder, which is not followed; put the folder itself there"))
            else:
                folders.append(path)


def _person_of(folder: Path) -> Person:
    try:
        name = check_person_name(folder.name)
        if is_person_id(name):
            return Person(check_person_id(name), name_from_id(name), folder)
        return Person(check_person_id(make_person_id(name)), name, folder)
    except FacebankError as error:
        raise FacebankError(f"{folder}: the folder's name is the person's name or id, but {error}") from None


def _check_ids(people: list[Person]) -> None:
    """Ids that differ in case alone are one folder where case does not count."""
    seen: dict[str, Person] = {}
    for person in people:
        other = seen.setdefault(person.person_id.casefold(), person)
        if other is not person:
            raise FacebankError(
                f"{other.folder} and {person.folder} give one person id, {person.person_id}; put the photos into one "
                "folder, or rename one of them"
            )
