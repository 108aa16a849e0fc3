"""Brings the labels in episodes' files in line with the Facebank, through the same safe write-back as a run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from cleanup import schemas
from cleanup.edges.artifact_reading import read_episode
from cleanup.edges.artifact_writing import render_episode
from cleanup.edges.data_root import DataRoot
from cleanup.edges.episode_lock import make_run_id
from cleanup.entrypoints.stop_signals import stop_held
from cleanup.episode import Episode
from cleanup.errors import ArtifactError, CleanupError, FacebankError, InvariantError
from cleanup.names import EpId
from cleanup.people import HUMAN, SEED, Key
from cleanup.phases.identity_rows import FACEBANK_SOURCE, PERSON_SOURCE, is_human_named

if TYPE_CHECKING:
    from cleanup.edges.postgres_facebank import PostgresFacebank
    from cleanup.edges.postgres_people import Label
    from cleanup.edges.postgres_server import ShowHold

Row = dict[str, Any]
_MADE_BY = "people"
_PATIENCE_S = 10.0


def change_identities(root: DataRoot, ep_id: EpId, change: Callable[[list[Row]], list[Row]], n_backups: int) -> bool:
    """Changes labels and locks of an episode's identities; their tracks stay where they are.

    Args:
        root: Data root.
        ep_id: The episode.
        change: Gets the rows and returns them as they shall be.
        n_backups: Backups to keep beside the first.

    Returns:
        Whether anything changed.

    Raises:
        CleanupError: The files are as they were.
    """

    def change_rows(episode: Episode) -> Episode:
        before = episode.identities.to_pylist()
        after = change([dict(row) for row in before])
        if after == before:
            return episode
        if [(r["identity_id"], r["track_ids"]) for r in after] != [(r["identity_id"], r["track_ids"]) for r in before]:
            raise InvariantError(f"{ep_id}: internal error, nothing was written: a relabelling moved tracks")
        return episode.replace(identities=schemas.build_table(after, schemas.IDENTITY_SCHEMA))

    return change_episode(root, ep_id, change_rows, n_backups)


def change_episode(root: DataRoot, ep_id: EpId, change: Callable[[Episode], Episode], n_backups: int) -> bool:
    """Changes identities.json of an episode and writes it back as a run would: alone, with a backup.

    Args:
        root: Data root.
        ep_id: The episode.
        change: Gets the episode, and returns the very same one or one with other identities or another document.
        n_backups: Backups to keep beside the first.

    Returns:
        Whether anything changed.

    Raises:
        CleanupError: The files are as they were.
    """
    root.check_episode(ep_id)
    # A run that is just ending lets go of its episode within moments.
    with root.hold(ep_id, _PATIENCE_S) as held:
        paths, expected = held.paths, held.paths.stamp()
        episode = read_episode(paths)
        changed = change(episode)
        if changed is episode:
            return False
        owned = [sorted(t for row in e.identities["track_ids"].to_pylist() for t in row) for e in (episode, changed)]
        if owned[0] != owned[1]:
            raise InvariantError(f"{ep_id}: internal error, nothing was written: a change of identities lost tracks")
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        rendered = render_episode(changed, now)
        with held.write_back(make_run_id(), _MADE_BY, expected) as write_back, stop_held():
            write_back.stage({paths.identities: rendered[paths.identities.name]})
            held.commit(write_back, n_backups)
        return True


def relabel_episodes(
    root: DataRoot,
    facebank: PostgresFacebank,
    hold: ShowHold,
    episodes: Iterable[str],
    n_backups: int,
    touched: Collection[Key] = (),
) -> list[str]:
    """Writes who is who into the files of episodes that say something else.

    Names that a human gave in the files stay, and so do locked identities, except those that are ``touched``.

    Args:
        root: Data root; episodes that it does not have are left out.
        facebank: Who is who.
        hold: The show, held.
        episodes: The episodes.
        n_backups: Backups to keep of each beside the first.
        touched: (episode, identity) pairs that a human decided about.

    Returns:
        What could not be relabelled, and why; the Facebank keeps it, and another call makes up for it.
    """
    failures: dict[str, Exception] = {}
    wanted = set(episodes)
    left = [known for known in root.list_episodes() if known in wanted]
    while left:
        decided = {identity_id for episode, identity_id in touched if episode == left[0]}
        try:
            hold.check()
            labels = facebank.people.read_labels(hold.show, left[0])
        except FacebankError as error:  # a server that is gone is not waited for once per episode
            failures.update(dict.fromkeys(left, error))
            break
        ep_id = left.pop(0)
        try:
            change_identities(root, ep_id, partial(_relabel_rows, labels=labels, decided=decided), n_backups)
        except (CleanupError, OSError) as error:
            failures[ep_id] = error
    todo = f"cleanup people sync --show {hold.show} writes them"
    return [f"{ep_id} keeps its old labels ({error}); {todo}" for ep_id, error in failures.items()]


def _relabel_rows(rows: list[Row], *, labels: Mapping[str, Label], decided: Collection[str]) -> list[Row]:
    return [_relabel(row, labels.get(row["identity_id"]), row["identity_id"] in decided) for row in rows]


def _relabel(row: Row, label: Label | None, is_decided: bool) -> Row:
    if label is None or 2 * len(label.track_ids & set(row["track_ids"])) <= len(label.track_ids):
        return row  # no identity that the Facebank knows
    if not is_decided and (row["is_locked"] or is_human_named(row) or label.source == HUMAN):
        return row
    source = {HUMAN: None, SEED: FACEBANK_SOURCE}.get(label.source, PERSON_SOURCE) if label.person_id else None
    return {**row, "person_id": label.person_id, "name": label.name, "person_source": source}


def set_lock(root: DataRoot, ep_id: EpId, identity_id: str, n_backups: int, *, is_locked: bool) -> bool:
    """Locks or unlocks an identity.

    Returns:
        Whether that changed anything.

    Raises:
        ArtifactError: The episode has no such identity.
    """

    def change(rows: list[Row]) -> list[Row]:
        found = [row for row in rows if row["identity_id"] == identity_id]
        if not found:
            raise ArtifactError(f"{root.show(root.paths(ep_id).identities)}: no identity {identity_id!r}")
        found[0]["is_locked"] = is_locked
        return rows

    return change_identities(root, ep_id, change, n_backups)
