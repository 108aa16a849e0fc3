"""Accuracy side by side with what people would use instead: ``uv run python -m tests.bench.accuracy``.

Every method sees the same observations of an episode (one pass of the product's own worker) and is scored on the faces
that truth names. Rows that peek choose by truth and say what could be had: they are no methods. FINCH yields several
partitions; the one that scores best is shown, which flatters it. Below stand the causes of what ours loses, and at the
end whether the probabilities that it states come true.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cleanup.edges.model_files import find_model_files
from cleanup.resolve_settings import resolve_for_run
from tests.bench.accuracy.calibration import Statement, bin_statements
from tests.bench.accuracy.episode import EpisodeBench, bench_episode
from tests.bench.accuracy.leaderboard import append_rows
from tests.bench.accuracy.product import OURS, OURS_ALONE, pick_ours
from tests.bench.accuracy.scaled_models import SCALES, scale_models
from tests.conftest import SHARED, copy_data

COLUMNS = (
    "method", "P", "R", "F", "WCP", "NMI", "ARI", "ids/people", "track purity", "false splits/track", "missed", "coverage",
    "cut", "label_acc", "nameable", "label_wrong", "quality AUC",
)  # fmt: skip
SHOT_COLUMNS = (
    "shot", "faces", "lost R", "false splits", "missed changes", "false cuts", "named right", "named wrong",
)  # fmt: skip
MERGE_COLUMNS = ("fewer faces", "merges", "faces", "lost P")


def build_table(title: str, columns: Sequence[str], *sections: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for rows in sections:
        for row in rows:
            cells = [row.get(c) for c in columns]
            table.add_row(*("" if c is None else f"{c:.4f}" if isinstance(c, float) else str(c) for c in cells))
        table.add_section()
    return table


def print_episode(console: Console, title: str, bench: EpisodeBench) -> None:
    console.print(build_table(title, COLUMNS, bench.rows, bench.peeks))
    ours = pick_ours(bench.rows)
    best = max((r for r in bench.rows if r["method"] not in {OURS, OURS_ALONE}), key=lambda r: float(r["F"]))
    gaps = [f"{r['F'] - ours['F']:+.4f} {r['method']}" for r in (best, *bench.peeks)]
    console.print(f"F against {ours['method']}: {', '.join(gaps)}")
    by_shot = [{"shot": shot, **counts} for shot, counts in bench.by_shot.items()]
    console.print(build_table("What ours loses, by kind of shot", SHOT_COLUMNS, by_shot))
    merges = [{"fewer faces": kind, **counts} for kind, counts in bench.merges.items()]
    if merges:
        console.print(build_table("Two people in one cluster, by size and quality of the one", MERGE_COLUMNS, merges))


def print_calibration(console: Console, title: str, statements: Sequence[Statement]) -> None:
    if statements:
        columns = ("probability", "stated", "observed", "weight")
        rows = [dict(zip(columns, row, strict=True)) for row in bin_statements(statements)]
        console.print(build_table(title, columns, rows))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, help="data root with raw episodes; without it the shared ones, easy and hard"
    )
    parser.add_argument("--truth", type=Path, help="folder of EP_ID.json; without it truth beside the data root")
    parser.add_argument(
        "--seeds", type=Path, help="folder of SHOW/PERSON/photos; without it facebank beside the data root"
    )
    parser.add_argument("--episodes", nargs="+", metavar="EP_ID", help="only these")
    parser.add_argument("--models", type=Path, default=SHARED / "models")
    parser.add_argument("--scale", choices=SCALES, help="another scale of similarities, made from the models")
    parser.add_argument("--profile", default="balanced")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    parser.add_argument("--append", action="store_true", help="append ours to tests/bench/leaderboard.csv")
    arguments = parser.parse_args()
    if arguments.truth and not arguments.data:
        parser.error("--truth goes with --data")
    unknown = set(arguments.episodes or ()) - {t.stem for truths in find_truths(arguments).values() for t in truths}
    if unknown:
        parser.error(f"--episodes: no truth of {', '.join(sorted(unknown))}")
    return arguments


def find_truths(arguments: argparse.Namespace) -> dict[Path, list[Path]]:
    """The files of truth that were chosen, by data root."""
    found = {}
    for data in [arguments.data] if arguments.data else [SHARED / "data", SHARED / "hard" / "data"]:
        files = sorted((arguments.truth or data.parent / "truth").glob("*.json"))
        chosen = [f for f in files if not arguments.episodes or f.stem in arguments.episodes]
        if chosen:
            found[data] = chosen
    return found


def main() -> None:
    """Prints a table per episode."""
    arguments = parse_arguments()
    console = Console(width=230)
    results: dict[str, EpisodeBench] = {}
    with tempfile.TemporaryDirectory() as scratch:
        models = arguments.models.resolve()
        if arguments.scale:
            models = scale_models(models, arguments.scale, Path(scratch) / "models")
        settings = resolve_for_run({"models": str(models), "device": "cpu"}, arguments.profile, None)
        model = find_model_files(models).recogniser.stem
        for number, (data, truths) in enumerate(find_truths(arguments).items()):
            root = copy_data(data, Path(scratch) / f"data-{number}")
            for truth_file in truths:
                bench = bench_episode(root, truth_file, arguments.seeds or data.parent / "facebank", settings)
                results[truth_file.stem] = bench
                print_episode(console, f"{truth_file.stem}, profile {arguments.profile}, model {model}", bench)
                shutil.rmtree(root / "runs", ignore_errors=True)
    print_calibration(console, "Names, by faces", [s for bench in results.values() for s in bench.stated_names])
    print_calibration(console, "Merges", [s for bench in results.values() for s in bench.stated_merges])
    if arguments.json:
        arguments.json.write_text(json.dumps({ep_id: asdict(bench) for ep_id, bench in results.items()}, indent=1))
    if arguments.append:
        append_rows({e: [*b.rows, *b.peeks] for e, b in results.items()}, arguments.profile, model)


if __name__ == "__main__":
    main()
