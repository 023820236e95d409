"""What is written to a tar, frame by frame, in bounded memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO

# Bytes in memory: some minutes of small frames.
_MAX_IN_MEMORY = 32 << 20


class FrameBuffer:
    """Images of frames one after another, in memory up to 32 MiB, else in a temporary file.

    Parameters
    ----------
    folder : Path, optional
        Where the temporary file is made; by default where the system has them.

    Attributes
    ----------
    sizes : list of int
        Bytes of each image.
    crc32 : list of int
        Of each image.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.sizes: list[int] = []
        self.crc32: list[int] = []
        parent = None if folder is None else str(folder)
        self._file = SpooledTemporaryFile(_MAX_IN_MEMORY, dir=parent)  # noqa: SIM115 (see close)

    def append(self, image: bytes) -> None:
        """Add the next frame."""
        self._file.write(image)
        self.sizes.append(len(image))
        self.crc32.append(zlib.crc32(image))

    @property
    def offsets(self) -> list[int]:
        """Where each frame starts, and the end of the last one, bytes."""
        return list(accumulate(self.sizes, initial=0))

    def open(self) -> IO[bytes]:
        """Return the file of all frames, at its start. It is closed by :meth:`close`."""
        self._file.seek(0)
        return self._file

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the images; none may be added meanwhile."""
        file = self.open()
        yield from (file.read(size) for size in self.sizes)

    def close(self) -> None:
        """Free the memory or the file."""
        self._file.close()
