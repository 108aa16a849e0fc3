"""What a run shows on a terminal, and in plain lines where there is none."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.progress import Progress, TaskID

from cleanup.algorithms.targets import TARGETS
from cleanup.entrypoints.screen import Screen, Styled
from cleanup.progress import PhaseProgress, ReportProgress

_PLAIN_INTERVAL_S = 5.0
# Parts of a run that took less are not mentioned.
_WORTH_SAYING_S = 0.05
_WARNING = ("warning:", "yellow")


@contextmanager
def show_progress(screen: Screen, *, is_quiet: bool) -> Iterator[ReportProgress | None]:
    """A live display on a terminal, otherwise a plain line at each phase and every few seconds."""
    if is_quiet:
        yield None
    elif screen.is_terminal:
        with screen.progress("{task.description:<16}", "{task.fields[note]:>18}") as bars:
            yield _LiveProgress(bars)
    else:
        yield _PlainProgress(screen)


def _counts(event: PhaseProgress, elapsed_s: float) -> str:
    if event.items_total <= 1:
        return event.message
    rate = event.items_done / elapsed_s if elapsed_s > 0 else 0.0
    return f"{event.items_done}/{event.items_total} {rate:.0f}/s"


class _LiveProgress:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, tuple[TaskID, float]] = {}

    def __call__(self, event: PhaseProgress) -> None:
        if event.phase not in self._tasks:
            task = self._bars.add_task(event.phase, total=1.0, note="")
            self._tasks[event.phase] = (task, time.monotonic())
        task, started = self._tasks[event.phase]
        self._bars.update(task, completed=event.fraction, note=_counts(event, time.monotonic() - started))


class _PlainProgress:
    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._phase, self._started, self._shown = "", 0.0, 0.0

    def __call__(self, event: PhaseProgress) -> None:
        now = time.monotonic()
        is_new = event.phase != self._phase
        if is_new:
            self._phase, self._started = event.phase, now
        if is_new or now - self._shown >= _PLAIN_INTERVAL_S:
            self._shown = now
            line = f"{event.phase} ({event.phase_index}/{event.phase_total})"
            counts = _counts(event, now - self._started)
            self._screen.say(f"{line}: {counts}" if counts else line)


@contextmanager
def show_season(screen: Screen, *, is_quiet: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A bar for the season and one per episode under way on a terminal, otherwise a line where something changes."""
    if is_quiet:
        yield lambda _: None
    elif screen.is_terminal:
        with screen.progress("{task.description:<24}", "{task.fields[note]}") as bars:
            yield _LiveSeason(screen, bars)
    else:
        yield _PlainSeason(screen)


def _place_of(episode: Mapping[str, Any]) -> str:
    """Where an episode stands, in a few words."""
    counts = f" {episode['items_done']}/{episode['items_total']}" if episode.get("items_total", 0) > 1 else ""
    message = f", {episode['message']}" if episode.get("message") else ""
    return f"{episode['phase']}{counts}{message}" if "phase" in episode else "reading"


class _LiveSeason:
    def __init__(self, screen: Screen, bars: Progress) -> None:
        self._screen, self._bars = screen, bars
        self._total = bars.add_task("season", total=1.0, note="")
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, season: Mapping[str, Any]) -> None:
        note = f"{season['episodes_done']}/{season['episodes_total']} episodes"
        note += f", {season['episodes_failed']} failed" if season["episodes_failed"] else ""
        self._bars.update(self._total, completed=season["progress"], note=note)
        for ep_id, episode in season["episodes"].items():
            is_running = episode["state"] == "running"
            if is_running and ep_id not in self._tasks:
                self._tasks[ep_id] = self._bars.add_task(ep_id, total=1.0, note="")
            if is_running:
                self._bars.update(self._tasks[ep_id], completed=episode["progress"], note=_place_of(episode))
            elif ep_id in self._tasks:
                self._bars.remove_task(self._tasks.pop(ep_id))
                self._screen.say(_end_of(ep_id, episode))


def _end_of(ep_id: str, episode: Mapping[str, Any]) -> str:
    error = f": {episode['error']}" if episode.get("error") else ""
    return f"{ep_id}: {episode['state']} after {episode['elapsed_seconds']:.1f} s{error}"


