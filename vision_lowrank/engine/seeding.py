"""Random numbers by address instead of by state.

Every use of randomness has an address: the run's seed, a stream (what it is for) and integers (where in the run).
``seed_everything(seed, Stream.STEP, stage, step, micro, rank)`` puts Python, NumPy and torch into a state that depends
on that address alone. So no random state is ever saved, a resumed run draws what the uninterrupted run would have
drawn, and any step can be replayed.
"""

from __future__ import annotations

import random
from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What a random number is used for; different streams never share numbers."""

    ORDER = 0
    SAMPLE = 1
    STAGE = 2
    STEP = 3
    EVAL_SAMPLE = 4
    EVAL_STEP = 5
    BUILD = 6


def derive_seed(seed: int, stream: Stream, *address: int) -> int:
    """Derive a 63-bit seed for one address by NumPy's ``SeedSequence`` hash: neighbouring addresses are unrelated.

    Args:
        seed: the run's seed, >= 0.
        stream: what the numbers are for.
        address: integers >= 0 that say where in the run, such as stage, step, micro-batch and process.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(int(stream), *address))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_everything(seed: int, stream: Stream, *address: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (all devices) for one address."""
    value = seed_host(seed, stream, *address)
    if torch.accelerator.is_available():
        torch.manual_seed(value)


def seed_host(seed: int, stream: Stream, *address: int) -> int:
    """Seed the generators of the host for one address; returns the seed.

    What loads samples calls this, not ``torch.manual_seed``, which without a GPU spends most of a millisecond on noting
    where it was called from.
    """
    value = derive_seed(seed, stream, *address)
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - the global generator is what library transforms draw from
    torch.default_generator.manual_seed(value)
    return value
