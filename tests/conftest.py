"""Shared fixtures: the drawn episode, the shared real episodes, a clean environment."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from cleanup.settings import SPECS

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable that the product reads leaks from the developer's shell into a test."""
    names = {s.metadata["env"] for s in SPECS.values()} - {None}
    for name in names | {
        "SCREENALYTICS_DATA_ROOT",
        "SCREENALYTICS_PERF_PROFILE",
        "SCREENALYTICS_CONFIG_DIR",
        "RAY_ADDRESS",
    }:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared real episodes and models; in CI they must be there."""
    if not (SHARED / "data").is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{SHARED} is missing")
        pytest.skip("the shared episodes are not here")
    return SHARED


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a Ray run one after the other; those with its dashboard last: beside other work it loses its agents."""

    def turn(item: pytest.Item) -> int:
        return 1 if item.get_closest_marker("ray") is None else 0 if item.get_closest_marker("dashboard") is None else 2

    for item in items:
        if turn(item) != 1:
            item.add_marker(pytest.mark.xdist_group(f"ray {turn(item)}"))
    items.sort(key=turn)


def find_free_port() -> int:
    """A TCP port nobody listens on, outside those that Ray hands to its workers; other tests look for other ones."""
    first = 20500 + 500 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for port in range(first, first + 500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError("no free port")


def copy_data(source: Path, target: Path) -> Path:
    """A writable copy of a data root."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


def _made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A data root that one of the test workers makes for all of them, to be copied."""
    base = factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with root.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            unfinished = root.with_suffix(".unfinished")
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(root)
    return root


@pytest.fixture(scope="session")
def _drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cleanup.entrypoints.demo import draw_episode

    return _made_once(tmp_path_factory, "drawn", lambda root: draw_episode(root, seed=1))


@pytest.fixture
def drawn(_drawn: Path, tmp_path: Path) -> Path:
    """A fresh data root with the drawn episode demo-s01e01, its models and seed photos."""
    return copy_data(_drawn, tmp_path / "data")


@pytest.fixture
def shared_data(shared: Path, tmp_path: Path) -> Path:
    """A fresh copy of the shared data root."""
    return copy_data(shared / "data", tmp_path / "shared-data")


@pytest.fixture(scope="session")
def _enrolled(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.entrypoints.test_cli import cleanup

    def enroll(root: Path) -> None:
        for show in ("bbt", "hamilton"):
            photos = shared / "facebank" / show
            cleanup("facebank", "enroll", "--show", show, "--out-root", root, "--models", shared / "models", photos)

    return _made_once(tmp_path_factory, "enrolled", enroll)


@pytest.fixture
def enrolled_data(shared_data: Path, _enrolled: Path) -> Path:
    """A fresh copy of the shared data root, with a Facebank of everybody."""
    copy_data(_enrolled / "facebank", shared_data / "facebank")
    return shared_data
