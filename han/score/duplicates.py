"""Find repeated strings among any number of strings, with 8 bytes of memory for each.

A first pass keeps a hash of every string. A second pass compares the strings whose hashes repeat.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

COMPARED = 100_000  # most strings in memory in the second pass; further repeats are counted by their hashes

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse; 5 mod 8, so that its powers have the longest period
_BYTES = np.random.default_rng(0).integers(0, 2**64, 256, dtype=np.uint64)  # any fixed numbers


def hashes(values: pa.StringArray) -> NDArray[np.uint64]:
    """A hash of 64 bits for every string: a polynomial in _BASE of its bytes, modulo 2**64. No string is null."""
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values), "")[0].as_py().encode()
    ends = np.cumsum(pc.binary_length(values).to_numpy(), dtype=np.int64)
    starts = np.concatenate([[0], ends])[:-1]
    terms = _BYTES[np.frombuffer(joined, np.uint8)] * _powers(_BASE, len(joined))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    shifts = _powers(pow(_BASE, -1, 2**64), len(joined) + 1)  # so that a string has the same hash at every position
    return np.asarray((sums[ends] - sums[starts]) * shifts[starts])


def repeated(parts: Sequence[NDArray[np.uint64]]) -> tuple[NDArray[np.uint64], int]:
    """At most `COMPARED` hashes that repeat, ascending; and the number of repeats of the others."""
    found, counts = np.unique(np.concatenate([*parts, np.empty(0, np.uint64)]), return_counts=True)
    suspects, counts = found[counts > 1], counts[counts > 1]
    return suspects[:COMPARED], int((counts[COMPARED:] - 1).sum())


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """1, base, base**2, ... modulo 2**64."""
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors)
