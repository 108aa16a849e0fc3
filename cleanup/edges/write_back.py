"""Writes an episode's files back as one transaction.

New contents are staged and fsynced beside the files they replace. What is about to be replaced is kept as a backup, and
that each file can be replaced is tried. Renaming the journal into place is the commit point: before it, a crash leaves
the episode as it was and what is staged is rubbish; after it, whoever holds the episode next finishes the replacing
from the journal. Where it cannot be finished, by this process or the next, everything that was in place goes back. Each
file is replaced in one step, in an order in which no reference ever points nowhere: tracks first, identities later, the
report last; the other way round when an episode is put back. Readers that need all files of one moment use
``read_settled``.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TypeVar

from cleanup.edges.artifact_files import EpisodePaths, Stamp
from cleanup.edges.backups import Backup, BackupStore
from cleanup.edges.file_writing import FileVersion, read_version, write_pieces
from cleanup.edges.journal import ChangedMeanwhileError, Journal, Move, read_journal
from cleanup.edges.records import RecordError, set_aside
from cleanup.edges.root_path import RootPath
from cleanup.errors import (
    ArtifactError,
    BusyError,
    CleanupError,
    CommittedError,
    StorageError,
    describe_error,
)
from cleanup.names import RunId

# How long a reader waits for a moment in which nobody writes.
_PATIENCE_S = 10.0
_GLANCE_S = 0.02
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class WriteBack:
    """One transaction over an episode that this process holds. A context manager: what was not committed is removed.

    Args:
        paths: The episode.
        run_id: The run that writes.
        made_by: What it is, for the backup's record.
        expected: ``paths.stamp()`` of when the episode was read; None where nothing was read from it.
        store: The episode's backups; None for those beside the episode.
    """

    def __init__(
        self,
        paths: EpisodePaths,
        run_id: RunId,
        made_by: str,
        expected: Stamp | None,
        store: BackupStore | None = None,
    ) -> None:
        self._paths, self._run_id, self._made_by, self._expected = paths, run_id, made_by, expected
        self._store = store or BackupStore(paths)
        self._staged: dict[RootPath, FileVersion | None] = {}
        self.staged_paths = paths.staged(run_id)

    def __enter__(self) -> WriteBack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._paths.journal.is_taken():
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
            OSError: Nothing was written, or it was put back.
            CommittedError: After the commit point; whoever holds the episode next finishes or undoes it.
        """
        self.check()
        before = self._keep()
        self.check()  # what was kept is what the run read
        backup, journal = self._plan(before, is_backwards=is_backwards)
        self._check_replaceable()
        for folder in journal.folders:
            folder.sync()
        journal.write(self._paths)
        kept = {self._paths.root / name: self._store.object_path(v) for name, v in before.items() if v is not None}
        try:
            journal.apply()
        except (OSError, MemoryError, ArtifactError) as error:
            raise _undone(self._paths, journal, kept, error) from error
        try:
            journal.remove(self._paths)
        except (OSError, ArtifactError) as error:
            raise CommittedError(
                f"{self._paths.ep_id}: the new files are committed, but their journal could not be removed "
                f"({describe_error(error)}); the next command on the episode does that"
            ) from error
        self._staged.clear()
        with contextlib.suppress(OSError, ArtifactError):  # whoever holds the episode next removes it
            journal.clear()
        return backup

    def _keep(self) -> dict[str, FileVersion | None]:
        """What all files hold; what is about to be replaced is kept."""
        before: dict[str, FileVersion | None] = {}
        for target in self._paths.written:
            is_kept = target in self._staged
            before[self._paths.name_of(target)] = (
                None if not target.exists() else self._store.keep(target) if is_kept else read_version(target)
            )
        return before

    def _plan(self, before: Mapping[str, FileVersion | None], *, is_backwards: bool) -> tuple[Backup, Journal]:
        """Stages the backup's record; gives it, and all that is to be moved."""
        paths = self._paths
        new = {paths.name_of(target): version for target, version in self._staged.items()}
        backup = self._store.make_backup(self._run_id, self._made_by, before, {**before, **new})
        target = self._store.record_path(self._run_id)
        staged = paths.staged_file(target, self._run_id)
        moves = [Move(target, staged, None, write_pieces(staged, [backup.to_json()]).sha256)]
        for target in sorted(self._staged, key=paths.written.index, reverse=is_backwards):
            old, version = before[paths.name_of(target)], self._staged[target]
            moves.append(
                Move(
                    target,
                    paths.staged_file(target, self._run_id),
                    None if old is None else old.sha256,
                    None if version is None else version.sha256,
                )
            )
        return backup, Journal(self._run_id, tuple(moves))

    def _check_replaceable(self) -> None:
        """Tries whether each file may be replaced, while nothing has been.

        Raises:
            StorageError: One may not.
            OSError: It could not be tried.
        """
        for target in self._staged:
            if target.exists():
                try:
                    target.check_replaceable(target.with_name(f".{self._run_id}.probe"))
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.EACCES, errno.EBUSY):
                        raise
                    raise StorageError(
                        f"{target}: cannot be replaced ({error.strerror}): it is immutable, a mount, or another user's "
                        "in a folder that protects it; nothing was written"
                    ) from error


