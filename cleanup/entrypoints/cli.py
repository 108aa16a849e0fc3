"""The ``cleanup`` command. Heavy modules are imported by the commands that need them, not at start."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cleanup.entrypoints.backups_cli import backups_app, diff_command
from cleanup.entrypoints.facebank_cli import facebank_app
from cleanup.entrypoints.jobs_cli import jobs_app
from cleanup.entrypoints.models_cli import models_app
from cleanup.entrypoints.options import (
    ACTIONS,
    CONFIG_DIR,
    EP_ID,
    JSON_OUTPUT,
    OUT_ROOT,
    PROFILE,
    PROGRESS_FILE,
    QUIET,
    VERBOSE,
    VIDEO,
    WRITE_BACK,
    fold_actions,
    with_setting_options,
)
from cleanup.entrypoints.people_cli import people_app
from cleanup.entrypoints.process import run_main
from cleanup.entrypoints.serve_options import Limits, ServeOptions
from cleanup.entrypoints.shell import one_line_errors, open_root, resolve
from cleanup.entrypoints.terminal import print_json, say
from cleanup.errors import CleanupError

_SERVED = ServeOptions()


class _ActionsGroup(TyperGroup):
    """Lets --actions take several words, as in ``--actions split_tracks reembed``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, fold_actions(args))


app = typer.Typer(
    name="cleanup",
    cls=_ActionsGroup,
    help="Refines the face tracks, embeddings and identities of TV and film episodes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # plain help starts twice as fast and pipes well
)
app.add_typer(backups_app, name="backups")
app.command("diff")(diff_command)
app.add_typer(facebank_app, name="facebank")
app.add_typer(jobs_app, name="jobs")
app.add_typer(models_app, name="models")
app.add_typer(people_app, name="people")


@app.command("run")
@with_setting_options()
def run_command(
    ep_id: EP_ID,
    video: VIDEO = None,
    profile: PROFILE = None,
    actions: ACTIONS = None,
    write_back: WRITE_BACK = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume", help="Use what an earlier run of the same inputs, cut off or not, has embedded."
        ),
    ] = True,
    out_root: OUT_ROOT = None,
    progress_file: PROGRESS_FILE = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
    verbose: VERBOSE = 0,
    quiet: QUIET = False,
    **settings: Any,
) -> None:
    """Refines one episode.

    cleanup run --ep-id rhobh-s05e02 --profile balanced --actions split_tracks recluster --write-back
    """
    with one_line_errors(verbose) as stop:
        from cleanup.entrypoints.display import print_report, show_progress
        from cleanup.entrypoints.episode_job import EpisodeJob, parse_actions, run_episode_job
        from cleanup.entrypoints.screen import Screen
        from cleanup.names import check_ep_id

        resolved = resolve(settings, profile, config_dir)
        job = EpisodeJob(
            ep_id=check_ep_id(ep_id),
            root=open_root(out_root, resolved),
            actions=parse_actions(actions),
            settings=resolved,
            video=video,
            write_back=write_back,
            progress_file=Path(progress_file) if progress_file else None,
            is_resume=resume,
        )
        screen = Screen(is_error=json_output)
        with show_progress(screen, is_quiet=quiet) as on_progress, _stdout_kept(is_json=json_output):
            report = run_episode_job(job, on_progress, lambda: stop.is_requested)
        if stop.is_requested:
            say("cleanup: the stop came too late, when the run was being written; it is complete", is_error=True)
        if json_output:
            print_json(report)
        elif not quiet:
            print_report(Screen(), report)


def _stdout_kept(*, is_json: bool) -> contextlib.AbstractContextManager[object]:
    """Where the output is JSON, what libraries print goes to standard error."""
    return contextlib.redirect_stdout(sys.stderr) if is_json else contextlib.nullcontext()


