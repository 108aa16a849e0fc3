"""Backups of the first versions, a folder per run with the files it replaced, made into those of today.

    backups/EP_ID/RUN/manifests/EP_ID/tracks.jsonl      as it was before RUN

Such a folder says nothing of files that the run left alone or made. The report is the one file that a first run makes;
every other one was left alone, so it held what the next later state says it did.
"""

from __future__ import annotations

import logging

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.backups import Backup, BackupStore, State
from cleanup.edges.file_writing import FileVersion, read_version, write_synced
from cleanup.edges.records import set_aside
from cleanup.edges.root_path import RootPath, UnsafePathError
from cleanup.names import RunId, check_run_id, is_run_id

_MADE_BY = "run"
_log = logging.getLogger(__name__)


def find_early(paths: EpisodePaths) -> list[RootPath]:
    """The folders there are, oldest first."""
    return [path for path in paths.backups.glob("[0-9]*") if is_run_id(path.name) and path.is_real_folder()]


def migrate_early(paths: EpisodePaths) -> None:
    """Keeps the contents of such folders as objects with a record, and removes them; for whoever holds the episode."""
    folders = find_early(paths)
    if not folders:
        return
    store = BackupStore(paths)
    later = store.list_backups()
    state: State = (
        later[0].before if later else {paths.name_of(p): read_version(p) if p.exists() else None for p in paths.written}
    )
    known = {backup.run_id: backup for backup in later}
    for folder in reversed(folders):
        run_id = check_run_id(folder.name)
        if run_id not in known:
            try:
                before = {name: _keep(paths, store, folder, name, version) for name, version in state.items()}
            except UnsafePathError as error:
                set_aside(folder, error, "the other backups are kept without it")
                continue
            known[run_id] = _record(run_id, before, state)
            write_synced(store.record_path(run_id), known[run_id].to_json())
        state = known[run_id].before
        folder.rmtree()
    _log.warning("%s: backups of an early version are kept by content now (%d)", paths.ep_id, len(folders))


def _keep(
    paths: EpisodePaths, store: BackupStore, folder: RootPath, name: str, later: FileVersion | None
) -> FileVersion | None:
    kept = folder / name
    if kept.is_file():
        return store.keep(kept)
    return None if name == paths.name_of(paths.report) else later


def _record(run_id: RunId, before: State, after: State) -> Backup:
    # Named after its moment, which is all that is known of when.
    created_at = f"{run_id[:4]}-{run_id[4:6]}-{run_id[6:8]}T{run_id[9:11]}:{run_id[11:13]}:{run_id[13:15]}+00:00"
    return Backup(0, run_id, _MADE_BY, created_at, before, after)
