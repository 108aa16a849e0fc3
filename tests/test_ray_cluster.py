"""ray_cluster.yaml is a cluster that Ray accepts, with GPU workers that start from zero."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.conftest import ROOT


@pytest.fixture
def cluster() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "ray_cluster.yaml").read_text()))


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))


def test_gpu_workers_start_from_zero_and_are_let_go(cluster: dict[str, Any]) -> None:
    workers = {k: v for k, v in cluster["available_node_types"].items() if k != cluster["head_node_type"]}

    assert all(w["min_workers"] == 0 and w["resources"]["GPU"] == 1 for w in workers.values())
    assert cluster["idle_timeout_minutes"] > 0
