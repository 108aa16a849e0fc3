"""``ray job submit`` entry point: refines one episode; takes the options of ``cleanup run``."""

from __future__ import annotations

import sys
from pathlib import Path

# As a Ray job the script runs from an uploaded working directory in which nothing is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cleanup.entrypoints.process import run_main


def main() -> None:
    """Runs ``cleanup run`` with this script's arguments."""

    def command() -> None:
        from cleanup.entrypoints.cli import app

        app(["run", *sys.argv[1:]], prog_name="episode_cleanup.py")

    run_main(command)


if __name__ == "__main__":
    main()
