"""The HTTP API over real HTTP: jobs are started, watched, canceled and survive; strangers are kept out."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cleanup.run import PHASES
from tests.builders import artifacts_of, copy_episode, snapshot
from tests.edges.test_job_store import write_job
from tests.entrypoints.test_cli import EP, cleanup
from tests.serving import Api, serve, wait_for

pytestmark = pytest.mark.slow
TOKEN = "correct-horse-battery"


@pytest.fixture
def api(drawn: Path) -> Iterator[Api]:
    with serve(drawn) as api:
        yield api


def read_events(api: Api, job_id: str, last_id: str | None = None, n_events: int | None = None) -> list[dict[str, Any]]:
    """Events of a job until it ends, or so many of them."""
    events: list[dict[str, Any]] = []
    fields: dict[str, Any] = {}
    headers = {"Last-Event-ID": last_id} if last_id else {}
    with httpx.stream("GET", f"{api.url}/jobs/{job_id}/events", headers=headers, timeout=60) as response:
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if line:
                fields[name] = value
                continue
            if "data" in fields:
                events.append({**fields, "data": json.loads(fields["data"])})
            fields = {}
            if len(events) == n_events:
                break
    return events


def test_a_job_from_its_start_to_its_report(shared_data: Path, shared: Path) -> None:
    before = artifacts_of(shared_data, "bbt-s01e01")
    with serve(shared_data, models=shared / "models") as api:
        job = api.start("bbt-s01e01", profile="fast_cpu", write_back=True, cluster_thresh=0.5)
        assert set(job) >= {"job_id", "ep_id", "state", "started_at", "progress_file", "requested", "artifacts"}
        assert job["requested"] == {"profile": "fast_cpu", "write_back": True, "cluster_thresh": 0.5}
        seen = []
        while (standing := api.get(f"/jobs/{job['job_id']}/progress"))["state"] in ("queued", "running"):
            seen.append(standing)
            time.sleep(0.05)
        ended = api.wait(job["job_id"])
        report = api.get("/episodes/bbt-s01e01/report")

    places = [(s["phase_index"], s["phase_progress"]) for s in seen]
    assert places == sorted(places) and {s["phase"] for s in seen} >= {"split_tracks", "reembed"}
    elapsed = [s["total_elapsed_seconds"] for s in seen]
    assert elapsed == sorted(elapsed)
    flat = ("phase", "phase_index", "phase_total", "phase_progress", "total_elapsed_seconds")
    for each in (*seen, standing):
        assert {k: each["progress"][k] for k in flat} == {k: each[k] for k in flat}
        assert {"job_id", "ep_id", "state", "started_at", "ended_at", "track_metrics"} <= set(each)
    assert (standing["state"], standing["phase"], standing["phase_progress"]) == ("succeeded", "done", 1.0)
    assert standing["track_metrics"] == json.loads(
        (shared_data / "manifests/bbt-s01e01/track_metrics.json").read_text()
    )
    assert ended["summary"] == report and report["settings"]["cluster_thresh"]["source"] == "explicit"
    assert report["settings"]["stride"]["source"] == "profile fast_cpu"
    assert report["actions_completed"] == list(PHASES) and artifacts_of(shared_data, "bbt-s01e01") != before


def test_a_job_outlives_the_api(drawn: Path) -> None:
    with serve(drawn, is_last=False) as api:
        job_id = api.start(EP, profile="high_accuracy", stride=1)["job_id"]
        pid = api.pid_of(job_id)
        api.process.kill()
        api.process.wait()
        wait_for(lambda: api.progress_file(job_id).get("items_done"), pause_s=0.001)
        os.kill(pid, signal.SIGSTOP)  # so that it is not through before the next API looks
    with serve(drawn) as api:
        again = api.get(f"/jobs/{job_id}")
        os.kill(pid, signal.SIGCONT)
        ended = api.wait(job_id)

    assert again["state"] == "running" and ended["state"] == "succeeded"
    assert ended["summary"]["ep_id"] == EP


def test_a_job_that_was_killed_has_failed(api: Api) -> None:
    job_id = api.start(EP)["job_id"]
    os.kill(api.pid_of(job_id), signal.SIGKILL)

    ended = api.wait(job_id)

    assert ended["state"] == "failed" and "without a word" in ended["error"]
    assert api.wait(api.start(EP)["job_id"])["state"] == "succeeded"


def members_of(root: Path, pid: int) -> list[psutil.Process]:
    """The job's process, all it started, and whoever works on its data root (PostgreSQL)."""
    job = psutil.Process(pid)
    found = [job, *job.children(recursive=True)]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(root / "facebank") in argument for argument in process.cmdline()):
                found.append(process)
    return found


