"""Named random generators from one run seed.

Every use of chance has a name ("weights", "order", "augment", ...), and each name has a stream of its own, so that
adding a use somewhere does not change the numbers drawn anywhere else.
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
    """A NumPy generator on the named stream."""
    return np.random.Generator(np.random.PCG64(derive(seed, *names)))
