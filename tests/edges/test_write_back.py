"""A write-back is all or nothing, kept as a backup, and alone on its episode. The crash matrix is in tests/crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import find_violations, read_episode
from cleanup.edges.backups import BackupStore
from cleanup.edges.data_root import DataRoot
from cleanup.edges.episode_lock import hold_episode, make_run_id
from cleanup.edges.journal import Journal
from cleanup.edges.lease import LEASE_S
from cleanup.edges.root_path import RootPath
from cleanup.edges.write_back import WriteBack
from cleanup.errors import ArtifactError, BusyError, StorageError
from tests.builders import read_lines, snapshot, write_episode


@pytest.fixture
def paths(tmp_path: Path) -> EpisodePaths:
    return EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, "emitted"))


def write(paths: EpisodePaths, contents: dict[Path, bytes]) -> str:
    run_id = make_run_id()
    with WriteBack(paths, run_id, "test", paths.stamp()) as write_back:
        write_back.stage({target: [content] for target, content in contents.items()})
        write_back.commit()
    return run_id


def test_staged_files_change_nothing_until_the_commit_and_are_removed_without_one(paths: EpisodePaths) -> None:
    before = snapshot(paths.root)

    with WriteBack(paths, make_run_id(), "test", paths.stamp()) as write_back:
        write_back.stage({paths.tracks: [b"new ", b"tracks"], paths.embeddings: [b"new rows"]})
        staged = snapshot(paths.root)

    assert {name: staged[name] for name in before} == before and len(staged) == len(before) + 2
    assert {Path(name).parent for name in staged.keys() - before.keys()} == {
        paths.tracks.parent.relative_to(paths.root), paths.embeddings.parent.relative_to(paths.root),
    }  # fmt: skip
    assert snapshot(paths.root) == before


def test_a_commit_replaces_everything_and_keeps_what_was_there(paths: EpisodePaths) -> None:
    old = paths.tracks.read_bytes()
    run_id = write(paths, {paths.tracks: b"new tracks", paths.embeddings: b"new rows", paths.report: b"{}"})

    store = BackupStore(paths)
    (backup,) = store.list_backups()
    assert (paths.tracks.read_bytes(), paths.embeddings.read_bytes()) == (b"new tracks", b"new rows")
    assert (backup.run_id, backup.made_by) == (run_id, "test")
    assert {Path(name).name for name in backup.changed} == {"tracks.jsonl", "faces.npy", "cleanup_report.json"}
    kept = backup.before[paths.name_of(paths.tracks)]
    assert kept is not None and store.object_path(kept).read_bytes() == old
    assert backup.before[paths.name_of(paths.report)] is None
    assert not paths.journal.exists() and not list(paths.root.system_path.rglob("*.staged"))


def test_the_same_content_is_kept_once(paths: EpisodePaths) -> None:
    for content in (b"a", b"b", b"a", b"b", b"a"):
        write(paths, {paths.tracks: content})

    objects = {path.read_bytes() for path in (paths.backups / "objects").iterdir()}
    assert len(BackupStore(paths).list_backups()) == 5
    assert len(objects) == 3 and {b"a", b"b"} < objects  # and the episode as it came


def test_a_write_in_place_by_another_program_does_not_reach_the_backup(paths: EpisodePaths) -> None:
    old = paths.tracks.read_bytes()
    write(paths, {paths.tracks: b"new"})
    paths.tracks.write_bytes(b"scribbled over")

    (backup,) = BackupStore(paths).list_backups()
    kept = backup.before[paths.name_of(paths.tracks)]
    assert kept is not None and BackupStore(paths).find(paths.name_of(paths.tracks), kept).read_bytes() == old


def test_a_damaged_backup_is_not_given_back(paths: EpisodePaths) -> None:
    write(paths, {paths.tracks: b"new"})
    store = BackupStore(paths)
    kept = store.list_backups()[0].before[paths.name_of(paths.tracks)]
    assert kept is not None
    store.object_path(kept).write_bytes(b"rotten")

    with pytest.raises(ArtifactError, match=r"objects/[0-9a-f]{64}: damaged"):
        store.find(paths.name_of(paths.tracks), kept)


def test_pruning_keeps_the_first_and_the_newest_and_what_they_need(paths: EpisodePaths) -> None:
    first = paths.tracks.read_bytes()
    runs = [write(paths, {paths.tracks: f"{i}".encode()}) for i in range(6)]
    store = BackupStore(paths)

    removed, n_bytes = store.prune(2, is_first_kept=True)

    kept = store.list_backups()
    assert [b.run_id for b in kept] == [runs[0], *runs[-2:]]
    assert {store.object_path(v).read_bytes() for b in kept for v in [b.before[paths.name_of(paths.tracks)]] if v} == {
        first, b"3", b"4",
    }  # fmt: skip
    assert n_bytes == 2 and len(removed) == 5  # three records; contents "1" and "2": "0" is what the first run left


def test_another_program_that_writes_meanwhile_is_not_written_over(paths: EpisodePaths) -> None:
    with WriteBack(paths, make_run_id(), "test", paths.stamp()) as write_back:
        write_back.stage({paths.tracks: [b"ours"]})
        paths.faces.write_bytes(b"theirs")
        with pytest.raises(ArtifactError, match="another program has changed the episode's files"):
            write_back.commit()

    assert paths.faces.read_bytes() == b"theirs" and paths.tracks.read_bytes() != b"ours"
    assert not list(paths.root.system_path.rglob("*.staged"))


def test_the_mode_of_a_file_stays(paths: EpisodePaths) -> None:
    paths.tracks.system_path.chmod(0o664)
    write(paths, {paths.tracks: b"new"})

    assert paths.tracks.stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize("is_backwards", [False, True])
def test_references_hold_at_every_moment_of_a_replacement(
    paths: EpisodePaths, is_backwards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two renames every track that faces or identities speak of is there."""
    old = {path: path.read_bytes() for path in (paths.tracks, paths.faces, paths.identities)}
    split = [json.loads(line) for line in old[paths.tracks].splitlines()]
    split.append({**split[0], "track_id": 9, "parent_track_id": 1, "split_reason": "hard"})
    faces = read_lines(paths.faces)
    for face in faces[:6]:
        face["track_id"] = 9
    document = json.loads(old[paths.identities])
    document["identities"][0]["track_ids"] = [1, 9]
    new = {
        paths.tracks: "".join(json.dumps(t) + "\n" for t in split).encode(),
        paths.faces: "".join(json.dumps(f) + "\n" for f in faces).encode(),
        paths.identities: json.dumps(document).encode(),
    }
    if is_backwards:
        for path, content in new.items():
            path.write_bytes(content)
    seen, exchange = [], RootPath.exchange

    def watch(self: RootPath, target: RootPath) -> bool:
        seen.append(target.name)
        is_done = exchange(self, target)
        assert not find_violations(paths), target
        return is_done

    with WriteBack(paths, make_run_id(), "test", None) as write_back:
        write_back.stage({path: [content] for path, content in (old if is_backwards else new).items()})
        monkeypatch.setattr(RootPath, "exchange", watch)
        write_back.commit(is_backwards=is_backwards)

    order = [name for name in seen if name in {p.name for p in paths.written}]
    assert order == (["tracks.jsonl", "faces.jsonl", "identities.json"][:: -1 if is_backwards else 1])


