"""Coverage-guided fuzzing of whatever reads input; needs ``uv run --group fuzz``."""
