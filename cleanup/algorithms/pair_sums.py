"""Sums over pairs that come again and again, in memory of as many pairs as differ."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Values that may wait, beside as many as there are pairs, before those of one pair are put together.
_MIN_PENDING = 1 << 16


class PairSums:
    """Sum and number of the values of each pair.

    Args:
        n_places: Both of a pair are numbers from 0 to before this.
    """

    def __init__(self, n_places: int) -> None:
        self._n_places = max(n_places, 1)
        self._codes: NDArray[np.int64] = np.zeros(0, np.int64)
        self._sums: NDArray[np.float64] = np.zeros(0)
        self._counts: NDArray[np.float64] = np.zeros(0)
        self._pending: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        self._n_pending = 0

    def add(self, first: NDArray[np.intp], second: NDArray[np.intp], values: NDArray[Any]) -> None:
        """Adds one value to each of some pairs; a pair may be among them more than once."""
        self._pending.append((first * self._n_places + second, values.astype(np.float64)))
        self._n_pending += len(first)
        if self._n_pending > max(len(self._codes), _MIN_PENDING):
            self._put_together()

    def _put_together(self) -> None:
        codes = np.concatenate([self._codes, *(codes for codes, _ in self._pending)])
        sums = np.concatenate([self._sums, *(values for _, values in self._pending)])
        counts = np.concatenate([self._counts, np.ones(self._n_pending)])
        self._codes, inverse = np.unique(codes, return_inverse=True)
        self._sums, self._counts = np.zeros(len(self._codes)), np.zeros(len(self._codes))
        np.add.at(self._sums, inverse, sums)
        np.add.at(self._counts, inverse, counts)
        self._pending, self._n_pending = [], 0

    def finish(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Both of each pair, its sum and its number of values; sorted by pair, shape (m,) each."""
        self._put_together()
        return *np.divmod(self._codes, self._n_places), self._sums, self._counts
