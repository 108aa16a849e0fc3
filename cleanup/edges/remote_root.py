"""A data root behind a URL. An episode is worked on in a local mirror and published in one transaction.

What the storage promises: each object is replaced whole, never in part. What is built on that: new contents are
uploaded beside the old ones, then a journal object is written, which is the commit point; then the contents are copied
into place, in a fixed order. Whoever checks the episode out next finishes what a crash cut off after the commit point.
A reader that looks while objects are copied into place may see new files beside old ones; the journal tells it so.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import orjson

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.journal import places_of
from cleanup.edges.lease import LEASE_S, Lease, checked
from cleanup.edges.remote_files import open_filesystem, storage_errors
from cleanup.edges.root_path import RootPath
from cleanup.errors import ArtifactError, CommittedError, StorageError, first_line
from cleanup.names import EpId, RunId, check_ep_id, check_run_id, is_ep_id

_CHUNK_BYTES = 1 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteRoot:
    """A data root behind a URL, and the folder it is mirrored in.

    Attributes:
        url: The root, without a slash at its end.
        mirror: Local folder, laid out like the root.
    """

    url: str
    mirror: RootPath

    def list_episodes(self) -> list[EpId]:
        """Ids of the episodes that have artifacts."""
        filesystem, root = open_filesystem(self.url)
        folder = f"{root}/manifests"
        with storage_errors(f"{self.url}/manifests"):
            if not filesystem.exists(folder):
                return []
            names = [
                PurePosixPath(e["name"]).name for e in filesystem.ls(folder, detail=True) if e["type"] == "directory"
            ]
        return [check_ep_id(name) for name in sorted(names) if is_ep_id(name)]

    def check_out(self, ep_id: EpId) -> None:
        """Makes the mirror's artifacts equal to what is stored, after a cut-off publication has been finished."""
        paths = EpisodePaths(self.mirror, ep_id)
        self._recover(paths)
        for folder in (paths.manifests, paths.embeddings.parent):
            self._mirror(folder)
        finished = self._url_of(paths.finished)
        filesystem, name = open_filesystem(finished)
        paths.finished.unlink(missing_ok=True)
        with storage_errors(finished):
            if filesystem.exists(name):
                _download(filesystem, name, paths.finished)

    def fetch_checkpoints(self, ep_id: EpId) -> None:
        """Makes the mirror's checkpoints of an episode those that are stored."""
        self._mirror(EpisodePaths(self.mirror, ep_id).checkpoints)

    def _mirror(self, folder: RootPath) -> None:
        url = self._url_of(folder)
        filesystem, name = open_filesystem(url)
        with storage_errors(url):
            entries = filesystem.find(name, detail=True) if filesystem.exists(name) else {}
            wanted = {folder / str(PurePosixPath(path).relative_to(name)): path for path in entries}
            for local in list(folder.walk_files()):
                if local not in wanted:
                    local.unlink()
            for local, path in wanted.items():
                _download(filesystem, path, local)

    def has_episode(self, ep_id: EpId) -> bool:
        """Whether the episode has artifacts."""
        return self.is_stored(EpisodePaths(self.mirror, ep_id).manifests)

    def video_url(self, ep_id: EpId) -> str | None:
        """The episode's video, or None where there is none."""
        path = EpisodePaths(self.mirror, ep_id).video
        return self._url_of(path) if self.is_stored(path) else None

    def is_stored(self, local: RootPath) -> bool:
        """Whether there is something behind a file or folder of the mirror."""
        url = self._url_of(local)
        filesystem, name = open_filesystem(url)
        with storage_errors(url):
            return bool(filesystem.exists(name))

    def fetch(self, local: RootPath) -> None:
        """Brings one file into the mirror, if it is stored."""
        url = self._url_of(local)
        filesystem, name = open_filesystem(url)
        with storage_errors(url):
            if filesystem.exists(name):
                _download(filesystem, name, local)

    def fetch_some(self, folder: RootPath, pattern: str) -> None:
        """Makes the mirror's files of a folder that match a pattern those that are stored."""
        url = self._url_of(folder)
        filesystem, name = open_filesystem(url)
        for local in folder.glob(pattern):
            local.unlink()
        with storage_errors(url):
            for path in filesystem.glob(f"{name}/{pattern}"):
                _download(filesystem, path, folder / PurePosixPath(path).name)

    def list_sizes(self, folder: RootPath) -> dict[RootPath, int]:
        """The stored files of a folder, as places in the mirror, with their sizes."""
        url = self._url_of(folder)
        filesystem, name = open_filesystem(url)
        with storage_errors(url):
            found = filesystem.find(name, detail=True) if filesystem.exists(name) else {}
            return {
                folder / str(PurePosixPath(path).relative_to(name)): int(info["size"]) for path, info in found.items()
            }

    def put(self, local: RootPath) -> None:
        """Stores one file of the mirror as it is."""
        url = self._url_of(local)
        filesystem, name = open_filesystem(url)
        with storage_errors(url):
            _upload(filesystem, local, name)

    def remove(self, local: RootPath) -> None:
        """Removes what is stored of a file or folder of the mirror."""
        url = self._url_of(local)
        filesystem, name = open_filesystem(url)
        with storage_errors(url):
            if filesystem.exists(name):
                filesystem.rm(name, recursive=True)

    def publish(self, ep_id: EpId, run_id: RunId, files: list[RootPath], kept: list[RootPath]) -> None:
        """Makes the episode's stored files those of the mirror, all or none.

        Args:
            ep_id: The episode.
            run_id: The run that made them.
            files: Files of the mirror, in the order they are put into place; what is not in the mirror is removed.
            kept: Contents for the backup, named by their digest.

        Raises:
            StorageError: Before the commit point; nothing has changed.
            CommittedError: After it; whoever holds the episode next finishes it.
        """
        staged = f"{EpisodePaths(self.mirror, ep_id).runs.relative_to(self.mirror).as_posix()}/{run_id}/staged"
        filesystem, root = open_filesystem(self.url)
        moves: list[tuple[str | None, str]] = []
        with storage_errors(self.url):
            for path in kept:
                name = f"{root}/{path.relative_to(self.mirror).as_posix()}"
                _upload(filesystem, path, name)  # anew, also where one has the name: it may have gone bad
            for path in files:
                name = path.relative_to(self.mirror).as_posix()
                moves.append((f"{staged}/{name}" if path.exists() else None, name))
                if path.exists():
                    _upload(filesystem, path, f"{root}/{staged}/{name}")
            journal = orjson.dumps({"run_id": run_id, "moves": moves})
            filesystem.pipe_file(f"{root}/{self._journal_name(ep_id)}", journal)
        try:
            with storage_errors(self.url):
                self._apply(filesystem, root, ep_id, moves)
        except StorageError as error:
            raise CommittedError(
                f"{ep_id}: the new files are committed but not all in place ({error}); the next command on the episode "
                "finishes that"
            ) from error

    def _journal_name(self, ep_id: EpId) -> str:
        return f"{EpisodePaths(self.mirror, ep_id).runs.relative_to(self.mirror).as_posix()}/journal.json"

    def _apply(self, filesystem: Any, root: str, ep_id: EpId, moves: Sequence[tuple[str | None, str]]) -> None:
        for staged, name in moves:
            if staged is not None:
                filesystem.cp_file(f"{root}/{staged}", f"{root}/{name}")
            elif filesystem.exists(f"{root}/{name}"):
                filesystem.rm_file(f"{root}/{name}")
        filesystem.rm_file(f"{root}/{self._journal_name(ep_id)}")
        for staged, _ in moves:
            if staged is not None:
                filesystem.rm_file(f"{root}/{staged}")

    def _recover(self, paths: EpisodePaths) -> None:
        filesystem, root = open_filesystem(self.url)
        name = f"{root}/{self._journal_name(paths.ep_id)}"
        with storage_errors(self.url):
            if not filesystem.exists(name):
                # What was staged without a journal was never to count.
                for staged in filesystem.glob(f"{root}/runs/{paths.ep_id}/*/staged"):
                    filesystem.rm(staged, recursive=True)
                return
            try:
                moves = _read_moves(paths, orjson.loads(filesystem.cat_file(name)))
            except (ArtifactError, KeyError, TypeError, ValueError) as error:
                aside = f"{name}.unreadable-{uuid.uuid4().hex[:8]}"
                filesystem.cp_file(name, aside)
                filesystem.rm_file(name)
                _log.warning(
                    "%s: not a readable journal (%s); set aside as %s, the episode is taken as it is; cleanup "
                    "backups list %s shows more",
                    name,
                    first_line(error),
                    aside,
                    paths.ep_id,
                )
                return
            self._apply(filesystem, root, paths.ep_id, moves)

    def _url_of(self, local: RootPath) -> str:
        return f"{self.url}/{local.relative_to(self.mirror).as_posix()}"

    @contextlib.contextmanager
    def hold(self, ep_id: EpId) -> Iterator[Lease]:
        """Holds the episode for one run on any host: a lease that is renewed while the run lasts.

        Raises:
            BusyError: Another run holds it; the message says which process and since when.
        """
        lease = Lease(ObjectLease(self._url_of(EpisodePaths(self.mirror, ep_id).runs / "lease.json")), ep_id)
        lease.acquire()
        try:
            yield lease
        finally:
            lease.release()


