"""A plain window for frames, of Python's own Tk: shows a video as it is tracked, and lets a box be drawn by mouse."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError

Box = tuple[float, float, float, float]
SHARE = 0.9  # of the screen's sides that a frame takes at most
PAUSE = 15  # milliseconds between two looks at the mouse


class Window:
    """A window for frames, which are made smaller where the screen is; ``q`` or Escape asks to stop."""

    def __init__(self, title: str) -> None:
        """Open it.

        Raises:
            UserError: there is no display, or Python was built without Tk.
        """
        try:
            import tkinter

            from PIL import ImageTk

            self._root = tkinter.Tk()
        except Exception as error:  # ImportError, or tkinter.TclError, which needs Tk to be named
            reason = str(error).strip().rstrip(".") or type(error).__name__
            raise UserError(
                f"--show: no window can be opened here ({reason}): leave it out, and use --save-video."
            ) from None
        self._picture_of = ImageTk.PhotoImage
        self._root.title(title)
        self._canvas: Any = tkinter.Canvas(self._root, highlightthickness=0)
        self._canvas.pack()
        self._stops, self._scale = False, 1.0
        self._root.bind("<Key>", self._press)
        self._root.protocol("WM_DELETE_WINDOW", self._stop)

    def show(self, frame: np.ndarray) -> bool:
        """Show a frame (H, W, 3) uint8; returns whether it was asked to stop since the last one."""
        picture = Image.fromarray(frame)
        screen = self._root.winfo_screenwidth(), self._root.winfo_screenheight()
        self._scale = min(1.0, *(SHARE * room / side for room, side in zip(screen, picture.size, strict=True)))
        if self._scale < 1:
            picture = picture.resize([max(1, round(self._scale * side)) for side in picture.size])
        self._image = self._picture_of(picture, master=self._root)  # Tk keeps no reference of its own
        self._canvas.config(width=picture.width, height=picture.height)
        self._canvas.delete("all")
        self._canvas.create_image(0, 0, anchor="nw", image=self._image)
        self._root.update()
        stops, self._stops = self._stops, False
        return stops

    def choose_box(self, frame: np.ndarray) -> Box:
        """Let a box be drawn with the mouse: left, top, width, height in pixels of the frame. A mere click draws none.

        Raises:
            UserError: the window was left without one.
        """
        self.show(frame)
        dragged = _Dragged(self._canvas)
        while dragged.box is None:
            self._root.update()
            if self._stops:
                raise UserError("no box was drawn: draw one with the mouse, or give --box left,top,width,height.")
            self._root.after(PAUSE)
        dragged.unbind()
        left, top, width, height = (value / self._scale for value in dragged.box)
        return left, top, width, height

    def close(self) -> None:
        """Close it."""
        self._root.destroy()

    def _press(self, event: Any) -> None:
        if event.keysym == "Escape" or event.char == "q":
            self._stop()

    def _stop(self) -> None:
        self._stops = True


class _Dragged:
    """The box that is being drawn on a canvas; :attr:`box` is None until the mouse is let go."""

    def __init__(self, canvas: Any) -> None:
        self.box: Box | None = None
        self._canvas, self._start, self._drawn = canvas, (0, 0), None
        self._actions = {"<Button-1>": self._begin, "<B1-Motion>": self._move, "<ButtonRelease-1>": self._end}
        for name, action in self._actions.items():
            canvas.bind(name, action)

    def unbind(self) -> None:
        """Listen no more."""
        for name in self._actions:
            self._canvas.unbind(name)

    def _begin(self, event: Any) -> None:
        self._start = event.x, event.y

    def _move(self, event: Any) -> None:
        if self._drawn is not None:
            self._canvas.delete(self._drawn)
        self._drawn = self._canvas.create_rectangle(*self._start, event.x, event.y, outline="#e69f00", width=2)

    def _end(self, event: Any) -> None:
        (x, y), width, height = self._start, event.x - self._start[0], event.y - self._start[1]
        if width and height:
            self.box = min(x, event.x), min(y, event.y), abs(width), abs(height)
