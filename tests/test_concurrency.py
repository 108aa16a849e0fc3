"""Two at once on one episode: one waits or is told who holds it, and what comes out is never a mix."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import find_violations
from cleanup.edges.data_root import DataRoot
from cleanup.edges.journal import Journal
from cleanup.edges.root_path import RootPath
from cleanup.entrypoints.episode_states import restore_backup
from cleanup.names import check_ep_id
from tests.builders import artifacts_of, copy_episode
from tests.entrypoints.test_cli import EP, cleanup, run
from tests.serving import serve, wait_for

ARGUMENTS = ("--device", "cpu", "--actions", "split_tracks,reembed,recluster", "--write-back", "-q")


def start_run(root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cleanup.entrypoints.cli", "run", "--ep-id", EP, "--out-root", str(root), "--models",
               str(root / "models"), *ARGUMENTS]  # fmt: skip
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_of_runs_begun_at_once_one_works_and_the_others_are_told(drawn: Path, tmp_path: Path) -> None:
    single = tmp_path / "single"
    copy_episode(drawn, EP, EP, single)
    (single / "models").symlink_to(drawn / "models")
    run(single, *ARGUMENTS[2:])

    processes = [start_run(drawn) for _ in range(3)]
    ended = [(process, process.communicate(timeout=120)[1]) for process in processes]

    codes = sorted(process.returncode for process, _ in ended)
    assert codes[0] == 0 and set(codes) <= {0, 2}, ended
    winners = {process.pid for process, _ in ended if process.returncode == 0}
    for process, stderr in ended:
        if process.returncode == 2:
            holder = stderr.split("(process ")[1].split(" ")[0]
            assert "a cleanup is running already" in stderr and int(holder) in winners
    assert artifacts_of(drawn, EP) == artifacts_of(single, EP)


def test_a_run_during_a_restore_is_refused_and_right_after_it(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = artifacts_of(drawn, EP)
    run(drawn, *ARGUMENTS[2:])
    after = artifacts_of(drawn, EP)
    (backup,) = json.loads(cleanup("backups", "list", EP, "--out-root", drawn, "--json").stdout)
    is_at_work, may_go_on, apply = threading.Event(), threading.Event(), Journal.apply

    def slowly(journal: Journal) -> None:
        is_at_work.set()
        assert may_go_on.wait(60)
        apply(journal)

    monkeypatch.setattr(Journal, "apply", slowly)
    restore = threading.Thread(
        target=restore_backup, args=(DataRoot(RootPath(drawn)), check_ep_id(EP), backup["run_id"], 10)
    )
    restore.start()
    assert is_at_work.wait(60)
    with start_run(drawn) as process:
        assert process.stderr is not None
        stderr = process.stderr.read()
    may_go_on.set()
    restore.join()

    assert process.returncode == 2 and "a cleanup is running already" in stderr
    assert artifacts_of(drawn, EP) == before
    monkeypatch.undo()
    run(drawn, *ARGUMENTS[2:])
    assert artifacts_of(drawn, EP) == after


def test_while_the_api_serves_an_episode_reads_and_runs_are_whole_or_refused(drawn: Path) -> None:
    paths = EpisodePaths(RootPath(drawn), check_ep_id(EP))
    with serve(drawn) as api:
        job = api.start(EP, write_back=True, save_crops=True, profile="high_accuracy")["job_id"]
        wait_for(lambda: api.progress_file(job))  # it holds the episode by now
        refused = 0
        while api.get(f"/jobs/{job}")["state"] in ("queued", "running"):
            result = cleanup("run", "--ep-id", EP, "--out-root", drawn, "--actions", "recluster", "-q", code=None)
            refused += result.exit_code == 2 and "a cleanup is running already" in result.stderr
            assert result.exit_code in (0, 2), result.stderr
            assert cleanup("validate", "--ep-id", EP, "--out-root", drawn).exit_code == 0
            assert api.get(f"/jobs/{job}/progress")["state"] != "failed"
        assert refused and api.get(f"/jobs/{job}")["state"] == "succeeded", api.get(f"/jobs/{job}")["error"]
        with start_run(drawn) as process:  # the other way round: a job that meets a run
            progress = drawn / "manifests" / EP / "cleanup_progress.json"
            first = progress.stat().st_ino
            while progress.stat().st_ino == first and process.poll() is None:
                time.sleep(0.01)
            job = api.start(EP, actions=["recluster"])["job_id"]
            ended = api.wait(job)
        pictures = api.get(f"/jobs/{job}/pictures") if ended["state"] == "succeeded" else None

    assert process.returncode == 0
    assert ended["state"] == "succeeded" or "a cleanup is running already" in ended["error"]
    assert pictures is None or set(pictures) == {"splits", "clusters"}
    assert not find_violations(paths) and not paths.journal.exists()
