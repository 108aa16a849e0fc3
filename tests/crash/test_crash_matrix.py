"""Whatever system call a write-back dies or fails at: all old or all new, told truly, and the next run is fine.

The calls are found by tracing a run, not by a list: every change of a file under the data root, from the first lock to
the last word of progress.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import find_violations
from cleanup.edges.backups import BackupStore
from cleanup.edges.episode_lock import hold_episode
from cleanup.edges.job_store import JobStore
from cleanup.edges.root_path import RootPath
from tests.builders import DOCUMENTED_EP, EMITTED_EP, artifacts_of, write_episode
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
EP = {"documented": DOCUMENTED_EP, "emitted": EMITTED_EP}
PEOPLE = (("a", "b"), ("b",), ("a",))  # one track to split, so that every file changes
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Asks the fork server."""
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-o", library, source, "-ldl"], check=True)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.crash.fork_server"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env={**os.environ, "LD_PRELOAD": str(library)},
    ) as server:  # fmt: skip
        assert server.stdin is not None and server.stdout is not None
        stdin, stdout = server.stdin, server.stdout

        def ask_server(**request: Any) -> dict[str, Any]:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            return dict(json.loads(stdout.readline()))

        yield ask_server
        server.kill()


def make_root(folder: Path, dialect: str) -> Path:
    write_episode(folder, dialect, PEOPLE)
    return folder


def read_progress(paths: EpisodePaths) -> dict[str, Any] | None:
    return json.loads(paths.progress.read_bytes()) if paths.progress.exists() else None


def state_of(root: Path, ep_id: str) -> dict[str, bytes]:
    """The artifacts, and whether there is a report; backups belong to it: a run that did not happen has none."""
    report = root / "manifests" / ep_id / "cleanup_report.json"
    backups = BackupStore(EpisodePaths(RootPath(root), ep_id)).list_backups()
    return {**artifacts_of(root, ep_id), "report": str(report.exists()).encode(), "backups": str(len(backups)).encode()}


def check_case(root: Path, ep_id: str, answer: dict[str, Any], old: Any, new: Any, ask: Ask) -> bool:
    """Recovers, checks everything that a user may see, runs again; gives whether the state was the new one."""
    paths = EpisodePaths(RootPath(root), ep_id)
    with hold_episode(paths):
        pass
    state = state_of(root, ep_id)
    assert state in (old, new)
    is_new = state == new
    assert not find_violations(paths)
    rubbish = [p.name for p in root.rglob(".*") if p.is_file()] + [p.name for p in paths.runs.glob("journal*")]
    assert not rubbish and not (paths.runs / "lease.json").exists()
    progress = read_progress(paths)
    if "killed" not in answer:
        assert not str(answer["error"]).startswith("TRACEBACK"), answer["error"]
        assert is_new or answer["error"] is not None, "a run that says it succeeded has written"
        is_told_new = answer["error"] is None or "committed" in answer["error"]
        assert is_new == is_told_new, answer["error"]
    assert progress is not None or not is_new
    if progress is not None:
        assert progress["phase"] == ("done" if is_new else "failed"), progress
        assert ("summary" in progress) == is_new and ("error" in progress) != is_new
    again = ask(root=str(root), ep_id=ep_id)
    assert again["error"] is None
    assert {k: v for k, v in state_of(root, ep_id).items() if k != "backups"} == {
        k: v for k, v in new.items() if k != "backups"
    }
    last = read_progress(paths)
    assert last is not None and last["phase"] == "done"
    return is_new


FAULTS = [pytest.param(0, id="kill"), *(pytest.param(getattr(errno, n), id=n) for n in ("ENOSPC", "EIO", "EACCES"))]


@pytest.mark.parametrize("error", FAULTS)
@pytest.mark.parametrize("dialect", ["documented", "emitted"])
def test_a_run_that_strikes_a_fault_at_any_call_is_all_or_nothing(
    tmp_path: Path, ask: Ask, dialect: str, error: int
) -> None:
    ep_id = EP[dialect]
    clean = make_root(tmp_path / "clean", dialect)
    old = state_of(clean, ep_id)
    trace = ask(root=str(clean), ep_id=ep_id)["trace"]
    new = state_of(clean, ep_id)
    kinds = Counter(line.split()[0] for line in trace)
    assert {"open", "write", "fsync", "renameat", "renameat2", "unlinkat", "mkdirat"} <= set(kinds)
    assert old["tracks.jsonl"] != new["tracks.jsonl"] and old["faces.jsonl"] != new["faces.jsonl"]

    outcomes = []
    for at in range(1, len(trace) + 1):
        root = make_root(tmp_path / str(at), dialect)
        answer = ask(root=str(root), ep_id=ep_id, at=at, error=error)
        assert error != 0 or answer == {"killed": 9}, trace[at - 1]
        try:
            outcomes.append(check_case(root, ep_id, answer, old, new, ask))
        except AssertionError as failure:
            failure.add_note(f"call {at}: {trace[at - 1]}; {answer.get('error')}")
            raise
        shutil.rmtree(root)
    assert not outcomes[0] and outcomes[-1]
    if error == 0:
        assert outcomes == sorted(outcomes), "old up to the commit point, new from there on"


