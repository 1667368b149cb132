"""Errors for people: one line that names the thing, the reason and the remedy.

Every mistake that a user can make raises a :class:`UserError`. The command line prints its text without a
traceback and exits with code 2; from Python it is an ordinary exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave: the message names the thing, the reason and the remedy."""


class ConfigError(UserError):
    """One or more problems in a configuration, all reported at once, one line each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class DeadAdapterError(UserError):
    """An adapter that is never called or that no gradient reaches: it would silently learn nothing."""


class ArtefactError(UserError):
    """An artefact, adapter or checkpoint that is damaged, incomplete or made for something else."""


class DataError(UserError):
    """Images, folders or tables that cannot be used as they are."""


def near_miss(name: str, options: Iterable[str]) -> str:
    """Return a sentence `` Did you mean 'x'?`` for the option closest to `name`, or an empty string.

    >>> near_miss("block_lroa", ["lora", "block_lora"])
    " Did you mean 'block_lora'?"
    """
    options = list(options)
    folded = {option.lower(): option for option in reversed(options)}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    return f" Did you mean '{folded[close[0]]}'?" if close else ""
