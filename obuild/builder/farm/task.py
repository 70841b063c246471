"""The function of all tasks. The scheduler imports this module, too, so nothing else is imported with it."""

from __future__ import annotations

from typing import Any

#: The name of our plugin in a Dask worker.
PLUGIN = "obuild"


def work(digest: str, size: int) -> dict[str, Any]:
    """Have the worker that we are in carry out the order that is this blob of its remote."""
    from distributed import get_worker

    worker = get_worker()
    answer: dict[str, Any] = worker.plugins[PLUGIN].work(worker.get_current_task(), digest, size)
    return answer
