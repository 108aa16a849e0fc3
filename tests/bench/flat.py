"""Memory, open files and threads over fifty whole runs in one process: ``uv run python -m tests.bench.flat [--runs 50]``.

Each run does all four phases on the drawn episode as it came: video, models, embedded PostgreSQL, write-back. Flat means
that the most of the last ten runs is not above the most of the first ten: memory by less than 32 MiB, files and threads
not at all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import psutil

from cleanup.entrypoints.demo import draw_episode
from tests.builders import snapshot
from tests.entrypoints.test_cli import EP, cleanup, run

_N_COMPARED, _MAX_GROWTH_MIB = 10, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    n_runs = parser.parse_args().runs
    me, seen = psutil.Process(), []
    with tempfile.TemporaryDirectory(prefix="flat-") as name:
        root = Path(name)
        draw_episode(root, seed=1)
        cleanup("facebank", "enroll", "--show", "demo", "--aligned", "--out-root", root, "--models", root / "models",
                root / "seed_photos")  # fmt: skip
        original = {folder: snapshot(root / folder) for folder in ("manifests", "embeds")}
        for _ in range(n_runs):
            for folder, files in original.items():
                for path, content in files.items():
                    (root / folder / path).write_bytes(content)
            shutil.rmtree(root / "runs" / EP / "shards", ignore_errors=True)
            run(root, "--write-back", "-q")
            seen.append((me.memory_info().rss / (1 << 20), me.num_fds(), me.num_threads()))
    first, last = (
        [max(column) for column in zip(*part, strict=True)] for part in (seen[:_N_COMPARED], seen[-_N_COMPARED:])
    )
    print(json.dumps({"first_10": first, "last_10": last, "columns": ["MiB", "files", "threads"]}))
    sys.exit(0 if last[0] - first[0] < _MAX_GROWTH_MIB and last[1] <= first[1] and last[2] <= first[2] else 1)


if __name__ == "__main__":
    main()