class _PlainSeason:
    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._said: dict[str, str] = {}
        self._shown = 0.0

    def __call__(self, season: Mapping[str, Any]) -> None:
        for ep_id, episode in season["episodes"].items():
            is_over = episode["state"] not in ("queued", "running")
            word = episode["state"] if is_over else episode.get("phase", episode["state"])
            if episode.get("items_total") == 0:
                word = f"{word} {episode['message']}"  # nothing is counted yet, so the words are what changes
            if word != self._said.get(ep_id, "queued"):
                self._said[ep_id] = word
                line = _end_of(ep_id, episode) if is_over else f"{ep_id}: {_place_of(episode)}"
                self._screen.say(line)
        now = time.monotonic()
        if now - self._shown >= _PLAIN_INTERVAL_S and season["state"] == "running":
            self._shown = now
            eta = f", {season['eta_seconds']:.0f} s left" if season["eta_seconds"] is not None else ""
            done = f"{season['episodes_done']}/{season['episodes_total']} episodes"
            self._screen.say(f"season: {season['progress']:.0%}, {done}{eta}")


def print_season(screen: Screen, report: Mapping[str, Any]) -> None:
    """A line per episode, what failed and why, what was done in all, and where the report is."""
    styles = {"succeeded": "green", "unchanged": "green", "failed": "red", "canceled": "yellow"}
    headings = [("episode", "left"), ("state", "left")]
    headings += [(heading, "right") for heading in ("tracks", "clusters", "shards done", "seconds")]
    screen.print_table(headings, [_season_row(ep_id, episode, styles) for ep_id, episode in report["episodes"].items()])
    for ep_id, episode in report["episodes"].items():
        if episode["error"]:
            screen.say((ep_id, "bold"), f": {episode['error']}")
        for failure in [*episode.get("failed_shards", []), *episode.get("unreadable", [])]:
            screen.say(
                _WARNING, f" {ep_id}: frames {failure['first_frame']} to {failure['last_frame']} could not be looked "
                f"at, {len(failure['tracks'])} tracks are left as they were: {failure['reason']}",
            )  # fmt: skip
    totals = report["totals"]
    by_state = ", ".join(f"{totals[s]} {s}" for s in styles if totals[s])
    n_episodes = totals["episodes"]
    screen.say(f"{n_episodes} episode{'s' if n_episodes > 1 else ''}: {by_state}")
    if totals["unchanged"]:
        screen.say("unchanged: finished before, from the same inputs; --no-resume does them again")
    if not report["write_back"]:
        screen.say("nothing written back (add --write-back)")
    screen.say(f"report: {report['files']['report']}")


def _season_row(ep_id: str, episode: Mapping[str, Any], styles: Mapping[str, str]) -> list[Styled]:
    seen = episode.get("observed") or {}
    done = seen.get("shards", 0) - seen.get("shards_from_checkpoints", 0) - seen.get("shards_failed", 0)
    counts = [
        f"{episode[f'{name}_before']} > {episode[f'{name}_after']}" if "report" in episode else ""
        for name in ("tracks", "clusters")
    ]
    shards = f"{done}/{seen['shards']}" if seen else ""
    state = episode["state"]
    return [ep_id, (state, styles[state]), *counts, shards, f"{episode['runtime_sec']:.1f}"]


def print_report(screen: Screen, report: Mapping[str, Any]) -> None:
    """The before/after table with targets, what each phase did, warnings in words, and where the files are."""
    screen.say(f"{report['ep_id']}: {', '.join(report['actions_completed'])}")
    rows: list[list[Styled]] = [
        [name, str(report[f"{name}_before"]), str(report[f"{name}_after"]), ""]
        for name in ("tracks", "faces", "clusters")
    ]
    for name, target in TARGETS.items():
        before, after = report["metrics_before"][name], report["metrics_after"][name]
        style = "green" if after < target else "yellow"
        rows.append([name.replace("_", " "), f"{before:.3g}", (f"{after:.3g}", style), f"< {target:g}"])
    screen.print_table([("", "left"), ("before", "right"), ("after", "right"), ("target", "right")], rows)
    for line in _phase_lines(report):
        screen.say(line)
    for warning in report["warnings"]:
        screen.say(_WARNING, f" {warning}")
    screen.say(_describe_timings(report))
    _print_files(screen, report)


def _describe_timings(report: Mapping[str, Any]) -> str:
    """Where the time went: the parts of the run, and inside the pass over the pixels the busy time of each step."""
    phases = {name: seconds for name, seconds in report["timings"]["phases"].items() if seconds >= _WORTH_SAYING_S}
    steps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report["timings"]["steps"].items())
    parts = [
        f"{name} {seconds:.1f}" + (f" ({steps})" if name == "observe" and steps else "")
        for name, seconds in phases.items()
    ]
    return f"{report['runtime_sec']:.1f} s" + (f": {', '.join(parts)}" if parts else "")


