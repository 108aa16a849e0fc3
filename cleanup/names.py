"""Ids that paths and queries are built from: types of their own, which only the functions here make; names of people.

Whatever builds a path takes an ``EpId``, ``Show``, ``PersonId`` or ``RunId`` and not a string, so an id that nobody
checked does not get there (mypy refuses it).
"""

from __future__ import annotations

import re
import unicodedata
from typing import NewType

from cleanup.errors import ArtifactError, FacebankError

EpId = NewType("EpId", str)
Show = NewType("Show", str)
PersonId = NewType("PersonId", str)
RunId = NewType("RunId", str)

SHOW_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}"
EP_ID_PATTERN = rf"({SHOW_PATTERN})-s[0-9]{{2,3}}e[0-9]{{2,4}}"
RUN_ID_PATTERN = r"[0-9]{8}T[0-9]{6}\.[0-9]{6}Z-[0-9]{1,10}"
_EP_ID, _SHOW, _PERSON_ID, _RUN_ID = map(re.compile, (EP_ID_PATTERN, SHOW_PATTERN, SHOW_PATTERN, RUN_ID_PATTERN))
_UNKNOWN_ID = re.compile(r"unknown-\d+")
# Control characters, line and paragraph separators, halves of characters; and what embeds, overrides or isolates a
# direction of writing.
_NO_LETTERS = frozenset({"Cc", "Zl", "Zp", "Cs"})
_TURNING = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))


def is_ep_id(text: str) -> bool:
    """Whether a text is an episode id."""
    return _EP_ID.fullmatch(text) is not None


def check_ep_id(text: str) -> EpId:
    """The episode id that a text is.

    Raises:
        ArtifactError: It is not of the form ``show-s05e02``.
    """
    if not is_ep_id(text):
        raise ArtifactError(
            f"episode id {text!r} is not of the form show-s05e02 (letters, digits, - and _ before the suffix)"
        )
    return EpId(text)


def check_show(text: str) -> Show:
    """The name of a show that a text is; the rule is that of episode ids.

    Raises:
        ArtifactError: It holds something else than letters, digits, - and _.
    """
    if not _SHOW.fullmatch(text):
        raise ArtifactError(f"show {text!r} may hold letters, digits, - and _ only, as in its episode ids")
    return Show(text)


def show_of(ep_id: EpId) -> Show:
    """The show part of an episode id: ``rhobh`` of ``rhobh-s05e02``."""
    match = _EP_ID.fullmatch(ep_id)
    assert match is not None, "an EpId was checked when it was made"
    return Show(match[1])


def is_person_id(text: str) -> bool:
    """Whether a text has the form of a person's id."""
    return _PERSON_ID.fullmatch(text) is not None


def check_person_id(text: str) -> PersonId:
    """The id of a known person that a text is.

    Raises:
        FacebankError: It holds something else than letters, digits, - and _, or is one that unknown people get.
    """
    if not is_person_id(text):
        raise FacebankError(f"person id {text!r} may hold letters, digits, - and _ only")
    if _UNKNOWN_ID.fullmatch(text):
        raise FacebankError(f"person id {text!r} is of the form that unknown people get; give another")
    return PersonId(text)


def is_run_id(text: str) -> bool:
    """Whether a text is the id of a run."""
    return _RUN_ID.fullmatch(text) is not None


def normalise_name(text: str) -> str:
    """A person's name as it is kept and compared: one form of letters that Unicode can write in several (NFC)."""
    return unicodedata.normalize("NFC", text)


def fold_name(text: str) -> str:
    """What two names have in common that differ in case alone."""
    return normalise_name(normalise_name(text).casefold())


def check_person_name(text: str) -> str:
    """The name that a text is, as it is kept.

    Raises:
        FacebankError: It is empty, or holds what is no part of a name: control characters, line breaks, what turns the
            direction of the text around it.
    """
    name = normalise_name(text.strip())
    if not name:
        raise FacebankError("a person's name is empty")
    odd = find_odd_character(name)
    if odd is not None:
        raise FacebankError(f"name {name!r} holds the character U+{ord(odd):04X}, which no name does; leave it out")
    return name


def find_odd_character(text: str) -> str | None:
    """The first character that is no part of a name, of a person or a file: it would not be seen as what it is."""
    return next((c for c in text if unicodedata.category(c) in _NO_LETTERS or c in _TURNING), None)


def check_run_id(text: str) -> RunId:
    """The id of a run that a text is.

    Raises:
        ArtifactError: No run is called so.
    """
    if not is_run_id(text):
        raise ArtifactError(
            f"run {text!r} is not of the form 20260314T092653.589793Z-4711; cleanup backups list EP_ID shows them"
        )
    return RunId(text)
