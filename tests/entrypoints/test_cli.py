"""The command line as a user meets it, on the drawn episode: real video, real ONNX, real PostgreSQL."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from cleanup.entrypoints.cli import app
from cleanup.entrypoints.options import fold_actions
from tests.builders import read_lines, snapshot, write_episode
from tests.conftest import ROOT

EP = "demo-s01e01"


def cleanup(*arguments: str | Path, code: int | None = 0) -> Result:
    """Runs a command in this process; it has to end with the code, unless that is None."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert code is None or result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def run(root: Path, *arguments: str | Path, code: int = 0, ep_id: str = EP) -> Result:
    return cleanup(
        "run",
        "--ep-id",
        ep_id,
        "--out-root",
        root,
        "--models",
        root / "models",
        "--device",
        "cpu",
        *arguments,
        code=code,
    )


def report_of(result: Result) -> dict[str, Any]:
    return dict(json.loads(result.stdout))


def artifacts(root: Path) -> dict[str, bytes]:
    """The files a run may replace, without reports and progress."""
    return {
        name: content
        for folder in ("manifests", "embeds", "videos")
        for name, content in snapshot(root / folder).items()
        if "cleanup_" not in name
    }


def refused(root: Path, *arguments: str | Path, message: str, ep_id: str = EP) -> None:
    """The run ends with one line and exit code 2, and no artifact changed."""
    before = artifacts(root)
    result = run(root, "--write-back", *arguments, code=2, ep_id=ep_id)

    assert re.search(message, result.stderr), result.stderr
    assert len(result.stderr.strip().splitlines()[-1:]) == 1
    assert "Traceback" not in result.stderr
    assert artifacts(root) == before


@pytest.fixture
def enrolled(drawn: Path) -> Path:
    cleanup("facebank", "enroll", "--show", "demo", "--aligned", "--out-root", drawn, "--models", drawn / "models",
            drawn / "seed_photos")  # fmt: skip
    return drawn


def test_all_phases_clean_the_drawn_episode(enrolled: Path) -> None:
    report = report_of(run(enrolled, "--write-back", "--json"))

    assert report["actions_completed"] == ["split_tracks", "reembed", "recluster", "group_clusters"]
    assert report["metrics_after"]["id_switch_rate"] == 0
    assert report["clusters_after"] == 5
    identities = json.loads((enrolled / "manifests" / EP / "identities.json").read_text())["identities"]
    named = sorted(i["person_id"] for i in identities if i.get("person_id"))
    assert named == ["actor-1", "actor-2", "actor-3", "actor-4"]
    assert cleanup("validate", "--ep-id", EP, "--out-root", enrolled).stdout.startswith(f"{EP}: valid")


def test_a_second_run_changes_nothing(enrolled: Path) -> None:
    run(enrolled, "--write-back")
    before = artifacts(enrolled)

    report = report_of(run(enrolled, "--write-back", "--json"))

    assert artifacts(enrolled) == before
    assert report["files"]["changed"] == []


def test_without_write_back_only_a_run_folder_is_written(drawn: Path) -> None:
    before = snapshot(drawn)

    report = report_of(run(drawn, "--actions", "split_tracks,recluster", "--json"))

    after = snapshot(drawn)
    assert {k: v for k, v in after.items() if not k.startswith("runs/")} == before
    assert {Path(k).name for k in after if k.startswith("runs/") and not k.endswith(".arrow")} == {
        "cleanup_report.json", "cleanup_progress.json", "lock", "finished.json",
    }  # fmt: skip
    assert report["write_back"] is False


