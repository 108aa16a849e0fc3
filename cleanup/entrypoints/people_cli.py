"""``cleanup people``: who is who in a show, across its episodes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cleanup.entrypoints.options import CONFIG_DIR, JSON_OUTPUT, OUT_ROOT, with_setting_options
from cleanup.entrypoints.shell import acting_user, one_line_errors, open_root, resolve
from cleanup.entrypoints.terminal import print_json, say, say_fields
from cleanup.errors import CleanupError, FacebankError, SettingsError

if TYPE_CHECKING:
    from cleanup.edges.data_root import DataRoot
    from cleanup.edges.postgres_facebank import PostgresFacebank
    from cleanup.edges.postgres_people import PostgresPeople
    from cleanup.names import EpId
    from cleanup.people import Key
    from cleanup.phases.seen_together import Question
    from cleanup.resolve_settings import ResolvedSettings

people_app = typer.Typer(help="Who is who in a show, across its episodes.", no_args_is_help=True)

SHOW = Annotated[str, typer.Option("--show", help="The show, as in its episode ids.")]
EPISODE = Annotated[str, typer.Argument(metavar="EP_ID", help="Episode id.")]
IDENTITY = Annotated[str, typer.Argument(metavar="IDENTITY", help="Identity id, as in identities.json.")]
PERSON = Annotated[str, typer.Argument(metavar="PERSON", help="Person id, name or alias.")]


@contextlib.contextmanager
def open_bank(settings: dict[str, Any], config_dir: str | None, out_root: str | None) -> Iterator[Bank]:
    """Root and Facebank of a command."""
    from cleanup.entrypoints.run_tools import facebank_of

    resolved = resolve(settings, None, config_dir)
    root = open_root(out_root, resolved)
    if not resolved.settings.group_clusters.facebank_dsn and not root.has_facebank():
        raise FacebankError(
            f"there is no Facebank under {root.name} yet; enrol people with: cleanup facebank enroll --show SHOW DIR, "
            "or name a server with --facebank-dsn"
        )
    with facebank_of(resolved, root) as facebank:
        yield Bank(root, facebank, resolved.settings.output.keep_backups)


class Bank:
    """A data root and its Facebank, and how many backups of an episode are kept."""

    def __init__(self, root: DataRoot, facebank: PostgresFacebank, n_backups: int) -> None:
        self.root, self.facebank, self.people, self.n_backups = root, facebank, facebank.people, n_backups

    def change(self, show: str, decide: Callable[[], Sequence[Key]]) -> None:
        """Changes people with the show held, and writes the new labels into the episodes' files."""
        from cleanup.entrypoints.people_labels import relabel_episodes

        with self.facebank.hold_show(show) as hold:
            before = self.people.list_visible(show)
            touched = decide()
            # Beside those touched: an unknown person may be seen in one episode now, or in a second one.
            affected = {ep_id for ep_id, *_ in before ^ self.people.list_visible(show)} | {ep for ep, _ in touched}
            failures = relabel_episodes(self.root, self.facebank, hold, affected, self.n_backups, touched)
        report_failures(failures)


def report_failures(failures: Sequence[str]) -> None:
    """A line for everything that failed, and then the exit code that says so."""
    for failure in failures:
        say(f"cleanup: {failure}", is_error=True)
    if failures:
        raise typer.Exit(1)


@people_app.command("list")
@with_setting_options(["facebank_dsn"])
def list_command(
    show: Annotated[str | None, typer.Option("--show", help="Only this show.")] = None,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
    **settings: Any,
) -> None:
    """Lists people, the unknown ones last, with the episodes they are seen in."""
    with one_line_errors(), open_bank(settings, config_dir, out_root) as bank:
        import dataclasses

        people = bank.people.list_people(show)
        if json_output:
            print_json([dataclasses.asdict(p) for p in people])
            return
        for p in people:
            also = f", also {', '.join(p.aliases)}" if p.aliases else ""
            name = "(unknown)" if p.is_unknown else p.name
            where = f"{p.n_identities} identities, {p.n_faces} faces in {', '.join(p.episodes) or 'no episode'}"
            say_fields(p.show, p.person_id, f"{name}{also}", f"{p.n_seeds} seeds", where)
        if not people:
            say("nobody is known yet; add people with: cleanup facebank enroll --show SHOW DIR", is_error=True)


