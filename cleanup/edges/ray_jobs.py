"""Jobs of the HTTP API as jobs of a Ray cluster, through its Jobs API. The id of a job is its submission id."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from ray.job_submission import JobStatus, JobSubmissionClient

from cleanup.errors import EngineError, first_line

_ENDED = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED})


class RayJobs:
    """The jobs of one cluster.

    Args:
        address: URL of its dashboard, ``http://HEAD:8265``.
        environment: Environment variables that every job gets. They can be seen in the dashboard, so no secrets.

    Raises:
        EngineError: The cluster does not answer.
    """

    def __init__(self, address: str, environment: Mapping[str, str]) -> None:
        self._address, self._environment = address, dict(environment)
        try:
            self._client = JobSubmissionClient(address)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise EngineError(f"Ray at {address}: {first_line(error)}; is the dashboard there?") from error

    def check(self) -> str:
        """What the cluster says of itself.

        Raises:
            EngineError: It does not answer.
        """
        try:
            return f"{self._address} answers, Jobs API {self._client.get_version()}"
        except (ConnectionError, RuntimeError, OSError) as error:
            raise EngineError(f"Ray at {self._address}: {first_line(error)}") from error

    def start(self, root: str, job_id: str) -> None:
        """Submits a job; one that was submitted before stays as it is.

        Raises:
            EngineError: The cluster does not answer or refuses.
        """
        words = ["python", "-m", "cleanup.entrypoints.job_process", root, job_id]
        try:
            self._client.submit_job(
                entrypoint=shlex.join(words), submission_id=job_id, runtime_env={"env_vars": self._environment}
            )
        except (ConnectionError, RuntimeError, OSError) as error:
            if self._status_of(job_id) is None:
                raise EngineError(f"Ray at {self._address}: {first_line(error)}") from error

    def find_end(self, job_id: str) -> str | None:
        """What Ray says of a job that has ended, or that it does not know; None while it runs or waits.

        Raises:
            EngineError: The cluster does not answer.
        """
        status = self._status_of(job_id)
        if status is None:
            return "the cluster does not know it any more"
        if status not in _ENDED:
            return None
        return str(self._client.get_job_info(job_id).message or status)

    def stop(self, job_id: str) -> None:
        """Asks a job to stop: SIGTERM, some seconds later SIGKILL. Done when ``find_end`` says something."""
        try:
            self._client.stop_job(job_id)
        except (ConnectionError, RuntimeError, OSError) as error:
            raise EngineError(f"Ray at {self._address}: {first_line(error)}") from error

    def _status_of(self, job_id: str) -> JobStatus | None:
        try:
            return self._client.get_job_status(job_id)
        except RuntimeError as error:
            if "404" in str(error) or "does not exist" in str(error):
                return None
            raise EngineError(f"Ray at {self._address}: {first_line(error)}") from error
        except OSError as error:
            raise EngineError(f"Ray at {self._address}: {first_line(error)}") from error
