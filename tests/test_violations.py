"""A result that breaks an invariant is our fault: nothing is written, and what is needed to find it is kept.

The fault itself is what is simulated: a phase that loses something.
"""

from __future__ import annotations

import errno
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from cleanup import run as run_module
from cleanup import schemas
from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.root_path import RootPath
from cleanup.episode import Episode
from cleanup.errors import InvariantError
from tests.builders import artifacts_of, write_episode
from tests.entrypoints.test_cli import cleanup

Break = Callable[[Episode], Episode]


def without_track(episode: Episode) -> Episode:
    tracks = episode.tracks.filter(pc.not_equal(episode.tracks["track_id"], 2))
    return episode.replace(tracks=tracks)


def without_face(episode: Episode) -> Episode:
    return episode.replace(faces=episode.faces.slice(1))


def without_box(episode: Episode) -> Episode:
    return episode.replace(boxes=episode.boxes.slice(1))


def with_a_box_of_another_track(episode: Episode) -> Episode:
    tracks = episode.boxes["track_id"].to_pylist()
    return episode.replace(boxes=schemas.set_column(episode.boxes, "track_id", [3, *tracks[1:]]))


def with_a_silent_face(episode: Episode) -> Episode:
    is_kept = np.arange(len(episode.faces)) > 0
    vectors = schemas.spread_embeddings(schemas.embeddings_of(episode.faces)[is_kept], is_kept)
    place = episode.faces.schema.get_field_index("embedding")
    return episode.replace(faces=episode.faces.set_column(place, episode.faces.schema.field("embedding"), vectors))


def with_a_face_elsewhere(episode: Episode) -> Episode:
    tracks = episode.faces["track_id"].to_pylist()
    return episode.replace(faces=schemas.set_column(episode.faces, "track_id", [3, *tracks[1:]]))


def identities(episode: Episode, change: Callable[[list[dict[str, Any]]], Any]) -> Episode:
    rows = episode.identities.to_pylist()
    change(rows)
    return episode.replace(identities=schemas.build_table(rows, schemas.IDENTITY_SCHEMA))


def with_an_ownerless_track(episode: Episode) -> Episode:
    return identities(episode, lambda rows: rows[0]["track_ids"].pop())


def with_a_track_twice(episode: Episode) -> Episode:
    return identities(episode, lambda rows: rows[0]["track_ids"].append(rows[1]["track_ids"][0]))


def with_a_robbed_lock(episode: Episode) -> Episode:
    return identities(episode, lambda rows: next(r for r in rows if r["is_locked"]).update(is_locked=False))


def with_an_empty_box(episode: Episode) -> Episode:
    """Nothing is lost, but what is written could not be read again."""
    boxes = episode.faces["bbox"].to_pylist()
    boxes[0] = [0.5, 0.5, 0.4, 0.4]
    return episode.replace(faces=schemas.set_column(episode.faces, "bbox", boxes))


CASES = [
    (without_track, "tracks [2] are lost"),
    (without_face, "1 faces are lost, face-00001 among them"),
    (without_box, "are not those of their pieces"),
    (with_a_box_of_another_track, "are not those of their pieces"),
    (with_a_silent_face, "1 faces lost their embedding without a reason, face-00001 among them"),
    (with_a_face_elsewhere, "1 faces are in another track, face-00001 among them"),
    (with_an_ownerless_track, "are in no identity"),
    (with_a_track_twice, "are in two identities"),
    (with_a_robbed_lock, "locked identity identity-00001 lost tracks"),
    (with_an_empty_box, "has an empty box"),
]


@pytest.mark.parametrize(("broken", "message"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_nothing_is_written_and_a_bundle_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Break, message: str
) -> None:
    ep_id = write_episode(tmp_path, "documented", (("a",), ("b",), ("a",)), locked=[0])
    before = artifacts_of(tmp_path, ep_id)
    real = run_module.PHASES["recluster"]

    def faulty(episode: Episode, *arguments: Any) -> tuple[Episode, dict[str, Any]]:
        refined, outcome = real(episode, *arguments)
        return broken(refined), outcome

    monkeypatch.setattr(run_module, "PHASES", {**run_module.PHASES, "recluster": faulty})
    monkeypatch.setattr(run_module, "refresh_identity_figures", lambda episode, *_: episode)
    result = cleanup(
        "run", "--ep-id", ep_id, "--out-root", tmp_path, "--actions", "recluster", "--write-back", "-q", code=1
    )

    assert len(result.stderr.strip().splitlines()) == 1
    assert message in result.stderr
    assert (
        "nothing was written" in result.stderr and "this is a fault of the program: please report it" in result.stderr
    )
    assert artifacts_of(tmp_path, ep_id) == before
    assert not list(tmp_path.rglob("*.staged"))
    bundle = Path(result.stderr.split("please report it with ")[1].split(",")[0])
    with tarfile.open(bundle) as archive:
        names = archive.getnames()
        about = json.loads(archive.extractfile("violation.json").read())  # type: ignore[union-attr]
    assert {"source/tracks.jsonl", "source/faces.jsonl", "source/faces.npy", "source/identities.json"} <= set(names)
    assert ("result/faces.jsonl" in names) == (broken is with_an_empty_box)
    assert about["problems"] and about["settings"]["cluster_thresh"] and about["packages"]["numpy"]
    progress = json.loads(EpisodePaths(RootPath(tmp_path), ep_id).progress.read_bytes())
    assert progress["phase"] == "failed" and str(bundle) in progress["error"]
    monkeypatch.undo()
    cleanup("run", "--ep-id", ep_id, "--out-root", tmp_path, "--actions", "recluster", "--write-back", "-q")


def test_a_violation_crosses_processes_with_all_its_problems() -> None:
    error = pickle.loads(pickle.dumps(InvariantError("one line", ["a", "b"])))

    assert (str(error), error.problems, error.exit_code) == ("one line", ("a", "b"), 1)


def test_a_bundle_that_cannot_be_kept_does_not_hide_the_violation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk being full is what is simulated, at the moment the bundle is written."""
    ep_id = write_episode(tmp_path, "documented", (("a",), ("b",)))
    before = artifacts_of(tmp_path, ep_id)
    real = run_module.PHASES["recluster"]

    def faulty(*arguments: Any) -> tuple[Episode, dict[str, Any]]:
        refined, outcome = real(*arguments)
        return without_face(refined), outcome

    def fill(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "violation.tar.gz")

    monkeypatch.setattr(run_module, "PHASES", {**run_module.PHASES, "recluster": faulty})
    monkeypatch.setattr("cleanup.entrypoints.episode_output.save_bundle", fill)
    result = cleanup(
        "run", "--ep-id", ep_id, "--out-root", tmp_path, "--actions", "recluster", "--write-back", "-q", code=1
    )

    assert "1 faces are lost" in result.stderr
    assert "no bundle could be kept: violation.tar.gz: No space left on device" in result.stderr
    assert artifacts_of(tmp_path, ep_id) == before