def _undone(paths: EpisodePaths, journal: Journal, kept: Mapping[RootPath, RootPath], error: Exception) -> CleanupError:
    """Puts back what was replaced before something went wrong; gives the error that says so."""
    what = describe_error(error)
    try:
        journal.undo(kept)
        journal.remove(paths)
    except (OSError, ArtifactError) as failure:
        return CommittedError(
            f"{paths.ep_id}: {what}; the new files are committed, not all in place, and could not be put back "
            f"({describe_error(failure)}); the next command on the episode finishes or undoes that"
        )
    if isinstance(error, ChangedMeanwhileError):
        return ArtifactError(f"{what} during the run; its change stays, nothing else was written, run it again")
    return StorageError(f"{paths.ep_id}: {what}; nothing was written, the files are as they were")


def recover(paths: EpisodePaths) -> bool:
    """Finishes a write-back that a crash cut off after its commit point; removes what one left before it.

    For whoever holds the episode. What cannot be finished is undone.

    Returns:
        Whether a write-back was finished.

    Raises:
        ArtifactError: The journal is of a newer version, or can be neither finished nor undone.
    """
    if paths.journal.is_taken():
        try:
            journal = read_journal(paths)
        except RecordError as error:
            set_aside(
                paths.journal, error, f"the episode is taken as it is; cleanup backups list {paths.ep_id} shows more"
            )
            return False
        return _finish(paths, journal)
    rubbish = [
        *paths.manifests.glob(".*.staged"), *paths.embeddings.parent.glob(".*.staged"),
        *paths.backups.glob(".*.staged"), *paths.backups.glob("objects/.*.draft"), *paths.runs.glob("journal.draft"),
        *paths.manifests.glob(".cleanup_*.tmp"), *paths.runs.glob(".*.tmp"), *paths.runs.glob("*/.*.tmp"),
    ]  # fmt: skip
    for path in rubbish:
        if not path.is_real_folder():  # which is nobody's of ours
            path.unlink(missing_ok=True)
    for path in (*paths.manifests.glob(".*.probe"), *paths.embeddings.parent.glob(".*.probe")):
        with contextlib.suppress(OSError):  # what is no empty folder is not ours either
            path.rmdir()
    if rubbish:
        BackupStore(paths).drop_unused()  # contents that were kept for what did not come about
    return False


def _finish(paths: EpisodePaths, journal: Journal) -> bool:
    store = BackupStore(paths)
    kept = {move.target: store.object_of(move.before) for move in journal.moves if move.before}
    try:
        journal.apply()
    except (OSError, ArtifactError) as error:
        undone = _undone(paths, journal, kept, error)
        if isinstance(undone, CommittedError):
            raise ArtifactError(
                f"{paths.journal}: a write-back was cut off and can be neither finished nor undone ({undone}); cleanup "
                f"backups list {paths.ep_id} shows what there is to go back to, once the journal is moved away"
            ) from error
        _log.warning("a write-back that was cut off is undone: %s", undone)
        is_finished = False
    else:
        journal.remove(paths)
        is_finished = True
    journal.clear()
    return is_finished


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
        if not paths.journal.is_taken():
            try:
                found = read()
            except CleanupError:
                if paths.stamp() == stamp and not paths.journal.is_taken():
                    raise
            else:
                if not paths.journal.is_taken() and paths.stamp() == stamp:
                    return found
        else:
            with contextlib.suppress(BusyError):  # who holds it is putting the files into place
                finish()
        if time.monotonic() > deadline:
            raise BusyError(f"{paths.ep_id}: the episode is being written again and again; try later")
        time.sleep(_GLANCE_S)
