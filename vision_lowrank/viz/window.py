"""A plain window for frames, of Python's own Tk: shows a video as it is tracked, and lets a box be drawn by mouse."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError

Box = tuple[float, float, float, float]


class Window:
    """A window of the size of the frames; ``q`` or Escape asks to stop, ``r`` to choose the target anew."""

    def __init__(self, title: str) -> None:
        """Open it.

        Raises:
            UserError: there is no display, or Python was built without Tk.
        """
        try:
            import tkinter

            from PIL import ImageTk

            self._root = tkinter.Tk()
        except (ImportError, RuntimeError) as error:
            raise self._none(error) from None
        except Exception as error:  # tkinter.TclError, which needs Tk to be named
            raise self._none(error) from None
        self._picture_of = ImageTk.PhotoImage
        self._root.title(title)
        self._label: Any = tkinter.Canvas(self._root, highlightthickness=0)
        self._label.pack()
        self._pressed = ""
        self._root.bind("<Key>", self._press)
        self._root.protocol("WM_DELETE_WINDOW", lambda: setattr(self, "_pressed", "q"))

    def show(self, frame: np.ndarray) -> str:
        """Show a frame (H, W, 3) uint8; returns ``q``, ``r`` or nothing, as was pressed since the last one."""
        self._image = self._picture_of(Image.fromarray(frame), master=self._root)  # Tk keeps no reference of its own
        self._label.config(width=frame.shape[1], height=frame.shape[0])
        self._label.delete("all")
        self._label.create_image(0, 0, anchor="nw", image=self._image)
        self._root.update()
        pressed, self._pressed = self._pressed, ""
        return pressed

    def choose_box(self, frame: np.ndarray) -> Box:
        """Let a box be drawn with the mouse: left, top, width, height in pixels.

        Raises:
            UserError: the window was left without one.
        """
        corners: list[tuple[float, float]] = []
        drawn: list[int] = []

        def begin(event: Any) -> None:
            corners[:] = [(event.x, event.y)]

        def move(event: Any) -> None:
            for each in drawn:
                self._label.delete(each)
            drawn[:] = [self._label.create_rectangle(*corners[0], event.x, event.y, outline="#e69f00", width=2)]

        self.show(frame)
        self._label.bind("<Button-1>", begin)
        self._label.bind("<B1-Motion>", move)
        self._label.bind("<ButtonRelease-1>", lambda event: corners.append((event.x, event.y)))
        while len(corners) < 2:
            self._root.update()
            if self._pressed == "q":
                raise UserError("no box was drawn: draw one with the mouse, or give --box left,top,width,height.")
        for name in ("<Button-1>", "<B1-Motion>", "<ButtonRelease-1>"):
            self._label.unbind(name)
        (x0, y0), (x1, y1) = corners
        return min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)

    def close(self) -> None:
        """Close it."""
        self._root.destroy()

    def _press(self, event: Any) -> None:
        key = {"Escape": "q"}.get(event.keysym, event.char)
        self._pressed = key if key in ("q", "r") else self._pressed

    @staticmethod
    def _none(error: Exception) -> UserError:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        return UserError(f"--show: no window can be opened here ({reason}): leave it out, and use --save-video.")
