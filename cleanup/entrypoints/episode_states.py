"""Earlier states of an episode, put together from its backups: read, compared, and put back."""

from __future__ import annotations

from typing import Any

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import read_episode
from cleanup.edges.backups import Backup, State
from cleanup.edges.data_root import DataRoot
from cleanup.edges.episode_lock import make_run_id
from cleanup.edges.file_writing import read_pieces, read_version
from cleanup.entrypoints.stop_signals import stop_held
from cleanup.episode import Episode
from cleanup.episode_changes import compare_episodes
from cleanup.errors import ArtifactError
from cleanup.names import EpId, RunId
from cleanup.report import measure_episode
from cleanup.settings import SplitTracksSettings


def read_state(root: DataRoot, ep_id: EpId, state: State) -> Episode:
    """An episode as it was.

    Args:
        root: Data root.
        ep_id: The episode.
        state: What its files held.

    Raises:
        ArtifactError: A content is not kept any more, or the files did not make an episode.
    """
    paths, store = root.paths(ep_id), root.backups(ep_id)
    kept = {paths.name_of(path): path for path in paths.written}  # of what a record does not know it says nothing
    for name, version in state.items():
        kept[name] = paths.backups / "nothing" if version is None else store.find(name, version)
    return read_episode(EpisodePaths(root.path, ep_id, kept=kept))


def compare_states(before: Episode, after: Episode, gate: SplitTracksSettings) -> dict[str, Any]:
    """What is different between two states, both measured with the same gate."""
    return compare_episodes(before, after, measure_episode(before, gate), measure_episode(after, gate))


def compare_runs(
    root: DataRoot, ep_id: EpId, run_a: RunId | None, run_b: RunId | None, gate: SplitTracksSettings
) -> dict[str, Any]:
    """What changed between two runs, in one run, or in the last one.

    Args:
        root: Data root.
        ep_id: The episode.
        run_a: With ``run_b`` the state that it left; alone, what it changed; None is the last write-back.
        run_b: The other run, or None.
        gate: How metrics are measured.

    Raises:
        ArtifactError: There is no such run, or nothing was ever written back.
    """
    store = root.backups(ep_id)
    if run_a is None:
        backups = store.list_backups()
        if not backups:
            raise ArtifactError(f"{ep_id}: no run has written anything back yet, so there is nothing to compare")
        run_a = backups[-1].run_id
    first = store.read(run_a)
    states = (first.before, first.after) if run_b is None else (first.after, store.read(run_b).after)
    # Part of a state may be the files there are, which must not be replaced meanwhile.
    before, after = root.read_settled(ep_id, lambda _: [read_state(root, ep_id, state) for state in states])
    return {"ep_id": ep_id, "runs": [run_a] if run_b is None else [run_a, run_b],
            **compare_states(before, after, gate)}  # fmt: skip


def preview_restore(root: DataRoot, ep_id: EpId, run_id: RunId, gate: SplitTracksSettings) -> dict[str, Any]:
    """What putting the episode back to before a run would change now."""
    state = root.backups(ep_id).read(run_id).before
    now, then = root.read_settled(ep_id, lambda paths: (read_episode(paths), read_state(root, ep_id, state)))
    return {"ep_id": ep_id, "runs": [run_id], **compare_states(now, then, gate)}


def restore_backup(root: DataRoot, ep_id: EpId, run_id: RunId, n_backups: int) -> Backup | None:
    """Puts an episode's files back to what they held before a run, as one transaction with a backup of its own.

    Args:
        root: Data root.
        ep_id: The episode.
        run_id: The run.
        n_backups: Backups to keep beside the first.

    Returns:
        The backup of what was there, or None if the files hold that already.

    Raises:
        ArtifactError: There is no such backup, or a content is gone; nothing was changed.
        BusyError: A run holds the episode.
    """
    root.check_episode(ep_id)
    with root.hold(ep_id) as held:
        paths, store, expected = held.paths, root.backups(ep_id), held.paths.stamp()
        backup = store.read(run_id)
        with held.write_back(make_run_id(), f"restore {run_id}", expected) as write_back:
            for target in paths.written:
                name = paths.name_of(target)
                if name not in backup.before:  # a record that does not know a file says nothing about it
                    continue
                version, is_there = backup.before[name], target.exists()
                if version is None and is_there:
                    write_back.stage_removal(target)
                elif version is not None and not (is_there and read_version(target) == version):
                    write_back.stage({target: read_pieces(store.find(name, version))})
            if not write_back.changed:
                return None
            with stop_held():
                return held.commit(write_back, n_backups, is_backwards=True)
