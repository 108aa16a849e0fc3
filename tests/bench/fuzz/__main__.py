"""Fuzzes every reader of input and reports executions, coverage and crashes: ``uv run --group fuzz python -m tests.bench.fuzz``.

Each target runs in a process of its own under Atheris (libFuzzer). A finding is any exception that is not one of ours,
an input that takes over ten seconds or 4 GiB, or a file opened for writing outside the scratch folder. ``video`` is
`tests.bench.fuzz.videos`, and does without Atheris.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_SECONDS_PER_INPUT, _MIB = 10, 4096
_VIDEO, _N_VIDEOS = "video", 3000


def fuzz(name: str, scratch: Path, runs: int, seed: int) -> None:
    """Fuzzes one target in this process, which Atheris ends."""
    import atheris

    with atheris.instrument_imports(include=["cleanup"], enable_loader_override=False):
        from tests.bench.fuzz.targets import TARGETS

    from cleanup.errors import CleanupError

    target = TARGETS[name][0](scratch)
    corpus = scratch / "corpus"
    corpus.mkdir()
    for i, content in enumerate(target.seeds):
        (corpus / str(i)).write_bytes(content)

    def run_one(data: bytes) -> None:
        try:
            target.run(data)
        except CleanupError as error:
            assert len(str(error).splitlines()) == 1, f"a message of several lines: {error}"

    _confine(scratch)
    longest = max(4096, *map(len, target.seeds))
    atheris.Setup(
        [sys.argv[0], f"-runs={runs}", f"-seed={seed}", f"-timeout={_SECONDS_PER_INPUT}", f"-rss_limit_mb={_MIB}",
         f"-max_len={longest}", f"-artifact_prefix={scratch}/found-", "-print_final_stats=1", str(corpus)],
        run_one,
    )  # fmt: skip
    atheris.Fuzz()


def _confine(scratch: Path) -> None:
    """From now on a file that is opened for writing, made, moved or removed outside the scratch folder is a finding."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            is_written = any(c in "wax+" for c in mode) if mode else bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))
            paths = [path] if is_written else []
        elif event in ("os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            paths = list(arguments[:2])
        else:
            return
        for path in paths:
            if isinstance(path, (str, bytes, os.PathLike)):
                place = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 -- links are not to be followed
                if not place.startswith((str(scratch), "/dev/")):
                    os.write(2, f"OUTSIDE {event} {place}\n".encode())
                    os.abort()

    sys.addaudithook(watch)


def _run_target(name: str, runs: int, seed: int, keep: Path) -> dict[str, Any]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if memory.is_dir() else None) as scratch:
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.fuzz", "--target", name, "--scratch", scratch, "--runs", str(runs),
             "--seed", str(seed)],
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        executed = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr)
        coverage = re.findall(r"cov: (\d+)", done.stderr)
        found = []
        for path in sorted(Path(scratch).glob("found-*")):
            keep.mkdir(parents=True, exist_ok=True)
            found.append(str(keep / f"{name}-{path.name}"))
            Path(found[-1]).write_bytes(path.read_bytes())
    if done.returncode != 0:
        print(done.stderr[-3000:], file=sys.stderr)
    return {
        "target": name, "executions": int(executed[1]) if executed else 0, "seconds": time.monotonic() - started,
        "coverage": int(coverage[-1]) if coverage else 0, "is_clean": done.returncode == 0, "found": found,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help="targets; all by default")
    parser.add_argument("--target", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "--runs", type=int, default=0, help="executions of each target, instead of its share of a million"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="where inputs that crash go")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.target:
        fuzz(arguments.target, arguments.scratch, arguments.runs, arguments.seed)
        return
    from tests.bench.fuzz.targets import TARGETS
    from tests.bench.fuzz.videos import run_videos

    results = []
    for name in arguments.targets or [*TARGETS, _VIDEO]:
        if name == _VIDEO:
            results.append(run_videos(arguments.runs or _N_VIDEOS, arguments.seed, arguments.keep))
        else:
            results.append(_run_target(name, arguments.runs or TARGETS[name][1], arguments.seed, arguments.keep))
        r = results[-1]
        print(f"{name:16} {r['executions']:9,} executions {r['seconds']:7.1f} s  coverage {r['coverage']:5} "
              f"{'clean' if r['is_clean'] else 'FOUND ' + ', '.join(r['found'])}", flush=True)  # fmt: skip
        if name == _VIDEO:
            print(f"{'':16} {r['outcomes']}, at most {r['longest_s']:.1f} s and {r['most_mib']:.0f} MiB")
    total = sum(r["executions"] for r in results)
    print(f"{total:,} executions, {sum(not r['is_clean'] for r in results)} targets with findings")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))
    sys.exit(0 if all(r["is_clean"] for r in results) else 1)


if __name__ == "__main__":
    main()
