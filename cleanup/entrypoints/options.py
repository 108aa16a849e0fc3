"""Command-line options drawn from the settings' metadata; every option defaults to "not given"."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from cleanup.settings import PROFILE_VARIABLE, SPECS, Secret, SettingSpec, Threshold

# Options that belong to a run but are no settings: they say what to work on.
EP_ID = Annotated[str, typer.Option("--ep-id", help="Episode id, for example rhobh-s05e02.")]
OUT_ROOT = Annotated[
    str | None, typer.Option("--out-root", help="Data root. [SCREENALYTICS_DATA_ROOT, else ./data]", show_default=False)
]
PROFILE = Annotated[
    str | None,
    typer.Option(
        "--profile",
        help=f"Profile: low_power, balanced, high_accuracy or fast_cpu. [{PROFILE_VARIABLE}, else balanced]",
        show_default=False,
    ),
]
CONFIG_DIR = Annotated[
    str | None,
    typer.Option("--config-dir", help="Folder of the YAML files. [SCREENALYTICS_CONFIG_DIR]", show_default=False),
]
ACTIONS = Annotated[
    list[str] | None,
    typer.Option(
        "--actions",
        help="Phases to run: split_tracks reembed recluster group_clusters, separated by spaces or commas. [all]",
        show_default=False,
    ),
]
VIDEO = Annotated[
    str | None,
    typer.Option("--video", help="Video. [videos/EP_ID/episode.mp4 under the data root]", show_default=False),
]
WRITE_BACK = Annotated[
    bool,
    typer.Option(
        "--write-back/--no-write-back",
        help="Replace the artifacts. Without it only reports and progress are written, in a run folder.",
    ),
]
PROGRESS_FILE = Annotated[str | None, typer.Option("--progress-file", help="Where progress goes.", show_default=False)]
VERBOSE = Annotated[int, typer.Option("-v", "--verbose", count=True, help="Say more; twice for everything.")]
QUIET = Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no tables.")]
JSON_OUTPUT = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def setting_options(names: Sequence[str] | None = None) -> list[inspect.Parameter]:
    """Keyword parameters for Typer, one per setting that has an option (or per name given)."""
    chosen = [s for s in SPECS.values() if s.metadata["option"]] if names is None else [SPECS[n] for n in names]
    return [_parameter(spec) for spec in chosen]


def _parameter(spec: SettingSpec) -> inspect.Parameter:
    flag = spec.name.replace("_", "-")
    is_flag = spec.kind is bool
    option = typer.Option(
        f"--{flag}/--no-{flag}" if is_flag else f"--{flag}",
        help=_help_of(spec),
        show_default=False,
        metavar=None if is_flag else _metavar(spec),
    )
    # Choices and ranges are checked by the resolver, which names the source of a wrong value, wherever it came from.
    # A threshold is a number or the word auto; a secret is one as soon as it is resolved.
    optional_kind: Any = (str if spec.kind in (Threshold, Secret) else spec.kind) | None
    annotation = Annotated[optional_kind, option]
    return inspect.Parameter(spec.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _metavar(spec: SettingSpec) -> str | None:
    if spec.kind is Threshold:
        return "NUMBER|auto"
    return "|".join(spec.metadata["choices"]) if spec.metadata["choices"] else None


def _help_of(spec: SettingSpec) -> str:
    meta = spec.metadata
    unit = f" ({meta['unit']})" if meta["unit"] else ""
    sources = [s for s in (meta["env"], meta["profile"] and "profile", meta["yaml"]) if s]
    return f"{meta['meaning'][0].upper()}{meta['meaning'][1:]}{unit}." + (f" [{', '.join(sources)}]" if sources else "")


def with_setting_options(
    names: Sequence[str] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: a command that takes ``**settings`` gets one typed option per setting in its signature.

    A setting whose name the command takes for itself gets none.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        taken = {p.name for p in own}
        parameters = own + [p for p in setting_options(names) if p.name not in taken]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def fold_actions(arguments: Sequence[str]) -> list[str]:
    """Joins what follows --actions into one comma-separated value: ``--actions a b --x`` -> ``--actions a,b --x``."""
    folded: list[str] = []
    i = 0
    while i < len(arguments):
        folded.append(arguments[i])
        i += 1
        if folded[-1] == "--actions":
            stop = i
            while stop < len(arguments) and not arguments[stop].startswith("-"):
                stop += 1
            if stop > i:
                folded.append(",".join(arguments[i:stop]))
            i = stop
    return folded