def test_the_report_has_every_documented_key(enrolled: Path) -> None:
    run(enrolled, "--write-back")
    report = json.loads((enrolled / "manifests" / EP / "cleanup_report.json").read_text())

    assert {
        "ep_id", "actions_completed", "runtime_sec", "tracks_before", "tracks_after", "faces_before", "faces_after",
        "clusters_before", "clusters_after", "metrics_before", "metrics_after", "splits", "grouping", "actions",
        "split_tracks", "reembed", "recluster", "group_clusters", "settings", "warnings", "models", "write_back",
        "schema_version",
    } <= set(report)  # fmt: skip
    assert set(report["splits"]) == {"hard", "streak", "iou", "total"}
    assert set(report["grouping"]) == {"counts", "centroids", "within_episode", "across_episodes"}
    assert report["grouping"]["counts"]["matched_by_photo"] == len(report["grouping"]["across_episodes"]["assigned"])
    assert {"tracks_split", "new_tracks_created"} <= set(report["split_tracks"])
    assert {"faces_rejected", "rejected_by_reason", "mean_quality_before", "mean_quality_after"} <= set(
        report["reembed"]
    )
    assert {"clusters_merged", "singleton_fraction_before", "singleton_fraction_after",
            "largest_cluster_fraction_before", "largest_cluster_fraction_after"} <= set(report["recluster"])  # fmt: skip
    assert {"clusters_grouped", "auto_assigned_identities", "ambiguous"} <= set(report["group_clusters"])
    assert report["settings"]["stride"] == {"value": 5, "source": "profile balanced"}
    timings = report["timings"]
    assert set(timings["phases"]) == {
        "read", "observe", "measure", "split_tracks", "reembed", "recluster", "group_clusters", "write"
    }  # fmt: skip
    assert 0 < sum(timings["phases"].values()) <= report["runtime_sec"]
    assert timings["workers"] == [timings["steps"]] and {"decode", "crop", "quality", "embed"} <= set(timings["steps"])
    progress = json.loads((enrolled / "manifests" / EP / "cleanup_progress.json").read_text())
    assert progress["phase"] == "done" and progress["summary"] == report


def test_nothing_is_lost_and_pieces_know_their_parent(drawn: Path) -> None:
    manifests = drawn / "manifests" / EP
    tracks_before, faces_before = read_lines(manifests / "tracks.jsonl"), read_lines(manifests / "faces.jsonl")
    run(drawn, "--write-back")
    tracks, faces = read_lines(manifests / "tracks.jsonl"), read_lines(manifests / "faces.jsonl")

    boxes = sorted(b["frame_idx"] for t in tracks for b in t["bboxes_sampled"])
    assert boxes == sorted(b["frame_idx"] for t in tracks_before for b in t["bboxes_sampled"])
    assert {f["face_id"] for f in faces_before} <= {f["face_id"] for f in faces}
    fresh = [t for t in tracks if t["track_id"] > max(t["track_id"] for t in tracks_before)]
    assert fresh and all(t["split_reason"] in {"hard", "streak", "iou"} and t["parent_track_id"] for t in fresh)
    assert sum(t["frame_count"] for t in tracks) == sum(t["frame_count"] for t in tracks_before)
    assert all(("embedding" in f) != ("skip" in f) for f in faces)
    assert len(np.load(drawn / "embeds" / EP / "faces.npy")) == sum("embedding" in f for f in faces)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--actions", "recluster", "--cluster-thresh", "0.50"],
        ["--actions", "reembed", "recluster", "--min-quality", "0.8"],
        ["--actions", "group_clusters,split_tracks"],
        [
            "--actions",
            "split_tracks",
            "--actions",
            "recluster",
            "--profile",
            "fast_cpu",
            "--stride",
            "3",
            "--fps",
            "12",
        ],
        ["--save-crops", "--save-frames", "--jpeg-quality", "70", "--thumb-size", "96"],
    ],
    ids=" ".join,
)
def test_each_workflow_runs_as_written(drawn: Path, arguments: list[str]) -> None:
    report = report_of(run(drawn, *arguments, "--write-back", "--json"))

    order = ["split_tracks", "reembed", "recluster", "group_clusters"]
    assert report["actions"] == [a for a in order if a in report["actions"]]
    cleanup("validate", "--ep-id", EP, "--out-root", drawn)
    if "--save-crops" in arguments:
        face = next(f for f in read_lines(drawn / "manifests" / EP / "faces.jsonl") if "embedding" in f)
        assert (drawn / face["crop_rel_path"]).is_file()
        assert list((drawn / "frames" / EP / "thumbs").glob("*.jpg"))


def test_a_face_outside_the_picture_has_none(drawn: Path) -> None:
    path = drawn / "manifests" / EP / "faces.jsonl"
    faces = [{**face, "bbox_xyxy": [5000, 5000, 5050, 5060]} for face in read_lines(path)]
    path.write_text("".join(json.dumps(face) + "\n" for face in faces))

    result = run(drawn, "--actions", "recluster", "--save-crops", "--write-back", code=2)

    assert re.search(r"face \S+ has its box \[5000.* outside the picture of frame \d+", result.output)


def test_a_track_whose_faces_all_fail_keeps_its_best_one(drawn: Path) -> None:
    report = report_of(run(drawn, "--actions", "reembed", "--min-quality", "1.0", "--write-back", "--json"))

    faces = read_lines(drawn / "manifests" / EP / "faces.jsonl")
    kept = [f for f in faces if "embedding" in f]
    assert len(kept) == report["tracks_after"]
    assert all(f["kept_despite"].startswith("low_quality:") for f in kept)
    rejected = report["reembed"]["rejected_by_reason"]
    assert sum(rejected.values()) == report["reembed"]["faces_rejected"] == len(faces) - len(kept)
    assert rejected["low_quality"] > 100


