"""Writes an episode's files back as one transaction.

New contents are staged and fsynced beside the files they replace. What is about to be replaced is kept as a backup.
Renaming the journal into place is the commit point: before it, a crash leaves the episode as it was and what is staged
is rubbish; after it, whoever holds the episode next finishes the replacing from the journal. Each file is replaced by
an atomic rename, in an order in which no reference ever points nowhere: tracks first, identities later, the report
last; the other way round when an episode is put back. Readers that need all files of one moment use ``read_settled``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, TypeVar

import orjson

from cleanup.edges.artifact_files import EpisodePaths, Stamp
from cleanup.edges.backups import Backup, BackupStore, make_backup
from cleanup.edges.file_writing import FileVersion, read_version, write_pieces
from cleanup.edges.root_path import RootPath
from cleanup.errors import ArtifactError, BusyError, CleanupError, CommittedError
from cleanup.names import RunId

_JOURNAL_VERSION = 1
# How long a reader waits for a moment in which nobody writes.
_PATIENCE_S = 10.0
_GLANCE_S = 0.02
_T = TypeVar("_T")


class WriteBack:
    """One transaction over an episode that this process holds. A context manager: what was not committed is removed.

    Args:
        paths: The episode.
        run_id: The run that writes.
        made_by: What it is, for the backup's record.
        expected: ``paths.stamp()`` of when the episode was read; None where nothing was read from it.
    """

    def __init__(self, paths: EpisodePaths, run_id: RunId, made_by: str, expected: Stamp | None) -> None:
        self._paths, self._run_id, self._made_by, self._expected = paths, run_id, made_by, expected
        self._staged: dict[RootPath, FileVersion | None] = {}
        self.staged_paths = paths.staged(run_id)

    def __enter__(self) -> WriteBack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._paths.journal.exists():
            for target in list(self._staged):
                self.discard(target)

    @property
    def changed(self) -> list[RootPath]:
        """The files that a commit replaces or removes."""
        return list(self._staged)

    def stage(self, contents: Mapping[RootPath, Iterable[bytes | memoryview]]) -> None:
        """Writes new contents beside the files they are to replace.

        Args:
            contents: Target -> content, in pieces.
        """
        for target, pieces in contents.items():
            self._staged[target] = None  # known before it is there, so that it is removed if writing fails
            staged = self._paths.staged_file(target, self._run_id)
            self._staged[target] = write_pieces(staged, pieces)
            if target.exists():
                staged.take_rights_of(target)

    def stage_removal(self, target: RootPath) -> None:
        """Notes that a file is to be gone after the commit."""
        self._staged[target] = None

    def discard(self, target: RootPath) -> None:
        """Forgets what was staged for a file."""
        self._staged.pop(target)
        self._paths.staged_file(target, self._run_id).unlink(missing_ok=True)

    def check(self) -> None:
        """Makes sure that the files are those that were read.

        Raises:
            ArtifactError: Another program has changed them meanwhile.
        """
        if self._expected is not None and self._paths.stamp() != self._expected:
            raise ArtifactError(
                f"{self._paths.ep_id}: another program has changed the episode's files during the run; nothing was "
                "written, run it again"
            )

    def commit(self, *, is_backwards: bool = False) -> Backup:
        """Replaces the files by what was staged, all or none, and keeps what was there.

        Args:
            is_backwards: Whether this goes back to an earlier state, whose files refer to less.

        Returns:
            The record of what was there.

        Raises:
            ArtifactError: Another program has changed the files meanwhile; nothing was written.
            OSError: Nothing was written.
            CommittedError: After the commit point; whoever holds the episode next finishes it.
        """
        self.check()
        paths, store = self._paths, BackupStore(self._paths)
        before: dict[str, FileVersion | None] = {}
        for target in paths.written:
            is_replaced = target in self._staged
            before[paths.name_of(target)] = (
                None if not target.exists() else store.keep(target) if is_replaced else read_version(target)
            )
        new = {paths.name_of(target): version for target, version in self._staged.items()}
        backup = make_backup(self._run_id, self._made_by, before, {**before, **new})
        record_path = store.record_path(self._run_id)
        record = write_pieces(paths.staged_file(record_path, self._run_id), [backup.to_json()])
        ordered = sorted(self._staged, key=paths.written.index, reverse=is_backwards)
        moves = [_move(paths, self._run_id, record_path, record)]
        moves += [_move(paths, self._run_id, target, self._staged[target]) for target in ordered]
        for folder in _folders(paths, moves):
            folder.sync()
        _write_journal(paths, self._run_id, moves)
        try:
            _apply(paths, moves)
        except OSError as error:
            raise CommittedError(
                f"{paths.ep_id}: the new files are committed but not all in place ({error}); the next command on the "
                "episode finishes that"
            ) from error
        self._staged.clear()
        return backup


def _move(paths: EpisodePaths, run_id: RunId, target: RootPath, version: FileVersion | None) -> dict[str, Any]:
    staged = paths.name_of(paths.staged_file(target, run_id))
    return {
        "target": paths.name_of(target),
        "staged": None if version is None else staged,
        "sha256": None if version is None else version.sha256,
    }


def _folders(paths: EpisodePaths, moves: list[dict[str, Any]]) -> list[RootPath]:
    return sorted({(paths.root / move["target"]).parent for move in moves})


def _write_journal(paths: EpisodePaths, run_id: RunId, moves: list[dict[str, Any]]) -> None:
    journal = {"version": _JOURNAL_VERSION, "run_id": run_id, "moves": moves}
    draft = paths.journal.with_name("journal.draft")
    try:
        write_pieces(draft, [orjson.dumps(journal)])
        draft.replace(paths.journal)
        paths.journal.parent.sync()
    except BaseException:
        # Renamed but perhaps not for good: as nothing is in place yet, it is taken back.
        paths.journal.unlink(missing_ok=True)
        draft.unlink(missing_ok=True)
        raise


def _apply(paths: EpisodePaths, moves: list[dict[str, Any]]) -> None:
    """Puts everything into place; done twice it is as done once."""
    for move in moves:
        target = paths.root / move["target"]
        if move["staged"] is None:
            target.unlink(missing_ok=True)
        elif (staged := paths.root / move["staged"]).exists():
            staged.replace(target)
        elif not target.exists() or read_version(target).sha256 != move["sha256"]:
            raise FileNotFoundError(f"{staged} is gone, and {target} is not what it was to become")
    for folder in _folders(paths, moves):
        folder.sync()
    paths.journal.unlink()
    paths.journal.parent.sync()


def recover(paths: EpisodePaths) -> bool:
    """Finishes a write-back that a crash cut off after its commit point; removes what one left before it.

    For whoever holds the episode.

    Returns:
        Whether a write-back was finished.

    Raises:
        ArtifactError: The journal is not one, or what it speaks of is gone.
    """
    if paths.journal.exists():
        moves = _read_journal(paths)
        try:
            _apply(paths, moves)
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{paths.journal}: a write-back was cut off and cannot be finished ({error}); cleanup backups list "
                f"{paths.ep_id} shows what there is to go back to, once the journal is moved away"
            ) from error
        return True
    rubbish = [
        *paths.manifests.glob(".*.staged"), *paths.embeddings.parent.glob(".*.staged"),
        *paths.backups.glob(".*.staged"), *paths.backups.glob("objects/.*.draft"), *paths.runs.glob("journal.draft"),
        *paths.manifests.glob(".cleanup_*.tmp"), *paths.runs.glob(".*.tmp"), *paths.runs.glob("*/.*.tmp"),
    ]  # fmt: skip
    for path in rubbish:
        path.unlink(missing_ok=True)
    if rubbish:
        with contextlib.suppress(ArtifactError):  # a record that cannot be read keeps everything
            BackupStore(paths).drop_unused()  # contents that were kept for what did not come about
    return False


def _read_journal(paths: EpisodePaths) -> list[dict[str, Any]]:
    try:
        journal = orjson.loads(paths.journal.read_bytes())
        if journal["version"] != _JOURNAL_VERSION:
            raise ValueError("it is of another version of this program")
        moves = list(journal["moves"])
        for move in moves:
            for name in (move["target"], move["staged"]):
                if name is not None and not _is_inside(paths, name):
                    raise ValueError(f"it speaks of {name!r}, which is none of the episode's files")
        return moves
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ArtifactError(
            f"{paths.journal}: not a readable journal ({error}); move it away, and see cleanup backups list "
            f"{paths.ep_id} for what there is to go back to"
        ) from error


def _is_inside(paths: EpisodePaths, name: str) -> bool:
    folders = {paths.name_of(folder) for folder in (paths.manifests, paths.embeddings.parent, paths.backups)}
    return str(PurePosixPath(name).parent) in folders and PurePosixPath(name).name not in ("", ".", "..")


def read_settled(paths: EpisodePaths, read: Callable[[], _T], finish: Callable[[], None]) -> _T:
    """Reads several files of an episode as they are in one moment, without holding it.

    Args:
        paths: The episode.
        read: Reads; done again where somebody wrote meanwhile.
        finish: Finishes a write-back that was cut off, by holding the episode for a moment.

    Raises:
        BusyError: The episode is written all the time.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        stamp = paths.stamp()
        if not paths.journal.exists():
            try:
                found = read()
            except CleanupError:
                if paths.stamp() == stamp and not paths.journal.exists():
                    raise
            else:
                if not paths.journal.exists() and paths.stamp() == stamp:
                    return found
        else:
            with contextlib.suppress(BusyError):  # who holds it is putting the files into place
                finish()
        if time.monotonic() > deadline:
            raise BusyError(f"{paths.ep_id}: the episode is being written again and again; try later")
        time.sleep(_GLANCE_S)
