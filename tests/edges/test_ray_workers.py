"""The Ray engine gives what the local one gives."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from cleanup import schemas
from cleanup.algorithms import average_linkage
from cleanup.algorithms.average_linkage import Conflicts, cluster_tracks
from cleanup.edges import ray_workers
from cleanup.edges.observation_worker import WorkerSpec
from cleanup.edges.onnx_models import ModelSpec
from cleanup.edges.ray_workers import RayEngine, RayWorker
from cleanup.edges.remote_files import NodeCache
from cleanup.errors import EngineError, VideoError
from cleanup.interfaces import VideoSource
from cleanup.progress import ignore_items
from cleanup.settings import ClusterSettings
from tests.builders import corrupt_video, make_faces, make_people, snapshot
from tests.conftest import copy_data
from tests.entrypoints.test_cli import EP, cleanup, report_of, run


@pytest.fixture(scope="module")
def session_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
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


class DyingWorker(RayWorker):
    """Dies at one shard, whoever looks at it, as when memory runs out."""

    def observe(self, ep_id: str, video: VideoSource, samples: pa.Table) -> pa.Table:
        is_of_the_pass = samples["confidence"].null_count == 0  # not the look that tells whether it is the video
        if samples["frame_idx"][0].as_py() == 0 and is_of_the_pass:
            os._exit(1)
        return super().observe(ep_id, video, samples)


@pytest.mark.ray
@pytest.mark.usefixtures("session_ray")
def test_a_shard_that_kills_its_workers_is_given_up_and_its_tracks_stay(
    drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "RayWorker", DyingWorker)
    before = lines_by_track(drawn)

    report = report_of(run(drawn, "--engine", "ray", "--shard-retries", "1", "--write-back", "--json"))

    (failure,) = report["failed_shards"]
    assert failure["reason"].startswith("begun 2 times, the last time its worker was lost")
    assert failure["first_frame"] == 0
    assert report["observed"]["shards_failed"] == report["observed"]["shards_retried"] == 1
    assert any(str(failure["tracks"]) in w and "left as they were" in w for w in report["warnings"])
    after = lines_by_track(drawn)
    assert all(after[track] == before[track] for track in failure["tracks"])
    assert len(after) > len(before), "the other shard's tracks were split"
    assert not (drawn / "runs" / EP / "finished.json").exists(), "a rerun has to try that shard again"


@pytest.mark.ray
@pytest.mark.usefixtures("session_ray")
def test_a_stretch_that_cannot_be_decoded_is_not_tried_again(drawn: Path) -> None:
    corrupt_video(drawn / "videos" / EP / "episode.mp4", 0.1, 0.2)

    report = report_of(run(drawn, "--engine", "ray", "--json"))

    (stretch,) = report["unreadable"]
    assert "cannot be decoded" in stretch["reason"]
    assert report["observed"]["shards_retried"] == report["observed"]["shards_failed"] == 0


@pytest.mark.ray
@pytest.mark.usefixtures("session_ray")
def test_a_node_that_does_not_see_the_video_fails_the_episode(engine: RayEngine, drawn: Path) -> None:
    with pytest.raises(VideoError, match=r"none\.mp4: no such video.* every node has to see the data root"):
        engine.observe(EP, VideoSource(str(drawn / "none.mp4")), [one_sample()], ignore_items)


@pytest.mark.ray
@pytest.mark.usefixtures("session_ray")
def test_an_actor_without_work_is_let_go(engine: RayEngine, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "_IDLE_S", 0.5)
    (result,) = engine.observe(
        EP, VideoSource(str(drawn / "videos" / EP / "episode.mp4")), [one_sample()], ignore_items
    )
    assert result.observations is not None and len(result.observations) == 1
    assert engine.n_model_loads >= 1

    for _ in range(100):
        if ray.available_resources().get("CPU") == 2:
            break
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2


@pytest.fixture
def engine(drawn: Path) -> Iterator[RayEngine]:
    spec = WorkerSpec(ModelSpec(str(drawn / "models"), "cpu"), NodeCache("", 0), 1, 0.5, 0.5, 0.7)
    started = RayEngine(lambda: spec, ClusterSettings(max_actors=2))
    yield started
    started.close()


def one_sample() -> pa.Table:
    """A shard of one box."""
    row = {"lineage_id": 1, "track_id": 1, "frame_idx": 3, "bbox": [100.0, 60.0, 180.0, 150.0], "confidence": 0.9,
           "landmarks": [120.0, 90, 160, 90, 140, 110, 125, 130, 155, 130], "is_sampled": True}  # fmt: skip
    return schemas.build_table([row], schemas.SAMPLE_SCHEMA)


def lines_by_track(root: Path) -> dict[int, list[str]]:
    """Lines of tracks.jsonl and faces.jsonl by track, byte by byte."""
    found: dict[int, list[str]] = {}
    for name in ("tracks.jsonl", "faces.jsonl"):
        for line in (root / "manifests" / EP / name).read_text().splitlines():
            found.setdefault(json.loads(line)["track_id"], []).append(line)
    return found


@pytest.mark.ray
@pytest.mark.usefixtures("session_ray")
def test_components_linked_as_tasks_give_the_same_partition(engine: RayEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.concatenate([make_faces(person, 200, 0.6, seed=i) for i, person in enumerate(make_people(3, 64))])
    monkeypatch.setattr(average_linkage, "_WORTH_SPREADING", 0)

    remote = cluster_tracks(vectors, 0.5, Conflicts.of([(0, 1)]), engine.run_many)

    monkeypatch.undo()
    alone = cluster_tracks(vectors, 0.5, Conflicts.of([(0, 1)]))
    assert remote.labels.tolist() == alone.labels.tolist()
    assert remote.merges == alone.merges
    assert engine.run_many(divmod, [(7, 2), (9, 4)]) == [(3, 1), (2, 1)]


@pytest.mark.ray
@pytest.mark.usefixtures("session_ray")
def test_an_error_keeps_its_kind_on_its_way_home(engine: RayEngine) -> None:
    with pytest.raises(VideoError, match="no such thing"):
        engine.run_final(_fail)
    with pytest.raises(EngineError, match="a worker failed: ZeroDivisionError: division by zero"):
        engine.run_final(_divide)


def _fail() -> None:
    raise VideoError("no such thing")


def _divide() -> float:
    return 1 / 0
