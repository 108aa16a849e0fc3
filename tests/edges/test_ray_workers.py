"""The Ray engine gives what the local one gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from cleanup.edges.observation_worker import WorkerSpec
from cleanup.edges.onnx_models import ModelSpec
from cleanup.edges.ray_workers import RayEngine
from cleanup.edges.remote_files import NodeCache
from cleanup.errors import EngineError, VideoError
from cleanup.settings import ClusterSettings
from tests.builders import snapshot
from tests.conftest import copy_data
from tests.entrypoints.test_cli import EP, cleanup, report_of, run


@pytest.fixture(scope="module")
def session_ray() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.usefixtures("session_ray")
def test_ray_writes_what_local_writes(drawn: Path, tmp_path: Path) -> None:
    cleanup("facebank", "enroll", "--show", "demo", "--aligned", "--out-root", drawn, "--models", drawn / "models",
            drawn / "seed_photos")  # fmt: skip
    other = copy_data(drawn / "manifests", tmp_path / "other" / "manifests").parent
    for folder in ("embeds", "videos", "models"):
        copy_data(drawn / folder, other / folder)
    cleanup("facebank", "enroll", "--show", "demo", "--aligned", "--out-root", other, "--models", drawn / "models",
            drawn / "seed_photos")  # fmt: skip

    local = report_of(run(drawn, "--write-back", "--engine", "local", "--json"))
    remote = report_of(run(other, "--write-back", "--engine", "ray", "--json"))

    assert (local["engine"], remote["engine"]) == ("local", "ray")
    for folder in ("manifests", "embeds"):
        ours, theirs = snapshot(drawn / folder), snapshot(other / folder)
        for name in [n for n in ours if "cleanup_" not in n]:
            assert ours[name] == theirs[name], name
    assert local["grouping"] == remote["grouping"]
    assert json.dumps(local["metrics_after"]) == json.dumps(remote["metrics_after"])


@pytest.mark.ray
@pytest.mark.usefixtures("session_ray")
def test_an_error_in_an_actor_is_the_workers_own(drawn: Path) -> None:
    (drawn / "videos" / EP / "episode.mp4").write_bytes(b"no video any more")

    result = run(drawn, "--engine", "ray", code=2)

    assert "not a readable video" in result.stderr


@pytest.mark.ray
@pytest.mark.usefixtures("session_ray")
def test_an_error_keeps_its_kind_on_its_way_home(drawn: Path) -> None:
    spec = WorkerSpec(ModelSpec(str(drawn / "models"), "cpu"), NodeCache("", 0), 1, 0.5, 0.5, 0.7)
    engine = RayEngine(spec, ClusterSettings())

    with pytest.raises(VideoError, match="no such thing"):
        engine.run_final(_fail)
    with pytest.raises(EngineError, match="a worker failed: ZeroDivisionError: division by zero"):
        engine.run_final(_divide)
    engine.close()


def _fail() -> None:
    raise VideoError("no such thing")


def _divide() -> float:
    return 1 / 0