def works(process: psutil.Process) -> bool:
    """Whether a process is there and has not ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


@pytest.mark.parametrize("phase", PHASES)
def test_canceled_in_any_phase_nothing_is_left_of_a_job(drawn: Path, phase: str) -> None:
    cleanup("facebank", "enroll", drawn / "seed_photos", "--show", "demo", "--aligned", "--models", drawn / "models",
            "--out-root", drawn)  # fmt: skip
    before = artifacts_of(drawn, EP)
    actions = ["reembed"] if phase == "reembed" else list(PHASES)
    with serve(drawn) as api:
        job_id = api.start(EP, write_back=True, actions=actions)["job_id"]
        pid = api.pid_of(job_id)
        wait_for(lambda: api.progress_file(job_id).get("phase") == phase, pause_s=0.001)
        os.kill(pid, signal.SIGSTOP)  # held where it is until the cancel is on its way
        members = members_of(drawn, pid)
        threading.Timer(0.3, os.kill, (pid, signal.SIGCONT)).start()
        started = time.monotonic()
        ended = api.call("POST", f"/jobs/{job_id}/cancel")
        waited = time.monotonic() - started
        alive = [process for process in members if works(process)]
        standing = api.get(f"/jobs/{job_id}/progress")
        again = api.call("POST", f"/jobs/{job_id}/cancel")

    assert ended["state"] == again["state"] == "canceled" and "no file is half written" in ended["error"]
    assert alive == [] and waited < 5
    assert standing["phase"] == "canceled"
    assert artifacts_of(drawn, EP) == before


def test_a_job_that_does_not_stop_is_killed(api: Api) -> None:
    before = artifacts_of(api.root, EP)
    job_id = api.start(EP, write_back=True)["job_id"]
    pid = api.pid_of(job_id)
    os.kill(pid, signal.SIGSTOP)

    ended = api.call("POST", f"/jobs/{job_id}/cancel")

    assert ended["state"] == "canceled" and "killed" in ended["error"]
    assert not psutil.pid_exists(pid) or not works(psutil.Process(pid))
    assert artifacts_of(api.root, EP) == before


def test_one_job_per_episode_and_the_next_one_waits_its_turn(api: Api) -> None:
    copy_episode(api.root, EP, "demo-s01e02")
    first = api.start(EP, profile="high_accuracy")["job_id"]
    os.kill(api.pid_of(first), signal.SIGSTOP)
    refusal = api.start(EP, status=409)
    second = api.start("demo-s01e02", actions=["recluster"])
    third_refusal = api.start("demo-s01e02", status=409)
    queued = api.get("/jobs", params={"state": "queued"})["jobs"]
    standing = api.get(f"/jobs/{second['job_id']}/progress")
    os.kill(api.pid_of(first), signal.SIGCONT)

    assert first in refusal["detail"] and "running" in refusal["detail"]
    assert second["job_id"] in third_refusal["detail"] and "queued" in third_refusal["detail"]
    assert [j["job_id"] for j in queued] == [second["job_id"]] and second["started_at"] is None
    assert (standing["phase"], standing["phase_index"]) == ("queued", 0)
    assert {api.wait(first)["state"], api.wait(second["job_id"])["state"]} == {"succeeded"}
    page = api.get("/jobs", params={"limit": 1})
    rest = api.get("/jobs", params={"limit": 1, "cursor": page["next_cursor"]})
    assert [j["job_id"] for j in page["jobs"] + rest["jobs"]] == [second["job_id"], first]
    assert rest["next_cursor"] is None
    assert [j["job_id"] for j in api.get("/jobs", params={"ep_id": EP})["jobs"]] == [first]


def test_a_job_canceled_before_its_turn_never_begins(drawn: Path) -> None:
    copy_episode(drawn, EP, "demo-s01e02")
    with serve(drawn, "--keep-jobs", "1") as api:
        first = api.start(EP)["job_id"]
        os.kill(api.pid_of(first), signal.SIGSTOP)
        second = api.start("demo-s01e02")["job_id"]
        canceled = api.call("POST", f"/jobs/{second}/cancel")
        os.kill(api.pid_of(first), signal.SIGCONT)
        api.wait(first)
        third = api.start("demo-s01e02", actions=["recluster"])["job_id"]
        api.wait(third)
        kept = [j["job_id"] for j in api.get("/jobs")["jobs"]]

    assert (canceled["state"], canceled["started_at"]) == ("canceled", None)
    assert third in kept and first not in kept


def test_a_repeated_request_gives_the_same_job(api: Api) -> None:
    body = {"ep_id": EP, "actions": ["recluster"]}
    key = {"Idempotency-Key": "monday"}
    first = api.call("POST", "/jobs/episode_cleanup_async", json=body, headers=key)
    again = api.call("POST", "/jobs/episode_cleanup_async", json=body, headers=key)
    api.wait(first["job_id"])
    later = api.call("POST", "/jobs/episode_cleanup_async", json=body, headers=key)
    other = api.call("POST", "/jobs/episode_cleanup_async", json=body | {"stride": 3}, headers=key, status=409)

    assert first["job_id"] == again["job_id"] == later["job_id"]
    assert "another request" in other["detail"]


def test_no_event_is_lost_by_a_stream_that_breaks_off(api: Api) -> None:
    job_id = api.start(EP)["job_id"]
    start = read_events(api, job_id, n_events=2)
    rest = read_events(api, job_id, start[-1]["id"])
    api.wait(job_id)
    whole = read_events(api, job_id)

    assert [e["id"] for e in start + rest] == [e["id"] for e in whole]
    lines = (api.root / "runs" / "jobs" / job_id / "events.jsonl").read_text().splitlines()
    assert [e["data"] for e in whole if e["event"] == "progress"] == [json.loads(line) for line in lines]
    assert [e["event"] for e in whole].count("done") == 1 and whole[-1]["data"]["state"] == "succeeded"
    after = api.http.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": whole[-1]["id"]})
    assert after.status_code == 204


def test_who_leaves_a_stream_leaves_no_trace_in_the_log(drawn: Path, tmp_path: Path) -> None:
    job_id = write_job(drawn)
    (drawn / "runs" / "jobs" / job_id / "log.txt").write_text(f"{'x' * 500}\n" * 40_000)
    with serve(drawn, log=tmp_path / "log") as api:
        port = int(api.url.rsplit(":", 1)[1])
        for _ in range(4):
            with socket.create_connection(("127.0.0.1", port)) as caller:
                caller.sendall(f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                assert caller.recv(100)
                time.sleep(0.3)  # until it is full
        wait_for(lambda: len(psutil.Process(api.process.pid).net_connections("tcp")) == 1)
        time.sleep(0.2)

    assert (tmp_path / "log").read_text() == ""


def test_lines_that_are_no_events_are_passed_over(api: Api) -> None:
    job_id = write_job(api.root)
    whole = {"phase": "x", "phase_index": 1, "phase_total": 2, "phase_progress": 0.5}
    odd = [
        {},
        [],
        "x",
        {"phase": "x"},
        {"episodes_total": 2},
        {**whole, "phase_progress": "much"},
        {**whole, "phase": 5},
    ]
    lines = "".join(f"{json.dumps(event)}\n" for event in (*odd, whole))
    (api.root / "runs" / "jobs" / job_id / "events.jsonl").write_text(lines)

    assert [e["data"] for e in read_events(api, job_id)][:-1] == [whole]
    assert "1/2 x 50%" in cleanup("jobs", "watch", job_id, "--url", api.url).stderr


def test_a_failure_is_told_by_job_events_and_log(api: Api) -> None:
    tracks = api.root / "manifests" / EP / "tracks.jsonl"
    tracks.write_text(tracks.read_text() + "{nonsense\n")
    job_id = api.start(EP)["job_id"]
    ended = api.wait(job_id)
    last = read_events(api, job_id)[-1]
    log = api.http.get(f"/jobs/{job_id}/logs").text

    assert ended["state"] == "failed" and "tracks.jsonl:" in ended["error"] and ended["summary"] is None
    assert last["event"] == "error" and last["data"]["error"] == ended["error"]
    assert ended["error"] in log and "Traceback" not in log


def test_a_season_shows_each_of_its_episodes(api: Api) -> None:
    copy_episode(api.root, EP, "demo-s01e02")
    copy_episode(api.root, EP, "demo-s02e01")
    job = api.call("POST", "/jobs/season_cleanup_async", json={"show": "demo", "season": 1, "actions": ["recluster"]})
    refusal = api.start("demo-s01e02", status=409)
    ended = api.wait(job["job_id"])
    standing = api.get(f"/jobs/{job['job_id']}/progress")
    nothing = api.call("POST", "/jobs/season_cleanup_async", json={"show": "nobody"}, status=404)

    assert job["ep_ids"] == [EP, "demo-s01e02"] and job["ep_id"] is None
    assert job["job_id"] in refusal["detail"]
    assert ended["summary"]["totals"]["succeeded"] == 2
    assert {k: e["state"] for k, e in standing["episodes"].items()} == {EP: "succeeded", "demo-s01e02": "succeeded"}
    assert (standing["phase"], standing["phase_index"], standing["phase_total"]) == ("done", 2, 2)
    assert "nobody" in nothing["detail"]


def test_a_preview_counts_and_writes_nothing(api: Api) -> None:
    before = snapshot(api.root / "manifests") | snapshot(api.root / "embeds")
    runs = {p for p in (api.root / "runs" / EP).glob("*") if p.is_dir()}
    preview = api.call("POST", f"/episodes/{EP}/preview", json={"gate_hard": 0.5, "actions": list(PHASES)})

    assert preview["skipped"] == ["reembed"] and preview["tracks_after"] > preview["tracks_before"]
    assert preview["phases"]["split_tracks"]["new_tracks_created"] == preview["tracks_after"] - preview["tracks_before"]
    assert snapshot(api.root / "manifests") | snapshot(api.root / "embeds") == before
    assert {p for p in (api.root / "runs" / EP).glob("*") if p.is_dir()} == runs
    api.call("POST", f"/episodes/{EP}/preview", json={"actions": ["reembed"]}, status=422)


def test_what_is_not_ready_not_there_or_wrong_is_said(api: Api) -> None:
    (api.root / "videos" / EP / "episode.mp4").unlink()
    assert "no video" in api.start(EP, status=400)["detail"]
    (api.root / "manifests" / EP / "faces.jsonl").unlink()
    assert "faces.jsonl" in api.start(EP, status=400, actions=["recluster"])["detail"]
    assert "no such episode" in api.start("other-s01e01", status=404)["detail"]
    wrong: dict[str, Any]
    for field, wrong in (
        ("ep_id", {"ep_id": "../x"}), ("stride", {"stride": 0}), ("fps", {"fps": "24"}), ("actions", {"actions": ["x"]}),
        ("models", {"models": "/etc"}), ("facebank_dsn", {"facebank_dsn": "host=elsewhere"}), ("huh", {"huh": 1}),
        ("--profile", {"profile": "fastest"}),
    ):  # fmt: skip
        problem = api.call("POST", "/jobs/episode_cleanup_async", json={"ep_id": EP} | wrong, status=422)
        assert field in problem["detail"] and problem["status"] == 422, problem
    response = api.http.post("/jobs/episode_cleanup_async", content=b"{", headers={"Content-Type": "application/json"})
    assert response.status_code == 422 and response.headers["content-type"] == "application/problem+json"
    assert api.get(f"/episodes/{EP}/report", status=404)["detail"].startswith(EP)


def test_settings_are_those_a_run_would_have(api: Api) -> None:
    found = api.get(f"/episodes/{EP}/settings", params={"profile": "low_power"})

    assert found["profile"] == "low_power"
    assert found["settings"]["stride"] == {
        "value": 8, "source": "profile low_power", "auto": False, "meaning": found["settings"]["stride"]["meaning"]
    }  # fmt: skip


def test_nothing_outside_the_data_root_is_reached(api: Api, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "cleanup_report.json").write_text('{"secret": 1}')
    (api.root / "manifests" / "out-s01e01").symlink_to(secret)
    (api.root / "videos" / EP / "link.mp4").symlink_to(tmp_path / "elsewhere.mp4")

    for path in (f"/episodes/..%2f..%2f{EP}/report", "/episodes/%2e%2e/report", "/jobs/..%2f..%2f/logs",
                 "/jobs/../../manifests", "/jobs/%2e%2e%2flock/logs"):  # fmt: skip
        assert api.http.get(path).status_code in (404, 422), path
    assert "is a link" in api.get("/episodes/out-s01e01/report", status=403)["detail"]
    for video in ("../secret/x.mp4", str(tmp_path / "x.mp4"), f"videos/{EP}/link.mp4"):
        assert "outside the data root" in api.start(EP, status=422, video=video)["detail"]


def test_nothing_outside_is_served_for_a_job(drawn: Path, tmp_path: Path) -> None:
    secret, job_id = tmp_path / "secret.json", "20250101T000000.000000Z-deadbeef"
    secret.write_text('{"aws_secret": 1}')
    folder = drawn / "runs" / "jobs" / job_id
    folder.mkdir(parents=True)
    request = {"kind": "episode", "ep_ids": [EP], "requested": {}, "created_at": "2025-01-01"}
    (folder / "request.json").write_text(json.dumps(request))
    (folder / "end.json").write_text(json.dumps({"state": "succeeded", "error": None, "ended_at": "2025-01-01"}))
    foreign = Path(shutil.copytree(folder, folder.with_name("20250101T000001.000000Z-deadbeef")))
    (foreign / "report.json").write_text('{"x": 1}')
    for path in (folder / "log.txt", folder / "report.json", folder / "events.jsonl",
                 drawn / "manifests" / EP / "track_metrics.json"):  # fmt: skip
        path.unlink(missing_ok=True)
        path.symlink_to(secret)
    with serve(drawn) as api:
        for path in ("", "/logs", "/progress", "/events"):
            answer = api.http.get(f"/jobs/{job_id}{path}")
            assert answer.status_code == 403 and "is a link" in answer.json()["detail"], path
        shown = cleanup("jobs", "show", foreign.name, "--url", api.url, code=2)
    assert "is not one of this version" in shown.stderr and "Traceback" not in shown.output


def test_an_odd_request_is_told_what_is_wrong_with_it(drawn: Path, tmp_path: Path) -> None:
    log, post = tmp_path / "log", "/jobs/episode_cleanup_async"
    as_json = {"Content-Type": "application/json"}
    ok = json.dumps({"ep_id": EP, "actions": ["recluster"]}).encode()
    with serve(drawn, log=log) as api:
        job_id = api.start(EP, actions=["recluster"])["job_id"]
        api.wait(job_id)
        for method, path, headers, body, status, told in (
            ("POST", post, as_json | {"Origin": "http://["}, ok, 403, "may not call"),
            ("POST", post, {"Origin": "null"}, ok, 403, "may not call"),
            ("GET", "/jobs", {"Host": f"evil.example@127.0.0.1:{api.url.rsplit(':', 1)[1]}"}, b"", 403, "not called"),
            ("POST", post, {}, ok, 415, "application/json"),
            ("POST", post, {"Content-Type": "text/plain"}, ok, 415, "application/json"),
            ("POST", post, as_json, b'{"ep_id": ' + b"[" * 30_000 + b"]" * 30_000 + b"}", 422, "recursion"),
            ("POST", post, as_json, b'{"ep_id": "\xff"}', 422, "utf-8"),
            ("POST", post, as_json, b'{"stride": ' + b"9" * 5000 + b"}", 422, "digits"),
            ("POST", post, as_json, json.dumps({"ep_id": EP, "video": "a\0"}).encode(), 422, "null byte"),
            ("POST", post, as_json, json.dumps({"ep_id": EP, "video": "a" * 300}).encode(), 400, "no video"),
            ("GET", "/nowhere", {}, b"", 404, "no get /nowhere"),
            ("DELETE", f"/jobs/{job_id}", {}, b"", 405, "allowed is get"),
            ("MADEUP", f"/jobs/{job_id}", {}, b"", 405, "allowed is get"),
            ("GET", "/jobs?cursor=1-x", {}, b"", 422, "cursor"),
            ("GET", f"/jobs/{'a' * 10_000}", {}, b"", 404, "no job"),
            *(("GET", f"/jobs/{job_id}/events", {"Last-Event-ID": i}, b"", 422, "last-event-id")
              for i in ("abc", "9" * 18 + "-0", "0-" + "9" * 18, "5-0", "1-1-end")),
        ):  # fmt: skip
            answer = api.http.request(method, path, headers=headers, content=body)
            assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), path
            assert told in answer.json()["detail"].lower(), answer.text
        assert "MADEUP" not in api.http.get("/metrics").text

    assert log.read_text() == ""


def test_head_is_answered_wherever_get_is(api: Api) -> None:
    job_id = api.start(EP, write_back=True, actions=["recluster"])["job_id"]
    api.wait(job_id)
    for path in ("/", "/healthz", "/readyz", "/openapi.json", "/jobs", f"/jobs/{job_id}", f"/jobs/{job_id}/progress",
                 f"/jobs/{job_id}/logs", f"/jobs/{job_id}/pictures", f"/episodes/{EP}/report",
                 f"/episodes/{EP}/settings", "/jobs/none", f"/jobs/{job_id}/pictures/99"):  # fmt: skip
        got, head = api.http.get(path), api.http.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert head.headers["content-length"] == got.headers["content-length"], path
    events = api.http.head(f"/jobs/{job_id}/events")
    assert events.status_code == 200 and events.headers["content-type"].startswith("text/event-stream")
    assert 'method="HEAD",route="/jobs/{job_id}"' in api.http.get("/metrics").text
    assert api.http.head("/jobs/episode_cleanup_async").status_code == 404


def test_long_bodies_and_floods_are_refused(drawn: Path) -> None:
    with serve(drawn, "--rate-limit", "5", "--max-body", "1000") as api:
        long = {"ep_id": EP, "profile": "x" * 2000}
        assert "1000 bytes" in api.call("POST", "/jobs/episode_cleanup_async", json=long, status=413)["detail"]
        chunks = (b" " * 600 for _ in range(3))
        assert api.http.post("/jobs/episode_cleanup_async", content=chunks).status_code == 413
        statuses = [api.http.get("/jobs").status_code for _ in range(20)]
        flood = api.http.get("/jobs")

        assert statuses.count(200) >= 5 and 429 in statuses
        assert flood.status_code == 429 and flood.headers["retry-after"] == "1"
        assert api.http.get("/healthz").status_code == 200


def test_only_who_has_the_token_gets_in(drawn: Path) -> None:
    with serve(drawn, token=TOKEN) as api:
        for headers in ({}, {"Authorization": "Bearer wrong-but-long-enough"}, {"Authorization": TOKEN}):
            for method, path in (("GET", "/jobs"), ("POST", "/jobs/episode_cleanup_async"), ("GET", "/openapi.json"),
                                 ("GET", "/metrics")):  # fmt: skip
                response = httpx.request(method, f"{api.url}{path}", headers=headers)
                assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
        assert httpx.get(f"{api.url}/healthz").status_code == 200
        page = httpx.get(api.url)
        assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
        job_id = api.start(EP, actions=["recluster"])["job_id"]
        api.wait(job_id)
        folder = drawn / "runs" / "jobs" / job_id
        assert not any(TOKEN.encode() in p.read_bytes() for p in folder.iterdir())


def test_pages_of_other_sites_may_not_call(drawn: Path) -> None:
    with serve(drawn, "--cors-origin", "https://desk.example") as api:
        evil = {"Origin": "https://evil.example"}
        assert "may not call" in api.call("POST", "/jobs/x/cancel", headers=evil, status=403)["detail"]
        assert "not called" in api.get("/jobs", headers={"Host": "evil.example"}, status=403)["detail"]
        friend = api.http.get("/jobs", headers={"Origin": "https://desk.example"})
        assert friend.headers["access-control-allow-origin"] == "https://desk.example"
        assert "access-control-allow-origin" not in api.http.get("/jobs", headers=evil).headers
        own = {"Origin": api.url}
        assert api.call("POST", "/jobs/x/cancel", headers=own, status=404)


@pytest.mark.parametrize(
    ("arguments", "token", "message"),
    [
        (["--host", "0.0.0.0"], None, "set CLEANUP_API_TOKEN"),
        (["--host", "0.0.0.0"], "short", "at least 16"),
        (["--out-root", "/nowhere"], None, "no such data root"),
        (["--ray-address", "http://127.0.0.1:9"], None, "is the dashboard there?"),
    ],
)
def test_what_cannot_be_served_safely_is_not(
    drawn: Path, arguments: list[str], token: str | None, message: str
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "CLEANUP_API_TOKEN"}
    done = subprocess.run(
        [sys.executable, "-m", "cleanup.entrypoints.cli", "serve", "--port", "0", "--out-root", drawn, *arguments],
        env=environment | ({"CLEANUP_API_TOKEN": token} if token else {}), capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip

    assert done.returncode in (1, 2) and done.stderr.count("\n") == 1 and message in done.stderr, done.stderr


@pytest.mark.parametrize("token", ["5ecret-and-long-enough\nx", "5ecret-and-l\u00f6ng-enough", "5ecret"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEANUP_API_TOKEN", token)
    result = cleanup("jobs", "list", "--url", "http://127.0.0.1:9", code=2)

    assert "CLEANUP_API_TOKEN" in result.stderr and "5ecret" not in result.output + repr(result.exception)


def test_a_port_in_use_is_one_line(drawn: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = cleanup("serve", "--port", port, "--out-root", drawn, code=2)

    assert f"--port {port}: Address already in use" in result.stderr


def test_a_secret_dsn_is_in_no_answer_and_no_file(drawn: Path) -> None:
    dsn = "postgresql://user:hunter2secret@127.0.0.1:9/db"
    with serve(drawn, "--facebank-dsn", dsn) as api:
        job_id = api.start(EP, actions=["group_clusters"])["job_id"]
        ended = api.wait(job_id)
        ready = api.http.get("/readyz")
        settings = api.http.get(f"/episodes/{EP}/settings").text
        log = api.http.get(f"/jobs/{job_id}/logs").text

    assert ended["state"] == "failed" and "host=127.0.0.1 port=9" in ended["error"]
    assert ready.status_code == 503 and any(c["check"] == "PostgreSQL" and not c["ok"] for c in ready.json()["checks"])
    folder = drawn / "runs" / "jobs" / job_id
    told = [json.dumps(ended), ready.text, settings, log, *(p.read_text() for p in folder.iterdir() if p.is_file())]
    assert not any("hunter2secret" in text for text in told)


def test_readiness_tells_the_provider_in_use(api: Api) -> None:
    ready = wait_for(lambda: r if (r := api.http.get("/readyz")).status_code == 200 else None, pause_s=0.5).json()

    found = {c["check"]: c["found"] for c in ready["checks"]}
    assert "CPUExecutionProvider" in found["models"] and "pgvector" in found["PostgreSQL"]
    metrics = api.http.get("/metrics").text
    assert 'cleanup_jobs{state="running"} 0.0' in metrics and 'route="/readyz",status="503"' in metrics


def test_pictures_of_a_job_are_served(api: Api) -> None:
    job_id = api.start(EP, write_back=True, save_crops=True)["job_id"]
    assert api.wait(job_id)["state"] == "succeeded"
    found = api.get(f"/jobs/{job_id}/pictures")
    picture = api.http.get(found["clusters"][0]["tracks"][0]["url"])

    assert found["splits"] and all(p["url"] for s in found["splits"] for p in s["pieces"])
    assert picture.headers["content-type"] == "image/jpeg" and picture.content.startswith(b"\xff\xd8")
    assert api.http.get(f"/jobs/{job_id}/pictures/9999").status_code == 404


def test_the_client_starts_watches_shows_and_cancels(api: Api) -> None:
    url = ("--url", api.url)
    watched = cleanup(
        "jobs", "start", "--ep-id", EP, "--actions", "recluster", "--cluster-thresh", "0.5", "--watch", *url
    )
    [job] = json.loads(cleanup("jobs", "list", "--json", *url).stdout)
    shown = cleanup("jobs", "show", job["job_id"], *url)
    second = cleanup("jobs", "start", "--ep-id", EP, *url).stdout.strip()
    canceled = cleanup("jobs", "cancel", second, *url)
    ended = cleanup("jobs", "watch", second, *url, code=130)
    refused = cleanup("jobs", "start", "--ep-id", "none-s01e01", *url, code=2)
    away = cleanup("jobs", "list", "--url", "http://127.0.0.1:9", code=1)

    assert "succeeded" in watched.stderr and "clusters" in shown.stdout and job["state"] == "succeeded"
    assert "canceled" in canceled.stdout and "canceled" in ended.stderr
    assert "no such episode" in refused.stderr and "is cleanup serve running there?" in away.stderr
    assert api.get(f"/jobs/{job['job_id']}")["requested"] == {"actions": ["recluster"], "cluster_thresh": 0.5}
