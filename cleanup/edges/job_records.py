"""What the files in the folder of a job hold. They are read like any input: of any version, size and content."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError

from cleanup.edges.process_identity import ProcessIdentity
from cleanup.edges.records import take
from cleanup.edges.root_path import RootPath
from cleanup.errors import ArtifactError, DamagedJobError
from cleanup.input_limits import MAX_INTEGER, MAX_RECORD_BYTES
from cleanup.names import EP_ID_PATTERN, RUN_ID_PATTERN, EpId, RunId

VERSION = 1
EPISODE: Final = "episode"
SEASON: Final = "season"
QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELED = "queued", "running", "succeeded", "failed", "canceled"
ENDED = frozenset({SUCCEEDED, FAILED, CANCELED})
JOB_ID_PATTERN = r"[0-9]{8}T[0-9]{6}\.[0-9]{6}Z-[0-9a-f]{8}"
_RUN_ID = re.compile(RUN_ID_PATTERN)
# Jobs in the order in which they were asked for, also where the clock went back meanwhile.
Place = tuple[int, str]


@dataclass(frozen=True)
class Job:
    """A job as its folder tells it.

    Attributes:
        job_id: Its id.
        number: Counts the jobs of a data root; 0 of those made before they were counted.
        kind: ``episode`` or ``season``.
        ep_ids: The episodes, as asked for.
        requested: The options, as asked for.
        created_at: When it was asked for, ISO 8601.
        is_on_ray: Whether it is a job of a Ray cluster, and not a process of the API's host.
        key: The caller's Idempotency-Key, or None.
        state: ``queued``, ``running``, ``succeeded``, ``failed`` or ``canceled``.
        started_at: When its process began, or None.
        ended_at: When its end was noted, or None.
        where: Its process, for messages, or None.
        process: Its process while it runs, or None; of jobs of an older version never known.
        error: One line if it failed or was canceled, or None.
        run_id: The run it made of its episode, or None.
    """

    job_id: str
    number: int
    kind: str
    ep_ids: tuple[EpId, ...]
    requested: Mapping[str, Any]
    created_at: str
    is_on_ray: bool
    key: str | None
    state: str
    started_at: str | None
    ended_at: str | None
    where: str | None
    process: ProcessIdentity | None
    error: str | None
    run_id: RunId | None

    @property
    def place(self) -> Place:
        """Orders jobs: those of a larger place were asked for later."""
        return (self.number, self.job_id)

    @property
    def is_write_back(self) -> bool:
        """Whether it was to replace the artifacts."""
        return self.requested.get("write_back") is True


class Record(BaseModel):
    """A file of a job. What it holds beside the fields is of no meaning."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


_Option = bool | int | float | str | list[str] | None
_Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Episode = Annotated[EpId, Field(pattern=rf"^{EP_ID_PATTERN}$")]


class RequestRecord(Record):
    """``request.json``; the fields with fallbacks came later."""

    kind: Literal["episode", "season"]
    ep_ids: Annotated[list[_Episode], Field(min_length=1)]
    requested: dict[str, _Option]
    created_at: str
    is_on_ray: bool = False
    key: str | None = None
    number: _Count = 0


def _identity_of(value: Any) -> ProcessIdentity | None:
    return None if value is None else ProcessIdentity.from_json(value)


class ProcessRecord(Record):
    """``process.json``."""

    pid: int
    host: str
    started_at: str
    process: Annotated[ProcessIdentity | None, PlainValidator(_identity_of)] = None


class ProgressRecord(Record):
    """``progress.json`` of an episode or of a season; each has fields that the other one lacks."""

    phase: str | None = None
    phase_index: _Count = 0
    phase_total: _Count = 0
    phase_progress: _Share = 0.0
    total_elapsed_seconds: Annotated[float, Field(ge=0)] = 0.0
    message: str = ""
    items_done: _Count | None = None
    items_total: _Count | None = None
    eta_seconds: float | None = None
    updated_at: str | None = None
    episodes_done: _Count = 0
    progress: _Share = 0.0
    episodes: dict[str, dict[str, bool | int | float | str | None]] | None = None


def _run_id_of(value: Any) -> Any:
    return value if isinstance(value, str) and _RUN_ID.fullmatch(value) else None


class EndRecord(Record):
    """``end.json``. Before there was ``report.json``, the report was ``summary`` in here."""

    state: Literal["succeeded", "failed", "canceled"]
    error: str | None
    ended_at: str
    run_id: Annotated[RunId | None, BeforeValidator(_run_id_of)] = None
    summary: Annotated[dict[str, Any] | None, Field(exclude=True)] = None

    @classmethod
    def of(cls, state: Any, error: str | None, ended_at: str, summary: Mapping[str, Any] | None) -> EndRecord:
        """The record of an end with its report."""
        run_id = None if summary is None else _run_id_of(summary.get("run_id"))
        return cls(state=state, error=error, ended_at=ended_at, run_id=run_id)


_R = TypeVar("_R", bound=Record)


def read_record(path: RootPath, kind: type[_R], limit: int = MAX_RECORD_BYTES) -> _R | None:
    """A record, or None where the file is not there.

    Raises:
        DamagedJobError: It is not whole, no file, or of a newer version.
        OSError: It cannot be read.
    """
    try:
        content = take(path, dict, limit)
    except FileNotFoundError:
        return None
    except ArtifactError as error:
        raise DamagedJobError(str(error)) from None
    version = content.get("version", 0)
    if isinstance(version, int) and version > VERSION:
        raise DamagedJobError(f"{path}: of version {version}, made by a newer cleanup, which has to be used for it")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise DamagedJobError(
            f"{path}: no record of a job ({'.'.join(map(str, first['loc']))}: {first['msg']})"
        ) from None


def dump_record(record: Record) -> bytes:
    """A record as it is written."""
    return orjson.dumps({"version": VERSION, **record.model_dump()}, option=orjson.OPT_INDENT_2)
