"""Anyone can go back: what runs changed is listed, shown, compared and undone, and going back can be undone, too."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.backups import BackupStore
from cleanup.edges.root_path import RootPath
from tests.builders import artifacts_of, snapshot, write_episode
from tests.entrypoints.test_cli import cleanup

PEOPLE = (("a", "b"), ("b",), ("a",))


@pytest.fixture(params=["documented", "emitted"])
def paths(tmp_path: Path, request: pytest.FixtureRequest) -> EpisodePaths:
    return EpisodePaths(RootPath(tmp_path), write_episode(tmp_path, request.param, PEOPLE))


def run(paths: EpisodePaths, *arguments: str) -> None:
    cleanup("run", "--ep-id", paths.ep_id, "--out-root", paths.root, "--write-back", "-q", *arguments)


def ask(paths: EpisodePaths, *arguments: str) -> Any:
    command = list(arguments)
    command.insert(2 if command[0] == "backups" else 1, paths.ep_id)
    return json.loads(cleanup(*command, "--out-root", paths.root, "--json").stdout)


def restore(paths: EpisodePaths, run_id: str) -> str:
    return cleanup("backups", "restore", paths.ep_id, run_id, "--out-root", paths.root).stdout


def test_to_every_earlier_state_and_back_again(paths: EpisodePaths) -> None:
    states = [snapshot(paths.manifests) | snapshot(paths.embeddings.parent)]
    run(paths, "--actions", "split_tracks")
    states.append(artifacts_of(paths.root, paths.ep_id))
    run(paths, "--actions", "recluster")
    states.append(artifacts_of(paths.root, paths.ep_id))
    listed = ask(paths, "backups", "list")
    assert [entry["made_by"] for entry in listed] == ["run", "run"]
    assert "identities.json" in listed[1]["changed"] and "tracks.jsonl" not in listed[1]["changed"]

    restore(paths, listed[0]["run_id"])
    assert {k: v for k, v in (snapshot(paths.manifests) | snapshot(paths.embeddings.parent)).items()
            if k != "cleanup_progress.json"} == states[0], "to the bit, and the report is gone as well"  # fmt: skip
    restore(paths, listed[1]["run_id"])
    assert artifacts_of(paths.root, paths.ep_id) == states[1]
    restore(paths, ask(paths, "backups", "list")[2]["run_id"])
    assert artifacts_of(paths.root, paths.ep_id) == states[2]
    assert "already" in restore(paths, ask(paths, "backups", "list")[2]["run_id"])
    run(paths, "--actions", "recluster")
    assert artifacts_of(paths.root, paths.ep_id) == states[2]


def test_the_way_back_that_is_shown_can_be_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my data").mkdir()
    paths = EpisodePaths(RootPath(tmp_path / "my data"), write_episode(tmp_path / "my data", "emitted", PEOPLE))
    monkeypatch.chdir(tmp_path)
    before = paths.tracks.read_bytes()
    ran = cleanup("run", "--ep-id", paths.ep_id, "--out-root", "my data", "--write-back", "--actions", "split_tracks")
    after = paths.tracks.read_bytes()

    back = cleanup(*_command_after("to go back: cleanup ", ran.stdout))
    assert paths.tracks.read_bytes() == before != after
    cleanup(*_command_after("to take that back: cleanup ", back.stdout))
    assert paths.tracks.read_bytes() == after


def _command_after(words: str, text: str) -> list[str]:
    return shlex.split(next(line for line in text.splitlines() if line.startswith(words)).removeprefix(words))


def test_what_a_run_changed_is_told(paths: EpisodePaths) -> None:
    run(paths, "--actions", "split_tracks,recluster")
    (backup,) = ask(paths, "backups", "list")

    changes = ask(paths, "diff")

    assert changes["runs"] == [backup["run_id"]]
    assert changes["tracks"] == {"before": 3, "after": 4, "split": [{"track_id": 1, "pieces": [4]}], "gone": []}
    assert changes["faces"]["dropped_by_reason"] == {} and changes["faces"]["gone"] == 0
    assert changes["clusters"]["before"] == 3 and changes["clusters"]["after"] == 2
    assert len(changes["clusters"]["merged"]) == 2 and len(changes["clusters"]["divided"]) == 1
    assert changes["metrics"]["id_switch_rate"] == [pytest.approx(0.3333), 0.0]
    assert ask(paths, "diff", backup["run_id"]) == changes
    back = ask(paths, "backups", "diff", backup["run_id"])
    assert back["tracks"] == {"before": 4, "after": 3, "split": [], "gone": [4]}
    text = cleanup("diff", paths.ep_id, "--out-root", paths.root).stdout
    assert "tracks: 3 -> 4" in text and "1 split: 4 new" in text and "id_switch_rate: 0.3333 -> 0" in text


def test_two_runs_are_compared_by_what_they_left(paths: EpisodePaths) -> None:
    run(paths, "--actions", "split_tracks")
    run(paths, "--actions", "recluster")
    cleanup("people", "lock", paths.ep_id, next(iter(_identities(paths))), "--out-root", paths.root)
    first, second, third = (entry["run_id"] for entry in ask(paths, "backups", "list"))

    assert ask(paths, "diff", first, second)["tracks"]["split"] == []
    assert ask(paths, "diff", first, second)["clusters"]["after"] == 2
    (label,) = ask(paths, "diff", second, third)["labels"]
    assert (label["before"]["is_locked"], label["after"]["is_locked"]) == (False, True)
    assert ask(paths, "diff", third, first)["tracks"]["gone"] == []


def _identities(paths: EpisodePaths) -> list[str]:
    return [entry["identity_id"] for entry in json.loads(paths.identities.system_path.read_text())["identities"]]


def test_show_says_where_everything_is(paths: EpisodePaths) -> None:
    old = paths.tracks.read_bytes()
    run(paths, "--actions", "split_tracks")
    (backup,) = ask(paths, "backups", "list")

    shown = cleanup("backups", "show", paths.ep_id, backup["run_id"], "--out-root", paths.root).stdout
    line = next(line for line in shown.splitlines() if "tracks.jsonl" in line)

    assert Path(line.rsplit(" in ", 1)[1]).read_bytes() == old
    assert "cleanup_report.json: not there before" in shown
    assert ask(paths, "backups", "show", backup["run_id"])["made_by"] == "run"


def test_so_many_are_kept_and_always_the_episode_as_it_came(paths: EpisodePaths) -> None:
    original = paths.identities.read_bytes()
    for cut in ("0.2", "0.9", "0.3", "0.95", "0.25"):
        run(paths, "--actions", "recluster", "--cluster-thresh", cut, "--keep-backups", "2")

    listed = ask(paths, "backups", "list")
    assert len(listed) == 3
    restore(paths, listed[0]["run_id"])
    assert paths.identities.read_bytes() == original
    pruned = cleanup("backups", "prune", paths.ep_id, "--drop-first", "--keep-backups", "1", "--out-root", paths.root)
    assert "3 backups removed" in pruned.stdout and "1 are kept" in pruned.stdout
    assert len(ask(paths, "backups", "list")) == 1


def test_what_is_not_there_is_said(paths: EpisodePaths) -> None:
    where = ("--out-root", str(paths.root))
    assert "nothing was ever written back" in cleanup("backups", "list", paths.ep_id, *where).stderr
    assert "nothing to compare" in cleanup("diff", paths.ep_id, *where, code=2).stderr
    unknown = "20260101T000000.000000Z-1"
    for command in ("show", "diff", "restore"):
        assert f"no backup of run {unknown}" in cleanup("backups", command, paths.ep_id, unknown, *where, code=2).stderr
        bad = cleanup("backups", command, paths.ep_id, "../x", *where, code=2).stderr
        assert "run '../x' is not of the form" in bad
    assert "no such episode" in cleanup("backups", "list", "none-s01e01", *where, code=2).stderr


def test_a_content_that_another_program_took_away_is_not_replaced_by_a_mix(paths: EpisodePaths) -> None:
    """The run left faces.jsonl alone, so it was not kept; then somebody else wrote it."""
    run(paths, "--actions", "recluster")
    (backup,) = BackupStore(paths).list_backups()
    assert paths.name_of(paths.faces) not in backup.changed
    paths.faces.write_bytes(paths.faces.read_bytes().replace(b"12", b"13", 1))
    before = artifacts_of(paths.root, paths.ep_id)

    result = cleanup("backups", "restore", paths.ep_id, backup.run_id, "--out-root", paths.root, code=2)

    assert "faces.jsonl as it was is not kept: another program has changed it since" in result.stderr
    assert artifacts_of(paths.root, paths.ep_id) == before
