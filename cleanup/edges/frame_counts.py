"""Keeps what the decoding of a whole video told of its frames, so that no video is counted twice on a machine."""

from __future__ import annotations

import io
import logging
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from cleanup.edges.model_files import sha256_of_file
from cleanup.errors import describe_os_error

_log = logging.getLogger(__name__)
# Goes up when frames are counted in another way.
_FORMAT = 1


@dataclass(frozen=True)
class FrameCount:
    """What came out when all packets of a video were decoded.

    Attributes:
        packet_of_frame: The packet that made each frame, shape (n_frames,).
        is_key: Which packets made a key frame, shape (n_packets,).
    """

    packet_of_frame: NDArray[np.int64]
    is_key: NDArray[np.bool_]


@dataclass(frozen=True)
class FrameCounts:
    """A folder of counts, by the digest of the video and the version of the decoder.

    Attributes:
        folder: Where they lie; ``~`` is the home of whoever asks.
    """

    folder: str

    def find(self, path: Path, n_packets: int) -> FrameCount | None:
        """The count of a video, or None where there is none that can be used.

        Args:
            path: The video.
            n_packets: How many packets it has.
        """
        try:
            content = self._place(path).read_bytes()
            with np.load(io.BytesIO(content), allow_pickle=False) as held:
                count = FrameCount(held["packet_of_frame"].astype(np.int64), held["is_key"].astype(bool))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            _log.warning("%s: its frames are counted anew, the count kept of them cannot be read (%s)", path, error)
            return None
        packets = count.packet_of_frame
        is_whole = count.is_key.shape == (n_packets,) and packets.ndim == 1
        return count if is_whole and ((packets >= 0) & (packets < n_packets)).all() else None

    def keep(self, path: Path, count: FrameCount) -> None:
        """Keeps the count of a video; without room or leave for it the next run counts again."""
        place = self._place(path)
        draft = place.with_name(f".{place.name}.{os.getpid()}")
        content = io.BytesIO()
        np.savez_compressed(content, packet_of_frame=count.packet_of_frame, is_key=count.is_key)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(content.getvalue())
            draft.replace(place)
        except OSError as error:
            _log.warning("%s: the count of its frames is not kept (%s)", path, describe_os_error(error))

    def _place(self, path: Path) -> Path:
        decoder = ".".join(map(str, av.library_versions["libavcodec"]))
        name = f"{sha256_of_file(path)}-{decoder}-{_FORMAT}.npz"
        return Path(self.folder).expanduser().absolute() / "counts" / name
