import io

import pytest
from rich.console import Console

from vision_lowrank.engine.progress import Display


def display(terminal, enabled=True):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=160)
    return Display(enabled=enabled, console=console), stream


def test_without_a_terminal_there_is_one_line_every_n_steps_and_at_the_last():
    shown, stream = display(terminal=False)
    with shown.track("fit", 7, done=2, every=3) as advance:
        for step in range(3, 8):
            advance(f"loss {step}")
    text = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in text] == ["fit 3/7", "fit 6/7", "fit 7/7"]
    assert "it/s  loss 6  00:00:0" in text[1]


def test_on_a_terminal_bars_nest_and_can_be_used_again():
    shown, stream = display(terminal=True)
    for _ in range(2):
        with shown.track("fit", 2) as advance:
            advance("loss 1.25")
            with shown.track("evaluate val", 3) as inner:
                inner("")
            shown.say("val/accuracy [0.5]")
            advance("loss 0.75")
    text = stream.getvalue()
    for expected in ("fit", "2/2", "loss 0.75", "val/accuracy [0.5]"):
        assert expected in text


@pytest.mark.parametrize("terminal", [True, False])
def test_other_processes_are_silent(terminal):
    shown, stream = display(terminal, enabled=False)
    with shown.track("fit", 1) as advance:
        advance("loss")
        shown.say("line")
    assert stream.getvalue() == ""
