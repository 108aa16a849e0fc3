"""What an episode's files held before each write-back, kept by content: a record per run, one object per content.

    backups/EP_ID/RUN.json           which file held what before and after the run (by SHA-256)
    backups/EP_ID/objects/SHA256     the contents that were replaced, each once; copies that nothing else writes to

A record names every artifact, also those the run left alone. The content of one that was not replaced is the file
itself until a later run replaces it and keeps it. So a state is put together from objects and from the files there are.
Records are in the order of the numbers they carry, not of the clocks that named the runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.file_writing import FileVersion, read_pieces, read_version, write_pieces
from cleanup.edges.records import RecordError, field, set_aside, take
from cleanup.edges.remote_root import RemoteRoot
from cleanup.edges.root_path import RootPath
from cleanup.errors import ArtifactError, first_line
from cleanup.names import RunId, check_run_id, is_run_id

_SCHEMA_VERSION, _ANY_VERSION = "backup_v1", re.compile("backup_v[0-9]{1,3}")
_MAX_TEXT = 200
# Beyond it nobody counts; backups that have it are in the order of their names.
_LAST_NUMBER = 1 << 53
_SHA256 = re.compile("[0-9a-f]{64}")
_log = logging.getLogger(__name__)
# File -> what it held, or None where it was not there; names are relative to the data root.
State = Mapping[str, FileVersion | None]


class NewerRecordError(RecordError):
    """A record that a newer version of this program has written; it is left alone."""


@dataclass(frozen=True)
class Backup:
    """The record of one write-back.

    Attributes:
        number: Its place in the order of the episode's backups, from 1; 0 where an early version gave none.
        run_id: The run.
        made_by: What wrote: ``run``, ``people`` or ``restore RUN``.
        created_at: When, ISO 8601.
        before: What the files held before it.
        after: What they held after it.
    """

    number: int
    run_id: RunId
    made_by: str
    created_at: str
    before: State
    after: State

    @property
    def changed(self) -> list[str]:
        """The files that the run replaced."""
        return [name for name in self.after if self.before[name] != self.after[name]]

    def to_json(self) -> bytes:
        """The record as it is stored."""
        return orjson.dumps({"schema_version": _SCHEMA_VERSION, **dataclasses.asdict(self)}, option=orjson.OPT_INDENT_2)


class BackupStore:
    """The backups of one episode.

    Args:
        paths: The episode.
        remote: The data root behind a URL that the paths mirror, or None.
    """

    def __init__(self, paths: EpisodePaths, remote: RemoteRoot | None = None) -> None:
        self._paths, self._remote = paths, remote
        self._objects = paths.backups / "objects"

    def record_path(self, run_id: RunId) -> RootPath:
        """Where the record of a run lies."""
        return self._paths.backups / f"{run_id}.json"

    def object_path(self, version: FileVersion) -> RootPath:
        """Where a content lies, if it is kept."""
        return self._objects / version.sha256

    def object_of(self, sha256: str) -> RootPath:
        """Where the content of a digest lies, if it is kept."""
        return self._objects / sha256

    def make_backup(self, run_id: RunId, made_by: str, before: State, after: State) -> Backup:
        """A record of now, the last of all."""
        last = max((backup.number for backup in self.list_backups()), default=0)
        number = min(last + 1, _LAST_NUMBER)
        return Backup(number, run_id, made_by, datetime.now(UTC).isoformat(timespec="seconds"), before, after)

    def list_backups(self) -> list[Backup]:
        """All backups, oldest first; records that are not whole are named and left out."""
        backups, odd = self._scan()
        for error in odd.values():
            _log.warning("%s; left out", error)
        return backups

    def _scan(self) -> tuple[list[Backup], dict[RootPath, RecordError]]:
        if self._remote is not None:
            self._remote.fetch_some(self._paths.backups, "*.json")
        found, odd = [], {}
        for path in self._paths.backups.glob("[0-9]*.json"):
            if not is_run_id(path.stem):  # somebody else's
                continue
            try:
                found.append(self._read_record(path))
            except FileNotFoundError:  # pruned meanwhile
                continue
            except RecordError as error:
                odd[path] = error
        return sorted(found, key=lambda backup: (backup.number, backup.run_id)), odd

    def read(self, run_id: RunId) -> Backup:
        """The backup of a run.

        Raises:
            ArtifactError: There is none, or it cannot be read.
        """
        path = self.record_path(run_id)
        if self._remote is not None:
            self._remote.fetch(path)
        if not path.exists():
            raise ArtifactError(
                f"{self._paths.ep_id}: no backup of run {run_id}; cleanup backups list {self._paths.ep_id} has them"
            )
        return self._read_record(path)

    def keep(self, target: RootPath) -> FileVersion:
        """Keeps a copy of what a file holds now, in an object that nothing else can write to."""
        self._paths.backups.mkdir(like=self._paths.manifests)
        draft = self._objects / f".{target.name}.draft"
        version = write_pieces(draft, read_pieces(target))
        kept = self.object_path(version)
        if kept.is_real_file() and read_version(kept) == version:
            draft.unlink()
        else:
            draft.replace(kept)
            self._objects.sync()
        return version

    def find(self, name: str, version: FileVersion) -> RootPath:
        """A file that holds what an artifact held.

        Args:
            name: The artifact, relative to the data root.
            version: What it held.

        Raises:
            ArtifactError: It is not kept, or damaged.
        """
        kept, current = self.object_path(version), self._paths.root / name
        if self._remote is not None and not kept.exists():
            self._remote.fetch(kept)
        is_damaged = False
        for path in (kept, current):
            with contextlib.suppress(FileNotFoundError):  # pruned, or replaced, meanwhile
                if path.is_real_file():
                    if read_version(path) == version:
                        return path
                    is_damaged |= path == kept
        if is_damaged:
            raise ArtifactError(f"{kept}: damaged; it does not hold what its name says, so {name} cannot be had back")
        raise ArtifactError(
            f"{self._paths.ep_id}: {name} as it was is not kept: another program has changed it since; nothing was "
            "changed"
        )

    def prune(self, n_kept: int, *, is_first_kept: bool) -> tuple[list[RootPath], int]:
        """Removes the oldest backups, and the contents that only they had.

        Args:
            n_kept: How many of the newest stay.
            is_first_kept: Whether the oldest of all stays as well: the episode as it came.

        Returns:
            Records and objects that were removed, and how many bytes the objects held.
        """
        backups = self.list_backups()
        first = 1 if is_first_kept else 0
        dropped = backups[first : max(len(backups) - n_kept, first)]
        records = [self.record_path(backup.run_id) for backup in dropped]
        for path in records:  # before the contents: one without a record is rubbish, the other way round it is missed
            self._remove(path)
        objects, n_bytes = self.drop_unused()
        return records + objects, n_bytes

    def drop_unused(self) -> tuple[list[RootPath], int]:
        """Removes contents that no record speaks of; gives them, and how many bytes they held.

        For whoever holds the episode. While there is a record that is not whole, every content may be one of its.
        """
        backups, odd = self._scan()
        for path, error in odd.items():
            if not isinstance(error, NewerRecordError):
                set_aside(path, error, "contents in objects/ are kept until it is removed")
        if odd or self._paths.backups.glob("*.json.unreadable-*"):
            return [], 0
        states = [state for b in backups for state in (b.before, b.after)]
        used = {version.sha256 for state in states for version in state.values() if version is not None}
        unused = {path: size for path, size in self._list_objects().items() if path.name not in used}
        for path in unused:
            self._remove(path)
        return sorted(unused), sum(unused.values())

    def _list_objects(self) -> dict[RootPath, int]:
        if self._remote is not None:
            sizes = self._remote.list_sizes(self._objects)
        else:
            sizes = {path: path.stat().st_size for path in self._objects.glob("*") if path.is_real_file()}
        return {path: size for path, size in sizes.items() if _SHA256.fullmatch(path.name)}  # others are not ours

    def _remove(self, path: RootPath) -> None:
        path.unlink(missing_ok=True)
        if self._remote is not None:
            self._remote.remove(path)

    def _read_record(self, path: RootPath) -> Backup:
        record = take(path, dict)
        try:
            version = field(record, "schema_version", str)
            if version != _SCHEMA_VERSION and _ANY_VERSION.fullmatch(version):
                raise NewerRecordError(f"{path}: a record of a newer version of this program")
            if version != _SCHEMA_VERSION:
                raise ValueError(f"{version!r} is no version")
            before, after = (self._read_state(field(record, name, dict)) for name in ("before", "after"))
            if before.keys() != after.keys():
                raise ValueError("before and after speak of different files")
            texts = [field(record, name, str)[:_MAX_TEXT] for name in ("made_by", "created_at")]
            number = field(record, "number", int) if "number" in record else 0
            if not 0 <= number <= _LAST_NUMBER:
                raise ValueError(f"{number} is no number of a backup")
            return Backup(number, check_run_id(path.stem), texts[0], texts[1], before, after)
        except NewerRecordError:
            raise
        except (ArtifactError, TypeError, ValueError) as error:
            raise RecordError(f"{path}: not a readable record of a backup ({first_line(error)})") from error

    def _read_state(self, state: dict[str, Any]) -> State:
        known = {self._paths.name_of(path) for path in self._paths.written}
        if not state.keys() <= known:
            raise ValueError(f"it speaks of {sorted(state.keys() - known)[0]!r}, which no write-back changes")
        return {name: None if v is None else _read_version_of(field(state, name, dict)) for name, v in state.items()}


def _read_version_of(value: dict[str, Any]) -> FileVersion:
    sha256, size = field(value, "sha256", str), field(value, "size", int)
    if not _SHA256.fullmatch(sha256) or size < 0:
        raise ValueError(f"{sha256!r} of {size} bytes is no content")
    return FileVersion(sha256, size)
