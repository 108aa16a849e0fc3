"""The settings of every phase: one frozen dataclass each, and the only home of hardcoded fallbacks.

A field's metadata says everything else about it: where it may come from (environment variable, profile key, place in a
stage YAML), its range or choices, its unit, and what it means. The command line's options and help, the settings table
and the resolver are drawn from it; nothing repeats a default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

PROFILES_FILE = "performance_profiles.yaml"
DEFAULT_PROFILE = "balanced"
PROFILE_VARIABLE = "SCREENALYTICS_PERF_PROFILE"


# Keys of earlier files that nothing reads any more, and why; a file that holds them is read all the same.
RETIRED_KEYS = {
    "clustering.yaml:singleton_merge": "singletons get no second look any more: the cut is placed where they join",
    "tracking.yaml:new_track_thresh": "faces that agree with each other are a person, however sure the detector was",
}


@dataclass(frozen=True)
class Threshold:
    """A similarity threshold that is carried over to the scale of the model at hand.

    Attributes:
        value: If ``is_auto``, a place on the model's scale: 0 is what two people look like, 1 a face and itself.
            Otherwise a cosine.
        is_auto: Whether the threshold is carried over; it is unless a number is given on the command line, in a request
            or in the environment. ``auto`` may be given there as well.
    """

    value: float
    is_auto: bool = True


class Secret:
    """A value that is not to be seen: whatever prints it, or writes it into a record, says only that it is there."""

    def __init__(self, text: str = "") -> None:
        self._text = text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __repr__(self) -> str:
        return "(given, not shown)" if self._text else ""

    def reveal(self) -> str:
        """The value itself, for whoever needs it to do something."""
        return self._text


def _setting(
    default: Any,
    meaning: str,
    *,
    env: str | None = None,
    profile: str | None = None,
    yaml: str | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] | None = None,
    unit: str = "",
    option: bool = False,
) -> Any:
    """A dataclass field with its sources.

    Args:
        default: The fallback; the only copy of it.
        meaning: One line for help and documentation.
        env: Environment variable.
        profile: Key inside a profile of performance_profiles.yaml.
        yaml: ``file.yaml:key.path``; ``{profile}`` in the path stands for the profile in force.
        at_least: Lowest allowed value.
        at_most: Highest allowed value.
        choices: Allowed strings.
        unit: Unit of the value.
        option: Whether ``cleanup run`` has an option for it.
    """
    metadata = {
        "meaning": meaning, "env": env, "profile": profile, "yaml": yaml, "at_least": at_least, "at_most": at_most,
        "choices": choices, "unit": unit, "option": option,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ObserveSettings:
    """How frames are sampled and faces found; read by the pass over the pixels."""

    models: str = _setting(
        "buffalo_l",
        "model pack of InsightFace's zoo, or a folder with one detector and one recogniser (ONNX)",
        env="CLEANUP_MODELS",
        yaml="detection.yaml:model_id",
        option=True,
    )
    rotation: str = _setting(
        "auto",
        "whether boxes lie in the picture as its display matrix turns or mirrors it (apply) or as it is stored "
        "(ignore); auto finds it out from the faces",
        choices=("auto", "ignore", "apply"),
        option=True,
    )
    frame_shift: int = _setting(
        0,
        "frame n of the artifacts is frame n + this of the video; where it is not given, a shift is looked for",
        at_least=-1_000_000,
        at_most=1_000_000,
        unit="frames",
        option=True,
    )
    device: str = _setting(
        "auto",
        "device of the detector",
        env="CLEANUP_DEVICE",
        choices=("auto", "cpu", "cuda", "tensorrt", "mps"),
        option=True,
    )
    embed_device: str = _setting(
        "same",
        "device of the recogniser; 'same' is that of the detector",
        env="CLEANUP_EMBED_DEVICE",
        choices=("same", "auto", "cpu", "cuda", "tensorrt", "mps"),
        option=True,
    )
    stride: int = _setting(
        5, "a sample of each track every so many frames", profile="stride", at_least=1, unit="frames", option=True
    )
    fps: float = _setting(
        24.0, "at most so many samples of a track per second", profile="fps", at_least=0.1, unit="1/s", option=True
    )
    gate_emb_every: int = _setting(
        3,
        "no track is sampled more often than every so many frames, except around a change",
        env="TRACK_GATE_EMB_EVERY",
        yaml="tracking.yaml:gate.emb_every",
        at_least=1,
        unit="frames",
    )
    det_thresh: float = _setting(
        0.5,
        "confidence from which the detector's finds count, where an artifact has no landmarks",
        yaml="detection.yaml:confidence_th",
        at_least=0.0,
        at_most=1.0,
        option=True,
    )
    det_iou: float = _setting(
        0.5,
        "overlap from which a found face is the face of a box",
        yaml="detection.yaml:iou_th",
        at_least=0.0,
        at_most=1.0,
    )
    track_thresh: float = _setting(
        0.55,
        "detections this sure are given to tracks first",
        yaml="tracking.yaml:track_thresh",
        at_least=0.0,
        at_most=1.0,
    )
    match_thresh: float = _setting(
        0.65,
        "a detection continues a track if 1 - IoU is at most this",
        yaml="tracking.yaml:match_thresh",
        at_least=0.0,
        at_most=1.0,
    )
    track_buffer: int = _setting(
        90,
        "a detection may lie so far from the track's nearest box, at 30 frames per second",
        yaml="tracking.yaml:track_buffer",
        at_least=1,
        unit="frames",
    )
    max_track_buffer: int = _setting(
        300,
        "limit of track_buffer at high frame rates",
        yaml="tracking.yaml:max_track_buffer",
        at_least=1,
        unit="frames",
    )


@dataclass(frozen=True)
class SplitTracksSettings:
    """The appearance gate."""

    gate_enabled: bool = _setting(True, "whether tracks are split at all", yaml="tracking.yaml:gate_enabled")
    gate_hard: Threshold = _setting(
        Threshold(0.70),
        "similarity to the track's prototype below which one sample proposes a change of person",
        env="TRACK_GATE_APPEAR_HARD",
        yaml="tracking.yaml:gate.appear_hard",
        at_least=-1.0,
        at_most=1.0,
        option=True,
    )
    gate_soft: Threshold = _setting(
        Threshold(0.78),
        "similarity below which gate_streak samples in a row propose a change",
        env="TRACK_GATE_APPEAR_SOFT",
        yaml="tracking.yaml:gate.appear_soft",
        at_least=-1.0,
        at_most=1.0,
        option=True,
    )
    gate_streak: int = _setting(
        2,
        "samples in a row for gate_soft",
        env="TRACK_GATE_APPEAR_STREAK",
        yaml="tracking.yaml:gate.appear_streak",
        at_least=1,
        unit="samples",
        option=True,
    )
    gate_iou: float = _setting(
        0.55,
        "overlap of consecutive boxes below which a change is proposed",
        env="TRACK_GATE_IOU",
        yaml="tracking.yaml:gate.iou",
        at_least=0.0,
        at_most=1.0,
        option=True,
    )
    gate_proto_momentum: float = _setting(
        0.85,
        "share of the old prototype kept at each update",
        env="TRACK_GATE_PROTO_MOM",
        yaml="tracking.yaml:gate.proto_momentum",
        at_least=0.0,
        at_most=1.0,
    )
    gate_same_person: Threshold = _setting(
        Threshold(0.40),
        "similarity of what lies before and after a proposed change from which it is refused",
        env="TRACK_GATE_SAME_PERSON",
        yaml="tracking.yaml:gate.same_person",
        at_least=-1.0,
        at_most=1.0,
        option=True,
    )


@dataclass(frozen=True)
class ReembedSettings:
    """The quality gates of re-embedded faces, and how many are kept."""

    min_quality: float = _setting(
        0.35,
        "quality a face must reach",
        yaml="faces_embed_sampling.yaml:quality_gating.min_quality_score",
        at_least=0.0,
        at_most=1.0,
        option=True,
    )
    min_confidence: float = _setting(
        0.45,
        "detector confidence a face must reach",
        env="FACES_MIN_CONF",
        yaml="faces_embed_sampling.yaml:quality_gating.min_confidence",
        at_least=0.0,
        at_most=1.0,
    )
    min_blur_score: float = _setting(
        18.0,
        "Laplacian variance the aligned crop must reach",
        env="FACES_MIN_BLUR",
        yaml="faces_embed_sampling.yaml:quality_gating.min_blur_score",
        at_least=0.0,
    )
    min_std: float = _setting(
        10.0,
        "standard deviation of grey levels the aligned crop must reach",
        env="FACES_MIN_STD",
        yaml="faces_embed_sampling.yaml:quality_gating.min_std",
        at_least=0.0,
        unit="grey levels",
    )
    max_yaw: float = _setting(
        60.0,
        "a face turned further sideways is refused",
        yaml="faces_embed_sampling.yaml:quality_gating.max_yaw_angle",
        at_least=0.0,
        at_most=90.0,
        unit="degrees",
    )
    max_pitch: float = _setting(
        45.0,
        "a face turned further up or down is refused",
        yaml="faces_embed_sampling.yaml:quality_gating.max_pitch_angle",
        at_least=0.0,
        at_most=90.0,
        unit="degrees",
    )
    max_occlusion: float = _setting(
        0.60,
        "a face covered more is refused",
        yaml="faces_embed_sampling.yaml:quality_gating.max_occlusion",
        at_least=0.0,
        at_most=1.0,
    )
    min_agreement: Threshold = _setting(
        Threshold(0.40),
        "similarity to the consensus of its track that a face must reach",
        yaml="faces_embed_sampling.yaml:quality_gating.min_agreement",
        at_least=-1.0,
        at_most=1.0,
    )
    min_size: float = _setting(
        64.0,
        "shorter side a face must have, scaled to a picture of 1080 lines",
        profile="min_size",
        yaml="detection.yaml:min_size",
        at_least=0.0,
        unit="pixels at 1080 lines",
    )
    sampling_mode: str = _setting(
        "spread",
        "which good faces of a track are kept: the best of each stretch of time, or the best of all",
        yaml="faces_embed_sampling.yaml:quality_gating.sampling_mode",
        choices=("spread", "best"),
    )
    max_samples_per_track: int = _setting(
        32, "faces kept per track", yaml="faces_embed_sampling.yaml:limits.{profile}.max_samples_per_track", at_least=1
    )
    min_samples_per_track: int = _setting(
        3,
        "a track with fewer good faces gets new ones from its other boxes",
        yaml="faces_embed_sampling.yaml:limits.{profile}.min_samples_per_track",
        at_least=1,
    )
    min_frames_between_crops: int = _setting(
        1,
        "kept faces of one track lie at least so far apart",
        yaml="faces_embed_sampling.yaml:limits.{profile}.min_frames_between_crops",
        at_least=1,
        unit="frames",
    )
    max_faces_per_episode: int = _setting(
        60000,
        "faces kept per episode; every track keeps its best one all the same",
        yaml="faces_embed_sampling.yaml:limits.{profile}.max_faces_per_episode",
        at_least=1,
    )


@dataclass(frozen=True)
class PoolingSettings:
    """Pooling of a track's faces into one vector."""

    prototype_max_samples: int = _setting(
        6, "best faces a track's vector is pooled from", yaml="clustering.yaml:track_prototype.max_samples", at_least=1
    )
    prototype_sim_delta: float = _setting(
        0.08,
        "a face so much less similar to the track's medoid than the median face is left out",
        yaml="clustering.yaml:track_prototype.sim_delta",
        at_least=0.0,
        at_most=2.0,
    )
    prototype_sim_min: float = _setting(
        0.60,
        "a face at least this similar to the medoid is never left out as unlike",
        yaml="clustering.yaml:track_prototype.sim_min",
        at_least=-1.0,
        at_most=1.0,
    )


