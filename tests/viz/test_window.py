"""The window of ``track --show``, with a Tk that has a script in place of a screen and a hand."""

import sys
import types

import numpy as np
import PIL
import pytest

from vision_lowrank.errors import UserError
from vision_lowrank.viz.window import Window


class FakeTk:
    """Does at every update what its script says next: a key, or the mouse at a place."""

    def __init__(self, script, screen):
        self.script, self.screen, self.bound, self.destroyed, self.sizes = list(script), screen, {}, False, []
        self.drawn, self.naps = [], 0

    def __call__(self):
        return self

    def update(self):
        if self.script:
            name, *what = self.script.pop(0)
            if name == "close":
                self.closes()
            elif name in self.bound:
                self.bound[name](types.SimpleNamespace(**dict(zip(("x", "y", "keysym", "char"), what, strict=False))))

    def after(self, milliseconds):
        self.naps += 1
        assert self.naps < 20, "nothing more will happen"

    def bind(self, name, action):
        self.bound[name] = action

    def unbind(self, name):
        del self.bound[name]

    def protocol(self, name, action):
        assert name == "WM_DELETE_WINDOW"
        self.closes = action

    def create_rectangle(self, *corners, **style):
        self.drawn.append(corners)
        return len(self.drawn)

    def config(self, width, height):
        self.sizes.append((width, height))

    def delete(self, *items):
        pass

    def title(self, text):
        self.name = text

    def destroy(self):
        self.destroyed = True

    def winfo_screenwidth(self):
        return self.screen[0]

    def winfo_screenheight(self):
        return self.screen[1]

    def pack(self):
        pass

    def create_image(self, x, y, **style):
        pass


@pytest.fixture
def put_tk(monkeypatch):
    """Put a Tk with a script in the place of Python's."""

    def put(*script, screen=(1000, 800)):
        tk = FakeTk(script, screen)
        module = types.SimpleNamespace(Tk=tk, Canvas=lambda root, **style: tk)
        pictures = types.SimpleNamespace(PhotoImage=lambda picture, master: picture)
        monkeypatch.setitem(sys.modules, "tkinter", module)
        monkeypatch.setitem(sys.modules, "PIL.ImageTk", pictures)
        monkeypatch.setattr(PIL, "ImageTk", pictures, raising=False)
        return tk

    return put


FRAME = np.zeros((60, 80, 3), dtype=np.uint8)
DRAG = (("<Button-1>", 50, 40), ("<B1-Motion>", 30, 30), ("<ButtonRelease-1>", 20, 10))


@pytest.mark.parametrize(("key", "stops"), [("q", True), ("Escape", True), ("x", False), ("r", False)])
def test_keys(put_tk, key, stops):
    tk = put_tk(("<Key>", 0, 0, key, key if len(key) == 1 else ""))
    window = Window("clip.mp4")
    assert window.show(FRAME) is stops
    assert window.show(FRAME) is False  # asked once
    assert (tk.name, tk.sizes) == ("clip.mp4", [(80, 60)] * 2)
    window.close()
    assert tk.destroyed


def test_closing_the_window_stops_too(put_tk):
    put_tk(("close",))
    assert Window("clip").show(FRAME) is True


def test_a_box_is_drawn_from_any_corner(put_tk):
    tk = put_tk(("idle",), *DRAG)
    assert Window("clip").choose_box(FRAME) == (20, 10, 30, 30)
    assert tk.drawn == [(50, 40, 30, 30)]
    assert tk.naps
    assert set(tk.bound) == {"<Key>"}  # the mouse does nothing more


def test_a_click_is_no_box(put_tk):
    put_tk(("idle",), ("<Button-1>", 5, 5), ("<ButtonRelease-1>", 5, 5), *DRAG)
    assert Window("clip").choose_box(FRAME) == (20, 10, 30, 30)


def test_a_frame_larger_than_the_screen_is_shown_smaller_and_its_box_is_the_frames(put_tk):
    tk = put_tk(("idle",), *DRAG, screen=(1000, 400))
    frame = np.zeros((720, 1280, 3), dtype=np.uint8)
    box = Window("clip").choose_box(frame)
    assert tk.sizes == [(640, 360)]
    assert box == (40, 20, 60, 60)


def test_leaving_without_a_box_is_said(put_tk):
    put_tk(("idle",), ("<Button-1>", 5, 5), ("close",))
    with pytest.raises(UserError, match="no box was drawn: draw one with the mouse, or give --box"):
        Window("clip").choose_box(FRAME)


def test_no_display_is_one_line(monkeypatch):
    class TclError(Exception):
        pass

    def fail():
        raise TclError("no display name and no $DISPLAY environment variable")

    monkeypatch.setitem(sys.modules, "tkinter", types.SimpleNamespace(Tk=fail))
    with pytest.raises(UserError) as caught:
        Window("clip")
    assert str(caught.value).startswith("--show: no window can be opened here (no display name and no $DISPLAY")
    assert str(caught.value).endswith("leave it out, and use --save-video.")
    monkeypatch.setitem(sys.modules, "tkinter", None)  # Python without Tk
    with pytest.raises(UserError, match="no window can be opened here"):
        Window("clip")
