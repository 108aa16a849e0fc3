"""What the HTTP API takes and gives, as pydantic models; options are drawn from the settings' metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from cleanup import names
from cleanup.names import EP_ID_PATTERN, SHOW_PATTERN
from cleanup.run import PHASES
from cleanup.settings import REQUEST_SETTINGS, SPECS, SettingSpec, Threshold

_LARGEST = 2**31 - 1
# To JSON Schema 39.0 is an integer.
_AS_WHOLE = BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v)
MAX_EPISODES = 1000
State = Literal["queued", "running", "succeeded", "failed", "canceled"]
EpId = Annotated[names.EpId, Field(pattern=rf"^{EP_ID_PATTERN}$", description="Episode id", examples=["rhobh-s05e02"])]
Show = Annotated[names.Show, Field(pattern=rf"^{SHOW_PATTERN}$", description="Show", examples=["rhobh"])]
JOB_ID = "20260314T092653.589793Z-0f1e2d3c"


def _field_of(spec: SettingSpec) -> tuple[Any, Any]:
    meta = spec.metadata
    kind: Any = spec.kind
    limits: dict[str, Any] = {}
    if kind is int or kind is float or kind is Threshold:
        limits = {"ge": meta["at_least"], "le": _LARGEST if meta["at_most"] is None else meta["at_most"]}
        number = Field(**limits)
        kind = Annotated[int, number, _AS_WHOLE] if kind is int else Annotated[float, number]
    elif meta["choices"]:
        kind = Literal[meta["choices"]]
    elif kind is str:
        kind = Annotated[str, Field(pattern=rf"^{SHOW_PATTERN}$")]
    if spec.kind is Threshold:
        kind = kind | Literal["auto"]
    unit = f" ({meta['unit']})" if meta["unit"] else ""
    return (kind | None, Field(None, description=f"{meta['meaning']}{unit}"))


_Phase: Any = Literal[tuple(PHASES)]
_RUN: dict[str, Any] = {
    "profile": (
        str | None, Field(None, max_length=100, description="profile: low_power, balanced, high_accuracy or fast_cpu"),
    ),
    "actions": (list[_Phase] | None, Field(None, max_length=len(PHASES), description="phases to run; all by default")),
    "write_back": (bool | None, Field(None, description="replace the artifacts; without it only a report is written")),
    "resume": (bool | None, Field(None, description="use what an earlier run of the same inputs has embedded")),
    "video": (
        str | None,
        Field(None, max_length=4096, description="video, relative to the data root and inside it; "
              "videos/EP_ID/episode.mp4 by default; of a season with {ep_id} in its path"),
    ),
}  # fmt: skip
_SETTINGS = {name: _field_of(SPECS[name]) for name in REQUEST_SETTINGS}


def _request_model(name: str, fields: Mapping[str, Any], **example: Any) -> type[BaseModel]:
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra={"examples": [example]})
    make: Any = create_model  # its overloads know no fields that are put together
    model: type[BaseModel] = make(name, __config__=config, **fields)
    return model


Options = _request_model("Options", _RUN | _SETTINGS, profile="balanced", actions=["split_tracks", "recluster"])
EpisodeCleanup = _request_model(
    "EpisodeCleanup", {"ep_id": (EpId, ...)} | _RUN | _SETTINGS,
    ep_id="rhobh-s05e02", profile="balanced", write_back=True,
)  # fmt: skip
SeasonCleanup = _request_model(
    "SeasonCleanup",
    _RUN
    | _SETTINGS
    | {
        "ep_ids": (list[EpId] | None, Field(None, min_length=1, max_length=MAX_EPISODES, description="its episodes")),
        "show": (Show | None, Field(None, description="all episodes of this show that have artifacts")),
        "season": (Annotated[int, Field(ge=0, le=999), _AS_WHOLE] | None, Field(None, description="only this season")),
        "fail_fast": (bool | None, Field(None, description="stop at the first episode that fails")),
        "max_parallel_episodes": (
            Annotated[int, Field(ge=1, le=1000), _AS_WHOLE] | None,
            Field(None, description="episodes at once, on Ray"),
        ),
    },
    show="rhobh", season=5, profile="balanced", write_back=True,
)  # fmt: skip


class Problem(BaseModel):
    """An error (RFC 9457). ``detail`` says in one line what is wrong and what to do."""

    type: str = "about:blank"
    title: str = Field(examples=["Conflict"])
    status: int = Field(examples=[409])
    detail: str = Field(examples=[f"rhobh-s05e02: job {JOB_ID} is running for it; wait or cancel it"])


class JobHead(BaseModel):
    """A job."""

    job_id: str = Field(examples=[JOB_ID])
    kind: Literal["episode", "season"] = "episode"
    ep_id: str | None = Field(description="its episode; null for a season", examples=["rhobh-s05e02"])
    ep_ids: list[str] = Field(examples=[["rhobh-s05e02"]])
    state: State = Field(examples=["running"])
    created_at: str = Field(examples=["2026-03-14T09:26:53.589Z"])
    started_at: str | None = Field(description="null while it waits", examples=["2026-03-14T09:26:54.001Z"])
    ended_at: str | None = Field(examples=[None])


class StartedJob(JobHead):
    """A job as it was accepted."""

    progress_file: str = Field(description="where it writes its progress", examples=["runs/jobs/X/progress.json"])
    requested: dict[str, Any] = Field(examples=[{"profile": "balanced", "write_back": True}])
    artifacts: dict[str, str] = Field(
        description="the episode's files; empty for a season", examples=[{"tracks": "manifests/.../tracks.jsonl"}]
    )


class Standing(BaseModel):
    """Where a job stands. No number goes backwards."""

    phase: str = Field(
        description="one of the four; queued or starting before them; done, failed or canceled after",
        examples=["reembed"],
    )
    phase_index: int = Field(description="1-based; for a season the episodes done", examples=[2])
    phase_total: int = Field(description="for a season its episodes", examples=[4])
    phase_progress: float = Field(ge=0, le=1, description="for a season of the whole", examples=[0.42])
    total_elapsed_seconds: float = Field(examples=[17.3])
    message: str = Field(examples=["track 120 of 286"])
    items_done: int | None = Field(None, examples=[120])
    items_total: int | None = Field(None, examples=[286])
    eta_seconds: float | None = Field(None, examples=[24.0])
    updated_at: str | None = Field(None, examples=["2026-03-14T09:27:11.402Z"])
    episodes: dict[str, dict[str, Any]] | None = Field(
        None, description="of a season: each of its episodes", examples=[None]
    )


class JobProgress(JobHead, Standing):
    """Where a job stands, flat and once more nested for callers of the older shape."""

    track_metrics: dict[str, Any] | None = Field(
        description="track_metrics.json of the episode as it is now", examples=[{"tracks_born": 286}]
    )
    progress: Standing


class JobDetails(JobHead):
    """A job with its outcome."""

    requested: dict[str, Any] = Field(examples=[{"profile": "balanced", "write_back": True}])
    error: str | None = Field(description="one line if it failed or was canceled", examples=[None])
    summary: dict[str, Any] | None = Field(
        description="the report if it succeeded; of a season also if episodes of it failed",
        examples=[{"tracks_before": 286, "tracks_after": 301}],
    )


class JobRow(JobHead):
    """A job in a list."""

    error: str | None = Field(examples=[None])


class JobList(BaseModel):
    """Jobs, newest first."""

    jobs: list[JobRow]
    next_cursor: str | None = Field(description="for the next page; null on the last", examples=[f"17-{JOB_ID}"])


class Check(BaseModel):
    """One thing that jobs need."""

    check: str = Field(examples=["PostgreSQL"])
    ok: bool
    found: str = Field(examples=["PostgreSQL 18, pgvector 0.8.5 (your server)"])


class Readiness(BaseModel):
    """Whether a job that is started now can work."""

    ready: bool
    checks: list[Check]


class Picture(BaseModel):
    """Thumbnails of tracks that belong together."""

    track_id: int = Field(examples=[17])
    url: str | None = Field(description="its thumbnail, if pictures were saved", examples=["/jobs/.../pictures/17"])
    reason: str | None = Field(None, description="of a piece: why its track was split there", examples=["hard"])


class Split(BaseModel):
    """A track that was split."""

    track_id: int
    pieces: list[Picture]


class Cluster(BaseModel):
    """An identity."""

    identity_id: str = Field(examples=["identity-00001"])
    name: str | None
    person_id: str | None
    n_tracks: int
    tracks: list[Picture]


class Pictures(BaseModel):
    """What a job made of its episode, in pictures."""

    splits: list[Split]
    clusters: list[Cluster]


class SettingValue(BaseModel):
    """A setting's value with its source."""

    value: Any
    source: str = Field(examples=["profile balanced"])
    auto: bool = False
    meaning: str


