"""How fast and how lean, as ratios in one run: ``uv run python -m tests.bench.speed [case ...]``."""
