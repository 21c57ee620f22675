"""MinHash of word 5-grams, in 14 bands of 8: texts that share a band are near.

The settings are datatrove's (Penedo et al. 2024): two texts whose sets of 5-grams have a Jaccard
similarity s share a band with probability 1 - (1 - s^8)^14, which is one half at 0.685.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

WORDS = 5
BANDS, ROWS = 14, 8
SEED = 17

Hashes = NDArray[np.uint64]
Shingles = Set[str]


def shingles(text: str, side: str = "") -> Shingles:
    """A text's word 5-grams; words are runs of letters and digits, in lower case.

    One of all its words where there are fewer than 5; none where there are none. `side` keeps those
    of a source apart from those of a target.
    """
    words = re.findall(r"\w+", text.lower())
    ends = range(WORDS, max(len(words), WORDS) + 1) if words else ()
    return {f"{side}\n{' '.join(words[end - WORDS : end])}" for end in ends}


def bands(sets: Sequence[Shingles]) -> Hashes:
    """The hashes of every set's bands, (sets, 14): two sets are near that share one.

    An empty set has bands too, which mean nothing.
    """
    digests = RMinHash.digests_from_token_sets(list(map(list, sets)), BANDS * ROWS, SEED)
    values = np.array(digests, dtype=np.uint64).reshape(len(sets), BANDS, ROWS)
    random = np.random.default_rng(SEED)
    odd = 2 * random.integers(1 << 63, size=(BANDS, ROWS), dtype=np.uint64) + 1
    return np.asarray((values * odd).sum(2), dtype=np.uint64)
