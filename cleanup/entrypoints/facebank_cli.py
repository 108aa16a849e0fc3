"""``cleanup facebank``: the known people and their seed photos."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cleanup.entrypoints.options import CONFIG_DIR, JSON_OUTPUT, OUT_ROOT, with_setting_options
from cleanup.entrypoints.people_cli import PERSON, SHOW, open_bank
from cleanup.entrypoints.shell import acting_user, one_line_errors, open_root, resolve
from cleanup.entrypoints.terminal import print_json, say, say_fields
from cleanup.errors import CleanupError, FacebankError, SettingsError, VideoError

if TYPE_CHECKING:
    from cleanup.edges.data_root import DataRoot
    from cleanup.edges.postgres_facebank import StoredSeed
    from cleanup.names import EpId
    from cleanup.resolve_settings import ResolvedSettings

facebank_app = typer.Typer(help="The known people: photos in, names out.", no_args_is_help=True)

ONE_SHOW = Annotated[str | None, typer.Option("--show", help="Only this show. [all]", show_default=False)]
DRY_RUN = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
PHOTOS_HELP = "One folder per person, DIR/PERSON, with JPEG, PNG, WebP, AVIF, TIFF, BMP or GIF pictures."
PHOTOS = Annotated[Path, typer.Argument(metavar="DIR", help=PHOTOS_HELP)]
LARGEST = Annotated[bool, typer.Option("--largest", help="Of several faces in a photo take the largest.")]
ALIGNED = Annotated[bool, typer.Option("--aligned", help="The photos are aligned 112x112 crops; nothing is detected.")]


def _tell(line: str, value: dict[str, Any], *, is_json: bool) -> None:
    if is_json:
        print_json(value)
    else:
        say(line)


def _count_seeds(n_seeds: int) -> str:
    return f"{n_seeds} seed{'' if n_seeds == 1 else 's'}"


@facebank_app.command("enroll")
@with_setting_options(["models", "device", "facebank_dsn", "det_thresh"])
def enroll_command(
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help=PHOTOS_HELP)] = None,
    show: Annotated[
        str | None, typer.Option("--show", help="Show the people belong to, as in its episode ids.")
    ] = None,
    from_episode: Annotated[
        str | None,
        typer.Option("--from-episode", metavar="EP_ID", help="Take the best faces of --identity instead of photos."),
    ] = None,
    identity: Annotated[
        str | None, typer.Option("--identity", help="An identity that a person named or locked, or that is --person.")
    ] = None,
    person: Annotated[str | None, typer.Option("--person", help="Whose faces these are, with --from-episode.")] = None,
    faces: Annotated[int, typer.Option("--faces", min=1, max=50, help="How many faces, with --from-episode.")] = 5,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    largest: LARGEST = False,
    aligned: ALIGNED = False,
    keep_originals: Annotated[
        bool, typer.Option("--keep-originals", help="Keep the photos themselves beside the pictures made of them.")
    ] = False,
    dry_run: DRY_RUN = False,
    json_output: JSON_OUTPUT = False,
    **settings: Any,
) -> None:
    """Adds photos of known people, or faces confirmed in an episode; each with one clear face becomes a seed."""
    with one_line_errors(), tempfile.TemporaryDirectory(prefix="cleanup-faces-") as scratch:
        import dataclasses

        from cleanup.edges.photo_folders import find_photos
        from cleanup.edges.seed_images import save_images
        from cleanup.edges.seed_photos import embed_photos
        from cleanup.entrypoints.enrolment import (
            Enrolment,
            PhotoAccount,
            check_duplicates,
            load_face_models,
            make_rules,
        )
        from cleanup.entrypoints.run_tools import facebank_of
        from cleanup.names import check_ep_id, check_show, show_of

        resolved = resolve(settings, None, config_dir)
        root = open_root(out_root, resolved)
        if (folder is None) == (from_episode is None) or (from_episode is None) != (identity is None):
            raise SettingsError("give either DIR, or --from-episode with --identity")
        if folder is None:
            assert from_episode is not None and identity is not None
            ep_id = check_ep_id(from_episode)
            show = show or show_of(ep_id)
            folder = Path(scratch)
            _cut_confirmed(root, resolved, ep_id, identity, person, folder, faces)
            largest = True
        elif show is None:
            raise SettingsError("--show is needed: the show the people belong to, as in its episode ids")
        checked = check_show(show)
        photos = find_photos(folder)
        models = load_face_models(resolved)
        outcomes = list(embed_photos(photos.photos, models, make_rules(resolved, largest=largest, aligned=aligned)))
        if from_episode is not None:  # the folder they lie in is gone in a moment
            outcomes = [dataclasses.replace(o, path=Path(o.path.name)) for o in outcomes]
        n_new = 0
        with facebank_of(resolved, root) as facebank:
            stored = facebank.list_seeds(show)
            outcomes = check_duplicates(outcomes, stored, models.recogniser.name)
            found = [(o.seed, o.images) for o in outcomes if o.seed is not None and o.images is not None]
            if not dry_run:
                known = {(s.seed.person_id, s.seed.image_sha256) for s in stored}
                seeds = [
                    seed
                    if (seed.person_id, seed.image_sha256) in known
                    else save_images(root, checked, seed, images, keeps_original=keep_originals)
                    for seed, images in found
                ]
                n_new = facebank.enroll(show, models.recogniser.name, models.recogniser.sha256, seeds)
        result = Enrolment(show, PhotoAccount(photos, outcomes), n_new, dry_run)
        if json_output:
            print_json(result.to_json())
        else:
            result.tell()
        if not found:
            raise typer.Exit(CleanupError.exit_code)


def _cut_confirmed(
    root: DataRoot,
    resolved: ResolvedSettings,
    ep_id: EpId,
    identity: str,
    person: str | None,
    folder: Path,
    n_faces: int,
) -> None:
    """Puts the best faces of a confirmed identity into a folder of photos."""
    from cleanup.edges.artifact_reading import read_episode
    from cleanup.edges.confirmed_faces import write_best_faces
    from cleanup.edges.frame_counts import FrameCounts
    from cleanup.edges.remote_files import is_url
    from cleanup.edges.video_frames import VideoFrames
    from cleanup.entrypoints.run_tools import find_view, node_cache
    from cleanup.names import check_person_id
    from cleanup.phases.identity_rows import is_human_named

    root.check_episode(ep_id)
    episode = root.read_settled(ep_id, read_episode)
    row = next((r for r in episode.identities.to_pylist() if r["identity_id"] == identity), None)
    if row is None:
        raise FacebankError(f"{root.show(root.paths(ep_id).identities)}: no identity {identity!r}")
    if person is None and not (row["person_id"] and (row["is_locked"] or is_human_named(row))):
        raise FacebankError(
            f"{ep_id}: {identity} was not confirmed by a person; name it (cleanup people name), lock it "
            "(cleanup people lock) or say whose faces these are with --person"
        )
    target = folder / check_person_id(person or row["person_id"])
    target.mkdir()
    video = root.find_video(ep_id)
    if video is None:
        raise VideoError(f"{root.show(root.paths(ep_id).video)}: no video, and the faces are cut out of it")
    path = node_cache(resolved).fetch(video) if is_url(video) else Path(video)
    view = find_view(root.paths(ep_id))
    with VideoFrames(path, 0, FrameCounts(node_cache(resolved).folder), view) as frames:
        write_best_faces(episode, identity, frames, target, n_faces)


@facebank_app.command("list")
@with_setting_options(["facebank_dsn"])
def list_command(
    show: ONE_SHOW = None,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
    **settings: Any,
) -> None:
    """Lists the known people with their seeds."""
    with one_line_errors():
        import dataclasses

        from cleanup.entrypoints.run_tools import facebank_of

        resolved = resolve(settings, None, config_dir)
        with facebank_of(resolved, open_root(out_root, resolved)) as facebank:
            people = facebank.list_people(show)
        if json_output:
            print_json([dataclasses.asdict(p) for p in people])
            return
        for person in people:
            models = ", ".join(person.models) or "none"
            say_fields(person.show, person.person_id, person.name, _count_seeds(person.n_seeds), models)
        if not people:
            say("nobody is enrolled; add people with: cleanup facebank enroll --show SHOW DIR", is_error=True)


def _describe(entry: StoredSeed) -> dict[str, Any]:
    seed = entry.seed
    return {
        "seed_id": entry.seed_id,
        "show": entry.show,
        "person_id": seed.person_id,
        "image_name": seed.image_name,
        "image_sha256": seed.image_sha256,
        "model": entry.model,
        "dimension": len(seed.embedding),
        "confidence": round(seed.confidence, 4),
        "quality": None if seed.quality is None else round(seed.quality, 4),
        "featured": entry.is_featured,
        "embed_path": seed.embed_path,
        "display_path": seed.display_path,
        "original_path": seed.original_path,
    }


@facebank_app.command("show")
@with_setting_options(["facebank_dsn"])
def show_command(
    person: PERSON,
    show: SHOW,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
    **settings: Any,
) -> None:
    """Lists a person's seeds."""
    with one_line_errors(), open_bank(settings, config_dir, out_root) as bank:
        seeds = bank.facebank.list_seeds(show, bank.people.find_id(show, person))
        if json_output:
            print_json([_describe(entry) for entry in seeds])
            return
        for entry in seeds:
            quality = "-" if entry.seed.quality is None else f"{entry.seed.quality:.2f}"
            star = " *" if entry.is_featured else ""
            picture = f"{entry.seed.display_path or 'no picture'}{star}"
            say_fields(entry.seed_id, entry.seed.image_name, f"quality {quality}", entry.model, picture)
        if not seeds:
            say(f"{person} has no seeds", is_error=True)


