"""Frames of videos: files, folders and globs of pictures, cameras; and writing videos that browsers play.

Everything is read one frame at a time, as (H, W, 3) uint8 RGB, upright: the rotation that a phone writes into its file
is applied. Video files and cameras are read with PyAV, which brings its own ffmpeg.

A source that breaks in the middle (damaged, or a frame of another size) ends there: the frames before it are given, and
:attr:`FrameSource.problem` says why in one line.
"""

from __future__ import annotations

import glob
import itertools
import sys
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import DataError, UserError
from .find_pictures import find_pictures, natural_order
from .images import named_as_picture, read_image

RATE = 30.0  # frames per second, where a source does not say
# Encoders that make what browsers play, best first.
ENCODERS = {"libx264": {"crf": "20", "preset": "veryfast"}, "libvpx-vp9": {"crf": "32", "b:v": "0", "cpu-used": "6"}}
CAMERAS = {
    "linux": ("/dev/video{}", "video4linux2"),
    "darwin": ("{}", "avfoundation"),
    "win32": ("video={}", "dshow"),
}


class FrameSource:
    """Frames in order. Iterating reads them, once or again from the start.

    Attributes:
        name: for titles and file names.
        rate: frames per second, as the source says.
        count: frames there are; None where that is known only at the end.
        problem: why reading stopped early; empty where it did not, or has not yet.
    """

    name: str
    rate: float = RATE
    count: int | None = None
    problem: str = ""
    _begun: Iterator[np.ndarray] | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Read the frames, (H, W, 3) uint8 RGB, all of one size.

        Raises:
            DataError: there is no frame at all.
        """
        begun, self._begun = self._begun, None
        return begun or self._checked()

    def peek(self) -> np.ndarray:
        """Read the first frame; what iterates next begins with it and goes on, so that a camera is opened once.

        Raises:
            DataError: there is none.
        """
        frames = iter(self)
        first = next(frames)
        self._begun = itertools.chain([first], frames)
        return first

    def _checked(self) -> Iterator[np.ndarray]:
        self.problem, size, number = "", None, 0
        try:
            for frame in self._read():
                if size not in (None, frame.shape):
                    self.problem = (
                        f"{self.name}: frame {number} has {frame.shape[1]} x {frame.shape[0]} pixels and those before "
                        f"{size[1]} x {size[0]}: the {number:,} frames before it were taken."
                    )
                    return
                yield frame
                size, number = frame.shape, number + 1
        except DataError as error:
            if not number:
                raise
            self.problem = f"{str(error).rstrip('.')}; the {number:,} frames before it were taken."
        if not number and not self.problem:
            raise DataError(f"{self.name}: there is no frame in it: give a video, or a folder of pictures.")

    def _read(self) -> Iterator[np.ndarray]:
        raise NotImplementedError


class PictureFrames(FrameSource):
    """Picture files in order."""

    def __init__(self, name: str, files: list[Path]) -> None:
        self.name, self.files, self.count = name, files, len(files)

    def _read(self) -> Iterator[np.ndarray]:
        return (np.asarray(read_image(file)) for file in self.files)


class VideoFrames(FrameSource):
    """A video file, or a camera."""

    def __init__(self, name: str, opened: str, format: str | None = None) -> None:
        """Look at the video's first stream.

        Args:
            name: what people call it.
            opened: what PyAV opens.
            format: of an input device; None = what the file says.

        Raises:
            DataError: it cannot be opened, or has no pictures.
        """
        self.name, self._opened, self._format = name, opened, format
        with self._open() as container:
            stream = container.streams.video[0]
            self.rate = float(stream.average_rate or stream.guessed_rate or RATE)
            self.count = stream.frames or None

    def _open(self) -> Any:
        import av  # where there is a video to read

        try:
            container = av.open(self._opened, format=self._format)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"video '{self.name}' cannot be read: {_reason(error)}.") from None
        if not container.streams.video:
            container.close()
            raise DataError(f"'{self.name}' has no pictures: give a video.")
        return container

    def _read(self) -> Iterator[np.ndarray]:
        with self._open() as container:
            stream, number = container.streams.video[0], 0
            packets, problem = container.demux(stream), ""
            while not problem:
                try:
                    packet = next(packets, None)
                    frames = [] if packet is None else packet.decode()
                except (OSError, ValueError, EOFError) as error:
                    problem, frames = _reason(error), _held(stream)
                else:
                    if packet is None:
                        return
                for frame in frames:
                    yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
                    number += 1
            raise DataError(f"{self.name}: damaged at frame {number} ({problem}).")


def open_frames(source: str) -> FrameSource:
    """Open what a user names.

    Args:
        source: a video file; a folder of pictures, in natural order (2 before 10); a glob of pictures; or the number of
            a camera.

    Raises:
        UserError: there is no such file, or nothing in it.
        DataError: it cannot be read.
    """
    path = Path(source).expanduser()
    if source.isdigit() and not path.exists():
        return _camera(int(source))
    if path.is_dir():
        return _pictures(
            path.resolve().name, [path / key for key in find_pictures(path, recursive=False).pictures], source
        )
    if path.is_file():
        if named_as_picture(path.name):
            return PictureFrames(path.stem, [path])
        return VideoFrames(path.name, str(path))
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
    if not matches:
        raise UserError(
            f"'{source}' does not exist: give a video file, a folder or glob of pictures, or a camera number."
        )
    return _pictures(path.parent.name or "frames", [match for match in matches if named_as_picture(match.name)], source)


class VideoWriter:
    """Writes an mp4 that browsers play: H.264 where the build has it, else VP9. Use it as a context."""

    def __init__(self, path: Path, rate: float) -> None:
        """Write to `path`, `rate` frames per second; the size is the first frame's, made even.

        Raises:
            UserError: this build of PyAV has no encoder that browsers know.
        """
        import av

        self._path, self._stream = path, None
        self._rate = Fraction(rate).limit_denominator(1001)
        self._encoder = next((name for name in ENCODERS if _has_encoder(av, name)), None)
        if self._encoder is None:
            raise UserError("this build of PyAV can write neither H.264 nor VP9: install the wheel from PyPI.")
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})

    def write(self, frame: np.ndarray) -> None:
        """Add a frame (H, W, 3) uint8 RGB; an odd last row or column is left out."""
        import av

        if self._stream is None:
            height, width = (max(2, side // 2 * 2) for side in frame.shape[:2])
            self._stream = self._container.add_stream(self._encoder, rate=self._rate)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
            self._stream.options = ENCODERS[self._encoder]
        frame = np.ascontiguousarray(frame[: self._stream.height, : self._stream.width])
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file; what was written plays, also after an error."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()


def _pictures(name: str, files: list[Path], source: str) -> PictureFrames:
    if not files:
        raise UserError(f"'{source}' holds no pictures: give a folder or glob of frames, or a video file.")
    return PictureFrames(name, sorted(files, key=lambda file: natural_order(str(file))))


def _camera(number: int) -> VideoFrames:
    pattern, format = CAMERAS.get(sys.platform, CAMERAS["linux"])
    return VideoFrames(f"camera {number}", pattern.format(number), format)


def _has_encoder(av: Any, name: str) -> bool:
    with suppress(ValueError):
        return av.codec.Codec(name, "w") is not None
    return False


def _held(stream: Any) -> list[Any]:
    """Return the frames that a decoder still holds back, to put them in order, when a packet is damaged."""
    with suppress(OSError, ValueError, EOFError):
        return stream.codec_context.decode(None)
    return []


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text.rstrip(".").lower() or type(error).__name__
