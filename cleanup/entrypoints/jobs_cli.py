"""``cleanup jobs``: a client of the HTTP API."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cleanup.entrypoints.options import ACTIONS, JSON_OUTPUT, PROFILE, WRITE_BACK, with_setting_options
from cleanup.entrypoints.serve_options import TOKEN_VARIABLE, check_token
from cleanup.entrypoints.shell import one_line_errors
from cleanup.entrypoints.terminal import print_json, say
from cleanup.errors import ArtifactError, EngineError, SettingsError
from cleanup.settings import REQUEST_SETTINGS

if TYPE_CHECKING:
    import httpx

URL_VARIABLE = "CLEANUP_API_URL"
URL = Annotated[
    str, typer.Option("--url", envvar=URL_VARIABLE, help="Where the API is; its token is in CLEANUP_API_TOKEN.")
]
DEFAULT_URL = "http://127.0.0.1:8000"
JOB_ID = Annotated[str, typer.Argument(metavar="JOB_ID", help="The job.")]
_TIMEOUT_S = 30.0
_RECONNECT_S = 1.0
_MAX_SILENCES = 30

jobs_app = typer.Typer(
    name="jobs",
    help="Starts, lists, watches and cancels jobs of a running cleanup serve.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@jobs_app.command("start")
@with_setting_options(REQUEST_SETTINGS)
def start_command(
    ep_id: Annotated[
        list[str] | None, typer.Option("--ep-id", help="An episode; given many times it is a season.")
    ] = None,
    show: Annotated[str | None, typer.Option("--show", help="All episodes of this show that have artifacts.")] = None,
    season: Annotated[int | None, typer.Option("--season", min=0, help="Only this season of --show.")] = None,
    video: Annotated[str | None, typer.Option("--video", help="Video, relative to the API's data root.")] = None,
    profile: PROFILE = None,
    actions: ACTIONS = None,
    write_back: WRITE_BACK = False,
    resume: Annotated[bool | None, typer.Option("--resume/--no-resume", help="As of cleanup run.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option("--idempotency-key", help="With the key of an earlier request: its job, no new one.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay until it has ended.")] = False,
    json_output: JSON_OUTPUT = False,
    url: URL = DEFAULT_URL,
    **settings: Any,
) -> None:
    """Starts a job.

    cleanup jobs start --ep-id rhobh-s05e02 --profile balanced --write-back --watch
    """
    with one_line_errors(), _client(url) as client:
        from cleanup.entrypoints.episode_job import parse_actions

        if not ep_id and show is None:
            raise SettingsError("no episodes: give --ep-id, or --show and perhaps --season")
        body: dict[str, Any] = {"video": video, "profile": profile, "write_back": write_back or None, "resume": resume}
        body |= {"actions": list(parse_actions(actions)) if actions else None, **_as_numbers(settings)}
        if show is not None or len(ep_id or ()) > 1:
            path, body = "/jobs/season_cleanup_async", body | {"ep_ids": ep_id, "show": show, "season": season}
        else:
            path, body = "/jobs/episode_cleanup_async", body | {"ep_id": (ep_id or [""])[0]}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        job = _call(client, "POST", path, json={k: v for k, v in body.items() if v is not None}, headers=headers)
        if watch:
            say(f"{job['job_id']} {job['state']}", is_error=True)
            raise typer.Exit(_watch(client, job["job_id"]))
        if json_output:
            print_json(job)
        else:
            say(job["job_id"])


@jobs_app.command("list")
def list_command(
    ep_id: Annotated[str | None, typer.Option("--ep-id", help="Only jobs of this episode.")] = None,
    state: Annotated[
        str | None, typer.Option("--state", metavar="queued|running|succeeded|failed|canceled", help="Only in this.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=200, help="So many at most.")] = 50,
    json_output: JSON_OUTPUT = False,
    url: URL = DEFAULT_URL,
) -> None:
    """Lists jobs, newest first."""
    with one_line_errors(), _client(url) as client:
        asked = {"ep_id": ep_id, "state": state, "limit": limit}
        jobs = _call(client, "GET", "/jobs", params={k: v for k, v in asked.items() if v is not None})["jobs"]
        if json_output:
            print_json(jobs)
            return
        for job in jobs:
            episodes = job["ep_id"] or f"{len(job['ep_ids'])} episodes"
            say(f"{job['job_id']}  {job['state']:<9}  {episodes}" + (f"  {job['error']}" if job["error"] else ""))
        if not jobs:
            say("no jobs", is_error=True)


@jobs_app.command("show")
def show_command(job_id: JOB_ID, json_output: JSON_OUTPUT = False, url: URL = DEFAULT_URL) -> None:
    """Shows a job: where it stands, or its report."""
    with one_line_errors(), _client(url) as client:
        job = _call(client, "GET", f"/jobs/{job_id}")
        if json_output:
            print_json(job)
            return
        from cleanup.entrypoints.display import print_report, print_season
        from cleanup.entrypoints.screen import Screen

        if job["summary"] is not None:
            try:
                (print_report if job["kind"] == "episode" else print_season)(Screen(), job["summary"])
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ArtifactError(
                    f"the report of job {job_id} is not one of this version ({type(error).__name__} {error}); --json "
                    "prints it as it is"
                ) from error
            return
        progress = _call(client, "GET", f"/jobs/{job_id}/progress")
        say(f"{job['job_id']}  {job['state']}  {_describe(progress)}")


@jobs_app.command("watch")
def watch_command(job_id: JOB_ID, url: URL = DEFAULT_URL) -> None:
    """Shows a job's progress and log until it has ended; ends with 0 if it succeeded, 130 if it was canceled, else 1.

    Ctrl-C stops watching, not the job.
    """
    with one_line_errors(), _client(url) as client:
        raise typer.Exit(_watch(client, job_id))


@jobs_app.command("cancel")
def cancel_command(job_id: JOB_ID, json_output: JSON_OUTPUT = False, url: URL = DEFAULT_URL) -> None:
    """Stops a job and waits until it has stopped."""
    with one_line_errors(), _client(url) as client:
        job = _call(client, "POST", f"/jobs/{job_id}/cancel")
        if json_output:
            print_json(job)
        else:
            say(f"{job['job_id']} {job['state']}" + (f": {job['error']}" if job["error"] else ""))


@contextlib.contextmanager
def _client(url: str) -> Iterator[httpx.Client]:
    import httpx

    token = os.environ.get(TOKEN_VARIABLE)
    headers = {"Authorization": f"Bearer {check_token(token)}"} if token else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S) as client:
            yield client
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise EngineError(
            f"{url}: {error or type(error).__name__}; is cleanup serve running there? See --url"
        ) from None


def _call(client: httpx.Client, method: str, path: str, **arguments: Any) -> Any:
    return _check(client.request(method, path, **arguments)).json()


def _check(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    response.read()
    try:
        detail = str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"{response.url}: {response.status_code} {response.reason_phrase}; is this the API of cleanup serve?"
    raise SettingsError(detail) if response.status_code < 500 else EngineError(detail)


def _watch(client: httpx.Client, job_id: str) -> int:
    """Follows a job's events, also over restarts of the API; gives the exit code."""
    import httpx
    import orjson

    from cleanup.entrypoints.screen import Screen

    screen = Screen(is_error=True)
    last_id: str | None = None
    silences, phase = 0, ""
    with screen.status() as show:
        while True:
            try:
                headers = {"Last-Event-ID": last_id} if last_id else {}
                with client.stream("GET", f"/jobs/{job_id}/events", headers=headers, timeout=_TIMEOUT_S) as response:
                    _check(response)
                    silences = 0
                    for kind, event_id, data in _read_events(response.iter_lines()):
                        last_id = event_id
                        event = orjson.loads(data)
                        if kind == "progress":
                            show(_describe(event))
                            if not screen.is_terminal and event.get("phase", "") != phase:
                                phase = event.get("phase", "")
                                screen.say(_describe(event))
                        elif kind == "log":
                            screen.say(event["line"])
                        else:
                            screen.say(f"{event['state']}" + (f": {event['error']}" if event["error"] else ""))
                            return {"succeeded": 0, "canceled": 130}.get(event["state"], 1)
            except httpx.TransportError:
                silences += 1
                if silences > _MAX_SILENCES:
                    raise
            time.sleep(_RECONNECT_S)


def _read_events(lines: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    """Kind, id and data of server-sent events."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield fields["event"], fields["id"], fields["data"]
            fields = {}
        else:
            fields = {}


def _describe(progress: dict[str, Any]) -> str:
    if "phase_progress" not in progress:
        done = f"{progress['episodes_done']} of {progress['episodes_total']} episodes"
        return f"{done}, {progress['progress']:.0%}"
    share = f"{progress['phase_progress']:.0%}"
    place = f"{progress['phase_index']}/{progress['phase_total']} {progress['phase']}"
    return f"{place} {share}" + (f"  {progress['message']}" if progress.get("message") else "")


def _as_numbers(settings: dict[str, Any]) -> dict[str, Any]:
    """Thresholds are texts on the command line because of ``auto``; the API wants numbers."""
    from cleanup.settings import SPECS, Threshold

    numbers: dict[str, Any] = {}
    for name, value in settings.items():
        is_threshold = SPECS[name].kind is Threshold and value is not None and value != "auto"
        try:
            numbers[name] = float(value) if is_threshold else value
        except ValueError:
            raise SettingsError(f"--{name.replace('_', '-')}: must be a number or auto, not {value!r}") from None
    return numbers