@facebank_app.command("feature")
@with_setting_options(["facebank_dsn"])
def feature_command(
    seed: Annotated[str, typer.Argument(metavar="SEED", help="Seed id, or how it begins.")],
    dry_run: DRY_RUN = False,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
    **settings: Any,
) -> None:
    """Makes a seed the one that stands for its person."""
    with one_line_errors(), open_bank(settings, config_dir, out_root) as bank:
        entry = bank.facebank.find_seed(seed) if dry_run else bank.facebank.feature(seed)
        word = "would stand" if dry_run else "stands"
        _tell(
            f"{entry.show}: {entry.seed.image_name} {word} for {entry.seed.person_id}",
            {"dry_run": dry_run, **_describe(entry)},
            is_json=json_output,
        )


@facebank_app.command("remove")
@with_setting_options(["facebank_dsn"])
def remove_command(
    show: Annotated[str, typer.Option("--show", help="Show of the person.")],
    person: Annotated[str, typer.Option("--person", help="Person id.")],
    dry_run: DRY_RUN = False,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
    **settings: Any,
) -> None:
    """Removes a person with all seeds; their name goes from the episodes too."""
    with one_line_errors(), open_bank(settings, config_dir, out_root) as bank:
        if dry_run:
            n_seeds = len(bank.facebank.list_seeds(show, bank.people.find_id(show, person)))
            identities = bank.people.list_identities(show, person)
            _tell(
                f"{show}: {person} would go with {_count_seeds(n_seeds)}, {len(identities)} identities lose the name",
                {"show": show, "person_id": person, "dry_run": True, "seeds": n_seeds, "identities": len(identities)},
                is_json=json_output,
            )
            return
        removed: list[int] = []
        touched: list[tuple[str, str]] = []

        def decide() -> list[tuple[str, str]]:
            known = person in {p.person_id for p in bank.people.list_people(show)}
            keys = [(r["ep_id"], r["identity_id"]) for r in bank.people.list_identities(show, person)] if known else []
            removed.append(bank.facebank.remove(show, person, acting_user()))
            touched[:] = keys
            return keys

        bank.change(show, decide)
        _tell(
            f"{show}: {person} removed with {_count_seeds(removed[0])}",
            {"show": show, "person_id": person, "dry_run": False, "seeds": removed[0], "identities": len(touched)},
            is_json=json_output,
        )