@pytest.mark.parametrize("error", FAULTS[:2])
def test_a_restore_that_strikes_a_fault_at_any_call_is_all_or_nothing(tmp_path: Path, ask: Ask, error: int) -> None:
    ep_id = EP["documented"]
    clean = make_root(tmp_path / "clean", "documented")
    old = artifacts_of(clean, ep_id)
    ask(root=str(clean), ep_id=ep_id)
    new = artifacts_of(clean, ep_id)
    (backup,) = BackupStore(EpisodePaths(RootPath(clean), ep_id)).list_backups()
    shutil.copytree(clean, tmp_path / "traced")
    trace = ask(root=str(tmp_path / "traced"), ep_id=ep_id, restore=backup.run_id)["trace"]
    assert artifacts_of(tmp_path / "traced", ep_id) == old

    outcomes = []
    for at in range(1, len(trace) + 1):
        root = tmp_path / str(at)
        shutil.copytree(clean, root)
        answer = ask(root=str(root), ep_id=ep_id, at=at, error=error, restore=backup.run_id)
        with hold_episode(EpisodePaths(RootPath(root), ep_id)):
            pass
        state = artifacts_of(root, ep_id)
        assert state in (old, new), trace[at - 1]
        if "killed" not in answer:
            is_told = answer["error"] is None or "committed" in answer["error"]
            assert (state == old) == is_told, (trace[at - 1], answer["error"])
        outcomes.append(state == old)
        ask(root=str(root), ep_id=ep_id, restore=backup.run_id)
        assert artifacts_of(root, ep_id) == old
        shutil.rmtree(root)
    assert not outcomes[0] and outcomes[-1]


@pytest.mark.parametrize("swaps", [True, False])
@pytest.mark.parametrize("error", FAULTS[:2])
def test_an_undo_that_strikes_a_fault_at_any_call_leaves_the_old_state_and_what_the_other_program_wrote(
    tmp_path: Path, ask: Ask, error: int, swaps: bool
) -> None:
    ep_id = EP["documented"]
    meddle = {"meddle": f"manifests/{ep_id}/identities.json", "swaps": swaps}
    clean = make_root(tmp_path / "clean", "documented")
    old = state_of(clean, ep_id)
    answer = ask(root=str(clean), ep_id=ep_id, **meddle)
    assert "another program has changed it during the run" in answer["error"]
    theirs = {**old, "identities.json": b"{}"}
    assert state_of(clean, ep_id) == theirs

    trace = answer["trace"]
    renamed = next(number for number, line in enumerate(trace, start=1) if line.endswith("/journal.json"))
    for at in range(renamed + 2, len(trace) + 1):  # after it was synced, the other program comes
        root = make_root(tmp_path / str(at), "documented")
        answer = ask(root=str(root), ep_id=ep_id, at=at, error=error, **meddle)
        assert error != 0 or answer == {"killed": 9}, trace[at - 1]
        with hold_episode(EpisodePaths(RootPath(root), ep_id)):
            pass
        assert state_of(root, ep_id) == theirs, (trace[at - 1], answer)
        assert "killed" in answer or answer["error"] is not None, trace[at - 1]
        assert not [p for p in root.rglob("*") if p.name.startswith(".") or p.name.startswith("journal")], trace[at - 1]
        shutil.rmtree(root)


@pytest.mark.parametrize("error", FAULTS)
def test_a_job_of_the_api_is_whole_or_rubbish_whatever_call_strikes_a_fault(
    tmp_path: Path, ask: Ask, error: int, caplog: pytest.LogCaptureFixture
) -> None:
    clean = tmp_path / "clean"
    clean.mkdir()
    ask(root=str(clean), keeps_jobs=True)
    first = JobStore(RootPath(clean)).read_all()[0].job_id
    shutil.copytree(clean, tmp_path / "traced")
    answer = ask(root=str(tmp_path / "traced"), keeps_jobs=True)
    assert answer["error"] is None and {"mkdirat", "renameat", "unlinkat"} <= {x.split()[0] for x in answer["trace"]}

    states = []
    for at, call in enumerate(answer["trace"], start=1):
        root = tmp_path / str(at)
        shutil.copytree(clean, root)
        answer = ask(root=str(root), keeps_jobs=True, at=at, error=error)
        assert error != 0 or answer == {"killed": 9}, call
        assert "killed" in answer or not str(answer["error"]).startswith("TRACEBACK"), (call, answer)
        store = JobStore(RootPath(root))
        jobs = store.read_all()
        assert {j.job_id for j in jobs} == {p.name for p in (root / "runs" / "jobs").glob("[0-9]*")} and jobs, call
        assert all(j.state != "succeeded" or store.read_report(j.job_id) is not None for j in jobs), call
        states.append([j.state for j in jobs if j.job_id != first])
        again = ask(root=str(root), keeps_jobs=True)
        assert again["error"] is None, call
        kept = JobStore(RootPath(root)).read_all()
        assert kept[0].state == "succeeded" and [j.state for j in kept].count("succeeded") <= 1, call
        assert not [p for p in (root / "runs" / "jobs").rglob(".*") if p.parent.name == "jobs"], call
        shutil.rmtree(root)
    assert states[0] == [] and states[-1] == ["succeeded"] and not caplog.records
    if error == 0:
        # Not there, queued, died, succeeded: nothing else, in this order.
        order = [[], ["queued"], ["failed"], ["succeeded"]]
        assert [order.index(s) for s in states] == sorted(order.index(s) for s in states)
