"""A data root on S3: a real S3 server on loopback, one process per test session."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cleanup.edges import lease as lease_module
from cleanup.edges import remote_root
from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.backups import BackupStore
from cleanup.edges.episode_lock import hold_episode, make_run_id
from cleanup.edges.remote_files import NodeCache
from cleanup.edges.remote_root import RemoteRoot
from cleanup.edges.root_path import RootPath
from cleanup.errors import BusyError, StorageError
from tests.builders import artifacts_of, snapshot
from tests.conftest import find_free_port
from tests.entrypoints.test_cli import EP, cleanup, run

ROOT_URL = "s3://season/root"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    port = find_free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(200):
        try:
            urllib.request.urlopen(url, timeout=1).close()
            break
        except OSError:
            time.sleep(0.1)
    yield url
    process.kill()
    process.wait()


@pytest.fixture
def s3(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket ``season``; the node's cache in a folder of the test."""
    for name, value in {
        "AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "CLEANUP_CACHE_DIR": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST"), timeout=5).close()
    filesystem = fsspec.filesystem("s3", use_listings_cache=False)
    filesystem.mkdir("season")
    yield filesystem
    filesystem.clear_instance_cache()


def upload(s3: Any, root: Path) -> None:
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        s3.pipe_file(f"season/root/{path.relative_to(root).as_posix()}", path.read_bytes())


def download(s3: Any, target: Path) -> Path:
    for name in s3.find("season/root"):
        path = target / Path(name).relative_to("season/root")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(s3.cat_file(name))
    return target


def run_remote(*arguments: str, code: int = 0) -> Any:
    return cleanup("run", "--ep-id", EP, "--out-root", ROOT_URL, "--models", f"{ROOT_URL}/models", "--device", "cpu",
                   "--actions", "split_tracks,reembed,recluster", *arguments, code=code)  # fmt: skip


def test_a_root_on_s3_gives_what_a_folder_gives(s3: Any, drawn: Path, tmp_path: Path) -> None:
    upload(s3, drawn)
    old = artifacts_of(drawn, EP)
    report = json.loads(run_remote("--write-back", "--json").stdout)
    run(drawn, "--actions", "split_tracks,reembed,recluster", "--write-back", "--quiet")

    stored = download(s3, tmp_path / "stored")
    assert artifacts_of(stored, EP) == artifacts_of(drawn, EP)
    assert report["files"]["report"] == f"{ROOT_URL}/manifests/{EP}/cleanup_report.json"
    (backup,) = BackupStore(EpisodePaths(RootPath(stored), EP)).list_backups()
    assert backup.run_id == report["files"]["backup"]
    kept = {path.read_bytes() for path in (stored / "backups" / EP / "objects").iterdir()}
    assert {old["faces.jsonl"], old["faces.npy"], old["tracks.jsonl"]} < kept
    assert {"cleanup_report.json", "cleanup_progress.json"} <= {p.name for p in (stored / "manifests" / EP).iterdir()}
    assert not [name for name in snapshot(stored) if "staged" in name or "journal" in name or "lease" in name]