@facebank_app.command("stats")
@with_setting_options(["facebank_dsn"])
def stats_command(
    show: ONE_SHOW = None,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
    **settings: Any,
) -> None:
    """Counts people and seeds by show, and shows which two people look most alike."""
    with one_line_errors(), open_bank(settings, config_dir, out_root) as bank:
        from cleanup.algorithms.seed_statistics import describe_seeds

        entries = bank.facebank.list_seeds(show)
        rows = []
        for name in sorted({entry.show for entry in entries}):
            of_show = [entry for entry in entries if entry.show == name]
            people = [entry.seed.person_id for entry in of_show]
            rows.append(
                {
                    "show": name,
                    "models": sorted({entry.model for entry in of_show}),
                    "without_pictures": sum(entry.seed.embed_path is None for entry in of_show),
                    **describe_seeds(people, [entry.seed.embedding for entry in of_show]),
                }
            )
        if json_output:
            print_json(rows)
            return
        for row in rows:
            seeds = f"{row['people']} people, {_count_seeds(row['seeds'])} ({', '.join(row['models'])})"
            say_fields(row["show"], f"{seeds}, {row['without_pictures']} without pictures")
            if row["most_alike"] is not None:
                alike = row["most_alike"]
                pair = " and ".join(alike["people"])
                say_fields("", f"most alike: {pair}, {alike['similarity']:.3f}")
        if not rows:
            say("nobody is enrolled; add people with: cleanup facebank enroll --show SHOW DIR", is_error=True)


