"""How large and how deep an input may be before it is taken apart: far beyond what is real, and within what is safe."""

from __future__ import annotations

MIB = 1 << 20
# A face is in every frame of a day at 25 per second, 30 bytes a box: one line of tracks.jsonl.
MAX_LINE_BYTES = 64 * MIB
# identities.json and track_metrics.json, read as a whole.
MAX_DOCUMENT_BYTES = 256 * MIB
# A record of our own beside the artifacts: who runs, what was asked for, how it ended.
MAX_RECORD_BYTES = MIB
# What is read is written again, and orjson writes 254 levels.
MAX_DEPTH = 250
# Magnitude of an integer in an artifact: an int64 holds it, and so does a double, exactly.
MAX_INTEGER = (1 << 53) - 1
# A seed photo: a file, and its pixels once decoded (RGB: three bytes each).
MAX_PICTURE_BYTES, MAX_PICTURE_PIXELS = 64 * MIB, 100_000_000
# A video: somewhat more than 8K, a day at 120 frames per second, and what a container may hold beside the picture.
MAX_VIDEO_SIDE, MAX_VIDEO_PIXELS = 16_384, 40_000_000
MAX_VIDEO_FRAMES, MAX_STREAMS = 24 * 3600 * 120, 64
# How often its packets may come to the length of the file: an edit list may show a stretch again.
MAX_VIDEO_REUSE = 4
# A YAML file of the configuration.
MAX_CONFIG_BYTES, MAX_CONFIG_DEPTH = MIB, 20
# A list of episodes.
MAX_LIST_BYTES = 16 * MIB
# An archive of seeds; one that grows by more than the factor when unpacked holds no pictures.
MAX_ARCHIVE_BYTES, MAX_ARCHIVE_MEMBERS, MAX_ARCHIVE_GROWTH = 4 << 30, 1_000_000, 50
