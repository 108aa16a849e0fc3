"""The audit of dependencies that CI runs, on what pip-audit says; the database itself is not asked here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

KNOWN = {"name": "numpy", "version": "2.4.0", "vulns": []}
BAD = {"name": "pyyaml", "version": "6.0", "vulns": [{"id": "PYSEC-0000-1", "fix_versions": ["6.1"], "aliases": []}]}
UNKNOWN = {"name": "ray", "skip_reason": "could not be found"}


def audit(tmp_path: Path, answer: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs it with a uv that exports nothing and answers for pip-audit."""
    uv = tmp_path / "uv"
    uv.write_text(
        f"#!{sys.executable}\nimport sys\nif sys.argv[1] == 'run':\n    print({answer!r})\n    sys.exit({code})\n"
    )
    uv.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run(
        [sys.executable, ROOT / ".ci" / "audit"], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([KNOWN, UNKNOWN], 0, "audit: 1 of 2 packages asked about, 0 vulnerabilities\n"),
        (
            [KNOWN, BAD],
            1,
            "audit: pyyaml 6.0: PYSEC-0000-1, fixed in 6.1\naudit: 2 of 2 packages asked about, 1 vulnerabilities\n",
        ),
        ([UNKNOWN], 0, "audit: SKIPPED, the database of vulnerabilities knows none of the 1 packages from here\n"),
    ],
)
def test_what_is_known_fails_and_what_was_not_asked_is_said(
    tmp_path: Path, packages: list[dict[str, Any]], code: int, said: str
) -> None:
    done = audit(tmp_path, json.dumps({"dependencies": packages, "fixes": []}), code)

    assert (done.returncode, done.stdout) == (code, said)


def test_a_database_that_cannot_be_asked_is_said(tmp_path: Path) -> None:
    done = audit(tmp_path, "", 1)

    assert done.returncode == 0 and done.stdout.startswith("audit: SKIPPED, the database")


def test_an_audit_that_cannot_run_fails(tmp_path: Path) -> None:
    assert audit(tmp_path, "", 2).returncode == 1