def test_of_a_track_of_small_faces_several_are_kept_and_it_counts_once(drawn: Path) -> None:
    config = drawn / "config"
    shutil.copytree(ROOT / "config" / "pipeline", config)
    profiles = config / "performance_profiles.yaml"
    profiles.write_text(re.sub(r"min_size: \d+", "min_size: 5000", profiles.read_text()))
    actions = ("--config-dir", config, "--actions", "reembed", "--write-back", "--json")
    report = report_of(run(drawn, *actions))
    before = artifacts(drawn)

    kept = [f for f in read_lines(drawn / "manifests" / EP / "faces.jsonl") if "embedding" in f]
    assert all(f["kept_despite"].startswith("too_small:") for f in kept if "kept_despite" in f)
    n_tracks = len({f["track_id"] for f in kept if "kept_despite" in f})
    assert report["reembed"]["tracks_kept_by_their_best_rejected_face"] == n_tracks == report["tracks_after"]
    assert len(kept) > 3 * n_tracks
    run(drawn, *actions)
    assert artifacts(drawn) == before


def test_a_locked_identity_keeps_its_tracks_and_its_label(enrolled: Path) -> None:
    path = enrolled / "manifests" / EP / "identities.json"
    document = json.loads(path.read_text())
    document["identities"][0].update(locked=True, name="Somebody", person_id="somebody")
    path.write_text(json.dumps(document))

    run(enrolled, "--write-back")

    first = json.loads(path.read_text())["identities"][0]
    pieces = {t["track_id"] for t in read_lines(path.with_name("tracks.jsonl")) if t.get("parent_track_id") == 1}
    assert (first["name"], first["person_id"], first["locked"]) == ("Somebody", "somebody", True)
    assert set(first["track_ids"]) == {1, *pieces}


def test_two_identities_named_differently_by_people_never_merge(drawn: Path) -> None:
    run(drawn, "--actions", "split_tracks", "reembed", "recluster", "--write-back")
    path = drawn / "manifests" / EP / "identities.json"
    document = json.loads(path.read_text())
    biggest = max(document["identities"], key=lambda i: len(i["track_ids"]))
    moved = biggest["track_ids"].pop()
    biggest["name"] = "Ann"
    document["identities"].append(
        {"identity_id": "id_9999", "label": None, "name": "Bea", "track_ids": [moved], "size": 1}
    )
    path.write_text(json.dumps(document))

    run(drawn, "--actions", "recluster", "--write-back")

    names = {i.get("name"): i["track_ids"] for i in json.loads(path.read_text())["identities"]}
    assert moved in names["Bea"] and moved not in names["Ann"]


def test_settings_shows_value_source_and_meaning(tmp_path: Path) -> None:
    listed = json.loads(cleanup("settings", "--profile", "low_power", "--stride", "4", "--json").stdout)

    assert listed["stride"]["value"] == 4 and listed["stride"]["source"] == "explicit"
    assert listed["min_size"] | {"meaning": ""} == {"value": 120.0, "source": "profile low_power", "meaning": ""}
    assert "cluster_thresh" in cleanup("settings").stdout


def test_facebank_list_and_remove(enrolled: Path) -> None:
    assert cleanup("facebank", "list", "--out-root", enrolled).stdout.count("actor-") == 4
    cleanup("facebank", "remove", "--show", "demo", "--person", "actor-1", "--out-root", enrolled)

    assert cleanup("facebank", "list", "--out-root", enrolled).stdout.count("actor-") == 3
    cleanup("facebank", "remove", "--show", "demo", "--person", "actor-1", "--out-root", enrolled, code=2)


def test_the_doctor_finds_nothing_wrong_here(drawn: Path) -> None:
    findings = json.loads(
        cleanup("doctor", "--out-root", drawn, "--models", drawn / "models", "--device", "cpu", "--json").stdout
    )

    assert all(f["ok"] for f in findings), findings
    assert {f["check"] for f in findings} >= {"Python", "ONNX Runtime", "models", "PostgreSQL", "Ray", "data root"}


def test_the_doctor_says_what_to_do_about_missing_models(drawn: Path) -> None:
    result = cleanup("doctor", "--out-root", drawn, "--models", drawn / "none", code=1)

    assert "FAIL models" in result.stdout and "no such folder" in result.stdout


