"""Work for a client: it ends when the client leaves, and its queries with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import TypeVar

import duckdb
from starlette.types import Receive

INTERRUPT_S = 0.05
T = TypeVar("T")


async def while_connected(receive: Receive, work: Coroutine[object, object, None]) -> bool:
    """Do some work, and whether it was done; if the client leaves before, it is cancelled."""
    working = asyncio.create_task(work)
    tasks = (working, asyncio.create_task(_until_gone(receive)))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    if working.cancelled():
        return False
    working.result()
    return True


async def _until_gone(receive: Receive) -> None:
    while not (await receive())["type"].endswith(".disconnect"):
        pass


async def run_interruptibly(
    pool: Executor, work: Callable[[], T], connections: Sequence[duckdb.DuckDBPyConnection]
) -> T:
    """Run `work` on a thread; if this is cancelled, end its queries on `connections` and wait for it."""
    job = pool.submit(work)
    try:
        return await asyncio.wrap_future(job)
    finally:
        while not (
            job.done() or job.cancel()
        ):  # repeatedly, because an interrupt between two batches is lost
            for connection in [*connections]:
                with suppress(duckdb.Error):  # closed
                    connection.interrupt()
            await asyncio.sleep(INTERRUPT_S)