@dataclass(frozen=True)
class ReclusterSettings:
    """Clustering of tracks into identities."""

    cluster_thresh: Threshold = _setting(
        Threshold(0.25),
        "mean cosine similarity down to which clusters are joined",
        env="CLEANUP_CLUSTER_THRESH",
        yaml="clustering.yaml:cluster_thresh",
        at_least=-1.0,
        at_most=1.0,
        option=True,
    )
    min_cluster_size: int = _setting(
        1,
        "clusters with fewer tracks are divided into singletons",
        yaml="clustering.yaml:min_cluster_size",
        at_least=1,
        unit="tracks",
        option=True,
    )
    min_identity_sim: Threshold = _setting(
        Threshold(0.25),
        "similarity to its cluster's centroid that a track must reach, else it is ejected",
        yaml="clustering.yaml:min_identity_sim",
        at_least=-1.0,
        at_most=1.0,
        option=True,
    )
    max_singleton_fraction: float = _setting(
        0.30,
        "share of singletons above which the report warns",
        yaml="clustering.yaml:metrics_thresholds.max_singleton_fraction",
        at_least=0.0,
        at_most=1.0,
    )
    max_largest_cluster_fraction: float = _setting(
        0.40,
        "share of tracks in the largest identity above which the report warns",
        yaml="clustering.yaml:metrics_thresholds.max_largest_cluster_fraction",
        at_least=0.0,
        at_most=1.0,
    )
    min_cluster_count: int = _setting(
        1,
        "number of identities below which the report warns",
        yaml="clustering.yaml:metrics_thresholds.min_cluster_count",
        at_least=0,
    )
    max_cluster_count: int = _setting(
        200,
        "number of identities above which the report warns",
        yaml="clustering.yaml:metrics_thresholds.max_cluster_count",
        at_least=1,
    )