def _read_moves(paths: EpisodePaths, record: Any) -> list[tuple[str | None, str]]:
    """The moves of a journal, taken like any input: it can speak of nothing but what a write-back changes."""
    run_id = check_run_id(record["run_id"])
    known = places_of(paths, run_id)
    moves = []
    for staged, name in record["moves"]:
        if name not in known or staged not in (None, f"{paths.name_of(paths.runs)}/{run_id}/staged/{name}"):
            raise ValueError(f"it speaks of {staged!r} for {name!r}, which no write-back moves")
        moves.append((staged, name))
    return moves


def _download(filesystem: Any, name: str, local: RootPath) -> None:
    local.parent.mkdir()
    with filesystem.open(name, "rb") as source, local.open("wb") as target:
        shutil.copyfileobj(source, target, _CHUNK_BYTES)


def _upload(filesystem: Any, local: RootPath, name: str) -> None:
    """Stores a file as an object, which is replaced whole."""
    with local.open("rb") as source:
        filesystem.pipe_file(name, source.read())


class ObjectLease:
    """A lease as an object of a storage that creates an object for one of several that try; see ``LeaseStore``.

    It is judged by its time of change beside that of an object that is written now: both are the storage's clock, and
    hosts may disagree about the time.

    Args:
        url: The object.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._filesystem, self._name = open_filesystem(url)

    def create(self, record: dict[str, Any]) -> bool:
        """See LeaseStore."""
        with storage_errors(self._url):
            try:
                self._filesystem.pipe_file(self._name, orjson.dumps(record), mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                # S3 answers a create of what is there with "precondition failed".
                if "PreconditionFailed" in repr(error) or "pre-conditions" in str(error):
                    return False
                raise
        return True

    def read(self) -> dict[str, Any] | None:
        """See LeaseStore."""
        with storage_errors(self._url):
            try:
                found = orjson.loads(self._filesystem.cat_file(self._name))
            except FileNotFoundError:
                return None
            except orjson.JSONDecodeError:
                found = None
        return checked(found if isinstance(found, dict) else {}, self._url)

    def is_stale(self, record: dict[str, Any]) -> bool:  # noqa: ARG002 -- it is the object's time that counts
        """See LeaseStore."""
        probe = f"{self._name}.{uuid.uuid4().hex}"
        with storage_errors(self._url):
            self._filesystem.pipe_file(probe, b"now")
            try:
                age = self._filesystem.modified(probe) - self._filesystem.modified(self._name)
            except FileNotFoundError:
                return True
            finally:
                self._filesystem.rm_file(probe)
        return bool(age.total_seconds() > LEASE_S)

    def renew(self, record: dict[str, Any]) -> None:
        """See LeaseStore."""
        with storage_errors(self._url):
            self._filesystem.pipe_file(self._name, orjson.dumps(record))

    def remove(self, record: dict[str, Any]) -> None:
        """See LeaseStore."""
        held = self.read()
        if held is not None and held["token"] == record["token"]:
            with storage_errors(self._url):
                self._filesystem.rm_file(self._name)
