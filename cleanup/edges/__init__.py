"""Everything that touches the outside world: files, video, models, PostgreSQL, Ray."""
