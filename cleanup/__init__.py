"""Episode Cleanup: refines the face tracks, embeddings and identities of an episode."""

from __future__ import annotations

import os

# Here, because whatever imports a part of this package has imported this before: commands, jobs of the API, actors of
# Ray, a program that uses it as a library. ONNX Runtime looks for its variable as it is imported, and otherwise leaves
# a device id in the home folder and reports to its maker; Ray looks when it starts a cluster.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
