"""Nothing below a data root leads out of it, hangs, or is read without end, whatever lies there."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.root_path import RootPath, UnsafePathError
from cleanup.errors import ArtifactError, CleanupError
from tests.builders import snapshot, write_episode
from tests.entrypoints.test_cli import cleanup

SECRET = b"precious"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_bytes(SECRET)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> RootPath:
    (tmp_path / "root").mkdir()
    return RootPath(tmp_path / "root")


def make_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "file")


def make_folder_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def make_dangling_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "new")


def make_fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path, outside: Path) -> None:
    path.symlink_to("/dev/zero")


def make_socket(path: Path, outside: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's name must be short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


ODD = [make_link, make_folder_link, make_dangling_link, make_fifo, make_device, make_socket]
Make = Callable[[Path, Path], None]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("inner", ["", "/inner"])
def test_what_is_no_file_and_no_folder_is_an_error_everywhere(
    root: RootPath, outside: Path, make: Make, inner: str
) -> None:
    make(root.system_path / "odd", outside)
    path = root / f"odd{inner}"
    other = root / "other"
    before = snapshot(outside)

    for action in (
        path.exists, path.is_file, path.is_dir, path.stat, path.read_bytes, path.iterdir, path.mkdir, path.touch, path.sync,
        path.rmtree, path.open_lock, lambda: path.open("rb"), lambda: path.open("ab"), lambda: other.take_rights_of(path),
    ):  # fmt: skip
        with pytest.raises((UnsafePathError, FileExistsError)):
            action()
    for write in (lambda: path.open("xb"), lambda: path.write_bytes(b"x"), path.unlink):
        with contextlib.suppress(UnsafePathError, OSError):  # the odd thing itself may be removed or replaced
            write()
    assert snapshot(outside) == before
    assert not list(root.glob("odd/*")) and not list((root / "odd").walk_files())


@pytest.mark.parametrize("make", [make_link, make_fifo, make_device, make_socket])
def test_a_file_that_the_user_names_comes_in_no_place_of_a_device_or_a_link(
    tmp_path: Path, outside: Path, make: Make
) -> None:
    """As root, a progress file at /dev/null would take the place of /dev/null."""
    make(tmp_path / "odd", outside)

    with pytest.raises(UnsafePathError, match="odd: is a"):
        RootPath.of_file(tmp_path / "odd")


LEASING = """
import fcntl, os, signal, sys, time
handle = os.open(sys.argv[1], os.O_RDWR)
signal.signal(signal.SIGIO, lambda *_: fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK))
fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("leased", flush=True)
time.sleep(30)
"""


def test_a_file_that_a_file_server_has_lent_to_a_client_is_waited_for(root: RootPath) -> None:
    (root / "file").write_bytes(b"x")
    command = [sys.executable, "-c", LEASING, str(root / "file")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stderr is not None
        if server.stdout.readline() != "leased\n":
            pytest.skip(f"no leases here: {server.stderr.read()[-200:]}")
        assert (root / "file").read_bytes() == b"x"
        server.kill()


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.EINVAL, errno.ENOTSUP])
def test_storage_that_knows_no_owner_or_mode_is_written_to(
    root: RootPath, refusal: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EINVAL is what a container's own root gets for the owner of a folder whom the container does not know."""

    def refuse(*_: object) -> None:
        raise OSError(refusal, os.strerror(refusal))

    root.system_path.chmod(0o770)
    os.chown(root.system_path, -1, os.getgid() if os.geteuid() else 12345)
    monkeypatch.setattr(os, "fchmod", refuse)
    monkeypatch.setattr(os, "fchown", refuse)

    (root / "folder").mkdir()
    (root / "folder/file").write_bytes(b"x")

    assert (root / "folder/file").read_bytes() == b"x"


def test_a_name_cannot_lead_out(root: RootPath) -> None:
    for name in ("..", "a/../../b", "/etc/passwd", "a\0b"):
        with pytest.raises(UnsafePathError, match="does not lie below"):
            root / name


