"""A data root behind a URL. An episode is worked on in a local mirror and published in one transaction.

What the storage promises: each object is replaced whole, never in part. What is built on that: new contents are
uploaded beside the old ones, then a journal object is written, which is the commit point; then the contents are copied
into place, in a fixed order. Whoever checks the episode out next finishes what a crash cut off after the commit point.
A reader that looks while objects are copied into place may see new files beside old ones; the journal tells it so.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.remote_files import open_filesystem, storage_errors
from cleanup.errors import ArtifactError, BusyError, StorageError

# A lease that was not renewed for so long belongs to a process that is gone.
_LEASE_S = 90.0
_HEARTBEAT_S = 20.0


@dataclass(frozen=True)
class RemoteRoot:
    """A data root behind a URL, and the folder it is mirrored in.

    Attributes:
        url: The root, without a slash at its end.
        mirror: Local folder, laid out like the root.
    """

    url: str
    mirror: Path

    def list_episodes(self) -> list[str]:
        """Ids of the episodes that have artifacts."""
        filesystem, root = open_filesystem(self.url)
        folder = f"{root}/manifests"
        with storage_errors(f"{self.url}/manifests"):
            if not filesystem.exists(folder):
                return []
            return sorted(Path(e["name"]).name for e in filesystem.ls(folder, detail=True) if e["type"] == "directory")

    def check_out(self, ep_id: str) -> None:
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
                filesystem.get_file(name, str(paths.finished))

    def fetch_checkpoints(self, ep_id: str) -> None:
        """Makes the mirror's checkpoints of an episode those that are stored."""
        self._mirror(EpisodePaths(self.mirror, ep_id).checkpoints)

    def _mirror(self, folder: Path) -> None:
        url = self._url_of(folder)
        filesystem, name = open_filesystem(url)
        with storage_errors(url):
            entries = filesystem.find(name, detail=True) if filesystem.exists(name) else {}
            wanted = {folder / Path(path).relative_to(name): path for path in entries}
            for local in [p for p in folder.rglob("*") if p.is_file() and p not in wanted] if folder.is_dir() else []:
                local.unlink()
            for local, path in wanted.items():
                local.parent.mkdir(parents=True, exist_ok=True)
                filesystem.get_file(path, str(local))

    def has_episode(self, ep_id: str) -> bool:
        """Whether the episode has artifacts."""
        return self._exists(EpisodePaths(self.mirror, ep_id).manifests)

    def video_url(self, ep_id: str) -> str | None:
        """The episode's video, or None where there is none."""
        path = EpisodePaths(self.mirror, ep_id).video
        return self._url_of(path) if self._exists(path) else None

    def _exists(self, local: Path) -> bool:
        url = self._url_of(local)
        filesystem, name = open_filesystem(url)
        with storage_errors(url):
            return bool(filesystem.exists(name))

    def fetch(self, local: Path) -> None:
        """Brings one file into the mirror, if it is stored."""
        url = self._url_of(local)
        filesystem, name = open_filesystem(url)
        with storage_errors(url):
            if filesystem.exists(name):
                local.parent.mkdir(parents=True, exist_ok=True)
                filesystem.get_file(name, str(local))

    def put(self, local: Path) -> None:
        """Stores one file of the mirror as it is."""
        url = self._url_of(local)
        filesystem, name = open_filesystem(url)
        with storage_errors(url):
            filesystem.pipe_file(name, local.read_bytes())

    def remove(self, local: Path) -> None:
        """Removes what is stored of a file or folder of the mirror."""
        url = self._url_of(local)
        filesystem, name = open_filesystem(url)
        with storage_errors(url):
            if filesystem.exists(name):
                filesystem.rm(name, recursive=True)

    def publish(self, ep_id: str, run_id: str, files: list[Path]) -> None:
        """Replaces the episode's stored files by those of the mirror, all or none; keeps a backup of what was there.

        Args:
            ep_id: The episode.
            run_id: The run that made them.
            files: Files of the mirror, in the order they are put into place.

        Raises:
            StorageError: Before the commit point, and nothing has changed; or after it, which the message says.
        """
        runs = EpisodePaths(self.mirror, ep_id).runs
        names = [path.relative_to(self.mirror).as_posix() for path in files]
        staged = f"{runs.relative_to(self.mirror).as_posix()}/{run_id}/staged"
        filesystem, root = open_filesystem(self.url)
        with storage_errors(self.url):
            for path, name in zip(files, names, strict=True):
                filesystem.pipe_file(f"{root}/{staged}/{name}", path.read_bytes())
                if filesystem.exists(f"{root}/{name}"):
                    filesystem.cp_file(f"{root}/{name}", f"{root}/backups/{ep_id}/{run_id}/{name}")
            moves = [[f"{staged}/{name}", name] for name in names]
            journal = orjson.dumps({"run_id": run_id, "moves": moves})
            filesystem.pipe_file(f"{root}/{self._journal_name(ep_id)}", journal)
        try:
            with storage_errors(self.url):
                self._apply(filesystem, root, ep_id, moves)
        except StorageError as error:
            raise StorageError(
                f"{ep_id}: the new files are committed but not all in place ({error}); the next command on the episode "
                "finishes that"
            ) from error

    def _journal_name(self, ep_id: str) -> str:
        return f"{EpisodePaths(self.mirror, ep_id).runs.relative_to(self.mirror).as_posix()}/journal.json"

    def _apply(self, filesystem: Any, root: str, ep_id: str, moves: list[list[str]]) -> None:
        for staged, name in moves:
            filesystem.cp_file(f"{root}/{staged}", f"{root}/{name}")
        filesystem.rm_file(f"{root}/{self._journal_name(ep_id)}")
        for staged, _ in moves:
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
                moves = orjson.loads(filesystem.cat_file(name))["moves"]
            except (orjson.JSONDecodeError, KeyError) as error:
                raise ArtifactError(
                    f"{name}: unreadable ({error}); restore the episode from backups/ by hand"
                ) from error
            self._apply(filesystem, root, paths.ep_id, moves)

    def _url_of(self, local: Path) -> str:
        return f"{self.url}/{local.relative_to(self.mirror).as_posix()}"

    @contextlib.contextmanager
    def hold(self, ep_id: str) -> Iterator[Lease]:
        """Holds the episode for one run on any host: a lease that is renewed while the run lasts.

        Raises:
            BusyError: Another run holds it; the message says which process and since when.
        """
        url = self._url_of(EpisodePaths(self.mirror, ep_id).runs / "lease.json")
        lease = Lease(url, ep_id)
        lease.acquire()
        try:
            yield lease
        finally:
            lease.release()


