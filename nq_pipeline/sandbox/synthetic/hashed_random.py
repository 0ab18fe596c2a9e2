"""Random numbers from hashed keys: the same key gives the same number, everywhere.

So the synthetic market can show any instant without simulating up to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Keys = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(*parts: Any) -> Keys:
    """One 64-bit key per element from integers or integer arrays (splitmix64, applied per part)."""
    key = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            key = key ^ np.asarray(part).astype(np.int64).view(np.uint64)
            key = (key + _GOLDEN).astype(np.uint64)
            key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            key = key ^ (key >> np.uint64(31))
    return key


def uniform(*parts: Any) -> Floats:
    """Uniform in the open interval (0, 1)."""
    return (np.asarray(mix(*parts) >> np.uint64(11), np.float64) + 0.5) / 2.0**53


def normal(*parts: Any) -> Floats:
    """Close to standard normal: the scaled sum of four 16-bit uniforms, so never beyond 3.5."""
    key = mix(*parts)
    total = np.zeros(key.shape)
    for shift in (0, 16, 32, 48):
        total += np.asarray((key >> np.uint64(shift)) & np.uint64(0xFFFF), np.float64) / 65536.0 - 0.5
    return np.asarray(total * np.sqrt(3.0), np.float64)


def brownian_bridge(key: Any, x: Floats, levels: int) -> Floats:
    """A Brownian bridge over [0, 1] evaluated at `x` (Lévy's construction, `levels` halvings)."""
    value: Floats = np.zeros(np.shape(x))
    for level in range(levels):
        cell, offset = np.divmod(x * 2.0**level, 1.0)
        tent = 1.0 - np.abs(2.0 * offset - 1.0)
        value = value + normal(key, level, cell.astype(np.int64)) * tent * 2.0 ** (-level / 2 - 1)
    return value
