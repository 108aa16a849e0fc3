"""Results come in order, and no more is taken ahead than may wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cleanup.edges.bounded_map import map_ahead


def test_results_are_in_order_and_few_items_are_taken_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    results = []
    with ThreadPoolExecutor(4) as threads:
        for result in map_ahead(work, items(), threads, n_ahead=3):
            results.append(result)
            assert len(taken) <= len(results) + 3

    assert results == [item * item for item in range(20)]


def test_a_fault_reaches_the_caller() -> None:
    with ThreadPoolExecutor(1) as threads, pytest.raises(ZeroDivisionError):
        list(map_ahead(lambda item: 1 // item, [1, 0, 1], threads, n_ahead=2))
