"""Fuzzes what reads videos: ``python -m tests.bench.fuzz video``.

The decoders are native and not instrumented, so inputs are drawn and not searched for. Children read them, so that one
that ends its process is found and kept. A finding is an error that is not ours, one in several lines or without the name
of the file, a file that takes over ten seconds or 2 GiB, and a frame that shows another number when it is read in
another order or by another reader.
"""

from __future__ import annotations

import faulthandler
import json
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cleanup.edges.video_frames import VideoFrames
from cleanup.edges.video_report import describe_video
from cleanup.errors import ResourceError, VideoError, translate
from tests.bench.fuzz.video_mutations import make_seeds, mutate
from tests.videos import read_number

SECONDS, MIB = 10, 2048
# A guard for the machine; what is over the limit and below it is found.
_MAX_ADDRESS_SPACE = 8 << 30
_PER_CHILD = 100
# How many frames are looked at, and up to how many pixels they are looked at as a whole.
_N_LOOKED_AT, _MAX_PIXELS = 300, 1 << 20


def look_at(path: Path, rng: np.random.Generator) -> str:
    """Reads a video in every way.

    Returns:
        What became of it: "read", "read in part" if some frames were not given, "read unevenly" if some of these were
        given at other times, "refused", "refused later" or "no memory".
    """
    is_open = False
    try:
        with VideoFrames(path, 2) as video:
            is_open = True
            n_frames = video.index.n_frames
            in_order = _read_numbers(video, range(min(n_frames, _N_LOOKED_AT)))
            is_even = _compare(video, in_order, rng)
        with VideoFrames(path, 1) as other:
            assert other.index.n_frames == n_frames, f"{n_frames} frames, then {other.index.n_frames}"
            is_even &= _compare(other, in_order, rng)
        json.dumps(describe_video(path), allow_nan=False)
    except Exception as error:
        told = translate(error)
        if isinstance(told, ResourceError) and "not enough memory" in str(told):
            return "no memory"
        if not isinstance(error, VideoError):
            raise
        assert str(path) in str(error) and len(str(error).splitlines()) == 1, f"a message like {error}"
        return "refused later" if is_open else "refused"
    return "read unevenly" if not is_even else "read in part" if None in in_order.values() else "read"


def _compare(video: VideoFrames, in_order: dict[int, int | None], rng: np.random.Generator) -> bool:
    """Reads some frames alone and some together; what they show has to be what they showed before.

    Returns:
        Whether the same were given.
    """
    is_even = True
    for n_wanted in (1, 1, 4):
        wanted = rng.integers(len(in_order), size=n_wanted).tolist()
        for number, shown in _read_numbers(video, wanted).items():
            before = in_order[number]
            assert shown in (before, None, -1) or before in (None, -1), f"frame {number} shows {before}, then {shown}"
            is_even &= (shown is None) == (before is None)
    return is_even


def _read_numbers(video: VideoFrames, wanted: Iterable[int]) -> dict[int, int | None]:
    """What each frame shows: -1 where that is not clear, None where the frame cannot be given."""
    found: dict[int, int | None] = {}
    for number, frame in video.read(wanted):
        found[number] = None
        if frame is not None:
            frame.align_face(np.eye(2, 3))
            is_small = frame.source.width * frame.source.height <= _MAX_PIXELS
            found[number] = read_number(frame.rgb) if is_small else -1
    return found


def run_inputs(scratch: Path, seed: int, first: int, n_inputs: int) -> None:
    """Mutates and reads, in this process; says a line of JSON of each input, and keeps those that are findings."""
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_ADDRESS_SPACE, _MAX_ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    path = scratch / "video"
    path.unlink(missing_ok=True)
    seeds, most = make_seeds(), _peak_mib()
    for number in range(first, first + n_inputs):
        rng = np.random.default_rng((seed, number))
        path.write_bytes(mutate(seeds, rng))
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        started, fault = time.monotonic(), ""
        try:
            outcome = look_at(path, rng)
        except Exception:  # noqa: BLE001 -- whatever it is, it is a finding
            outcome, fault = "fault", traceback.format_exc()
        seconds, before, most = time.monotonic() - started, most, _peak_mib()
        faulthandler.cancel_dump_traceback_later()
        if not fault and before <= MIB < most:
            outcome, fault = "fault", f"{most:.0f} MiB"
        if fault:
            path.replace(scratch / f"found-{number}")
        print(
            json.dumps({"number": number, "outcome": outcome, "fault": fault, "seconds": seconds, "mib": most}),
            flush=True,
        )


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_videos(n_inputs: int, seed: int, keep: Path, first: int = 0) -> dict[str, Any]:
    """Runs so many inputs in children, a new one after each that was ended; inputs that are findings are kept.

    Returns:
        Plain JSON values: counts by outcome, the longest time in seconds, the most memory in MiB, and the findings.
    """
    started = time.monotonic()
    done: list[dict[str, Any]] = []
    found = []
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if memory.is_dir() else None) as scratch:
        while len(done) < n_inputs:
            results = _run_child(Path(scratch), seed, first + len(done), min(n_inputs - len(done), _PER_CHILD))
            for result in results:
                if result["fault"]:
                    keep.mkdir(parents=True, exist_ok=True)
                    kept = keep / f"video-{seed}-{result['number']}"
                    kept.write_bytes((Path(scratch) / f"found-{result['number']}").read_bytes())
                    found.append(str(kept))
                    print(f"{kept}: {result['fault']}", file=sys.stderr)
            done += results
    return {
        "target": "video", "executions": len(done), "seconds": time.monotonic() - started, "coverage": 0,
        "is_clean": not found, "found": found, "outcomes": dict(Counter(r["outcome"] for r in done)),
        "longest_s": max(r["seconds"] for r in done), "most_mib": max(r["mib"] for r in done),
    }  # fmt: skip


def _run_child(scratch: Path, seed: int, first: int, n_inputs: int) -> list[dict[str, Any]]:
    """What a child says of its inputs; if it did not come to its end, the last one is that at which it ended."""
    arguments = [str(scratch), str(seed), str(first), str(n_inputs)]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.bench.fuzz.videos", *arguments],
        capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    results: list[dict[str, Any]] = [json.loads(line) for line in ended.stdout.splitlines()]
    if len(results) < n_inputs:
        number, path = first + len(results), scratch / "video"
        if not path.exists():
            raise RuntimeError(f"no video was made: {ended.stderr[-3000:]}")
        path.replace(scratch / f"found-{number}")
        fault = f"exit status {ended.returncode}: {ended.stderr[-3000:]}"
        results.append({"number": number, "outcome": "fault", "fault": fault, "seconds": 0.0, "mib": 0.0})
    return results


if __name__ == "__main__":
    run_inputs(Path(sys.argv[1]), *map(int, sys.argv[2:]))
