"""Work in threads, a bounded number of items ahead of whoever takes the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], threads: ThreadPoolExecutor, n_ahead: int
) -> Iterator[Result]:
    """The results of ``work`` in the order of the items; no more than ``n_ahead`` items are taken before one is wanted.

    Unlike ``Executor.map``, which takes all items at once and keeps every result that nobody has taken yet.
    """
    under_way: deque[Future[Result]] = deque()
    for item in items:
        under_way.append(threads.submit(work, item))
        if len(under_way) > n_ahead:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()
