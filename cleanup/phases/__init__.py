"""The phases: pure functions from Episode to Episode, one module each."""