@dataclass(frozen=True)
class GroupClustersSettings:
    """Matching of identities to the people of the Facebank."""

    facebank_dsn: Secret = _setting(
        Secret(),
        "PostgreSQL of the Facebank; empty starts the embedded one under the data root",
        env="FACEBANK_DSN",
        option=True,
    )
    show: str = _setting("", "show whose people are looked up; empty takes it from the episode id", option=True)
    facebank_similarity: Threshold = _setting(
        Threshold(0.40),
        "similarity to a seed from which an identity is named",
        env="CLEANUP_FACEBANK_SIMILARITY",
        yaml="clustering.yaml:facebank.min_similarity",
        at_least=-1.0,
        at_most=1.0,
        option=True,
    )
    facebank_margin: Threshold = _setting(
        Threshold(0.10),
        "lead over the second person without which a match is ambiguous",
        yaml="clustering.yaml:facebank.min_margin",
        at_least=0.0,
        at_most=2.0,
        option=True,
    )
    person_similarity: Threshold = _setting(
        Threshold(0.60),
        "similarity of two identities' centroids from which they are one person in different episodes",
        yaml="clustering.yaml:facebank.person_similarity",
        at_least=-1.0,
        at_most=1.0,
        option=True,
    )
    unknown_min_faces: int = _setting(
        3,
        "faces an identity needs to become an unknown person of the show, and good ones to be found in other episodes",
        yaml="clustering.yaml:facebank.unknown_min_faces",
        at_least=1,
    )


