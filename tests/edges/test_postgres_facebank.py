"""The Facebank on a real PostgreSQL: seeds in, matches out, and clear words when it cannot."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cleanup.edges.embedded_postgres import open_embedded_facebank
from cleanup.edges.postgres_facebank import PostgresFacebank, Seed
from cleanup.edges.root_path import RootPath
from cleanup.edges.seed_index import find_candidates
from cleanup.errors import FacebankError
from tests.builders import make_faces, make_people
from tests.conftest import copy_data

PEOPLE = make_people(3, 32).astype(np.float32)


def make_seed(person: int, number: int = 0, dimension: int = 32) -> Seed:
    vector = make_faces(make_people(3, dimension)[person], 1, 0.2, number)[0].astype(np.float32)
    return Seed(f"p{person}", f"P {person}", f"{number}.jpg", f"digest-{person}-{number}", vector, 0.9)


@pytest.fixture
def facebank(tmp_path: Path) -> Iterator[PostgresFacebank]:
    with open_embedded_facebank(RootPath.of_file(tmp_path / "facebank" / "postgres")) as opened:
        yield opened


def test_the_nearest_person_comes_first(facebank: PostgresFacebank) -> None:
    facebank.enroll("show", "m", "sha", [make_seed(p, n) for p in range(3) for n in range(2)])

    matches = facebank.match("show", "m", PEOPLE[[2, 0]])

    assert [(m.index, m.person_id) for m in matches if m.similarity > 0.9] == [(0, "p2"), (1, "p0")]
    assert len(matches) == 6
    assert {m.n_seeds for m in matches} == {2}


def test_a_similarity_is_the_cosine_to_the_best_seed(facebank: PostgresFacebank) -> None:
    seeds = [make_seed(0, n) for n in range(3)]
    facebank.enroll("show", "m", "sha", seeds)

    [match] = facebank.match("show", "m", PEOPLE[:1])

    assert match.similarity == pytest.approx(max(float(s.embedding @ PEOPLE[0]) for s in seeds), abs=1e-5)


def test_enrolling_twice_adds_nothing(facebank: PostgresFacebank) -> None:
    assert facebank.enroll("show", "m", "sha", [make_seed(0), make_seed(1)]) == 2
    assert facebank.enroll("show", "m", "sha", [make_seed(0), make_seed(1)]) == 0
    assert [(p.person_id, p.n_seeds) for p in facebank.list_people("show")] == [("p0", 1), ("p1", 1)]


def test_another_show_knows_nobody(facebank: PostgresFacebank) -> None:
    facebank.enroll("show", "m", "sha", [make_seed(0)])

    assert facebank.match("other", "m", PEOPLE[:1]) == []


@pytest.mark.parametrize(("model", "dimension"), [("another", 32), ("m", 16)])
def test_another_model_or_dimension_is_refused_with_both_names(
    facebank: PostgresFacebank, model: str, dimension: int
) -> None:
    facebank.enroll("show", "m", "sha", [make_seed(0)])

    with pytest.raises(FacebankError, match=rf"m \(32 dimensions\).*{model} \({dimension}"):
        facebank.match("show", model, make_people(1, dimension).astype(np.float32))


def test_a_removed_person_is_gone_with_all_seeds(facebank: PostgresFacebank) -> None:
    facebank.enroll("show", "m", "sha", [make_seed(0), make_seed(0, 1), make_seed(1)])

    assert facebank.remove("show", "p0", "me") == 2
    assert [p.person_id for p in facebank.list_people()] == ["p1"]
    with pytest.raises(FacebankError, match="has no person 'p0'"):
        facebank.remove("show", "p0", "me")


def test_what_was_enrolled_is_there_after_the_server_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "facebank" / "postgres"
    with open_embedded_facebank(RootPath.of_file(folder)) as first:
        first.enroll("show", "m", "sha", [make_seed(0)])
    with open_embedded_facebank(RootPath.of_file(folder)) as again:
        assert len(again.list_people()) == 1


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(FacebankError, match="does not answer") as caught:
        PostgresFacebank("postgresql://me:s3cret@127.0.0.1:9/none").check()

    assert "s3cret" not in str(caught.value)


def enroll_in_a_process(folder: str, number: int) -> None:
    with open_embedded_facebank(RootPath.of_file(Path(folder))) as opened:
        opened.enroll("show", "m", "sha", [make_seed(0, n) for n in range(number, number + 3)])


def test_commands_that_run_at_once_share_the_embedded_server(tmp_path: Path) -> None:
    """Two processes start, migrate and stop the same embedded server at the same time."""
    folder = tmp_path / "facebank" / "postgres"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=enroll_in_a_process, args=(str(folder), n)) for n in (0, 2, 4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)

    assert [p.exitcode for p in processes] == [0, 0, 0]
    with open_embedded_facebank(RootPath.of_file(folder)) as opened:
        assert opened.list_people()[0].n_seeds == 7


def test_a_copied_data_root_works_and_leaves_the_original_alone(tmp_path: Path) -> None:
    """Copied by root, the files belong to root; copied while the server runs, its note speaks of the original's."""
    folder = tmp_path / "facebank" / "postgres"
    with open_embedded_facebank(RootPath.of_file(folder)) as original:
        original.enroll("show", "m", "sha", [make_seed(0)])
    copied = copy_data(tmp_path / "facebank", tmp_path / "copy") / "postgres"
    with open_embedded_facebank(RootPath.of_file(folder)) as original:
        (copied / "postmaster.pid").write_bytes((folder / "postmaster.pid").read_bytes())
        with open_embedded_facebank(RootPath.of_file(copied)) as copy:
            copy.enroll("show", "m", "sha", [make_seed(1)])
            assert [p.person_id for p in copy.list_people()] == ["p0", "p1"]
        assert [p.person_id for p in original.list_people()] == ["p0"]


