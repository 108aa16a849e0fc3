"""The core does not know the outside world."""

from __future__ import annotations

import subprocess
import sys

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