def test_bad_input_is_refused_in_one_line(drawn: Path) -> None:
    refused(drawn, "--actions", "split", message="--actions: unknown split; known: split_tracks")
    refused(drawn, ep_id="../x", message="episode id '../x' is not of the form")
    refused(drawn, ep_id="none-s01e01", message="none-s01e01: no such episode")
    refused(drawn, "--video", drawn / "none.mp4", message="none.mp4: no such video")
    refused(drawn, "--profile", "turbo", message="unknown profile 'turbo'")
    refused(drawn, "--stride", "0", message="stride must be at least 1")
    refused(drawn, "--models", drawn, message="needs one recogniser")
    refused(drawn, "--facebank-dsn", "postgresql://u:pw@127.0.0.1:9/x", message="does not answer")
    refused(drawn, "--engine", "spark", message="engine must be one of auto, local, ray")


def test_a_missing_video_is_refused_only_where_pixels_are_needed(drawn: Path) -> None:
    (drawn / "videos" / EP / "episode.mp4").unlink()

    refused(drawn, message="no video, and reembed needs it")
    report = report_of(run(drawn, "--actions", "split_tracks", "recluster", "--json"))
    assert any(w.startswith("no video at") for w in report["warnings"])


def edit_lines(path: Path, change: Any) -> None:
    path.write_text("".join(json.dumps(change(record)) + "\n" for record in read_lines(path)))


def test_a_shorter_video_is_refused(drawn: Path) -> None:
    def shift(track: dict[str, Any]) -> dict[str, Any]:
        boxes = [{**b, "frame_idx": b["frame_idx"] + 900, "ts": b["ts"] + 37.5} for b in track["bboxes_sampled"]]
        return {**track, "first_frame_idx": track["first_frame_idx"] + 900, "last_frame_idx": track["last_frame_idx"] + 900,
                "first_ts": track["first_ts"] + 37.5, "last_ts": track["last_ts"] + 37.5, "bboxes_sampled": boxes}  # fmt: skip

    edit_lines(drawn / "manifests" / EP / "tracks.jsonl", shift)

    refused(drawn, message=r"672 frames, but demo-s01e01 has a face in frame 1571")


def test_a_video_of_another_resolution_is_refused(drawn: Path) -> None:
    def widen(record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "bbox_xyxy": [2 * v for v in record["bbox_xyxy"]], "landmarks": None}

    edit_lines(drawn / "manifests" / EP / "faces.jsonl", widen)
    edit_lines(
        drawn / "manifests" / EP / "tracks.jsonl",
        lambda t: {**t, "bboxes_sampled": [widen(b) for b in t["bboxes_sampled"]]},
    )

    refused(drawn, message=r"640x360, but demo-s01e01 has faces as far as")


def test_another_episodes_video_is_refused(drawn: Path) -> None:
    """Same length and size, other faces: only looking at the faces tells."""
    embeddings = drawn / "embeds" / EP / "faces.npy"
    rows = np.roll(np.load(embeddings), 25, axis=1)
    np.save(embeddings, rows)
    vectors = iter(rows)
    edit_lines(
        drawn / "manifests" / EP / "faces.jsonl", lambda f: {**f, "embedding": [float(v) for v in next(vectors)]}
    )

    refused(drawn, message="are not those in faces.jsonl")


def test_a_model_of_another_dimension_is_refused_unless_all_is_reembedded(drawn: Path) -> None:
    ep_id = EP
    vectors = np.eye(32, dtype=np.float32)[np.arange(len(np.load(drawn / "embeds" / EP / "faces.npy"))) % 32]
    np.save(drawn / "embeds" / EP / "faces.npy", vectors)
    rows = iter(vectors)
    edit_lines(
        drawn / "manifests" / EP / "faces.jsonl",
        lambda f: {**f, "embedding": [float(v) for v in next(rows)], "embedding_model": "other"},
    )

    refused(drawn, "--actions", "split_tracks", message=r"32-dimensional .*model other.*demo_only_drawn_faces gives 64")
    run(drawn, "--actions", "reembed", "--write-back", ep_id=ep_id)
    assert np.load(drawn / "embeds" / EP / "faces.npy").shape[1] == 64


def test_missing_landmarks_without_a_detector_are_refused(drawn: Path) -> None:
    for name in ("tracks.jsonl", "faces.jsonl"):
        edit_lines(
            drawn / "manifests" / EP / name,
            lambda r: {k: v for k, v in r.items() if k != "landmarks"}
            | ({"bboxes_sampled": [{k: v for k, v in b.items() if k != "landmarks"} for b in r["bboxes_sampled"]]}
               if "bboxes_sampled" in r else {}),
        )  # fmt: skip

    refused(drawn, message="no landmarks and this folder has no detector")