@facebank_app.command("export")
@with_setting_options(["facebank_dsn"])
def export_command(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="The archive, FILE.tar.gz.")],
    show: ONE_SHOW = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")] = False,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
    **settings: Any,
) -> None:
    """Writes people, seeds and pictures into one archive."""
    with one_line_errors(), open_bank(settings, config_dir, out_root) as bank:
        from cleanup.edges.seed_archive import export_seeds

        if target.exists() and not force:
            raise FacebankError(f"{target} is there already; --force replaces it")
        n_seeds, n_images = export_seeds(bank.root, bank.facebank, show, target)
        _tell(
            f"{target}: {_count_seeds(n_seeds)}, {n_images} pictures",
            {"file": str(target), "seeds": n_seeds, "pictures": n_images},
            is_json=json_output,
        )


@facebank_app.command("import")
@with_setting_options(["facebank_dsn"])
def import_command(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="An archive that export wrote.")],
    dry_run: DRY_RUN = False,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
    **settings: Any,
) -> None:
    """Adds people, seeds and pictures of an archive; what is there already stays."""
    with one_line_errors():
        from cleanup.edges.seed_archive import import_seeds
        from cleanup.entrypoints.run_tools import facebank_of

        resolved = resolve(settings, None, config_dir)
        root = open_root(out_root, resolved)
        with facebank_of(resolved, root) as facebank:
            n_seeds, n_new = import_seeds(root, facebank, source, is_dry_run=dry_run)
        done = f"{n_new} new, {n_seeds - n_new} were there already"
        _tell(
            f"{source}: {_count_seeds(n_seeds)}, {'valid; nothing was done' if dry_run else done}",
            {"file": str(source), "dry_run": dry_run, "seeds": n_seeds, "enrolled": n_new},
            is_json=json_output,
        )


@facebank_app.command("adopt")
def adopt_command(out_root: OUT_ROOT = None, config_dir: CONFIG_DIR = None, json_output: JSON_OUTPUT = False) -> None:
    """Lets a data root's own Facebank be started that somebody else made, or another user, machine or container.

    A PostgreSQL folder can run code of whoever made it, as the user that is printed. Adopt one only if you trust where
    it comes from; else have its people exported there (cleanup facebank export) and import the archive.
    """
    with one_line_errors():
        from cleanup.edges.embedded_postgres import adopt_embedded_facebank

        folder = open_root(out_root, resolve({}, None, config_dir)).facebank_folder()
        user = adopt_embedded_facebank(folder)
        _tell(
            f"{folder}: adopted; from now on it is started here, and what its maker put into it runs as {user}",
            {"folder": str(folder), "runs_as": user},
            is_json=json_output,
        )