def _phase_lines(report: Mapping[str, Any]) -> Iterator[str]:
    if "split_tracks" in report:
        part = report["split_tracks"]
        yield f"split_tracks: {part['tracks_split']} tracks split, {part['new_tracks_created']} new pieces"
    if "reembed" in report:
        part = report["reembed"]
        reasons = ", ".join(f"{n} {reason}" for reason, n in part["rejected_by_reason"].items())
        yield f"reembed: {part['faces_rejected']} faces rejected" + (f" ({reasons})" if reasons else "")
    if "recluster" in report:
        part = report["recluster"]
        # The report of a job may be of an earlier version.
        merges, partings = len(part["merges"]), len(part.get("partings", []))
        undone = f", {partings} undone by photos" if partings else ""
        yield f"recluster: {merges} merges{undone}, {part['tracks_ejected']} tracks ejected"
        for item in part.get("questions", []):
            yield (
                f"  question: {' and '.join(item['identity_ids'])} share {item['frames_shared']} frames and look alike "
                f"({item['similarity']:.2f}); one person seen twice, or twins?"
            )
    if "group_clusters" in report:
        part = report["group_clusters"]
        merged = report["grouping"]["within_episode"]["merged_count"]
        yield f"group_clusters: {part['auto_assigned_identities']} identities named, {merged} merged"
        for item in part["ambiguous"]:
            near = " or ".join(f"{c['name']} ({c['similarity']:.2f})" for c in item["candidates"])
            yield f"  ambiguous: {item['cluster_id']} may be {near}; not named"
        for item in report["grouping"]["across_episodes"]["conflicts"]:
            yield (
                f"  conflict: {item['cluster_id']} looks like {item['person_id']} but shares a frame with "
                f"{item['shares_a_frame_with']}; not named"
            )
        yield from _disagreement_lines(report)


def _disagreement_lines(report: Mapping[str, Any]) -> Iterator[str]:
    for item in report["grouping"]["across_episodes"]["disagreements"]:
        others = ", ".join(f"{n} {person}" for person, n in item["tracks_that_match_others"].items())
        yield (
            f"  disagreement: {item['cluster_id']} looks like {item['person_id']}, but tracks of it like {others}; "
            "not named"
        )


def _print_files(screen: Screen, report: Mapping[str, Any]) -> None:
    files = report["files"]
    if not report["write_back"]:
        screen.say("nothing written back (add --write-back)")
    elif not files["changed"]:
        screen.say("nothing changed, nothing written back")
    else:
        screen.say("written:")
        for path in files["changed"]:
            screen.say(f"  {path}")
        root = files["report"].rpartition(f"/manifests/{report['ep_id']}/")[0]
        screen.say(f"to go back: {describe_way_back(report['ep_id'], files['backup'], root)}")
    screen.say(f"report: {files['report']}")


def describe_way_back(ep_id: str, run_id: str, root: str) -> str:
    """The command that takes an episode back to before a run, to be copied from a terminal."""
    return f"cleanup backups restore {ep_id} {run_id} --out-root {_quote(root)}"


def _quote(text: str) -> str:
    """A text for a shell; what cannot be printed as it is stands there in the way that shells read."""
    if text.isprintable():
        return shlex.quote(text)
    plain = (c if c.isprintable() and c not in "'\\" else _spell(c) for c in text)
    return f"$'{''.join(plain)}'"


def _spell(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def describe_changes(changes: Mapping[str, Any]) -> Iterator[str]:
    """What ``compare_episodes`` found, in lines."""
    tracks, faces, clusters = changes["tracks"], changes["faces"], changes["clusters"]
    yield f"tracks: {tracks['before']} -> {tracks['after']}"
    for split in tracks["split"]:
        yield f"  {split['track_id']} split: {', '.join(map(str, split['pieces']))} new"
    if tracks["gone"]:
        yield f"  gone: {', '.join(map(str, tracks['gone']))}"
    yield f"faces with an embedding: {faces['before']} -> {faces['after']}"
    for reason, count in faces["dropped_by_reason"].items():
        yield f"  {count} dropped: {reason}"
    for what in ("recovered", "reembedded", "new", "gone"):
        if faces[what]:
            yield f"  {faces[what]} {what}"
    yield f"identities: {clusters['before']} -> {clusters['after']}"
    for merge in clusters["merged"]:
        yield f"  {merge['identity_id']} merged from {', '.join(merge['from'])}"
    for division in clusters["divided"]:
        yield f"  {division['identity_id']} divided into {', '.join(division['into'])}"
    if changes["labels"]:
        yield "labels:"
    for label in changes["labels"]:
        yield f"  {label['identity_id']}: {_label_of(label['before'])} -> {_label_of(label['after'])}"
    yield "metrics:"
    for name, (before, after) in changes["metrics"].items():
        yield f"  {name}: {before:g} -> {after:g}"


def _label_of(label: Mapping[str, Any]) -> str:
    known = dict.fromkeys(str(label[key]) for key in ("name", "person_id") if label[key] is not None)
    return (" ".join(known) or "nobody") + (" (locked)" if label["is_locked"] else "")