class Lease:
    """One episode's lease: an object that only one run can create, renewed by a thread, taken over once it is stale.

    Args:
        url: The lease object.
        ep_id: Its episode.
    """

    def __init__(self, url: str, ep_id: str) -> None:
        self._url, self._ep_id = url, ep_id
        self._filesystem, self._name = open_filesystem(url)
        self._token = uuid.uuid4().hex
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._ended = threading.Event()
        self._is_lost = False
        self._thread = threading.Thread(target=self._renew, name=f"lease-{ep_id}", daemon=True)

    def acquire(self) -> None:
        """Takes the lease and keeps it."""
        with storage_errors(self._url):
            if not self._create():
                held = self._read()
                if held is not None and time.time() < held["expires"]:
                    raise BusyError(f"{self._ep_id}: a cleanup is running already ({held['holder']}); wait or stop it")
                if held is not None:
                    self._filesystem.rm_file(self._name)
                if not self._create():
                    raise BusyError(f"{self._ep_id}: another cleanup has just begun; wait or stop it")
        self._thread.start()

    def check(self) -> None:
        """Makes sure that the lease is still this run's.

        Raises:
            StorageError: It is not: this host was out of touch for too long, and another run may have begun.
        """
        with storage_errors(self._url):
            held = self._read()
        if self._is_lost or held is None or held["token"] != self._token:
            raise StorageError(f"{self._ep_id}: the lease was lost to another run; nothing was published, run it again")

    def release(self) -> None:
        """Gives the lease back."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(StorageError), storage_errors(self._url):  # one that is not removed goes stale
            held = self._read()
            if held is not None and held["token"] == self._token:
                self._filesystem.rm_file(self._name)

    def _create(self) -> bool:
        try:
            self._filesystem.pipe_file(self._name, self._content(), mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            # S3 answers a create of what is there with "precondition failed".
            if "PreconditionFailed" in repr(error) or "pre-conditions" in str(error):
                return False
            raise
        return True

    def _content(self) -> bytes:
        holder = f"process {os.getpid()} on {socket.gethostname()} since {self._since}"
        return orjson.dumps({"token": self._token, "holder": holder, "expires": time.time() + _LEASE_S})

    def _read(self) -> dict[str, Any] | None:
        try:
            return dict(orjson.loads(self._filesystem.cat_file(self._name)))
        except FileNotFoundError:
            return None

    def _renew(self) -> None:
        renewed = time.monotonic()
        while not self._ended.wait(_HEARTBEAT_S):
            try:
                with storage_errors(self._url):
                    held = self._read()
                    if held is None or held["token"] != self._token:
                        self._is_lost = True
                        return
                    self._filesystem.pipe_file(self._name, self._content())
                    renewed = time.monotonic()
            except StorageError:
                # Out of touch: another try at the next beat, until the lease may be somebody else's.
                if time.monotonic() - renewed > _LEASE_S:
                    self._is_lost = True
                    return