@app.command("season")
@with_setting_options()
def season_command(
    ep_id: Annotated[
        list[str] | None, typer.Option("--ep-id", help="An episode; may be given many times.", show_default=False)
    ] = None,
    ep_list: Annotated[
        Path | None,
        typer.Option("--ep-list", metavar="FILE", help="File with one episode id per line.", show_default=False),
    ] = None,
    show: Annotated[
        str | None,
        typer.Option("--show", help="All episodes of this show that have artifacts.", show_default=False),
    ] = None,
    season: Annotated[
        int | None, typer.Option("--season", min=0, help="Only this season of --show.", show_default=False)
    ] = None,
    video: Annotated[
        str | None,
        typer.Option(
            "--video",
            help="Video, with {ep_id} in its path. [videos/EP_ID/episode.mp4 under the data root]",
            show_default=False,
        ),
    ] = None,
    profile: PROFILE = None,
    actions: ACTIONS = None,
    write_back: WRITE_BACK = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume", help="Leave out episodes that are done, and shards that are checkpointed."
        ),
    ] = True,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first episode that fails.")] = False,
    max_parallel_episodes: Annotated[
        int | None,
        typer.Option(
            "--max-parallel-episodes",
            min=1,
            help="Episodes at once. [one on the local engine, some on Ray]",
            show_default=False,
        ),
    ] = None,
    out_root: OUT_ROOT = None,
    progress_file: PROGRESS_FILE = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
    verbose: VERBOSE = 0,
    quiet: QUIET = False,
    **settings: Any,
) -> None:
    """Refines many episodes with one pool of workers; ends with 1 if any of them failed.

    cleanup season --show rhobh --season 5 --profile balanced --write-back
    """
    with one_line_errors(verbose) as stop:
        from cleanup.entrypoints.display import print_season, show_season
        from cleanup.entrypoints.episode_job import parse_actions
        from cleanup.entrypoints.screen import Screen
        from cleanup.entrypoints.season_job import SeasonJob, choose_episodes, run_season_job

        resolved = resolve(settings, profile, config_dir)
        root = open_root(out_root, resolved)
        job = SeasonJob(
            ep_ids=choose_episodes(root, ep_id or [], ep_list, show, season),
            root=root,
            actions=parse_actions(actions),
            settings=resolved,
            video=video,
            write_back=write_back,
            max_parallel_episodes=max_parallel_episodes or 0,
            is_resume=resume,
            is_fail_fast=fail_fast,
            progress_file=Path(progress_file) if progress_file else None,
        )
        screen = Screen(is_error=json_output)
        with show_season(screen, is_quiet=quiet) as on_progress, _stdout_kept(is_json=json_output):
            report = run_season_job(job, on_progress, lambda: stop.is_requested)
        if json_output:
            print_json(report)
        elif not quiet:
            print_season(Screen(), report)
        if report["state"] != "succeeded":
            raise typer.Exit(1)


@app.command("settings")
@with_setting_options()
def settings_command(
    profile: PROFILE = None, config_dir: CONFIG_DIR = None, json_output: JSON_OUTPUT = False, **settings: Any
) -> None:
    """Prints every setting with its value, its source and its meaning."""
    with one_line_errors():
        from cleanup.settings import SPECS

        resolved = resolve(settings, profile, config_dir)
        described = resolved.describe()
        for note in resolved.notes:
            say(f"warning: {note}", is_error=True)
        if json_output:
            print_json({name: {**d, "meaning": SPECS[name].metadata["meaning"]} for name, d in described.items()})
            return
        from cleanup.entrypoints.screen import Screen

        rows = []
        for name, entry in described.items():
            meta = SPECS[name].metadata
            meaning = meta["meaning"] + (f" ({meta['unit']})" if meta["unit"] else "")
            value = f"auto, at {entry['value']} of the scale" if entry.get("auto") else str(entry["value"])
            rows.append((name, value, entry["source"], meaning))
        headings = [(heading, "fold") for heading in ("setting", "value", "source", "meaning")]
        Screen().print_table(headings, rows, f"profile {resolved.profile}")


@app.command("validate")
def validate_command(ep_id: EP_ID, out_root: OUT_ROOT = None) -> None:
    """Checks an episode's artifacts and prints every violation with file and line."""
    with one_line_errors():
        from cleanup.edges.artifact_reading import find_violations, read_episode
        from cleanup.names import check_ep_id

        root = open_root(out_root, resolve({}, None, None))
        checked = check_ep_id(ep_id)
        root.check_episode(checked)
        problems = root.read_settled(checked, find_violations)
        for problem in problems:
            say(problem)
        if problems:
            say(f"{ep_id}: {len(problems)} violation{'s' if len(problems) > 1 else ''}", is_error=True)
            raise typer.Exit(CleanupError.exit_code)
        episode = root.read_settled(checked, read_episode)
        say(
            f"{ep_id}: valid, {episode.dialect} dialect, {len(episode.tracks)} tracks, {len(episode.faces)} faces, "
            f"{len(episode.identities)} identities"
        )


