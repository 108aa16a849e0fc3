"""Which process is meant: alive, ended, somebody else with its number, or one of another place."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil  # noqa: F401 -- before a test says that this is another system
import pytest

from cleanup.edges.process_identity import ProcessIdentity


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def test_a_process_is_known_again_from_its_record_until_it_ends(sleeper: subprocess.Popen[bytes]) -> None:
    identity = ProcessIdentity.from_json(json.loads(json.dumps(ProcessIdentity.of(sleeper.pid).to_json())))

    assert identity == ProcessIdentity.of(sleeper.pid) and identity.is_here and identity.is_alive()
    assert not identity.wait(0.05)
    assert identity.send(signal.SIGTERM)
    assert identity.wait(10) and not identity.is_alive()  # ended, and its parent has not asked for it yet
    assert sleeper.wait() == -signal.SIGTERM
    assert not identity.is_alive() and not identity.send(signal.SIGTERM)
    with pytest.raises(ProcessLookupError):
        ProcessIdentity.of(sleeper.pid)


@pytest.mark.parametrize("other", [{"start_ticks": 1}, {"boot_id": "another machine"}, {"pid_namespace": 1}])
def test_nobody_who_merely_has_the_number_is_signalled(sleeper: subprocess.Popen[bytes], other: dict[str, Any]) -> None:
    stranger = dataclasses.replace(ProcessIdentity.of(sleeper.pid), **other)

    assert not stranger.is_alive() and not stranger.send(signal.SIGKILL) and stranger.wait(0)
    time.sleep(0.1)
    assert sleeper.poll() is None


def test_without_handles_a_process_is_compared_before_it_is_signalled(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    identity = ProcessIdentity.of(sleeper.pid)

    assert not dataclasses.replace(identity, start_ticks=1).send(signal.SIGKILL) and not identity.wait(0.05)
    assert identity.send(signal.SIGKILL) and identity.wait(10)


def test_another_system_tells_processes_apart_by_their_time_of_start(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    identity = ProcessIdentity.of(sleeper.pid)

    assert identity.is_alive() and not dataclasses.replace(identity, start_ticks=identity.start_ticks + 1).is_alive()
    assert identity != dataclasses.replace(
        identity, pid=os.getpid(), start_ticks=ProcessIdentity.of(os.getpid()).start_ticks
    )


@pytest.mark.parametrize(
    "change",
    [{"pid": 0}, {"pid": -1}, {"pid": "1"}, {"pid": True}, {"pid": 1 << 70}, {"boot_id": ""}, {"boot_id": 5},
     {"start_ticks": 1.5}, {"more": 1}, None],
)  # fmt: skip
def test_a_record_that_is_none_is_refused(change: dict[str, Any] | None) -> None:
    record = ProcessIdentity.of(os.getpid()).to_json()
    with pytest.raises(ValueError, match="process"):
        ProcessIdentity.from_json([record] if change is None else record | change)
