"""Strings that are there more than once among any number of them, in 8 bytes each.

A first pass keeps a hash of every string; strings whose hashes are there more than once are compared themselves in a second one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

COMPARED = 100_000  # strings that the second pass holds at most; with more repeats than that, the others are counted by their hashes

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse; 5 mod 8, so that its powers repeat as late as can be
_BYTES = np.random.default_rng(0).integers(0, 2**64, 256, dtype=np.uint64)  # any fixed numbers


def hashes(values: pa.StringArray) -> NDArray[np.uint64]:
    """64 bits of every string, none null: a polynomial in _BASE, modulo 2**64, of its bytes."""
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values), "")[0].as_py().encode()
    ends = np.cumsum(pc.binary_length(values).to_numpy(), dtype=np.int64)
    starts = np.concatenate([[0], ends])[:-1]
    terms = _BYTES[np.frombuffer(joined, np.uint8)] * _powers(_BASE, len(joined))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    shifts = _powers(pow(_BASE, -1, 2**64), len(joined) + 1)  # a string's hash is the same wherever it stands
    return np.asarray((sums[ends] - sums[starts]) * shifts[starts])


def repeated(parts: Sequence[NDArray[np.uint64]]) -> tuple[NDArray[np.uint64], int]:
    """Hashes that are there more than once, `COMPARED` at most, ascending; and how many repeats the others make."""
    found, counts = np.unique(np.concatenate([*parts, np.empty(0, np.uint64)]), return_counts=True)
    suspects, counts = found[counts > 1], counts[counts > 1]
    return suspects[:COMPARED], int((counts[COMPARED:] - 1).sum())


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """1, base, base**2, ... modulo 2**64."""
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors)
