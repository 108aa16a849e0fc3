"""Jobs submitted to a Ray with its dashboard, and workers that an autoscaler brings up from zero."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import ray

from tests.builders import artifacts_of, copy_episode
from tests.conftest import ROOT, find_free_port
from tests.entrypoints.test_cli import EP, run
from tests.serving import serve, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.dashboard, pytest.mark.slow]
RAY = str(Path(sys.executable).with_name("ray"))


@contextlib.contextmanager
def start_head(*arguments: str, **environment: str) -> Iterator[str]:
    """A head node as ``ray start --head --block`` makes it; its address."""
    port = find_free_port()
    process = subprocess.Popen(
        [RAY, "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1", "--disable-usage-stats",
         *arguments],
        env={**os.environ, "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}", **environment},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(300):
            assert process.poll() is None, "the head did not start"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)
        # The nodes that the autoscaler brought up outlive the head, and would join the next one at this port.
        for left in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(argument.endswith(f":{port}") for argument in left.cmdline()):
                    left.kill()


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, str]]:
    """Address of a Ray with two CPUs, and the URL of its dashboard."""
    port = find_free_port() + 1
    with start_head("--num-cpus=2", "--include-dashboard=true", f"--dashboard-port={port}") as address:
        url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/api/version", timeout=2).close()
                break
            time.sleep(0.2)
        yield address, url


@pytest.fixture
def dashboard(head: tuple[str, str]) -> str:
    """URL of its dashboard."""
    return head[1]


def submit(dashboard: str, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What README shows, on this machine."""
    return subprocess.run(
        [RAY, "job", "submit", "--address", dashboard, "--working-dir", ".", "--", "python",
         "jobs/season_cleanup.py", "--show", "demo", "--out-root", str(root), "--models", str(root / "models"),
         "--device", "cpu", "--write-back", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def submit_until_taken(command: list[str]) -> None:
    """On a machine under load a dashboard may find no agent for an instant, and refuses."""

    def is_taken() -> bool:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0 or "No available agent" in done.stdout + done.stderr, done.stdout + done.stderr
        return done.returncode == 0

    wait_for(is_taken, pause_s=1.0)


def test_a_submitted_season_ends_as_the_season_did(dashboard: str, drawn: Path, tmp_path: Path) -> None:
    single = tmp_path / "single"
    copy_episode(drawn, EP, EP, single)
    (single / "models").symlink_to(drawn / "models")
    run(single, "--write-back", "--quiet")
    copy_episode(drawn, EP, "demo-s01e02")

    good = submit(dashboard, drawn)
    copy_episode(drawn, EP, "demo-s01e03")
    (drawn / "videos" / "demo-s01e03" / "episode.mp4").write_bytes(b"no video")
    bad = submit(dashboard, drawn)

    assert good.returncode == 0 and "succeeded" in good.stdout.lower(), good.stdout + good.stderr
    assert "2 episodes: 2 succeeded" in good.stdout
    assert artifacts_of(drawn, EP) == artifacts_of(single, EP)
    report = json.loads((drawn / "manifests" / EP / "cleanup_report.json").read_text())
    assert report["engine"] == "ray"
    assert bad.returncode == 1 and "2 unchanged, 1 failed" in bad.stdout, bad.stdout + bad.stderr
    assert "demo-s01e03: " in bad.stdout and "not a readable video" in bad.stdout


def test_jobs_of_the_api_are_ray_jobs_and_outlive_it(dashboard: str, drawn: Path) -> None:
    from ray.job_submission import JobSubmissionClient

    ray_jobs = JobSubmissionClient(dashboard)
    copy_episode(drawn, EP, "demo-s01e02")
    copy_episode(drawn, EP, "demo-s01e03")
    before = artifacts_of(drawn, "demo-s01e02")
    with serve(drawn, "--ray-address", dashboard, is_last=False) as api:
        first = api.start(EP, write_back=True)["job_id"]
        ended = api.wait(first)
        second = api.start("demo-s01e02", write_back=True, stride=1)["job_id"]
        wait_for(lambda: api.progress_file(second))
        os.kill(api.process.pid, signal.SIGKILL)
    with serve(drawn, "--ray-address", dashboard) as api:
        found = api.get(f"/jobs/{second}")
        canceled = api.call("POST", f"/jobs/{second}/cancel")
        third = api.start("demo-s01e03", actions=["recluster"])["job_id"]
        os.kill(api.pid_of(third), signal.SIGKILL)
        killed = api.wait(third)
        ready = api.get("/readyz")

    assert ended["state"] == "succeeded" and ended["summary"]["engine"] == "ray", ended
    assert str(ray_jobs.get_job_status(first)) == "SUCCEEDED" and str(ray_jobs.get_job_status(second)) == "STOPPED"
    assert (found["state"], canceled["state"]) == ("running", "canceled")
    assert artifacts_of(drawn, "demo-s01e02") == before
    assert killed["state"] == "failed" and "the Ray job ended without a word" in killed["error"]
    assert {c["check"] for c in ready["checks"]} == {"data root", "Ray"}


def test_ray_serve_deploys_the_api(head: tuple[str, str], drawn: Path) -> None:
    address, dashboard = head
    token = "correct-horse-battery"  # of a server that lives as long as the test
    environment = {"SCREENALYTICS_DATA_ROOT": str(drawn), "CLEANUP_MODELS": str(drawn / "models"),
                   "CLEANUP_API_TOKEN": token, "RAY_API_SERVER_ADDRESS": dashboard}  # fmt: skip
    process = subprocess.Popen(
        [Path(RAY).with_name("serve"), "run", "jobs.http_api:app", "--address", address, "--runtime-env-json",
         json.dumps({"env_vars": environment})],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with httpx.Client(base_url="http://127.0.0.1:8000", timeout=30) as http:
            wait_for(lambda: answers(http), pause_s=0.5)
            stranger = http.get("/jobs")
            http.headers["Authorization"] = f"Bearer {token}"
            job = http.post("/jobs/episode_cleanup_async", json={"ep_id": EP, "actions": ["recluster"]}).json()
            ended = wait_for(lambda: j if (j := http.get(f"/jobs/{job['job_id']}").json())["ended_at"] else None)
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):  # Ray Serve's own way out may hang on a busy machine
            process.wait(20)
        process.kill()

    assert stranger.status_code == 401 and ended["state"] == "succeeded"


def answers(http: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return http.get("/healthz").status_code == 200
    return False


def test_a_stopped_job_leaves_the_episode_as_it_was_or_whole(dashboard: str, drawn: Path) -> None:
    before = artifacts_of(drawn, EP)
    arguments = ["--address", dashboard]
    submit_until_taken(
        [RAY, "job", "submit", *arguments, "--no-wait", "--submission-id", "to-be-stopped", "--working-dir", ".", "--",
         "python", "jobs/season_cleanup.py", "--ep-id", EP, "--out-root", str(drawn), "--models",
         str(drawn / "models"), "--device", "cpu", "--write-back"]
    )  # fmt: skip
    for _ in range(600):
        if list((drawn / "runs").glob(f"{EP}/*/cleanup_progress.json")) or list(
            (drawn / "manifests" / EP).glob("cleanup_progress.json")
        ):
            break
        time.sleep(0.1)
    subprocess.run([RAY, "job", "stop", *arguments, "to-be-stopped"], capture_output=True, timeout=120, check=True)

    status = subprocess.run(
        [RAY, "job", "status", *arguments, "to-be-stopped"], capture_output=True, text=True, timeout=60, check=True
    )
    progress = json.loads((drawn / "manifests" / EP / "cleanup_progress.json").read_text())
    if progress["phase"] == "done":
        assert "SUCCEEDED" in status.stdout
    else:
        assert "was stopped" in status.stdout
        assert progress["phase"] == "canceled"
        assert artifacts_of(drawn, EP) == before


def test_workers_come_up_from_zero_and_are_let_go(drawn: Path, tmp_path: Path) -> None:
    for number in (2, 3):
        copy_episode(drawn, EP, f"demo-s01e0{number}")
    config = tmp_path / "autoscaling.json"
    port = find_free_port()
    config.write_text(json.dumps(fake_cluster(f"127.0.0.1:{port}")))
    with start_head("--num-cpus=0", f"--autoscaling-config={config}", RAY_FAKE_CLUSTER="1",
                    AUTOSCALER_UPDATE_INTERVAL_S="1") as address:  # fmt: skip
        assert address.endswith(str(port))
        finished = subprocess.run(
            [sys.executable, "-m", "cleanup.entrypoints.cli", "season", "--show", "demo", "--out-root", drawn, "--models",
             drawn / "models", "--engine", "ray", "--profile", "high_accuracy", "--json"],
            env={**os.environ, "RAY_ADDRESS": address}, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr
        report = json.loads(finished.stdout)
        assert report["totals"]["succeeded"] == 3
        assert 1 <= report["model_loads"] <= 2, "the head has no CPU, so actors ran on nodes that came up for them"
        assert "waiting for workers (1 CPU)" in finished.stderr
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        try:
            for _ in range(90):
                if sum(node["Alive"] for node in ray.nodes()) == 1:
                    break
                time.sleep(1)
            alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        finally:
            ray.shutdown()
        assert len(alive) == 1 and "GPU" not in alive[0]


def fake_cluster(gcs_address: str) -> dict[str, object]:
    """A cluster whose nodes are processes of this machine: a head without CPUs, two nodes with a GPU in name."""
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    lists = [*(f"{name}_commands" for name in commands), "rsync_exclude", "rsync_filter", "cluster_synced_files"]
    return {
        "cluster_name": "fake",
        "max_workers": 2,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 0.1,
        "provider": {"type": "fake_multinode", "disable_node_updaters": True, "disable_launch_config_check": True,
                     "use_node_id_as_ip": True,
                     "gcs_address": gcs_address},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        "auth": {}, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False,
        **{name: [] for name in lists},
    }  # fmt: skip
