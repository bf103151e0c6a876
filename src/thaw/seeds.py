"""Named random generators derived from one run seed.

Each use of randomness has a name ("weights", "order", "augment", ...) and its own stream, so that a new use does not
change the numbers drawn elsewhere.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream `names` of the run seed `seed`: 8 bytes of a SHA-256, without the sign bit."""
    text = "/".join(str(part) for part in (seed, *names))
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for the named stream."""
    return np.random.Generator(np.random.PCG64(derive(seed, *names)))
