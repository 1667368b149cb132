"""What stands between the shell and the commands: paths as they come in, and mistakes and refusals as they go out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import typer

from ..errors import UserError
from ..files import check_output
from .output import drop_output, plain
from .stopping import memory_shortage, system_refusal

# Options and arguments that name a place to write to, which is tried before the work starts.
output, target_path = partial(typer.Option, callback=check_output), partial(typer.Argument, callback=check_output)


@contextmanager
def exit_code(code: int) -> Iterator[None]:
    """End with `code`, and one line per mistake on stderr, where the user made one or the system refused something."""
    try:
        yield
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {plain(line)}", file=sys.stderr)
        sys.exit(code)
    except BrokenPipeError:
        raise
    except Exception as error:
        reason = memory_shortage(error) or system_refusal(error)
        if reason is None:
            raise
        print(f"error: {reason}", file=sys.stderr)
        drop_output()
        sys.exit(code)


def expanded(argument: str) -> str:
    """Let ``~`` be the user's own folder also where a shell leaves it, as in ``--json=~/found.json``."""
    option, equals, value = argument.partition("=")
    if option.startswith("--") and equals:
        return f"{option}={os.path.expanduser(value)}"
    return os.path.expanduser(argument)
