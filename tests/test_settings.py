"""Five levels, one winner, and no value that nobody reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from cleanup.errors import SettingsError
from cleanup.resolve_settings import find_config_dir, read_config, resolve
from cleanup.settings import SPECS
from tests.conftest import ROOT
from tests.entrypoints.test_cli import cleanup

CONFIG = ROOT / "config" / "pipeline"


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CONFIG, tmp_path / "config"))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_each_level_beats_the_next(config_dir: Path) -> None:
    edit(config_dir / "tracking.yaml", "gate_enabled: true", "gate_enabled: true\ngate:\n  appear_hard: 0.61")
    config = read_config(config_dir)
    environment = {"TRACK_GATE_APPEAR_HARD": "0.62"}

    def winner(explicit: dict[str, float], env: dict[str, str]) -> tuple[float, str]:
        resolved = resolve(explicit, env, "balanced", config)
        return resolved.value("gate_hard").value, resolved.sources["gate_hard"]

    assert winner({"gate_hard": 0.63}, environment) == (0.63, "explicit")
    assert winner({}, environment) == (0.62, "environment TRACK_GATE_APPEAR_HARD")
    assert winner({}, {}) == (0.61, "tracking.yaml:gate.appear_hard")
    assert resolve({}, {}, "balanced", read_config(CONFIG)).sources["gate_hard"] == "fallback"


def test_the_profile_beats_the_stage_yaml() -> None:
    resolved = resolve({}, {}, "low_power", read_config(CONFIG))

    assert (resolved.value("min_size"), resolved.sources["min_size"]) == (120, "profile low_power")


def test_a_profile_without_the_key_leaves_the_stage_yaml(config_dir: Path) -> None:
    edit(config_dir / "performance_profiles.yaml", "fast_cpu: low_power", "fast_cpu: low_power\nmine:\n  stride: 2")

    resolved = resolve({}, {}, "mine", read_config(config_dir))

    assert (resolved.value("min_size"), resolved.sources["min_size"]) == (16, "detection.yaml:min_size")


def test_fast_cpu_is_low_power_under_another_name() -> None:
    config = read_config(CONFIG)

    assert resolve({}, {}, "fast_cpu", config).settings == resolve({}, {}, "low_power", config).settings


def test_the_profile_may_come_from_the_environment() -> None:
    config = read_config(CONFIG)

    assert resolve({}, {"SCREENALYTICS_PERF_PROFILE": "high_accuracy"}, None, config).value("stride") == 1
    assert resolve({}, {"SCREENALYTICS_PERF_PROFILE": "high_accuracy"}, "balanced", config).value("stride") == 5


def test_every_documented_key_is_there() -> None:
    """The keys that users of the files rely on."""
    clustering = yaml.safe_load((CONFIG / "clustering.yaml").read_text())
    tracking = yaml.safe_load((CONFIG / "tracking.yaml").read_text())
    sampling = yaml.safe_load((CONFIG / "faces_embed_sampling.yaml").read_text())

    assert {"cluster_thresh", "min_cluster_size", "min_identity_sim", "metrics_thresholds"} < set(clustering)
    assert clustering["track_prototype"] == {"max_samples": 6, "sim_delta": 0.08, "sim_min": 0.60}
    assert {"track_thresh", "match_thresh", "track_buffer", "max_track_buffer", "gate_enabled"} == set(tracking)
    assert set(sampling["limits"]) == {"low_power", "fast_cpu", "balanced", "high_accuracy"}


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "clustering.yaml",
            "cluster_thresh: 0.25",
            "cluster_tresh: 0.25",
            r"clustering.yaml: unknown key cluster_tresh",
        ),
        (
            "clustering.yaml",
            "cluster_thresh: 0.25",
            "cluster_thresh: 1.5",
            r"clustering.yaml:cluster_thresh: .*from -1",
        ),
        ("clustering.yaml", "min_cluster_size: 1", "min_cluster_size: yes please", r"must be a whole number"),
        ("clustering.yaml", "min_cluster_size: 1", "min_cluster_size: 1.5", r"must be a whole number"),
        ("clustering.yaml", "cluster_thresh: 0.25", "cluster_thresh: [", r"clustering.yaml:\d+: not valid YAML"),
        ("tracking.yaml", "gate_enabled: true", "gate_enabled: perhaps", r"must be true or false"),
        ("performance_profiles.yaml", "  stride: 8", "  strides: 8", r"unknown key low_power.strides"),
        ("performance_profiles.yaml", "fast_cpu: low_power", "fast_cpu: no_such", r"points to 'no_such'"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(config_dir: Path, file: str, old: str, new: str, message: str) -> None:
    edit(config_dir / file, old, new)

    with pytest.raises(SettingsError, match=message):
        resolve({}, {}, None, read_config(config_dir))


def test_a_missing_file_is_an_error(config_dir: Path) -> None:
    (config_dir / "tracking.yaml").unlink()

    with pytest.raises(SettingsError, match="tracking.yaml: missing"):
        read_config(config_dir)


@pytest.mark.parametrize(
    ("explicit", "environment", "profile", "message"),
    [
        ({"no_such": 1}, {}, None, "unknown setting 'no_such'"),
        ({"stride": 0}, {}, None, "explicit: stride must be at least 1"),
        ({"engine": "spark"}, {}, None, "engine must be one of auto, local, ray"),
        ({"cluster_thresh": float("nan")}, {}, None, "must be a number"),
        ({}, {"TRACK_GATE_IOU": "much"}, None, "environment TRACK_GATE_IOU: gate_iou must be a number"),
        ({}, {}, "turbo", "--profile: unknown profile 'turbo'"),
    ],
)
def test_a_wrong_value_is_named_with_its_source(
    explicit: dict[str, object], environment: dict[str, str], profile: str | None, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        resolve(explicit, environment, profile, read_config(CONFIG))


def test_the_config_folder_may_be_named(tmp_path: Path) -> None:
    assert find_config_dir(str(tmp_path), {}) == tmp_path
    assert find_config_dir(None, {"SCREENALYTICS_CONFIG_DIR": str(tmp_path)}) == tmp_path
    with pytest.raises(SettingsError, match="no such folder"):
        find_config_dir(str(tmp_path / "none"), {})


def test_every_setting_says_what_it_means() -> None:
    assert all(spec.metadata["meaning"] for spec in SPECS.values())


@pytest.mark.parametrize(
    ("explicit", "environment", "value", "is_auto"),
    [
        ({}, {}, 0.25, True),
        ({"cluster_thresh": "0.6"}, {}, 0.6, False),
        ({"cluster_thresh": 0.6}, {}, 0.6, False),
        ({}, {"CLEANUP_CLUSTER_THRESH": "0.6"}, 0.6, False),
        ({"cluster_thresh": "auto"}, {"CLEANUP_CLUSTER_THRESH": "0.6"}, 0.25, True),
        ({}, {"CLEANUP_CLUSTER_THRESH": "auto"}, 0.25, True),
    ],
)
def test_a_threshold_is_placed_unless_a_number_is_given(
    explicit: dict[str, object], environment: dict[str, str], value: float, is_auto: bool
) -> None:
    threshold = resolve(explicit, environment, None, read_config(CONFIG)).value("cluster_thresh")

    assert (threshold.value, threshold.is_auto) == (value, is_auto)


def test_a_file_with_keys_that_nothing_reads_any_more_is_read_and_says_so(tmp_path: Path) -> None:
    shutil.copytree(CONFIG, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "clustering.yaml").open("a") as file:
        file.write("singleton_merge:\n  enabled: true\n  trigger_singleton_frac: 0.40\n")
    with (tmp_path / "tracking.yaml").open("a") as file:
        file.write("new_track_thresh: 0.60\n")

    notes = resolve({}, {}, None, read_config(tmp_path)).notes

    assert [note.partition(" is not read: ")[0] for note in notes] == [
        f"{tmp_path}/tracking.yaml: new_track_thresh",
        f"{tmp_path}/clustering.yaml: singleton_merge",
    ]
    assert resolve({}, {}, None, read_config(CONFIG)).notes == ()
    shown = cleanup("settings", "--config-dir", tmp_path, "--json")
    assert [shown.stderr.replace("\n", " ").count(note) for note in notes] == [1, 1]
    assert json.loads(shown.stdout)["cluster_thresh"]["auto"]