@people_app.command("show")
@with_setting_options(["facebank_dsn"])
def show_command(
    person: PERSON,
    show: SHOW,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
    **settings: Any,
) -> None:
    """Lists the identities of a person in all episodes, and where each name came from."""
    with one_line_errors(), open_bank(settings, config_dir, out_root) as bank:
        rows = bank.people.list_identities(show, person)
        if json_output:
            print_json(rows)
            return
        for row in rows:
            counts = f"{row['tracks']} tracks", f"{row['faces']} faces"
            say_fields(row["ep_id"], row["identity_id"], *counts, row["source"])
        if not rows:
            say(f"{person} is in no episode yet", is_error=True)


@people_app.command("name")
@with_setting_options(["facebank_dsn"])
def name_command(
    person: PERSON,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name.")],
    show: SHOW,
    person_id: Annotated[
        str | None, typer.Option("--person-id", help="Id of the person. [made from the name]", show_default=False)
    ] = None,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    **settings: Any,
) -> None:
    """Names a person in every episode that holds them.

    cleanup people name unknown-0001 "Lisa" --show rhobh --person-id lisa
    """
    with one_line_errors(), open_bank(settings, config_dir, out_root) as bank:
        from cleanup.names import check_person_id, check_person_name

        name = check_person_name(name)
        if person_id is not None:
            check_person_id(person_id)
        touched: list[Key] = []

        def decide() -> list[Key]:
            touched[:] = bank.people.name(show, person, name, person_id, acting_user())
            return touched

        bank.change(show, decide)
        say(f"{show}: {person} is {name}, in {_count(touched)}")


def _count(touched: Sequence[Key]) -> str:
    n_episodes = len({ep_id for ep_id, _ in touched})
    return (
        f"{len(touched)} identit{'y' if len(touched) == 1 else 'ies'} of {n_episodes} episode{'s'[: n_episodes != 1]}"
    )


@people_app.command("merge")
@with_setting_options(["facebank_dsn"])
def merge_command(
    person: PERSON,
    into: Annotated[str, typer.Argument(metavar="INTO", help="Who stays: person id, name or alias.")],
    show: SHOW,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    **settings: Any,
) -> None:
    """Makes two people one: PERSON becomes INTO in every episode. Can be undone.

    Both may also be identities of one episode, as EP_ID:IDENTITY: the answer to a question of cleanup people questions.
    """
    if _is_key(person) and _is_key(into):
        _join(person, into, show, out_root, config_dir, settings)
        return
    with one_line_errors(), open_bank(settings, config_dir, out_root) as bank:
        bank.change(show, lambda: bank.people.merge(show, person, into, acting_user()))
        say(f"{show}: {person} is {into} now; cleanup people log --show {show} has the number to undo it by")


def _is_key(text: str) -> bool:
    from cleanup.names import is_ep_id

    return is_ep_id(text.partition(":")[0]) and ":" in text


def _join(
    person: str, into: str, show: str, out_root: str | None, config_dir: str | None, settings: dict[str, Any]
) -> None:
    with one_line_errors():
        from cleanup.entrypoints.people_questions import join
        from cleanup.names import check_ep_id

        key, into_key = _parse_key(person), _parse_key(into)
        if key[0] != into_key[0]:
            raise SettingsError(f"{person} and {into} are of two episodes; give both the name of the person")
        resolved = resolve(settings, None, config_dir)
        root, ep_id = open_root(out_root, resolved), check_ep_id(key[0])
        with _open_log(resolved, root) as people:
            if people is not None:
                people.check_show_of(ep_id, show)
            join(root, ep_id, key[1], into_key[1], resolved.settings.pooling, resolved.settings.output.keep_backups)
            if people is not None:
                people.join(show, key, into_key[1], acting_user())
        say(f"{ep_id}: {key[1]} is {into_key[1]} now; cleanup backups restore takes it back")


@contextlib.contextmanager
def _open_log(resolved: ResolvedSettings, root: DataRoot) -> Iterator[PostgresPeople | None]:
    """The Facebank's people, where there is a Facebank; that they can be written to is known before a file changes."""
    from cleanup.entrypoints.run_tools import facebank_of

    if not resolved.settings.group_clusters.facebank_dsn and not root.has_facebank():
        yield None
        return
    with facebank_of(resolved, root) as facebank:
        facebank.people.check_writable()
        yield facebank.people