@dataclass(frozen=True)
class SeedSettings:
    """Which photos may become seeds of the Facebank."""

    check_pose_quality: bool = _setting(
        True, "whether the head pose of a seed photo is checked", yaml="detection.yaml:check_pose_quality"
    )
    max_seed_yaw: float = _setting(
        45.0,
        "a seed photo turned further sideways is refused",
        yaml="detection.yaml:max_yaw_angle",
        at_least=0.0,
        at_most=90.0,
        unit="degrees",
    )
    min_seed_blur: float = _setting(
        18.0,
        "sharpness (variance of the Laplacian) below which a seed photo is refused as blurred",
        yaml="detection.yaml:min_seed_blur",
        at_least=0.0,
    )


@dataclass(frozen=True)
class OutputSettings:
    """Engine and output of a run."""

    engine: str = _setting(
        "auto",
        "where the work runs; auto is Ray inside a Ray job or with RAY_ADDRESS set, else this process",
        env="CLEANUP_ENGINE",
        choices=("auto", "local", "ray"),
        option=True,
    )
    save_crops: bool = _setting(False, "write an aligned crop of every kept face", option=True)
    save_frames: bool = _setting(False, "write every frame that holds a kept face", option=True)
    jpeg_quality: int = _setting(90, "quality of written images", at_least=1, at_most=100, option=True)
    thumb_size: int = _setting(
        256, "longer side of the track thumbnails written with the crops", at_least=16, at_most=2048, unit="pixels",
        option=True,
    )  # fmt: skip
    keep_backups: int = _setting(
        10,
        "backups of an episode that are kept beside the first one, the episode as it came; the oldest of the others go",
        env="CLEANUP_KEEP_BACKUPS",
        at_least=1,
        option=True,
    )


