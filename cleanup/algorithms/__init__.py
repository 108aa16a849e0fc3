"""The algorithms, on plain NumPy arrays: no files, no models, no settings objects."""
