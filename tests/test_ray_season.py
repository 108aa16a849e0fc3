"""Seasons on Ray: the same files as on a laptop, through lost actors, lost nodes, a killed driver and a bad video."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.builders import artifacts_of, copy_episode, corrupt_video
from tests.conftest import find_free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.shared]
EPISODES = ("bbt-s01e01", "bbt-s01e02")
COPIES = {"bbt-s01e03": "bbt-s01e01"}


def start_season(root: Path, shared: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Starts ``cleanup season`` in a process of its own, with everything that makes it quick and repeatable."""
    return subprocess.Popen(
        [sys.executable, "-m", "cleanup.entrypoints.cli", "season", "--out-root", root, "--models", shared / "models",
         "--device", "cpu", "--profile", "low_power", "--write-back", "--json", *arguments],
        env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def people(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Facebank with a seed of everybody."""
    root = tmp_path_factory.mktemp("people")
    subprocess.run(
        [sys.executable, "-m", "cleanup.entrypoints.cli", "facebank", "enroll", shared / "facebank" / "bbt", "--show",
         "bbt", "--out-root", root, "--models", shared / "models", "--device", "cpu"], check=True,
    )  # fmt: skip
    return root / "facebank"


def finish(process: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == code, stderr
    return dict(json.loads(stdout))


@pytest.fixture(scope="module")
def local(shared: Path, people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two real episodes after ``cleanup season`` on the local engine."""
    root = tmp_path_factory.mktemp("local")
    for ep_id in EPISODES:
        copy_episode(shared / "data", ep_id, ep_id, root)
    shutil.copytree(people, root / "facebank")
    finish(start_season(root, shared, "--show", "bbt", "--engine", "local"))
    return root


@pytest.fixture
def root(shared: Path, people: Path, tmp_path: Path) -> Path:
    """A fresh data root with the first real episode, and its people."""
    shutil.copytree(people, tmp_path / "facebank")
    copy_episode(shared / "data", EPISODES[0], EPISODES[0], tmp_path)
    return tmp_path


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without CPUs and two worker nodes with one each, on this machine."""
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": find_free_port()})
    for _ in range(2):
        started.add_node(num_cpus=1)
    started.wait_for_nodes()
    yield started
    started.shutdown()


def wait_for_shards(root: Path, ep_id: str, n_shards: int, process: subprocess.Popen[str]) -> set[str]:
    """Waits until so many shards are checkpointed."""
    folder = root / "runs" / ep_id / "shards"
    for _ in range(1200):
        found = {path.name for path in folder.glob("*.arrow")}
        if len(found) >= n_shards:
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{len(found)} shards after a minute")


def kill_a_worker(season: subprocess.Popen[str]) -> None:
    """Kills an actor that is observing a shard."""
    while season.poll() is None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if "ray::observe" in " ".join(process.cmdline()):
                    process.kill()
                    return
    raise AssertionError("the season ended before a worker was seen")


def test_a_season_on_ray_writes_what_the_local_engine_writes(shared: Path, local: Path, root: Path) -> None:
    for ep_id in (*EPISODES[1:], *COPIES):
        copy_episode(shared / "data", COPIES.get(ep_id, ep_id), ep_id, root)

    report = finish(start_season(root, shared, "--show", "bbt", "--season", "1", "--engine", "ray"))
    again = finish(start_season(root, shared, "--show", "bbt", "--season", "1", "--engine", "ray"))

    for ep_id in (*EPISODES, *COPIES):
        source = COPIES.get(ep_id, ep_id)
        expected = {k: v.replace(source.encode(), ep_id.encode()) for k, v in artifacts_of(local, source).items()}
        assert artifacts_of(root, ep_id) == expected, ep_id
    totals = report["totals"]
    assert totals["succeeded"] == 3
    identities = json.loads((root / "manifests" / EPISODES[0] / "identities.json").read_text())["identities"]
    assert all(identity["labels"]["person_id"] for identity in identities), "the Facebank reached the final tasks"
    assert totals["frames_decoded"] == totals["frames"] > 0
    assert 1 <= report["model_loads"] <= os.cpu_count()
    assert again["totals"]["unchanged"] == 3 and again["model_loads"] == 0


def test_a_killed_actor_loses_only_its_shard(shared: Path, local: Path, root: Path) -> None:
    process = start_season(root, shared, "--show", "bbt", "--engine", "ray")
    wait_for_shards(root, EPISODES[0], 2, process)
    kill_a_worker(process)
    report = finish(process)

    assert artifacts_of(root, EPISODES[0]) == artifacts_of(local, EPISODES[0])
    totals = report["totals"]
    assert totals["shards_retried"] == 1 and totals["shards_failed"] == 0
    assert totals["frames_decoded"] == totals["frames"]


def test_a_lost_node_loses_only_its_shard(shared: Path, local: Path, root: Path, cluster: Cluster) -> None:
    process = start_season(root, shared, "--show", "bbt", "--engine", "ray", RAY_ADDRESS=cluster.address)
    wait_for_shards(root, EPISODES[0], 2, process)
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    report = finish(process)

    assert artifacts_of(root, EPISODES[0]) == artifacts_of(local, EPISODES[0])
    totals = report["totals"]
    assert totals["shards_retried"] <= 1 and totals["shards_failed"] == 0
    assert totals["frames_decoded"] == totals["frames"]
    assert 1 <= report["model_loads"] <= 2  # the survivor loads once, the other node may have been lost before it did


def test_a_killed_driver_goes_on_where_it_was(shared: Path, local: Path, root: Path, cluster: Cluster) -> None:
    before = artifacts_of(root, EPISODES[0])
    arguments = ("--show", "bbt", "--engine", "ray")
    process = start_season(root, shared, *arguments, RAY_ADDRESS=cluster.address)
    wait_for_shards(root, EPISODES[0], 4, process)
    process.kill()
    process.communicate()
    kept = {path.name: path.stat().st_mtime_ns for path in (root / "runs" / EPISODES[0] / "shards").glob("*.arrow")}
    untouched = artifacts_of(root, EPISODES[0])
    report = finish(start_season(root, shared, *arguments, RAY_ADDRESS=cluster.address))

    assert untouched == before
    assert artifacts_of(root, EPISODES[0]) == artifacts_of(local, EPISODES[0])
    totals = report["totals"]
    # One was that which looked whether it is the right video.
    assert totals["shards_from_checkpoints"] == len(kept) - 1 >= 3
    assert all((root / "runs" / EPISODES[0] / "shards" / name).stat().st_mtime_ns == at for name, at in kept.items())
    assert totals["frames_decoded"] <= 0.6 * totals["frames"]


def test_a_corrupt_stretch_leaves_its_tracks_as_they_were(shared: Path, root: Path) -> None:
    ep_id = EPISODES[0]
    before = {name: read_by_track(root, ep_id, name) for name in ("tracks.jsonl", "faces.jsonl")}
    corrupt_video(root / "videos" / ep_id / "episode.mp4", 0.40, 0.55)

    report = finish(start_season(root, shared, "--show", "bbt", "--engine", "local"))

    (stretch,) = report["episodes"][ep_id]["unreadable"]
    lost = set(stretch["tracks"])
    assert 0.38 < stretch["first_s"] / 120 < stretch["last_s"] / 120 < 0.57
    assert "cannot be decoded from 0:4" in stretch["reason"]
    for name, old in before.items():
        new = read_by_track(root, ep_id, name)
        assert lost <= {int(t.rsplit("-", 1)[-1]) for t in old}
        for track in old:
            is_lost = int(track.rsplit("-", 1)[-1]) in lost
            assert (new[track] == old[track]) >= is_lost, (name, track)
    identities = json.loads((root / "manifests" / ep_id / "identities.json").read_text())["identities"]
    owned = [int(t.rsplit("-", 1)[-1]) for identity in identities for t in identity["track_ids"]]
    assert len(owned) == len(set(owned)) and lost <= set(owned)


def read_by_track(root: Path, ep_id: str, name: str) -> dict[str, list[str]]:
    """Lines of a JSON-lines file by track, byte by byte."""
    found: dict[str, list[str]] = {}
    for line in (root / "manifests" / ep_id / name).read_text().splitlines():
        found.setdefault(str(json.loads(line)["track_id"]), []).append(line)
    return found


def test_a_stopped_season_on_ray_leaves_no_process_and_no_half_file(shared: Path, root: Path) -> None:
    before = artifacts_of(root, EPISODES[0])
    process = start_season(root, shared, "--show", "bbt", "--engine", "ray")
    wait_for_shards(root, EPISODES[0], 2, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 130, stderr
    assert "interrupted; no file is half written" in stderr
    assert artifacts_of(root, EPISODES[0]) == before
    assert not psutil.wait_procs(children, timeout=10)[1]
