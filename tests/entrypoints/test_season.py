"""A season on the local engine, as a user meets it: several drawn episodes, some of them broken."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from cleanup.edges.data_root import DataRoot
from cleanup.edges.root_path import RootPath
from cleanup.entrypoints.episode_job import EpisodeJob, parse_actions, run_episode_job
from cleanup.progress import PhaseProgress
from cleanup.resolve_settings import resolve_for_run
from tests.builders import artifacts_of, copy_episode
from tests.entrypoints.test_cli import EP, cleanup, run

EPISODES = [EP, "demo-s01e02", "demo-s01e03"]


@pytest.fixture
def root(drawn: Path) -> Path:
    """A data root with three episodes of one season and one of another."""
    for new in (*EPISODES[1:], "demo-s02e01"):
        copy_episode(drawn, EP, new)
    return drawn


def season(root: Path, *arguments: str | Path, code: int = 0) -> Result:
    return cleanup("season", "--out-root", root, "--models", root / "models", "--device", "cpu", *arguments, code=code)


def report_of(result: Result) -> dict[str, Any]:
    return dict(json.loads(result.stdout))


def states_of(report: dict[str, Any]) -> dict[str, str]:
    return {ep_id: episode["state"] for ep_id, episode in report["episodes"].items()}


def test_a_season_writes_what_single_runs_write(root: Path, tmp_path: Path) -> None:
    single = tmp_path / "single"
    copy_episode(root, EP, EP, single)
    (single / "models").symlink_to(root / "models")
    run(single, "--write-back", "--quiet")

    report = report_of(season(root, "--show", "demo", "--season", "1", "--write-back", "--json"))

    assert states_of(report) == dict.fromkeys(EPISODES, "succeeded")
    assert report["state"] == "succeeded"
    assert report["model_loads"] == 1
    assert report["totals"]["frames_decoded"] == report["totals"]["frames"] > 0
    assert artifacts_of(root, EP) == artifacts_of(single, EP)
    theirs = {name: content.replace(EP.encode(), b"demo-s01e03") for name, content in artifacts_of(root, EP).items()}
    assert artifacts_of(root, "demo-s01e03") == theirs
    assert not (root / "runs" / "demo-s02e01").exists()


def test_progress_of_a_season_never_goes_back_and_ends_with_all_episodes(root: Path, tmp_path: Path) -> None:
    progress = tmp_path / "progress.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "cleanup.entrypoints.cli", "season", "--show", "demo", "--out-root", root, "--models",
         root / "models", "--quiet", "--progress-file", progress]
    )  # fmt: skip
    seen: list[dict[str, Any]] = []
    while process.poll() is None:
        if progress.exists():
            seen.append(json.loads(progress.read_bytes()))
        time.sleep(0.05)

    last = json.loads(progress.read_bytes())
    assert process.returncode == 0
    assert last["state"] == "succeeded" and last["progress"] == 1.0 and last["episodes_done"] == 4
    assert {e["state"] for e in last["episodes"].values()} == {"succeeded"}
    assert any(s["state"] == "running" and 0 < s["episodes_done"] < 4 for s in seen)
    for key in ("progress", "episodes_done", "total_elapsed_seconds"):
        values = [s[key] for s in seen]
        assert values == sorted(values), key


def test_broken_episodes_stay_as_they_were_and_the_season_goes_on(root: Path) -> None:
    (root / "videos" / EP / "episode.mp4").write_bytes(b"\0" * 4096)
    (root / "videos" / "demo-s01e02" / "episode.mp4").unlink()
    before = [artifacts_of(root, ep_id) for ep_id in EPISODES]

    result = season(root, "--show", "demo", "--season", "1", "--write-back", code=1)

    assert [artifacts_of(root, ep_id) == old for ep_id, old in zip(EPISODES, before, strict=True)] == [
        True,
        True,
        False,
    ]
    assert "demo-s01e01: " in result.stdout and "not a readable video" in result.stdout
    assert "demo-s01e02: " in result.stdout and "no video, and reembed needs it" in result.stdout
    assert "1 succeeded, 2 failed" in result.stdout
    report = json.loads(next((root / "runs" / "seasons").glob("*/season_report.json")).read_bytes())
    assert states_of(report) == {EP: "failed", "demo-s01e02": "failed", "demo-s01e03": "succeeded"}


def test_an_episode_without_artifacts_fails_alone(root: Path) -> None:
    report = report_of(season(root, "--ep-id", "nope-s01e01", "--ep-id", EP, "--json", code=1))

    assert states_of(report) == {"nope-s01e01": "failed", EP: "succeeded"}
    assert "no such episode" in report["episodes"]["nope-s01e01"]["error"]


def test_fail_fast_stops_at_the_first_failure(root: Path) -> None:
    (root / "videos" / EP / "episode.mp4").write_bytes(b"no video")

    report = report_of(season(root, "--show", "demo", "--season", "1", "--fail-fast", "--json", code=1))

    assert states_of(report) == {EP: "failed", "demo-s01e02": "canceled", "demo-s01e03": "canceled"}


def test_a_second_season_does_nothing_until_something_changes(root: Path) -> None:
    arguments = ("--ep-id", EP, "--ep-id", "demo-s01e02", "--write-back", "--json")
    season(root, *arguments)
    done = artifacts_of(root, EP)

    again = report_of(season(root, *arguments))
    shown = season(root, *arguments[:-1])
    tracks = root / "manifests" / "demo-s01e02" / "tracks.jsonl"
    tracks.write_text(tracks.read_text().replace("{", '{"touched": true, ', 1))
    touched = report_of(season(root, *arguments))
    cleanup("facebank", "enroll", "--show", "demo", "--aligned", "--out-root", root, "--models", root / "models",
            root / "seed_photos")  # fmt: skip
    named = report_of(season(root, *arguments))
    forced = report_of(season(root, *arguments, "--no-resume"))

    assert set(states_of(again).values()) == {"unchanged"}
    assert again["totals"].get("frames_decoded", 0) == 0 and again["model_loads"] == 0
    assert "2 unchanged" in shown.stdout and "--no-resume does them again" in shown.stdout
    assert states_of(touched) == {EP: "unchanged", "demo-s01e02": "succeeded"}
    assert set(states_of(named).values()) == {"succeeded"}
    assert set(states_of(forced).values()) == {"succeeded"}
    assert artifacts_of(root, EP).keys() == done.keys()


def test_people_who_change_while_a_run_is_at_work_count_as_not_yet_seen(root: Path) -> None:
    cleanup("facebank", "enroll", "--show", "demo", "--aligned", "--out-root", root, "--models", root / "models",
            root / "seed_photos")  # fmt: skip
    settings = resolve_for_run({"models": str(root / "models"), "device": "cpu"}, None, None)
    job = EpisodeJob(EP, DataRoot(RootPath(root)), parse_actions(None), settings, skips_unchanged=True)
    removed: list[str] = []

    def remove_somebody(event: PhaseProgress) -> None:
        if event.phase == "group_clusters" and event.fraction == 1 and not removed:
            removed.append(min(p.name for p in (root / "seed_photos").iterdir()))
            cleanup("facebank", "remove", "--show", "demo", "--person", removed[0], "--out-root", root)

    run_episode_job(job, remove_somebody)

    assert removed
    assert "unchanged" not in run_episode_job(job)
    assert run_episode_job(job)["unchanged"]


def test_a_list_names_episodes_once_and_in_order(root: Path, tmp_path: Path) -> None:
    names = tmp_path / "episodes.txt"
    names.write_text(f"# the good ones\ndemo-s01e03\n\n{EP}  # the pilot\ndemo-s01e03\n")

    report = report_of(season(root, "--ep-list", names, "--actions", "recluster", "--json"))

    assert list(report["episodes"]) == ["demo-s01e03", EP]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no episodes: give --show"),
        (["--season", "1"], "--season needs --show"),
        (["--show", "demo", "--season", "7"], "no episode of season 7 of show 'demo'"),
        (["--show", "../demo"], "show '../demo' may hold"),
        (["--ep-id", "../x-s01e01"], "is not of the form"),
        (["--ep-list", "none.txt"], "none.txt: cannot be read"),
        (["--show", "demo", "--max-parallel-episodes", "2"], "one episode after the other"),
        (["--show", "demo", "--video", "one.mp4"], "a season has a video per episode"),
        (["--show", "demo", "--models", "/nowhere/models"], "no such folder"),
    ],
)
def test_what_concerns_the_whole_season_is_refused_before_it_begins(
    root: Path, arguments: list[str], message: str
) -> None:
    result = season(root, *arguments, code=2)

    assert message in result.stderr
    assert not (root / "runs").exists()


def test_a_malformed_line_of_a_list_is_named(root: Path, tmp_path: Path) -> None:
    names = tmp_path / "episodes.txt"
    names.write_text(f"{EP}\nseason one\n")

    assert f"{names}:2: episode id 'season one'" in season(root, "--ep-list", names, code=2).stderr


def test_videos_may_lie_elsewhere(root: Path, tmp_path: Path) -> None:
    for ep_id in EPISODES[:2]:
        (root / "videos" / ep_id / "episode.mp4").rename(tmp_path / f"{ep_id}.mp4")

    report = report_of(season(root, "--ep-id", EPISODES[0], "--ep-id", EPISODES[1], "--video", tmp_path / "{ep_id}.mp4",
                              "--json"))  # fmt: skip

    assert set(states_of(report).values()) == {"succeeded"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_season_is_canceled_and_goes_on_where_it_was(root: Path, number: signal.Signals) -> None:
    before = {ep_id: artifacts_of(root, ep_id) for ep_id in EPISODES}
    process = subprocess.Popen(
        [sys.executable, "-m", "cleanup.entrypoints.cli", "season", "--show", "demo", "--season", "1", "--out-root",
         root, "--models", root / "models", "--device", "cpu", "--write-back", "--profile", "high_accuracy"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    shards = root / "runs" / EP / "shards"
    while len(list(shards.glob("*.arrow"))) < 2:  # the first is the look whether it is the right video
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)

    assert process.returncode == 130, stderr
    assert "interrupted; no file is half written" in stderr
    progress = json.loads(next((root / "runs" / "seasons").glob("*/season_progress.json")).read_bytes())
    assert progress["state"] == "canceled"
    assert {e["state"] for e in progress["episodes"].values()} <= {"canceled", "succeeded"}
    for ep_id, episode in progress["episodes"].items():
        assert (artifacts_of(root, ep_id) == before[ep_id]) == (episode["state"] == "canceled")
    resumed = report_of(season(root, "--show", "demo", "--season", "1", "--write-back", "--profile", "high_accuracy",
                               "--json"))  # fmt: skip
    assert resumed["totals"]["shards_from_checkpoints"] + resumed["totals"]["unchanged"] > 0


@pytest.mark.parametrize(
    ("actions", "has_video", "code"),
    [
        (["recluster", "group_clusters"], True, 0),
        (["split_tracks", "recluster"], False, 0),
        (["split_tracks"], True, 2),
    ],
)
def test_a_season_needs_models_where_a_run_does(root: Path, actions: list[str], has_video: bool, code: int) -> None:
    if not has_video:
        (root / "videos" / EP / "episode.mp4").unlink()
    options = ["--out-root", root, "--models", "/nowhere/models", "--ep-id", EP, "--actions", *actions]

    single, many = cleanup("run", *options, code=code), cleanup("season", *options, code=code)

    assert ("no such folder" in single.stderr, "no such folder" in many.stderr) == (code != 0, code != 0)
