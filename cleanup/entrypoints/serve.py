"""Runs the HTTP API: ``cleanup serve``, and the application that Ray Serve deploys."""

from __future__ import annotations

import functools
import ipaddress
import logging
import os
import resource
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from cleanup.edges.data_root import DATA_ROOT_VARIABLE
from cleanup.entrypoints.http_api import Access, create_app
from cleanup.entrypoints.http_connections import Connections, LimitedProtocol
from cleanup.entrypoints.job_pool import JobPool, ProcessRunner, RayRunner, Runner
from cleanup.entrypoints.log_limits import RepeatFilter
from cleanup.entrypoints.readiness import ReadinessProbe
from cleanup.entrypoints.run_tools import named_facebank
from cleanup.entrypoints.serve_options import TOKEN_VARIABLE, Limits, ServeOptions, check_token
from cleanup.entrypoints.shell import open_root
from cleanup.entrypoints.terminal import say
from cleanup.errors import SettingsError
from cleanup.resolve_settings import CONFIG_DIR_VARIABLE, ResolvedSettings, resolve_for_run
from cleanup.settings import SPECS

_log = logging.getLogger(__name__)
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
# Settings of the server that its jobs, processes of their own, find in their environment.
_HANDED_ON = ("models", "facebank_dsn", "cache_dir")
_BACKLOG = 2048
# asyncio accepts so many connections before the first of them can be refused.
_ACCEPTED_AT_ONCE = 32
_SHUTDOWN_S = 3


def hand_on(out_root: str | None, config_dir: str | None, settings: dict[str, object]) -> None:
    """Puts what was given on the command line where this process and its jobs look for it: the environment."""
    given: dict[str, object] = {DATA_ROOT_VARIABLE: out_root, CONFIG_DIR_VARIABLE: config_dir}
    given |= {str(SPECS[name].metadata["env"]): settings.get(name) for name in _HANDED_ON}
    models = settings.get("models")
    if models is not None and Path(str(models)).is_dir():
        given[str(SPECS["models"].metadata["env"])] = Path(str(models)).absolute()
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})


def build_app(options: ServeOptions, *, token: str | None, hosts: Sequence[str] | None) -> FastAPI:
    """The application, for the data root, models and Facebank of the environment.

    Args:
        options: See there.
        token: Bearer token, or None where none is asked for.
        hosts: Names the API is called by; None for any.

    Raises:
        SettingsError: A setting is wrong, or a secret would be seen in Ray's dashboard.
        FacebankError: The Facebank's connection string is not understood.
        EngineError: The Ray cluster does not answer.
    """
    settings = resolve_for_run({}, None, None)
    for note in settings.notes:
        _log.warning("%s", note)
    root = open_root(None, settings)
    if root.remote is not None:
        root.path.mkdir()  # the mirror
    elif not root.path.is_dir():
        raise SettingsError(f"{root.path}: no such data root; give it with --out-root or {DATA_ROOT_VARIABLE}")
    os.environ[DATA_ROOT_VARIABLE] = root.name  # absolute: a job need not start in this folder
    runner: Runner = ProcessRunner()
    if options.ray_address is not None:
        runner = RayRunner(options.ray_address, _ray_environment(settings))
    pool = JobPool(
        root.path,
        runner,
        max_running=options.max_jobs,
        max_waiting=options.max_waiting,
        max_kept=options.keep_jobs,
    )
    pool.store.read_all()  # once: what has ended is not read again for every list
    access = Access(token, hosts, tuple(options.cors_origins))
    return create_app(root, pool, ReadinessProbe(settings, root, runner), access, options.limits)


def _ray_environment(settings: ResolvedSettings) -> dict[str, str]:
    names = [DATA_ROOT_VARIABLE, CONFIG_DIR_VARIABLE, *(str(SPECS[name].metadata["env"]) for name in _HANDED_ON)]
    if settings.settings.group_clusters.facebank_dsn:
        server = named_facebank(settings).server
        if not server.is_open:
            raise SettingsError(
                f"{settings.source_of('facebank_dsn')} ({server}): the dashboard shows the environment of Ray jobs, so "
                "the DSN may hold no password and no options; put the password into ~/.pgpass of the nodes"
            )
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def take_token(host: str, *, is_open: bool) -> str | None:
    """The token of the environment; out of it, so that no job inherits it.

    Args:
        host: Where the API listens.
        is_open: Whether the user said that anybody may call.

    Raises:
        SettingsError: None is set and the host is not loopback, or it is too short to be one.
    """
    token = os.environ.pop(TOKEN_VARIABLE, "") or None
    if token is not None:
        check_token(token)
    if token is None and not is_open and not is_loopback(host):
        raise SettingsError(
            f"--host {host}: whoever reaches it could start and stop jobs; set {TOKEN_VARIABLE}, or give "
            "--allow-anonymous"
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)  # asyncio has set it to as many as it accepts at once


def run_server(app: FastAPI, host: str, port: int, limits: Limits, *, is_verbose: bool) -> None:
    """Listens until SIGINT or SIGTERM; jobs go on.

    Args:
        app: The application.
        host: Where it listens.
        port: Where it listens; 0 for any free one.
        limits: What a caller may use up.
        is_verbose: Whether every request is logged.

    Raises:
        SettingsError: The address cannot be listened on.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio switches Nagle's delays off only where the protocol is named, which create_server does not.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        raise SettingsError(f"--host {host} --port {port}: {error.strerror}; choose another") from error
    bound = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    say(f"Episode Cleanup listens on http://{shown}:{bound}")
    for handler in logging.getLogger().handlers:
        handler.addFilter(RepeatFilter())
    # A file or two are open for every request at work, and jobs are started with pipes.
    most = min(limits.max_connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
    protocol: Any = functools.partial(LimitedProtocol, connections=Connections(most))
    config = uvicorn.Config(
        app, log_level="info" if is_verbose else "warning", access_log=is_verbose, server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_S, log_config=None, loop="asyncio", http=protocol, ws="none",
        backlog=_ACCEPTED_AT_ONCE,
    )  # fmt: skip
    try:
        _Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        _log.info("asked to stop")
    say("the API has stopped; jobs that run go on")


def loopback_hosts(host: str) -> list[str]:
    """Names under which an API on loopback may be called; a page of another name is another site's."""
    return sorted({*_LOOPBACK_NAMES, host})
