"""The journal of a write-back: which files change places, so that it can be finished, or undone, by whoever is there.

A move swaps a staged file and the one it replaces in one step (where the file system can), so what was displaced is
looked at before it is let go: if it is not what the run read, another program has replaced or edited it meanwhile, and
everything goes back. Each step looks at digests, so doing or undoing it again after a crash does no harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.file_writing import read_pieces, read_version, write_pieces
from cleanup.edges.records import RecordError, take
from cleanup.edges.root_path import RootPath, UnsafePathError
from cleanup.errors import ArtifactError, one_line
from cleanup.names import RunId, check_run_id

_VERSION = 2
# Of a journal that does not say what the files held before.
_UNKNOWN = ""
# What a link, a folder or a special file holds: nothing that was ever read or written here.
_NO_FILE = "no file"


class ChangedMeanwhileError(ArtifactError):
    """Another program has changed a file while it was being replaced."""


class NewerJournalError(ArtifactError):
    """A newer version of this program was cut off; only that one can finish what it began."""


@dataclass(frozen=True)
class Move:
    """The replacement of one file.

    Attributes:
        target: The file.
        staged: Where its new content lies, and then what it displaced.
        before: SHA-256 of what the file held; None where it was not there.
        after: SHA-256 of what it is to hold; None where it is to be gone.
    """

    target: RootPath
    staged: RootPath
    before: str | None
    after: str | None

    @property
    def returning(self) -> RootPath:
        """Where what the file held is written before it is put back, if it was not displaced but overwritten."""
        return self.staged.with_name(f"{self.staged.name}.returning.staged")


@dataclass(frozen=True)
class Journal:
    """All moves of a write-back, in the order they are made.

    Attributes:
        run_id: The run that writes.
        moves: The first is that of the backup's record.
    """

    run_id: RunId
    moves: tuple[Move, ...]

    @property
    def folders(self) -> list[RootPath]:
        """The folders whose names change."""
        return sorted({move.target.parent for move in self.moves})

    def write(self, paths: EpisodePaths) -> None:
        """Puts the journal into place, which is the commit point; if that fails, there is none."""
        moves = [
            {"target": paths.name_of(m.target), "staged": paths.name_of(m.staged), "before": m.before, "after": m.after}
            for m in self.moves
        ]
        draft = paths.journal.with_name("journal.draft")
        try:
            write_pieces(draft, [orjson.dumps({"version": _VERSION, "run_id": self.run_id, "moves": moves})])
            draft.replace(paths.journal)
            paths.journal.parent.sync()
        except BaseException:
            # Renamed but perhaps not for good: as nothing is in place yet, it is taken back.
            paths.journal.unlink(missing_ok=True)
            draft.unlink(missing_ok=True)
            raise

    def apply(self) -> None:
        """Makes all moves, or those that are left.

        Raises:
            ChangedMeanwhileError: A file is not what it was when the run read it.
            OSError: A move failed.
        """
        for move in self.moves:
            _make(move)
        for folder in self.folders:
            folder.sync()

    def undo(self, kept: Mapping[RootPath, RootPath]) -> None:
        """Takes all moves back that were made; what another program has written since stays.

        Args:
            kept: File -> where what it held is kept, for file systems that do not swap.

        Raises:
            OSError: A file could not be put back.
        """
        for move in reversed(self.moves):
            _take_back(move, kept.get(move.target))
        for folder in self.folders:
            folder.sync()

    def remove(self, paths: EpisodePaths) -> None:
        """Removes the journal: what it says is done, or undone, for good."""
        paths.journal.unlink()
        paths.journal.parent.sync()

    def clear(self) -> None:
        """Removes what was displaced, or was staged and did not come about."""
        for move in self.moves:
            for path in (move.staged, move.returning):
                if not path.is_real_folder():  # which is nobody's of ours
                    path.unlink(missing_ok=True)


def _digest(path: RootPath) -> str | None:
    try:
        return read_version(path).sha256 if path.exists() else None
    except UnsafePathError:
        return _NO_FILE


def _make(move: Move) -> None:
    staged = _digest(move.staged)
    if move.after is None:
        if staged is None and move.target.is_taken():
            move.target.rename_new(move.staged)
        _check_displaced(move, _digest(move.staged))
    elif staged == move.after:
        _put(move)
    elif _digest(move.target) == move.after:
        _check_displaced(move, staged)
    else:
        raise FileNotFoundError(2, f"is not what it was to become, and {move.staged} is gone", str(move.target))


def _put(move: Move) -> None:
    if not move.target.is_taken():
        if move.before not in (None, _UNKNOWN):
            raise ChangedMeanwhileError(f"{move.target}: another program has removed it")
        move.staged.rename_new(move.target)
    elif move.before is None:
        raise ChangedMeanwhileError(f"{move.target}: another program has made it")
    elif move.staged.exchange(move.target):
        _check_displaced(move, _digest(move.staged))
    else:
        _check_displaced(move, _digest(move.target))
        move.staged.replace(move.target)


def _check_displaced(move: Move, digest: str | None) -> None:
    if digest == _NO_FILE or (digest is not None and move.before not in (digest, _UNKNOWN)):
        raise ChangedMeanwhileError(f"{move.target}: another program has changed it")


def _take_back(move: Move, kept: RootPath | None) -> None:
    displaced = _digest(move.staged)
    if move.after is None:
        if displaced is not None and not move.target.is_taken():
            move.staged.rename_new(move.target)
    elif displaced != move.after and _digest(move.target) == move.after:
        if displaced is not None:
            if not move.staged.exchange(move.target):
                move.staged.replace(move.target)
        elif move.before is None:
            move.target.unlink()
        elif kept is not None:
            write_pieces(move.returning, read_pieces(kept))
            move.returning.take_rights_of(move.target)
            move.returning.replace(move.target)
        else:
            raise FileNotFoundError(2, "what it held is not kept", str(move.target))


def read_journal(paths: EpisodePaths) -> Journal:
    """The journal of an episode, taken like any input: it can speak of nothing but what a write-back changes.

    Raises:
        NewerJournalError: It is of a newer version.
        RecordError: It is not a journal.
        OSError: It cannot be read.
    """
    record = take(paths.journal, dict)
    version = record.get("version", 0)
    if isinstance(version, int) and version > _VERSION:
        raise NewerJournalError(
            f"{paths.journal}: a newer version of this program was cut off while it wrote; finish with that one"
        )
    if not isinstance(record.get("moves"), list):
        raise RecordError(f"{paths.journal}: it has no list of moves")
    try:
        run_id = check_run_id(str(record["run_id"]))
        read = {0: _read_pairs, 1: _read_moves, 2: _read_moves}[version]
        return Journal(run_id, tuple(read(paths, run_id, record["moves"])))
    except (ArtifactError, KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{paths.journal}: {one_line(str(error))}") from error


def _read_moves(paths: EpisodePaths, run_id: RunId, moves: Sequence[Any]) -> list[Move]:
    places = places_of(paths, run_id)
    found = []
    for move in moves:
        target = places.get(str(move["target"]))
        if target is None:
            raise ValueError(f"it speaks of {move['target']!r}, which no write-back changes")
        staged = paths.staged_file(target, run_id)
        if move["staged"] not in (None, paths.name_of(staged)):
            raise ValueError(f"it speaks of {move['staged']!r}, which is not where anything is staged")
        # Version 1 said what a file is to hold, and nothing of what it held.
        after = move["after"] if "after" in move else move["sha256"]
        if after is None and target not in (paths.track_metrics, paths.report):
            raise ValueError(f"it removes {move['target']!r}, without which there is no episode")
        found.append(Move(target, staged, _check_digest(move.get("before", _UNKNOWN)), _check_digest(after)))
    return found


def _read_pairs(paths: EpisodePaths, run_id: RunId, moves: Sequence[Any]) -> Iterable[Move]:
    """Those of the first versions: pairs of names, staged below the run's folder; a pair without staged is done."""
    places = places_of(paths, run_id)
    for staged_name, target_name in moves:
        target = places[target_name]
        staged = paths.runs / run_id / "staged" / target_name
        if staged_name != paths.name_of(staged):
            raise ValueError(f"it speaks of {staged_name!r}, which is not where anything is staged")
        if staged.exists():
            yield Move(target, staged, _UNKNOWN, read_version(staged).sha256)


def places_of(paths: EpisodePaths, run_id: RunId) -> dict[str, RootPath]:
    """All that a run's write-back changes, by its name in a journal."""
    return {paths.name_of(p): p for p in (paths.backups / f"{run_id}.json", *paths.written)}


def _check_digest(value: Any) -> str | None:
    if value is None or value == _UNKNOWN:
        return value
    if not isinstance(value, str) or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise ValueError(f"{value!r} is no SHA-256")
    return value
