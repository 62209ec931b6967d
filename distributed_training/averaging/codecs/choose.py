"""The largest of every row: the same on every machine, whatever order the library's partition leaves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint32]
Places = NDArray[np.int64]


def largest(keys: Keys, kept: int, mask: NDArray[np.bool_]) -> Places:
    """Places of the `kept` largest of each row, ascending; of equal keys the first ones.

    keys: [rows, n], kept <= n. mask: memory for [rows, n]. Only which value is the kept-th largest is asked of the
    library, and that has one answer.
    """
    rows, coords = keys.shape
    # Where so many groups have a largest key of at least `floor`, so many keys are at least that; few others are.
    groups = min(2 * kept, coords)
    peaks = keys[:, : coords // groups * groups].reshape(rows, -1, groups).max(axis=1)
    floor = np.partition(peaks, groups - kept, axis=1)[:, groups - kept]
    np.greater_equal(keys, floor[:, None], out=mask)
    places = np.flatnonzero(mask)
    row = places // coords
    found, threshold = _nth_largest(keys, places, row, kept)
    chosen = found >= threshold[row]
    places, row, found = places[chosen], row[chosen], found[chosen]
    if len(places) > rows * kept:
        chosen = _without_surplus(found == threshold[row], row, rows, kept)
        places, row = places[chosen], row[chosen]
    return (places - row * coords).reshape(rows, kept)


def _nth_largest(keys: Keys, places: Places, row: Places, nth: int) -> tuple[Keys, Keys]:
    """The keys at the flat `places`, and the nth largest of them in each row."""
    found, counts = keys.reshape(-1)[places], np.bincount(row, minlength=len(keys))
    width = int(counts.max())
    table = np.zeros((len(keys), width), np.uint32)
    table[row, _ranks(row, counts)] = found
    return found, np.partition(table, width - nth, axis=1)[:, width - nth]


def _without_surplus(equal: NDArray[np.bool_], row: Places, rows: int, kept: int) -> NDArray[np.bool_]:
    """equal: which of the chosen equal their row's threshold. Those of them that there is room for, and all others."""
    larger = np.bincount(row[~equal], minlength=rows)
    chosen, equals = ~equal, np.flatnonzero(equal)
    of = row[equals]
    chosen[equals] = _ranks(of, np.bincount(of, minlength=rows)) < (kept - larger)[of]
    return chosen


def _ranks(row: Places, counts: Places) -> Places:
    """The how-manieth of its row each is; `row` ascends and holds `counts` of each."""
    return np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
