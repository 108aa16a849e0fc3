"""ray_cluster.yaml is a cluster that Ray accepts, README's RayJob one that Kubernetes and KubeRay accept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.conftest import ROOT


@pytest.fixture
def cluster() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "ray_cluster.yaml").read_text()))


def workers_of(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (v for k, v in cluster["available_node_types"].items() if k != cluster["head_node_type"])


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))


def test_gpu_workers_start_from_zero_and_are_let_go(cluster: dict[str, Any]) -> None:
    assert all(w["min_workers"] == 0 and w["resources"]["GPU"] == 1 for w in workers_of(cluster))
    assert cluster["idle_timeout_minutes"] > 0


def test_spot_workers_have_an_on_demand_fall_back(cluster: dict[str, Any]) -> None:
    kinds = [w["node_config"].get("InstanceMarketOptions", {}).get("MarketType") for w in workers_of(cluster)]

    assert sorted(kinds, key=str) == [None, "spot"]


def test_no_node_may_do_more_than_its_work_needs(cluster: dict[str, Any]) -> None:
    """Ray gives the head a role that may do anything with EC2 and S3, and opens SSH to the world, unless told otherwise."""
    configs = [kind["node_config"] for kind in cluster["available_node_types"].values()]

    assert {config["IamInstanceProfile"]["Arn"].rsplit("/")[-1] for config in configs} == {
        "episode-cleanup-head", "episode-cleanup-worker",
    }  # fmt: skip
    assert all(config["MetadataOptions"]["HttpTokens"] == "required" for config in configs)
    assert all(d["Ebs"]["Encrypted"] for config in configs for d in config["BlockDeviceMappings"])
    assert cluster["provider"]["use_internal_ips"] is True
    (rule,) = cluster["provider"]["security_group"]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
    assert all(not r["CidrIp"].startswith("0.0.0.0") for r in rule["IpRanges"])
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]


def test_the_set_up_installs_the_locked_project(cluster: dict[str, Any]) -> None:
    assert any("uv sync --locked" in command for command in cluster["setup_commands"])
    assert cluster["available_node_types"]["head"]["resources"]["CPU"] == 0


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_python_of_a_job_is_that_of_the_environment(cluster: dict[str, Any], kind: str) -> None:
    assert cluster[f"{kind}_start_ray_commands"][-1].startswith("export PATH=$HOME/venv/bin:$PATH && ray start ")


def closed(**properties: Any) -> dict[str, Any]:
    """A JSON schema of an object with these properties and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


TEXT, COUNT, FLAG, ANY = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}, {"type": "object"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
# Fields and types of ray.io/v1 as KubeRay's API reference (v1.6) lists them. Pod templates are Kubernetes' own and are
# checked with its schema.
HEAD = closed(template=ANY, headService=ANY, enableIngress=FLAG, resources=TEXTS, labels=TEXTS, rayStartParams=TEXTS,
              serviceType=TEXT)  # fmt: skip
WORKER = closed(suspend=FLAG, groupName=TEXT, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT,
                idleTimeoutSeconds=COUNT, resources=TEXTS, labels=TEXTS, rayStartParams=TEXTS, template=ANY,
                scaleStrategy=ANY, numOfHosts=COUNT)  # fmt: skip
AUTOSCALER = closed(resources=ANY, image=TEXT, imagePullPolicy=TEXT, securityContext=ANY, idleTimeoutSeconds=COUNT,
                    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}, version={"enum": ["v1", "v2"]},
                    env={"type": "array"}, envFrom={"type": "array"}, volumeMounts={"type": "array"})  # fmt: skip
CLUSTER = closed(suspend=FLAG, managedBy=TEXT, autoscalerOptions=AUTOSCALER, headServiceAnnotations=TEXTS,
                 enableInTreeAutoscaling=FLAG, gcsFaultToleranceOptions=ANY, headGroupSpec=HEAD, rayVersion=TEXT,
                 workerGroupSpecs={"type": "array", "items": WORKER | {"required": ["groupName", "template"]}},
                 authOptions=ANY, upgradeStrategy=ANY) | {"required": ["headGroupSpec"]}  # fmt: skip
SPEC = closed(activeDeadlineSeconds=COUNT, backoffLimit=COUNT, rayClusterSpec=CLUSTER, submitterPodTemplate=ANY,
              metadata=TEXTS, clusterSelector=TEXTS, submitterConfig=ANY, managedBy=TEXT, deletionStrategy=ANY,
              entrypoint=TEXT, runtimeEnvYAML=TEXT, jobId=TEXT, entrypointResources=TEXT, entrypointNumCpus=ANY,
              submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
              entrypointNumGpus=ANY, ttlSecondsAfterFinished=COUNT, shutdownAfterJobFinishes=FLAG,
              suspend=FLAG)  # fmt: skip
RAY_JOB = closed(apiVersion={"const": "ray.io/v1"}, kind={"const": "RayJob"}, metadata=ANY, spec=SPEC)


@pytest.fixture
def ray_job() -> dict[str, Any]:
    """The manifest of README."""
    text = (ROOT / "README.md").read_text()
    return dict(yaml.safe_load(text.split("```yaml\n", 1)[1].split("```", 1)[0]))


def test_the_ray_job_of_the_readme_fits_kuberays_schema(ray_job: dict[str, Any]) -> None:
    jsonschema.validate(ray_job, RAY_JOB)


def test_the_pods_of_the_readme_fit_kubernetes_schema(ray_job: dict[str, Any]) -> None:
    spec = ray_job["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
        assert (
            group["template"]["spec"]["volumes"][0]["name"] == pod["spec"]["containers"][0]["volumeMounts"][0]["name"]
        )


def test_the_ray_job_asks_for_what_the_entry_point_takes(ray_job: dict[str, Any]) -> None:
    from typer.main import get_command

    from cleanup.entrypoints.cli import app

    words = ray_job["spec"]["entrypoint"].split()
    assert words[:2] == ["python", "jobs/season_cleanup.py"] and (ROOT / words[1]).is_file()
    known = {o for p in get_command(app).commands["season"].params for o in p.opts}
    assert {w for w in words if w.startswith("--")} <= known
    import ray

    assert ray_job["spec"]["rayClusterSpec"]["rayVersion"] == ray.__version__