def test_a_reader_never_sees_a_mix(paths: EpisodePaths) -> None:
    """Two whole states are written in turns while somebody reads; every read is one or the other."""
    root = DataRoot(paths.root)
    states = [{p: p.read_bytes() for p in paths.written if p.exists()}]
    changed = {p: c.replace(b'"kept"', b'"next"').replace(b'"seed_cast_id": "c1"', b'"seed_cast_id": "c2"')
               for p, c in states[0].items()}  # fmt: skip
    states.append(changed)
    assert all(states[0][p] != changed[p] for p in (paths.faces, paths.identities))
    is_done = threading.Event()

    def write_on() -> None:
        turn = 0
        while not is_done.is_set():
            turn += 1
            with hold_episode(paths):
                write(paths, states[turn % 2])
                BackupStore(paths).prune(1, is_first_kept=False)

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        found = []
        deadline = time.monotonic() + 30
        while len(found) < 60 or not (states[0] in found and states[1] in found):
            assert time.monotonic() < deadline
            found.append(root.read_settled(paths.ep_id, lambda p: {q: q.read_bytes() for q in states[0]}))
            assert found[-1] in states
    finally:
        is_done.set()
        writer.join()


def cut_off(paths: EpisodePaths, new: dict[RootPath, bytes]) -> None:
    """Leaves a write-back as a kill does right after its commit point."""
    with WriteBack(paths, make_run_id(), "test", None) as write_back, pytest.MonkeyPatch.context() as patch:
        write_back.stage({path: [content] for path, content in new.items()})
        patch.setattr(Journal, "apply", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_back.commit()
    assert paths.journal.exists()


def test_a_reader_finishes_what_a_crash_left(paths: EpisodePaths) -> None:
    cut_off(paths, {paths.identities: paths.identities.read_bytes().replace(b'"kept"', b'"next"')})

    episode = DataRoot(paths.root).read_settled(paths.ep_id, read_episode)

    assert all(json.loads(row["raw"])["note"] == "next" for row in episode.identities.to_pylist())
    assert not paths.journal.exists() and not paths.manifests.glob(".*")


HOLDING = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from cleanup.edges.artifact_files import EpisodePaths
    from cleanup.edges.episode_lock import hold_episode
    from cleanup.edges.root_path import RootPath
    with hold_episode(EpisodePaths(RootPath(Path(sys.argv[1])), sys.argv[2])):
        print("held", flush=True)
        time.sleep(60)
""")


def test_a_second_run_is_told_who_holds_the_episode_and_a_killed_one_holds_nothing(paths: EpisodePaths) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(paths.root), paths.ep_id], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=rf"process {holder.pid} on .* since 20"), hold_episode(paths):
            pass
        holder.kill()
    assert (paths.runs / "lease.json").exists()
    with hold_episode(paths) as lease:
        lease.check()
    assert not (paths.runs / "lease.json").exists()


def test_across_hosts_the_lease_holds_until_it_goes_stale(paths: EpisodePaths) -> None:
    """A lease of another machine, as it looks where locks do not reach it."""
    paths.runs.mkdir()
    lease = paths.runs.system_path / "lease.json"
    lease.write_text(json.dumps({"token": "t", "holder": "process 1 on elsewhere since 2026", "machine": "another"}))

    with (
        pytest.raises(BusyError, match="a cleanup is running already .process 1 on elsewhere since 2026"),
        hold_episode(paths),
    ):
        pass
    old = time.time() - LEASE_S - 1
    os.utime(lease, (old, old))
    with hold_episode(paths) as ours:
        ours.check()
        lease.write_text(json.dumps({"token": "t", "holder": "somebody else", "machine": "another"}))
        with pytest.raises(StorageError, match="the lease was lost to another run; nothing was written"):
            ours.check()
    assert "somebody else" in lease.read_text(), "a lease that is another's is left alone"


def test_a_lease_is_renewed_while_it_is_held_and_knows_when_it_was_lost(
    paths: EpisodePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cleanup.edges.lease._HEARTBEAT_S", 0.02)
    path = paths.runs.system_path / "lease.json"
    with hold_episode(paths) as lease:
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime < 2:
            assert time.monotonic() < deadline, "it is renewed"
            time.sleep(0.01)
        lease.check()
        content = path.read_bytes()
        path.unlink()
        time.sleep(0.5)
        path.write_bytes(content)  # as it was, but for a while it was nobody's
        with pytest.raises(StorageError, match="the lease was lost"):
            lease.check()
