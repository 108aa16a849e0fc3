"""A write-back is all or nothing, kept as a backup, and alone on its episode. The crash matrix is in tests/crash."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import find_violations, read_episode
from cleanup.edges.backups import BackupStore
from cleanup.edges.data_root import DataRoot
from cleanup.edges.episode_lock import hold_episode, make_run_id
from cleanup.edges.file_writing import read_version
from cleanup.edges.finished_run import read_finished
from cleanup.edges.journal import Journal
from cleanup.edges.lease import LEASE_S
from cleanup.edges.root_path import RootPath
from cleanup.edges.write_back import WriteBack, recover
from cleanup.entrypoints.episode_states import compare_runs
from cleanup.errors import ArtifactError, BusyError, StorageError
from cleanup.names import check_run_id
from cleanup.settings import SplitTracksSettings
from tests.builders import read_lines, snapshot, write_episode


@pytest.fixture
def paths(tmp_path: Path) -> EpisodePaths:
    return EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, "emitted"))


def write(paths: EpisodePaths, contents: dict[RootPath, bytes]) -> str:
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


@contextlib.contextmanager
def meddling(monkeypatch: pytest.MonkeyPatch, meddle: Callable[[], object], *, swaps: bool) -> Iterator[None]:
    """Somebody does something right after the commit point, on a file system that swaps names or one that cannot."""
    apply = Journal.apply

    def meddled(self: Journal) -> None:
        meddle()
        apply(self)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "apply", meddled)
        if not swaps:
            patch.setattr(RootPath, "exchange", lambda *_: False)
        yield


def list_kinds(folder: RootPath) -> dict[str, int]:
    return {path.name: stat.S_IFMT(path.system_path.lstat().st_mode) for path in folder.iterdir()}


def replace_faces(paths: EpisodePaths) -> None:
    (paths.faces.system_path.parent / "new").write_bytes(b"theirs")
    (paths.faces.system_path.parent / "new").replace(paths.faces.system_path)


def edit_faces(paths: EpisodePaths) -> None:
    with paths.faces.system_path.open("r+b") as stream:
        stream.write(b"theirs")


def remove_faces(paths: EpisodePaths) -> None:
    paths.faces.unlink()


def make_report(paths: EpisodePaths) -> None:
    paths.report.write_bytes(b"theirs")


def link_faces(paths: EpisodePaths) -> None:
    paths.faces.system_path.rename(paths.manifests.system_path / "moved")
    paths.faces.system_path.symlink_to("moved")


def make_faces_a_folder(paths: EpisodePaths) -> None:
    paths.faces.unlink()
    (paths.faces / "theirs").mkdir()


@pytest.mark.parametrize("swaps", [True, False])
@pytest.mark.parametrize(
    "meddle", [replace_faces, edit_faces, remove_faces, make_report, link_faces, make_faces_a_folder]
)
def test_what_another_program_does_within_the_commit_stays_and_everything_else_goes_back(
    paths: EpisodePaths,
    meddle: Callable[[EpisodePaths], None],
    swaps: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    copy = EpisodePaths(RootPath(shutil.copytree(tmp_path, tmp_path / "copy")), paths.ep_id)
    meddle(copy)  # to know what has to be there
    theirs, kinds = snapshot(copy.manifests), list_kinds(copy.manifests)
    new = {path: [b"ours"] for path in (paths.tracks, paths.faces, paths.embeddings, paths.identities, paths.report)}

    with (
        WriteBack(paths, make_run_id(), "test", paths.stamp()) as write_back,
        meddling(monkeypatch, lambda: meddle(paths), swaps=swaps),
    ):
        write_back.stage(new)
        with pytest.raises(
            ArtifactError, match=r"another program has \w+ it during the run; its change stays, nothing"
        ):
            write_back.commit()

    assert (snapshot(paths.manifests), list_kinds(paths.manifests)) == (theirs, kinds)
    assert not paths.journal.exists() and not BackupStore(paths).list_backups()
    with hold_episode(paths):
        pass


@pytest.mark.parametrize("swaps", [True, False])
def test_a_write_back_that_cannot_be_finished_after_a_crash_is_undone_by_the_next_command(
    paths: EpisodePaths, swaps: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = snapshot(paths.root)
    cut_off(paths, {path: b"ours" for path in (paths.tracks, paths.faces, paths.identities)})
    edit_faces(paths)
    if not swaps:
        monkeypatch.setattr(RootPath, "exchange", lambda *_: False)

    with hold_episode(paths):
        pass

    name = paths.name_of(paths.faces)
    after = {k: v for k, v in snapshot(paths.root).items() if not k.startswith(("backups", "runs"))}
    assert after == {**before, name: b"theirs" + before[name][6:]}
    assert "is undone" in caplog.text and "another program has changed it" in caplog.text


def test_a_copy_that_shares_inodes_and_is_edited_later_damages_no_backup(paths: EpisodePaths, tmp_path: Path) -> None:
    """As a snapshot made with cp -al does, or a program that keeps a file open."""
    old = paths.tracks.read_bytes()
    os.link(paths.tracks.system_path, tmp_path / "snapshot")
    with paths.tracks.system_path.open("r+b") as held:
        write(paths, {paths.tracks: b"new"})
        held.write(b"scribbled")
    (tmp_path / "snapshot").write_bytes(b"scribbled, too")

    (backup,) = BackupStore(paths).list_backups()
    kept = backup.before[paths.name_of(paths.tracks)]
    assert kept is not None and BackupStore(paths).find(paths.name_of(paths.tracks), kept).read_bytes() == old


def test_a_kept_content_that_went_bad_is_kept_anew(paths: EpisodePaths) -> None:
    old = paths.tracks.read_bytes()
    write(paths, {paths.tracks: b"new"})
    (backup,) = BackupStore(paths).list_backups()
    kept = backup.before[paths.name_of(paths.tracks)]
    assert kept is not None
    BackupStore(paths).object_path(kept).write_bytes(b"rotten")
    write(paths, {paths.tracks: old})
    write(paths, {paths.tracks: b"newer"})

    assert BackupStore(paths).find(paths.name_of(paths.tracks), kept).read_bytes() == old


def immutable(path: Path) -> Callable[[], object]:
    subprocess.run(["chattr", "+i", path], check=True)
    return lambda: subprocess.run(["chattr", "-i", path], check=True)


def mounted(path: Path) -> Callable[[], object]:
    subprocess.run(["mount", "--bind", path, path], check=True)
    return lambda: subprocess.run(["umount", path], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file immutable or mount one")
@pytest.mark.parametrize("protect", [immutable, mounted])
def test_a_file_that_cannot_be_replaced_is_found_before_anything_is(
    paths: EpisodePaths, protect: Callable[[Path], Callable[[], object]]
) -> None:
    try:
        free = protect(paths.identities.system_path)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not possible here: {error}")
    before = snapshot(paths.root)
    try:
        with (
            pytest.raises(StorageError, match=r"identities.json: cannot be replaced .*; nothing was written"),
            WriteBack(paths, make_run_id(), "test", None) as write_back,
        ):
            write_back.stage({paths.tracks: [b"new"], paths.identities: [b"new"]})
            write_back.commit()
    finally:
        free()

    assert {k: v for k, v in snapshot(paths.root).items() if not k.startswith("backups")} == before
    with hold_episode(paths):
        write(paths, {paths.tracks: b"new", paths.identities: b"new"})


def test_backups_are_in_the_order_in_which_they_were_made_whatever_the_clock_said(
    paths: EpisodePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = paths.tracks.read_bytes()
    ids = [f"{year}0101T000000.000000Z-1" for year in (2026, 2030, 2020, 2024, 2019)]
    for run_id in ids:
        with WriteBack(paths, check_run_id(run_id), "test", None) as write_back:
            write_back.stage({paths.tracks: [run_id.encode()]})
            write_back.commit()
    store = BackupStore(paths)
    assert [b.run_id for b in store.list_backups()] == ids

    store.prune(2, is_first_kept=True)

    kept = store.list_backups()
    assert [b.run_id for b in kept] == [ids[0], *ids[-2:]]
    version = kept[0].before[paths.name_of(paths.tracks)]
    assert version is not None and store.find(paths.name_of(paths.tracks), version).read_bytes() == first


def test_backups_of_the_first_versions_are_kept_by_content(paths: EpisodePaths) -> None:
    """A folder per run with the files it replaced."""
    states = []
    for number in range(3):
        states.append({p: p.read_bytes() for p in paths.written if p.exists()})
        folder = paths.backups.system_path / f"2025010{number + 1}T000000.000000Z-7"
        for path in (paths.tracks, paths.identities):
            (folder / paths.name_of(path)).parent.mkdir(parents=True, exist_ok=True)
            (folder / paths.name_of(path)).write_bytes(path.read_bytes())
            path.write_bytes(f"{number}".encode())
    paths.report.write_bytes(b"{}")

    store = DataRoot(paths.root).backups(paths.ep_id)

    assert [b.run_id for b in store.list_backups()] == [f"2025010{n}T000000.000000Z-7" for n in (1, 2, 3)]
    for backup, state in zip(store.list_backups(), states, strict=True):
        assert backup.before[paths.name_of(paths.report)] is None
        for path, content in state.items():
            version = backup.before[paths.name_of(path)]
            assert version is not None and store.find(paths.name_of(path), version).read_bytes() == content
    assert not paths.backups.glob("*/manifests")


JOURNALS = {
    "no JSON": b"{",
    "a list": b"[1]",
    "moves that are none": b'{"version": 1, "run_id": "RUN", "moves": "abc"}',
    "a move without digest": b'{"version": 1, "run_id": "RUN", "moves": [{"target": "manifests/EP/tracks.jsonl", "staged": null}]}',
    "a number for a name": b'{"version": 1, "run_id": "RUN", "moves": [{"target": 5, "staged": null, "sha256": null}]}',
    "another file of the episode": b'{"version": 1, "run_id": "RUN", "moves": [{"target": "manifests/EP/detections.jsonl", "staged": null, "sha256": null}]}',
    "a file outside": b'{"version": 1, "run_id": "RUN", "moves": [{"target": "../x", "staged": null, "sha256": null}]}',
    "one that removes the tracks": b'{"version": 1, "run_id": "RUN", "moves": [{"target": "manifests/EP/tracks.jsonl", "staged": null, "sha256": null}]}',
    "staged elsewhere": b'{"version": 2, "run_id": "RUN", "moves": [{"target": "manifests/EP/tracks.jsonl", "staged": "manifests/EP/faces.jsonl", "before": null, "after": "' + b"0" * 64 + b'"}]}',
    "no run": b'{"version": 2, "run_id": "../x", "moves": []}',
    "an odd version": b'{"version": "x", "run_id": "RUN", "moves": []}',
}  # fmt: skip


@pytest.mark.parametrize("name", JOURNALS)
def test_a_journal_that_is_none_is_set_aside_and_touches_nothing(
    paths: EpisodePaths, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    content = JOURNALS[name].replace(b"RUN", make_run_id().encode()).replace(b"EP", paths.ep_id.encode())
    before = snapshot(paths.manifests)
    paths.runs.mkdir()
    paths.journal.write_bytes(content)

    for _ in range(2):
        with hold_episode(paths):
            write(paths, {})

    assert snapshot(paths.manifests) == before
    assert [record.message for record in caplog.records if "journal.json" in record.message][1:] == [], "named once"
    assert paths.journal.with_name("journal.json.unreadable-1").read_bytes() == content


def test_a_folder_or_a_link_in_place_of_a_record_is_set_aside_too(paths: EpisodePaths, tmp_path: Path) -> None:
    paths.journal.mkdir()
    paths.finished.system_path.symlink_to(tmp_path)

    assert recover(paths) is False and read_finished(paths, "f") is None
    assert not paths.journal.is_taken() and not paths.finished.is_taken()


@pytest.mark.parametrize("name", ["journal.json", "finished.json", "lease.json", "RUN.json"])
def test_a_record_without_an_end_is_one_that_is_none(paths: EpisodePaths, name: str) -> None:
    folder = paths.backups if name == "RUN.json" else paths.runs
    folder.mkdir()
    path = folder / name.replace("RUN", make_run_id())
    path.write_bytes(b"")
    os.truncate(path.system_path, 300 << 20)
    os.utime(path.system_path, (1, 1))

    assert read_finished(paths, "f") is None
    with hold_episode(paths):
        write(paths, {paths.tracks: b"new"})
    assert len(BackupStore(paths).list_backups()) == 1


def test_a_backup_that_is_pruned_while_they_are_listed_is_left_out(
    paths: EpisodePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [write(paths, {paths.tracks: content}) for content in (b"first", b"second")]
    store, glob = BackupStore(paths), RootPath.glob

    def glob_and_prune(self: RootPath, pattern: str) -> list[RootPath]:
        found = glob(self, pattern)
        (paths.backups / f"{runs[0]}.json").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(RootPath, "glob", glob_and_prune)

    assert [backup.run_id for backup in store.list_backups()] == runs[1:]


IN_OUR_PLACES = [
    "manifests/EP/.a.staged/", "manifests/EP/.a.staged/theirs", "manifests/EP/.a.probe", "manifests/EP/.a.probe/theirs",
    "runs/EP/journal.draft/theirs", "runs/EP/shards/.a.tmp/theirs", "backups/EP/objects/@eaDir/theirs",
    "backups/EP/2026-notes.json", "embeds/EP/.a.staged/theirs",
]  # fmt: skip


@pytest.mark.parametrize("name", IN_OUR_PLACES)
def test_what_others_leave_where_the_program_has_things_of_its_own_holds_nothing_up(
    paths: EpisodePaths, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = paths.root / name.replace("EP", paths.ep_id)
    theirs.parent.mkdir()
    theirs.mkdir() if name.endswith("/") else theirs.write_bytes(b"theirs")
    root = DataRoot(paths.root)

    for turn in range(3):
        (paths.manifests / ".crashed.staged").write_bytes(b"")
        with root.hold(paths.ep_id) as held, held.write_back(make_run_id(), "test", None) as write_back:
            write_back.stage({paths.tracks: [f"{turn}".encode()]})
            if "journal.draft" not in name:
                held.commit(write_back, 1)

    assert theirs.exists() or theirs.name in (".a.staged", ".a.probe")
    assert not (paths.manifests / ".crashed.staged").exists() and not caplog.text


LINKS = [
    "backups/EP/RUN",
    "backups/EP/RUN.json",
    "backups/EP/objects/DIGEST",
    "runs/EP/lease.json",
    "runs/EP/shards/a.arrow",
]


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
def test_a_link_or_a_fifo_in_place_of_a_record_holds_nothing_up(
    paths: EpisodePaths, name: str, make: Callable[[Path], None]
) -> None:
    run_id, digest = make_run_id(), read_version(paths.tracks).sha256
    path = paths.root / name.replace("EP", paths.ep_id).replace("RUN", run_id).replace("DIGEST", digest)
    path.parent.mkdir()
    make(path.system_path)
    paths.progress.write_bytes(json.dumps({"run_id": run_id, "phase": "recluster"}).encode())
    before = paths.tracks.read_bytes()

    with hold_episode(paths):
        write(paths, {paths.tracks: b"new"})

    (backup,) = BackupStore(paths).list_backups()
    kept = backup.before[paths.name_of(paths.tracks)]
    assert kept is not None and BackupStore(paths).find(paths.name_of(paths.tracks), kept).read_bytes() == before
    assert json.loads(paths.progress.read_bytes())["phase"] == "failed"


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/etc/passwd")])
def test_a_journal_whose_staged_file_is_none_is_undone(paths: EpisodePaths, make: Callable[[Path], None]) -> None:
    cut_off(paths, {paths.tracks: b"new", paths.faces: b"new"})
    (staged,) = paths.manifests.glob(".faces.jsonl.*.staged")
    staged.unlink()
    make(staged.system_path)
    before = paths.tracks.read_bytes(), paths.faces.read_bytes()

    for _ in range(2):
        with hold_episode(paths):
            pass

    assert (paths.tracks.read_bytes(), paths.faces.read_bytes()) == before
    assert not paths.journal.exists() and not BackupStore(paths).list_backups()


def test_a_record_that_speaks_of_no_file_says_nothing_of_any(paths: EpisodePaths) -> None:
    record = {"schema_version": "backup_v1", "made_by": "x", "created_at": "x", "before": {}, "after": {}}
    run_id = make_run_id()
    paths.backups.mkdir()
    BackupStore(paths).record_path(run_id).write_bytes(json.dumps(record).encode())

    diff = compare_runs(DataRoot(paths.root), paths.ep_id, run_id, None, SplitTracksSettings())

    assert diff["tracks"]["before"] == diff["tracks"]["after"] > 0


def test_a_journal_of_a_newer_version_is_left_to_it(paths: EpisodePaths) -> None:
    paths.runs.mkdir()
    paths.journal.write_bytes(b'{"version": 3, "run_id": "x", "moves": []}')

    with pytest.raises(ArtifactError, match="a newer version of this program"), hold_episode(paths):
        pass
    assert paths.journal.exists()


def test_journals_of_earlier_versions_are_finished(paths: EpisodePaths) -> None:
    run_id = make_run_id()
    name = paths.name_of(paths.tracks)
    paths.runs.mkdir()
    staged = paths.staged_file(paths.tracks, run_id)
    staged.write_bytes(b"of version 1")
    paths.journal.write_bytes(json.dumps({"version": 1, "run_id": run_id, "moves": [
        {"target": name, "staged": paths.name_of(staged), "sha256": read_version(staged).sha256}
    ]}).encode())  # fmt: skip
    assert recover(paths) and paths.tracks.read_bytes() == b"of version 1"

    early = paths.runs / run_id / "staged" / name
    early.parent.mkdir()
    early.write_bytes(b"of version 0")
    moves = [[paths.name_of(early), name], [f"runs/{paths.ep_id}/{run_id}/staged/{paths.name_of(paths.faces)}",
                                           paths.name_of(paths.faces)]]  # fmt: skip
    paths.journal.write_bytes(json.dumps({"run_id": run_id, "moves": moves}).encode())
    assert recover(paths) and paths.tracks.read_bytes() == b"of version 0"
    assert not paths.journal.exists()


RECORD = b'{"schema_version": "backup_v1", "made_by": "x", "created_at": "x", "number": 1, "before": {"manifests/EP/tracks.jsonl": null}, "after": {"manifests/EP/tracks.jsonl": null}}'
RECORDS = [
    b"[]", b"{}", b"x", RECORD.replace(b"manifests/EP", b"../.."), RECORD.replace(b": null}", b": 5}"),
    RECORD.replace(b": null}", b": [1]}"), RECORD.replace(b'"number": 1', b'"number": 18446744073709551615'),
    RECORD.replace(b'"number": 1', b'"number": -1'),
]  # fmt: skip


@pytest.mark.parametrize("content", RECORDS)
def test_a_backup_record_that_is_none_is_named_and_holds_nothing_up(
    paths: EpisodePaths, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write(paths, {paths.tracks: b"first"})
    odd = paths.backups / "20200101T000000.000000Z-1.json"
    odd.write_bytes(content.replace(b"EP", paths.ep_id.encode()))
    store = BackupStore(paths)
    assert len(store.list_backups()) == 1 and odd.name in caplog.text

    write(paths, {paths.tracks: b"second"})
    store.prune(1, is_first_kept=False)
    caplog.clear()
    store.prune(1, is_first_kept=False)

    assert len(store.list_backups()) == 1 and not caplog.text, "named once"
    assert len((paths.backups / "objects").iterdir()) == 2, "it may have been the record of any content"


LEASES = [b"{}", b'{"token": 1}', b"[]", b'{"holder": 5, "token": [], "machine": {}}', b"x", b"\xff"]


@pytest.mark.parametrize("content", LEASES)
def test_a_lease_that_is_none_is_somebody_s_until_it_is_stale(paths: EpisodePaths, content: bytes) -> None:
    paths.runs.mkdir()
    lease = paths.runs.system_path / "lease.json"
    lease.write_bytes(content)

    with pytest.raises(BusyError, match=r"whoever wrote .*lease.json"), hold_episode(paths):
        pass
    os.utime(lease, (1, 1))
    with hold_episode(paths) as ours:
        ours.check()


def test_a_finished_run_s_record_that_is_none_means_running_again(paths: EpisodePaths) -> None:
    paths.runs.mkdir()
    for number, content in enumerate((b"[]", b"{}", b'{"fingerprint": 5}', b"x", b"null"), start=1):
        paths.finished.write_bytes(content)
        assert read_finished(paths, "f") is None
        assert paths.finished.with_name(f"finished.json.unreadable-{number}").exists()


@pytest.mark.parametrize("report", [None, b'{"ep', b"[1]"])
def test_a_run_that_was_cut_off_after_its_commit_is_done_whatever_became_of_its_report(
    paths: EpisodePaths, report: bytes | None
) -> None:
    run_id = write(paths, {paths.tracks: paths.tracks.read_bytes() + b"\n"})
    paths.progress.write_bytes(json.dumps({"run_id": run_id, "phase": "recluster"}).encode())
    if report is not None:
        paths.report.write_bytes(report)

    with hold_episode(paths):
        pass

    record = json.loads(paths.progress.read_bytes())
    assert record["phase"] == "done" and record["summary"] is None


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


def test_who_was_let_in_by_a_list_is_and_nobody_else(paths: EpisodePaths) -> None:
    """The group bits of a file with an access control list are no rights of its group."""
    tags = [
        (0x01, 6, 0xFFFFFFFF),
        (0x02, 6, 12345),
        (0x04, 0, 0xFFFFFFFF),
        (0x10, 6, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    ]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *tag) for tag in tags)
    try:
        os.setxattr(paths.tracks.system_path, "system.posix_acl_access", acl)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error}")

    write(paths, {paths.tracks: b"new"})

    assert os.getxattr(paths.tracks.system_path, "system.posix_acl_access") == acl


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
    for moment in (4e9, old):  # one of the future is not renewed either
        os.utime(lease, (moment, moment))
        with hold_episode(paths) as ours:
            ours.check()
        lease.write_text(
            json.dumps({"token": "t", "holder": "process 1 on elsewhere since 2026", "machine": "another"})
        )
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