@dataclass(frozen=True)
class ClusterSettings:
    """The pool of Ray actors. Zero leaves a size to what the cluster has."""

    gpus_per_actor: float = _setting(
        0.0,
        "GPUs an actor holds: whole ones, or a fraction that divides 1; 0 is one where the cluster has GPUs and the "
        "device may use them",
        env="CLEANUP_GPUS_PER_ACTOR",
        at_least=0.0,
        option=True,
    )
    cpus_per_actor: float = _setting(
        0.0,
        "CPUs an actor holds; 0 is its share of the CPUs beside its GPU, and one without a GPU",
        env="CLEANUP_CPUS_PER_ACTOR",
        at_least=0.0,
        option=True,
    )
    memory_per_actor: float = _setting(
        0.0,
        "memory an actor reserves; 0 reserves none",
        env="CLEANUP_MEMORY_PER_ACTOR",
        at_least=0.0,
        unit="GiB",
        option=True,
    )
    min_actors: int = _setting(0, "actors that are kept while there is nothing to do", at_least=0, option=True)
    max_actors: int = _setting(
        0, "actors at the most; 0 is as many as the cluster can hold when it is grown", at_least=0, option=True
    )
    shard_retries: int = _setting(
        3, "how often a shard is begun again after its worker was lost", at_least=0, option=True
    )


@dataclass(frozen=True)
class StorageSettings:
    """Copies of what lies behind URLs."""

    cache_dir: str = _setting(
        "~/.cache/episode-cleanup",
        "folder of each machine for copies of remote videos, models and artifacts",
        env="CLEANUP_CACHE_DIR",
        option=True,
    )
    cache_size: float = _setting(
        50.0,
        "how large the copies of videos and models may grow; the longest unused ones go first",
        env="CLEANUP_CACHE_SIZE",
        at_least=0.0,
        unit="GiB",
        option=True,
    )


@dataclass(frozen=True)
class Settings:
    """All settings of a run, by phase."""

    observe: ObserveSettings = ObserveSettings()
    split_tracks: SplitTracksSettings = SplitTracksSettings()
    reembed: ReembedSettings = ReembedSettings()
    pooling: PoolingSettings = PoolingSettings()
    recluster: ReclusterSettings = ReclusterSettings()
    group_clusters: GroupClustersSettings = GroupClustersSettings()
    seeds: SeedSettings = SeedSettings()
    output: OutputSettings = OutputSettings()
    cluster: ClusterSettings = ClusterSettings()
    storage: StorageSettings = StorageSettings()


@dataclass(frozen=True)
class SettingSpec:
    """One setting as the resolver and the command line see it. Names are unique over all sections."""

    name: str
    section: str
    kind: type
    default: Any
    metadata: Mapping[str, Any]


SECTIONS: Mapping[str, Any] = get_type_hints(Settings)


def _collect_specs() -> dict[str, SettingSpec]:
    specs: dict[str, SettingSpec] = {}
    for section in dataclasses.fields(Settings):
        kinds = get_type_hints(SECTIONS[section.name])
        for entry in dataclasses.fields(SECTIONS[section.name]):
            specs[entry.name] = SettingSpec(entry.name, section.name, kinds[entry.name], entry.default, entry.metadata)
    return specs


SPECS: Mapping[str, SettingSpec] = _collect_specs()
# Where a server's models, people and copies are, and what it keeps, is its own business and no request's.
SERVER_SETTINGS = frozenset({"models", "facebank_dsn", "cache_dir", "cache_size", "keep_backups"})
REQUEST_SETTINGS = tuple(s.name for s in SPECS.values() if s.metadata["option"] and s.name not in SERVER_SETTINGS)
