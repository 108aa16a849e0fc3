"""``cleanup models``: what two people look like to a recogniser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cleanup.entrypoints.facebank_cli import ALIGNED, DRY_RUN, LARGEST, PHOTOS_HELP
from cleanup.entrypoints.options import CONFIG_DIR, JSON_OUTPUT, OUT_ROOT, with_setting_options
from cleanup.entrypoints.people_cli import open_bank
from cleanup.entrypoints.shell import one_line_errors, open_root, resolve
from cleanup.entrypoints.terminal import print_json, say, say_fields
from cleanup.errors import FacebankError

if TYPE_CHECKING:
    from cleanup.algorithms.similarity_scale import SamePerson
    from cleanup.edges.onnx_models import FaceRecogniser
    from cleanup.edges.postgres_calibrations import Calibration
    from cleanup.entrypoints.enrolment import PhotoAccount

models_app = typer.Typer(help="Recognisers, and what two people look like to them.", no_args_is_help=True)


@models_app.command("calibrate")
@with_setting_options(["models", "device", "facebank_dsn", "det_thresh"])
def calibrate_command(
    photos: Annotated[Path, typer.Option("--photos", metavar="DIR", help=PHOTOS_HELP)],
    largest: LARGEST = False,
    aligned: ALIGNED = False,
    dry_run: DRY_RUN = False,
    out_root: OUT_ROOT = None,
    config_dir: CONFIG_DIR = None,
    json_output: JSON_OUTPUT = False,
    **settings: Any,
) -> None:
    """Measures on photos of three people or more what two people look like to the model of --models, and keeps it.

    Runs place their thresholds by it where an episode shows too few people.
    """
    with one_line_errors():
        from cleanup.edges.photo_folders import find_photos
        from cleanup.edges.seed_photos import embed_photos
        from cleanup.entrypoints.enrolment import PhotoAccount, check_duplicates, load_face_models, make_rules
        from cleanup.entrypoints.run_tools import facebank_of

        resolved = resolve(settings, None, config_dir)
        root = open_root(out_root, resolved)
        found = find_photos(photos)
        models = load_face_models(resolved)
        outcomes = embed_photos(found.photos, models, make_rules(resolved, largest=largest, aligned=aligned))
        account = PhotoAccount(found, check_duplicates(list(outcomes), [], models.recogniser.name))
        if not json_output:
            account.tell()
        calibration, same = _measure(account, models.recogniser)
        if not dry_run:
            with facebank_of(resolved, root) as facebank:
                facebank.calibrations.keep(calibration)
        if json_output:
            one = None if same is None else {"pairs": same.n_pairs, "median": same.median, "tenth": same.tenth}
            print_json({**_describe(calibration), "one_person": one, "dry_run": dry_run, **account.to_json()})
        else:
            _tell(calibration, same, account.n_refused, is_dry_run=dry_run)


def _measure(account: PhotoAccount, recogniser: FaceRecogniser) -> tuple[Calibration, SamePerson | None]:
    """What the photos tell; each counts once, however often it lies there.

    Raises:
        FacebankError: They show too few people, or photos of one person are no more alike than those of two.
    """
    import numpy as np

    from cleanup.algorithms.similarity_scale import CUT_POSITION, MIN_PEOPLE, calibrate_scale, measure_same_person
    from cleanup.edges.postgres_calibrations import Calibration

    seeds = {(o.seed.person_id, o.seed.image_sha256): o.seed.embedding for o in account.outcomes if o.seed is not None}
    vectors, people = np.array(list(seeds.values())), [person for person, _ in seeds]
    scale = calibrate_scale(vectors, people) if seeds else None
    if scale is None:
        raise FacebankError(
            f"nothing was measured: photos of at least {MIN_PEOPLE} people are needed, and {account.n_people} "
            f"{'has' if account.n_people == 1 else 'have'} one with a clear face ({account.n_refused} refused)"
        )
    same = measure_same_person(vectors, people)
    if same is not None and scale.position_of(same.median) < CUT_POSITION:
        raise FacebankError(
            f"nothing was measured: two photos of one person are at {same.median:.3f}, those of two people at "
            f"{scale.strangers:.3f}, which is nearly the same; each folder has to hold one person's photos"
        )
    calibration = Calibration(recogniser.name, recogniser.sha256, scale, account.n_people, len(people))
    return calibration, same


def _describe(calibration: Calibration) -> dict[str, Any]:
    return {
        "model": calibration.model,
        "model_sha256": calibration.model_sha256,
        "strangers": calibration.scale.strangers,
        "people": calibration.n_people,
        "photos": calibration.n_photos,
        "pairs": calibration.scale.n_pairs,
    }


def _tell(calibration: Calibration, same: SamePerson | None, n_refused: int, *, is_dry_run: bool) -> None:
    counts = f"{calibration.n_people} people, {calibration.n_photos} photos, {n_refused} refused"
    say(f"two people: {calibration.scale.strangers:.3f}, the median of {calibration.scale.n_pairs} pairs ({counts})")
    if same is not None:
        pairs = f"of {same.n_pairs} pair{'' if same.n_pairs == 1 else 's'} of photos"
        say(f"one person: {same.median:.3f}, the median {pairs}; 10th percentile {same.tenth:.3f}")
    what = "nothing was kept" if is_dry_run else "kept with the Facebank"
    say(f"{calibration.model} ({calibration.model_sha256[:12]}): {what}")


@models_app.command("list")
@with_setting_options(["facebank_dsn"])
def list_command(
    out_root: OUT_ROOT = None, config_dir: CONFIG_DIR = None, json_output: JSON_OUTPUT = False, **settings: Any
) -> None:
    """Lists the models that were calibrated, the last one first."""
    with one_line_errors(), open_bank(settings, config_dir, out_root) as bank:
        calibrations = bank.facebank.calibrations.list_all()
        if json_output:
            print_json([{**_describe(c), "measured_at": c.measured_at} for c in calibrations])
            return
        for c in calibrations:
            counts = f"{c.n_people} people, {c.n_photos} photos, {c.scale.n_pairs} pairs"
            strangers = f"two people at {c.scale.strangers:.3f}"
            say_fields(c.model, c.model_sha256[:12], strangers, counts, f"{c.measured_at:%Y-%m-%d}")
        if not calibrations:
            say("no model is calibrated; measure one with: cleanup models calibrate --photos DIR", is_error=True)
