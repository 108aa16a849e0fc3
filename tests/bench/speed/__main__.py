"""``uv run python -m tests.bench.speed [case ...]``: prints the table and writes it as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.speed import clustering, commands, facebank, pixels
from tests.bench.speed.measure import Row

CASES: dict[str, Callable[[Path], list[Row]]] = {
    "embed": pixels.embed,
    "peer-loop": pixels.peer_loop,
    "decode": pixels.decode,
    "count": pixels.count,
    "sparse": pixels.sparse,
    "recluster": clustering.recluster,
    "recluster-big": clustering.recluster_big,
    "artifacts": commands.artifacts,
    "memory": pixels.memory,
    "start": commands.start,
    "small": commands.small,
    "ray": commands.ray,
    "facebank": facebank.facebank,
}


def describe_machine() -> str:
    """Processor, cores, memory and the libraries that matter."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    libraries = ", ".join(
        f"{name} {version(name)}" for name in ("onnxruntime-gpu", "av", "numpy", "scikit-learn", "ray")
    )
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}, {libraries}"


def build_table(rows: list[Row]) -> Table:
    table = Table(show_lines=False)
    for heading in ("case", "ours", "peer or limit", "ratio", "target", "peak MiB ours / peer", "what"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        peak = f"{row.peak_mib[0]:.0f} / {row.peak_mib[1]:.0f}" if row.peak_mib else ""
        mark = "" if row.is_met else "  MISSED"
        table.add_row(row.case, row.ours, row.peer, f"{row.ratio:.2f}", row.target + mark, peak, row.note)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.speed", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(CASES)}; all without any")
    parser.add_argument("--json", type=Path, default=Path("speed.json"), help="where the figures go [speed.json]")
    options = parser.parse_args()
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"unknown {', '.join(unknown)}; known: {', '.join(CASES)}")
    console, machine, rows = Console(width=180), describe_machine(), []
    with tempfile.TemporaryDirectory(prefix="speed-") as folder:
        for name in options.cases or CASES:
            console.print(f"{name} ...")
            rows += CASES[name](Path(folder))
            options.json.write_text(json.dumps({"machine": machine, "rows": [asdict(r) for r in rows]}, indent=2))
    console.print(build_table(rows))
    console.print(machine)
    raise SystemExit(0 if all(row.is_met for row in rows) else 1)


if __name__ == "__main__":
    main()
