"""``cleanup backups`` and ``cleanup diff``: what runs have changed in an episode, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cleanup.entrypoints.options import CONFIG_DIR, JSON_OUTPUT, OUT_ROOT, with_setting_options
from cleanup.entrypoints.shell import one_line_errors, open_root, resolve
from cleanup.entrypoints.terminal import print_json, say, say_fields

if TYPE_CHECKING:
    from cleanup.edges.backups import Backup
    from cleanup.edges.data_root import DataRoot
    from cleanup.names import EpId

backups_app = typer.Typer(help="What every write-back replaced, and the way back to it.", no_args_is_help=True)

EPISODE = Annotated[str, typer.Argument(metavar="EP_ID", help="Episode id.")]
RUN = Annotated[str, typer.Argument(metavar="RUN", help="Run, as cleanup backups list shows it.")]


def _open(ep_id: str, out_root: str | None, config_dir: str | None) -> tuple[DataRoot, EpId]:
    from cleanup.names import check_ep_id

    checked = check_ep_id(ep_id)
    root = open_root(out_root, resolve({}, None, config_dir))
    root.check_episode(checked)
    return root, checked


def _describe(backup: Backup) -> dict[str, Any]:
    return {
        "run_id": backup.run_id,
        "created_at": backup.created_at,
        "made_by": backup.made_by,
        "changed": [name.rsplit("/", 1)[-1] for name in backup.changed],
    }


@backups_app.command("list")
def list_command(
    ep_id: EPISODE, out_root: OUT_ROOT = None, config_dir: CONFIG_DIR = None, json_output: JSON_OUTPUT = False
) -> None:
    """Lists the write-backs of an episode, oldest first; restore takes it back to before one of them."""
    with one_line_errors():
        root, checked = _open(ep_id, out_root, config_dir)
        found = [_describe(backup) for backup in root.backups(checked).list_backups()]
        if json_output:
            print_json(found)
            return
        for entry in found:
            say_fields(entry["run_id"], entry["created_at"], entry["made_by"], ", ".join(entry["changed"]))
        if not found:
            say(f"{ep_id}: nothing was ever written back", is_error=True)


@backups_app.command("show")
def show_command(
    ep_id: EPISODE,
    run: RUN,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
) -> None:
    """Shows what each file held before and after a run, and where what was replaced is kept."""
    with one_line_errors():
        from cleanup.names import check_run_id

        root, checked = _open(ep_id, out_root, config_dir)
        store = root.backups(checked)
        backup = store.read(check_run_id(run))
        if json_output:
            import orjson

            print_json(orjson.loads(backup.to_json()))
            return
        say(f"{backup.run_id}, {backup.created_at}, made by {backup.made_by}")
        for name, version in backup.before.items():
            after = backup.after[name]
            if version is None:
                text = "not there before" if after is not None else "not there"
            elif version == after:
                text = f"left as it was, {version.size} bytes"
            else:
                text = f"{version.size} bytes before, in {root.show(store.object_path(version))}"
            say(f"{name}: {text}" + (", removed" if version is not None and after is None else ""))


@backups_app.command("diff")
def diff_backup_command(
    ep_id: EPISODE,
    run: RUN,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
) -> None:
    """Shows what restoring would change: from the episode as it is now to what it was before a run."""
    with one_line_errors():
        from cleanup.entrypoints.episode_states import preview_restore
        from cleanup.names import check_run_id

        root, checked = _open(ep_id, out_root, config_dir)
        gate = resolve({}, None, config_dir).settings.split_tracks
        _print_changes(preview_restore(root, checked, check_run_id(run), gate), is_json=json_output)


@backups_app.command("restore")
@with_setting_options(["keep_backups"])
def restore_command(
    ep_id: EPISODE, run: RUN, out_root: OUT_ROOT = None, config_dir: CONFIG_DIR = None, **settings: Any
) -> None:
    """Puts the episode's files back to what they held before a run; what is there now becomes a backup, too.

    cleanup backups restore rhobh-s05e02 20260314T092653.589793Z-4711
    """
    with one_line_errors():
        from cleanup.entrypoints.display import describe_way_back
        from cleanup.entrypoints.episode_states import restore_backup
        from cleanup.names import check_run_id

        root, checked = _open(ep_id, out_root, config_dir)
        n_backups = resolve(settings, None, config_dir).settings.output.keep_backups
        made = restore_backup(root, checked, check_run_id(run), n_backups)
        if made is None:
            say(f"{ep_id}: the files are what they were before run {run} already")
        else:
            names = ", ".join(name.rsplit("/", 1)[-1] for name in made.changed)
            say(f"{ep_id}: as before run {run}: {names}")
            say(f"to take that back: {describe_way_back(ep_id, made.run_id, root.name)}")


@backups_app.command("prune")
@with_setting_options(["keep_backups"])
def prune_command(
    ep_id: EPISODE,
    drop_first: Annotated[
        bool, typer.Option("--drop-first", help="Let go of the first one as well: the episode as it came.")
    ] = False,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    **settings: Any,
) -> None:
    """Removes old backups but for the newest ones and the first."""
    with one_line_errors():
        root, checked = _open(ep_id, out_root, config_dir)
        n_backups = resolve(settings, None, config_dir).settings.output.keep_backups
        with root.hold(checked):
            store = root.backups(checked)
            n_before = len(store.list_backups())
            _, n_bytes = store.prune(n_backups, is_first_kept=not drop_first)
            n_after = len(store.list_backups())
        say(f"{ep_id}: {n_before - n_after} backups removed, {n_bytes} bytes freed; {n_after} are kept")


def diff_command(
    ep_id: EPISODE,
    run_a: Annotated[
        str | None, typer.Argument(metavar="RUN_A", help="Alone: what this run changed.", show_default=False)
    ] = None,
    run_b: Annotated[
        str | None, typer.Argument(metavar="RUN_B", help="What RUN_A left, beside what RUN_B left.")
    ] = None,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
) -> None:
    """Shows what the last run changed in an episode, or one run, or what is different between what two runs left.

    cleanup diff rhobh-s05e02
    """
    with one_line_errors():
        from cleanup.entrypoints.episode_states import compare_runs
        from cleanup.names import check_run_id

        root, checked = _open(ep_id, out_root, config_dir)
        runs = [check_run_id(run) if run is not None else None for run in (run_a, run_b)]
        gate = resolve({}, None, config_dir).settings.split_tracks
        _print_changes(compare_runs(root, checked, runs[0], runs[1], gate), is_json=json_output)


def _print_changes(changes: dict[str, Any], *, is_json: bool) -> None:
    if is_json:
        print_json(changes)
        return
    from cleanup.entrypoints.display import describe_changes

    for line in describe_changes(changes):
        say(line)
