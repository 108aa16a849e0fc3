"""One person twice in a frame, and twins: a question that keeps nobody else apart, answered by a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from cleanup import schemas
from cleanup.edges.artifact_files import EpisodePaths
from cleanup.edges.artifact_reading import read_episode
from cleanup.edges.root_path import RootPath
from cleanup.episode import Episode
from cleanup.phases.human_verdicts import inherit_verdicts, join_identities, read_verdicts, say_two_people
from cleanup.phases.recluster import recluster
from cleanup.resolve_settings import resolve_for_run
from tests.builders import write_episode

# Pairs of people in one frame, each person three times and more; then each of four beside their reflection, twice.
SHOTS = [f"{a}{b}" for a, b in zip("abcdefabcdefab", "bcdefabcdefabc", strict=True)]
MIRRORED = ["aa", "bb", "cc", "dd", "aa", "bb", "cc", "dd"]
SETTINGS = resolve_for_run({}, None, None).settings


def build(root: Path, shots: list[str], dialect: str = "emitted", **options: Any) -> Episode:
    """Two tracks per shot, side by side: 1 and 2, 3 and 4, ..."""
    people = [(person,) for shot in shots for person in shot]
    return read(root, write_episode(root, dialect, people, together=range(1, len(people), 2), **options))


def read(root: Path, ep_id: str) -> Episode:
    return read_episode(EpisodePaths(RootPath(root), ep_id))


def cluster(episode: Episode) -> tuple[Episode, dict[str, Any]]:
    return recluster(episode, SETTINGS.recluster, SETTINGS.pooling)


def who_is_where(episode: Episode, shots: list[str]) -> dict[str, list[str]]:
    """Identity -> its tracks, as the person and, for a reflection, a dash."""
    names = [name for a, b in shots for name in (a, b + "-" if a == b else b)]
    return {r["identity_id"]: sorted(names[t - 1] for t in r["track_ids"]) for r in episode.identities.to_pylist()}


@pytest.mark.parametrize("push", [0.0, 2.4], ids=["ordinary", "strangers near 0.86"])
@pytest.mark.parametrize("dialect", ["emitted", "documented"])
def test_a_reflection_stays_by_itself_and_keeps_no_other_tracks_apart(
    tmp_path: Path, dialect: str, push: float
) -> None:
    shots = SHOTS + MIRRORED
    episode, report = cluster(build(tmp_path / "mirrored", shots, dialect, push=push))
    _, without = cluster(build(tmp_path / "plain", SHOTS + [s[0] + "f" for s in MIRRORED], dialect, push=push))

    assert sorted(map(set, who_is_where(episode, shots).values()), key=sorted) == [
        {name} for name in ("a", "a-", "b", "b-", "c", "c-", "d", "d-", "e", "f")
    ]
    cuts = [r["thresholds"]["cluster_thresh"] for r in (report, without)]
    assert [cut["source"] for cut in cuts] == ["episode", "episode"]
    assert cuts[0]["value"] == pytest.approx(cuts[1]["value"], abs=0.02)
    assert [q["track_ids"] for q in report["questions"]] == [[[29 + i, 30 + i], [37 + i, 38 + i]] for i in (0, 2, 4, 6)]
    assert all(q["frames_shared"] > 20 and q["similarity"] > 0.9 for q in report["questions"])
    assert "4 pairs of identities may be one person" in report["warnings"][0]
    assert cluster(episode)[0].identities.equals(episode.identities)


def test_where_nobody_else_shares_a_frame_a_reflection_is_a_question_too(tmp_path: Path) -> None:
    shots = ["aa", "bb", "aa"]
    episode, report = cluster(build(tmp_path, shots))

    assert sorted(map(set, who_is_where(episode, shots).values()), key=sorted) == [{"a"}, {"a-"}, {"b"}, {"b-"}]
    assert len(report["questions"]) == 2


def test_a_face_found_twice_is_one_person_though_its_boxes_drift_apart_now_and_then(tmp_path: Path) -> None:
    people = [(person,) for shot in SHOTS for person in shot] + [("a",), ("a",)]
    ep_id = write_episode(tmp_path, "emitted", people, together=range(1, len(people) - 2, 2), doubled=[len(people) - 1])
    episode = read(tmp_path, ep_id)
    boxes = episode.boxes.to_pylist()
    for box in [b for b in boxes if b["track_id"] == len(people)][::4]:
        box["bbox"] = [box["bbox"][0] + 60, box["bbox"][1], box["bbox"][2] + 60, box["bbox"][3]]
    episode, report = cluster(episode.replace(boxes=schemas.build_table(boxes, schemas.BOX_SCHEMA)))

    owner = {t: r["identity_id"] for r in episode.identities.to_pylist() for t in r["track_ids"]}
    assert owner[len(people)] == owner[len(people) - 1] == owner[1]
    assert report["questions"] == []


@pytest.mark.parametrize("dialect", ["emitted", "documented"])
def test_what_a_person_says_stays(tmp_path: Path, dialect: str) -> None:
    shots = SHOTS + MIRRORED
    episode, report = cluster(build(tmp_path, shots, dialect))
    (a, a_double), (b, b_double) = (q["identity_ids"] for q in report["questions"][:2])

    told = join_identities(say_two_people(episode, b_double, b), a_double, a)
    again, report = cluster(told)

    before, after = who_is_where(episode, shots), who_is_where(again, shots)
    assert after.pop(a) == sorted(before.pop(a) + before.pop(a_double))
    assert after == before, "twins stay as they were"
    assert len(report["questions"]) == 2
    assert again.identity_document == told.identity_document
    assert cluster(again)[0].identities.equals(again.identities)

    taken_back, report = cluster(join_identities(again, b_double, b))
    assert who_is_where(taken_back, shots)[b] == sorted(before[b] + before[b_double])
    assert read_verdicts(taken_back).two_people == frozenset()


def test_a_verdict_passes_to_the_pieces_that_share_a_frame(tmp_path: Path) -> None:
    """Tracks 1 and 2 are twins; a run has split each of them: 5 was a part of 1, and 6 of 2."""
    first = build(tmp_path / "before", ["ab", "cd"])
    told = say_two_people(first, *first.identities["identity_id"].to_pylist()[:2])
    later = build(tmp_path / "after", ["ab", "cd", "ab"]).replace(identity_document=told.identity_document)

    inherited = inherit_verdicts(later, {1: [1, 5], 2: [2, 6]})

    assert read_verdicts(inherited).two_people == {(1, 2), (5, 6)}


@pytest.mark.parametrize("odd", [["x"], {"two_people": [[1, 99]]}, {"two_people": "1,2"}, {"one_person": [[1, 1], 3]}])
def test_a_verdict_that_names_nothing_is_kept_and_reported(tmp_path: Path, odd: Any) -> None:
    episode = build(tmp_path, ["ab"])
    document = {**orjson.loads(episode.identity_document), "seen_together": odd}
    changed, report = cluster(episode.replace(identity_document=orjson.dumps(document)))

    assert "kept, but not obeyed" in report["warnings"][0]
    assert orjson.loads(changed.identity_document)["seen_together"] == odd