@pytest.mark.parametrize("dialect", ["documented", "emitted"])
def test_recluster_alone_needs_neither_video_nor_model(tmp_path: Path, dialect: str) -> None:
    ep_id = write_episode(tmp_path, dialect, (("a",), ("b", "c"), ("a",), ("b",)))
    cleanup("run", "--ep-id", ep_id, "--out-root", tmp_path, "--actions", "split_tracks", "recluster", "--write-back")

    tracks = read_lines(tmp_path / "manifests" / ep_id / "tracks.jsonl")
    document = json.loads((tmp_path / "manifests" / ep_id / "identities.json").read_text())
    groups = [[str(t)[-1] for t in i["track_ids"]] for i in document["identities"]]
    assert len(tracks) == 5
    assert groups == [["1", "3"], ["2", "4"], ["5"]]
    assert all(i["note"] == "kept" for i in document["identities"][:2])
    assert tracks[0].get("stats", {"mine": 1})["mine"] == 1
    cleanup("validate", "--ep-id", ep_id, "--out-root", tmp_path)


def test_validate_prints_every_violation_with_its_line(tmp_path: Path) -> None:
    ep_id = write_episode(tmp_path, "documented")
    path = tmp_path / "manifests" / ep_id / "faces.jsonl"
    lines = path.read_text().splitlines()
    lines[3] = lines[3][:50]
    lines[7] = lines[7].replace('"bbox": [0.4', '"bbox": [0.9')
    path.write_text("\n".join(lines))

    result = cleanup("validate", "--ep-id", ep_id, "--out-root", tmp_path, code=2)

    assert "faces.jsonl:4: not valid JSON" in result.stdout
    assert "faces.jsonl:8: face face-00008 has an empty box" in result.stdout


def test_the_job_script_takes_the_same_options(drawn: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "jobs" / "episode_cleanup.py", "--ep-id", EP, "--out-root", drawn, "--json", "--actions",
         "recluster", "group_clusters", "--cluster-thresh", "0.5"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["settings"]["cluster_thresh"] == {"value": 0.5, "source": "explicit"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_leaves_the_episode_alone(drawn: Path, number: signal.Signals) -> None:
    before = artifacts(drawn)
    process = subprocess.Popen(
        [sys.executable, "-m", "cleanup.entrypoints.cli", "run", "--ep-id", EP, "--out-root", drawn, "--models",
         drawn / "models", "--device", "cpu", "--profile", "high_accuracy", "--write-back"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    progress = drawn / "manifests" / EP / "cleanup_progress.json"
    deadline = time.monotonic() + 60
    while not progress.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 130, stderr
    assert stderr.strip().splitlines()[-1].startswith("cleanup: interrupted")
    assert artifacts(drawn) == before
    assert json.loads(progress.read_text())["phase"] == "canceled"


def test_a_full_disk_is_one_line_and_leaves_the_episode_alone(drawn: Path, tmp_path: Path) -> None:
    """Writing is limited to less than the staged files take, as on a full disk."""
    before = artifacts(drawn)
    command = [sys.executable, "-m", "cleanup.entrypoints.cli", "run", "--ep-id", EP, "--out-root", str(drawn), "--actions",
               "recluster", "--write-back", "-q"]  # fmt: skip
    limited = (
        "import resource, signal, runpy, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        f"sys.argv = {command[2:]!r}\n"
        "runpy.run_module('cleanup.entrypoints.cli', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert re.fullmatch(r"cleanup: .*File too large; no file is half written\n", done.stderr), done.stderr
    assert artifacts(drawn) == before
    run(drawn, "--actions", "recluster", "--write-back")


def test_several_words_after_actions_are_one_value() -> None:
    assert fold_actions(["run", "--actions", "a", "b", "--x", "1"]) == ["run", "--actions", "a,b", "--x", "1"]
    assert fold_actions(["--actions"]) == ["--actions"]


def test_the_demo_runs_and_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = cleanup("demo")

    assert re.search(r"id switch rate +│ +0\.\d+ │ +0 │", result.stdout)
    assert "actor-5 has none and stays unnamed" in result.stdout
    (tmp_path / "mine").mkdir()
    assert "was not made by the demo" in cleanup("demo", "--out-root", tmp_path / "mine", code=2).stderr
    assert not list((tmp_path / "mine").iterdir())
