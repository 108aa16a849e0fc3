"""What breaks under a run: one clear line, the files as they were, and the next run right."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import psutil
import pytest

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.root_path import RootPath
from tests.builders import artifacts_of, snapshot, write_episode
from tests.entrypoints.test_cli import EP, artifacts, cleanup, run


def fails(root: Path, *arguments: str, code: int, message: str) -> None:
    """The run ends with one line that says so, and nothing but its own folder changed."""
    before = artifacts(root)
    result = run(root, "--write-back", *arguments, code=code)

    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert re.search(message, result.stderr), result.stderr
    assert artifacts(root) == before
    assert not list(root.rglob("*.staged"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own in memory, made larger with ``resize``."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no right to mount here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # failures that were caught still hold files


def resize(disk: Path, n_bytes: int) -> None:
    pages = -(-n_bytes // 4096) * 4096
    subprocess.run(["mount", "-o", f"remount,size={pages}", disk], check=True)


def test_a_facebank_that_finds_no_room_says_so(small_disk: Path) -> None:
    result = cleanup("facebank", "list", "--out-root", small_disk, code=2)

    assert "No space left on device" in result.stderr
    assert not (small_disk / "facebank" / "postgres").exists()


@pytest.mark.parametrize("dialect", ["documented", "emitted"])
def test_a_disk_that_fills_up_at_any_point(small_disk: Path, dialect: str) -> None:
    """With 4 KiB more each time, until it is enough: nothing, nothing, ..., all."""
    ep_id = write_episode(small_disk, dialect, (("a", "b"), ("b",)))
    paths, before = EpisodePaths(RootPath(small_disk), ep_id), artifacts_of(small_disk, ep_id)
    arguments = (
        "run",
        "--ep-id",
        ep_id,
        "--out-root",
        small_disk,
        "--actions",
        "split_tracks,recluster",
        "--write-back",
    )
    n_failed = 0
    for free in range(0, 1 << 20, 1 << 13):
        used = sum(p.lstat().st_blocks * 512 for p in small_disk.rglob("*"))
        resize(small_disk, used + free)
        result = cleanup(*arguments, "-q", code=None)
        if result.exit_code == 0:
            break
        n_failed += 1
        assert result.exit_code == 1
        assert re.fullmatch(r"(.* has failed, but: .*\n)?cleanup: .*No space left on device.*\n", result.stderr), (
            result.stderr
        )
        assert artifacts_of(small_disk, ep_id) == before and not paths.journal.exists()
    assert n_failed > 3 and artifacts_of(small_disk, ep_id) != before
    resize(small_disk, 1 << 22)
    after = artifacts_of(small_disk, ep_id)
    cleanup(*arguments, "-q")
    assert artifacts_of(small_disk, ep_id) == after
    cleanup("validate", "--ep-id", ep_id, "--out-root", small_disk)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_model_file_that_was_cut_short(drawn: Path, share: float) -> None:
    [model] = (drawn / "models").glob("*.onnx")
    whole = model.read_bytes()
    model.write_bytes(whole[: int(share * len(whole))])

    fails(drawn, code=2, message=rf"{model.name}: (not a readable ONNX file|ONNX Runtime cannot load it)")
    model.write_bytes(whole)
    run(drawn, "--actions", "split_tracks", "--write-back", "-q")


@pytest.mark.parametrize("share", [0.0, 0.4, 0.98])
def test_a_video_that_was_cut_short(drawn: Path, share: float) -> None:
    video = drawn / "videos" / EP / "episode.mp4"
    whole = video.read_bytes()
    video.write_bytes(whole[: int(share * len(whole))])

    fails(drawn, code=2, message=r"episode.mp4: (not a readable video|.* shorter|the video breaks off)")
    video.write_bytes(whole)
    run(drawn, "--actions", "split_tracks", "--write-back", "-q")


def test_a_gpu_whose_memory_is_full(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ONNX Runtime raises then, from a session that has worked before."""
    from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

    real, calls = onnxruntime.InferenceSession.run, []

    def run_out(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeException("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 9")
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime.InferenceSession, "run", run_out)
        fails(
            drawn,
            code=1,
            message=r"CPUExecutionProvider failed .*Failed to allocate.*; its memory is full: .*--device cpu",
        )
    run(drawn, "--actions", "split_tracks", "--write-back", "-q")


@pytest.mark.ray
@pytest.mark.slow
def test_a_worker_that_ray_kills_for_its_memory(drawn: Path) -> None:
    """Ray's own monitor does it: by its threshold the node has no memory left from the start."""
    before = artifacts(drawn)
    command = [sys.executable, "-m", "cleanup.entrypoints.cli", "run", "--ep-id", EP, "--out-root", drawn, "--models",
               drawn / "models", "--device", "cpu", "--engine", "ray", "--max-actors", "1", "--actions",
               "split_tracks,reembed", "--write-back", "-q"]  # fmt: skip
    scarce = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "50"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **scarce})

    assert done.returncode == 1
    assert re.fullmatch(r"cleanup: .*killed as its node was out of memory; .*--memory-per-actor.*\n", done.stderr)
    assert artifacts(drawn) == before
    run(drawn, "--write-back", "-q")


def test_memory_and_open_files_stay_flat_over_fifty_runs(tmp_path: Path) -> None:
    """Runs in this process that all have something to do: each begins from the episode as it came."""
    ep_id = write_episode(tmp_path, "documented", (("a", "b"), ("b",), ("a",)))
    original = {path: content for path, content in snapshot(tmp_path).items()}
    me = psutil.Process()
    seen = []
    for _ in range(50):
        for name, content in original.items():
            (tmp_path / name).write_bytes(content)
        cleanup(
            "run", "--ep-id", ep_id, "--out-root", tmp_path, "--actions", "split_tracks,recluster", "--write-back", "-q"
        )
        gc.collect()  # what other tests have left
        seen.append((me.memory_info().rss, me.num_fds(), me.num_threads()))

    (rss_10, files_10, threads_10), (rss_50, files_50, threads_50) = seen[9], seen[49]
    assert rss_50 - rss_10 < 16 << 20
    assert files_50 <= files_10 and threads_50 <= threads_10
    assert len(list((tmp_path / "backups" / ep_id).glob("*.json"))) == 11  # the first, and as many as are kept
