"""All rows of one episode, and what is wrong with ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cleanup.names import show_of
from cleanup.resolve_settings import ResolvedSettings
from tests.bench.accuracy.calibration import Statement, check_merges, check_names
from tests.bench.accuracy.causes import count_by_shot, count_merges
from tests.bench.accuracy.methods import METHODS, raw_artifacts
from tests.bench.accuracy.peeks import ORACLE, ORACLE_TWO_PEOPLE, PLAIN_BEST, SAME_PIECES, oracle, plain_gate_best
from tests.bench.accuracy.product import (
    OURS,
    OURS_ALONE,
    OURS_ANSWERED,
    answer_questions,
    recut_best,
    run_product,
    with_facebank,
)
from tests.bench.accuracy.scene import observe_scene, score


@dataclass(frozen=True)
class EpisodeBench:
    """What came of an episode: the rows, those of methods that look at truth, causes of what ours loses, calibration."""

    rows: list[dict[str, Any]]
    peeks: list[dict[str, Any]]
    by_shot: dict[str, dict[str, float]]
    merges: dict[str, dict[str, float]]
    stated_names: list[Statement]
    stated_merges: list[Statement]


def bench_episode(root: Path, truth_file: Path, seeds: Path, settings: ResolvedSettings) -> EpisodeBench:
    """Runs everything on one episode of a data root."""
    scene = observe_scene(root, truth_file, settings)
    rows = [{"method": "raw artifacts", **score(scene, raw_artifacts(scene, root))}]
    rows += [{"method": name, **score(scene, method(scene))} for name, method in METHODS.items()]
    alone = last = run_product(scene, root, settings, is_grouped=False)
    rows.append({"method": OURS_ALONE, **score(scene, alone.outcome), "quality AUC": alone.quality_area})
    names: list[Statement] = []
    folder = seeds / show_of(scene.ep_id)
    if folder.is_dir():
        with with_facebank(settings, seeds, folder.name) as named:
            last = run_product(scene, root, named, is_grouped=True)
        enrolled = {path.name for path in folder.iterdir()}
        nameable = sum(scene.person[i] in enrolled for i in scene.known) / len(scene.known)
        figures = {**score(scene, last.outcome), "nameable": nameable, "quality AUC": last.quality_area}
        rows.append({"method": OURS, **figures})
        names = check_names(scene, alone.outcome, last.report["grouping"])
    peeking = {
        ORACLE: oracle(scene),
        ORACLE_TWO_PEOPLE: oracle(scene, joins_pictures=True),
        OURS_ANSWERED: answer_questions(scene, last),
        SAME_PIECES: recut_best(scene, alone, settings),
        PLAIN_BEST: plain_gate_best(scene),
    }
    return EpisodeBench(
        rows,
        [{"method": name, **score(scene, outcome)} for name, outcome in peeking.items()],
        count_by_shot(scene, last.outcome),
        count_merges(scene, last.outcome),
        names,
        check_merges(scene, alone.outcome, alone.report["recluster"]["merges"]),
    )
