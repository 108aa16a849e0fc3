"""Resolves settings from five levels: explicit > environment > profile > stage YAML > fallback.

``resolve`` is pure: five mappings in, settings and the source of each value out. ``read_config`` is the one place that
reads the YAML files.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cleanup.errors import SettingsError, hide_credentials
from cleanup.input_limits import MAX_CONFIG_BYTES, MAX_CONFIG_DEPTH
from cleanup.settings import (
    DEFAULT_PROFILE,
    PROFILE_VARIABLE,
    PROFILES_FILE,
    RETIRED_KEYS,
    SECTIONS,
    SPECS,
    Secret,
    Settings,
    SettingSpec,
    Threshold,
)
from cleanup.text_files import TextError, read_text

CONFIG_DIR_VARIABLE = "SCREENALYTICS_CONFIG_DIR"
AUTO = "auto"
STAGE_FILES = ("detection.yaml", "tracking.yaml", "faces_embed_sampling.yaml", "clustering.yaml")


@dataclass(frozen=True)
class Config:
    """The YAML files as read.

    Attributes:
        directory: Where they lie.
        profiles: Keys and values of each profile.
        stages: ``file.yaml:key.path`` -> value.
        notes: A sentence for each key that nothing reads any more.
    """

    directory: str
    profiles: Mapping[str, Mapping[str, Any]]
    stages: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ResolvedSettings:
    """Settings with the source of every value, the profile in force, and a sentence for each key that was of no use."""

    settings: Settings
    sources: Mapping[str, str]
    profile: str
    notes: tuple[str, ...] = ()

    def value(self, name: str) -> Any:
        """The value of a setting by its name."""
        return getattr(getattr(self.settings, SPECS[name].section), name)

    def describe(self) -> dict[str, dict[str, Any]]:
        """``{name: {value, source}}`` as the report keeps it; ``auto`` where a threshold follows the model.

        Of a secret it holds only that it was given, of a URL no credentials.
        """
        described: dict[str, dict[str, Any]] = {}
        for name in SPECS:
            value, source = self.value(name), self.sources[name]
            if isinstance(value, Threshold):
                described[name] = {"value": value.value, "source": source} | ({"auto": True} if value.is_auto else {})
            elif isinstance(value, str | Secret):
                described[name] = {"value": hide_credentials(str(value)), "source": source}
            else:
                described[name] = {"value": value, "source": source}
        return described

    def source_of(self, name: str) -> str:
        """Where a setting came from, as its user knows it: its option, its environment variable, a file."""
        source = self.sources[name]
        return f"--{name.replace('_', '-')}" if source == "explicit" else source.removeprefix("environment ")


def find_config_dir(explicit: str | None, environment: Mapping[str, str]) -> Path:
    """The folder of the YAML files: --config-dir, SCREENALYTICS_CONFIG_DIR, else the one that comes with the package.

    Raises:
        SettingsError: The folder named does not exist.
    """
    for value, source in ((explicit, "--config-dir"), (environment.get(CONFIG_DIR_VARIABLE), CONFIG_DIR_VARIABLE)):
        if value:
            if not Path(value).is_dir():
                raise SettingsError(f"{source} {value}: no such folder")
            return Path(value)
    package = Path(__file__).parent
    for candidate in (package / "config" / "pipeline", package.parent / "config" / "pipeline"):
        if candidate.is_dir():
            return candidate
    raise SettingsError(f"{package}: the configuration that belongs to the package is missing; install it again")


def _load_yaml(path: Path) -> dict[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = read_text(path, MAX_CONFIG_BYTES)
        depth = 0
        for event in yaml.parse(text, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_CONFIG_DEPTH:
                raise SettingsError(f"{path}: nested deeper than {MAX_CONFIG_DEPTH} levels")
            if isinstance(event, yaml.AliasEvent):  # a few of them can stand for billions of values
                raise SettingsError(f"{path}: holds an alias, *{event.anchor}; write out what it stands for")
        loaded = yaml.load(text, Loader=loader)  # noqa: S506 -- a safe loader, in C
    except FileNotFoundError as error:
        raise SettingsError(f"{path}: missing; put it back or point --config-dir elsewhere") from error
    except TextError as error:
        raise SettingsError(f"{path}: {error}") from error
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise SettingsError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise SettingsError(f"{path}: must hold keys and values, not a {type(loaded).__name__}")
    return loaded


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_config(directory: Path) -> Config:
    """Reads all configuration files and refuses keys that nothing reads.

    Raises:
        SettingsError: A file is missing or broken, or holds an unknown key; the message names file and key.
    """
    profiles = _load_yaml(directory / PROFILES_FILE)
    profile_keys = {s.metadata["profile"] for s in SPECS.values()} - {None}
    resolved: dict[str, dict[str, Any]] = {}
    for name, values in profiles.items():
        resolved[name] = _resolve_profile(directory / PROFILES_FILE, profiles, name, values)
        for key in resolved[name]:
            if key not in profile_keys:
                raise SettingsError(
                    f"{directory / PROFILES_FILE}: unknown key {name}.{key}; known: {', '.join(sorted(profile_keys))}"
                )
    stages: dict[str, Any] = {}
    notes: dict[str, None] = {}
    for file in STAGE_FILES:
        known = _known_stage_keys(file, resolved)
        for key, value in _flatten(_load_yaml(directory / file)).items():
            retired = f"{file}:{key.split('.')[0]}"
            if key not in known and retired in RETIRED_KEYS:
                notes[f"{directory / file}: {retired.partition(':')[2]} is not read: {RETIRED_KEYS[retired]}"] = None
                continue
            if key not in known:
                raise SettingsError(f"{directory / file}: unknown key {key}; known: {', '.join(sorted(known))}")
            stages[f"{file}:{key}"] = value
    return Config(str(directory), resolved, stages, tuple(notes))


def _resolve_profile(path: Path, profiles: Mapping[str, Any], name: str, values: Any) -> dict[str, Any]:
    """A profile is a mapping, or the name of another one."""
    if isinstance(values, str):
        if not isinstance(profiles.get(values), dict):
            raise SettingsError(
                f"{path}: profile {name} points to {values!r}, which is no profile with keys of its own"
            )
        values = profiles[values]
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: profile {name} must hold keys and values, or the name of another profile")
    return dict(values)


def _known_stage_keys(file: str, profiles: Mapping[str, Any]) -> set[str]:
    keys: set[str] = set()
    for spec in SPECS.values():
        source = spec.metadata["yaml"]
        if source and source.startswith(f"{file}:"):
            key = source.split(":", 1)[1]
            keys.update(key.replace("{profile}", p) for p in profiles) if "{profile}" in key else keys.add(key)
    return keys


def parse_value(spec: SettingSpec, value: Any, source: str) -> Any:
    """Checks one value against its type, range and choices, turning environment strings into what they mean.

    Raises:
        SettingsError: Wrong type or out of range; the message names the source.
    """
    if isinstance(value, Threshold | Secret):
        return value
    parsed = _convert(spec, value, source)
    meta = spec.metadata
    if meta["choices"] and parsed not in meta["choices"]:
        raise SettingsError(f"{source}: {spec.name} must be one of {', '.join(meta['choices'])}, not {value!r}")
    low, high = meta["at_least"], meta["at_most"]
    if (low is not None and parsed < low) or (high is not None and parsed > high):
        limits = f"from {low} to {high}" if low is not None and high is not None else f"at least {low}"
        raise SettingsError(f"{source}: {spec.name} must be {limits}, not {value!r}")
    return parsed


def _convert(spec: SettingSpec, value: Any, source: str) -> Any:
    if spec.kind is Threshold and isinstance(value, str) and value.strip().lower() == AUTO:
        raise SettingsError(f"{source}: {spec.name} must be a number here; auto is for options and the environment")
    if spec.kind is Secret:
        return Secret(str(value))
    wrong = SettingsError(f"{source}: {spec.name} must be {_article(spec.kind)}, not {value!r}")
    if spec.kind is bool:
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.strip().lower() in words:
            return words[value.strip().lower()]
        raise wrong
    if spec.kind is str:
        if not isinstance(value, str):
            raise wrong
        return value
    if isinstance(value, bool):
        raise wrong
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise wrong from None
    if not math.isfinite(number) or (spec.kind is int and number != int(number)):
        raise wrong
    return int(number) if spec.kind is int else number


def _article(kind: type) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Threshold: "a number"}
    return words[kind]


def resolve(
    explicit: Mapping[str, Any], environment: Mapping[str, str], profile: str | None, config: Config
) -> ResolvedSettings:
    """Resolves every setting.

    Args:
        explicit: Values given by name on the command line or in a request; a missing name or None means not given.
        environment: Environment variables.
        profile: Profile asked for, or None for SCREENALYTICS_PERF_PROFILE, else the default one.
        config: The YAML files.

    Raises:
        SettingsError: An unknown name or profile, a wrong type, a value out of range.
    """
    for name in explicit:
        if name not in SPECS:
            raise SettingsError(f"unknown setting {name!r}; known: {', '.join(sorted(SPECS))}")
    chosen = profile or environment.get(PROFILE_VARIABLE) or DEFAULT_PROFILE
    if chosen not in config.profiles:
        source = "--profile" if profile else PROFILE_VARIABLE if environment.get(PROFILE_VARIABLE) else PROFILES_FILE
        raise SettingsError(f"{source}: unknown profile {chosen!r}; known: {', '.join(config.profiles)}")
    values: dict[str, dict[str, Any]] = {}
    sources: dict[str, str] = {}
    for spec in SPECS.values():
        value, source = _pick(spec, explicit, environment, chosen, config)
        is_given = source == "explicit" or source.startswith("environment")
        if spec.kind is Threshold:
            if is_given and str(value).strip().lower() == AUTO:
                value, below = _pick(spec, {}, {}, chosen, config)
                source, is_given = f"{source} (auto), {below}", False
            number = value.value if isinstance(value, Threshold) else parse_value(spec, value, source)
            value = Threshold(number, is_auto=not is_given)
        values.setdefault(spec.section, {})[spec.name] = parse_value(spec, value, source)
        sources[spec.name] = source
    sections = {f.name: SECTIONS[f.name](**values[f.name]) for f in dataclasses.fields(Settings)}
    return ResolvedSettings(Settings(**sections), sources, chosen, config.notes)


def _pick(
    spec: SettingSpec, explicit: Mapping[str, Any], environment: Mapping[str, str], profile: str, config: Config
) -> tuple[Any, str]:
    meta = spec.metadata
    if explicit.get(spec.name) is not None:
        return explicit[spec.name], "explicit"
    if meta["env"] and environment.get(meta["env"], "") != "":
        return environment[meta["env"]], f"environment {meta['env']}"
    if meta["profile"] and meta["profile"] in config.profiles[profile]:
        return config.profiles[profile][meta["profile"]], f"profile {profile}"
    if meta["yaml"]:
        key = meta["yaml"].replace("{profile}", profile)
        if config.stages.get(key) is not None:
            return config.stages[key], key
    return spec.default, "fallback"


def resolve_for_run(explicit: Mapping[str, Any], profile: str | None, config_dir: str | None) -> ResolvedSettings:
    """``resolve`` with this process's environment and the configuration folder in force."""
    return resolve(explicit, os.environ, profile, read_config(find_config_dir(config_dir, os.environ)))