@facebank_app.command("reembed")
@with_setting_options(["models", "device", "facebank_dsn"])
def reembed_command(
    show: ONE_SHOW = None,
    dry_run: DRY_RUN = False,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
    **settings: Any,
) -> None:
    """Embeds all seeds anew with the model of --models, from their kept crops; all or none."""
    with one_line_errors(), open_bank(settings, config_dir, out_root) as bank:
        import numpy as np

        from cleanup.edges.seed_images import read_crop
        from cleanup.entrypoints.enrolment import load_face_models

        entries = bank.facebank.list_seeds(show)
        crops = [read_crop(bank.root, entry.seed) for entry in entries]
        if not crops:
            raise FacebankError("there are no seeds to embed anew; add people with: cleanup facebank enroll")
        recogniser = load_face_models(resolve(settings, None, config_dir)).recogniser
        vectors = recogniser.embed(np.stack(crops))
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        bad = [e.seed.image_name for e, norm in zip(entries, norms[:, 0], strict=True) if not norm > 0]
        if bad:
            raise FacebankError(f"the model gives no embedding for {', '.join(bad)}; nothing was changed")
        told = {"dry_run": dry_run, "seeds": len(entries), "model": recogniser.name, "dimension": vectors.shape[1]}
        if dry_run:
            line = f"{_count_seeds(len(entries))} would be embedded anew with {recogniser.name}; nothing was done"
            _tell(line, told, is_json=json_output)
            return
        embeddings = {e.seed_id: v for e, v in zip(entries, (vectors / norms).astype(np.float32), strict=True)}
        bank.facebank.replace_embeddings(
            recogniser.name, recogniser.sha256, embeddings, sorted({entry.show for entry in entries})
        )
        line = f"{_count_seeds(len(entries))} embedded anew with {recogniser.name} ({vectors.shape[1]} dimensions)"
        _tell(line, told, is_json=json_output)


@facebank_app.command("backfill")
@with_setting_options(["models", "device", "facebank_dsn", "det_thresh"])
def backfill_command(
    folder: PHOTOS,
    show: SHOW,
    largest: LARGEST = False,
    aligned: ALIGNED = False,
    keep_originals: Annotated[bool, typer.Option("--keep-originals", help="Keep the photos themselves too.")] = False,
    dry_run: DRY_RUN = False,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
    **settings: Any,
) -> None:
    """Makes the pictures of seeds that have none, from the photos they were enrolled from."""
    with one_line_errors(), open_bank(settings, config_dir, out_root) as bank:
        from cleanup.edges.photo_folders import find_photos
        from cleanup.edges.seed_images import read_image, save_images
        from cleanup.edges.seed_photos import embed_photos
        from cleanup.entrypoints.enrolment import load_face_models, make_rules
        from cleanup.names import check_show

        resolved = resolve(settings, None, config_dir)
        entries = [
            e
            for e in bank.facebank.list_seeds(show)
            if e.seed.embed_path is None or read_image(bank.root, e.seed.embed_path) is None
        ]
        rules = make_rules(resolved, largest=largest, aligned=aligned)
        found = {}
        for outcome in embed_photos(find_photos(folder).photos, load_face_models(resolved), rules):
            if outcome.seed is not None and outcome.images is not None:
                found[outcome.person_id, outcome.seed.image_sha256] = outcome.seed, outcome.images
        filled = {}
        for entry in entries:
            pair = found.get((entry.seed.person_id, entry.seed.image_sha256))
            if pair is not None:
                seed, images = pair
                if not dry_run:
                    seed = save_images(bank.root, check_show(show), seed, images, keeps_original=keep_originals)
                filled[entry.seed_id] = seed
            else:
                say(f"{entry.seed.person_id}: {entry.seed.image_name} is not in {folder}", is_error=True)
        if not dry_run:
            bank.facebank.set_images(filled)
        word = "would get" if dry_run else "got"
        n_left = len(entries) - len(filled)
        _tell(
            f"{show}: {_count_seeds(len(filled))} {word} pictures, {n_left} still have none",
            {"show": show, "dry_run": dry_run, "filled": len(filled), "without_pictures": n_left},
            is_json=json_output,
        )


@facebank_app.command("check")
@with_setting_options(["facebank_dsn"])
def check_command(
    show: ONE_SHOW = None,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
    **settings: Any,
) -> None:
    """Checks every seed: norm, model, pictures, the photo's digest; ends with 1 if something is wrong."""
    with one_line_errors(), open_bank(settings, config_dir, out_root) as bank:
        from cleanup.edges.seed_images import find_problems

        entries = bank.facebank.list_seeds(show)
        problems = find_problems(bank.root, entries)
        if json_output:
            print_json({"seeds": len(entries), "problems": problems})
        else:
            for problem in problems:
                say(problem)
            say(f"{_count_seeds(len(entries))}, {len(problems)} problem{'' if len(problems) == 1 else 's'}")
        if problems:
            raise typer.Exit(1)
