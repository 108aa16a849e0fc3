"""The core does not know the outside world."""

from __future__ import annotations

import ast
import subprocess
import sys

from tests.conftest import ROOT

HEAVY = ("ray", "cv2", "av", "onnxruntime", "insightface", "psycopg", "cleanup.edges")


def imported_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_core_imports_no_edge() -> None:
    assert not imported_by("import cleanup.run, cleanup.report, cleanup.resolve_settings") & set(HEAVY)


def test_help_loads_nothing_heavy() -> None:
    modules = imported_by("from cleanup.entrypoints.cli import app")

    assert not modules & {*HEAVY, "numpy", "pyarrow", "scipy", "sklearn"}


def test_the_local_engine_does_not_import_ray() -> None:
    assert "ray" not in imported_by("import cleanup.entrypoints.episode_job")


def test_errors_survive_pickling() -> None:
    import pickle

    from cleanup import errors

    for error in (errors.ArtifactError, errors.VideoError, errors.ModelError, errors.EngineError, errors.FacebankError):
        copy = pickle.loads(pickle.dumps(error("what, where, what to do")))
        assert (type(copy), str(copy)) == (error, "what, where, what to do")


# Whatever opens, makes or removes files by their names, and which: nothing of it lies below a data root. Below one there
# is RootPath, which no such call takes.
OPENS_BY_NAME = {
    "edges/root_path.py": "the way to everything below a data root",
    "edges/cluster_folder.py": "PostgreSQL's data folder, from a handle that RootPath gave",
    "edges/cluster_mark.py": "the secret, in the user's state folder",
    "edges/embedded_postgres.py": "the server's sockets, in a private folder",
    "edges/postgres_keeper.py": "that private folder; /proc",
    "edges/postgres_programs.py": "PostgreSQL's programs and the cache they are copied to",
    "edges/process_identity.py": "/proc",
    "edges/lease.py": "/proc",
    "edges/data_root.py": "the cache of what lies behind URLs",
    "edges/remote_files.py": "that cache",
    "edges/remote_root.py": "copies from stream to stream",
    "edges/finished_run.py": "this package's source",
    "edges/model_files.py": "models",
    "edges/onnx_models.py": "models",
    "edges/onnx_sessions.py": "engines built from models",
    "edges/observation_worker.py": "videos",
    "edges/video_frames.py": "videos",
    "edges/frame_counts.py": "the cache of what was counted of videos",
    "edges/pictures.py": "photos",
    "edges/artifact_reading.py": "a handle that RootPath gave, by its number",
    "edges/seed_archive.py": "an archive that the user named",
    "edges/violation_bundle.py": "an archive on a stream that RootPath gave",
    "resolve_settings.py": "the configuration",
    "entrypoints/cli.py": "files that the user named",
    "entrypoints/doctor.py": "a video that the user named",
    "entrypoints/demo.py": "the demo's own folder, made anew each time",
    "entrypoints/episode_job.py": "a video that the user named",
    "entrypoints/facebank_cli.py": "photos that the user named, and a scratch folder for cut-out ones",
    "entrypoints/http_api.py": "the page",
    "entrypoints/job_process.py": "turns the API's argument into a RootPath",
    "entrypoints/process.py": "/dev/null, in place of streams that were closed",
    "entrypoints/serve.py": "models",
    "entrypoints/shell.py": "/dev/null",
}
# Who gives the name of a place below a data root away, and for what.
NAMES_A_PLACE = {
    "edges/root_path.py",
    "edges/data_root.py",  # the video, which may be a link on the command line
    "entrypoints/episode_job.py",  # the same
    "entrypoints/http_requests.py",  # the video of a request, which has been looked at
    "entrypoints/job_process.py",  # the same
    "entrypoints/job_requests.py",  # that look: does it lead out?
    "entrypoints/doctor.py",  # whether a root that is not there yet could be made
}
OF_OS = {"open", "replace", "rename", "link", "unlink", "remove", "mkdir", "makedirs", "scandir", "listdir", "chmod", "chown",
         "utime", "symlink", "rmdir", "walk", "stat", "lstat", "truncate"}  # fmt: skip


def opens_by_name(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in ("open", "Path"):
            return True
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            module, name = called.value.id, called.attr
            if (
                module in ("shutil", "tempfile", "tarfile")
                or (module == "os" and name in OF_OS)
                or (module == "np" and name in ("load", "save"))
            ):
                return True
    return False


def test_no_module_but_those_listed_opens_files_by_their_names() -> None:
    package = ROOT / "cleanup"
    trees = {p.relative_to(package).as_posix(): ast.parse(p.read_text()) for p in package.rglob("*.py")}

    assert {name for name, tree in trees.items() if opens_by_name(tree)} == set(OPENS_BY_NAME)
    names_a_place = {
        name
        for name, tree in trees.items()
        if any(isinstance(node, ast.Attribute) and node.attr == "system_path" for node in ast.walk(tree))
    }
    assert names_a_place == NAMES_A_PLACE
