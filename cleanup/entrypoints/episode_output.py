"""What a run writes: stages the refined episode, checks it as if read again, and commits it with its report."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cleanup.edges.artifact_files import EpisodePaths, Stamp
from cleanup.edges.artifact_reading import find_violations
from cleanup.edges.artifact_writing import render_episode, same_json
from cleanup.edges.data_root import HeldEpisode
from cleanup.edges.file_writing import read_version, render_json, write_pieces, write_synced
from cleanup.edges.root_path import RootPath
from cleanup.edges.track_metrics import update_track_metrics
from cleanup.edges.violation_bundle import save_bundle
from cleanup.edges.write_back import WriteBack
from cleanup.episode import Episode
from cleanup.errors import InvariantError, describe_os_error
from cleanup.names import RunId
from cleanup.report import CleanupReport

_MADE_BY = "run"


@dataclass(frozen=True)
class Output:
    """Where the result of a run goes, and what it is there.

    Attributes:
        held: The episode.
        run_id: The run.
        expected: The stamp of the artifacts from which the run began.
        write_back: The transaction that replaces the artifacts, or None if they stay as they are.
        n_backups: Backups to keep beside the first.
    """

    held: HeldEpisode
    run_id: RunId
    expected: Stamp
    write_back: WriteBack | None
    n_backups: int

    @property
    def run_folder(self) -> RootPath:
        """The run's own folder."""
        return self.held.paths.runs / self.run_id

    @property
    def report_path(self) -> RootPath:
        """Where the report goes."""
        name = self.held.paths.report.name
        return self.held.paths.report if self.write_back is not None else self.run_folder / name

    def stage(self, episode: Episode, report: CleanupReport) -> None:
        """Stages what the episode has become and checks it; with nothing to write back, only checks it.

        Raises:
            InvariantError: It cannot be read again as it was written.
        """
        paths, show = self.held.paths, self.held.root.show
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        targets = {path.name: path for path in paths.written}
        contents = {targets[name]: pieces for name, pieces in render_episode(episode, now).items()}
        contents[paths.track_metrics] = [update_track_metrics(episode, report)]
        with report.timings.measure("write"), self._staged_paths() as staged:
            places = dict(zip(paths.written, staged.written, strict=True))
            if self.write_back is not None:
                self.write_back.stage(contents)
            else:
                for target, pieces in contents.items():
                    write_pieces(places[target], pieces)
            problems = find_violations(staged)
            if problems:
                raise InvariantError(
                    f"{paths.ep_id}: internal error, nothing was written: the result breaks an invariant "
                    f"({problems[0]})",
                    problems,
                )
            if self.write_back is not None:
                for target in contents:
                    if _is_same(target, places[target]):
                        self.write_back.discard(target)
        report.files = {"report": show(self.report_path), "changed": [], "backup": None}
        if self.write_back is not None:
            report.files["changed"] = [show(path) for path in self.write_back.changed]
            if self.write_back.changed:
                report.files["backup"] = self.run_id

    @contextlib.contextmanager
    def _staged_paths(self) -> Iterator[EpisodePaths]:
        if self.write_back is not None:
            yield self.write_back.staged_paths
            return
        scratch = EpisodePaths(self.run_folder / "result", self.held.paths.ep_id)
        try:
            yield scratch
        finally:
            with contextlib.suppress(OSError):  # what is left goes with the run's folder
                scratch.root.rmtree()

    def check(self) -> None:
        """Makes sure that nothing speaks against writing: before anything is told to others, like the Facebank.

        Raises:
            StorageError: The episode was lost to another run.
            ArtifactError: Another program has changed its files.
        """
        self.held.check()
        if self.write_back is not None:
            self.write_back.check()

    def commit(self, report: CleanupReport, started: float) -> dict[str, Any]:
        """Replaces the artifacts by what was staged, and writes the report with them, or alone if they stay.

        Args:
            report: The report.
            started: When the run began, by ``time.monotonic``.

        Returns:
            The report as it was written.
        """
        report.runtime_sec = time.monotonic() - started
        record = report.to_json()
        content = render_json(record)
        remote = self.held.root.remote
        if self.write_back is not None and self.write_back.changed:
            self.write_back.stage({self.report_path: [content]})
            self.held.commit(self.write_back, self.n_backups)
        else:
            write_synced(self.report_path, content)
            if remote is not None:
                remote.put(self.report_path)
        return record

    @contextlib.contextmanager
    def violations_bundled(self, run: Mapping[str, Any]) -> Iterator[None]:
        """If the result breaks an invariant, everything that is needed to find out why is kept.

        Args:
            run: What was asked for.
        """
        try:
            yield
        except InvariantError as error:
            paths = self.held.paths
            bundle = self.run_folder / "violation.tar.gz"
            try:
                save_bundle(bundle, paths, paths.staged(self.run_id), error.problems, run)
                what = (
                    f"with {bundle}, which holds the {len(error.problems)} violations, versions, settings and the "
                    "episode's artifacts"
                )
            except OSError as failure:  # that the result was wrong must not get lost over it
                what = f"(no bundle could be kept: {describe_os_error(failure)})"
            raise InvariantError(
                f"{error}; this is a fault of the program: please report it {what}", error.problems
            ) from error


@contextlib.contextmanager
def open_output(held: HeldEpisode, run_id: RunId, n_backups: int, *, is_written_back: bool) -> Iterator[Output]:
    """The output of a run that begins to read the episode now; what is not committed at the end is removed."""
    expected = held.paths.stamp()
    output = Output(held, run_id, expected, None, n_backups)
    if not is_written_back:
        yield output
        return
    with held.write_back(run_id, _MADE_BY, expected) as write_back:
        yield dataclasses.replace(output, write_back=write_back)


def _is_same(path: RootPath, staged: RootPath) -> bool:
    if not path.exists():
        return False
    if path.suffix == ".json":
        return same_json(path.read_bytes(), staged.read_bytes())
    return path.stat().st_size == staged.stat().st_size and read_version(path) == read_version(staged)
