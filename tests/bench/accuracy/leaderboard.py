"""What each change made of accuracy: a row per episode and run, appended to ``leaderboard.csv``."""

from __future__ import annotations

import csv
import datetime
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.accuracy.methods import PLAIN_FIXED
from tests.bench.accuracy.peeks import ORACLE
from tests.bench.accuracy.product import pick_ours
from tests.conftest import ROOT

LEADERBOARD = ROOT / "tests" / "bench" / "leaderboard.csv"
COLUMNS = (
    "date", "commit", "profile", "model", "episode", "F", "P", "R", "purity", "missed", "label_acc", "label_wrong",
    "oracle F", "plain fixed F",
)  # fmt: skip


def append_rows(results: Mapping[str, Sequence[Mapping[str, Any]]], profile: str, model: str) -> None:
    """Appends the product's row of each episode, with the Facebank where there is one."""
    git = ("git", "-C", str(ROOT))
    commit = subprocess.check_output([*git, "rev-parse", "--short=10", "HEAD"], text=True).strip()
    is_changed = bool(subprocess.check_output([*git, "status", "--porcelain", "--", "cleanup", "config"], text=True))
    is_new = not LEADERBOARD.exists()
    with LEADERBOARD.open("a", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        for ep_id, rows in results.items():
            of = {row["method"]: row for row in rows}
            ours = pick_ours(rows)
            figures = [ours["F"], ours["P"], ours["R"], ours["track purity"], ours["missed"], ours.get("label_acc"),
                       ours.get("label_wrong"), of[ORACLE]["F"], of[PLAIN_FIXED]["F"]]  # fmt: skip
            head = [datetime.datetime.now(datetime.UTC).date(), commit + "+" * is_changed, profile, model, ep_id]
            writer.writerow(head + [f"{f:.4f}" if isinstance(f, float) else f for f in figures])
