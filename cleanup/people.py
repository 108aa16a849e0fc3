"""What is known about a show's people beside their seeds: the shapes that the Facebank and the grouping hand over."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Where an identity's person comes from.
SEED, PERSON, HUMAN, NONE = "seed", "person", "human", "none"
# Episode and identity.
Key = tuple[str, str]
# Letters of Latin scripts that no accent makes of a plain one.
_PLAIN_LETTERS = str.maketrans(
    {"æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ð": "d", "ħ": "h", "ł": "l", "þ": "th", "\u0131": "i"}
)
# Characters of an id made from a name; with a digest it is short of what an id may have.
_MAX_SLUG = 80


@dataclass(frozen=True)
class ShowCluster:
    """One identity of one episode.

    Attributes:
        ep_id: The episode.
        identity_id: The identity.
        vectors: Unit rows, shape (k, d): its centroid, then sub-centroids where it has several views.
        n_faces: Faces with an embedding.
        is_solid: Whether it may be compared with other unknown people; poor faces all look alike.
        is_seen: Whether it is seen often enough, well or poorly, to be an unknown person at all.
        person_id: Who it is by ``source``; with source person or none, who it was last time.
        source: ``seed``, ``human``: given, be it an unknown person. ``person``, ``none``: to be decided.
        shares_frames_with: Identities of the same episode that are seen together with this one.
        rejected: People a human said this is not.
    """

    ep_id: str
    identity_id: str
    vectors: NDArray[np.float32]
    n_faces: int
    is_solid: bool
    person_id: str | None
    source: str
    is_seen: bool = True
    shares_frames_with: frozenset[str] = frozenset()
    rejected: frozenset[str] = frozenset()

    @property
    def key(self) -> Key:
        """Episode and identity."""
        return self.ep_id, self.identity_id


@dataclass(frozen=True)
class Rejection:
    """A human said that the identity of these tracks is not this person."""

    ep_id: str
    track_ids: frozenset[int]
    person_id: str


@dataclass(frozen=True)
class ShowState:
    """What is known about a show's people beside their seeds.

    Attributes:
        clusters: The identities of its episodes as they were last written, made with one model.
        names: Name of every person; an unknown person's is its id.
        unknown_ids: The ids among them that stand for people without a name.
        aliases: Other names and earlier ids -> person id.
        rejections: What humans ruled out.
        last_unknown: Number of the unknown person that was numbered last.
    """

    clusters: tuple[ShowCluster, ...]
    names: Mapping[str, str]
    unknown_ids: frozenset[str]
    aliases: Mapping[str, str]
    rejections: tuple[Rejection, ...]
    last_unknown: int


@dataclass(frozen=True)
class ClusterRecord:
    """An identity on its way into the Facebank; fields as in ``ShowCluster``."""

    identity_id: str
    vectors: NDArray[np.float32]
    track_ids: tuple[int, ...]
    n_faces: int
    is_solid: bool
    is_seen: bool
    shares_frames_with: tuple[str, ...]
    person_id: str | None
    source: str
    reason: str


@dataclass(frozen=True)
class GroupingPlan:
    """What grouping an episode changes in the Facebank, to be recorded with the episode's files.

    Attributes:
        show: The show.
        ep_id: The episode.
        model: Recogniser of the vectors.
        clusters: All its identities that have an embedding.
        others: Identities of other episodes that are somebody else from now on: (episode, identity) -> (person,
            source).
        new_people: Ids and names of people that humans named in the files.
        last_unknown: Number of the unknown person that was numbered last.
    """

    show: str
    ep_id: str
    model: str
    clusters: tuple[ClusterRecord, ...]
    others: Mapping[tuple[str, str], tuple[str | None, str]]
    new_people: Mapping[str, str]
    last_unknown: int


def format_unknown_id(number: int) -> str:
    """The person id of an unknown person: ``unknown-0001``."""
    return f"unknown-{number:04d}"


def find_rejected(ep_id: str, track_ids: Iterable[int], rejections: Sequence[Rejection]) -> frozenset[str]:
    """People that a human ruled out for an identity: it holds most of the tracks that were not this person."""
    tracks = set(track_ids)
    return frozenset(
        r.person_id for r in rejections if r.ep_id == ep_id and 2 * len(r.track_ids & tracks) > len(r.track_ids)
    )


def make_person_id(name: str) -> str:
    """A person id from a name: ``Lin-Manuel Miranda`` -> ``lin-manuel-miranda``, ``José`` -> ``jose``.

    Where letters would be lost, as of ``山田``, or the id would be too long or an unknown person's, it gets a digest of
    the whole name, so that no two people share it.
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    plain = unicodedata.normalize("NFKD", folded.translate(_PLAIN_LETTERS))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    is_whole = all(c.isascii() or not c.isalnum() for c in plain)
    if slug and is_whole and len(slug) <= _MAX_SLUG and not slug.startswith("unknown-"):
        return slug
    digest = hashlib.sha256(folded.encode()).hexdigest()[:8]
    return f"{slug[:_MAX_SLUG].strip('-') or 'person'}-x{digest}"
