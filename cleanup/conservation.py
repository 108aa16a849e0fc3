"""What a run may never lose, checked between what came in and what came out, before anything is written."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from cleanup import schemas
from cleanup.episode import Episode


def check_conservation(before: Episode, after: Episode, *, is_reclustered: bool) -> list[str]:
    """What a run may never do; a sentence for each thing that it did.

    Every track is still there, and every face and every box of it is in it or in exactly one of its pieces; a face that
    lost its embedding says why; a track is in one identity, and a locked identity has its tracks.

    Args:
        before: The episode as it came to the phases.
        after: What they made of it.
        is_reclustered: Whether every track has to be in an identity, or only those that were.
    """
    root_of = find_roots(before, after)
    problems = _check_tracks(before, after, root_of)
    if problems:
        return problems  # nothing below means anything then
    if not np.array_equal(_places_of(before, {}), _places_of(after, root_of)):
        problems.append(f"the {len(before.boxes)} boxes of tracks are not those of their pieces ({len(after.boxes)})")
    problems += _check_faces(before, after, root_of)
    return problems + _check_owners(before, after, root_of, is_reclustered=is_reclustered)


def find_roots(before: Episode, after: Episode) -> dict[int, int]:
    """For every track of the later state the track of the earlier one that it is a piece of, else itself."""
    parents = dict(zip(*(after.tracks[name].to_pylist() for name in ("track_id", "parent_track_id")), strict=True))
    known = set(before.tracks["track_id"].to_pylist())
    roots = {}
    for track_id in parents:
        root, seen = track_id, {track_id}
        while root not in known and parents.get(root) is not None and parents[root] not in seen:
            root = parents[root]
            seen.add(root)
        roots[track_id] = root
    return roots


def _check_tracks(before: Episode, after: Episode, root_of: dict[int, int]) -> list[str]:
    problems = []
    known, found = set(before.tracks["track_id"].to_pylist()), after.tracks["track_id"].to_pylist()
    lost = known - set(found)
    if lost:
        problems.append(f"tracks {sorted(lost)} are lost")
    if len(set(found)) != len(found):
        problems.append("a track id is there twice")
    strange = sorted(t for t, root in root_of.items() if root not in known)
    if strange:
        problems.append(f"tracks {strange} are pieces of nothing")
    reasons = dict(zip(found, after.tracks["split_reason"].to_pylist(), strict=True))
    unexplained = sorted(t for t in set(found) - known if reasons[t] is None or t <= max(known))
    if unexplained:
        problems.append(f"tracks {unexplained} were split off without a reason or a fresh id")
    return problems


def _places_of(episode: Episode, root_of: dict[int, int]) -> NDArray[np.int64]:
    """Track before the run and frame of every box, sorted; shape (n, 2)."""
    tracks = [root_of.get(t, t) for t in episode.boxes["track_id"].to_pylist()]
    places = np.stack([np.array(tracks, np.int64), schemas.ints_of(episode.boxes, "frame_idx")], axis=1)
    return places[np.lexsort((places[:, 1], places[:, 0]))]


def _check_faces(before: Episode, after: Episode, root_of: dict[int, int]) -> list[str]:
    problems = []
    names = ["face_id", "track_id", "reject_reason"]
    old, new = (
        {
            row["face_id"]: (row, has_embedding)
            for row, has_embedding in zip(
                e.faces.select(names).to_pylist(), e.faces["embedding"].is_valid().to_pylist(), strict=True
            )
        }
        for e in (before, after)
    )
    lost = sorted(old.keys() - new.keys())
    if lost:
        problems.append(f"{len(lost)} faces are lost, {lost[0]} among them")
    if len(new) != len(after.faces):
        problems.append("a face id is there twice")
    moved = [f for f in old.keys() & new.keys() if root_of[new[f][0]["track_id"]] != old[f][0]["track_id"]]
    if moved:
        problems.append(f"{len(moved)} faces are in another track, {min(moved)} among them")
    silent = [f for f in old.keys() & new.keys() if old[f][1] and not new[f][1] and new[f][0]["reject_reason"] is None]
    if silent:
        problems.append(f"{len(silent)} faces lost their embedding without a reason, {min(silent)} among them")
    return problems


def _check_owners(before: Episode, after: Episode, root_of: dict[int, int], *, is_reclustered: bool) -> list[str]:
    problems = []
    owners = Counter(t for tracks in after.identities["track_ids"].to_pylist() for t in tracks)
    twice = sorted(t for t, n in owners.items() if n > 1)
    if twice:
        problems.append(f"tracks {twice} are in two identities")
    owned_before = {t for tracks in before.identities["track_ids"].to_pylist() for t in tracks}
    dropped = sorted(t for t, root in root_of.items() if t not in owners and (is_reclustered or root in owned_before))
    if dropped:
        problems.append(f"tracks {dropped} are in no identity")
    locked = before.identities.filter(before.identities["is_locked"]).to_pylist()
    still = {r["identity_id"]: set(r["track_ids"]) for r in after.identities.to_pylist() if r["is_locked"]}
    for row in locked:
        if not set(row["track_ids"]) <= still.get(row["identity_id"], set()):
            problems.append(f"locked identity {row['identity_id']} lost tracks")
    return problems