def test_a_killed_command_does_not_keep_the_server_running(tmp_path: Path) -> None:
    folder = tmp_path / "facebank" / "postgres"
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom cleanup.edges.embedded_postgres import open_embedded_facebank\nfrom cleanup.edges.root_path import RootPath\n"
        "with open_embedded_facebank(RootPath.of_file(Path(sys.argv[1]))):\n    os.kill(os.getpid(), 9)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-9, "", "")

    deadline = time.monotonic() + 20
    while list_processes(folder):
        assert time.monotonic() < deadline, "somebody stops it soon"
        time.sleep(0.05)
    with open_embedded_facebank(RootPath.of_file(folder)) as opened:
        assert opened.list_people() == []


def test_a_data_root_that_is_removed_leaves_no_server(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "postgres"
    code = (
        "import os, shutil, sys\nfrom pathlib import Path\n"
        "from cleanup.edges.embedded_postgres import open_embedded_facebank\nfrom cleanup.edges.root_path import RootPath\n"
        "with open_embedded_facebank(RootPath.of_file(Path(sys.argv[1]))):\n"
        "    shutil.rmtree(Path(sys.argv[1]).parent)\n    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == -9

    deadline = time.monotonic() + 10
    while list_processes(folder):
        assert time.monotonic() < deadline, "stopped sooner than PostgreSQL notices by itself"
        time.sleep(0.05)


def list_processes(folder: Path) -> list[list[str]]:
    """Processes that work in a folder: the server, and who watches over it."""
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [command for command in commands if str(folder) in command]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try it as somebody else")
def test_nobody_else_on_the_machine_is_let_in(tmp_path: Path) -> None:
    """Nobody else reaches the sockets; who would is asked who it is."""
    folder = tmp_path / "facebank" / "postgres"

    def try_as_nobody(dsn: str, said: Connection) -> None:
        os.setuid(65534)
        try:
            psycopg.connect(make_conninfo(dsn, requirepeer=""))
        except psycopg.OperationalError as error:
            said.send(str(error))

    hearing, saying = multiprocessing.Pipe(duplex=False)
    with open_embedded_facebank(RootPath.of_file(folder)) as opened:
        sockets = Path(str(conninfo_to_dict(opened.dsn)["host"]))
        assert {p.stat().st_mode & 0o777 for p in (sockets, sockets.parent)} == {0o700}
        for expected in ("Permission denied", "Peer authentication failed"):
            stranger = multiprocessing.get_context("fork").Process(target=try_as_nobody, args=(opened.dsn, saying))
            stranger.start()
            stranger.join(30)
            assert hearing.poll() and expected in hearing.recv()
            sockets.chmod(0o755)
            sockets.parent.chmod(0o755)
        sockets.parent.chmod(0o700)
        with pytest.raises(psycopg.OperationalError, match="requirepeer"):
            psycopg.connect(opened.dsn, requirepeer="nobody")

    assert not sockets.exists()


def test_a_server_is_stopped_by_its_last_user_only(tmp_path: Path) -> None:
    folder = tmp_path / "facebank" / "postgres"
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom cleanup.edges.embedded_postgres import open_embedded_facebank\nfrom cleanup.edges.root_path import RootPath\n"
        "with open_embedded_facebank(RootPath.of_file(Path(sys.argv[1]))):\n    os.kill(os.getpid(), 9)\n"
    )
    with open_embedded_facebank(RootPath.of_file(folder)) as opened:
        subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
        time.sleep(1.0)
        assert opened.list_people() == []

    assert not (folder / "postmaster.pid").exists()


def test_the_two_nearest_seeds_of_each_person_are_found(facebank: PostgresFacebank) -> None:
    """Against a plain comparison of all pairs, with people of one, two and many seeds."""
    seeds = [make_seed(p, n) for p, count in ((0, 1), (1, 2), (2, 9)) for n in range(count)]
    facebank.enroll("show", "m", "sha", seeds)

    for match in facebank.match("show", "m", PEOPLE):
        own = sorted(float(s.embedding @ PEOPLE[match.index]) for s in seeds if s.person_id == match.person_id)
        assert match.n_seeds == len(own)
        assert match.similarity == pytest.approx(own[-1], abs=1e-5)
        if len(own) == 1:
            assert match.second_similarity is None
        else:
            assert match.second_similarity == pytest.approx(own[-2], abs=1e-5)


def draw_many(show: str, n_people: int, n_each: int, seed: int) -> list[Seed]:
    """Seeds of many people of a show; ``seed`` draws the people."""
    people = make_people(n_people, 32, seed)
    return [
        Seed(f"{show}-{p}", f"P {p}", f"{n}.jpg", f"{show}-{p}-{n}", faces[n].astype(np.float32), 0.9)
        for p in range(n_people)
        for faces in [make_faces(people[p], n_each, 0.2, p)]
        for n in range(n_each)
    ]


def test_beyond_the_exact_limit_an_index_finds_the_same_people(facebank: PostgresFacebank) -> None:
    indexed = PostgresFacebank(facebank.dsn, max_exact_seeds=1000)
    indexed.enroll("show", "m", "sha", draw_many("show", 600, 3, 1))
    centroids = make_people(600, 32, 1)[:50].astype(np.float32)

    exact, found = facebank.match("show", "m", centroids), indexed.match("show", "m", centroids)

    assert len(found) == len(exact) == 50 * 50
    for place in range(50):
        nearest = [[m for m in matches if m.index == place][:3] for matches in (exact, found)]
        assert [(m.person_id, m.similarity, m.second_similarity) for m in nearest[1]] == [
            (m.person_id, m.similarity, m.second_similarity) for m in nearest[0]
        ]


def test_a_search_among_the_seeds_of_a_small_show_always_finds_as_many_as_asked(facebank: PostgresFacebank) -> None:
    # The index holds all shows; the seeds nearest to the centroids belong to the large one.
    indexed = PostgresFacebank(facebank.dsn, max_exact_seeds=1000)
    indexed.enroll("large", "m", "sha", draw_many("large", 700, 3, 1))
    indexed.enroll("small", "m", "sha", draw_many("small", 40, 3, 2))
    centroids = make_people(700, 32, 1)[:20].astype(np.float32)

    with indexed.transaction() as connection:
        people = find_candidates(connection, "small", "m", centroids, 120)

    assert people == {f"small-{p}" for p in range(40)}


def test_without_an_index_no_candidates_are_made_up(facebank: PostgresFacebank) -> None:
    facebank.enroll("show", "m", "sha", [make_seed(0)])

    with facebank.transaction() as connection:
        assert find_candidates(connection, "show", "m", PEOPLE[:1], 1) is None