@people_app.command("questions")
def questions_command(
    episodes: Annotated[
        list[str] | None, typer.Argument(metavar="EP_ID...", help="Episode ids. [all that have artifacts]")
    ] = None,
    show: Annotated[str | None, typer.Option("--show", help="Only this show.")] = None,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
) -> None:
    """Lists identities that share frames and look like one person: seen twice (a mirror, a screen, a poster), or twins.

    They are kept apart until somebody says what they are: cleanup people merge, or cleanup people apart.
    """
    with one_line_errors():
        from cleanup.entrypoints.people_questions import list_questions
        from cleanup.names import check_ep_id, show_of

        resolved = resolve({}, None, config_dir)
        root = open_root(out_root, resolved)
        wanted = [check_ep_id(ep_id) for ep_id in episodes] if episodes else root.list_episodes()
        found, failures = [], []
        for ep_id in [e for e in wanted if show in (None, show_of(e))]:
            try:
                found += [(ep_id, question) for question in list_questions(root, ep_id, resolved.settings.pooling)]
            except (CleanupError, OSError) as error:
                if episodes:
                    raise
                failures.append(str(error))
        if json_output:
            print_json([{"ep_id": ep_id, **question.describe()} for ep_id, question in found])
        else:
            _print_questions(found)
        report_failures(failures)


def _print_questions(found: Sequence[tuple[EpId, Question]]) -> None:
    for ep_id, question in found:
        first, second = question.identity_ids
        tracks = ", ".join(f"{a} with {b}" for a, b in question.track_ids)
        figures = f"{question.n_frames} frames", f"similarity {question.similarity:.2f}", f"tracks {tracks}"
        say_fields(ep_id, first, second, *figures)
    if found:
        say(
            "one person: cleanup people merge EP_ID:SECOND EP_ID:FIRST --show SHOW; two: cleanup people apart EP_ID "
            "FIRST SECOND",
            is_error=True,
        )
    else:
        say("nobody is seen twice in a frame, as far as is known", is_error=True)


@people_app.command("apart")
@with_setting_options(["facebank_dsn"])
def apart_command(
    ep_id: EPISODE,
    identity: IDENTITY,
    other: Annotated[str, typer.Argument(metavar="OTHER", help="The identity that is somebody else.")],
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    **settings: Any,
) -> None:
    """Says that two identities that share frames are two people, twins for example, however alike they look."""
    with one_line_errors():
        from cleanup.entrypoints.people_questions import set_apart
        from cleanup.names import check_ep_id

        resolved = resolve(settings, None, config_dir)
        root, checked = open_root(out_root, resolved), check_ep_id(ep_id)
        with _open_log(resolved, root) as people:
            is_new = set_apart(root, checked, identity, other, resolved.settings.output.keep_backups)
            if is_new and people is not None:
                show = _show_of(checked, None, settings, config_dir)
                people.log_apart(show, (ep_id, identity), other, acting_user())
        say(f"{ep_id}: {identity} and {other} are two people{'' if is_new else ' already'}")


@people_app.command("split")
@with_setting_options(["facebank_dsn"])
def split_command(
    person: PERSON,
    identities: Annotated[list[str], typer.Argument(metavar="EP_ID:IDENTITY...", help="Who is somebody else.")],
    show: SHOW,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    **settings: Any,
) -> None:
    """Takes identities out of a person; together they become an unknown person. Can be undone."""
    with one_line_errors(), open_bank(settings, config_dir, out_root) as bank:
        keys = [_parse_key(text) for text in identities]
        new_ids: list[str] = []

        def decide() -> list[Key]:
            new_id, touched = bank.people.split(show, person, keys, acting_user())
            new_ids.append(new_id)
            return touched

        bank.change(show, decide)
        say(f"{show}: {', '.join(identities)} is {new_ids[0]} now")


def _parse_key(text: str) -> Key:
    ep_id, colon, identity_id = text.partition(":")
    if not colon or not identity_id:
        raise SettingsError(f"{text!r} is not of the form EP_ID:IDENTITY, as in rhobh-s05e02:identity-00003")
    return ep_id, identity_id


@people_app.command("alias")
@with_setting_options(["facebank_dsn"])
def alias_command(
    person: PERSON,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="Another name.")],
    show: SHOW,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    **settings: Any,
) -> None:
    """Gives a person another name to be found by."""
    with one_line_errors(), open_bank(settings, config_dir, out_root) as bank:
        from cleanup.names import check_person_name

        bank.people.add_alias(show, person, check_person_name(alias), acting_user())
        say(f"{show}: {person} is also {alias}")


