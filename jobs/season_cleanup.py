"""``ray job submit`` entry point: refines the episodes of a season; takes the options of ``cleanup season``."""

from __future__ import annotations

import sys
from pathlib import Path

# As a Ray job the script runs from an uploaded working directory in which nothing is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cleanup.entrypoints.process import run_main


def main() -> None:
    """Runs ``cleanup season`` with this script's arguments."""

    def command() -> None:
        from cleanup.entrypoints.cli import app

        app(["season", *sys.argv[1:]], prog_name="season_cleanup.py")

    run_main(command)


if __name__ == "__main__":
    main()
