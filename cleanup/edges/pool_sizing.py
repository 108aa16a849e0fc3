"""How an actor pool is cut out of a cluster: a pure function of the cluster's nodes and the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cleanup.edges.onnx_sessions import GPU_DEVICES
from cleanup.errors import EngineError, SettingsError
from cleanup.settings import ClusterSettings

GIB = 1 << 30
# Actors beyond what the cluster can hold now that wait for it to grow, where nothing limits them: each wakes the
# autoscaler, and when nodes have come up, the next ones are asked for.
_N_AHEAD = 4


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one kind: what each has (memory in bytes), and how many there are or may be."""

    n_nodes: int
    cpus: float
    gpus: float
    memory: float


@dataclass(frozen=True)
class PoolSize:
    """Number of actors, and what each of them holds.

    Attributes:
        min_actors: How many are kept without work.
        max_actors: How many there may be, or None for as many as the cluster can be grown to hold.
        room: How many the cluster can hold now.
        cpus: CPUs of each.
        gpus: GPUs of each.
        memory: Bytes each reserves; 0 for none.
    """

    min_actors: int
    max_actors: int | None
    room: int
    cpus: float
    gpus: float
    memory: int

    def count_to_start(self, n_wanted: int, n_actors: int, n_starting: int) -> int:
        """How many actors to start.

        Args:
            n_wanted: Actors there is work for.
            n_actors: Actors there are, those that are starting included.
            n_starting: Actors that wait for a node or load their models.
        """
        n_wanted = max(n_wanted, self.min_actors)
        if self.max_actors is not None:
            n_wanted = min(n_wanted, self.max_actors)
        else:
            n_wanted = min(n_wanted, max(self.room, n_actors - n_starting + _N_AHEAD))
        return max(n_wanted - n_actors, 0)

    def describe(self) -> str:
        """What an actor holds, for people."""
        parts = [f"{self.cpus:g} CPU"] + ([f"{self.gpus:g} GPU"] if self.gpus else [])
        return ", ".join(parts + ([f"{self.memory / GIB:g} GiB"] if self.memory else []))


def plan_pool(
    groups: Sequence[NodeGroup], settings: ClusterSettings, device: str, *, can_grow: bool = False
) -> PoolSize:
    """Sizes the pool.

    With GPUs in the cluster and a device that may use them, every actor owns one GPU and its share of the node's CPUs.
    Without, one CPU each: on CPU many single-threaded models beat few many-threaded ones.

    Args:
        groups: The cluster's nodes.
        settings: Sizes asked for; zero leaves one to this function.
        device: Device asked for.
        can_grow: Whether nodes may come up that are not there yet; Ray does not tell which.

    Raises:
        SettingsError: A fraction of a GPU that does not divide 1, or fewer actors at most than at least.
        EngineError: No node can hold such an actor, and the cluster cannot grow.
    """
    gpus = settings.gpus_per_actor
    if (gpus < 1 and gpus and abs(1 / gpus - round(1 / gpus)) > 1e-6) or (gpus > 1 and gpus != int(gpus)):
        raise SettingsError(
            f"gpus_per_actor must be a whole number or a fraction that divides 1 (0.5, 0.25), not {gpus:g}"
        )
    if settings.max_actors and settings.max_actors < settings.min_actors:
        raise SettingsError(f"max_actors ({settings.max_actors}) is less than min_actors ({settings.min_actors})")
    with_gpus = [group for group in groups if group.gpus > 0]
    if not gpus and (device in GPU_DEVICES or (device == "auto" and with_gpus)):
        gpus = 1.0
    cpus = settings.cpus_per_actor
    if not cpus:
        shares = [group.cpus * gpus // group.gpus for group in with_gpus] if gpus else []
        cpus = max(min(shares, default=1.0), 1.0)
    memory = int(settings.memory_per_actor * GIB)
    room = sum(group.n_nodes * _count_fitting(group, cpus, gpus, memory) for group in groups)
    max_actors = settings.max_actors or (None if can_grow else max(room, settings.min_actors))
    size = PoolSize(settings.min_actors, max_actors, room, cpus, gpus, memory)
    if room == 0 and not can_grow:
        largest = max(groups, key=lambda g: (g.gpus, g.cpus), default=NodeGroup(0, 0, 0, 0))
        raise EngineError(
            f"no node of the cluster can hold a worker with {size.describe()} (the largest has {largest.cpus:g} CPU, "
            f"{largest.gpus:g} GPU); set --cpus-per-actor, --gpus-per-actor, --memory-per-actor or --device cpu"
        )
    return size


def _count_fitting(group: NodeGroup, cpus: float, gpus: float, memory: int) -> int:
    """How many actors one node of a group can hold."""
    limits = [group.cpus / cpus]
    if gpus:
        # A fraction never spans two GPUs; several whole ones may.
        limits.append(group.gpus / gpus if gpus >= 1 else int(group.gpus) * round(1 / gpus))
    if memory:
        limits.append(group.memory / memory)
    return int(min(limits) + 1e-9)
