"""Checkpoints are used for what they were made from, and for nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.builders import corrupt_video
from tests.entrypoints.test_cli import EP, artifacts, cleanup, report_of, run


def observed(root: Path, *arguments: str) -> dict[str, Any]:
    return dict(report_of(run(root, "--json", *arguments))["observed"])


def test_another_threshold_needs_no_look_at_the_video(drawn: Path) -> None:
    first = observed(drawn, "--actions", "split_tracks,reembed,recluster")
    again = observed(drawn, "--actions", "split_tracks,reembed,recluster", "--cluster-thresh", "0.3")

    assert first["frames_decoded"] == first["frames"] > 0
    assert first["faces_embedded"] > 0
    assert again["shards_from_checkpoints"] == again["shards"] == first["shards"]
    assert again["frames_decoded"] == again["faces_embedded"] == again["workers"] == 0


def test_checkpoints_give_the_files_that_a_whole_pass_gives(drawn: Path) -> None:
    run(drawn, "--quiet")
    run(drawn, "--write-back", "--quiet")
    from_checkpoints = artifacts(drawn)
    (backup,) = json.loads(cleanup("backups", "list", EP, "--out-root", drawn, "--json").stdout)
    cleanup("backups", "restore", EP, backup["run_id"], "--out-root", drawn)
    assert not (drawn / "manifests" / EP / "track_metrics.json").exists()  # there was none before

    run(drawn, "--write-back", "--no-resume", "--quiet")

    whole = artifacts(drawn)
    assert {k: v for k, v in whole.items() if "identities" not in k} == {
        k: v for k, v in from_checkpoints.items() if "identities" not in k
    }


def test_another_video_or_another_box_is_looked_at_again(drawn: Path) -> None:
    first = observed(drawn)
    video = drawn / "videos" / EP / "episode.mp4"
    video.write_bytes(video.read_bytes() + bytes(8))
    other_video = observed(drawn)
    tracks = drawn / "manifests" / EP / "tracks.jsonl"
    lines = tracks.read_text().splitlines()
    record = json.loads(lines[0])
    record["bboxes_sampled"][0]["bbox_xyxy"][0] += 1.0
    tracks.write_text("\n".join([json.dumps(record), *lines[1:]]) + "\n")
    other_box = observed(drawn)

    assert first["shards"] > 1
    assert other_video["shards_from_checkpoints"] == 0
    assert other_box["shards_from_checkpoints"] == other_box["shards"] - 1


def test_what_a_finished_run_has_no_use_for_is_removed(drawn: Path) -> None:
    folder = drawn / "runs" / EP / "shards"
    observed(drawn)
    n_files = len(list(folder.iterdir()))
    video = drawn / "videos" / EP / "episode.mp4"
    video.write_bytes(video.read_bytes() + bytes(8))
    observed(drawn)

    assert len(list(folder.iterdir())) == n_files


@pytest.mark.parametrize("is_head", [True, False])
def test_a_torn_checkpoint_is_set_aside_and_its_shard_done_again(
    drawn: Path, is_head: bool, caplog: pytest.LogCaptureFixture
) -> None:
    run(drawn, "--quiet")
    torn = sorted((drawn / "runs" / EP / "shards").glob("*.arrow"))[0]
    content = torn.read_bytes()
    torn.write_bytes(content[:100] if is_head else content[len(content) // 2 :])

    run(drawn)
    again = observed(drawn)

    (message,) = [record.message for record in caplog.records]
    assert f"{torn}: not a readable checkpoint" in message and "its shard is done again" in message
    assert again["shards_from_checkpoints"] == again["shards"] and torn.with_name(f"{torn.name}.unreadable-1").exists()


def test_a_video_that_cannot_be_decoded_at_all_fails_the_episode(drawn: Path) -> None:
    corrupt_video(drawn / "videos" / EP / "episode.mp4", 0.0, 1.0)
    before = artifacts(drawn)

    result = cleanup("run", "--ep-id", EP, "--out-root", drawn, "--models", drawn / "models", "--device", "cpu",
                     "--write-back", code=2)  # fmt: skip

    assert "no frame of the video can be decoded" in result.stderr and "Traceback" not in result.stderr
    assert artifacts(drawn) == before