def test_a_link_swapped_in_between_is_not_followed(
    root: RootPath, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that was looked at is the one that is written to, whatever has its name by then."""
    (root / "folder").mkdir()
    plain = os.open

    def swap(name: object, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        handle = plain(name, flags, mode, dir_fd=dir_fd)  # type: ignore[arg-type]
        if name == "folder":
            (root.system_path / "folder").rename(root.system_path / "moved")
            (root.system_path / "folder").symlink_to(outside)
        return handle

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", swap)
        (root / "folder/new").write_bytes(b"x")

    assert (root.system_path / "moved/new").read_bytes() == b"x" and not (outside / "new").exists()


def test_a_file_of_several_names_is_replaced_and_not_written_into(root: RootPath, outside: Path) -> None:
    os.link(outside / "file", root.system_path / "twin")

    with pytest.raises(UnsafePathError, match="hard links"):
        (root / "twin").open("ab")
    (root / "twin").write_bytes(b"new")

    assert (outside / "file").read_bytes() == SECRET and (root / "twin").read_bytes() == b"new"


def test_a_root_may_be_a_link_and_a_moved_one_is_found_where_it_is(root: RootPath, tmp_path: Path) -> None:
    (root / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(root.system_path)

    assert RootPath(tmp_path / "link") / "file" != root / "file"
    assert (RootPath(tmp_path / "link") / "file").read_bytes() == b"x"


def test_a_file_is_read_within_a_bound(root: RootPath) -> None:
    (root / "file").write_bytes(b"12345")

    assert (root / "file").read_bytes(limit=5) == b"12345"
    with pytest.raises(ArtifactError, match="more than 4 bytes"):
        (root / "file").read_bytes(limit=4)


def test_no_library_is_given_a_place_by_accident(root: RootPath) -> None:
    with pytest.raises(TypeError):
        Path(root)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        os.open(root, os.O_RDONLY)  # type: ignore[arg-type]


def test_what_is_made_has_the_rights_of_its_folder(root: RootPath) -> None:
    (root / "episode").mkdir()
    (root.system_path / "episode").chmod(0o2770)
    mask = os.umask(0o077)
    try:
        (root / "episode/sub").mkdir()
        (root / "episode/sub/file").write_bytes(b"")
        (root / "runs/episode").mkdir(like=root / "episode/sub")
    finally:
        os.umask(mask)

    modes = {
        name: stat.S_IMODE((root / name).stat().st_mode) for name in ("episode/sub", "episode/sub/file", "runs/episode")
    }
    assert modes == {"episode/sub": 0o2770, "episode/sub/file": 0o660, "runs/episode": 0o2770}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_leaves_belongs_to_whom_the_episode_belongs(tmp_path: Path) -> None:
    ep_id = write_episode(tmp_path, "emitted")
    for path in [tmp_path, *tmp_path.rglob("*")]:
        os.chown(path, 12345, 12346)

    cleanup("run", "--ep-id", ep_id, "--out-root", tmp_path, "--actions", "split_tracks", "recluster", "--write-back")

    assert {(p.stat().st_uid, p.stat().st_gid) for p in tmp_path.rglob("*")} == {(12345, 12346)}


PLACES = [
    "manifests/{ep}/tracks.jsonl", "manifests/{ep}/identities.json", "manifests/{ep}/track_metrics.json",
    "manifests/{ep}/cleanup_progress.json", "manifests/{ep}/cleanup_report.json", "embeds/{ep}/faces.npy", "embeds/{ep}",
    "runs", "runs/{ep}", "runs/{ep}/lock", "runs/{ep}/lease.json", "runs/{ep}/journal.json", "runs/{ep}/finished.json",
    "backups", "backups/{ep}", "backups/{ep}/objects",
]  # fmt: skip


@pytest.mark.timeout(120)
@pytest.mark.parametrize("make", [make_link, make_folder_link, make_fifo, make_device])
def test_no_command_follows_what_lies_in_an_episode(tmp_path: Path, outside: Path, make: Make) -> None:
    for number, place in enumerate(PLACES):
        data = tmp_path / f"data{number}"
        ep_id = write_episode(data, "emitted")
        path = data / place.format(ep=ep_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            path.rename(path.with_name("away"))
        path.unlink(missing_ok=True)
        make(path, outside)
        before = snapshot(outside)

        for command in (
            ("run", "--ep-id", ep_id, "--actions", "recluster", "--device", "cpu"),
            ("run", "--ep-id", ep_id, "--actions", "recluster", "--device", "cpu", "--write-back"),
            ("validate", "--ep-id", ep_id), ("diff", ep_id), ("backups", "list", ep_id), ("backups", "prune", ep_id),
        ):  # fmt: skip
            result = cleanup(*command, "--out-root", data, code=None)
            assert result.exit_code in (0, 1, 2) and "Traceback" not in result.output, (place, command, result.output)
            if result.exit_code:
                assert len(result.stderr.strip().splitlines()[-1:]) == 1
            assert snapshot(outside) == before, (place, command)


def test_a_season_names_the_episode_that_is_a_link_and_does_the_others(tmp_path: Path, outside: Path) -> None:
    ep_id = write_episode(tmp_path / "data", "emitted")
    (tmp_path / "data/manifests/show-s01e09").symlink_to(outside)

    result = cleanup("season", "--show", "show", "--actions", "recluster", "--device", "cpu", "--write-back", "--out-root",
                     tmp_path / "data", code=None)  # fmt: skip

    assert result.exit_code == 1 and "show-s01e09" in result.output and "is a link" in result.output
    assert EpisodePaths(RootPath(tmp_path / "data"), ep_id).report.exists()


def test_an_unsafe_place_is_bad_input() -> None:
    assert issubclass(UnsafePathError, CleanupError) and UnsafePathError("x").exit_code == 2