class ResolvedOptions(BaseModel):
    """The settings a run would have."""

    profile: str = Field(examples=["balanced"])
    settings: dict[str, SettingValue]


class Preview(BaseModel):
    """What a run would change, computed from the embeddings on disk."""

    ep_id: str
    actions: list[str] = Field(description="what was computed", examples=[["split_tracks", "recluster"]])
    skipped: list[str] = Field(description="asked for, but it needs the video's pixels", examples=[["reembed"]])
    tracks_before: int
    tracks_after: int
    faces_before: int
    faces_after: int
    clusters_before: int
    clusters_after: int
    metrics_before: dict[str, float]
    metrics_after: dict[str, float]
    phases: dict[str, dict[str, Any]] = Field(description="the counts of each phase, as in the report")
    warnings: list[str]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's errors of a call; what the guards answer is added to all of them."""
    schema = {"$ref": "#/components/schemas/Problem"}
    texts = {
        400: "not ready", 401: "no token", 403: "not from here", 404: "not there", 409: "in the way of a running job",
        413: "body too long", 415: "body no JSON", 422: "a wrong field", 429: "too many requests", 500: "our fault",
        503: "a server is away",
    }  # fmt: skip
    return {
        status: {"description": texts[status], "content": {"application/problem+json": {"schema": schema}}}
        for status in sorted({*statuses, 401, 403, 413, 415, 422, 429, 500, 503})
    }
