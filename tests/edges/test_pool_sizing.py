"""The actor pool fits the cluster: a pure function of its nodes and the settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cleanup.edges.pool_sizing import GIB, NodeGroup, PoolSize, plan_pool
from cleanup.errors import EngineError, SettingsError
from cleanup.settings import ClusterSettings

LAPTOP = NodeGroup(1, 8, 0, 16 * GIB)
GPU_NODES = NodeGroup(6, 8, 1, 30 * GIB)
BIG_NODE = NodeGroup(1, 32, 4, 100 * GIB)
HEAD = NodeGroup(1, 0, 0, 8 * GIB)


@pytest.mark.parametrize(
    ("groups", "device", "asked", "size"),
    [
        pytest.param([LAPTOP], "auto", {}, PoolSize(0, 8, 8, 1, 0, 0), id="a CPU each without GPUs"),
        pytest.param([HEAD, GPU_NODES], "auto", {}, PoolSize(0, 6, 6, 8, 1, 0), id="a GPU each, with its CPUs"),
        pytest.param([LAPTOP, BIG_NODE], "cuda", {}, PoolSize(0, 4, 4, 8, 1, 0), id="four GPUs on one node"),
        pytest.param([BIG_NODE], "cpu", {}, PoolSize(0, 32, 32, 1, 0, 0), id="GPUs the device does not use"),
        pytest.param([BIG_NODE], "auto", {"gpus_per_actor": 0.5}, PoolSize(0, 8, 8, 4, 0.5, 0), id="half a GPU"),
        pytest.param([BIG_NODE], "auto", {"gpus_per_actor": 2.0}, PoolSize(0, 2, 2, 16, 2, 0), id="two GPUs"),
        pytest.param([LAPTOP], "cpu", {"cpus_per_actor": 3.0}, PoolSize(0, 2, 2, 3, 0, 0), id="what is left over"),
        pytest.param([LAPTOP], "cpu", {"memory_per_actor": 6.0}, PoolSize(0, 2, 2, 1, 0, 6 * GIB), id="memory limits"),
        pytest.param([LAPTOP], "cpu", {"max_actors": 3, "min_actors": 2}, PoolSize(2, 3, 8, 1, 0, 0), id="as asked"),
    ],
)
def test_the_pool_fits_the_cluster(groups: list[NodeGroup], device: str, asked: dict[str, Any], size: PoolSize) -> None:
    assert plan_pool(groups, replace(ClusterSettings(), **asked), device) == size


@pytest.mark.parametrize("gpus", [0.3, 0.6, 1.5])
def test_a_share_of_a_gpu_that_does_not_divide_it_is_refused(gpus: float) -> None:
    with pytest.raises(SettingsError, match=r"divides 1 .* not " + str(gpus)):
        plan_pool([BIG_NODE], ClusterSettings(gpus_per_actor=gpus), "auto")


def test_fewer_actors_at_most_than_at_least_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"max_actors \(1\) is less than min_actors \(2\)"):
        plan_pool([LAPTOP], ClusterSettings(min_actors=2, max_actors=1), "cpu")


@pytest.mark.parametrize(
    ("device", "asked"), [("cuda", {}), ("cpu", {"cpus_per_actor": 9.0}), ("cpu", {"memory_per_actor": 17.0})]
)
def test_an_actor_that_no_node_can_hold_is_refused_instead_of_waited_for(device: str, asked: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="no node of the cluster can hold a worker"):
        plan_pool([LAPTOP], replace(ClusterSettings(), **asked), device)


def test_a_cluster_that_can_grow_is_waited_for() -> None:
    size = plan_pool([HEAD], ClusterSettings(), "cuda", can_grow=True)

    assert size == PoolSize(0, None, 0, 1, 1, 0)


@pytest.mark.parametrize(
    ("size", "n_wanted", "n_actors", "n_starting", "expected"),
    [
        pytest.param(PoolSize(0, 2, 2, 1, 0, 0), 9, 0, 0, 2, id="as many as fit"),
        pytest.param(PoolSize(0, 2, 2, 1, 0, 0), 1, 0, 0, 1, id="no more than there is work"),
        pytest.param(PoolSize(0, 2, 2, 1, 0, 0), 9, 2, 2, 0, id="none twice"),
        pytest.param(PoolSize(2, 4, 4, 1, 0, 0), 0, 0, 0, 2, id="those that are kept"),
        pytest.param(PoolSize(0, None, 0, 1, 1, 0), 9, 0, 0, 4, id="from zero a few at a time"),
        pytest.param(PoolSize(0, None, 0, 1, 1, 0), 9, 4, 4, 0, id="no more while those wait"),
        pytest.param(PoolSize(0, None, 0, 1, 1, 0), 9, 4, 1, 3, id="more as nodes come up"),
        pytest.param(PoolSize(0, None, 8, 1, 0, 0), 20, 0, 0, 8, id="what is there at once"),
    ],
)
def test_actors_are_started_as_work_and_cluster_allow(
    size: PoolSize, n_wanted: int, n_actors: int, n_starting: int, expected: int
) -> None:
    assert size.count_to_start(n_wanted, n_actors, n_starting) == expected
