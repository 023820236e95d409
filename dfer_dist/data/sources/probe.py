"""Tell videos from other files by their content, whatever their names."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

# files of these names are videos, or damaged ones: they are not opened to find out
VIDEO_SUFFIXES = (
    ".mp4",
    ".avi",
    ".mov",
    ".mkv",
    ".webm",
    ".mjpeg",
    ".mjpg",
    ".3gp",
    ".asf",
    ".flv",
    ".m2ts",
    ".m4v",
    ".mpeg",
    ".mpg",
    ".mts",
    ".ogv",
    ".wmv",
)
VIDEO_SUFFIX = re.compile(rf"({'|'.join(map(re.escape, VIDEO_SUFFIXES))})$", re.IGNORECASE)
ARCHIVE_SUFFIXES = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip")
# of frames; a clip's frames have one of these kinds, the first that its folder holds
IMAGE_KINDS = (
    (".jpg", ".jpeg", ".jpe", ".jfif"),
    (".png",),
    (".bmp",),
    (".webp",),
    (".tif", ".tiff"),
    (".ppm", ".pgm", ".pbm", ".pnm"),
    (".jp2",),
)
IMAGE_SUFFIXES = tuple(suffix for kind in IMAGE_KINDS for suffix in kind)

# Formats whose files are text, subtitles, or lists of other files; those of images end in _pipe.
_NO_VIDEO = re.compile(
    r".*_pipe|image2.*|apng|gif|ico|tty|ass|srt|webvtt|sub.*|.*sub|microdvd|mpl2|jacosub|realtext|"
    r"sami|stl|pjs|vplayer|lrc|scc|aqtitle|tedcaptions|ffmetadata|concat|dash|hls|imf|sdp|rtsp|bin|"
    r"xbin|adf|idf|ilbc"
)

_SNIFFED = 512  # bytes
_PROBED = 1 << 18  # bytes

# how images, arrays, archives, pickles and documents start, which ffmpeg reads at length in vain
_OTHER = (
    *(b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*"),
    *(b"\x93NUMPY", b"PK", b"\x1f\x8b", b"Rar!", b"7z\xbc\xaf", b"BZh", b"\xfd7zXZ"),
    *(b"\x89HDF", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"MATLAB", b"%PDF"),
)
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def is_video(file: Path) -> bool:
    """Return whether a file is a video.

    That is one of a usual suffix in any case, and one in which ffmpeg finds a video stream of more
    than one frame, unless it is of an image, text or subtitle format. A file that cannot be read
    is none.
    """
    suffix = file.suffix.lower()
    if suffix in VIDEO_SUFFIXES or suffix in IMAGE_SUFFIXES:
        return suffix in VIDEO_SUFFIXES
    try:
        with file.open("rb") as stream:
            head = stream.read(_SNIFFED)
    except OSError:
        return False
    is_other = (
        head.startswith(_OTHER) or head[257:262] == b"ustar" or head[8:12] in (b"WAVE", b"WEBP")
    )
    if is_other or not _BINARY.search(head):
        return False
    return _has_frames(file)


def _has_frames(file: Path) -> bool:
    import av

    options = {"probesize": str(_PROBED), "protocol_whitelist": "file"}
    try:
        with av.open(str(file.absolute()), options=options) as container:
            if _NO_VIDEO.fullmatch(container.format.name):
                return False
            stream = container.streams.best("video")
            if stream is None:
                return False
            frames = (packet for packet in container.demux(stream) if packet.size)
            return len(list(islice(frames, 2))) == 2
    except av.error.FFmpegError:
        return False