def test_checkpoints_and_the_finished_run_are_known_to_other_hosts(
    s3: Any, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(s3, drawn)
    arguments = ("season", "--show", "demo", "--out-root", ROOT_URL, "--models", f"{ROOT_URL}/models", "--json",
                 "--actions", "split_tracks,reembed,recluster")  # fmt: skip
    first = json.loads(cleanup(*arguments).stdout)
    monkeypatch.setenv("CLEANUP_CACHE_DIR", str(tmp_path / "other-host"))

    second = json.loads(cleanup(*arguments, "--cluster-thresh", "0.4").stdout)
    third = json.loads(cleanup(*arguments, "--cluster-thresh", "0.4").stdout)

    assert first["totals"]["shards_from_checkpoints"] == 0
    assert second["totals"]["shards_from_checkpoints"] == second["totals"]["shards"] > 0
    assert second["totals"]["frames_decoded"] == 0
    assert third["totals"]["unchanged"] == 1


def test_what_lies_on_s3_is_validated_unless_a_run_is_at_work_in_the_mirror(
    s3: Any, drawn: Path, tmp_path: Path
) -> None:
    upload(s3, drawn)
    arguments = ("validate", "--ep-id", EP, "--out-root", ROOT_URL)

    valid = cleanup(*arguments)
    (mirror,) = (tmp_path / "cache" / "roots").iterdir()
    with hold_episode(EpisodePaths(RootPath(mirror), EP)):
        refused = cleanup(*arguments, code=2)

    assert f"{EP}: valid, emitted dialect" in valid.stdout
    assert "a cleanup is running already" in refused.stderr


def test_a_publication_that_was_cut_off_is_finished_or_never_was(s3: Any, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    root = RemoteRoot(ROOT_URL, RootPath(mirror))
    names = ["manifests/demo-s01e01/tracks.jsonl", "manifests/demo-s01e01/faces.jsonl", "embeds/demo-s01e01/faces.npy"]
    n_calls = 0
    while True:
        for name in names:
            s3.pipe_file(f"season/root/{name}", b"old")
            (mirror / name).parent.mkdir(parents=True, exist_ok=True)
            (mirror / name).write_bytes(b"new")
        filesystem = _DyingAfter(s3, n_calls)
        is_cut = _publish_through(filesystem, root, [root.mirror / name for name in names])
        root.check_out("demo-s01e01")

        stored = [s3.cat_file(f"season/root/{name}") for name in names]
        assert stored in ([b"old"] * 3, [b"new"] * 3), n_calls
        assert [(mirror / name).read_bytes() for name in names] == stored
        assert not s3.glob("season/root/runs/demo-s01e01/**/staged/**")
        if not is_cut:
            assert stored == [b"new"] * 3
            break
        n_calls += 1
    assert n_calls > 8


JOURNALS: list[Any] = [
    "x", [], {"run_id": "../x", "moves": []}, {"run_id": 5, "moves": [[None, 5]]},
    {"moves": [[None, f"videos/{EP}/episode.mp4"]]}, {"moves": [[None, "../../season/root/secret"]]},
    {"moves": [["secret", f"manifests/{EP}/tracks.jsonl"]]}, {"moves": [["../x", f"manifests/{EP}/tracks.jsonl"]]},
]  # fmt: skip


@pytest.mark.parametrize("record", JOURNALS)
def test_a_journal_that_is_none_is_set_aside_and_touches_nothing(s3: Any, tmp_path: Path, record: Any) -> None:
    names = [f"manifests/{EP}/tracks.jsonl", f"videos/{EP}/episode.mp4", "secret"]
    for name in names:
        s3.pipe_file(f"season/root/{name}", name.encode())
    journal = {"run_id": make_run_id(), **record} if isinstance(record, dict) else record
    s3.pipe_file(f"season/root/runs/{EP}/journal.json", json.dumps(journal).encode())

    for _ in range(2):
        RemoteRoot(ROOT_URL, RootPath(tmp_path / "mirror")).check_out(EP)

    assert [s3.cat_file(f"season/root/{name}").decode() for name in names] == names
    assert len(s3.glob(f"season/root/runs/{EP}/journal.json*")) == 1
    assert not s3.exists(f"season/root/runs/{EP}/journal.json")


class _DyingAfter:
    """A filesystem that fails, or whose process dies, after so many changes."""

    def __init__(self, filesystem: Any, n_calls: int, error: BaseException | None = None) -> None:
        self._filesystem, self._left, self._error = filesystem, n_calls, error or KeyboardInterrupt()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._filesystem, name)
        if name not in ("pipe_file", "put_file", "cp_file", "rm_file"):
            return method

        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._left == 0:
                raise self._error
            self._left -= 1
            return method(*args, **kwargs)

        return counted


def _publish_through(filesystem: Any, root: RemoteRoot, files: list[Path]) -> bool:
    """Publishes; whether it was cut off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cleanup.edges.remote_root.open_filesystem", lambda url: (filesystem, url.removeprefix("s3://")))
        try:
            root.publish("demo-s01e01", make_run_id(), files, [])
        except KeyboardInterrupt:
            return True
    return False


def test_storage_that_fails_after_the_commit_point_says_so(s3: Any, tmp_path: Path) -> None:
    root = RemoteRoot(ROOT_URL, RootPath(tmp_path / "mirror"))
    path = root.mirror / "manifests" / EP / "tracks.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"new")
    s3.pipe_file(f"season/root/manifests/{EP}/tracks.jsonl", b"old")

    # A staged file and the journal are written; putting the file into place fails.
    with pytest.raises(StorageError, match="committed but not all in place .* the next command"):
        _publish_through(_DyingAfter(s3, 2, ConnectionError("cut off")), root, [path])
    root.check_out(EP)

    assert path.read_bytes() == s3.cat_file(f"season/root/manifests/{EP}/tracks.jsonl") == b"new"


def test_one_run_holds_an_episode_on_all_hosts(s3: Any, tmp_path: Path) -> None:
    here, there = RemoteRoot(ROOT_URL, RootPath(tmp_path / "a")), RemoteRoot(ROOT_URL, RootPath(tmp_path / "b"))

    with here.hold(EP) as lease:
        lease.check()
        with pytest.raises(BusyError, match=rf"{EP}: a cleanup is running already \(process \d+ on "), there.hold(EP):
            pass
        with there.hold("demo-s01e02"):
            pass
    with there.hold(EP):
        pass
    assert not s3.exists(f"season/root/runs/{EP}/lease.json")


def test_a_lease_that_went_stale_is_taken_over_and_its_run_publishes_nothing(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_root, "LEASE_S", 0.5)
    here, there = RemoteRoot(ROOT_URL, RootPath(tmp_path / "a")), RemoteRoot(ROOT_URL, RootPath(tmp_path / "b"))

    with here.hold(EP) as lease:
        time.sleep(2.0)  # S3 tells whole seconds
        with there.hold(EP), pytest.raises(StorageError, match="the lease was lost to another run"):
            lease.check()
    assert s3.find(f"season/root/runs/{EP}") == [], "neither a lease nor what told the time"


def test_a_lease_that_is_renewed_holds_whatever_the_hosts_think_of_the_time(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_root, "LEASE_S", 2.5)
    monkeypatch.setattr(lease_module, "_HEARTBEAT_S", 0.2)
    here, there = RemoteRoot(ROOT_URL, RootPath(tmp_path / "a")), RemoteRoot(ROOT_URL, RootPath(tmp_path / "b"))

    with here.hold(EP) as lease:
        time.sleep(4.5)
        lease.check()
        with monkeypatch.context() as ahead:
            ahead.setattr(time, "time", lambda: time.monotonic() + 4e9)
            with pytest.raises(BusyError), there.hold(EP):
                pass


def test_the_cache_downloads_once_and_again_after_a_change(s3: Any, tmp_path: Path) -> None:
    cache = NodeCache(str(tmp_path / "cache"), 1 << 20)
    s3.pipe_file("season/a.bin", b"1" * 10)

    first = cache.fetch("s3://season/a.bin")
    changed_at = first.stat().st_mtime_ns
    again = cache.fetch("s3://season/a.bin")
    s3.pipe_file("season/a.bin", b"2" * 11)
    changed = cache.fetch("s3://season/a.bin")

    assert again == first and again.stat().st_mtime_ns == changed_at
    assert changed.read_bytes() == b"2" * 11


def test_the_cache_drops_the_longest_unused_beyond_its_limit(s3: Any, tmp_path: Path) -> None:
    cache = NodeCache(str(tmp_path / "cache"), 25)
    paths = []
    for name in "abc":
        s3.pipe_file(f"season/{name}.bin", b"x" * 10)
        paths.append(cache.fetch(f"s3://season/{name}.bin"))
        time.sleep(0.02)
    cache.fetch("s3://season/b.bin")
    s3.pipe_file("season/d.bin", b"x" * 10)
    last = cache.fetch("s3://season/d.bin")

    assert [p.exists() for p in [*paths, last]] == [False, True, False, True]


def test_the_cache_leaves_alone_what_is_still_on_its_way(s3: Any, tmp_path: Path) -> None:
    part = tmp_path / "cache" / "files" / "other" / ".b.mp4.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 50)
    s3.pipe_file("season/a.bin", b"x" * 10)
    NodeCache(str(tmp_path / "cache"), 1).fetch("s3://season/a.bin")

    assert part.exists()


def test_a_file_larger_than_the_cache_is_kept_while_it_is_the_one_asked_for(s3: Any, tmp_path: Path) -> None:
    s3.pipe_file("season/a.bin", b"x" * 10)

    assert NodeCache(str(tmp_path / "cache"), 1).fetch("s3://season/a.bin").read_bytes() == b"x" * 10


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://season/none.mp4", "s3://season/none.mp4: no such object"),
        ("s3://nowhere/none.mp4", "s3://nowhere/none.mp4: "),
        ("nosuch://x/y.mp4", "nosuch://x/y.mp4: "),
    ],
)
def test_what_cannot_be_fetched_is_one_line_with_its_url(s3: Any, tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(StorageError) as caught:
        NodeCache(str(tmp_path / "cache"), 1).fetch(url)

    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


def test_storage_that_does_not_answer_is_one_line(drawn: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{find_free_port()}")
    s3.clear_instance_cache()

    result = run_remote(code=1)

    assert result.stderr.startswith(f"cleanup: {ROOT_URL}")
    assert len(result.stderr.strip().splitlines()) == 1


def test_people_behind_a_url_need_a_server(s3: Any, drawn: Path) -> None:
    upload(s3, drawn)

    listed = cleanup("facebank", "list", "--out-root", ROOT_URL, code=2)
    report = json.loads(
        cleanup("run", "--ep-id", EP, "--out-root", ROOT_URL, "--actions", "group_clusters", "--json").stdout
    )

    assert "--facebank-dsn" in listed.stderr
    assert any("there is no Facebank under s3://season/root" in w for w in report["warnings"])


def test_an_episode_on_s3_goes_back_and_forth(
    s3: Any, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(s3, drawn)
    old = artifacts_of(drawn, EP)
    run_remote("--write-back", "-q")
    new = artifacts_of(download(s3, tmp_path / "new"), EP)
    monkeypatch.setenv("CLEANUP_CACHE_DIR", str(tmp_path / "other-host"))
    where = ("--out-root", ROOT_URL)

    (first,) = json.loads(cleanup("backups", "list", EP, *where, "--json").stdout)
    changes = json.loads(cleanup("diff", EP, *where, "--json").stdout)
    cleanup("backups", "restore", EP, first["run_id"], *where)
    back = download(s3, tmp_path / "back")
    second = json.loads(cleanup("backups", "list", EP, *where, "--json").stdout)[1]
    cleanup("backups", "restore", EP, second["run_id"], *where)
    forth = download(s3, tmp_path / "forth")
    pruned = cleanup("backups", "prune", EP, *where, "--drop-first", "--keep-backups", "1").stdout

    assert changes["tracks"]["after"] > changes["tracks"]["before"]
    assert artifacts_of(back, EP) == old and not (back / "manifests" / EP / "cleanup_report.json").exists()
    assert artifacts_of(forth, EP) == new and second["made_by"] == f"restore {first['run_id']}"
    assert "2 backups removed" in pruned
    left = {Path(name).name for name in s3.find(f"season/root/backups/{EP}")}
    last = json.loads(cleanup("backups", "list", EP, *where, "--json").stdout)[0]
    assert f"{last['run_id']}.json" in left and len(left) < 12
