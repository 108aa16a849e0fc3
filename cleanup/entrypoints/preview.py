"""What a run would change, from the embeddings on disk: nothing is written, no pixel is decoded.

As a process (``python -m cleanup.entrypoints.preview``) it takes a request as JSON from standard input and prints
``{preview}``, or ``{error, message}``; so the HTTP API keeps its memory and can give up on it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import orjson

from cleanup.edges.artifact_reading import read_episode
from cleanup.edges.data_root import DataRoot
from cleanup.entrypoints.episode_job import parse_actions
from cleanup.entrypoints.process import run_main
from cleanup.entrypoints.run_tools import Tools
from cleanup.entrypoints.shell import open_root
from cleanup.entrypoints.terminal import print_json
from cleanup.errors import CleanupError, SettingsError, find_shortage
from cleanup.names import EpId, check_ep_id, show_of
from cleanup.report import CleanupReport
from cleanup.resolve_settings import ResolvedSettings, resolve_for_run
from cleanup.run import RunContext, run

# Of the report, what a preview has figures for.
_COUNTED = ("tracks", "faces", "clusters", "metrics")
_FIGURES = tuple(f"{what}_{when}" for what in _COUNTED for when in ("before", "after"))
_NEEDS_PIXELS = frozenset({"reembed"})


def preview_episode(root: DataRoot, ep_id: EpId, actions: Sequence[str], settings: ResolvedSettings) -> dict[str, Any]:
    """Runs the phases that need no pixels, in memory.

    Args:
        root: Data root.
        ep_id: Episode.
        actions: Phases asked for; ``reembed`` is left out and named in ``skipped``.
        settings: Settings of the run.

    Returns:
        ``ep_id``, ``actions``, ``skipped``, counts and metrics before and after, the counts of each phase, warnings.

    Raises:
        CleanupError: The artifacts are wrong, another run holds the episode, the Facebank does not answer.
    """
    chosen = tuple(name for name in actions if name not in _NEEDS_PIXELS)
    if not chosen:
        raise SettingsError("reembed alone cannot be previewed: it needs the pixels; start a job without write_back")
    root.check_episode(ep_id)
    episode = root.read_settled(ep_id, read_episode)
    show = settings.settings.group_clusters.show or show_of(ep_id)
    report = CleanupReport(ep_id, run_id="preview", profile=settings.profile)
    with Tools(settings, root) as tools:
        facebank = tools.facebank
        note = f"there is no Facebank under {root.name} yet, so nobody would be named"
        model = episode.embedding_model
        known = facebank.calibrations.find_scales(show).find(model, None) if facebank is not None else None
        context = RunContext(settings.settings, None, None, facebank, note, show, model, calibration=known)
        run(episode, chosen, context, lambda _: None, report)
    record = report.to_json()
    # Counts; which tracks and identities they are stands in the report of a run.
    phases = {name: {k: v for k, v in record[name].items() if not isinstance(v, list)} for name in chosen}
    if "splits" in record:
        phases["split_tracks"]["splits"] = record["splits"]
    if "grouping" in record:
        phases["group_clusters"]["grouping"] = {"counts": record["grouping"]["counts"]}
    figures = {name: record[name] for name in _FIGURES}
    skipped = [name for name in actions if name in _NEEDS_PIXELS]
    return {
        "ep_id": ep_id, "actions": list(chosen), "skipped": skipped, **figures, "phases": phases,
        "warnings": report.warnings,
    }  # fmt: skip


def main() -> None:
    """Entry point of the process."""
    asked = orjson.loads(sys.stdin.buffer.read())
    try:
        resolved = resolve_for_run(asked["settings"], asked["profile"], None)
        actions = parse_actions(asked["actions"])
        print_json(
            {"preview": preview_episode(open_root(None, resolved), check_ep_id(asked["ep_id"]), actions, resolved)}
        )
    except Exception as error:
        told = find_shortage(error) or error
        if not isinstance(told, CleanupError):
            raise
        print_json({"error": type(told).__name__, "message": str(told)})


if __name__ == "__main__":
    run_main(main)
