"""A write-back is all or nothing, kept as a backup, and alone on its episode."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cleanup.edges import write_back
from cleanup.edges.artifact_files import EpisodePaths
from cleanup.errors import BusyError
from tests.builders import snapshot, write_episode


@pytest.fixture
def paths(tmp_path: Path) -> EpisodePaths:
    return EpisodePaths(tmp_path, write_episode(tmp_path, "emitted"))


def test_staged_files_change_nothing_until_the_commit(paths: EpisodePaths) -> None:
    before = snapshot(paths.manifests)

    write_back.stage(paths, "run", {paths.tracks: [b"new ", b"tracks"], paths.embeddings: [b"new rows"]})
    assert snapshot(paths.manifests) == before
    backup = write_back.commit(paths, "run", [paths.tracks, paths.embeddings])

    assert (paths.tracks.read_bytes(), paths.embeddings.read_bytes()) == (b"new tracks", b"new rows")
    assert (backup / "manifests" / paths.ep_id / "tracks.jsonl").read_bytes() == before["tracks.jsonl"]
    assert not list(paths.runs.rglob("staged"))


CRASHING = """
import os, sys
from pathlib import Path
from cleanup.edges import write_back
from cleanup.edges.artifact_files import EpisodePaths
paths = EpisodePaths(Path(sys.argv[1]), sys.argv[2])
left = int(sys.argv[3])
def dying(real):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return real(*args, **kwargs)
    return call
os.fsync, os.link, Path.replace, Path.unlink = map(dying, (os.fsync, os.link, Path.replace, Path.unlink))
write_back.stage(paths, "run", {paths.tracks: [b"new tracks"], paths.faces: [b"new faces"], paths.embeddings: [b"new rows"]})
write_back.commit(paths, "run", [paths.tracks, paths.faces, paths.embeddings])
"""


def test_a_crash_at_any_step_leaves_all_old_or_all_new(tmp_path: Path) -> None:
    """The process dies at its n-th fsync, link, rename or unlink; then the next command recovers."""
    outcomes = []
    for step in range(60):
        root = tmp_path / str(step)
        paths = EpisodePaths(root, write_episode(root, "emitted"))
        files = (paths.tracks, paths.faces, paths.embeddings)
        old = [p.read_bytes() for p in files]

        code = subprocess.run(
            [sys.executable, "-c", CRASHING, str(root), paths.ep_id, str(step)], check=False
        ).returncode
        with write_back.hold_episode(paths):
            now = [p.read_bytes() for p in files]

        assert now in (old, [b"new tracks", b"new faces", b"new rows"])
        assert not (paths.runs / "journal.json").exists()
        assert not list(paths.runs.rglob("staged"))
        outcomes.append(now == old)
        if code == 0:
            break
    assert code == 0
    assert outcomes == sorted(outcomes, reverse=True), "old up to the commit point, new from there on"
    assert outcomes[0] and not outcomes[-1]


def test_a_second_run_is_told_who_holds_the_episode(paths: EpisodePaths) -> None:
    code = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from cleanup.edges.artifact_files import EpisodePaths
        from cleanup.edges.write_back import hold_episode
        with hold_episode(EpisodePaths(Path(sys.argv[1]), sys.argv[2])):
            print("held", flush=True)
            time.sleep(60)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(paths.root), paths.ep_id], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=rf"process {holder.pid} on .* since 20"), write_back.hold_episode(paths):
            pass
        holder.kill()
    with write_back.hold_episode(paths):
        assert os.getpid() > 0
