"""Tasks of a Celery worker: synchronous functions that use an asynchronous client."""

import os
import threading

import redis.asyncio
from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

from asgiref.sync import AsyncSingleThreadContext, async_to_sync, sync_to_async

URL = os.environ["REDIS_URL"]
POOL = os.environ["CELERY_POOL"]

app = Celery("tasks", broker=URL, backend=URL)
# For all tasks of a process in the pool "prefork". It keeps a connection open, which belongs to an event loop.
client = redis.asyncio.from_url(URL)
block = AsyncSingleThreadContext()


@worker_process_init.connect
def begin(**kwargs):
    block.__enter__()


@worker_process_shutdown.connect
def end(**kwargs):
    async_to_sync(client.aclose)()
    block.__exit__(None, None, None)


async def count(user, client):
    """Go from asynchronous code to synchronous code and back, on the thread of the task."""
    number = await client.incr(f"count of {user}")
    return number, await sync_to_async(threading.get_ident)()


def told(counted):
    numbers, threads = zip(*counted, strict=True)
    return {"numbers": list(numbers), "on the task's thread": set(threads) == {threading.get_ident()}}


@app.task
def visit(user):
    """Count three visits of *user*, in one asynchronous call with its own client."""

    async def counted():
        async with redis.asyncio.from_url(URL) as client:
            return [await count(user, client) for _ in range(3)]

    return told(async_to_sync(counted)())


@app.task
def visit_three_times(user):
    """Count three visits of *user*, in three calls that share a client."""
    if POOL == "prefork":
        return told([async_to_sync(count)(user, client) for _ in range(3)])
    # A block belongs to the thread that has entered it; on threads of the other pools, only tasks run.
    with AsyncSingleThreadContext():
        own = redis.asyncio.from_url(URL)
        counted = [async_to_sync(count)(user, own) for _ in range(3)]
        async_to_sync(own.aclose)()
        return told(counted)


@app.task
def fails():
    async def coroutine():
        raise LookupError("in a coroutine")

    async_to_sync(coroutine)()
