"""Do several things at once, in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def meanwhile(function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Iterator[Future[Result]]:
    """Call a function in a thread during the block, whose end waits for it. The future has its result or error."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(function, *args, **kwargs)


@contextmanager
def again(function: Callable[[], object], *, pause: float) -> Iterator[None]:
    """Call a function in a thread over and over during the block, `pause` seconds after the last call has ended.

    Its first error ends that, and is raised at the end of a block that has none of its own.
    """
    stop: Future[None] = Future()

    def calls() -> None:
        while not stop.done():
            function()
            wait([stop], timeout=pause)

    with meanwhile(calls) as called:
        try:
            yield
        finally:
            stop.set_result(None)
        called.result()


def each(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    *,
    weight: Callable[[Item], int] = lambda item: 0,
    most: int = 0,
) -> Iterator[Result]:
    """Call a function for each item in threads; yields the results in no order, as they come.

    Items are taken as workers become free, so few are in memory; those under way together weigh at most `most`, or
    there is only one. The first exception ends it: what runs is waited for, nothing else begins.
    """
    left = iter(items)
    following = next(left, None)
    running: dict[Future[Result], int] = {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            while following is not None or running:
                while following is not None and len(running) < 2 * workers:
                    heavy = weight(following)
                    if running and sum(running.values()) + heavy > most:
                        break
                    running[pool.submit(function, following)] = heavy
                    following = next(left, None)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    del running[future]
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """As `each`, but the results come in the order of the items, and few are kept."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
