"""Memory, open files and threads over fifty whole runs in one process: ``uv run python -m tests.bench.flat [--runs 50]``.

Each run does all four phases on the drawn episode as it came: video, models, embedded PostgreSQL, write-back. Flat means
that from the tenth run to the last memory grows by less than 32 MiB, and files and threads not at all.
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

_WARM_UP, _MAX_GROWTH_MIB = 10, 32


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
    start, end = seen[min(_WARM_UP, len(seen)) - 1], seen[-1]
    print(json.dumps({"after_10": start, "after_all": end, "columns": ["MiB", "files", "threads"]}))
    sys.exit(0 if end[0] - start[0] < _MAX_GROWTH_MIB and end[1:] <= start[1:] else 1)


if __name__ == "__main__":
    main()
