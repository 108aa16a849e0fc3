"""Reading ahead changes nothing but the time."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from cleanup.edges.observation_worker import read_ahead


@pytest.mark.parametrize("n_items", [0, 1, 3, 20])
def test_items_come_in_order_and_all_of_them(n_items: int) -> None:
    assert list(read_ahead(iter(range(n_items)), 4)) == list(range(n_items))


def test_an_error_arrives_in_its_place() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("no third one")

    seen = []
    with pytest.raises(ValueError, match="no third one"):
        for item in read_ahead(broken(), 8):
            seen.append(item)
    assert seen == [1, 2]


def test_no_thread_is_left_when_the_reader_stops_early() -> None:
    reader = read_ahead(iter(range(1000)), 4)
    assert next(reader) == 0
    reader.close()

    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_no_more_than_the_depth_is_taken_before_it_is_asked_for() -> None:
    taken = []

    def counting() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    reader = read_ahead(counting(), 4)
    next(reader)
    reader.close()

    assert len(taken) <= 5