@people_app.command("reject")
@with_setting_options(["facebank_dsn"])
def reject_command(
    ep_id: EPISODE,
    identity: IDENTITY,
    person: PERSON,
    show: Annotated[str | None, typer.Option("--show", help="The show. [taken from the episode id]")] = None,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    **settings: Any,
) -> None:
    """Says that an identity is not a person; it is never named or suggested so again. Can be undone."""
    with one_line_errors(), open_bank(settings, config_dir, out_root) as bank:
        from cleanup.names import check_ep_id

        show_id = _show_of(check_ep_id(ep_id), show, settings, config_dir)
        bank.change(show_id, lambda: bank.people.reject(show_id, (ep_id, identity), person, acting_user()))
        say(f"{ep_id}: {identity} is not {person}")


def _show_of(ep_id: EpId, show: str | None, settings: dict[str, Any], config_dir: str | None) -> str:
    from cleanup.names import show_of

    return show or resolve(settings, None, config_dir).settings.group_clusters.show or show_of(ep_id)


def _set_lock(
    ep_id: str,
    identity: str,
    out_root: str | None,
    config_dir: str | None,
    settings: dict[str, Any],
    *,
    is_locked: bool,
) -> None:
    with one_line_errors():
        from cleanup.entrypoints.people_labels import set_lock
        from cleanup.names import check_ep_id

        resolved = resolve(settings, None, config_dir)
        root, checked = open_root(out_root, resolved), check_ep_id(ep_id)
        n_backups = resolved.settings.output.keep_backups
        word = "locked" if is_locked else "unlocked"
        with _open_log(resolved, root) as people:
            is_changed = set_lock(root, checked, identity, n_backups, is_locked=is_locked)
            if is_changed and people is not None:
                show = _show_of(checked, None, settings, config_dir)
                people.log_lock(show, (ep_id, identity), acting_user(), is_locked=is_locked)
        say(f"{ep_id}: {identity} is {word}{'' if is_changed else ' already'}")


@people_app.command("lock")
@with_setting_options(["facebank_dsn"])
def lock_command(
    ep_id: EPISODE, identity: IDENTITY, out_root: OUT_ROOT = None, config_dir: CONFIG_DIR = None, **settings: Any
) -> None:
    """Locks an identity: runs leave its tracks and its name alone."""
    _set_lock(ep_id, identity, out_root, config_dir, settings, is_locked=True)


@people_app.command("unlock")
@with_setting_options(["facebank_dsn"])
def unlock_command(
    ep_id: EPISODE, identity: IDENTITY, out_root: OUT_ROOT = None, config_dir: CONFIG_DIR = None, **settings: Any
) -> None:
    """Unlocks an identity."""
    _set_lock(ep_id, identity, out_root, config_dir, settings, is_locked=False)


@people_app.command("log")
@with_setting_options(["facebank_dsn"])
def log_command(
    show: SHOW,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many events.")] = 50,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
    **settings: Any,
) -> None:
    """Lists what happened to a show's people: who or what did it, and why; newest first."""
    with one_line_errors(), open_bank(settings, config_dir, out_root) as bank:
        import dataclasses

        events = bank.people.list_events(show, limit)
        if json_output:
            print_json([dataclasses.asdict(event) for event in events])
            return
        for event in events:
            where = " ".join(part for part in (event.ep_id, event.identity_id) if part)
            undone = f" (undone by {event.undone_by})" if event.undone_by is not None else ""
            who = event.person_id or "nobody"
            say_fields(event.event_id, event.at, event.kind, who, where, event.reason, f"{event.actor}{undone}")


@people_app.command("undo")
@with_setting_options(["facebank_dsn"])
def undo_command(
    event: Annotated[int, typer.Argument(metavar="EVENT", help="Number of the event, as cleanup people log has it.")],
    show: SHOW,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    **settings: Any,
) -> None:
    """Takes back a name, merge, split, alias or rejection, in every episode."""
    with one_line_errors(), open_bank(settings, config_dir, out_root) as bank:
        bank.change(show, lambda: bank.people.undo(show, event, acting_user()))
        say(f"{show}: event {event} is undone")


@people_app.command("sync")
@with_setting_options(["facebank_dsn"])
def sync_command(show: SHOW, out_root: OUT_ROOT = None, config_dir: CONFIG_DIR = None, **settings: Any) -> None:
    """Writes the Facebank's names into all episodes of a show; for episodes that were busy when somebody was named."""
    with one_line_errors(), open_bank(settings, config_dir, out_root) as bank:
        from cleanup.entrypoints.people_labels import relabel_episodes

        with bank.facebank.hold_show(show) as hold:
            episodes = bank.people.list_episodes(show)
            confirmed = bank.people.list_confirmed(show)
            report_failures(relabel_episodes(bank.root, bank.facebank, hold, episodes, bank.n_backups, confirmed))
        say(f"{show}: the labels of {len(episodes)} episodes are up to date")