@app.command("doctor")
@with_setting_options(["models", "device", "embed_device", "facebank_dsn"])
def doctor_command(
    video: Annotated[
        str | None,
        typer.Option(
            "--video", help="Look at this video instead, and say what a run does with it.", show_default=False
        ),
    ] = None,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
    **settings: Any,
) -> None:
    """Checks what a run needs on this machine and says what to do about each problem.

    cleanup doctor --video FILE
    """
    with one_line_errors():
        from cleanup.entrypoints.doctor import examine

        resolved = resolve(settings, None, config_dir)
        if video is not None:
            from cleanup.entrypoints.doctor import examine_video, tell_video

            described = examine_video(resolved, video)
            if json_output:
                print_json(described)
            else:
                for line in tell_video(described):
                    say(line)
            return
        findings = examine(resolved, open_root(out_root, resolved))
        if json_output:
            print_json([{"check": f.check, "ok": f.is_ok, "found": f.text} for f in findings])
        else:
            for finding in findings:
                say(f"{'ok  ' if finding.is_ok else 'FAIL'} {finding.check}: {finding.text}")
        if not all(f.is_ok for f in findings):
            raise typer.Exit(1)


@app.command("serve")
@with_setting_options(["models", "facebank_dsn", "cache_dir"])
def serve_command(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 for any free one.")] = 8000,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="URL",
            help="Dashboard of a Ray cluster, http://HEAD:8265: jobs are Ray jobs there. [processes of this machine]",
            show_default=False,
        ),
    ] = None,
    max_jobs: Annotated[int, typer.Option("--max-jobs", min=1, help="Jobs at a time; others wait.")] = _SERVED.max_jobs,
    max_waiting: Annotated[int, typer.Option("--max-waiting", min=0, help="Jobs that may wait.")] = _SERVED.max_waiting,
    keep_jobs: Annotated[int, typer.Option("--keep-jobs", min=0, help="Ended jobs that are kept.")] = _SERVED.keep_jobs,
    allow_anonymous: Annotated[
        bool,
        typer.Option("--allow-anonymous", help="Listen beyond this machine without CLEANUP_API_TOKEN: anybody may."),
    ] = False,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option("--cors-origin", help="Origin whose pages may call the API; may be given many times."),
    ] = None,
    max_body: Annotated[
        int, typer.Option("--max-body", min=1, help="Longest body of a request (bytes).")
    ] = _SERVED.limits.max_body_bytes,
    rate_limit: Annotated[
        float, typer.Option("--rate-limit", min=0, help="Requests per second from one address; 0 for any.")
    ] = _SERVED.limits.per_second,
    max_connections: Annotated[
        int, typer.Option("--max-connections", min=2, help="Connections at a time; half of them from one address.")
    ] = _SERVED.limits.max_connections,
    verbose: VERBOSE = 0,
    **settings: Any,
) -> None:
    """Serves the HTTP API and a page to start, watch and cancel jobs.

    cleanup serve --out-root data --models models
    """
    with one_line_errors(verbose):
        from cleanup.entrypoints.serve import (
            build_app,
            hand_on,
            is_loopback,
            loopback_hosts,
            run_server,
            take_token,
        )  # fmt: skip

        hand_on(out_root, config_dir, settings)
        token = take_token(host, is_open=allow_anonymous)
        limits = Limits(max_body, rate_limit, max_connections)
        options = ServeOptions(ray_address, max_jobs, max_waiting, keep_jobs, cors_origin or (), limits)
        hosts = loopback_hosts(host) if token is None and is_loopback(host) else None
        run_server(build_app(options, token=token, hosts=hosts), host, port, limits, is_verbose=verbose > 0)


@app.command("demo")
def demo_command(
    out_root: Annotated[
        str, typer.Option("--out-root", help="Folder of the demo; made anew at each call.")
    ] = "cleanup-demo",
    seed: Annotated[int, typer.Option("--seed", help="Another seed draws another episode.")] = 0,
) -> None:
    """Renders a short episode of drawn faces, plants faults in it, and cleans it up."""
    with one_line_errors():
        from cleanup.entrypoints.demo import run_demo

        run_demo(Path(out_root).absolute(), seed)


def main() -> None:
    """Entry point of ``python -m cleanup.entrypoints.cli``."""
    run_main(app)


if __name__ == "__main__":
    main()
