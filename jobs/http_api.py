"""Ray Serve application of the HTTP API: ``serve run jobs.http_api:app`` on the head node of a cluster.

It is set up by its environment: SCREENALYTICS_DATA_ROOT, CLEANUP_API_TOKEN, and what ``cleanup run`` reads. Jobs are
Ray jobs of the same cluster, so they outlive the deployment.
"""

from __future__ import annotations

import os

from fastapi import FastAPI
from ray import serve

from cleanup.entrypoints.serve import build_app
from cleanup.entrypoints.serve_options import TOKEN_VARIABLE, ServeOptions, check_token
from cleanup.errors import SettingsError

DASHBOARD_VARIABLE = "RAY_API_SERVER_ADDRESS"


def build_deployed_app() -> FastAPI:
    """The application, built where it runs."""
    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise SettingsError(f"{TOKEN_VARIABLE}: set it; whoever reaches Ray Serve could start and stop jobs")
    options = ServeOptions(ray_address=os.environ.get(DASHBOARD_VARIABLE, "http://127.0.0.1:8265"))
    return build_app(options, token=check_token(token), hosts=None)


# One replica: it is the one that starts waiting jobs in their turn.
@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0})
@serve.ingress(build_deployed_app)
class HttpApi:
    """The deployment."""


app = HttpApi.bind()  # type: ignore[attr-defined]  # the decorators give a deployment
