"""Writes an episode's files back as one transaction, one run at a time.

New contents are staged and fsynced under the episode's run folder. What is about to be replaced is kept as a backup.
Writing the journal is the commit point: before it, a crash leaves the episode as it was and the staged files are
rubbish; after it, the next command finishes the replacing from the journal. Files are replaced in a fixed order, each
by an atomic rename.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import orjson

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.errors import ArtifactError, BusyError

_BUFFER_BYTES = 1 << 20


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_synced(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb", buffering=_BUFFER_BYTES) as stream:
        stream.writelines(pieces)
        stream.flush()
        os.fsync(stream.fileno())


def make_run_id() -> str:
    """A fresh id: when, and by which process."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}Z-{os.getpid()}"


@contextlib.contextmanager
def hold_episode(paths: EpisodePaths) -> Iterator[None]:
    """Holds the episode for one run; the lock dies with the process. A write-back that was cut off is finished first.

    Raises:
        BusyError: Another run holds the episode; the message says which process and since when.
    """
    paths.runs.mkdir(parents=True, exist_ok=True)
    lock = paths.runs / "lock"
    with lock.open("a+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.seek(0)
            holder = stream.read().decode(errors="replace").strip() or "another process"
            raise BusyError(f"{paths.ep_id}: a cleanup is running already ({holder}); wait for it or stop it") from None
        stream.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        stream.write(f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
        stream.flush()
        recover(paths)
        try:
            yield
        finally:
            stream.truncate(0)


def _journal_of(paths: EpisodePaths) -> Path:
    return paths.runs / "journal.json"


def recover(paths: EpisodePaths) -> bool:
    """Finishes a write-back that a crash cut off after its commit point; removes what one left before it.

    Returns:
        Whether a write-back was finished.

    Raises:
        ArtifactError: The journal cannot be read.
    """
    journal = _journal_of(paths)
    if journal.exists():
        try:
            moves = orjson.loads(journal.read_bytes())["moves"]
        except (orjson.JSONDecodeError, KeyError, OSError) as error:
            raise ArtifactError(
                f"{journal}: unreadable ({error}); restore the episode from backups/ by hand"
            ) from error
        _apply(paths, journal, moves)
        return True
    for staged in paths.runs.glob("*/staged"):
        shutil.rmtree(staged)
    return False


def _apply(paths: EpisodePaths, journal: Path, moves: list[list[str]]) -> None:
    for staged_name, target_name in moves:
        staged, target = paths.root / staged_name, paths.root / target_name
        if staged.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(target)
            _sync_folder(target.parent)
    journal.unlink()
    _sync_folder(journal.parent)
    for staged_folder in paths.runs.glob("*/staged"):
        shutil.rmtree(staged_folder)


def stage(paths: EpisodePaths, run_id: str, contents: Mapping[Path, Iterable[bytes | memoryview]]) -> EpisodePaths:
    """Writes new contents under the run folder, laid out like a data root of their own.

    Args:
        paths: The episode.
        run_id: The run.
        contents: Target path -> content, in pieces.

    Returns:
        Paths of the staged episode, so that it can be read and checked before it is committed.
    """
    staged_root = paths.runs / run_id / "staged"
    for target, pieces in contents.items():
        _write_synced(staged_root / target.relative_to(paths.root), pieces)
    return EpisodePaths(staged_root, paths.ep_id)


def commit(paths: EpisodePaths, run_id: str, targets: list[Path]) -> Path:
    """Replaces the episode's files by the staged ones, all or none.

    Args:
        paths: The episode.
        run_id: The run whose staged files are committed.
        targets: Files to replace, in order.

    Returns:
        Folder with the backup of what was there.
    """
    with _signals_held():
        return _commit(paths, run_id, targets)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the commit is through; a crash needs the journal, an impatient user does not."""
    held = {signal.SIGINT, signal.SIGTERM}
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _commit(paths: EpisodePaths, run_id: str, targets: list[Path]) -> Path:
    backup = paths.root / "backups" / paths.ep_id / run_id
    staged_root = paths.runs / run_id / "staged"
    moves = []
    for target in targets:
        name = target.relative_to(paths.root)
        if target.exists():
            kept = backup / name
            kept.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(target, kept)
            except OSError:
                shutil.copy2(target, kept)
            _sync_folder(kept.parent)
        moves.append([str((staged_root / name).relative_to(paths.root)), str(name)])
    journal = _journal_of(paths)
    draft = journal.with_suffix(".draft")
    _write_synced(draft, [orjson.dumps({"run_id": run_id, "moves": moves})])
    draft.replace(journal)
    _sync_folder(journal.parent)
    _apply(paths, journal, moves)
    return backup


def write_synced(path: Path, content: bytes) -> None:
    """Writes one file atomically: staged beside it, fsynced, renamed."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _write_synced(draft, [content])
    draft.replace(path)
    _sync_folder(path.parent)
